//! Trigger words for a cloze template, found with gradients.
//!
//! Shin, Razeghi, Logan, Wallace, Singh, "AutoPrompt: Eliciting Knowledge from Language Models with
//! Automatically Generated Prompts", EMNLP 2020, arXiv 2010.15980, section 2.2, equation 1.
//!
//! A template such as `{sentence} {trigger} {trigger} {mask}.` asks for a word for each
//! `{trigger}`. Each step takes one of them in turn and a batch of examples. With g the gradient of
//! the batch's loss with respect to the trigger's embedding, the candidates are the k words w with
//! the largest `-e_w · g`, to first order those with which the loss falls most. Of these, the one
//! with the least loss on another batch takes the word's place, if that loss is less than with the
//! present word.
//!
//! The paper's triggers are any tokens; here they are words of letters that are one token each, so
//! that the template can be written down and read again. All start as the same word.

use burn::tensor::Tensor;
use epiphyte_data::{Batch, Batches, Order, Table};
use epiphyte_models::{Adapter, Embedded, ForwardContext, Hook, Identity};
use epiphyte_ops::{add, rows};
use serde::Serialize;
use tracing::subscriber::{NoSubscriber, with_default};

use crate::TrainError;
use crate::label_words::word_of;
use crate::scoring::evaluate::value;
use crate::scoring::model_input::{ModelInput, check_examples, targets};
use crate::tasks::TaskModel;

/// What stands for a word in a template.
pub const TRIGGER: &str = "{trigger}";

/// How trigger words are searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TriggerSearch {
    /// Steps, each of which may change one word.
    pub steps: usize,
    /// Words that are tried in a step: 10 to 100 in the paper.
    pub candidates: usize,
    /// Examples in a batch.
    pub batch_size: usize,
    /// What batches follow from.
    pub seed: u64,
}

/// A step of the search.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TriggerStep {
    /// Which trigger, from 0.
    pub trigger: usize,
    /// Its word after the step.
    pub word: String,
    /// The loss of the step's second batch with the word before.
    pub loss_before: f64,
    /// The same with the word after.
    pub loss: f64,
}

/// A template with words in the places of its triggers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TriggerWords {
    /// The template.
    pub prompt_template: String,
    /// The mean loss of all examples with the words at the start.
    pub loss_before: f64,
    /// The same with the words found.
    pub loss: f64,
}

/// Searches words for the triggers of a cloze task's template, on the examples of `table`; `see`
/// hears of each step.
///
/// # Errors
/// [`TrainError::Config`] if the template has no trigger, or its triggers are no tokens of their
/// own; if an example cannot be made or does not fit the model.
pub fn find_trigger_words(
    task: &TaskModel,
    table: &Table,
    search: TriggerSearch,
    see: &mut dyn FnMut(&TriggerStep),
) -> Result<TriggerWords, TrainError> {
    let template = task.spec.columns.prompt_template.clone();
    let template = template.unwrap_or_default();
    let count = template.matches(TRIGGER).count();
    if count == 0 {
        return Err(TrainError::Config(format!(
            "the prompt template has no `{TRIGGER}`: put one where a word is to be found"
        )));
    }
    let triggers = Triggers {
        task,
        table,
        template,
        search,
        vocabulary: vocabulary(task)?,
    };
    let mut words = vec![triggers.start(); count];
    // The examples are made anew in each step, and what is odd about them is said here, once.
    triggers.encode(&words)?;
    let loss_before = triggers.mean_loss(&words)?;
    for step in 0..search.steps {
        let taken = triggers.step(step, &mut words)?;
        see(&taken);
    }
    Ok(TriggerWords {
        loss: triggers.mean_loss(&words)?,
        prompt_template: triggers.with(&words),
        loss_before,
    })
}

/// The words that a trigger may be, with their tokens.
fn vocabulary(task: &TaskModel) -> Result<Vec<(u32, String)>, TrainError> {
    let size = task.loaded.model.base().dimensions.vocabulary as u32;
    let word = |id| Some((id, word_of(id, true, &task.tokenizer)?));
    let words: Vec<_> = (0..size).filter_map(word).collect();
    match words.len() {
        0 | 1 => Err(TrainError::Config(
            "the vocabulary has no two words of letters that are one token each".to_owned(),
        )),
        _ => Ok(words),
    }
}

/// The search of one template's triggers.
struct Triggers<'a> {
    task: &'a TaskModel,
    table: &'a Table,
    template: String,
    search: TriggerSearch,
    vocabulary: Vec<(u32, String)>,
}

impl Triggers<'_> {
    /// The word at the start: `the` where the vocabulary has it.
    fn start(&self) -> String {
        let the = self.vocabulary.iter().find(|(_, word)| word == "the");
        the.unwrap_or(&self.vocabulary[0]).1.clone()
    }

    /// The template with these words.
    fn with(&self, words: &[String]) -> String {
        let put = |template: String, word: &String| template.replacen(TRIGGER, word, 1);
        words.iter().fold(self.template.clone(), put)
    }

    /// All examples of the template with these words, without the warnings that
    /// [`Triggers::encode`] gives.
    fn batches(&self, words: &[String]) -> Result<Batches, TrainError> {
        with_default(NoSubscriber::default(), || self.encode(words))
    }

    /// All examples of the template with these words.
    fn encode(&self, words: &[String]) -> Result<Batches, TrainError> {
        let mut spec = self.task.spec.clone();
        spec.columns.prompt_template = Some(self.with(words));
        let examples = spec.examples(self.table, &self.task.tokenizer, true)?;
        check_examples(&self.task.loaded.model, &Identity, &examples)?;
        let order = Order::Shuffled {
            seed: self.search.seed,
        };
        Ok(Batches::of(examples, self.search.batch_size, order)?)
    }

    /// A batch of this number, with these words; after the last comes the first.
    fn batch(&self, words: &[String], number: usize) -> Result<Batch, TrainError> {
        let batches = self.batches(words)?;
        Ok(batches.epoch(0).batch(number % batches.per_epoch())?)
    }

    /// The mean loss of all examples.
    fn mean_loss(&self, words: &[String]) -> Result<f64, TrainError> {
        let batches = self.batches(words)?;
        let (mut sum, mut count) = (0.0, 0);
        for batch in batches.epoch(0).batches_from(0) {
            let batch = batch?;
            sum += self.loss(&batch)? * batch.examples() as f64;
            count += batch.examples();
        }
        Ok(sum / count.max(1) as f64)
    }

    fn loss(&self, batch: &Batch) -> Result<f64, TrainError> {
        let loss = f64::from(value(self.loss_with(batch, &Identity)?));
        match loss.is_finite() {
            true => Ok(loss),
            false => Err(TrainError::NotFinite {
                what: "the loss".to_owned(),
            }),
        }
    }

    fn loss_with(&self, batch: &Batch, adapter: &dyn Adapter) -> Result<Tensor<1>, TrainError> {
        let model = &self.task.loaded.model;
        let input = ModelInput::new(model, batch);
        let loss =
            targets(batch).and_then(|targets| model.loss(&input.tokens(), targets, 0.0, adapter));
        let no_classes = || TrainError::Config("the examples have no classes".to_owned());
        Ok(loss.ok_or_else(no_classes)?.mean)
    }

    /// Changes the word of one trigger, if a better one is found.
    fn step(&self, step: usize, words: &mut [String]) -> Result<TriggerStep, TrainError> {
        let trigger = step % words.len();
        let candidates = self.candidates(2 * step, trigger, words)?;
        let second = 2 * step + 1;
        let loss_before = self.loss(&self.batch(words, second)?)?;
        let (mut loss, mut best) = (loss_before, words[trigger].clone());
        let mut tried = words.to_vec();
        for word in candidates {
            tried[trigger].clone_from(&word);
            let found = self.loss(&self.batch(&tried, second)?)?;
            if found < loss {
                (loss, best) = (found, word);
            }
        }
        words[trigger].clone_from(&best);
        Ok(TriggerStep {
            trigger,
            word: best,
            loss_before,
            loss,
        })
    }

    /// The words with which the loss of a batch should fall most, but for the present one.
    fn candidates(
        &self,
        number: usize,
        trigger: usize,
        words: &[String],
    ) -> Result<Vec<String>, TrainError> {
        let batch = self.batch(words, number)?;
        let at = self.rows_of(trigger, words, &batch, number)?;
        let table = self.task.loaded.model.base().word_embedding_table();
        let gradient = self.gradient(&batch, at, table.shape()[1])?;
        let size = gradient.dims()[0];
        let falls = table.to_tensor().matmul(-gradient.reshape([size, 1]));
        let falls = falls.into_data().try_into_vec_as::<f32>();
        let falls = falls.expect("embeddings are f32 and on a device that can be read");
        let mut order: Vec<&(u32, String)> = self.vocabulary.iter().collect();
        order.sort_by(|one, other| falls[other.0 as usize].total_cmp(&falls[one.0 as usize]));
        let others = order.into_iter().map(|(_, word)| word);
        let others = others.filter(|word| **word != words[trigger]);
        Ok(others.take(self.search.candidates).cloned().collect())
    }

    /// The rows of a batch's tokens that are a trigger's: where another word changes them.
    fn rows_of(
        &self,
        trigger: usize,
        words: &[String],
        batch: &Batch,
        number: usize,
    ) -> Result<Vec<usize>, TrainError> {
        let mut other = words.to_vec();
        let is_other = |(_, word): &&(u32, String)| *word != words[trigger];
        let another = self.vocabulary.iter().find(is_other);
        other[trigger].clone_from(&another.expect("there are two words").1);
        let changed = self.batch(&other, number)?;
        let pairs = batch.ids.iter().zip(&changed.ids).enumerate();
        let differ = pairs.filter(|(_, (one, other))| one != other);
        let found: Vec<usize> = differ.map(|(row, _)| row).collect();
        let one_each = batch.boundaries == changed.boundaries
            && found.len() == batch.boundaries.len() - 1
            && found
                .iter()
                .zip(batch.boundaries.windows(2))
                .all(|(row, ends)| (ends[0]..ends[1]).contains(row));
        match one_each {
            true => Ok(found),
            false => Err(TrainError::Config(format!(
                "a word in the place of `{TRIGGER}` is not one token there: put blanks around it, and \
                 shorten what stands before it, or raise max_length"
            ))),
        }
    }

    /// The gradient of a batch's loss with respect to the embedding of these rows together.
    fn gradient(
        &self,
        batch: &Batch,
        at: Vec<usize>,
        size: usize,
    ) -> Result<Tensor<1>, TrainError> {
        let device = self
            .task
            .loaded
            .model
            .base()
            .word_embedding_table()
            .device();
        let shift = Tensor::<1>::zeros([size], device).autodiff().require_grad();
        let added = Shift {
            shift: shift.clone(),
            at,
        };
        let tape = self.loss_with(batch, &added)?.backward();
        let gradient = shift.grad(&tape);
        gradient.ok_or_else(|| {
            TrainError::Config("the loss does not depend on the triggers' embeddings".to_owned())
        })
    }
}

/// Adds one vector to the embeddings of some rows.
#[derive(Debug)]
struct Shift {
    shift: Tensor<1>,
    at: Vec<usize>,
}

impl Adapter for Shift {
    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        if embedded.decoder {
            return embedded;
        }
        let [tokens, size] = embedded.states.dims();
        let zero = Tensor::zeros([1, size], &self.shift.device());
        let either = Tensor::cat(vec![zero, self.shift.clone().reshape([1, size])], 0);
        let which: Vec<usize> = (0..tokens)
            .map(|row| usize::from(self.at.binary_search(&row).is_ok()))
            .collect();
        Embedded {
            states: add(embedded.states, rows(either, &which)),
            ..embedded
        }
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use epiphyte_models::{HeadKind, ModelConfig, Targets, Tokens, random_model};
    use epiphyte_ops::{Precision, Sequences};
    use serde_json::json;

    use super::*;

    /// The gradient is the slope of the loss along the shift.
    #[test]
    fn the_gradient_of_a_shift_is_its_slope() {
        let config = json!({
            "model_type": "bert", "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16,
            "initializer_range": 0.5,
        });
        let config = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), config.as_bytes()).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        let device = Device::default();
        let model = random_model(&config, head, &device, Precision::F32, 3).unwrap();
        let sequences = Sequences::new(vec![0, 3, 7]);
        let tokens = Tokens::new(&[1, 2, 3, 4, 5, 6, 7], &[0; 7], sequences);
        let loss = |shift: Tensor<1>| {
            let added = Shift {
                shift,
                at: vec![1, 5],
            };
            model
                .loss(&tokens, Targets::Classes(&[0, 1]), 0.0, &added)
                .unwrap()
                .mean
        };
        let shift = Tensor::<1>::zeros([8], &device).autodiff().require_grad();
        let gradient = shift.grad(&loss(shift.clone()).backward()).unwrap();
        let gradient = gradient.try_into_vec_as::<f32>().unwrap();
        for (at, &slope) in gradient.iter().enumerate() {
            let along = |step: f32| {
                let mut values = vec![0.0; 8];
                values[at] = step;
                let values = TensorData::new(values, [8]);
                f64::from(value(loss(Tensor::from_data(values, &device))))
            };
            let difference = (along(1e-2) - along(-1e-2)) / 2e-2;
            let slope = f64::from(slope);
            assert!(
                (difference - slope).abs() < 1e-3 + 0.02 * slope.abs(),
                "{difference}, {slope}"
            );
        }
        assert!(
            gradient.iter().any(|slope| slope.abs() > 1e-3),
            "{gradient:?}"
        );
    }
}
