//! Input embeddings: words, learned positions, segments, norm and dropout.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, dropout};

use super::{Linear, Matrix, Norm};
use crate::adapter::{AdapterBatch, Embedded, Entry, name_id};
use crate::tokens::SOFT_TOKEN;

/// What a family adds up at the input.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// Word embeddings, `[vocabulary, hidden]`.
    pub words: Matrix,
    /// What word embeddings are multiplied by.
    pub scale: Option<f64>,
    /// Learned positions.
    pub positions: Option<Positions>,
    /// Segments, `[segments, hidden]`; where there is one, all tokens are of it.
    pub segments: Option<Matrix>,
    /// The norm over their sum.
    pub norm: Option<Norm>,
    /// Dropout over all.
    pub dropout: f64,
    /// From the size of the embeddings to the hidden size, where these differ.
    pub projection: Option<Linear>,
    /// Module path, which names the dropout's random draws.
    pub path: &'static str,
}

/// Learned positions.
#[derive(Clone, Debug)]
pub struct Positions {
    /// `[positions, hidden]`.
    pub table: Matrix,
    /// The row of the first token's position.
    pub first: usize,
    /// A padding token whose own row is that of its id, and which does not move the positions of
    /// the tokens behind it: RoBERTa's. Virtual tokens hide the ids.
    pub padding: Option<u32>,
}

impl Positions {
    /// The row of each token's position, behind a prefix of `prefix` positions.
    fn rows(&self, ids: &[u32], data: &Sequences, rows: &Sequences, prefix: usize) -> Vec<u32> {
        let offset = self.first + prefix;
        match self.padding {
            Some(padding) if ids.contains(&padding) && data.boundaries() == rows.boundaries() => {
                let sequences = rows.boundaries().windows(2);
                let ids = sequences.map(|ends| &ids[ends[0]..ends[1]]);
                let rows = ids.flat_map(|ids| {
                    let mut next = offset as u32;
                    ids.iter().map(move |&id| match id == padding {
                        true => padding,
                        false => {
                            next += 1;
                            next - 1
                        }
                    })
                });
                rows.collect()
            }
            _ => rows.positions().map(|at| (at + offset) as u32).collect(),
        }
    }
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
        // The adapter puts its own vectors in the places of soft tokens.
        let in_vocabulary = |&id: &u32| if id == SOFT_TOKEN { 0 } else { id };
        let ids: Vec<u32> = input.ids.iter().map(in_vocabulary).collect();
        let words = self.words.look_up(&ids, entry, input.rows);
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
        } = match entry.tokens.follow_others() {
            // Virtual tokens stand at the beginning.
            true if entry.adapter.virtual_tokens() > 0 => embedded,
            _ => entry.adapter.embeddings(embedded, &cx),
        };
        if let Some(segments) = &self.segments {
            let only = segments.shape()[0] == 1;
            let segment = |&id: &u32| if only { 0 } else { id };
            let type_ids: Vec<u32> = type_ids.iter().map(segment).collect();
            states = states + segments.look_up(&type_ids, entry, &rows);
        }
        if let Some(positions) = &self.positions {
            let prefix = entry.adapter.prefix_length(input.decoder);
            let at = positions.rows(input.ids, input.rows, &rows, prefix);
            states = states + positions.table.look_up(&at, entry, &rows);
        }
        if let Some(norm) = &self.norm {
            let batch = AdapterBatch::new([*entry]);
            states = norm.forward(states, &rows, &batch);
        }
        let states = dropout(states, self.dropout, name_id(self.path), &rows);
        let states = match &self.projection {
            Some(projection) => {
                let batch = AdapterBatch::new([*entry]);
                projection.forward(states, &rows, &batch)
            }
            None => states,
        };
        (states, rows)
    }
}
