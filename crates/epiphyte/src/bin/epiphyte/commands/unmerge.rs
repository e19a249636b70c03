//! `epiphyte unmerge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::unmerge;

use crate::global::Global;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte merge --model bert-base-uncased --adapter adapter --output merged --patch undo.safetensors
  epiphyte unmerge merged --patch undo.safetensors --output base";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory of the merged model
    #[arg(value_name = "MERGED")]
    merged: PathBuf,
    /// The file that `epiphyte merge --patch` wrote with this model
    #[arg(long, value_name = "FILE")]
    patch: PathBuf,
    /// Directory for the base, with the tensors and files that it had
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an earlier model that this program wrote there
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let Arguments {
        merged,
        patch,
        output,
        overwrite,
    } = &arguments;
    let inputs = [
        Input::new("the merged model", merged),
        Input::new("the patch", patch),
    ];
    outputs::check_directory(output, &inputs)?;
    let unmerged = unmerge(merged, patch, output, *overwrite)?;
    if global.json {
        let mut result = serde_json::to_value(&unmerged)?;
        result["output"] = output.display().to_string().into();
        output::json(&result)?;
    } else {
        let tensors = format!("{} of {}", unmerged.restored_tensors, unmerged.tensors);
        output::pairs(&[
            ("output", output.display().to_string()),
            ("restored tensors", tensors),
            ("hash of the base", unmerged.sha256),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
