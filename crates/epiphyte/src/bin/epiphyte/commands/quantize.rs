//! `epiphyte quantize`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::ops::Quantization;
use epiphyte::train::quantize;

use crate::global::Global;
use crate::hub;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte quantize meta-llama/Llama-3.2-1B --to nf4 --output llama-nf4
  epiphyte train --model llama-nf4 --task causal-lm --train-data chats.jsonl --output adapter";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory or GGUF file of the base model, or its name on the hub
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Format of the linear layers' weights: nf4, fp4 or int8, as bitsandbytes has them
    #[arg(long, value_name = "FORMAT")]
    to: Quantization,
    /// Directory for the quantized model, which transformers reads too
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an earlier quantized model
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let model = hub::resolve(&arguments.model)?;
    let output = &arguments.output;
    outputs::check_directory(output, &[Input::new("the base model", &model)])?;
    let quantized = quantize(&model, output, arguments.to, arguments.overwrite)?;
    if global.json {
        let mut result = serde_json::to_value(&quantized)?;
        result["output"] = output.display().to_string().into();
        output::json(&result)?;
    } else {
        let megabytes = |bytes: usize| format!("{:.1} MB", bytes as f64 / 1e6);
        let size = format!(
            "{} of {}",
            megabytes(quantized.bytes),
            megabytes(quantized.bytes_before)
        );
        output::pairs(&[
            ("output", output.display().to_string()),
            ("quantized weights", quantized.weights.to_string()),
            ("size", size),
            (
                "relative error of the weights",
                format!("{:.2e}", quantized.relative_error),
            ),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
