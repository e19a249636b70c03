//! `epiphyte inspect`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::Device;
use epiphyte::data::Tokenizer;
use epiphyte::io::gguf::model_file;
use epiphyte::methods::file::changes::{TensorChange, tensor_changes};
use epiphyte::methods::file::{AdapterFile, CONFIG_FILE, TENSORS_FILE, TrainingExtent};
use epiphyte::methods::{AdapterModule, ParameterCounts};
use epiphyte::models::{
    Base, Checkpoint, HeadKind, LinearInfo, LoadOptions, ModelConfig, Role, load,
};
use epiphyte::train::WithoutHead;
use serde::Serialize;
use serde_json::Value;

use super::shape;
use crate::data_arguments::{base_dir, classification_head, is_weight_of, spec_of_adapter};
use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::output;

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte inspect adapter
  epiphyte inspect peft-adapter --model bert-base-uncased
  epiphyte inspect adapter --changes   # which biases BitFit moved
  epiphyte inspect bert-base-uncased        # the linear layers that --target-modules may name
  epiphyte inspect --shape llama-7b         # what each method would train, without any weights
  epiphyte inspect --shape bert-base-uncased --method lora --rank 16";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory of an adapter or a base model, a GGUF file, or a base model's name on the hub
    #[arg(required_unless_present = "shape")]
    path: Option<PathBuf>,
    /// The adapter's base model, for --changes and for parameter counts that an adapter of HF PEFT
    /// does not record [default: the base that the adapter names]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Show how far each tensor of the base moves in each layer: the mean magnitude of its change
    #[arg(long)]
    changes: bool,
    #[command(flatten)]
    shape: shape::Shape,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let Some(given) = arguments.path else {
        return shape::run(&arguments.shape, global);
    };
    arguments.shape.check_absent()?;
    let path = match given.file_name() {
        Some(name) if name == CONFIG_FILE => given.parent().unwrap_or(Path::new(".")).to_owned(),
        _ => given.clone(),
    };
    if path.join(CONFIG_FILE).exists() {
        adapter(&path, arguments.model.as_deref(), arguments.changes, global)?;
    } else if arguments.changes {
        let problem = "--changes are those of an adapter: pass its directory";
        return Err(UsageError::Other(problem.to_owned()).into());
    } else if given.exists() && !path.join("config.json").exists() && model_file(&path)?.is_none() {
        let problem = format!(
            "`{}` is neither an adapter nor a model: it has no {CONFIG_FILE} and no config.json, and \
             is no GGUF file",
            path.display()
        );
        return Err(UsageError::Other(problem).into());
    } else {
        base(&hub::resolve(&path)?, global)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A stored tensor.
#[derive(Serialize)]
struct TensorSummary {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

impl TensorSummary {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The floating-point tensors of a file; buffers such as `position_ids` are left out.
fn tensors(checkpoint: &Checkpoint) -> Vec<TensorSummary> {
    let views = checkpoint
        .names()
        .filter_map(|name| Some((name, checkpoint.tensor(name)?)));
    views
        .filter(|(_, view)| view.is_float())
        .map(|(name, view)| TensorSummary {
            name: name.to_owned(),
            dtype: view.type_name(),
            shape: view.shape.to_vec(),
        })
        .collect()
}

/// The result with `--json` for an adapter.
#[derive(Serialize)]
struct AdapterSummary {
    method: &'static str,
    peft_type: &'static str,
    task: Option<Value>,
    base_model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<TrainingExtent>,
    trainable_parameters: Option<usize>,
    changed_parameters: Option<usize>,
    stored_parameters: usize,
    head_parameters: Option<usize>,
    base_parameters: Option<usize>,
    bytes: u64,
    settings: Value,
    tensors: Vec<TensorSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<TensorChange>>,
}

fn adapter(dir: &Path, model: Option<&Path>, changes: bool, global: &Global) -> Result<()> {
    let file = AdapterFile::open_edited(dir)?;
    if let Err(problem) = file.check_files() {
        output::note(&format!("warning: {problem}"));
    }
    let tensors = tensors(file.tensors());
    let account = account(&file, model, global)?;
    let changes = match changes {
        true => {
            let (base, module) = opened(&file, &base_dir(model, Some(dir), global)?)?;
            Some(tensor_changes(&module, &base)?)
        }
        false => None,
    };
    let definition = file.config().definition();
    let task = match file.provenance() {
        Some(ours) => Some(ours.task.clone()),
        None => file.task_type().map(Value::from),
    };
    let summary = AdapterSummary {
        method: definition.name,
        peft_type: definition.peft_type,
        task,
        base_model: file.base_model().map(str::to_owned),
        training: file.provenance().and_then(|ours| ours.training),
        trainable_parameters: account.map(|account| account.trainable_parameters),
        changed_parameters: account.map(|account| account.changed_parameters),
        stored_parameters: account.map_or_else(
            || tensors.iter().map(TensorSummary::values).sum(),
            |account| account.stored_parameters,
        ),
        head_parameters: account.map(|account| account.head_parameters),
        base_parameters: account.map(|account| account.base_parameters),
        bytes: fs::metadata(dir.join(TENSORS_FILE))?.len(),
        settings: Value::Object(file.config().settings()),
        tensors,
        changes,
    };
    if global.json {
        return output::json(&summary);
    }
    let count = |number: Option<usize>| {
        number.map_or("?".to_owned(), |number| output::count(number as u64))
    };
    let mut rows = vec![
        ("method", summary.method.to_owned()),
        ("peft_type", summary.peft_type.to_owned()),
        (
            "task",
            summary.task.map_or("?".to_owned(), |task| {
                task["task"]
                    .as_str()
                    .or(task.as_str())
                    .unwrap_or("?")
                    .to_owned()
            }),
        ),
        (
            "base model",
            summary.base_model.unwrap_or_else(|| "?".to_owned()),
        ),
    ];
    let training = summary.training.map(|it| ("training", it.to_string()));
    rows.extend(training);
    rows.extend([
        ("base parameters", count(summary.base_parameters)),
        ("trainable parameters", count(summary.trainable_parameters)),
        ("changed parameters", count(summary.changed_parameters)),
        ("stored parameters", count(Some(summary.stored_parameters))),
        ("head parameters", count(summary.head_parameters)),
        ("file", output::bytes(summary.bytes)),
        ("tensors", output::count(summary.tensors.len() as u64)),
    ]);
    output::pairs(&rows)?;
    print_tensors(&summary.tensors)?;
    match &summary.changes {
        Some(changes) => print_changes(changes),
        None => Ok(()),
    }
}

/// One row a tensor, with a column for each layer.
fn print_changes(changes: &[TensorChange]) -> Result<()> {
    output::print("mean change, by layer:")?;
    let rows = changes.iter().map(|TensorChange { name, mean_change }| {
        let means = mean_change.iter().map(|(_, mean)| format!("{mean:.2e}"));
        [format!("  {name}")].into_iter().chain(means).collect()
    });
    output::table(&rows.collect::<Vec<_>>(), &[])
}

fn print_tensors(tensors: &[TensorSummary]) -> Result<()> {
    let rows = tensors.iter().map(|TensorSummary { name, dtype, shape }| {
        vec![format!("  {name}"), format!("{dtype} {shape:?}")]
    });
    output::table(&rows.collect::<Vec<_>>(), &[])
}

/// The adapter's parameter counts: recorded in its configuration, or computed from its base model.
fn account(
    file: &AdapterFile,
    model: Option<&Path>,
    global: &Global,
) -> Result<Option<ParameterCounts>> {
    if let Some(account) = file.provenance().and_then(|ours| ours.account) {
        return Ok(Some(account));
    }
    let named = file
        .base_model()
        .map(PathBuf::from)
        .filter(|path| path.exists());
    let given = model.map(hub::resolve);
    let Some(model) = given.transpose()?.or(named) else {
        if !global.quiet {
            output::note(
                "note: counting trainable and changed parameters needs the base model: pass --model",
            );
        }
        return Ok(None);
    };
    let (base, module) = opened(file, &model)?;
    Ok(Some(module.counts(&base)))
}

/// The base in `model`, and the adapter over it.
fn opened(file: &AdapterFile, model: &Path) -> Result<(Base, AdapterModule)> {
    let device = Device::flex();
    let Some(spec) = spec_of_adapter(file, model, &[])? else {
        let opened = WithoutHead::open(model, file, false, &LoadOptions::default())?;
        let base = opened.base().clone();
        return Ok((base, opened.into_module()));
    };
    let loaded = load(model, spec.head(), &device, &LoadOptions::default())?;
    let tokenizer = Tokenizer::load(model)?;
    file.check_base(
        &loaded.content_hash,
        &loaded.config.computation(),
        tokenizer.content_hash(),
    )?;
    let base = loaded.model.base().clone();
    let module = file.load(&base, &device)?;
    Ok((base, module))
}

/// The result with `--json` for a base model.
#[derive(Serialize)]
struct BaseSummary {
    architectures: Vec<String>,
    layers: usize,
    width: usize,
    vocabulary: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_position_embeddings: Option<usize>,
    labels: Vec<String>,
    parameters: usize,
    bytes: usize,
    dtypes: Vec<String>,
    linear_maps: Vec<LinearMaps>,
}

/// The linear layers at the same path of every transformer layer.
#[derive(PartialEq, Serialize)]
struct LinearMaps {
    /// The path, with `*` for the layer.
    path: String,
    /// `[out, in]`.
    shape: Vec<usize>,
    count: usize,
}

fn base(dir: &Path, global: &Global) -> Result<()> {
    let config = ModelConfig::open(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let tensors = tensors(&checkpoint);
    let mut dtypes: Vec<String> = tensors.iter().map(|tensor| tensor.dtype.clone()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let facts = config.facts();
    let has_head = classification_head(&config).is_some_and(|head| {
        tensors
            .iter()
            .any(|tensor| is_weight_of(&tensor.name, head))
    });
    let labels = facts.labels.names().len().max(1);
    let of_tokens = HeadKind::TokenClassification { labels };
    // An encoder-decoder that classifies tokens is saved without its decoder.
    let head = match config.is_saved_with(of_tokens) {
        true => of_tokens,
        false => HeadKind::Classification { labels },
    };
    let loaded = load(dir, head, &Device::flex(), &LoadOptions::default())?;
    let summary = BaseSummary {
        architectures: facts.architectures.clone(),
        layers: facts.num_hidden_layers,
        width: facts.hidden_size,
        vocabulary: facts.vocab_size,
        max_position_embeddings: facts.max_position_embeddings,
        labels: match has_head {
            true => facts.labels.names().to_vec(),
            false => Vec::new(),
        },
        parameters: tensors.iter().map(TensorSummary::values).sum(),
        bytes: checkpoint.total_bytes(),
        dtypes,
        linear_maps: linear_maps(loaded.model.base()),
    };
    if global.json {
        return output::json(&summary);
    }
    let count = |number: usize| output::count(number as u64);
    let mut rows = vec![
        ("architecture", summary.architectures.join(", ")),
        (
            "parameters",
            format!(
                "{} ({})",
                count(summary.parameters),
                summary.dtypes.join(", ")
            ),
        ),
        ("weights", output::bytes(summary.bytes as u64)),
        ("layers", count(summary.layers)),
        ("width", count(summary.width)),
        ("vocabulary", count(summary.vocabulary)),
    ];
    rows.extend(
        summary
            .max_position_embeddings
            .map(|limit| ("longest sequence", count(limit))),
    );
    if has_head {
        rows.push(("labels", summary.labels.join(", ")));
    }
    output::pairs(&rows)?;
    output::print("linear layers, [out, in]:")?;
    let rows = summary.linear_maps.iter();
    let rows = rows.map(|LinearMaps { path, shape, count }| {
        vec![format!("  {path}"), format!("{shape:?} x {count}")]
    });
    output::table(&rows.collect::<Vec<_>>(), &[])
}

/// The linear layers that methods can change, one entry for all transformer layers.
fn linear_maps(base: &Base) -> Vec<LinearMaps> {
    let mut found: Vec<LinearMaps> = Vec::new();
    let in_front_of_head = |it: &&LinearInfo| it.site.role != Role::Head;
    for linear in base.linears().iter().filter(in_front_of_head) {
        let parts = linear.site.path.split('.');
        let parts = parts.map(|part| match part.parse::<usize>() {
            Ok(_) => "*",
            Err(_) => part,
        });
        let path = parts.collect::<Vec<&str>>().join(".");
        let shape = vec![linear.outputs, linear.inputs];
        let same = |maps: &&mut LinearMaps| maps.path == path && maps.shape == shape;
        match found.iter_mut().find(same) {
            Some(maps) => maps.count += 1,
            None => found.push(LinearMaps {
                path,
                shape,
                count: 1,
            }),
        }
    }
    found
}
