//! `epiphyte predict`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::scoring::evaluate::{argmax, predict};
use serde::Serialize;
use serde_json::json;

use crate::data_arguments::DataArguments;
use crate::global::Global;
use crate::output;
use crate::progress::Progress;

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte predict --model bert-base-uncased --adapter adapter --data new.jsonl --output out.jsonl

  The data needs no labels. Each line of the output belongs to one example of the data:
    {\"label\":\"positive\",\"logits\":[-1.25,1.5]}";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// File for the predictions, one JSON object per line
    #[arg(long, value_name = "FILE.jsonl")]
    output: PathBuf,
    #[command(flatten)]
    data: DataArguments,
}

/// One line of the output.
#[derive(Serialize)]
struct Prediction<'a> {
    label: Label<'a>,
    logits: &'a [f32],
}

/// A prediction.
#[derive(Serialize)]
#[serde(untagged)]
enum Label<'a> {
    /// The class with the largest logit.
    Class(&'a str),
    /// The value of a regression.
    Number(f32),
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    arguments.data.check_output(&arguments.output)?;
    let opened = arguments.data.open(false, global)?;
    let task_model = &opened.loaded_adapter.task_model;
    let mut progress = Progress::new(global);
    let logits = predict(
        &opened.loaded_adapter.evaluation(&opened.batches),
        &mut progress,
    )?;
    progress.finish();
    let mut lines = String::new();
    for row in &logits {
        let label = match task_model.spec.task.has_classes() {
            true => Label::Class(&task_model.spec.labels[argmax(row)]),
            false => Label::Number(row[0]),
        };
        lines +=
            &serde_json::to_string(&Prediction { label, logits: row }).expect("logits are finite");
        lines.push('\n');
    }
    epiphyte::io::write(&arguments.output, lines.as_bytes())?;
    if global.json {
        output::json(&json!({ "examples": logits.len(), "output": arguments.output }));
    } else {
        output::pairs(&[
            ("examples", output::count(logits.len() as u64)),
            ("output", arguments.output.display().to_string()),
        ]);
    }
    Ok(ExitCode::SUCCESS)
}
