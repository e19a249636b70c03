//! `epiphyte predict`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use epiphyte::data::{OutputColumn, OutputFormat, Table};
use serde_json::json;

use crate::data_arguments::{DataArguments, trimmed};
use crate::failure::UsageError;
use crate::global::Global;
use crate::output;
use crate::outputs::{self, Destination};
use crate::progress::Progress;

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte predict --model bert-base-uncased --adapter adapter --data new.jsonl --output out.jsonl

  A few texts, or one a line of standard input:
    epiphyte predict --model bert-base-uncased --adapter adapter --text \"how nice\" --output -
    echo \"how nice\" | epiphyte predict --model bert-base-uncased --adapter adapter --data - \\
        --format text --output -

  With columns of the data in front, as a table:
    epiphyte predict --model bert-base-uncased --adapter adapter --data new.tsv \\
        --columns id,text --output out.csv

  The data needs no labels. Each row of the output belongs to one row of the data. JSON Lines:
    {\"label\":\"positive\",\"probability\":0.94,\"probabilities\":{\"negative\":0.06,\"positive\":0.94},
     \"logits\":[-1.25,1.5]}
  CSV, TSV and Parquet have the columns label, probability and one probability_CLASS for each class.
  Of a regression there is the number alone, as label.";

#[derive(Args, Debug)]
#[command(mut_arg("data", |it| it.required(false).required_unless_present("text")))]
pub(crate) struct Arguments {
    /// File for the predictions: .jsonl, .csv, .tsv or .parquet; - is standard output
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Format of the predictions: jsonl, csv, tsv or parquet [default: by
    /// extension, jsonl without one]
    #[arg(long, value_name = "FORMAT")]
    output_format: Option<OutputFormat>,
    /// Columns of the data to copy in front of the predictions; one that is called as a column of
    /// the predictions gets `data_` before its name
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = trimmed)]
    columns: Vec<String>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    /// A text in place of --data; may be given several times
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "data",
        allow_hyphen_values = true
    )]
    text: Vec<String>,
    #[command(flatten)]
    data: DataArguments,
}

pub(crate) fn run(mut arguments: Arguments, global: &Global) -> Result<ExitCode> {
    arguments
        .data
        .set_texts(std::mem::take(&mut arguments.text));
    let output = &arguments.output;
    let model = arguments.data.model_dir()?;
    let files = arguments.data.files()?;
    let inputs = arguments.data.inputs(&model, &files);
    let destination = outputs::check_file(output, &inputs, arguments.overwrite)?;
    let format = arguments.format(destination)?;
    let opened = arguments.data.open(false, &arguments.columns, global)?;
    for column in &arguments.columns {
        let found = opened.table.column(column);
        found.map_err(|error| anyhow!("--columns: {error}"))?;
    }
    let mut progress = Progress::new(global);
    let evaluation = opened.loaded_adapter.evaluation(&opened.batches);
    let rows = opened.rows();
    let predicted = (rows.spec.task).predictions(&evaluation, &rows, format, &mut progress)?;
    progress.finish();
    let columns = with_copies(&opened.table, &arguments.columns, predicted)?;
    let encoded = format.encode(&columns)?;
    outputs::write(destination, output, &encoded, arguments.overwrite)?;
    if destination == Destination::StandardOutput {
        return Ok(ExitCode::SUCCESS);
    }
    if global.json {
        output::json(&json!({ "examples": opened.table.len(), "output": output }))?;
    } else {
        output::pairs(&[
            ("examples", output::count(opened.table.len() as u64)),
            ("output", output.display().to_string()),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// The format of the output: the one that is given, or that its extension names. What has no
    /// extension, such as a pipe, gets JSON Lines.
    fn format(&self, destination: Destination) -> Result<OutputFormat> {
        let named = self.output_format.or(OutputFormat::of(&self.output));
        let is_plain = destination != Destination::File || self.output.extension().is_none();
        match named.or(is_plain.then_some(OutputFormat::JsonLines)) {
            Some(format) => Ok(format),
            None => {
                let problem = format!(
                    "--output `{}` has another extension than .jsonl, .csv, .tsv and .parquet: pass \
                     --output-format",
                    self.output.display()
                );
                Err(UsageError::Other(problem).into())
            }
        }
    }
}

/// Columns of the data, and what the model says.
fn with_copies(
    data: &Table,
    copied: &[String],
    predicted: Vec<OutputColumn>,
) -> Result<Vec<OutputColumn>> {
    let mut columns = Vec::new();
    for name in copied {
        let is_taken = predicted.iter().any(|(taken, _)| taken == name);
        let prefix = if is_taken { "data_" } else { "" };
        let values = data.column(name)?;
        columns.push((format!("{prefix}{name}"), values));
    }
    columns.extend(predicted);
    Ok(columns)
}
