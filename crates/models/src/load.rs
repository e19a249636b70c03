//! From a Hugging Face directory, or from nothing, to a model.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use epiphyte_ops::{Precision, Source as Values, random};

use crate::ModelError;
use crate::base::{Base, Builder, Source};
use crate::bert::Bert;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::keys::{KeyRules, TensorReader};
use crate::llama::Llama;
use crate::model::{Task, Transformer};
use crate::seam::name_id;

/// A model read from a directory.
#[derive(Debug)]
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Transformer>,
    /// Its `config.json`.
    pub config: ModelConfig,
    /// SHA-256 of the checkpoint's tensors, in hexadecimal.
    pub content_hash: String,
    /// Whether the checkpoint brought the task's head, instead of its starting at random.
    pub has_head: bool,
}

/// What may be said about loading beside the directory and the task.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// In which type frozen matrices are kept.
    pub precision: Precision,
    /// From what a head that the checkpoint does not have starts.
    pub seed: u64,
    /// The base's dropout, in place of what its configuration says.
    pub base_dropout: Option<f64>,
}

/// Reads the model of a Hugging Face directory for a task.
///
/// A head that the checkpoint does not have starts at random from `seed`, as transformers starts it:
/// normal with the configuration's `initializer_range`, bias zero.
///
/// # Errors
/// If a file is missing or malformed, or tensors are missing, extra, or of the wrong shape or type; as
/// [`Precision::check`].
pub fn load(
    dir: &Path,
    task: Task,
    device: &Device,
    options: &LoadOptions,
) -> Result<Loaded, ModelError> {
    read(dir, task, device, options, None)
}

impl Loaded {
    /// The same directory for another task, or with another head: all tensors but the head's are shared with this
    /// one, so that it costs next to no memory.
    ///
    /// # Errors
    /// As [`load`].
    pub fn for_task(
        &self,
        dir: &Path,
        task: Task,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self, ModelError> {
        read(dir, task, device, options, Some(self.model.base()))
    }
}

/// Reads a model, taking from `shared` what that has already.
fn read(
    dir: &Path,
    task: Task,
    device: &Device,
    options: &LoadOptions,
    shared: Option<&Base>,
) -> Result<Loaded, ModelError> {
    options.precision.check(device)?;
    let mut config = ModelConfig::open(dir)?;
    if let Some(p) = options.base_dropout {
        set_dropout(&mut config, p);
    }
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let mut source = FromCheckpoint {
        checkpoint: checkpoint.clone(),
        reader: TensorReader::new(&checkpoint, rules(&config, task)),
        initializer_range: initializer_range(&config),
        seed: options.seed,
        has_head: true,
    };
    let tied = match &config {
        ModelConfig::Llama(llama) if llama.tie_word_embeddings => source
            .reader
            .is_tied("lm_head.weight", "model.embed_tokens.weight"),
        _ => false,
    };
    let model = build(
        &config,
        task,
        tied,
        Builder::new(&mut source, device, options.precision).sharing(shared),
    )?;
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
/// If the configuration and the task do not fit; as [`Precision::check`].
pub fn random_model(
    config: &ModelConfig,
    task: Task,
    device: &Device,
    precision: Precision,
    seed: u64,
) -> Result<Box<dyn Transformer>, ModelError> {
    precision.check(device)?;
    let mut source = Random {
        initializer_range: initializer_range(config),
        seed,
    };
    build(
        config,
        task,
        true,
        Builder::new(&mut source, device, precision),
    )
}

fn build(
    config: &ModelConfig,
    task: Task,
    tied: bool,
    builder: Builder<'_>,
) -> Result<Box<dyn Transformer>, ModelError> {
    Ok(match config {
        ModelConfig::Bert(config) => Box::new(Bert::build(config, task, builder)?),
        ModelConfig::Llama(config) => Box::new(Llama::build(config, task, tied, builder)?),
    })
}

/// What checkpoints of a family may hold beyond what the model for `task` wants.
fn rules(config: &ModelConfig, task: Task) -> KeyRules {
    match (config, task.outputs()) {
        (ModelConfig::Bert(_), _) => KeyRules {
            base_prefix: "bert.",
            ignorable: &[
                "embeddings.position_ids",
                "cls.predictions.",
                "cls.seq_relationship.",
            ],
        },
        (ModelConfig::Llama(_), Some(_)) => KeyRules {
            base_prefix: "model.",
            ignorable: &["rotary_emb.inv_freq", "lm_head.weight"],
        },
        (ModelConfig::Llama(_), None) => KeyRules {
            base_prefix: "model.",
            ignorable: &["rotary_emb.inv_freq", "score.weight"],
        },
    }
}

fn set_dropout(config: &mut ModelConfig, p: f64) {
    match config {
        ModelConfig::Bert(config) => {
            config.hidden_dropout_prob = p;
            config.attention_probs_dropout_prob = p;
            config.classifier_dropout = None;
        }
        ModelConfig::Llama(config) => config.attention_dropout = p,
    }
}

fn initializer_range(config: &ModelConfig) -> f64 {
    match config {
        ModelConfig::Bert(config) => config.initializer_range,
        ModelConfig::Llama(config) => config.initializer_range,
    }
}

/// A checkpoint, with a random head where it has none.
struct FromCheckpoint<'c> {
    checkpoint: Arc<Checkpoint>,
    reader: TensorReader<'c>,
    initializer_range: f64,
    seed: u64,
    has_head: bool,
}

impl Source for FromCheckpoint<'_> {
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError> {
        let is_head = ["classifier.", "score."]
            .iter()
            .any(|head| name.starts_with(head));
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
}

/// Nothing but a seed.
struct Random {
    initializer_range: f64,
    seed: u64,
}

impl Source for Random {
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
