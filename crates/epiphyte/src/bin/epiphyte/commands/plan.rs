//! `epiphyte plan`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::methods::ParameterCounts;
use epiphyte::train::report::account::MemoryUse;
use epiphyte::train::{RunOptions, RunPlan, plan};

use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::output::{self, Align};
use crate::settings::{self, GivenFlags};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte plan run.toml
  epiphyte plan run.toml --rank 16 --memory 2GB

  run.toml is what `epiphyte train --config` takes; flags override it. A few steps are made in a
  temporary directory, so that memory and time are those of this machine.";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// TOML file with the settings of a run
    #[arg(value_name = "CONFIG")]
    file: Option<PathBuf>,
    /// The same, as `epiphyte train` takes it
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// Number of optimizer steps that are timed
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    timed_steps: u16,
    /// Memory that there is, such as 4GB: if the run needs more, settings that need less are tried
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    #[command(flatten)]
    settings: GivenFlags,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let file = arguments.file.or(arguments.config);
    let mut given = settings::run_configs(file.as_deref(), &arguments.settings)?;
    if given.len() > 1 {
        let problem = "the file has several runs: plan one at a time";
        return Err(UsageError::Other(problem.to_owned()).into());
    }
    let mut run = given.remove(0).config;
    if run.output.as_os_str().is_empty() {
        // Nothing is written there.
        run.output = "adapter".into();
    }
    run.check()?;
    let options = RunOptions {
        model_dir: Some(hub::resolve(&run.model)?),
        device: global.device()?,
        ..RunOptions::default()
    };
    let steps = usize::from(arguments.timed_steps);
    let plan = plan(&run, &options, steps, arguments.memory)?;
    match global.json {
        true => output::json(&plan)?,
        false => print(&plan)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a number of bytes with a unit.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size such as 500MB or 4GB");
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1.0,
        "KB" | "K" => 1e3,
        "MB" | "M" => 1e6,
        "GB" | "G" => 1e9,
        "KIB" => 1024.0,
        "MIB" => 1024.0 * 1024.0,
        "GIB" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    match number > 0.0 && number.is_finite() {
        true => Ok((number * unit) as u64),
        false => Err(wrong()),
    }
}

fn print(plan: &RunPlan) -> Result<()> {
    let count = |number: usize| output::count(number as u64);
    let ParameterCounts {
        base_parameters,
        trainable_parameters,
        changed_parameters,
        stored_parameters,
        head_parameters,
    } = plan.dry_run.account;
    let share = 100.0 * trainable_parameters as f64 / base_parameters.max(1) as f64;
    output::print("parameters:")?;
    output::pairs(&[
        ("  base", count(base_parameters)),
        (
            "  trainable",
            format!("{} ({share:.3}% of the base)", count(trainable_parameters)),
        ),
        ("  changed", count(changed_parameters)),
        ("  stored", count(stored_parameters)),
        ("  head", count(head_parameters)),
        ("  adapter file", output::bytes(plan.stored_bytes)),
    ])?;
    if let Some(memory) = &plan.memory {
        output::print("memory at the peak of a step:")?;
        let names = MemoryUse::PARTS.map(|name| match name {
            "other" => "examples and others",
            "peak" => "all",
            name => name,
        });
        let parts = names.into_iter().zip(memory.parts());
        let rows = parts.map(|(name, size)| vec![format!("  {name}"), output::bytes(size)]);
        output::table(&rows.collect::<Vec<_>>(), &[Align::Left, Align::Right])?;
    }
    if let Some(resident) = plan.resident_bytes {
        output::print(&format!(
            "resident, with the program and pages of files: {}",
            output::bytes(resident)
        ))?;
    }
    output::print("time:")?;
    output::pairs(&[
        ("  steps", output::count(plan.dry_run.steps)),
        (
            "  a step",
            format!("{:.3} s, from {}", plan.seconds_per_step, plan.timed_steps),
        ),
        ("  the first step", seconds(plan.first_step_seconds)),
        ("  an epoch", seconds(plan.seconds_per_epoch)),
        ("  evaluations", seconds(plan.evaluation_seconds)),
        ("  the run", seconds(plan.seconds)),
    ])?;
    let Some(limit) = &plan.limit else {
        return Ok(());
    };
    if limit.fits {
        return output::print(&format!(
            "The run fits into {}.",
            output::bytes(limit.bytes)
        ));
    }
    output::print(&format!(
        "The run does not fit into {}. Measured with other settings:",
        output::bytes(limit.bytes)
    ))?;
    let rows = limit.remedies.iter().map(|remedy| {
        vec![
            format!("  {}", remedy.flags),
            output::bytes(remedy.peak),
            format!("{:.3} s a step", remedy.seconds_per_step),
            if remedy.fits { "fits" } else { "does not fit" }.to_owned(),
        ]
    });
    let align = [Align::Left, Align::Right, Align::Right];
    output::table(&rows.collect::<Vec<_>>(), &align)?;
    if limit.remedies.iter().all(|remedy| !remedy.fits) {
        output::print(
            "What is left is a smaller base, shorter texts, or a method that trains less.",
        )?;
    }
    Ok(())
}

/// Seconds for people.
fn seconds(seconds: f64) -> String {
    match seconds < 100.0 {
        true => format!("{seconds:.1} s"),
        false => {
            let whole = std::time::Duration::from_secs_f64(seconds.round());
            format!(
                "{} (hours:minutes:seconds)",
                epiphyte::train::display::duration(whole)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("4GB", 4_000_000_000),
            ("1.5 kB", 1500),
            ("2MiB", 2 << 20),
            ("7", 7),
        ] {
            assert_eq!(size(text), Ok(bytes));
        }
        for wrong in ["", "GB", "-1GB", "4XB", "inf"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
