//! What a family implements: embeddings, layers, and what follows the last layer.

use std::fmt;

use epiphyte_ops::Sequences;

use crate::adapter::{AdapterBatch, Entry, Hidden};
use crate::tokens::Tokens;

/// A stack of layers, or two of them.
///
/// A forward pass is [`embed`](Backbone::embed), each [`layer`](Backbone::layer),
/// [`finish`](Backbone::finish), then a head. They are separate so that a pass may start at a layer
/// whose input is known, go backward layer by layer, or carry the rows of several adapters.
pub trait Backbone: Send + Sync + fmt::Debug {
    /// Whether the base's own dropout is on during training.
    fn has_dropout(&self) -> bool;

    /// The input of the [first layer](Backbone::first_layer), for one adapter's sequences. An
    /// encoder-decoder embeds the decoder's tokens too and lets them travel as a stream until the
    /// decoder begins.
    fn embed(&self, entry: &Entry<'_>) -> Hidden;

    /// Adds what follows from the rows alone, such as rotary angles, to states that were computed
    /// earlier; positions start at `offset`.
    fn prepare(&self, hidden: Hidden, offset: usize) -> Hidden {
        let _ = offset;
        hidden
    }

    /// Whether keys computed in a text of `from` tokens are those of the same text with `to`
    /// tokens, so that a [cache](crate::Cache) can be kept. Rotary angles may depend on the length.
    fn keeps_keys(&self, from: usize, to: usize) -> bool {
        let _ = (from, to);
        true
    }

    /// The layer at which the pass over these tokens begins: with a [cache](crate::Cache) of a text
    /// that was begun, an encoder-decoder's first decoder layer, since the encoder has run.
    fn first_layer(&self, tokens: &Tokens<'_>) -> usize {
        let _ = tokens;
        0
    }

    /// The token with which the text of an encoder-decoder's decoder begins, if its configuration
    /// has one.
    fn decoder_start_token(&self) -> Option<u32> {
        None
    }

    /// One layer. With `selected`, only these rows (in ascending order) leave it.
    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden;

    /// What follows the last layer, such as a final norm.
    fn finish(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let _ = batch;
        hidden
    }

    /// The decoder's input for these labels, for encoder-decoders: the labels shifted right behind
    /// the start token, each sequence for itself.
    fn decoder_input(&self, labels: &[i64], rows: &Sequences) -> Option<Vec<u32>> {
        let _ = (labels, rows);
        None
    }
}
