//! `epiphyte export`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use epiphyte::methods::file::AdapterFile;
use epiphyte::train::{WeightType, export_adapter, export_model};

use crate::data_arguments::base_dir;
use crate::global::Global;
use crate::hub;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte export --adapter adapter --to gguf --output adapter.gguf
  epiphyte merge --model meta-llama/Llama-3.2-1B --adapter adapter --output merged
  epiphyte export --model merged --to gguf --dtype f16 --output merged.gguf";

/// A program's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// That of llama.cpp, for models of the Llama, Qwen and Gemma families
    Gguf,
}

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory of the model, such as a merged one, or its name on the hub [default: the base that
    /// --adapter names]
    #[arg(long, value_name = "DIR", required_unless_present = "adapter")]
    model: Option<PathBuf>,
    /// Directory of an adapter of lora over the model: it is written, and not the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Format of the file
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// File to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an earlier file
    #[arg(long)]
    overwrite: bool,
    /// Data type of the matrices: f32, f16 or bf16 [default: as in the model's files; f32 of an
    /// adapter]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let (model, adapter) = (arguments.model.as_deref(), arguments.adapter.as_deref());
    let model = base_dir(model, adapter, global)?;
    let adapter = arguments.adapter.as_deref().map(hub::resolve_adapter);
    let adapter = adapter.transpose()?;
    let mut inputs = vec![Input::new("the model", &model)];
    inputs.extend(adapter.as_deref().map(|it| Input::new("the adapter", it)));
    let output = &arguments.output;
    let _lock = outputs::claim_plain_file("--output", output, &inputs, arguments.overwrite)?;
    let Format::Gguf = arguments.to;
    let exported = match &adapter {
        Some(dir) => export_adapter(&model, &AdapterFile::open(dir)?, output, arguments.dtype)?,
        None => export_model(&model, output, arguments.dtype)?,
    };
    if global.json {
        let mut result = serde_json::to_value(&exported)?;
        result["output"] = output.display().to_string().into();
        output::json(&result)?;
    } else {
        output::pairs(&[
            ("output", output.display().to_string()),
            ("architecture", exported.architecture.to_owned()),
            ("tensors", exported.tensors.to_string()),
            ("values", exported.values.to_string()),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
