//! `epiphyte methods`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::methods::{Definition, METHODS, by_name};
use serde::Serialize;

use crate::global::Global;
use crate::output;
use crate::settings::with_default;

/// The result with `--json`.
#[derive(Serialize)]
struct Listing {
    methods: Vec<MethodListing>,
}

/// A method.
#[derive(Serialize)]
struct MethodListing {
    name: &'static str,
    summary: &'static str,
    paper: &'static str,
    peft_type: &'static str,
    in_peft: bool,
    /// The peak learning rate of a run that sets none.
    learning_rate: f64,
    flags: Vec<FlagListing>,
}

/// A flag of a method.
#[derive(Serialize)]
struct FlagListing {
    flag: &'static str,
    key: &'static str,
    help: &'static str,
    default: Option<String>,
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte methods
  epiphyte methods lora prefix-tuning
  epiphyte methods --json";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Methods to describe: papers, settings, defaults [default: all, in one line each]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let named = arguments.names.iter().map(|name| by_name(name));
    let named: Vec<&Definition> = named.collect::<Result<_, _>>()?;
    if global.json {
        let all = || METHODS.iter().collect();
        let methods = if named.is_empty() { all() } else { named };
        output::json(&Listing {
            methods: methods.into_iter().map(listing).collect(),
        })?;
    } else if named.is_empty() {
        overview()?;
    } else {
        for (at, method) in named.into_iter().enumerate() {
            if at > 0 {
                output::print("")?;
            }
            describe(method)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line for each method.
fn overview() -> Result<()> {
    let width = METHODS.iter().map(|method| method.name.len()).max();
    let width = width.unwrap_or(0);
    for method in METHODS {
        output::print(&format!("{:width$}  {}", method.name, method.summary))?;
    }
    output::print("\n`epiphyte methods NAME` shows the settings of a method.")
}

/// Prints all that there is to say of a method.
fn describe(method: &Definition) -> Result<()> {
    let peft = match method.in_peft {
        true => " (files are HF PEFT's)",
        false => "",
    };
    output::print(&format!(
        "{}: {}{peft}\n  {}\n  learning rate [default: {}]",
        method.name, method.summary, method.paper, method.learning_rate
    ))?;
    let width = method.flags.iter().map(|flag| flag.flag.len()).max();
    let width = width.unwrap_or(0);
    let defaults = (method.defaults)();
    for flag in method.flags {
        let help = with_default(flag, &defaults);
        output::print(&format!("    --{:width$}  {help}", flag.flag))?;
    }
    Ok(())
}

fn listing(method: &Definition) -> MethodListing {
    let defaults = (method.defaults)();
    let flags = method.flags.iter().map(|flag| FlagListing {
        default: flag.default_text(&defaults),
        flag: flag.flag,
        key: flag.key,
        help: flag.help,
    });
    MethodListing {
        name: method.name,
        summary: method.summary,
        paper: method.paper,
        peft_type: method.peft_type,
        in_peft: method.in_peft,
        learning_rate: method.learning_rate,
        flags: flags.collect(),
    }
}
