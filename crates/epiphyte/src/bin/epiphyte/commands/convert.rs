//! `epiphyte convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgGroup, Args, ValueEnum};
use epiphyte::methods::AdapterModule;
use epiphyte::methods::file::convert::{Conversion, RankRule};
use epiphyte::models::Base;
use epiphyte::train::{
    Changes, Delta, Exchanged, Origin, TrainError, WithoutHead, adapter_of_adapterhub,
    adapter_to_adapterhub, convert_adapter, delta_of_adapter, delta_of_model, extract_lora,
};

use crate::data_arguments::{ModelArguments, spec_of_adapter, trimmed};
use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::output;
use crate::outputs::{self, Input};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte convert --model bert-base-uncased --adapter loha --to lora --rank 8 --output as-lora
  epiphyte convert --model meta-llama/Llama-3.2-1B --tuned full --to lora --rank 0.9 --output as-lora
  epiphyte convert --model meta-llama/Llama-3.2-1B --tuned full --to delta --output delta.safetensors
  epiphyte convert --model bert-base-uncased --adapterhub sst-2 --to adapter --output ours
  epiphyte convert --model bert-base-uncased --adapter ours --to adapterhub --output theirs
  epiphyte merge --model meta-llama/Llama-3.2-1B --models delta.safetensors --weights 0.5 --output half";

/// What changes are converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// An adapter of LoRA, as HF PEFT reads it: of each weight's change the first singular vectors
    Lora,
    /// A safetensors file of differences from the base
    Delta,
    /// An adapter of this program, from AdapterHub's
    Adapter,
    /// An adapter of AdapterHub's library `adapters`, without the head
    Adapterhub,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("source").required(true).args(["adapter", "tuned", "delta", "adapterhub"])))]
pub(crate) struct Arguments {
    /// Directory of a model that was fine-tuned whole from --model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    tuned: Option<PathBuf>,
    /// File of differences from --model
    #[arg(long, value_name = "FILE")]
    delta: Option<PathBuf>,
    /// Directory of an adapter that AdapterHub's library `adapters` saved with use_safetensors
    #[arg(long, value_name = "DIR")]
    adapterhub: Option<PathBuf>,
    /// What to write
    #[arg(long, value_name = "FORM")]
    to: Form,
    /// Rank of the LoRA: a number, or a share such as 0.9, for which each layer gets the smallest
    /// rank that keeps that share of the squares of its change's singular values
    #[arg(
        long,
        value_name = "N",
        required_if_eq("to", "lora"),
        value_parser = str::parse::<RankRule>
    )]
    rank: Option<RankRule>,
    /// Names of the classes in the order of their ids, for an adapter that does not record them
    #[arg(
        long,
        value_name = "A,B,..",
        value_delimiter = ',',
        value_parser = trimmed,
        requires = "adapter"
    )]
    labels: Vec<String>,
    /// Directory for the adapter, or file for the delta
    #[arg(long, value_name = "PATH")]
    output: PathBuf,
    /// Replace an earlier adapter or delta
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    model: ModelArguments,
}

/// What was written.
enum Converted {
    Lora(Conversion),
    Delta(Delta),
    Exchanged(Exchanged),
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let located = arguments.model.locate(global)?;
    let model = located.model.clone();
    let tuned = arguments.tuned.as_deref().map(hub::resolve).transpose()?;
    let output = &arguments.output;
    let mut inputs = arguments.model.inputs(&model);
    inputs.extend(
        tuned
            .as_deref()
            .map(|it| Input::new("the fine-tuned model", it)),
    );
    let delta = arguments.delta.as_deref();
    inputs.extend(delta.map(|it| Input::new("the delta", it)));
    let theirs = arguments.adapterhub.as_deref();
    inputs.extend(theirs.map(|it| Input::new("the adapter", it)));
    arguments.check_forms()?;
    let overwrite = arguments.overwrite;
    let _lock = match arguments.to {
        Form::Lora | Form::Adapter | Form::Adapterhub => {
            outputs::claim_adapter_directory(output, &inputs, overwrite)?
        }
        Form::Delta => outputs::claim_plain_file("--output", output, &inputs, overwrite)?,
    };
    if let Some(theirs) = theirs {
        let read = adapter_of_adapterhub(&model, theirs, output)?;
        report(&arguments, &Converted::Exchanged(read), global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let converted = match (&located.adapter, tuned, delta) {
        (Some(file), ..) => {
            let spec = spec_of_adapter(file, &model, &arguments.labels)?;
            let origin = Origin::of(file);
            let convert = |module: AdapterModule, base: &Base| {
                let converted = match (arguments.rank, arguments.to) {
                    (Some(rank), _) => {
                        Converted::Lora(convert_adapter(module, base, &origin, rank, output)?)
                    }
                    (None, Form::Adapterhub) => {
                        let written = adapter_to_adapterhub(&model, base, &module, output)?;
                        Converted::Exchanged(written)
                    }
                    (None, _) => Converted::Delta(delta_of_adapter(&model, base, &module, output)?),
                };
                Ok::<_, TrainError>(converted)
            };
            match spec {
                Some(spec) => {
                    let loaded = located.load(spec, global)?;
                    let module = loaded.module.expect("an adapter was given");
                    convert(module, loaded.task_model.loaded.model.base())?
                }
                None => {
                    let load = arguments.model.load_options();
                    let allow_other_base = arguments.model.allow_other_base;
                    let opened = WithoutHead::open(&model, file, allow_other_base, &load)?;
                    let base = opened.base().clone();
                    convert(opened.into_module(), &base)?
                }
            }
        }
        (None, tuned, delta) => {
            let changes = match (tuned, delta) {
                (Some(tuned), _) => Changes::Model(tuned),
                (None, Some(delta)) => Changes::Delta(delta.to_owned()),
                (None, None) => unreachable!("the command line demands one of them"),
            };
            match (arguments.rank, changes) {
                (Some(rank), changes) => {
                    let allow_other_base = arguments.model.allow_other_base;
                    Converted::Lora(extract_lora(
                        &model,
                        &changes,
                        rank,
                        output,
                        allow_other_base,
                    )?)
                }
                (None, Changes::Model(tuned)) => {
                    Converted::Delta(delta_of_model(&model, &tuned, output)?)
                }
                (None, Changes::Delta(_)) => {
                    return Err(UsageError::Other("--delta is a delta already".to_owned()).into());
                }
            }
        }
    };
    report(&arguments, &converted, global)?;
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// Refuses forms that do not follow from what is given.
    fn check_forms(&self) -> Result<()> {
        let is_theirs = self.adapterhub.is_some();
        let problem = match self.to {
            Form::Adapter if !is_theirs => "--to adapter is for --adapterhub",
            Form::Lora | Form::Delta | Form::Adapterhub if is_theirs => {
                "an adapter of AdapterHub's is converted --to adapter first"
            }
            Form::Adapterhub if self.model.adapter.is_none() => "--to adapterhub is for --adapter",
            Form::Delta | Form::Adapter | Form::Adapterhub if self.rank.is_some() => {
                "--rank is for --to lora"
            }
            _ => return Ok(()),
        };
        Err(UsageError::Other(problem.to_owned()).into())
    }
}

fn report(arguments: &Arguments, converted: &Converted, global: &Global) -> Result<()> {
    let output = arguments.output.display().to_string();
    if global.json {
        let mut result = match converted {
            Converted::Lora(conversion) => serde_json::to_value(conversion)?,
            Converted::Delta(delta) => serde_json::to_value(delta)?,
            Converted::Exchanged(exchanged) => serde_json::to_value(exchanged)?,
        };
        result["output"] = output.into();
        return output::json(&result);
    }
    match converted {
        Converted::Lora(Conversion {
            layers,
            relative_error,
        }) => {
            let ranks = layers.iter().map(|layer| layer.rank);
            let ranks = match (ranks.clone().min(), ranks.max()) {
                (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
                (_, most) => most.unwrap_or(0).to_string(),
            };
            let worst = layers
                .iter()
                .max_by(|a, b| a.relative_error.total_cmp(&b.relative_error));
            let worst = worst.map_or("-".to_owned(), |layer| {
                format!("{:.2e} of {}", layer.relative_error, layer.path)
            });
            output::pairs(&[
                ("output", output),
                ("layers", layers.len().to_string()),
                ("rank", ranks),
                ("relative error", format!("{relative_error:.2e}")),
                ("largest of a layer", worst),
            ])
        }
        Converted::Delta(delta) => output::pairs(&[
            ("output", output),
            ("changed tensors", delta.tensors.to_string()),
            ("values", delta.values.to_string()),
            ("norm", format!("{:.3e}", delta.norm)),
        ]),
        Converted::Exchanged(exchanged) => output::pairs(&[
            ("output", output),
            ("method", exchanged.method.to_owned()),
            ("values", exchanged.values.to_string()),
            ("head", "left out".to_owned()),
        ]),
    }
}
