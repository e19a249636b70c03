//! Two stacks of layers: an encoder, and a decoder that reads the encoder's output.
//!
//! Layers are numbered through, the decoder's after the encoder's. The decoder's embedded tokens
//! travel as the stream [`DECODER_STREAM`] until the encoder is done; then they become the residual
//! stream, and the encoder's output travels as [`ENCODER_STREAM`] to every layer of the decoder.
//! Behind a [`Cache`](crate::Cache) of a text that was begun, only the decoder runs.

use burn::tensor::Tensor;
use epiphyte_ops::{IGNORED, Sequences, dropout};

use super::embeddings::{EmbeddingInput, Embeddings};
use super::{Layer, LayerInput, Norm, RelativeBias, Stack};
use crate::adapter::{AdapterBatch, Entry, Hidden, Owner, Stream, name_id};
use crate::backbone::Backbone;
use crate::model::{DECODER_STREAM, ENCODER_STREAM};
use crate::tokens::Tokens;

/// Encoder and decoder.
#[derive(Debug)]
pub struct EncoderDecoder {
    /// The encoder.
    pub encoder: HalfStack,
    /// The decoder.
    pub decoder: HalfStack,
    /// The token with which the decoder's input begins.
    pub decoder_start_token: Option<u32>,
    /// Whether, where labels are known, it begins with the last of them that is not padding, as in
    /// mBART, whose texts end with their language.
    pub begins_with_last: bool,
    /// What the decoder reads in place of labels that do not count.
    pub pad_token: u32,
    /// Whether any dropout of the base is on during training.
    pub has_dropout: bool,
}

/// One of the two stacks.
#[derive(Debug)]
pub struct HalfStack {
    /// The input embeddings; both stacks may share a table.
    pub embeddings: Embeddings,
    /// The layers.
    pub layers: Vec<Layer>,
    /// The relative position bias of self-attention, the same in all layers.
    pub bias: Option<RelativeBias>,
    /// The norm after the last layer.
    pub final_norm: Option<Norm>,
    /// Dropout after the norm.
    pub final_dropout: f64,
    /// Module path, which names the dropout's random draws.
    pub path: &'static str,
}

impl HalfStack {
    /// The stack as a model of its own: an encoder without a decoder.
    pub(crate) fn alone(self, has_dropout: bool) -> Stack {
        Stack {
            embeddings: self.embeddings,
            layers: self.layers,
            bias: self.bias,
            positions: None,
            final_norm: self.final_norm,
            final_dropout: self.final_dropout,
            rotary: Vec::new(),
            has_dropout,
        }
    }

    fn finish(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let states = hidden.states.clone();
        let states = match &self.final_norm {
            Some(norm) => norm.forward(states, &hidden.rows, batch),
            None => states,
        };
        let states = self.dropout(states, &hidden.rows);
        hidden.with(states)
    }

    /// As [`HalfStack::finish`], for the head.
    fn finish_last(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let states = hidden.states.clone();
        let dropout = |states: Tensor<2>, rows: &Sequences| self.dropout(states, rows);
        let states = match &self.final_norm {
            Some(norm) => norm.forward_final(states, &hidden.rows, batch, dropout),
            None => dropout(states, &hidden.rows),
        };
        hidden.with(states)
    }

    fn dropout(&self, states: Tensor<2>, rows: &Sequences) -> Tensor<2> {
        dropout(states, self.final_dropout, name_id(self.path), rows)
    }
}

impl EncoderDecoder {
    /// Makes the decoder's stream the residual stream, and the encoder's output a stream.
    fn begin_decoder(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let mut encoded = self.encoder.finish(hidden, batch);
        let decoder = encoded.take(DECODER_STREAM);
        let decoder = decoder.expect("`embed` adds the decoder's stream");
        let mut carried = encoded.carried;
        carried.push(Stream {
            name: ENCODER_STREAM,
            owner: Owner::Model,
            states: encoded.states,
            rows: encoded.rows,
        });
        Hidden {
            carried,
            ..Hidden::new(decoder.states, decoder.rows)
        }
    }

    fn decoder_layer(
        &self,
        index: usize,
        mut hidden: Hidden,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        // Nothing reads the encoder's output after the last layer.
        let encoder = match index + 1 == self.decoder.layers.len() {
            true => hidden.take(ENCODER_STREAM),
            false => hidden.stream(ENCODER_STREAM).cloned(),
        };
        let input = LayerInput {
            bias: self.decoder.bias.as_ref(),
            positions: None,
            encoder: encoder.map(|stream| (stream.states, stream.rows)),
        };
        self.decoder.layers[index].forward(hidden, input, selected, batch)
    }
}

impl Backbone for EncoderDecoder {
    fn has_dropout(&self) -> bool {
        self.has_dropout
    }

    /// Without tokens for the decoder, it reads those of the encoder shifted right, as in
    /// transformers' classifiers.
    fn embed(&self, entry: &Entry<'_>) -> Hidden {
        let tokens = entry.tokens;
        let shifted: Vec<u32>;
        let (ids, decoder_rows) = match &tokens.decoder {
            Some(decoder) => (decoder.ids, &decoder.sequences),
            None => {
                let ids = tokens.ids.iter().map(|&id| Some(id));
                shifted = self.shifted_right(ids, &tokens.sequences);
                (&shifted[..], &tokens.sequences)
            }
        };
        let input = EmbeddingInput {
            ids,
            type_ids: &vec![0; ids.len()],
            rows: decoder_rows,
            decoder: true,
        };
        let (decoder_states, decoder_rows) = self.decoder.embeddings.forward(input, entry);
        if tokens.follow_others() {
            return Hidden::new(decoder_states, decoder_rows);
        }
        let input = EmbeddingInput {
            ids: tokens.ids,
            type_ids: tokens.type_ids,
            rows: &tokens.sequences,
            decoder: false,
        };
        let (states, rows) = self.encoder.embeddings.forward(input, entry);
        let mut hidden = Hidden::new(states, rows);
        hidden.carried.push(Stream {
            name: DECODER_STREAM,
            owner: Owner::Model,
            states: decoder_states,
            rows: decoder_rows,
        });
        hidden
    }

    fn first_layer(&self, tokens: &Tokens<'_>) -> usize {
        match tokens.follow_others() {
            true => self.encoder.layers.len(),
            false => 0,
        }
    }

    fn decoder_start_token(&self) -> Option<u32> {
        self.decoder_start_token
    }

    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let encoder_layers = self.encoder.layers.len();
        if let Some(index) = index.checked_sub(encoder_layers) {
            return self.decoder_layer(index, hidden, selected, batch);
        }
        let input = LayerInput {
            bias: self.encoder.bias.as_ref(),
            positions: None,
            encoder: None,
        };
        let hidden = self.encoder.layers[index].forward(hidden, input, None, batch);
        match index + 1 == encoder_layers {
            true => self.begin_decoder(batch.encoded(hidden), batch),
            false => hidden,
        }
    }

    fn finish(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        self.decoder.finish_last(hidden, batch)
    }

    fn decoder_input(&self, labels: &[i64], rows: &Sequences) -> Option<Vec<u32>> {
        let ids = labels.iter().map(|&label| match label {
            IGNORED => None,
            label => u32::try_from(label).ok(),
        });
        Some(self.shifted_right(ids, rows))
    }
}

impl EncoderDecoder {
    /// Each sequence without its last token, behind the start token; padding for what is none.
    fn shifted_right(&self, ids: impl Iterator<Item = Option<u32>>, rows: &Sequences) -> Vec<u32> {
        let mut shifted: Vec<u32> = ids.map(|id| id.unwrap_or(self.pad_token)).collect();
        for pair in rows.boundaries().windows(2) {
            if let own @ [_, ..] = &mut shifted[pair[0]..pair[1]] {
                // As transformers counts: padding inside of the labels moves it forward.
                let real = own.iter().filter(|&&id| id != self.pad_token).count();
                let last = own[real.saturating_sub(1)];
                own.rotate_right(1);
                let start = self.decoder_start_token;
                own[0] = start.filter(|_| !self.begins_with_last).unwrap_or(last);
            }
        }
        shifted
    }
}
