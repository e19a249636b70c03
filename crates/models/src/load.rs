//! From a Hugging Face directory, or from nothing, to a model.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use epiphyte_ops::{Precision, Source as Values, random};

use crate::ModelError;
use crate::adapter::name_id;
use crate::base::Base;
use crate::builder::{Builder, Source};
use crate::checkpoint::Checkpoint;
use crate::families::ModelConfig;
use crate::heads::HeadKind;
use crate::keys::TensorReader;
use crate::model::Model;

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
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// In which type frozen matrices are kept.
    pub precision: Precision,
    /// From what a head that the checkpoint does not have starts.
    pub seed: u64,
    /// The base's dropout, in place of what its configuration says.
    pub base_dropout: Option<f64>,
}

/// Reads the model of a Hugging Face directory, with this head.
///
/// A head that the checkpoint does not have starts at random from `seed`, as transformers starts
/// it: normal with the configuration's `initializer_range`, bias zero.
///
/// # Errors
/// If a file is missing or malformed, or tensors are missing, extra, or of the wrong shape or type;
/// as [`Precision::check`].
pub fn load(
    dir: &Path,
    head: HeadKind,
    device: &Device,
    options: &LoadOptions,
) -> Result<Loaded, ModelError> {
    read(dir, head, device, options, None)
}

impl Loaded {
    /// The same directory with another head. All tensors except the head's are shared with this
    /// one, so that it costs next to no memory.
    ///
    /// # Errors
    /// As [`load`].
    pub fn with_head(
        &self,
        dir: &Path,
        head: HeadKind,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        read(dir, head, device, options, Some(self.model.base()))
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
    let mut config = ModelConfig::open(dir)?;
    if let Some(p) = options.base_dropout {
        config = config.with_dropout(p);
    }
    let family = config.family();
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let mut source = FromCheckpoint {
        checkpoint: checkpoint.clone(),
        reader: TensorReader::new(&checkpoint, family.key_rules(head)),
        task_head: family.task_head(head),
        initializer_range: config.facts().initializer_range,
        seed: options.seed,
        has_head: true,
    };
    let tied = match family.tied() {
        Some([copy, original]) => source.reader.is_tied(copy, original),
        None => false,
    };
    let prefix = family.key_rules(head).base_prefix;
    let builder = Builder::new(&mut source, device, options.precision).sharing(shared, prefix);
    let model = family.build(head, tied, builder)?;
    let has_head = source.has_head;
    if shared.is_none() {
        source.reader.finish()?;
    }
    let content_hash = checkpoint.content_hash().to_owned();
    Ok(Loaded {
        model,
        config,
        content_hash,
        has_head,
    })
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

/// A checkpoint, with a random head where it has none.
struct FromCheckpoint<'c> {
    checkpoint: Arc<Checkpoint>,
    reader: TensorReader<'c>,
    task_head: Option<&'static str>,
    initializer_range: f64,
    seed: u64,
    has_head: bool,
}

impl Source for FromCheckpoint<'_> {
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError> {
        let is_head = self
            .task_head
            .and_then(|head| name.strip_prefix(head))
            .is_some_and(|rest| rest.starts_with('.'));
        if is_head && !self.reader.contains(name) {
            self.has_head = false;
            return Ok(initial(name, shape, self.initializer_range, self.seed));
        }
        let stored = self.reader.claim(name, shape)?;
        let (checkpoint, shape) = (self.checkpoint.clone(), shape.to_vec());
        Ok(Arc::new(move || {
            let values = checkpoint.to_f32(&stored, &shape);
            values.expect("shape and type were checked when the tensor was claimed")
        }))
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
    let count = shape.iter().product();
    match (shape.len(), name.ends_with(".bias")) {
        (1, true) => Arc::new(move || vec![0.0; count]),
        (1, false) => Arc::new(move || vec![1.0; count]),
        _ => {
            let key = seed ^ name_id(name);
            Arc::new(move || random::normal(key, count, std))
        }
    }
}
