//! Classes of texts in memory: a model, an adapter and strings in, labels out.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_data::{Batches, Example, Order, Target};
use epiphyte_hub::{Hub, LogLines};
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::config::ProblemType;
use epiphyte_models::{HeadKind, LoadOptions, ModelConfig, head_outputs};

use crate::observer::Silent;
use crate::run::recorded_task;
use crate::scoring::evaluate::{argmax, predict};
use crate::tasks::class_order::{self, BaseClasses, TrainedHead};
use crate::tasks::{TaskKind, TaskSpec};
use crate::{LoadedAdapter, TrainError, open_adapter};

/// Texts that go through the model at once, before they are split into micro-batches.
const BATCH_SIZE: usize = 32;

/// A base model with a sequence-classification adapter, ready for texts.
///
/// ```no_run
/// use epiphyte_train::Classifier;
///
/// let classifier = Classifier::open("google-bert/bert-base-uncased", "adapter")?;
/// for prediction in classifier.predict(&["A fine film.", "Two hours too long."])? {
///     println!("{} {:.3}", prediction.label, prediction.probability);
/// }
/// # Ok::<(), epiphyte_train::TrainError>(())
/// ```
#[derive(Debug)]
pub struct Classifier {
    loaded_adapter: LoadedAdapter,
}

/// What a classifier says of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The name of the most likely class.
    pub label: String,
    /// The number of that class, from 0.
    pub class: usize,
    /// Its probability.
    pub probability: f32,
    /// The probability of each class: the softmax of the logits.
    pub probabilities: Vec<f32>,
    /// The logit of each class.
    pub logits: Vec<f32>,
}

impl Prediction {
    /// The prediction that the logits of a text make, with the names of their classes.
    ///
    /// # Panics
    /// If there is not exactly one name, and at least one, for each logit.
    pub fn new(logits: Vec<f32>, labels: &[String]) -> Self {
        assert!(logits.len() == labels.len() && !labels.is_empty());
        let class = argmax(&logits);
        let exponential = |&logit: &f32| f64::from(logit - logits[class]).exp();
        let sum: f64 = logits.iter().map(exponential).sum();
        let probability = |logit: &f32| (exponential(logit) / sum) as f32;
        let probabilities: Vec<f32> = logits.iter().map(probability).collect();
        Self {
            label: labels[class].clone(),
            class,
            probability: probabilities[class],
            probabilities,
            logits,
        }
    }
}

impl Classifier {
    /// Opens a base model with an adapter on it, each given as a directory or by its name on the
    /// hub.
    ///
    /// The names of the classes are those that the adapter records. HF PEFT's files record none;
    /// then they are those of the base's `config.json` if it names as many, else `LABEL_0`,
    /// `LABEL_1` and so on.
    ///
    /// # Errors
    /// If files are missing or malformed, or the adapter is for another base or another task.
    pub fn open(model: impl AsRef<Path>, adapter: impl AsRef<Path>) -> Result<Self, TrainError> {
        Self::load(model.as_ref(), adapter.as_ref(), &[])
    }

    /// As [`Classifier::open`], with these names of the classes, in the order of their numbers.
    ///
    /// # Errors
    /// As there; if the names are more or fewer than the classes, or not those that the adapter
    /// records.
    pub fn open_with_labels<L: Into<String>>(
        model: impl AsRef<Path>,
        adapter: impl AsRef<Path>,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<Self, TrainError> {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        Self::load(model.as_ref(), adapter.as_ref(), &labels)
    }

    fn load(model: &Path, adapter: &Path, given: &[String]) -> Result<Self, TrainError> {
        let (model, file) = locate(model, Some(adapter))?;
        let spec = file
            .as_ref()
            .map(|file| spec(file, &model, given))
            .transpose()?;
        let (device, options) = (Device::flex(), LoadOptions::default());
        let loaded_adapter = open_adapter(&model, file, spec, false, &device, &options)?;
        let mut classifier = Self::new(loaded_adapter)?;
        classifier.loaded_adapter.fit_max_length();
        Ok(classifier)
    }

    /// A classifier of a model that is in memory, on whichever device.
    ///
    /// # Errors
    /// [`TrainError::NoClasses`] if its task has no classes; [`TrainError::NoHead`] if there is
    /// neither an adapter nor a trained head.
    pub fn new(loaded_adapter: LoadedAdapter) -> Result<Self, TrainError> {
        let task_model = &loaded_adapter.task_model;
        let task = task_model.spec.task;
        // Other tasks have classes of something else than a text.
        let of_text = task.problem_type() == Some(ProblemType::SingleLabelClassification);
        if !of_text {
            return Err(TrainError::NoClasses { task });
        }
        if loaded_adapter.module.is_none() && !task_model.loaded.has_head {
            return Err(TrainError::NoHead { task });
        }
        Ok(Self { loaded_adapter })
    }

    /// The names of the classes, in the order of their numbers.
    pub fn labels(&self) -> &[String] {
        &self.loaded_adapter.task_model.spec.labels
    }

    /// What the model says of each text, in their order. A text longer than the adapter's
    /// `max_length` loses its end, with a warning in the log.
    ///
    /// # Errors
    /// If a text has no token, or the model's results are not finite.
    pub fn predict<T: AsRef<str>>(&self, texts: &[T]) -> Result<Vec<Prediction>, TrainError> {
        self.classify(texts.iter().map(|text| (text.as_ref(), None)))
    }

    /// What the model says of each pair of texts, in their order.
    ///
    /// # Errors
    /// As [`Classifier::predict`].
    pub fn predict_pairs<A: AsRef<str>, B: AsRef<str>>(
        &self,
        pairs: &[(A, B)],
    ) -> Result<Vec<Prediction>, TrainError> {
        let pairs = pairs.iter();
        self.classify(pairs.map(|(text, pair)| (text.as_ref(), Some(pair.as_ref()))))
    }

    fn classify<'t>(
        &self,
        texts: impl Iterator<Item = (&'t str, Option<&'t str>)>,
    ) -> Result<Vec<Prediction>, TrainError> {
        let predictions = outputs(&self.loaded_adapter, texts)?.into_iter();
        Ok(predictions
            .map(|logits| Prediction::new(logits, self.labels()))
            .collect())
    }
}

/// The directory of a model and the files of an adapter, each given as a directory or by its name
/// on the hub.
pub(crate) fn locate(
    model: &Path,
    adapter: Option<&Path>,
) -> Result<(PathBuf, Option<AdapterFile>), TrainError> {
    let hub = Hub::from_env();
    let mut lines = LogLines::default();
    let model = hub.resolve(model)?;
    let Some(adapter) = adapter else {
        return Ok((model, None));
    };
    let adapter = hub.resolve_adapter_with(adapter, &mut |event| lines.event(event))?;
    Ok((model, Some(AdapterFile::open(&adapter)?)))
}

/// What a model says of texts or pairs in memory, `[texts][outputs]`. A text longer than the task's
/// `max_length` loses its end, with a warning in the log.
pub(crate) fn outputs<'t>(
    loaded_adapter: &LoadedAdapter,
    texts: impl Iterator<Item = (&'t str, Option<&'t str>)>,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let task_model = &loaded_adapter.task_model;
    let max_length = task_model.spec.max_length;
    let (mut examples, mut truncated) = (Vec::new(), 0);
    for (text, pair) in texts {
        let encoding = task_model.tokenizer.encode(text, pair, Some(max_length))?;
        if encoding.ids.is_empty() {
            return Err(TrainError::EmptyText {
                number: examples.len() + 1,
            });
        }
        truncated += usize::from(encoding.removed > 0);
        examples.push(Example {
            ids: encoding.ids,
            type_ids: encoding.type_ids,
            target: Target::Absent,
        });
    }
    if truncated > 0 {
        tracing::warn!(texts = truncated, max_length, "texts that lost their end");
    }
    if examples.is_empty() {
        return Ok(Vec::new());
    }
    let batches = Batches::new(examples, BATCH_SIZE, Order::Sequential)?;
    predict(&loaded_adapter.evaluation(&batches), &mut Silent)
}

/// The task of an adapter, with the classes of its head.
fn spec(file: &AdapterFile, model: &Path, given: &[String]) -> Result<TaskSpec, TrainError> {
    let config = ModelConfig::open(model)?;
    let recorded = recorded_task(file)?;
    let one_class = HeadKind::Classification { labels: 1 };
    let outputs = head_outputs(file.tensors(), &config, one_class)?;
    let mut spec = recorded.clone().unwrap_or_else(|| {
        let task = file
            .task_type()
            .and_then(|it| TaskKind::from_peft(it, outputs));
        let task = task.unwrap_or_default();
        let positions = config.facts().max_position_embeddings;
        let longest = positions.unwrap_or(usize::MAX);
        TaskSpec::new(task, task.default_max_length().min(longest))
    });
    if spec.task.has_classes() {
        let base = BaseClasses::open(model, &config, spec.task)?;
        let head = TrainedHead {
            recorded: recorded.as_ref(),
            has_adapter: true,
            outputs: outputs.or(base.outputs),
            base: &base,
        };
        let classes = class_order::for_prediction(&head, given, None)?;
        (spec.labels, spec.labels_by_id) = (classes.names, classes.by_id);
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_the_softmax_of_the_logits_even_where_these_are_large() {
        let labels = ["no".to_owned(), "yes".to_owned()];
        let prediction = Prediction::new(vec![1000.0, 1000.0 + 3f32.ln()], &labels);
        assert_eq!((prediction.label.as_str(), prediction.class), ("yes", 1));
        // f32 has a step of 6e-5 at 1,000.
        assert!((prediction.probability - 0.75).abs() < 1e-4);
        assert!((prediction.probabilities[0] - 0.25).abs() < 1e-4);
    }
}
