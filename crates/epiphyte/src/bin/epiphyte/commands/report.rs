//! `epiphyte report`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte_compare::run_report;
use serde::Serialize;

use crate::global::Global;
use crate::output;
use crate::outputs::{self, Destination, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte report adapter
  epiphyte report adapter-a adapter-b --output both.html

  The report of a suite of runs is made by `epiphyte compare`.";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Output directories of training runs
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// File for the report
    #[arg(long, value_name = "FILE.html", default_value = "report.html")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// The result with `--json`.
#[derive(Serialize)]
struct Written<'a> {
    output: &'a PathBuf,
    runs: usize,
}

pub(crate) fn run(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let (output, overwrite) = (&arguments.output, arguments.overwrite);
    let inputs = arguments.runs.iter();
    let inputs: Vec<Input<'_>> = inputs.map(|run| Input::new("a run", run)).collect();
    let destination = outputs::check_file(output, &inputs, overwrite)?;
    let html = run_report(&arguments.runs)?;
    outputs::write(destination, output, html.as_bytes(), overwrite)?;
    if destination == Destination::StandardOutput {
        return Ok(ExitCode::SUCCESS);
    }
    match global.json {
        true => output::json(&Written {
            output: &arguments.output,
            runs: arguments.runs.len(),
        })?,
        false => output::print(&format!("The report is `{}`.", arguments.output.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}
