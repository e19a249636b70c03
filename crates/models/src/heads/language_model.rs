//! A language model's head.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, cross_entropy, language_model_loss, linear, rows};

use crate::adapter::{AdapterBatch, Entry, Role};
use crate::blocks::{Linear, Matrix};
use crate::builder::Builder;
use crate::heads::Verbalizer;

/// `output(scale · x)`: logits over the vocabulary.
#[derive(Clone, Debug)]
pub struct LanguageModelHead {
    /// From the hidden size to the vocabulary; often the word embeddings.
    pub output: Linear,
    /// What hidden states are multiplied by; T5 scales by 1/√hidden where the head is tied.
    pub scale: Option<f64>,
    /// Bends logits into `(-softcap, softcap)`: Gemma 2.
    pub softcap: Option<f64>,
    /// The words that stand for classes; none of a model that predicts any token.
    pub verbalizer: Option<Verbalizer>,
}

impl LanguageModelHead {
    /// The layer at `path`: over the word embeddings if it is tied to them, else with a weight of
    /// its own.
    pub(crate) fn build(
        b: &mut Builder<'_>,
        path: &str,
        words: &Matrix,
        tied: bool,
        scale: Option<f64>,
    ) -> Self {
        let output = if tied {
            b.linear_over(words.clone(), path, Role::Head, false)
        } else {
            b.linear(path, Role::Head, words.shape(), false)
        };
        Self {
            output,
            scale,
            softcap: None,
            verbalizer: None,
        }
    }

    /// Logits, `[tokens, vocabulary]`, or `[tokens, classes]` of a model with a verbalizer.
    pub fn forward(
        &self,
        states: Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        let states = self.scaled(states);
        let logits = |words: Option<&[u32]>| {
            self.capped(match words {
                None => self.output.forward(states, rows, batch),
                Some(words) => self.output.forward_some(states, words, rows, batch),
            })
        };
        match &self.verbalizer {
            None => logits(None),
            Some(verbalizer) => verbalizer.logits(logits),
        }
    }

    /// Mean over the rows of the cross-entropy against their next tokens, each multiplied by its
    /// weight; none where no row has one.
    pub(crate) fn loss(
        &self,
        states: Tensor<2>,
        (next, weights): (&[i64], &[f32]),
        label_smoothing: f64,
        (sequences, entry): (&Sequences, &Entry<'_>),
    ) -> Option<Tensor<1>> {
        let mut values: Vec<f32> = weights.to_vec();
        values.sort_by(f32::total_cmp);
        values.dedup();
        if let [] | [1.0] = values[..] {
            return self.mean_loss(states, next, label_smoothing, (sequences, entry));
        }
        // Rows of the same weight have one mean.
        let of_weight = values.into_iter().filter_map(|weight| {
            let own: Vec<usize> = (0..next.len())
                .filter(|&row| weights[row] == weight)
                .collect();
            let labels: Vec<i64> = own.iter().map(|&row| next[row]).collect();
            let share = own.len() as f32 / next.len() as f32;
            let of_rows = sequences.select_rows(&own);
            let own = rows(states.clone(), &own);
            let mean = self.mean_loss(own, &labels, label_smoothing, (&of_rows, entry))?;
            Some(mean * (weight * share))
        });
        of_weight.reduce(|sum, part| sum + part)
    }

    /// Mean cross-entropy against the next tokens of the rows; none where no row has one. Without a
    /// cap it is computed in pieces, and never holds the logits of all rows, unless the adapter
    /// acts on the layer itself.
    fn mean_loss(
        &self,
        states: Tensor<2>,
        next: &[i64],
        label_smoothing: f64,
        (rows, entry): (&Sequences, &Entry<'_>),
    ) -> Option<Tensor<1>> {
        if entry.adapter.adapts_language_head() {
            let logits = self.forward(states, rows, &AdapterBatch::new([*entry]));
            return cross_entropy(logits, next, label_smoothing);
        }
        let (states, weight) = (self.scaled(states), self.output.weight(entry.adapter));
        match self.softcap {
            None => language_model_loss(states, &weight, next, label_smoothing),
            Some(_) => {
                let logits = self.capped(linear(states, &weight, None));
                cross_entropy(logits, next, label_smoothing)
            }
        }
    }

    fn capped(&self, logits: Tensor<2>) -> Tensor<2> {
        match self.softcap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }

    /// The states that the weight is multiplied with.
    fn scaled(&self, states: Tensor<2>) -> Tensor<2> {
        match self.scale {
            Some(scale) => states * scale,
            None => states,
        }
    }
}
