//! `epiphyte train`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::display::{curve, shell_command};
use epiphyte::train::report::journal::{self, Record};
use epiphyte::train::{Report, RunConfig, RunOptions, check_runs, dry_run, train_several};

use crate::commands::dry;
use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::interrupt::{interrupted, on_signals};
use crate::output::{self, Align};
use crate::outputs::{self, Input};
use crate::progress::Progress;
use crate::settings::{self, GivenFlags, GivenRun};

pub(crate) const EXAMPLES: &str = "\
Examples:
  A classifier with LoRA:
    epiphyte train --model bert-base-uncased --train-data train.tsv --eval-data dev.tsv \\
        --text-columns sentence --method lora --rank 8 --alpha 16 --output adapter

  The same from a file, with another seed (flags override the file):
    epiphyte train --config run.toml --seed 1 --output adapter-1

  run.toml:
    model = \"bert-base-uncased\"
    train_data = \"train.tsv\"
    eval_data = \"dev.tsv\"
    text_columns = [\"sentence\"]
    method = \"lora\"
    rank = 8
    target_modules = [\"query\", \"value\"]
    output = \"adapter\"

  A language model on prompts and completions:
    epiphyte train --model llama --task causal-lm --train-data pairs.jsonl \\
        --prompt-column prompt --completion-column answer --method prefix-tuning --output adapter

  Several runs over one base model at the same time (task, data, method and settings may differ):
    epiphyte train --config runs.toml

  runs.toml:
    model = \"bert-base-uncased\"
    train_data = \"train.tsv\"
    text_columns = [\"sentence\"]
    [[runs]]
    learning_rate = 1e-3
    output = \"adapter-a\"
    [[runs]]
    learning_rate = 3e-3
    method = \"ia3\"
    output = \"adapter-b\"

  To see what a run would do, add --dry-run. To continue after Ctrl-C or a crash, add --resume to
  the same command.";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// TOML file with settings; its keys are the names of the flags, which override it
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Continue from the newest checkpoint in the output directory
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Start again in an output directory that already holds a run
    #[arg(long)]
    overwrite: bool,
    /// Show settings, data, steps and parameters of the run, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: GivenFlags,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let given = settings::run_configs(arguments.config.as_deref(), &arguments.settings)?;
    let runs: Vec<RunConfig> = given.iter().map(|run| run.config.clone()).collect();
    check_runs(&runs)?;
    given.iter().try_for_each(check_packing)?;
    let model = runs.first().map(|run| hub::resolve(&run.model));
    let model = model.transpose()?;
    check_outputs(&runs, model.as_deref())?;
    let command: Vec<String> = crate::arguments::words().collect();
    let options = RunOptions {
        resume: arguments.resume,
        overwrite: arguments.overwrite,
        command: command.clone(),
        model_dir: model,
        device: global.device()?,
        ..RunOptions::default()
    };
    if arguments.dry_run {
        let plans = dry_run(&runs, &options)?;
        dry::show(plans, &given, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let interrupt = on_signals(global.quiet)?;
    let mut progress = Progress::new(global);
    let reports = train_several(&runs, &options, &interrupt, &mut progress)?;
    progress.finish();
    if let ([report], false) = (&reports[..], global.hides_progress()) {
        show_curve(report);
    }
    match (global.json, &reports[..]) {
        (true, [report]) => output::json(report)?,
        (true, reports) => output::json(&serde_json::json!({ "runs": reports }))?,
        (false, [report]) => print(report)?,
        (false, reports) => print_table(reports)?,
    }
    let Some(report) = reports.iter().find(|report| report.status == "interrupted") else {
        return Ok(ExitCode::SUCCESS);
    };
    let resume = if arguments.resume { "" } else { " --resume" };
    output::note(&format!(
        "stopped after step {}; go on with:\n  {}{resume}",
        report.steps,
        shell_command(&command)
    ));
    Ok(interrupted())
}

/// Refuses packing where it was asked for and there is nothing to pack; it is the default of
/// language models, and means nothing to other tasks.
fn check_packing(given: &GivenRun) -> Result<()> {
    let GivenRun { config, places } = given;
    match places.get("packing") {
        Some(place) if config.packing && !config.task.predicts_text() => Err(UsageError::Value {
            place: place.clone(),
            problem: format!(
                "packing joins the texts of a language model, but the task is {}: leave it out",
                config.task
            ),
        }
        .into()),
        Some(place) if config.packing && has_turns(config) => Err(UsageError::Value {
            place: place.clone(),
            problem: "packing joins plain texts, but the columns are those of prompts and \
                      completions or of conversations: leave it out"
                .to_owned(),
        }
        .into()),
        _ => Ok(()),
    }
}

/// Whether a run names columns of prompts or conversations.
fn has_turns(run: &RunConfig) -> bool {
    let has_prompt = !run.prompt_column.is_empty() || run.prompt_template.is_some();
    has_prompt || run.completion_column.is_some() || run.messages_column.is_some()
}

/// Checks that no run writes to a directory that holds what a run reads.
fn check_outputs(runs: &[RunConfig], model: Option<&Path>) -> Result<()> {
    let model = model.map(|model| Input::new("the base model", model));
    for run in runs {
        let data = run.data_files()?;
        let data = data.iter().flat_map(|(key, files)| {
            let name = match *key {
                "train_data" => "the training data",
                "eval_data" => "the evaluation data",
                _ => "the forgetting data",
            };
            files.iter().map(move |file| Input::new(name, file))
        });
        let inputs: Vec<Input<'_>> = model.into_iter().chain(data).collect();
        runs.iter()
            .try_for_each(|other| outputs::check_directory(&other.output, &inputs))?;
    }
    Ok(())
}

/// Shows how the training loss fell, on standard error.
fn show_curve(report: &Report) {
    let records = journal::read(&report.output.join("log.jsonl")).unwrap_or_default();
    let losses = records.iter().filter_map(|record| match record {
        Record::Step(step) => Some(step.loss),
        Record::Evaluation(_) => None,
    });
    let curve = curve(&losses.collect::<Vec<f64>>(), 4);
    if !curve.is_empty() {
        output::note(&format!("training loss:\n{curve}"));
    }
}

fn print(report: &Report) -> Result<()> {
    let count = |number: usize| output::count(number as u64);
    let account = &report.account;
    let share = 100.0 * account.trainable_parameters as f64 / account.base_parameters.max(1) as f64;
    let mut rows = vec![
        ("output", report.output.display().to_string()),
        ("method", report.method.clone()),
        ("status", report.status.replace('_', " ")),
        ("steps", output::count(report.steps)),
    ];
    rows.extend(
        report
            .train_loss
            .map(|loss| ("train loss", format!("{loss:.4}"))),
    );
    let metrics = report.metrics.iter().flat_map(|metrics| metrics.iter());
    rows.extend(metrics.map(|(name, value)| (name, format!("{value:.4}"))));
    rows.extend([
        (
            "trainable parameters",
            format!(
                "{} ({share:.3}% of the base)",
                count(account.trainable_parameters)
            ),
        ),
        ("changed parameters", count(account.changed_parameters)),
        ("stored parameters", count(account.stored_parameters)),
        ("head parameters", count(account.head_parameters)),
        ("adapter file", output::bytes(report.bytes)),
        ("time", format!("{:.1} s", report.seconds)),
    ]);
    let speed = report.tokens_per_second;
    rows.extend(speed.map(|speed| ("speed", format!("{speed:.0} tokens/s"))));
    // What `epiphyte plan` says before, and what the system says of the process.
    let in_use = report.cost.memory.map(|memory| memory.peak);
    rows.extend(in_use.map(|peak| ("memory of a step", output::bytes(peak))));
    let resident = report.peak_memory_bytes;
    rows.extend(resident.map(|peak| ("resident, with program and files", output::bytes(peak))));
    output::pairs(&rows)
}

/// One row a run, with a column for each score of any.
fn print_table(reports: &[Report]) -> Result<()> {
    let scores = reports.iter().filter_map(|report| report.metrics.as_ref());
    let scores = scores.flat_map(|metrics| metrics.iter().map(|(name, _)| name));
    let scores: BTreeSet<&str> = scores.collect();
    let mut header = vec!["output", "method", "status", "steps", "train loss"];
    header.extend(&scores);
    header.extend(["trainable", "file", "time"]);
    let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
    let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
    for report in reports {
        let mut row = vec![
            report.output.display().to_string(),
            report.method.clone(),
            report.status.replace('_', " "),
            output::count(report.steps),
            number(report.train_loss),
        ];
        let score = |name: &&str| number(report.metrics.as_ref().and_then(|it| it.get(name)));
        row.extend(scores.iter().map(score));
        row.extend([
            output::count(report.account.trainable_parameters as u64),
            output::bytes(report.bytes),
            format!("{:.1} s", report.seconds),
        ]);
        rows.push(row);
    }
    let numbers = vec![Align::Right; rows[0].len() - 3];
    output::table(&rows, &[vec![Align::Left; 3], numbers].concat())
}
