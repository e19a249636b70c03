//! Embeddings of texts in memory: a model and strings in, vectors out.

use std::path::Path;

use burn::tensor::Device;
use epiphyte_models::{LoadOptions, ModelConfig};

use crate::classifier::{locate, outputs};
use crate::run::recorded_task;
use crate::tasks::{TaskKind, TaskSpec};
use crate::{LoadedAdapter, TrainError, open_adapter};

/// A model that makes an embedding of a text, with an adapter on it or without.
///
/// ```no_run
/// use epiphyte_train::Embedder;
///
/// let embedder = Embedder::open("sentence-transformers/all-MiniLM-L6-v2")?;
/// let vectors = embedder.embed(&["A fine film.", "Two hours too long."])?;
/// assert_eq!(vectors.len(), 2);
/// # Ok::<(), epiphyte_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct Embedder {
    loaded_adapter: LoadedAdapter,
}

impl Embedder {
    /// Opens a model, given as a directory or by its name on the hub. How embeddings are pooled,
    /// and whether they are normalized, is what its files of sentence-transformers say; the mean of
    /// all tokens without these.
    ///
    /// # Errors
    /// If files are missing or malformed.
    pub fn open(model: impl AsRef<Path>) -> Result<Self, TrainError> {
        Self::load(model.as_ref(), None)
    }

    /// As [`Embedder::open`], with an adapter, which may record how embeddings are made.
    ///
    /// # Errors
    /// As there; if the adapter is for another base or another task.
    pub fn open_with_adapter(
        model: impl AsRef<Path>,
        adapter: impl AsRef<Path>,
    ) -> Result<Self, TrainError> {
        Self::load(model.as_ref(), Some(adapter.as_ref()))
    }

    fn load(model: &Path, adapter: Option<&Path>) -> Result<Self, TrainError> {
        let (model, file) = locate(model, adapter)?;
        let recorded = file.as_ref().map_or(Ok(None), recorded_task)?;
        let spec = match recorded {
            Some(spec) => spec,
            None => {
                let task = TaskKind::embedding();
                let mut spec = TaskSpec::new(task, task.default_max_length());
                task.of_directory(&mut spec, &model)?;
                let positions = ModelConfig::open(&model)?.facts().max_position_embeddings;
                spec.max_length = spec.max_length.min(positions.unwrap_or(usize::MAX));
                spec
            }
        };
        let (device, options) = (Device::flex(), LoadOptions::default());
        let loaded_adapter = open_adapter(&model, file, Some(spec), false, &device, &options)?;
        let mut embedder = Self::new(loaded_adapter)?;
        embedder.loaded_adapter.fit_max_length();
        Ok(embedder)
    }

    /// An embedder of a model that is in memory, on whichever device.
    ///
    /// # Errors
    /// [`TrainError::NoEmbeddings`] if its task is another.
    pub fn new(loaded_adapter: LoadedAdapter) -> Result<Self, TrainError> {
        let task_model = &loaded_adapter.task_model;
        match task_model.loaded.model.embedding_head() {
            Some(_) => Ok(Self { loaded_adapter }),
            None => Err(TrainError::NoEmbeddings {
                task: task_model.spec.task,
            }),
        }
    }

    /// The embedding of each text, in their order. A text longer than the model's limit loses its
    /// end, with a warning in the log.
    ///
    /// # Errors
    /// If a text has no token, or the model's results are not finite.
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Vec<f32>>, TrainError> {
        let texts = texts.iter().map(|text| (text.as_ref(), None));
        outputs(&self.loaded_adapter, texts)
    }
}
