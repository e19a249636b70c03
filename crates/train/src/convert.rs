//! Changes of a base from one form into another: an adapter, a model that was fine-tuned whole, or
//! a plain file of differences (a delta) becomes LoRA or a delta.
//!
//! A delta is a safetensors file with `θ' − θ` in f32 for each tensor that changed, under the name
//! that the tensor has in the base's files. `merge --models` adds deltas to a base again.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::safetensors_file::{Values, prepare_values};
use epiphyte_methods::file::convert::{Conversion, RankRule, adapter_to_lora, change, to_lora};
use epiphyte_methods::file::{AdapterFile, Provenance, adapterhub, save_as};
use epiphyte_methods::{AdapterModule, MethodError};
use epiphyte_models::keys::TensorReader;
use epiphyte_models::{Base, Checkpoint, HeadKind, LoadOptions, ModelConfig, ModelError, load};
use serde::Serialize;

use crate::TrainError;
use crate::merge::head_of_files;

/// What the metadata of a delta has, so that it is known for what it is.
pub(crate) const DELTA: (&str, &str) = ("epiphyte", "delta");
/// The key of the metadata with the SHA-256 of the base's tensors.
const BASE_SHA256: &str = "base_sha256";

/// Checks that a delta is of the base with this hash, if it says of which.
///
/// # Errors
/// [`TrainError::OfOtherBase`].
pub(crate) fn check_base_of_delta(
    delta: &Checkpoint,
    path: &Path,
    base_sha256: &str,
) -> Result<(), TrainError> {
    match delta.metadata().get(BASE_SHA256) {
        Some(own) if own != base_sha256 => Err(TrainError::OfOtherBase {
            path: path.to_owned(),
            reason: "it is the delta of another base; --allow-other-base takes it all the same"
                .to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Whose changes of a base are converted, if they are not an adapter's.
#[derive(Clone, Debug)]
pub enum Changes {
    /// Those of a model's directory.
    Model(PathBuf),
    /// Those in a delta.
    Delta(PathBuf),
}

/// A delta that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Delta {
    /// Tensors that change.
    pub tensors: usize,
    /// Values that the file holds.
    pub values: usize,
    /// The Euclidean norm of the change.
    pub norm: f64,
}

/// What an adapter's file says of where the adapter comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    base_model: String,
    task_type: String,
    provenance: Option<Provenance>,
}

impl Origin {
    /// That of an adapter's file.
    pub fn of(file: &AdapterFile) -> Self {
        Self {
            base_model: file.base_model().unwrap_or_default().to_owned(),
            task_type: file.task_type().unwrap_or_default().to_owned(),
            provenance: file.provenance().cloned(),
        }
    }
}

/// Writes an adapter over `base` as LoRA to `output`; `origin` is what its own file says.
///
/// # Errors
/// As [`adapter_to_lora`]; if a file cannot be written.
pub fn convert_adapter(
    module: AdapterModule,
    base: &Base,
    origin: &Origin,
    rule: RankRule,
    output: &Path,
) -> Result<Conversion, TrainError> {
    let (lora, conversion) = adapter_to_lora(module, base, &Device::flex(), rule)?;
    let provenance = origin.provenance.as_ref().map(|provenance| Provenance {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        method: lora.config().definition().name.to_owned(),
        account: Some(lora.counts(base)),
        ..provenance.clone()
    });
    let named = [&*origin.base_model, &*origin.task_type];
    save_as(output, &lora, base, named, provenance.as_ref())?;
    Ok(conversion)
}

/// The base in `model_dir` with HF's task type of an adapter over it: a language model keeps its
/// head, another model is read without one and has no task type.
fn open_base(
    model_dir: &Path,
    config: &ModelConfig,
    device: &Device,
) -> Result<(Base, &'static str), TrainError> {
    let head = head_of_files(model_dir, config)?;
    let loaded = load(model_dir, head, device, &LoadOptions::default())?;
    let base = loaded.model.base();
    Ok(match head {
        HeadKind::LanguageModel => (base.clone(), language_task(base)),
        _ => (base.without_head(), ""),
    })
}

/// An adapter that was written in another library's form, or read of it.
#[derive(Clone, Debug, Serialize)]
pub struct Exchanged {
    /// The method.
    pub method: &'static str,
    /// Values of the method.
    pub values: usize,
}

impl Exchanged {
    fn of(module: &AdapterModule) -> Self {
        let stored = module.parameters().stored();
        Self {
            method: module.config().definition().name,
            values: stored.map(|param| param.count()).sum(),
        }
    }
}

/// Writes an adapter of AdapterHub's over the base in `model_dir` as one of ours to `output`,
/// without its head.
///
/// # Errors
/// As [`adapterhub::read`]; if a file cannot be read or written.
pub fn adapter_of_adapterhub(
    model_dir: &Path,
    adapter: &Path,
    output: &Path,
) -> Result<Exchanged, TrainError> {
    let device = Device::flex();
    let config = ModelConfig::open(model_dir)?;
    let (base, task_type) = open_base(model_dir, &config, &device)?;
    let module = adapterhub::read(adapter, &base, config.family(), &device)?;
    let named = model_dir.display().to_string();
    save_as(output, &module, &base, [&named, task_type], None)?;
    Ok(Exchanged::of(&module))
}

/// Writes an adapter over `base`, which is of the model in `model_dir`, as AdapterHub's to
/// `output`, without its head.
///
/// # Errors
/// As [`adapterhub::write`].
pub fn adapter_to_adapterhub(
    model_dir: &Path,
    base: &Base,
    module: &AdapterModule,
    output: &Path,
) -> Result<Exchanged, TrainError> {
    let config = ModelConfig::open(model_dir)?;
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    // A dot in the name would end it in the keys of the file.
    let name = name.replace('.', "-");
    adapterhub::write(output, &name, module, base, config.family())?;
    Ok(Exchanged::of(module))
}

/// Writes the changes of the base in `model_dir` as LoRA to `output`.
///
/// # Errors
/// As [`to_lora`]; if `changes` has a tensor that the base lacks, or in another shape, or is a
/// delta of another base and `allow_other_base` is false; if a file cannot be read or written.
pub fn extract_lora(
    model_dir: &Path,
    changes: &Changes,
    rule: RankRule,
    output: &Path,
    allow_other_base: bool,
) -> Result<Conversion, TrainError> {
    let device = Device::flex();
    let source = Source::open(model_dir, changes)?;
    let (base, task_type) = open_base(model_dir, &source.config, &device)?;
    let files = Checkpoint::open(model_dir)?;
    source.check_names(&base, &files)?;
    if let (Changes::Delta(path), false) = (changes, allow_other_base) {
        check_base_of_delta(&source.checkpoint, path, files.content_hash())?;
    }
    let (lora, conversion) = to_lora(&base, &device, rule, &|name| source.change(&base, name))?;
    let named = model_dir.display().to_string();
    save_as(output, &lora, &base, [&named, task_type], None)?;
    Ok(conversion)
}

/// Writes what an adapter adds to the base in `model_dir` to the file `path`. A head that the base
/// lacks is no change of it: the file is refused rather than to leave it out.
///
/// # Errors
/// [`MethodError::NotMergeable`]; [`TrainError::Config`] if a head was trained with it that the
/// base lacks.
pub fn delta_of_adapter(
    model_dir: &Path,
    base: &Base,
    module: &AdapterModule,
    path: &Path,
) -> Result<Delta, TrainError> {
    let config = ModelConfig::open(model_dir)?;
    let checkpoint = Checkpoint::open(model_dir)?;
    let rules = config
        .family()
        .key_rules(head_of_files(model_dir, &config)?);
    let reader = TensorReader::new(&checkpoint, rules);
    write_delta(
        path,
        checkpoint.content_hash(),
        base.tensors().keys().chain(base.tied_head().iter()),
        &|name| {
            let Some(change) = change(module, base, name)? else {
                return Ok(None);
            };
            match reader.stored_name(name) {
                Some(stored) => {
                    let shape = base.tensor(name).map(|tensor| tensor.shape());
                    Ok(Some((stored, shape.unwrap_or_default(), change)))
                }
                None => Err(TrainError::Config(format!(
                    "`{name}` is not in the base's files, so that a delta cannot hold it: merge the \
                 adapter, or convert it to lora"
                ))),
            }
        },
    )
}

/// Writes the difference between the model in `tuned` and the base in `model_dir` to the file
/// `path`.
///
/// # Errors
/// If the model has a tensor that the base lacks, or in another shape.
pub fn delta_of_model(model_dir: &Path, tuned: &Path, path: &Path) -> Result<Delta, TrainError> {
    let source = Source::open(model_dir, &Changes::Model(tuned.to_owned()))?;
    let base = Checkpoint::open(model_dir)?;
    let names: Vec<String> = source.checkpoint.names().map(str::to_owned).collect();
    let reader = TensorReader::new(&base, source.rules());
    write_delta(path, base.content_hash(), names.iter(), &|name| {
        let view = source
            .checkpoint
            .tensor(name)
            .expect("the checkpoint lists it");
        let stored = reader.stored_name(name);
        let stored = stored.ok_or_else(|| source.lacks(name))?;
        if !view.is_float() {
            return Ok(None);
        }
        let before = base.to_f32(&stored, view.shape)?;
        let after = view.to_f32().expect("the type was checked");
        let change = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before);
        Ok(Some((stored, view.shape.to_vec(), change.collect())))
    })
}

/// Name, shape and values of a tensor of a delta.
type Change = (String, Vec<usize>, Vec<f32>);

/// Writes those tensors of a delta in which anything changes.
fn write_delta<'a>(
    path: &Path,
    base_sha256: &str,
    names: impl Iterator<Item = &'a String>,
    change: &dyn Fn(&str) -> Result<Option<Change>, TrainError>,
) -> Result<Delta, TrainError> {
    let mut tensors = Vec::new();
    let (mut values, mut squares) = (0, 0.0);
    for name in names {
        let Some((stored, shape, change)) = change(name)? else {
            continue;
        };
        if change.iter().any(|value| !value.is_finite()) {
            return Err(TrainError::NotFinite {
                what: format!("the change of `{name}`"),
            });
        }
        if change.iter().any(|value| *value != 0.0) {
            squares += change.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>();
            values += change.len();
            tensors.push((stored, shape, Values::F32(Box::new(|| change))));
        }
    }
    let count = tensors.len();
    let pending = prepare_values(path, tensors, &[DELTA, (BASE_SHA256, base_sha256)])
        .map_err(ModelError::from)?;
    pending.put_in_place()?;
    Ok(Delta {
        tensors: count,
        values,
        norm: squares.sqrt(),
    })
}

/// PEFT's task of a base with a language-model head; none for masked language models.
fn language_task(base: &Base) -> &'static str {
    let causal = base.layer_shapes().iter().any(|it| it.attention.causal);
    match (base.dimensions.encoder_layers > 0, causal) {
        (true, true) => "SEQ_2_SEQ_LM",
        (false, true) => "CAUSAL_LM",
        (_, false) => "",
    }
}

/// A file or directory that changes a base.
struct Source {
    checkpoint: Checkpoint,
    /// Of the base.
    config: ModelConfig,
    head: HeadKind,
    is_delta: bool,
}

impl Source {
    fn open(model_dir: &Path, changes: &Changes) -> Result<Self, TrainError> {
        let config = ModelConfig::open(model_dir)?;
        let head = head_of_files(model_dir, &config)?;
        let (checkpoint, is_delta) = match changes {
            Changes::Model(dir) => (Checkpoint::open(dir)?, false),
            Changes::Delta(path) => (Checkpoint::open_file(path)?, true),
        };
        Ok(Self {
            checkpoint,
            config,
            head,
            is_delta,
        })
    }

    fn rules(&self) -> epiphyte_models::keys::KeyRules {
        self.config.family().key_rules(self.head)
    }

    fn lacks(&self, name: &str) -> TrainError {
        TrainError::OfOtherBase {
            path: self.checkpoint.path().to_owned(),
            reason: format!(
                "the base has no tensor `{name}`; pass what was trained from this base"
            ),
        }
    }

    /// Checks that each tensor is one of the base's that LoRA can change, or the base's own.
    fn check_names(&self, base: &Base, files: &Checkpoint) -> Result<(), TrainError> {
        let mut reader = TensorReader::new(&self.checkpoint, self.rules());
        base.tensors().keys().for_each(|name| reader.skip(name));
        if let Some([copy, original]) = self.config.family().tied() {
            reader.is_tied(copy, original);
        }
        for extra in reader.extra() {
            let [own, changed] = [files, &self.checkpoint].map(|it| it.tensor(extra));
            match (own, changed) {
                (Some(own), Some(changed)) if !self.is_delta && own.bytes() == changed.bytes() => {}
                (Some(_), _) => {
                    return Err(TrainError::Config(format!(
                        "`{}` changes `{extra}`, which is of the head, and LoRA has no place for \
                         it: convert to a delta",
                        self.checkpoint.path().display()
                    )));
                }
                (None, _) => return Err(self.lacks(extra)),
            }
        }
        Ok(())
    }

    /// The change of a tensor of the base.
    fn change(&self, base: &Base, name: &str) -> Result<Option<Vec<f32>>, MethodError> {
        let reader = TensorReader::new(&self.checkpoint, self.rules());
        let (Some(tensor), Some(stored)) = (base.tensor(name), reader.stored_name(name)) else {
            return Ok(None);
        };
        let values = self.checkpoint.to_f32(&stored, &tensor.shape())?;
        if self.is_delta {
            return Ok(Some(values));
        }
        let before = tensor.to_vec();
        let change = values
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before);
        Ok(Some(change.collect()))
    }
}
