//! `epiphyte train`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::display::shell_command;
use epiphyte::train::{Report, RunConfig, RunOptions, train_several};

use crate::global::Global;
use crate::hub;
use crate::interrupt::{INTERRUPTED, on_signals};
use crate::output;
use crate::progress::Progress;
use crate::settings::{self, GivenFlags};

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

  To continue after Ctrl-C or a crash, add --resume to the same command.";

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
    #[command(flatten)]
    settings: GivenFlags,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let runs = settings::run_configs(arguments.config.as_deref(), &arguments.settings)?;
    runs.iter().try_for_each(RunConfig::check)?;
    let model = runs.first().map(|run| hub::resolve(&run.model));
    let command: Vec<String> = std::env::args().collect();
    let options = RunOptions {
        resume: arguments.resume,
        overwrite: arguments.overwrite,
        command: command.clone(),
        model_dir: model.transpose()?,
        device: global.device()?,
    };
    let interrupt = on_signals(global.quiet)?;
    let mut progress = Progress::new(global);
    let reports = train_several(&runs, &options, &interrupt, &mut progress)?;
    progress.finish();
    match (global.json, &reports[..]) {
        (true, [report]) => output::json(report),
        (true, reports) => output::json(&serde_json::json!({ "runs": reports })),
        (false, reports) => reports.iter().for_each(print),
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
    Ok(ExitCode::from(INTERRUPTED))
}

fn print(report: &Report) {
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
    rows.extend(
        report
            .peak_memory_bytes
            .map(|peak| ("peak memory", output::bytes(peak))),
    );
    output::pairs(&rows);
}
