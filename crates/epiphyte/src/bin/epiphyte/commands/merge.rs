//! `epiphyte merge`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgGroup, Args, ValueEnum};
use epiphyte::methods::file::AdapterFile;
use epiphyte::methods::file::combine::{Combination, combine};
use epiphyte::train::{MergeOptions, WeightType, WithoutHead, combine_models, merge, write_patch};

use crate::data_arguments::{ModelArguments, spec_of_adapter, trimmed};
use crate::decoding_arguments::finite;
use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte merge --model bert-base-uncased --adapter adapter --output merged
  epiphyte merge --model bert-base-uncased --adapter adapter --output merged --patch undo.safetensors
  epiphyte merge --model bert-base-uncased --adapters one,other --weights 1,-0.5 --combination svd --output combined
  epiphyte merge --model bert-base-uncased --models merged-one,merged-other --combination ties --output both
  epiphyte eval --model merged --task sequence-classification --text-columns text --data test.jsonl";

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("several").args(["adapters", "models"])))]
pub(crate) struct Arguments {
    /// Directory for the merged model
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Replace an earlier merged model
    #[arg(long)]
    overwrite: bool,
    /// File for a patch, with which `epiphyte unmerge` restores the base to the bit
    #[arg(long, value_name = "FILE", conflicts_with = "adapters")]
    patch: Option<PathBuf>,
    /// Data type of the merged weights: f32, f16 or bf16 [default: as in the base's files]
    #[arg(long, value_name = "TYPE")]
    dtype: Option<WeightType>,
    /// Names of the classes in the order of their ids, for an adapter that does not record them
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = trimmed)]
    labels: Vec<String>,
    /// Several adapters of lora to combine into one, which is written in place of a model
    #[arg(
        long,
        value_name = "DIR,..",
        value_delimiter = ',',
        conflicts_with = "adapter"
    )]
    adapters: Vec<PathBuf>,
    /// Several models trained from --model, or deltas, whose changes of it are added to it (task
    /// arithmetic); configuration, tokenizer and what the base lacks, such as a classifier, are
    /// the first one's
    #[arg(
        long,
        value_name = "DIR,..",
        value_delimiter = ',',
        conflicts_with_all = ["adapter", "patch", "labels"]
    )]
    models: Vec<PathBuf>,
    /// A weight for each of --adapters or --models; -1 takes one back [default: 1 each]
    #[arg(
        long,
        value_name = "X,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        value_parser = finite,
        requires = "several"
    )]
    weights: Vec<f64>,
    /// How --adapters are combined: cat, linear, svd, ties, dare_linear, dare_ties,
    /// magnitude_prune, or one of the last four with _svd; --models are combined by linear or one
    /// of the four [default: cat of adapters, linear of models]
    #[arg(long, value_name = "KIND", requires = "several")]
    combination: Option<String>,
    /// Rank of a combination with svd [default: the largest of the adapters']
    #[arg(long, value_name = "N", requires = "adapters")]
    svd_rank: Option<usize>,
    /// Share of the values that a combination with pruning keeps
    #[arg(long, value_name = "X", default_value = "0.5", requires = "several")]
    density: f64,
    /// How ties elects a sign: total (of the values' sum) or frequency (of their number)
    #[arg(
        long,
        value_name = "WORD",
        default_value = "total",
        requires = "several"
    )]
    majority_sign_method: SignMethod,
    /// What the random draws of dare_linear and dare_ties follow from
    #[arg(long, value_name = "N", default_value = "42", requires = "several")]
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
    if !arguments.models.is_empty() {
        return sum_of_models(&arguments, global);
    }
    let located = arguments.model.locate(global)?;
    let Some(file) = &located.adapter else {
        return Err(
            UsageError::Other("there is nothing to merge: pass --adapter".to_owned()).into(),
        );
    };
    let model = located.model.clone();
    let output = &arguments.output;
    outputs::check_directory(output, &arguments.model.inputs(&model))?;
    let mut _lock_of_patch = None;
    if let Some(patch) = &arguments.patch {
        let [file, directory] = [patch, output].map(|path| epiphyte::io::resolve(path));
        if file?.starts_with(directory?) {
            let problem = format!(
                "--patch `{}` is in the directory of the merged model: choose another file",
                patch.display()
            );
            return Err(UsageError::Other(problem).into());
        }
        let inputs = arguments.model.inputs(&model);
        let lock = outputs::claim_plain_file("--patch", patch, &inputs, arguments.overwrite)?;
        _lock_of_patch = Some(lock);
    }
    let options = MergeOptions {
        dtype: arguments.dtype,
        overwrite: arguments.overwrite,
        allow_other_base: arguments.model.allow_other_base,
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
    let patch = arguments.patch.as_deref();
    let written = patch.map(|path| write_patch(&model, output, path));
    let written = written.transpose()?;
    if global.json {
        let mut result = serde_json::to_value(&merged)?;
        result["output"] = output.display().to_string().into();
        if let Some(written) = &written {
            result["patch"] = serde_json::to_value(written)?;
        }
        output::json(&result)?;
    } else {
        let mut pairs = vec![("output", output.display().to_string())];
        if let (Some(path), Some(written)) = (patch, &written) {
            let megabytes = written.bytes as f64 / 1e6;
            pairs.push(("patch", format!("{}, {megabytes:.1} MB", path.display())));
        }
        pairs.extend([
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
        ]);
        output::pairs(&pairs)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// A weight for each of the adapters or models, which `flag` names.
    fn weights_of(&self, flag: &str, count: usize) -> Result<Vec<f64>> {
        match self.weights.len() {
            0 => Ok(vec![1.0; count]),
            given if given == count => Ok(self.weights.clone()),
            given => {
                let problem = format!("--weights has {given} numbers, but {flag} names {count}");
                Err(UsageError::Other(problem).into())
            }
        }
    }

    /// How they are combined.
    fn combination(&self, default: &str) -> Combination {
        Combination {
            kind: self.combination.as_deref().unwrap_or(default).to_owned(),
            rank: self.svd_rank,
            density: self.density,
            by_frequency: self.majority_sign_method == SignMethod::Frequency,
            seed: self.seed,
        }
    }
}

/// Adds what several models learned to their base.
fn sum_of_models(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let weights = arguments.weights_of("--models", arguments.models.len())?;
    let base = arguments.model.model_dir()?;
    let find = |path: &PathBuf| match path.is_file() {
        true => Ok(path.clone()),
        false => hub::resolve(path),
    };
    let models = arguments.models.iter().map(find);
    let models = models.collect::<Result<Vec<_>, _>>()?;
    let output = &arguments.output;
    let mut inputs = vec![Input::new("the base model", &base)];
    inputs.extend(models.iter().map(|it| Input::new("one of --models", it)));
    outputs::check_directory(output, &inputs)?;
    let options = MergeOptions {
        dtype: arguments.dtype,
        overwrite: arguments.overwrite,
        allow_other_base: arguments.model.allow_other_base,
    };
    let how = arguments.combination("linear");
    let models: Vec<(PathBuf, f64)> = models.into_iter().zip(weights).collect();
    let combined = combine_models(&base, &models, &how, output, &options)?;
    if global.json {
        let mut result = serde_json::to_value(&combined)?;
        result["output"] = output.display().to_string().into();
        result["combination"] = how.kind.into();
        output::json(&result)?;
        return Ok(ExitCode::SUCCESS);
    }
    let numbers = |values: &[f64]| {
        let values = values.iter().map(|value| format!("{value:.3}"));
        values.collect::<Vec<_>>().join(" ")
    };
    let changed = format!("{} of {}", combined.changed_tensors, combined.tensors);
    let mut pairs = vec![
        ("output", output.display().to_string()),
        ("combination", how.kind),
        ("changed tensors", changed),
        ("norms of the changes", numbers(&combined.norms)),
    ];
    let rows = combined.cosines.iter().map(|row| numbers(row));
    pairs.extend(rows.map(|row| ("cosines of the changes", row)));
    output::pairs(&pairs)?;
    Ok(ExitCode::SUCCESS)
}

/// Combines several adapters into one.
fn combined(arguments: &Arguments, global: &Global) -> Result<ExitCode> {
    let weights = arguments.weights_of("--adapters", arguments.adapters.len())?;
    let output = &arguments.output;
    let inputs = arguments.adapters.iter();
    let inputs: Vec<Input<'_>> = inputs
        .map(|it| Input::new("one of --adapters", it))
        .collect();
    let _lock = outputs::claim_adapter_directory(output, &inputs, arguments.overwrite)?;
    let files = arguments.adapters.iter().map(|dir| AdapterFile::open(dir));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let adapters: Vec<(AdapterFile, f64)> = files.into_iter().zip(weights).collect();
    let how = arguments.combination("cat");
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
