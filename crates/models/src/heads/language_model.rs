//! A language model's head.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, Weight};

use crate::adapter::{Adapter, AdapterBatch, Role};
use crate::blocks::{Linear, Matrix};
use crate::builder::Builder;

/// `output(scale · x)`: logits over the vocabulary.
#[derive(Clone, Debug)]
pub struct LanguageModelHead {
    /// From the hidden size to the vocabulary; often the word embeddings.
    pub output: Linear,
    /// What hidden states are multiplied by; T5 scales by 1/√hidden where the head is tied.
    pub scale: Option<f64>,
}

impl LanguageModelHead {
    /// The layer `lm_head`: over the word embeddings if it is tied to them, else with a weight of
    /// its own.
    pub(crate) fn build(
        b: &mut Builder<'_>,
        words: &Matrix,
        tied: bool,
        scale: Option<f64>,
    ) -> Self {
        let output = if tied {
            b.linear_over(words.clone(), "lm_head", Role::Head, false)
        } else {
            b.linear("lm_head", Role::Head, words.shape(), false)
        };
        Self { output, scale }
    }

    /// Logits, `[tokens, vocabulary]`.
    pub fn forward(
        &self,
        states: Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        self.output.forward(self.scaled(states), rows, batch)
    }

    /// The states that the weight is multiplied with, for a loss that is computed in pieces.
    pub(crate) fn scaled(&self, states: Tensor<2>) -> Tensor<2> {
        match self.scale {
            Some(scale) => states * scale,
            None => states,
        }
    }

    /// The weight to use in this pass.
    pub(crate) fn weight(&self, adapter: &dyn Adapter) -> Weight {
        self.output.weight(adapter)
    }
}
