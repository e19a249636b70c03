//! `epiphyte eval`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::scoring::metrics::Metrics;
use serde::Serialize;

use crate::data_arguments::DataArguments;
use crate::global::Global;
use crate::output;
use crate::progress::Progress;

pub(crate) const EXAMPLES: &str = "\
Examples:
  An adapter written by Epiphyte, which records its task, columns and labels:
    epiphyte eval --model bert-base-uncased --adapter adapter --data test.jsonl

  An adapter written by HF PEFT, which does not:
    epiphyte eval --model bert-base-uncased --adapter peft-adapter --data test.tsv \\
        --text-columns sentence

  A base model with a classification head:
    epiphyte eval --model fine-tuned-bert --task sequence-classification --text-columns text \\
        --data test.jsonl";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    data: DataArguments,
}

/// The result with `--json`.
#[derive(Serialize)]
struct Scores<'a> {
    examples: usize,
    #[serde(flatten)]
    metrics: &'a Metrics,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let opened = arguments.data.open(true, global)?;
    let evaluation = opened.loaded_adapter.evaluation(&opened.batches);
    let mut progress = Progress::new(global);
    let task = opened.loaded_adapter.task_model.spec.task;
    let metrics = task.evaluate(&evaluation, &mut progress)?;
    progress.finish();
    let examples = opened.batches.examples().len();
    if global.json {
        output::json(&Scores {
            examples,
            metrics: &metrics,
        });
    } else {
        let mut rows = vec![("examples", output::count(examples as u64))];
        rows.extend(
            metrics
                .iter()
                .map(|(name, value)| (name, format!("{value:.4}"))),
        );
        output::pairs(&rows);
    }
    Ok(ExitCode::SUCCESS)
}
