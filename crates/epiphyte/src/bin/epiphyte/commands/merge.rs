//! `epiphyte merge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::models::LoadOptions;
use epiphyte::train::{MergeOptions, WeightType, WithoutHead, merge};

use crate::data_arguments::{ModelArguments, spec_of_adapter};
use crate::failure::UsageError;
use crate::global::Global;
use crate::output;
use crate::outputs;

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte merge --model bert-base-uncased --adapter adapter --output merged
  epiphyte eval --model merged --task sequence-classification --text-columns text --data test.jsonl";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory for the merged model
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an earlier merged model
    #[arg(long)]
    overwrite: bool,
    /// Data type of the merged weights: f32, f16 or bf16 [default: as in the base's files]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
    /// Names of the classes in the order of their ids, for an adapter that does not record them
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    labels: Vec<String>,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let located = arguments.model.locate()?;
    let Some(file) = &located.adapter else {
        return Err(
            UsageError::Other("there is nothing to merge: pass --adapter".to_owned()).into(),
        );
    };
    let model = located.model.clone();
    let output = &arguments.output;
    outputs::check_directory(output, &arguments.model.inputs(&model))?;
    let options = MergeOptions {
        dtype: arguments.dtype,
        overwrite: arguments.overwrite,
    };
    let merged = match spec_of_adapter(file, &model, &arguments.labels)? {
        Some(spec) => {
            let loaded_adapter = located.load(spec, global)?;
            merge(&model, &loaded_adapter, output, &options)?
        }
        None if !arguments.labels.is_empty() => {
            let problem = "--labels names classes, but the adapter has neither a task nor a head";
            return Err(UsageError::Other(problem.to_owned()).into());
        }
        None => {
            let load = LoadOptions {
                precision: arguments.model.precision,
                ..LoadOptions::default()
            };
            let allow_other_base = arguments.model.allow_other_base;
            WithoutHead::open(&model, file, allow_other_base, &load)?
                .merge(&model, output, &options)?
        }
    };
    if global.json {
        let mut result = serde_json::to_value(&merged)?;
        result["output"] = output.display().to_string().into();
        output::json(&result)?;
    } else {
        output::pairs(&[
            ("output", output.display().to_string()),
            (
                "changed tensors",
                format!("{} of {}", merged.changed_tensors, merged.tensors),
            ),
            (
                "largest difference of logits",
                format!("{:.2e}", merged.largest_difference),
            ),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
