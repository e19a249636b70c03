//! One stack of layers: encoders like BERT, decoders like Llama and GPT-2.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, dropout};

use super::embeddings::{EmbeddingInput, Embeddings};
use super::{Layer, LayerInput, Norm, RelativeBias, RelativeEmbeddings};
use crate::adapter::{AdapterBatch, Entry, Hidden, name_id};
use crate::backbone::Backbone;
use crate::rope::RotaryEmbedding;

/// Embeddings, layers, and a final norm where a family has one.
#[derive(Debug)]
pub struct Stack {
    /// The input embeddings.
    pub embeddings: Embeddings,
    /// The layers.
    pub layers: Vec<Layer>,
    /// The relative position bias of self-attention, the same in all layers.
    pub bias: Option<RelativeBias>,
    /// Embeddings of relative positions, which the scores of all layers read.
    pub positions: Option<RelativeEmbeddings>,
    /// The norm after the last layer.
    pub final_norm: Option<Norm>,
    /// Dropout after the norm.
    pub final_dropout: f64,
    /// Rotary positions; of several, each layer says which it has.
    pub rotary: Vec<RotaryEmbedding>,
    /// Whether any dropout of the base is on during training.
    pub has_dropout: bool,
}

impl Backbone for Stack {
    fn has_dropout(&self) -> bool {
        self.has_dropout
    }

    fn embed(&self, entry: &Entry<'_>) -> Hidden {
        let tokens = entry.tokens;
        let input = EmbeddingInput {
            ids: tokens.ids,
            type_ids: tokens.type_ids,
            rows: &tokens.sequences,
            decoder: false,
        };
        let (states, rows) = self.embeddings.forward(input, entry);
        self.prepare(
            Hidden::new(states, rows),
            entry.adapter.prefix_length(false),
        )
    }

    fn prepare(&self, hidden: Hidden, offset: usize) -> Hidden {
        let angles = self.rotary.iter();
        Hidden {
            angles: angles
                .map(|rotary| rotary.angles(&hidden.rows, offset))
                .collect(),
            ..hidden
        }
    }

    fn keeps_keys(&self, from: usize, to: usize) -> bool {
        let mut rotary = self.rotary.iter();
        rotary.all(|rotary| rotary.same_frequencies(from, to))
    }

    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let input = LayerInput {
            bias: self.bias.as_ref(),
            positions: self.positions.as_ref(),
            encoder: None,
        };
        self.layers[index].forward(hidden, input, selected, batch)
    }

    fn finish(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let states = hidden.states.clone();
        let id = name_id("final_dropout");
        let dropout =
            |states: Tensor<2>, rows: &Sequences| dropout(states, self.final_dropout, id, rows);
        let states = match &self.final_norm {
            Some(norm) => norm.forward_final(states, &hidden.rows, batch, dropout),
            None => dropout(states, &hidden.rows),
        };
        hidden.with(states)
    }
}
