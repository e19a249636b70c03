//! An adapter folded into its base: a plain Hugging Face directory that needs no adapter.
//!
//! The directory appears whole or not at all. Where it exists already, only what an earlier merge
//! wrote there is replaced, and `config.json`, without which no program takes it for a model, goes
//! first and comes last.
//!
//! A merged model is a base like any other, which is how training goes by stages: full
//! fine-tuning, then LoRA over its result, or LoRA over a merged LoRA (as Sun et al. 2023, arXiv
//! 2304.08109, compare them). Each stage leaves its adapter, its merged model and, with a patch,
//! what leads back to the base that it began with:
//!
//! ```sh
//! epiphyte train --model base --method full --output stage-1 ...
//! epiphyte merge --model base --adapter stage-1 --output merged-1 --patch patch-1.safetensors
//! epiphyte train --model merged-1 --method lora --output stage-2 ...
//! epiphyte merge --model merged-1 --adapter stage-2 --output merged-2 --patch patch-2.safetensors
//! epiphyte unmerge merged-2 --patch patch-2.safetensors --output merged-1-again
//! ```

pub(crate) mod config;
pub(crate) mod files;
mod models;
mod patch;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use burn::tensor::{Device, Tensor};
use epiphyte_data::Tokenizer;
use epiphyte_io::gguf::model_file;
use epiphyte_io::safetensors_file::{Values, prepare_values};
use epiphyte_io::{FileError, TEMPORARY, clean_up, write_directory};
use epiphyte_methods::AdapterModule;
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::keys::TensorReader;
use epiphyte_models::quantized::is_beside_weight;
use epiphyte_models::{
    Adapter, AdapterBatch, Base, BaseTensor, Checkpoint, DecoderTokens, HeadKind, Identity,
    LoadOptions, Model, ModelConfig, ModelError, Tokens, load,
};
use epiphyte_ops::{FrozenMatrix, Sequences};
use serde::Serialize;

pub use self::models::{CombinedModels, combine_models};
pub use self::patch::{Patch, Unmerged, unmerge, write_patch};
use crate::lock::lock_output;
use crate::run::{LoadedAdapter, warn_if_interrupted, warn_if_otherwise_quantized, write_files};
use crate::{TaskSpec, TrainError};

/// The merged model's tensors.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// What the metadata of a merged model's tensors has, so that it is known for what it is.
pub(crate) const MARK: (&str, &str) = ("epiphyte", "merged");
/// The chat template of a model's directory.
const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// How an adapter is merged.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeOptions {
    /// The type of the merged weights; each tensor's own in the base's files if none is set.
    pub dtype: Option<WeightType>,
    /// Replace an earlier merged model in the output directory.
    pub overwrite: bool,
    /// Take deltas of another base.
    pub allow_other_base: bool,
}

/// A type of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// bfloat16.
    Bf16,
}

impl WeightType {
    pub(crate) fn of_file(self) -> safetensors::Dtype {
        match self {
            Self::F32 => safetensors::Dtype::F32,
            Self::F16 => safetensors::Dtype::F16,
            Self::Bf16 => safetensors::Dtype::BF16,
        }
    }

    /// PyTorch's name.
    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" | "float32" => Ok(Self::F32),
            "f16" | "float16" => Ok(Self::F16),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            _ => Err("use f32, f16 or bf16".to_owned()),
        }
    }
}

/// What merging did.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// Tensors that changed.
    pub changed_tensors: usize,
    /// Tensors written.
    pub tensors: usize,
    /// On probe inputs, the largest difference between base with adapter and merged model: of
    /// logits, or of the last hidden states where there is no head.
    pub largest_difference: f64,
    /// On probe inputs, the largest Kullback-Leibler divergence of the merged model's distribution
    /// from that of base with adapter, in nats; none where there is no head with several outputs.
    pub largest_kl: Option<f64>,
    /// How many of the probes' rows have another largest logit, and how many rows there are.
    pub argmax_flips: Option<[usize; 2]>,
}

/// What two models say about the same inputs.
#[derive(Debug, Default)]
struct Comparison {
    largest_difference: f64,
    largest_kl: f64,
    flips: usize,
    rows: usize,
}

impl Comparison {
    /// Compares a row of logits, `before` and `after`.
    fn add(&mut self, before: &[f32], after: &[f32]) {
        let differences = before
            .iter()
            .zip(after)
            .map(|(a, b)| f64::from(a - b).abs());
        self.largest_difference = differences.fold(self.largest_difference, f64::max);
        let (p, q) = (log_softmax(before), log_softmax(after));
        let kl = p
            .iter()
            .zip(&q)
            .map(|(p, q)| p.exp() * (p - q))
            .sum::<f64>();
        self.largest_kl = self.largest_kl.max(kl);
        self.flips += usize::from(largest(before) != largest(after));
        self.rows += 1;
    }
}

/// Logarithms of the probabilities of logits.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = || logits.iter().map(|it| f64::from(it - most));
    let log_sum = shifted().map(f64::exp).sum::<f64>().ln();
    shifted().map(|it| it - log_sum).collect()
}

/// The number of the first largest value.
fn largest(values: &[f32]) -> usize {
    let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let at = values.iter().position(|value| *value == most);
    at.unwrap_or_default()
}

/// Writes the base with the adapter folded in to `output`: `model.safetensors`, `config.json` with
/// the task's head and classes, and those files of the base's directory that describe its
/// tokenizer, templates and generation.
///
/// # Errors
/// If the method cannot be merged, or files cannot be written; [`TrainError::OutputNotMerged`]
/// if `output` has anything in it that is not an earlier merged model.
pub fn merge(
    model_dir: &Path,
    loaded_adapter: &LoadedAdapter,
    output: &Path,
    options: &MergeOptions,
) -> Result<Merged, TrainError> {
    let LoadedAdapter {
        task_model,
        module: Some(module),
        ..
    } = loaded_adapter
    else {
        return Err(TrainError::Config(
            "there is no adapter to merge: pass --adapter".to_owned(),
        ));
    };
    let loaded = &task_model.loaded;
    let parts = Parts {
        model_dir,
        model: &loaded.model,
        base: loaded.model.base(),
        config: &loaded.config,
        module,
        head: task_model.spec.head(),
        task: Some((&task_model.spec, &task_model.tokenizer)),
    };
    parts.merge(output, options)
}

/// A base without a task's head, with an adapter that has none either.
#[derive(Debug)]
pub struct WithoutHead {
    model: Model,
    config: ModelConfig,
    head: HeadKind,
    base: Base,
    module: AdapterModule,
}

impl WithoutHead {
    /// Opens a base and an adapter that was not trained for a task of its own, such as one of
    /// sentence embeddings.
    ///
    /// # Errors
    /// If files are missing or malformed, or the adapter does not fit the base.
    pub fn open(
        model_dir: &Path,
        file: &AdapterFile,
        allow_other_base: bool,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        warn_if_interrupted(file);
        let config = ModelConfig::open(model_dir)?;
        let head = head_of_files(model_dir, &config)?;
        let device = Device::flex();
        let loaded = load(model_dir, head, &device, options)?;
        if !allow_other_base {
            let tokenizer = Tokenizer::load(model_dir)?;
            let computation = loaded.config.computation();
            file.check_base(&loaded.content_hash, &computation, tokenizer.content_hash())?;
        }
        let base = match head {
            HeadKind::LanguageModel => loaded.model.base().clone(),
            _ => loaded.model.base().without_head(),
        };
        warn_if_otherwise_quantized(file, &base);
        let module = file.load(&base, &device)?;
        Ok(Self {
            model: loaded.model,
            config,
            head,
            base,
            module,
        })
    }

    /// The base.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// The adapter.
    pub fn module(&self) -> &AdapterModule {
        &self.module
    }

    /// The adapter, without the base.
    pub fn into_module(self) -> AdapterModule {
        self.module
    }

    /// Writes the base's files with the adapter folded in to `output`: what the adapter does not
    /// change stays as it is, heads of the base included.
    ///
    /// # Errors
    /// As [`merge()`].
    pub fn merge(
        &self,
        model_dir: &Path,
        output: &Path,
        options: &MergeOptions,
    ) -> Result<Merged, TrainError> {
        let parts = Parts {
            model_dir,
            model: &self.model,
            base: &self.base,
            config: &self.config,
            module: &self.module,
            head: self.head,
            task: None,
        };
        parts.merge(output, options)
    }
}

/// The head with which a checkpoint loads when nothing says a task: that of the class which saved
/// it, a language model's where it has one, else one that is not used.
pub(crate) fn head_of_files(
    model_dir: &Path,
    config: &ModelConfig,
) -> Result<HeadKind, TrainError> {
    let labels = config.facts().labels.num_labels();
    let heads = [
        HeadKind::LanguageModel,
        HeadKind::TokenClassification { labels },
        HeadKind::QuestionAnswering,
    ];
    let mut heads = heads.into_iter();
    if let Some(head) = heads.find(|head| config.is_saved_with(*head)) {
        return Ok(head);
    }
    let has_class = config
        .family()
        .class_name(HeadKind::LanguageModel)
        .is_some();
    let has_head = has_class && Checkpoint::open(model_dir)?.contains("lm_head.weight");
    Ok(match has_head {
        true => HeadKind::LanguageModel,
        false => HeadKind::Classification { labels: 1 },
    })
}

/// What is merged.
struct Parts<'a> {
    model_dir: &'a Path,
    model: &'a Model,
    base: &'a Base,
    config: &'a ModelConfig,
    module: &'a AdapterModule,
    head: HeadKind,
    /// The task with its tokenizer; none if the base's files keep their head.
    task: Option<(&'a TaskSpec, &'a Tokenizer)>,
}

/// A tensor of the merged model.
struct Part<'a> {
    name: String,
    shape: Vec<usize>,
    /// As the base's files have it.
    stored: Option<TensorView<'a>>,
    /// As the base has it in memory.
    base: Option<&'a BaseTensor>,
    merged: Option<Tensor<1>>,
}

impl Parts<'_> {
    fn merge(&self, output: &Path, options: &MergeOptions) -> Result<Merged, TrainError> {
        let _lock = lock_output(output)?;
        let copied = files::files_of(self.model_dir)?;
        let written = [config::FILE, WEIGHTS_FILE].map(Path::new).into_iter();
        let size = self.base.dimensions.hidden_size;
        let own = self.task.map(|(spec, _)| spec.task.files(spec, size));
        let own = own.unwrap_or_default();
        let written = written.chain(copied.iter().map(|file| &**file));
        let written = written.chain(own.iter().map(|(file, _)| &**file));
        check_output(output, written, options.overwrite)?;
        let checkpoint = Checkpoint::open(self.model_dir)?;
        let tensors = self.tensors(&checkpoint)?;
        let changed_tensors = tensors.iter().filter(|it| it.merged.is_some()).count();
        let count = tensors.len();
        let mut comparison = Comparison::default();
        write_model(output, |directory| {
            write_tensors(&directory.join(WEIGHTS_FILE), tensors, options.dtype)?;
            for file in &copied {
                files::copy(self.model_dir, file, directory)?;
            }
            if let Some((spec, _)) = self.task {
                write_files(directory, spec, self.base)?;
            }
            let config = self.config_json(options.dtype)?;
            epiphyte_io::write(&directory.join(config::FILE), config.as_bytes())?;
            // What the adapter keeps in place of the base's own.
            let template = self.task.and_then(|(spec, _)| spec.chat_template.as_ref());
            if let Some(template) = template {
                epiphyte_io::write(&directory.join(CHAT_TEMPLATE), template.as_bytes())?;
            }
            let device = Device::flex();
            let merged = load(directory, self.head, &device, &LoadOptions::default())?;
            comparison = self.compare(&merged.model)?;
            Ok(())
        })?;
        let has_classes = match self.model.language_head() {
            Some(_) => true,
            None => self.task.is_some() && self.head.outputs().is_some_and(|it| it > 1),
        };
        Ok(Merged {
            changed_tensors,
            tensors: count,
            largest_difference: comparison.largest_difference,
            largest_kl: has_classes.then_some(comparison.largest_kl),
            argmax_flips: has_classes.then_some([comparison.flips, comparison.rows]),
        })
    }

    /// Whether the heads in the base's files, and the names there, stay as they are: nothing was
    /// trained in their place.
    fn keeps_head(&self) -> bool {
        self.task.is_none() || self.base.is_bare
    }

    /// The tensors of the merged model, not yet computed.
    fn tensors<'c>(&'c self, checkpoint: &'c Checkpoint) -> Result<Vec<Part<'c>>, TrainError> {
        let family = self.config.family();
        let mut reader = TensorReader::new(checkpoint, family.key_rules(self.head));
        let mut parts = Vec::new();
        for (name, tensor) in self.base.tensors() {
            let merged = self.module.merged(name, self.base)?;
            let is_finite =
                |it: &Tensor<1>| it.clone().inner().is_finite().all().into_scalar::<bool>();
            if merged.as_ref().is_some_and(|merged| !is_finite(merged)) {
                return Err(TrainError::NotFinite {
                    what: format!("`{name}` of the merged model"),
                });
            }
            let stored = reader.stored_name(name);
            let view = stored.as_deref().and_then(|it| checkpoint.tensor(it));
            let shape = tensor.shape();
            reader.skip(name);
            parts.push(Part {
                // Files that keep their head keep their names.
                name: match (self.keeps_head(), stored) {
                    (true, Some(stored)) => stored,
                    _ => name.clone(),
                },
                // What was quantized here is written as it was in use, dequantized.
                stored: view.filter(|view| {
                    let matrix = tensor.matrix();
                    let quantized = matrix.is_some_and(FrozenMatrix::was_quantized_here);
                    view.shape == shape && view.is_float() && !quantized
                }),
                shape,
                base: Some(tensor),
                merged,
            });
        }
        parts.extend(self.untied_head()?);
        if self.keeps_head() {
            let is_copy = |reader: &mut TensorReader<'_>, [copy, original]: [&str; 2]| {
                self.base.tensor(copy).is_none() && reader.is_tied(copy, original)
            };
            let tied = family.tied().filter(|names| is_copy(&mut reader, *names));
            let used: BTreeSet<String> = parts.iter().map(|part| part.name.clone()).collect();
            let rest = checkpoint
                .names()
                .filter(|name| !used.contains(*name) && !is_beside_weight(name));
            let skipped = tied.and_then(|[copy, _]| reader.stored_name(copy));
            for name in rest.filter(|name| Some(*name) != skipped.as_deref()) {
                let view = checkpoint.tensor(name);
                parts.push(Part {
                    name: name.to_owned(),
                    shape: view.map(|view| view.shape.to_vec()).unwrap_or_default(),
                    stored: view,
                    base: None,
                    merged: None,
                });
            }
        }
        Ok(parts)
    }

    /// The weight of a head that the base ties to the word embeddings, where the adapter changes
    /// only one of the two.
    fn untied_head(&self) -> Result<Option<Part<'_>>, TrainError> {
        let Some(name) = self.base.tied_head() else {
            return Ok(None);
        };
        let merged = self.module.merged(&name, self.base)?;
        Ok(merged.map(|merged| Part {
            name,
            shape: self.base.word_embedding_table().shape().to_vec(),
            stored: None,
            base: None,
            merged: Some(merged),
        }))
    }

    fn config_json(&self, dtype: Option<WeightType>) -> Result<String, TrainError> {
        let mut json = config::read(self.model_dir)?;
        if self.untied_head()?.is_some() {
            json.insert("tie_word_embeddings".to_owned(), false.into());
        }
        json.shift_remove(config::QUANTIZATION);
        if let Some((spec, tokenizer)) = self.task.filter(|_| !self.keeps_head()) {
            config::set_task(&mut json, self.config, spec);
            config::set_padding(&mut json, self.config, self.base, tokenizer)?;
        }
        if let Some(dtype) = dtype {
            config::set_type(&mut json, dtype);
        }
        Ok(serde_json::to_string_pretty(&json).expect("JSON values print"))
    }

    /// What the two models say about a few made-up texts.
    fn compare(&self, merged: &Model) -> Result<Comparison, TrainError> {
        let dimensions = &self.model.base().dimensions;
        let vocabulary = dimensions.vocabulary as u32;
        let longest = dimensions.max_positions.unwrap_or(32).min(32);
        let mut comparison = Comparison::default();
        for probe in 0..4u32 {
            let length = (longest / 4 * (probe as usize + 1)).max(1);
            let ids: Vec<u32> = (0..length as u32)
                .map(|at| (probe.wrapping_mul(7919) + at.wrapping_mul(104_729)) % vocabulary)
                .collect();
            let type_ids = vec![0; length];
            let sequences = Sequences::new(vec![0, length]);
            let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let decoder = self.model.backbone().decoder_input(&labels, &sequences);
            let tokens = Tokens {
                decoder: decoder.as_ref().map(|ids| DecoderTokens {
                    ids,
                    sequences: sequences.clone(),
                }),
                ..Tokens::new(&ids, &type_ids, sequences.clone())
            };
            let (before, columns) = self.outputs(self.model, &tokens, self.module);
            let (after, _) = self.outputs(merged, &tokens, &Identity);
            if before.iter().chain(&after).any(|logit| !logit.is_finite()) {
                return Err(TrainError::NotFinite {
                    what: "a logit of the merged model".to_owned(),
                });
            }
            let rows = before.chunks(columns).zip(after.chunks(columns));
            rows.for_each(|(before, after)| comparison.add(before, after));
        }
        Ok(comparison)
    }

    /// Logits, row-major, and how many there are in a row.
    fn outputs(
        &self,
        model: &Model,
        tokens: &Tokens<'_>,
        adapter: &dyn Adapter,
    ) -> (Vec<f32>, usize) {
        let outputs = match model.language_head() {
            Some(head) => {
                let hidden = model.hidden(tokens, adapter);
                let batch = AdapterBatch::single(adapter, tokens);
                head.forward(hidden.states, &hidden.rows, &batch)
            }
            None if self.task.is_none() => model.hidden(tokens, adapter).states,
            None => model.logits(tokens, adapter),
        };
        let [_, columns] = outputs.dims();
        let values = outputs.inner().try_into_vec_as::<f32>();
        let values = values.expect("logits are f32 and can be read");
        (values, columns.max(1))
    }
}

/// Writes the tensors, each in the type of the base's files unless another is asked for. What the
/// files do not have, such as a new head, gets the type of the others.
fn write_tensors(
    path: &Path,
    tensors: Vec<Part<'_>>,
    dtype: Option<WeightType>,
) -> Result<(), TrainError> {
    let asked = dtype.map(WeightType::of_file);
    let mut floats = tensors.iter().filter_map(|part| part.stored);
    let of_files = floats.find(TensorView::is_float).map(|view| view.dtype);
    let of_files = of_files.unwrap_or(safetensors::Dtype::F32);
    let values = tensors.into_iter().map(|part| {
        let stored = part.stored;
        let own = stored.map_or(of_files, |view| view.dtype);
        let dtype = match stored.is_none_or(|view| view.is_float()) {
            true => asked.unwrap_or(own),
            false => own,
        };
        let values = match (part.merged, stored, part.base) {
            (Some(merged), _, _) => Values::Rounded(
                dtype,
                Box::new(move || {
                    let values = merged.inner().try_into_vec_as::<f32>();
                    values.expect("weights are f32 and can be read")
                }),
            ),
            (None, Some(view), _) if view.dtype == dtype => stored_values(view),
            (None, Some(view), _) => Values::Rounded(
                dtype,
                Box::new(move || view.to_f32().expect("the type was checked")),
            ),
            (None, None, tensor) => Values::Rounded(
                dtype,
                Box::new(move || tensor.map(BaseTensor::to_vec).unwrap_or_default()),
            ),
        };
        (part.name, part.shape, values)
    });
    let pending = prepare_values(path, values, &[MARK]).map_err(ModelError::from)?;
    Ok(pending.put_in_place()?)
}

/// A tensor's elements in their own type. Those that a GGUF file has in another form are made when
/// they are written.
pub(crate) fn stored_values(view: TensorView<'_>) -> Values<'_> {
    match view.plain_bytes() {
        Some(bytes) => Values::Bytes(view.dtype, bytes.into()),
        None => Values::Made(view.dtype, Box::new(move || view.bytes().into_owned())),
    }
}

/// Checks that the output directory is empty, or an earlier merged model that may be replaced.
pub(crate) fn check_output<'a>(
    output: &Path,
    written: impl Iterator<Item = &'a Path>,
    overwrite: bool,
) -> Result<(), TrainError> {
    check_output_of(output, written, overwrite, || is_marked(output))
}

/// Whether a base is a GGUF file.
pub(crate) fn is_gguf(base: &Path) -> Result<bool, TrainError> {
    let file = model_file(base).map_err(FileError::at("read", base))?;
    Ok(file.is_some())
}

/// Whether a directory has a model that this program wrote.
pub(crate) fn is_marked(directory: &Path) -> bool {
    let weights = Checkpoint::open_file(&directory.join(WEIGHTS_FILE));
    weights.is_ok_and(|it| it.metadata().get(MARK.0).is_some_and(|mark| mark == MARK.1))
}

/// As [`check_output`], where `is_ours` says whether a model there may be replaced.
pub(crate) fn check_output_of<'a>(
    output: &Path,
    written: impl Iterator<Item = &'a Path>,
    overwrite: bool,
    is_ours: impl Fn() -> bool,
) -> Result<(), TrainError> {
    if !output.exists() {
        return Ok(());
    }
    let mut entries = files::names_in(output)?;
    entries.retain(|name| !name.starts_with(TEMPORARY));
    entries.sort();
    if entries.is_empty() {
        return Ok(());
    }
    let written: BTreeSet<&str> = written
        .filter_map(|file| file.iter().next()?.to_str())
        .collect();
    let foreign = entries.iter().find(|name| !written.contains(name.as_str()));
    let foreign = match is_ours() {
        true => foreign,
        false => foreign.or(entries.first()),
    };
    match foreign {
        Some(entry) => Err(TrainError::OutputNotMerged {
            path: output.to_owned(),
            entry: entry.clone(),
        }),
        None if overwrite => Ok(()),
        None => Err(TrainError::OutputMerged {
            path: output.to_owned(),
        }),
    }
}

/// Writes a model's directory through `fill`, whole or not at all.
pub(crate) fn write_model(
    output: &Path,
    fill: impl FnOnce(&Path) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    if !output.exists() {
        return write_directory(output, fill);
    }
    // A directory that exists may be a mount, which cannot be renamed: its entries are.
    let inside = output.join(format!("{TEMPORARY}merged"));
    let remove = |path: &Path| match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    clean_up(output)?;
    let result = write_directory(&inside, fill).and_then(|()| {
        let config = output.join(config::FILE);
        if config.exists() {
            fs::remove_file(&config).map_err(FileError::at("remove", &config))?;
        }
        let mut names = files::names_in(&inside)?;
        names.sort_by_key(|name| name == config::FILE);
        for name in names {
            let (from, to) = (inside.join(&name), output.join(&name));
            if to.is_dir() {
                remove(&to).map_err(FileError::at("remove", &to))?;
            }
            fs::rename(&from, &to).map_err(FileError::at("write", &to))?;
        }
        Ok(())
    });
    if inside.exists() {
        // Best effort: the first error is the one worth reporting.
        let _ = remove(&inside);
    }
    result
}
