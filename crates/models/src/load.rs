//! From a Hugging Face directory, a GGUF file, or from nothing, to a model.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use epiphyte_ops::{Precision, Quantization, Source as Values, random};

use crate::ModelError;
use crate::adapter::name_id;
use crate::base::{Base, BaseTensor};
use crate::builder::{Builder, Source};
use crate::checkpoint::Checkpoint;
use crate::config::MOST_LABELS;
use crate::families::ModelConfig;
use crate::heads::HeadKind;
use crate::keys::{TensorReader, is_below};
use crate::model::Model;
use crate::quantized::{self, Packing, Stored};

/// A model read from a directory.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Model,
    /// Its `config.json`.
    pub config: ModelConfig,
    /// SHA-256 of the checkpoint's tensors, in hexadecimal.
    pub content_hash: String,
    /// Whether the checkpoint brought the task's head, instead of its starting at random.
    pub has_head: bool,
    /// What of the checkpoint was left out, and what it lacks and starts at random: a sentence
    /// each, for whoever trains.
    pub notes: Vec<String>,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// In which type frozen matrices are kept.
    pub precision: Precision,
    /// In which format the linear layers' weights are quantized, if they are.
    pub quantization: Option<Quantization>,
    /// From what a head that the checkpoint does not have starts.
    pub seed: u64,
    /// The base's dropout, in place of what its configuration says.
    pub base_dropout: Option<f64>,
    /// Whether the head starts at random although the checkpoint has one of the same size: its
    /// outputs are other classes.
    pub new_head: bool,
}

/// Reads the model of a Hugging Face directory or of a GGUF file, with this head.
///
/// A head that the checkpoint does not have, or has for another task or another number of classes,
/// starts at random from `seed`, as transformers starts it: normal with the configuration's
/// `initializer_range`, bias zero. So do modules that checkpoints of other tasks lack, such as
/// BERT's pooler; they are trained and saved with the head. Heads of other tasks are left out.
///
/// # Errors
/// If a file is missing or malformed; if tensors of the base are missing, extra, of the wrong shape
/// or type, or not finite; as [`Precision::check`].
pub fn load(
    dir: &Path,
    head: HeadKind,
    device: &Device,
    options: &LoadOptions,
) -> Result<Loaded, ModelError> {
    read(dir, head, device, options, None)
}

/// Reads the model of a directory from which `base` was read before, with this head. All tensors
/// except the head's are shared, so that it costs next to no memory.
///
/// # Errors
/// As [`load`].
pub fn load_sharing(
    base: &Base,
    dir: &Path,
    head: HeadKind,
    device: &Device,
    options: &LoadOptions,
) -> Result<Loaded, ModelError> {
    read(dir, head, device, options, Some(base))
}

/// Checks that a tensor of the checkpoint has the hidden size, before anything of that size is
/// made.
fn check_hidden_size(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<(), ModelError> {
    let hidden_size = config.facts().hidden_size;
    let mut tensors = checkpoint
        .names()
        .filter_map(|name| checkpoint.tensor(name));
    match tensors.any(|tensor| tensor.shape.contains(&hidden_size)) {
        true => Ok(()),
        false => Err(ModelError::HiddenSize {
            path: checkpoint.path().to_owned(),
            hidden_size,
        }),
    }
}

/// Reads a model, taking from `shared` what that has already.
fn read(
    dir: &Path,
    head: HeadKind,
    device: &Device,
    options: &LoadOptions,
    shared: Option<&Base>,
) -> Result<Loaded, ModelError> {
    options.precision.check(device)?;
    if let Some(quantization) = options.quantization {
        quantization.check(device)?;
    }
    let mut config = ModelConfig::open(dir)?;
    if let Some(p) = options.base_dropout {
        config = config.with_dropout(p);
    }
    let family = config.family();
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    check_hidden_size(&checkpoint, &config)?;
    let rules = family.key_rules(head);
    let mut source = FromCheckpoint {
        checkpoint: checkpoint.clone(),
        reader: TensorReader::new(&checkpoint, rules),
        packing: config.packing(),
        quantization: options.quantization,
        task_head: family.task_head(head),
        outputs: head.outputs(),
        new_head: options.new_head || config.is_for_another_task(head),
        optional_modules: match (head, family.masked_lm()) {
            (HeadKind::MaskedLm, Some(names)) => names.modules,
            _ => family.optional_modules(),
        },
        initializer_range: config.facts().initializer_range,
        seed: options.seed,
        replaced: Vec::new(),
        absent: Vec::new(),
    };
    if let [words, tied @ ..] = family.tied_embeddings() {
        source.reader.stand_in(words, tied);
    }
    let masked_lm = family.masked_lm().filter(|_| head == HeadKind::MaskedLm);
    let masked_lm = masked_lm.map(|names| format!("{}.weight", names.decoder));
    let tied = match (masked_lm, family.tied_embeddings()) {
        (Some(decoder), [words, ..]) => source.reader.is_tied(&decoder, words),
        (Some(_), []) => false,
        (None, _) => family
            .tied()
            .is_some_and(|[copy, original]| source.reader.is_tied(copy, original)),
    };
    let builder = Builder::new(&mut source, device, options.precision)
        .quantized(options.quantization)
        .sharing(shared, rules);
    let mut model = family.build(head, tied, builder)?;
    let quantized = || {
        model
            .base()
            .tensors()
            .values()
            .filter_map(BaseTensor::quantization)
    };
    if let Some(asked) = options.quantization
        && let Some(found) = quantized().find(|found| *found != asked)
    {
        return Err(ModelError::OtherQuantization {
            path: checkpoint.path().to_owned(),
            asked,
            found,
        });
    }
    let has_head = source.replaced.is_empty() && source.absent.is_empty();
    model.set_has_head(has_head);
    let mut notes = source.notes(dir);
    let used = source.reader.used();
    let non_finite = checkpoint.non_finite().iter();
    if let Some(tensor) = non_finite.into_iter().find(|name| used.contains(*name)) {
        return Err(ModelError::NotFinite {
            path: checkpoint.path().to_owned(),
            tensor: tensor.clone(),
        });
    }
    if shared.is_none() {
        for module in family.optional_modules() {
            source.reader.pass_over(module);
        }
        let left_out = source.reader.finish(source.task_head)?;
        if !left_out.is_empty() {
            let names = quoted(&left_out);
            notes.push(format!(
                "`{}`: left out {names}, of another task's head",
                dir.display()
            ));
        }
    }
    let content_hash = checkpoint.content_hash().to_owned();
    Ok(Loaded {
        model,
        config,
        content_hash,
        has_head,
        notes,
    })
}

/// The number of outputs of a task's head in a checkpoint, or in an adapter's file; none if it has
/// no head at the path of `head`. Only the header is read.
///
/// # Errors
/// [`ModelError::HeadShape`].
pub fn head_outputs(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    head: HeadKind,
) -> Result<Option<usize>, ModelError> {
    let Some(head) = config.family().task_head(head) else {
        return Ok(None);
    };
    // A head of two layers ends with `out_proj`. PEFT's files put a path in front of the names.
    let outputs = [format!("{head}.weight"), format!("{head}.out_proj.weight")];
    let is_output = |name: &&str| {
        let mut outputs = outputs.iter();
        outputs.any(|it| it == name || name.ends_with(&format!(".{it}")))
    };
    let Some(name) = checkpoint.names().find(is_output) else {
        return Ok(None);
    };
    let hidden_size = config.facts().hidden_size;
    let shape = checkpoint
        .tensor(name)
        .map(|it| it.shape)
        .unwrap_or_default();
    match *shape {
        [outputs, size] if (1..=MOST_LABELS).contains(&outputs) && size == hidden_size => {
            Ok(Some(outputs))
        }
        _ => Err(ModelError::HeadShape {
            path: checkpoint.path().to_owned(),
            tensor: name.to_owned(),
            found: shape.to_owned(),
            hidden_size,
        }),
    }
}

/// A model of this configuration with random weights: normal with the configuration's
/// `initializer_range`, biases zero, norms one, as transformers starts a model.
///
/// # Errors
/// If the family has no such head; as [`Precision::check`].
pub fn random_model(
    config: &ModelConfig,
    head: HeadKind,
    device: &Device,
    precision: Precision,
    seed: u64,
) -> Result<Model, ModelError> {
    precision.check(device)?;
    let mut source = RandomSource {
        initializer_range: config.facts().initializer_range,
        seed,
    };
    let builder = Builder::new(&mut source, device, precision);
    config.family().build(head, true, builder)
}

/// A checkpoint, with random values for the head and other modules where it has none.
struct FromCheckpoint<'c> {
    checkpoint: Arc<Checkpoint>,
    reader: TensorReader<'c>,
    packing: Option<Packing>,
    quantization: Option<Quantization>,
    task_head: Option<&'static str>,
    outputs: Option<usize>,
    new_head: bool,
    optional_modules: &'static [&'static str],
    initializer_range: f64,
    seed: u64,
    /// Tensors of the head that the checkpoint has for other classes.
    replaced: Vec<String>,
    /// Tensors of the head and of optional modules that the checkpoint lacks.
    absent: Vec<String>,
}

impl FromCheckpoint<'_> {
    /// Whether the head's tensor in the checkpoint is not the one that is wanted: it has another
    /// shape, or its rows are the outputs for other classes.
    fn is_of_other_classes(&self, name: &str, shape: &[usize]) -> bool {
        let has_outputs = shape.first() == self.outputs.as_ref();
        let stored = self.reader.tensor(name);
        stored.is_some_and(|it| it.shape != shape || self.new_head && has_outputs)
    }

    /// What starts at random, a sentence each; a head that the checkpoint lacks needs none.
    fn notes(&self, dir: &Path) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.replaced.is_empty() {
            notes.push(format!(
                "`{}`: its head is for another task or other classes; {} start from the seed",
                dir.display(),
                quoted(&self.replaced)
            ));
        }
        let is_missing = |module: &&&str| self.absent.iter().any(|it| is_below(Some(module), it));
        for module in self.optional_modules.iter().filter(is_missing) {
            notes.push(format!(
                "`{}` has no `{module}`: it starts from the seed, and is trained and saved with the \
                 head",
                dir.display()
            ));
        }
        notes
    }
}

/// Names in backquotes, separated by commas.
fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

impl Source for FromCheckpoint<'_> {
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError> {
        let is_head = is_below(self.task_head, name);
        let mut optional = self.optional_modules.iter();
        let may_be_absent = is_head || optional.any(|module| is_below(Some(module), name));
        let starts_new = match self.reader.contains(name) {
            true if is_head && self.is_of_other_classes(name, shape) => {
                self.reader.skip(name);
                self.replaced.push(name.to_owned());
                true
            }
            false if may_be_absent => {
                self.absent.push(name.to_owned());
                true
            }
            _ => false,
        };
        if starts_new {
            return Ok(initial(name, shape, self.initializer_range, self.seed));
        }
        let stored = self.reader.claim(name, shape)?;
        let checkpoint = self.checkpoint.clone();
        Ok(Arc::new(move |range| {
            let values = checkpoint.part_as_f32(&stored, range);
            values.expect("shape and type were checked when the tensor was claimed")
        }))
    }

    fn quantized(&mut self, name: &str, shape: [usize; 2]) -> Result<Option<Stored>, ModelError> {
        match is_below(self.task_head, name) {
            true => Ok(None),
            false => quantized::open(
                &self.checkpoint,
                &mut self.reader,
                self.packing,
                self.quantization,
                name,
                shape,
            ),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.reader.contains(name)
    }
}

/// An initializer: every tensor follows from its name and a seed.
#[derive(Clone, Copy, Debug)]
pub struct RandomSource {
    /// Standard deviation of matrices.
    pub initializer_range: f64,
    /// The seed.
    pub seed: u64,
}

impl Source for RandomSource {
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError> {
        Ok(initial(name, shape, self.initializer_range, self.seed))
    }
}

/// Matrices normal, biases zero, scales of norms one.
fn initial(name: &str, shape: &[usize], std: f64, seed: u64) -> Arc<Values> {
    match (shape.len(), name.ends_with(".bias")) {
        (1, true) => Arc::new(|range| vec![0.0; range.len()]),
        (1, false) => Arc::new(|range| vec![1.0; range.len()]),
        _ => {
            let key = seed ^ name_id(name);
            Arc::new(move |range| random::normal_at(key, range, std))
        }
    }
}
