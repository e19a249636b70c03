//! Input embeddings: words, learned positions, segments, norm and dropout.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, dropout};

use super::{Matrix, Norm};
use crate::adapter::{AdapterBatch, Embedded, Entry, name_id};

/// What a family adds up at the input.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// Word embeddings, `[vocabulary, hidden]`.
    pub words: Matrix,
    /// What word embeddings are multiplied by.
    pub scale: Option<f64>,
    /// Learned positions, `[positions, hidden]`, and the row of the first one.
    pub positions: Option<(Matrix, usize)>,
    /// Segments, `[segments, hidden]`; where there is one, all tokens are of it.
    pub segments: Option<Matrix>,
    /// The norm over their sum.
    pub norm: Option<Norm>,
    /// Dropout over all.
    pub dropout: f64,
    /// Module path, which names the dropout's random draws.
    pub path: &'static str,
}

/// The tokens to embed.
pub(crate) struct EmbeddingInput<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) type_ids: &'a [u32],
    pub(crate) rows: &'a Sequences,
    /// Whether these are the inputs of an encoder-decoder's decoder.
    pub(crate) decoder: bool,
}

impl Embeddings {
    /// The input of the first layer, `[tokens, hidden]`, and the sequences that its rows form.
    pub(crate) fn forward(
        &self,
        input: EmbeddingInput<'_>,
        entry: &Entry<'_>,
    ) -> (Tensor<2>, Sequences) {
        let words = self.words.look_up(input.ids, entry, input.rows);
        let words = match self.scale {
            Some(scale) => words * scale,
            None => words,
        };
        let embedded = Embedded {
            states: words,
            type_ids: input.type_ids.to_vec(),
            rows: input.rows.clone(),
            decoder: input.decoder,
        };
        let cx = entry.context(input.rows);
        let Embedded {
            mut states,
            type_ids,
            rows,
            ..
        } = entry.adapter.embeddings(embedded, &cx);
        if let Some(segments) = &self.segments {
            let only = segments.shape()[0] == 1;
            let segment = |&id: &u32| if only { 0 } else { id };
            let type_ids: Vec<u32> = type_ids.iter().map(segment).collect();
            states = states + segments.look_up(&type_ids, entry, &rows);
        }
        if let Some((positions, first)) = &self.positions {
            let offset = first + entry.adapter.prefix_length();
            let at: Vec<u32> = rows.positions().map(|at| (at + offset) as u32).collect();
            states = states + positions.look_up(&at, entry, &rows);
        }
        if let Some(norm) = &self.norm {
            let batch = AdapterBatch::new([*entry]);
            states = norm.forward(states, &rows, &batch);
        }
        let states = dropout(states, self.dropout, name_id(self.path), &rows);
        (states, rows)
    }
}
