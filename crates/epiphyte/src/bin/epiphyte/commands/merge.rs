//! `epiphyte merge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use epiphyte::methods::file::combine::{Combination, combine};
use epiphyte::methods::file::{AdapterFile, CONFIG_FILE};
use epiphyte::train::{MergeOptions, WeightType, WithoutHead, merge};

use crate::data_arguments::{ModelArguments, spec_of_adapter};
use crate::failure::UsageError;
use crate::global::Global;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte merge --model bert-base-uncased --adapter adapter --output merged
  epiphyte merge --model bert-base-uncased --adapters one,other --weights 1,-0.5 --combination svd --output combined
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
    /// Several adapters of lora to combine into one, which is written in place of a model
    #[arg(
        long,
        value_name = "DIR,..",
        value_delimiter = ',',
        conflicts_with = "adapter"
    )]
    adapters: Vec<PathBuf>,
    /// A weight for each of --adapters; -1 takes an adapter back [default: 1 each]
    #[arg(
        long,
        value_name = "X,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "adapters"
    )]
    weights: Vec<f64>,
    /// How --adapters are combined: cat, linear, svd, ties, dare_linear, dare_ties,
    /// magnitude_prune, or one of the last four with _svd
    #[arg(
        long,
        value_name = "KIND",
        default_value = "cat",
        requires = "adapters"
    )]
    combination: String,
    /// Rank of a combination with svd [default: the largest of the adapters']
    #[arg(long, value_name = "N", requires = "adapters")]
    svd_rank: Option<usize>,
    /// Share of the values that a combination with pruning keeps
    #[arg(long, value_name = "X", default_value = "0.5", requires = "adapters")]
    density: f64,
    /// How ties elects a sign: total (of the values' sum) or frequency (of their number)
    #[arg(
        long,
        value_name = "WORD",
        default_value = "total",
        requires = "adapters"
    )]
    majority_sign_method: SignMethod,
    /// What the random draws of dare_linear and dare_ties follow from
    #[arg(long, value_name = "N", default_value = "42", requires = "adapters")]
    seed: u64,
    #[command(flatten)]
    model: ModelArguments,
}

/// How the sign of an entry is elected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SignMethod {
    Total,
    Frequency,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    if !arguments.adapters.is_empty() {
        return combined(&arguments, global);
    }
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
            let load = arguments.model.load_options();
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
            (
                "largest KL divergence",
                merged
                    .largest_kl
                    .map_or("-".to_owned(), |kl| format!("{kl:.2e}")),
            ),
            (
                "changed predictions",
                match merged.argmax_flips {
                    Some([flips, rows]) => format!("{flips} of {rows}"),
                    None => "-".to_owned(),
                },
            ),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Combines several adapters into one.
fn combined(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let weights = match arguments.weights.as_slice() {
        [] => vec![1.0; arguments.adapters.len()],
        weights => weights.to_vec(),
    };
    if weights.len() != arguments.adapters.len() {
        let problem = format!(
            "--weights has {} numbers, but --adapters names {}",
            weights.len(),
            arguments.adapters.len()
        );
        return Err(UsageError::Other(problem).into());
    }
    let output = &arguments.output;
    let inputs = arguments.adapters.iter();
    let inputs: Vec<Input<'_>> = inputs
        .map(|it| Input::new("one of --adapters", it))
        .collect();
    outputs::check_directory(output, &inputs)?;
    let occupied = output.is_dir() && output.read_dir()?.next().is_some();
    if occupied && !(arguments.overwrite && output.join(CONFIG_FILE).exists()) {
        let problem = format!(
            "`{}` is not empty: choose another directory, or pass --overwrite to replace an adapter",
            output.display()
        );
        return Err(UsageError::Other(problem).into());
    }
    let files = arguments.adapters.iter().map(|dir| AdapterFile::open(dir));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let adapters: Vec<(AdapterFile, f64)> = files.into_iter().zip(weights).collect();
    let how = Combination {
        kind: arguments.combination.clone(),
        rank: arguments.svd_rank,
        density: arguments.density,
        by_frequency: arguments.majority_sign_method == SignMethod::Frequency,
        seed: arguments.seed,
    };
    combine(&adapters, &how, output)?;
    let count = adapters.len();
    if global.json {
        output::json(&serde_json::json!({
            "output": output.display().to_string(),
            "adapters": count,
            "combination": how.kind,
        }))?;
    } else {
        output::pairs(&[
            ("output", output.display().to_string()),
            ("adapters", count.to_string()),
            ("combination", how.kind),
        ])?;
    }
    Ok(ExitCode::SUCCESS)
}
