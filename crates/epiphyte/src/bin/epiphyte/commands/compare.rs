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
    Budget, Carried, Choice, CompareError, Compared, Group, Published, RunResult, RunSuite, Shard,
    Status, Suite, SuiteObserver, Summary, merge_shards, names_of_comparison,
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

  A suite of your own, from one that ships, and what it would run:
    epiphyte compare glue-mini --show > mine.toml
    epiphyte compare mine.toml --dry-run
    epiphyte compare mine.toml --output mine

  On two machines, and the report of both:
    epiphyte compare mine.toml --shard 1/2 --output part-1
    epiphyte compare mine.toml --shard 2/2 --output part-2
    epiphyte compare mine.toml --merge part-1,part-2 --output mine

  The same command goes on where one was stopped. DIR then holds report.html, findings.md,
  results.json, results.csv and results.md.

A suite is a TOML file with [[models]], [[tasks]], [[methods]], seeds and baseline; [settings] of
every run; grid, the values of a method's settings to choose from; and [tuning], how they are chosen:
learning_rate_factors, draws, halving, task, seed. Its other keys are those of a run's file. In its
texts, $model and $data are what --model and --data say, and $seed is the run's. docs/suites.md has
every key and an example.";

/// The suites that ship, by name.
const SUITES: [(&str, &str); 7] = [
    (
        "smoke",
        include_str!("../../../../assets/suites/smoke.toml"),
    ),
    (
        "glue-mini",
        include_str!("../../../../assets/suites/glue-mini.toml"),
    ),
    (
        "learning",
        include_str!("../../../../assets/suites/learning.toml"),
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
    /// Suite: a TOML file, or smoke, glue-mini, learning, few-shot, nlg-mini, model-size or
    /// math-mini
    suite: String,
    /// Directory for runs, results and report
    #[arg(long, value_name = "DIR", required_unless_present_any = ["show", "dry_run"])]
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
    /// Run this method, by its name in the suite, and the baseline; may be given several times, for
    /// names with a comma in them
    #[arg(long, value_name = "NAME")]
    method: Vec<String>,
    /// Run this part of the suite: 1/4 is the first of four
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Take the results of these directories, the parts of the suite, and make no run
    #[arg(
        long,
        value_name = "DIR,DIR",
        value_delimiter = ',',
        conflicts_with_all = ["shard", "overwrite"]
    )]
    merge: Vec<PathBuf>,
    /// Run what fits into these limits on storage, memory and time of a run, by plans of a few
    /// steps, and say what to choose and why; - is no limit
    #[arg(long, value_name = "1MB,4GB,30min", allow_hyphen_values = true)]
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
    /// Print the runs that would be made, and make none
    #[arg(long, conflicts_with = "show")]
    dry_run: bool,
}

/// The directory of the base that the suite `smoke` trains.
const QUICKSTART: &str = "quickstart";

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let (name, text) = suite_text(&arguments.suite)?;
    if arguments.show {
        output::print(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let directory = arguments.output.clone();
    let output = directory.unwrap_or_else(|| PathBuf::from(&name));
    if arguments.dry_run {
        let suite = parse(&name, &text, &output, &arguments)?;
        print_runs(&suite, arguments.shard, global)?;
        return Ok(ExitCode::SUCCESS);
    }
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
    let merges = !arguments.merge.is_empty();
    if merges {
        merge_shards(&suite, &arguments.merge, &output).map_err(plain)?;
    }
    let interrupt = on_signals(global.quiet)?;
    let runs = RunSuite {
        suite: &suite,
        output: &output,
        shard: arguments.shard,
        overwrite: arguments.overwrite,
        keep_adapters: arguments.keep_adapters,
        budget: arguments.budget,
        from_results: merges,
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
    let compared = Compared::of(&suite, &results, &published, arguments.budget, &output);
    compared.write(&output).map_err(plain)?;
    let Compared {
        summary, choices, ..
    } = &compared;
    if global.json {
        output::json(&Shown {
            summary,
            choices: arguments.budget.map(|_| &choices[..]),
        })?;
    } else {
        print(&suite, summary, &output)?;
        choices.iter().try_for_each(print_choice)?;
    }
    let failed = results
        .iter()
        .filter(|result| result.status == Status::Failed);
    match failed.count() {
        0 => Ok(ExitCode::SUCCESS),
        failed => {
            let without = if merges { " without --merge" } else { "" };
            output::note(&format!(
                "error: {failed} runs failed, for the reasons in the report; the same command{without} runs them again"
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
        // What the suite or the command line asks for is not there.
        error @ (CompareError::Foreign { .. }
        | CompareError::Missing { .. }
        | CompareError::Task { .. }) => UsageError::Other(error.to_string()).into(),
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
        if !arguments.dry_run {
            quickstart::unpack_assets(&directory)?;
        }
        places.insert("quickstart", text_of(&directory));
    }
    let configure =
        |tables: &[toml::Table]| run_of_tables(tables).map_err(|error| format!("{error:#}"));
    let mut suite = Suite::parse(name, text, &places, &configure).map_err(plain)?;
    let (lists, singles) = (&arguments.methods, &arguments.method);
    let names: Vec<&String> = lists.iter().chain(singles).collect();
    if !names.is_empty() {
        let known = |name: &&String| suite.groups.iter().any(|group| group.name == **name);
        if let Some(unknown) = names.iter().copied().find(|name| !known(name)) {
            let has_comma = |group: &Group| group.name.contains(',');
            let hint = match lists.contains(unknown) && suite.groups.iter().any(has_comma) {
                true => "; --method takes a name with a comma",
                false => "",
            };
            let problem = format!("the suite has no method `{unknown}`{hint}");
            return Err(UsageError::Other(problem).into());
        }
        let baseline = suite.baseline.clone();
        suite
            .groups
            .retain(|group| group.name == baseline || names.contains(&&group.name));
    }
    Ok(suite)
}

/// The runs of a method for a task on a model, with `--dry-run --json`.
#[derive(Serialize)]
struct Planned<'a> {
    model: &'a str,
    task: &'a str,
    name: &'a str,
    method: &'a str,
    score: &'a str,
    /// The settings from which trials choose; one without a name if there is no choice.
    points: Vec<&'a str>,
    /// Runs that choose the settings.
    trials: usize,
    /// The seeds with which the chosen settings are run.
    seeds: &'a [u64],
}

impl<'a> Planned<'a> {
    fn of(suite: &'a Suite, group: &'a Group) -> Self {
        Self {
            model: &group.model,
            task: &group.task,
            name: &group.name,
            method: &group.method,
            score: &group.score,
            points: group.points.iter().map(|point| &point.name[..]).collect(),
            trials: suite.runs_of(group) - suite.seeds.len(),
            seeds: &suite.seeds,
        }
    }

    fn runs(&self) -> usize {
        self.trials + self.seeds.len()
    }
}

/// Prints the runs that a suite, or a part of it, would make.
fn print_runs(suite: &Suite, shard: Option<Shard>, global: &Global) -> Result<()> {
    let groups = suite.of_shard(shard).into_iter();
    let planned: Vec<Planned<'_>> = groups.map(|group| Planned::of(suite, group)).collect();
    let total: usize = planned.iter().map(Planned::runs).sum();
    if global.json {
        return output::json(&serde_json::json!({ "runs": total, "groups": planned }));
    }
    let header = [
        "model", "task", "method", "settings", "trials", "seeds", "runs",
    ];
    let mut table = vec![header.map(str::to_owned).to_vec()];
    table.extend(planned.iter().map(|it| {
        let settings = match it.points[..] {
            [one] => one.to_owned(),
            ref several => format!("{} to choose from", several.len()),
        };
        let numbers = [it.trials, it.seeds.len(), it.runs()].map(|it| it.to_string());
        let texts = [it.model, it.task, it.name, &settings].map(str::to_owned);
        [&texts[..], &numbers].concat()
    }));
    output::table(
        &table,
        &[vec![Align::Left; 4], vec![Align::Right; 3]].concat(),
    )?;
    let total = output::count(total as u64);
    output::print(&format!("{}: {total} runs. Nothing was run.", suite.title))
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
                text(comparison.map(|it| it.signed())),
                text(comparison.and_then(|it| it.shown())),
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

    use epiphyte_compare::Suite;
    use serde_json::json;

    use super::{Arguments, SUITES, parse};

    /// A suite that ships, with its files in `directory`.
    fn shipped((name, text): (&str, &str), directory: &Path) -> Suite {
        let arguments = Arguments {
            suite: name.to_owned(),
            output: None,
            data: Some("data".into()),
            // A directory is not looked for on the hub.
            model: Some(std::env::temp_dir()),
            methods: Vec::new(),
            method: Vec::new(),
            shard: None,
            merge: Vec::new(),
            budget: None,
            published: Vec::new(),
            overwrite: false,
            keep_adapters: false,
            show: false,
            dry_run: false,
        };
        let suite = parse(name, text, directory, &arguments);
        suite.unwrap_or_else(|error| panic!("{error:#}"))
    }

    #[test]
    fn the_suites_that_ship_are_valid() {
        let directory = std::env::temp_dir().join("epiphyte-suites-that-ship");
        for suite in SUITES {
            let name = suite.0;
            let suite = shipped(suite, &directory);
            assert!(!suite.about.is_empty() && suite.runs() >= 6, "{name}");
        }
        let _ = std::fs::remove_dir_all(directory);
    }

    /// What PEFT's published files say (method_comparison/MetaMathQA/results). Where they have no
    /// weight decay, PyTorch's AdamW has its default.
    #[test]
    fn math_mini_has_the_settings_of_peft() {
        let suite = SUITES.into_iter().find(|suite| suite.0 == "math-mini");
        let suite = shipped(suite.unwrap(), &std::env::temp_dir());
        let low_rank = |rank: usize, alpha: usize| json!({ "r": rank, "lora_alpha": alpha });
        for (name, rate, decay, settings) in [
            ("lora, rank 32", 1e-4, 0.1, low_rank(32, 64)),
            ("lora, rank 64, rsLoRA", 1e-4, 0.1, low_rank(64, 64)),
            ("dora", 1e-4, 0.1, low_rank(32, 64)),
            (
                "adalora",
                1e-4,
                0.1,
                json!({ "init_r": 64, "target_r": 32, "tinit": 200 }),
            ),
            ("ia3", 1e-3, 0.01, json!({})),
            ("vera", 1e-3, 0.01, json!({ "r": 256 })),
            ("full", 1e-5, 0.01, json!({})),
        ] {
            let group = suite
                .groups
                .iter()
                .find(|group| group.name == name)
                .unwrap();
            let run = &group.points[0].runs[&0];
            assert_eq!(run.peak_learning_rate(), Some(rate), "{name}");
            assert_eq!((run.weight_decay, run.warmup_ratio), (decay, 0.1), "{name}");
            for (key, value) in settings.as_object().unwrap() {
                let own = run.method_settings.get(key).and_then(|it| it.as_f64());
                assert_eq!(own, value.as_f64(), "{name}: {key}");
            }
            let rank_stabilized = run.method_settings.get("use_rslora") == Some(&true.into());
            assert_eq!(rank_stabilized, name.ends_with("rsLoRA"));
        }
    }
}
