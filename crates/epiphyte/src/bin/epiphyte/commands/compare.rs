//! `epiphyte compare`: the runs of a suite, and their report.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::train::display::shell_command;
use epiphyte::train::observer::Silent;
use epiphyte::train::{Observer, RunOptions};
use epiphyte_compare::{
    Budget, Carried, Choice, CompareError, Published, RunResult, RunSuite, Shard, Status, Suite,
    SuiteObserver, Summary, merge_shards, names_of_comparison, write,
};
use serde::Serialize;

use crate::commands::quickstart;
use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::interrupt::{interrupted, on_signals};
use crate::output::{self, Align};
use crate::outputs;
use crate::progress::Progress;
use crate::settings::run_of_tables;

pub(crate) const EXAMPLES: &str = "\
Examples:
  Every method on a small built-in model, in about two minutes:
    epiphyte compare smoke --output smoke

  GLUE's small tasks; --data is the directory of the data sets, --model the base:
    epiphyte compare glue-mini --data glue --model sentence-transformers/all-MiniLM-L6-v2 \\
        --output glue-mini

  A suite of your own, from one that ships:
    epiphyte compare glue-mini --show > mine.toml
    epiphyte compare mine.toml --output mine

  On two machines, and the report of both:
    epiphyte compare mine.toml --shard 1/2 --output part-1
    epiphyte compare mine.toml --shard 2/2 --output part-2
    epiphyte compare mine.toml --merge part-1,part-2 --output mine

  The same command goes on where one was stopped. DIR then holds report.html, findings.md,
  results.json, results.csv and results.md.";

/// The suites that ship, by name.
const SUITES: [(&str, &str); 6] = [
    (
        "smoke",
        include_str!("../../../../assets/suites/smoke.toml"),
    ),
    (
        "glue-mini",
        include_str!("../../../../assets/suites/glue-mini.toml"),
    ),
    (
        "few-shot",
        include_str!("../../../../assets/suites/few-shot.toml"),
    ),
    (
        "nlg-mini",
        include_str!("../../../../assets/suites/nlg-mini.toml"),
    ),
    (
        "model-size",
        include_str!("../../../../assets/suites/model-size.toml"),
    ),
    (
        "math-mini",
        include_str!("../../../../assets/suites/math-mini.toml"),
    ),
];

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Suite: a TOML file, or smoke, glue-mini, few-shot, nlg-mini, model-size or math-mini
    suite: String,
    /// Directory for runs, results and report
    #[arg(long, value_name = "DIR", required_unless_present = "show")]
    output: Option<PathBuf>,
    /// Directory of the data sets, which suites call $data
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Base model, which suites call $model
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Run these methods only, by their names in the suite, and the baseline
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    methods: Vec<String>,
    /// Run this part of the suite: 1/4 is the first of four
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Take the results of these directories, the parts of the suite
    #[arg(
        long,
        value_name = "DIR,DIR",
        value_delimiter = ',',
        conflicts_with = "shard"
    )]
    merge: Vec<PathBuf>,
    /// Run what fits into these limits on storage, memory and time of a run, by plans of a few
    /// steps, and say what to choose and why; - is no limit
    #[arg(long, value_name = "1MB,4GB,30min")]
    budget: Option<Budget>,
    /// Show these results of HF PEFT's method_comparison with those of the suite: files, or
    /// directories of them
    #[arg(long, value_name = "FILE,DIR", value_delimiter = ',')]
    published: Vec<PathBuf>,
    /// Make runs again whose settings are no longer those of their result
    #[arg(long)]
    overwrite: bool,
    /// Keep adapters and checkpoints of finished runs
    #[arg(long)]
    keep_adapters: bool,
    /// Print the suite's file
    #[arg(long)]
    show: bool,
}

/// The directory of the base that the suite `smoke` trains.
const QUICKSTART: &str = "quickstart";

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let (name, text) = suite_text(&arguments.suite)?;
    let Some(output) = arguments.output.clone().filter(|_| !arguments.show) else {
        output::print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    };
    let own = names_of_comparison(&output);
    outputs::check_own_directory(&output, "a comparison", |name| {
        name == QUICKSTART || own.contains(&name)
    })?;
    let suite = parse(&name, &text, &output, &arguments)?;
    let published = arguments.published.iter().map(|path| Published::read(path));
    let published = published.collect::<Result<Vec<_>, _>>().map_err(plain)?;
    let published = published.concat();
    if !global.hides_progress() {
        let (runs, output) = (output::count(suite.runs() as u64), output.display());
        output::note(&format!("{}: {runs} runs, in `{output}`", suite.title));
    }
    if !arguments.merge.is_empty() {
        merge_shards(&arguments.merge, &output).map_err(plain)?;
    }
    let interrupt = on_signals(global.quiet)?;
    let runs = RunSuite {
        suite: &suite,
        output: &output,
        shard: arguments.shard,
        overwrite: arguments.overwrite,
        keep_adapters: arguments.keep_adapters,
        budget: arguments.budget,
        options: RunOptions {
            device: global.device()?,
            ..RunOptions::default()
        },
    };
    let carried = runs.run(&interrupt, &mut Lines { global }).map_err(plain)?;
    let Carried::Out(results) = carried else {
        let command: Vec<String> = crate::arguments::words().collect();
        output::note(&format!(
            "stopped; go on with:\n  {}",
            shell_command(&command)
        ));
        return Ok(interrupted());
    };
    let summary = write(&suite, &results, &published, &output).map_err(plain)?;
    let choices = arguments.budget.map(|budget| budget.choose(&summary));
    if global.json {
        output::json(&Shown {
            summary: &summary,
            choices: choices.as_deref(),
        })?;
    } else {
        print(&suite, &summary, &output)?;
        choices.iter().flatten().try_for_each(print_choice)?;
    }
    let failed = results
        .iter()
        .filter(|result| result.status == Status::Failed);
    match failed.count() {
        0 => Ok(ExitCode::SUCCESS),
        failed => {
            output::note(&format!(
                "error: {failed} runs failed, for the reasons in the report; the same command runs them again"
            ));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The result with `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    /// What a budget comes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    choices: Option<&'a [Choice]>,
}

/// An error of a comparison as the command line reports it.
fn plain(error: CompareError) -> anyhow::Error {
    match error {
        CompareError::Train(error) => error.into(),
        other => other.into(),
    }
}

/// The name and the text of a suite that ships, or of a file.
fn suite_text(suite: &str) -> Result<(String, String)> {
    if let Some((name, text)) = SUITES.iter().find(|(name, _)| *name == suite) {
        return Ok(((*name).to_owned(), (*text).to_owned()));
    }
    let path = Path::new(suite);
    match epiphyte::io::read_text(path) {
        Ok(text) => {
            let name = path.file_stem().unwrap_or_default();
            Ok((name.to_string_lossy().into_owned(), text))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let names = SUITES.map(|(name, _)| name).join(", ");
            let problem =
                format!("there is no file `{suite}`, and the suites that ship are {names}");
            Err(UsageError::Other(problem).into())
        }
        Err(error) => Err(error).with_context(|| format!("cannot read `{suite}`")),
    }
}

/// Reads a suite with the places that its paths name.
fn parse(name: &str, text: &str, output: &Path, arguments: &Arguments) -> Result<Suite> {
    let mut places = BTreeMap::new();
    let text_of = |path: &Path| path.display().to_string();
    if let Some(data) = &arguments.data {
        places.insert("data", text_of(data));
    }
    if let Some(model) = &arguments.model {
        places.insert("model", text_of(&hub::resolve(model)?));
    }
    if text.contains("\"$quickstart/") {
        let directory = output.join(QUICKSTART);
        quickstart::unpack_assets(&directory)?;
        places.insert("quickstart", text_of(&directory));
    }
    let configure =
        |tables: &[toml::Table]| run_of_tables(tables).map_err(|error| format!("{error:#}"));
    let mut suite = Suite::parse(name, text, &places, &configure).map_err(plain)?;
    let names = &arguments.methods;
    if !names.is_empty() {
        let known = |name: &&String| suite.groups.iter().any(|group| group.name == **name);
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            let problem = format!("--methods: the suite has no method `{unknown}`");
            return Err(UsageError::Other(problem).into());
        }
        let baseline = suite.baseline.clone();
        suite
            .groups
            .retain(|group| group.name == baseline || names.contains(&group.name));
    }
    Ok(suite)
}

/// Tells of each run in a line when it has ended, with a bar meanwhile on a terminal.
struct Lines<'a> {
    global: &'a Global,
}

impl SuiteObserver for Lines<'_> {
    fn run(&mut self, number: usize, total: usize, result: &RunResult) -> Box<dyn Observer + '_> {
        if self.global.hides_progress() {
            return Box::new(Silent);
        }
        let RunResult {
            model,
            task,
            name,
            point,
            ..
        } = result;
        let point = if point.is_empty() {
            String::new()
        } else {
            format!(" ({point})")
        };
        let kind = if result.trial { "trial, seed" } else { "seed" };
        let seed = result.seed;
        output::note(&format!(
            "[{number}/{total}] {model}, {task}: {name}{point}, {kind} {seed}"
        ));
        match output::is_terminal() {
            true => Box::new(Progress::new(self.global)),
            false => Box::new(Silent),
        }
    }

    fn ended(&mut self, result: &RunResult) {
        if self.global.hides_progress() {
            return;
        }
        let text = match (result.status, result.score, &result.cost) {
            (Status::Finished, Some(score), Some(cost)) => {
                format!("  {} {score:.4}, {:.1} s", result.score_name, cost.seconds)
            }
            (Status::BeyondBudget, ..) => {
                let reason = result.reason.as_deref().unwrap_or_default();
                format!(
                    "{}, {}: {} {reason}",
                    result.model, result.task, result.name
                )
            }
            (Status::NotApplicable, ..) => {
                format!(
                    "  does not apply: {}",
                    result.reason.as_deref().unwrap_or_default()
                )
            }
            _ => format!("  failed: {}", result.reason.as_deref().unwrap_or_default()),
        };
        output::note(&text);
    }
}

fn print(suite: &Suite, summary: &Summary, directory: &Path) -> Result<()> {
    for place in summary.places() {
        let rows = summary.of_place(place);
        output::print(&format!("{} on {}:", place.1, place.0))?;
        let difference = format!("beside {}", suite.baseline);
        let header = [
            "method",
            &rows[0].score_name,
            &difference,
            "p",
            "trainable",
            "peak memory",
            "seconds",
        ];
        let mut table = vec![header.map(str::to_owned).to_vec()];
        table.extend(rows.iter().map(|row| {
            let comparison = row.comparison;
            let text = |value: Option<String>| value.unwrap_or_default();
            vec![
                row.name.clone(),
                format!("{:.4}", row.score.mean),
                text(comparison.map(|it| format!("{:+.4}", it.difference))),
                text(
                    comparison
                        .and_then(|it| it.corrected)
                        .map(|p| format!("{p:.3}")),
                ),
                output::count(row.declared.trainable_parameters as u64),
                text(row.peak_bytes.map(output::bytes)),
                format!("{:.1}", row.seconds),
            ]
        }));
        output::table(&table, &[vec![Align::Left], vec![Align::Right; 6]].concat())?;
        output::print("")?;
    }
    let applies = |status| {
        summary
            .absent
            .iter()
            .filter(|it| it.status == status)
            .count()
    };
    let absent = applies(Status::NotApplicable);
    if absent > 0 {
        output::print(&format!(
            "{absent} methods do not apply, for the reasons in the report."
        ))?;
    }
    output::print(&format!(
        "The report is `{}`.",
        directory.join("report.html").display()
    ))
}

/// Methods beyond a budget that are said in a terminal.
const MOST_BEYOND: usize = 5;

/// Says what a budget comes to, and what more would buy.
fn print_choice(choice: &Choice) -> Result<()> {
    let place = format!("{} on {}", choice.task, choice.model);
    output::print(&match (&choice.name, choice.score) {
        (Some(name), Some(score)) => format!("Within the budget, {place}: {name}, {score:.4}"),
        _ => format!("Within the budget, {place}: no method"),
    })?;
    let lines = choice
        .why
        .iter()
        .chain(choice.beyond.iter().take(MOST_BEYOND));
    lines
        .map(|line| format!("  {line}"))
        .try_for_each(|line| output::print(&line))?;
    match choice.beyond.len().saturating_sub(MOST_BEYOND) {
        0 => Ok(()),
        more => output::print(&format!("  and {more} more, with --json")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Arguments, SUITES, parse};

    #[test]
    fn the_suites_that_ship_are_valid() {
        let directory = std::env::temp_dir().join("epiphyte-suites-that-ship");
        for (name, text) in SUITES {
            let arguments = Arguments {
                suite: name.to_owned(),
                output: None,
                data: Some("data".into()),
                // A directory is not looked for on the hub.
                model: Some(std::env::temp_dir()),
                methods: Vec::new(),
                shard: None,
                merge: Vec::new(),
                budget: None,
                published: Vec::new(),
                overwrite: false,
                keep_adapters: false,
                show: false,
            };
            let suite = parse(name, text, Path::new(&directory), &arguments);
            let suite = suite.unwrap_or_else(|error| panic!("{error:#}"));
            assert!(!suite.about.is_empty() && suite.runs() >= 6, "{name}");
        }
        let _ = std::fs::remove_dir_all(directory);
    }
}
