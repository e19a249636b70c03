//! What goes into a model: token sequences without padding, and what is known about the step.

use epiphyte_ops::Sequences;

use crate::cache::Cache;

/// The id of a soft token, which is in no vocabulary: its embedding is an adapter's
/// ([`crate::Adapter::soft_tokens`]).
pub const SOFT_TOKEN: u32 = u32::MAX;

/// Token sequences, concatenated without padding.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// The segment of each token; ignored by models without segments.
    pub type_ids: &'a [u32],
    /// Where each sequence begins and ends.
    pub sequences: Sequences,
    /// What the decoder of an encoder-decoder reads; none for other models.
    pub decoder: Option<DecoderTokens<'a>>,
    /// What attentions keep of the sequence that these tokens belong to, for decoding.
    pub cache: Option<&'a Cache>,
}

impl<'a> Tokens<'a> {
    /// Sequences for a model with one stack.
    pub fn new(ids: &'a [u32], type_ids: &'a [u32], sequences: Sequences) -> Self {
        Self {
            ids,
            type_ids,
            sequences,
            decoder: None,
            cache: None,
        }
    }

    /// The next tokens of the one sequence that `cache` is of. A decoder with one stack reads them
    /// as if those before stood in front, and adds them to the cache.
    pub fn continuing(ids: &'a [u32], type_ids: &'a [u32], cache: &'a Cache) -> Self {
        Self {
            cache: Some(cache),
            ..Self::new(ids, type_ids, cache.next(ids.len()))
        }
    }

    /// Whether these tokens follow others that are in a cache.
    pub(crate) fn follow_others(&self) -> bool {
        self.cache.is_some_and(|cache| cache.rows() > 0)
    }
}

/// The decoder's input: as many sequences as the encoder's.
#[derive(Clone, Debug)]
pub struct DecoderTokens<'a> {
    /// Token ids, already shifted: the first is the decoder's start token.
    pub ids: &'a [u32],
    /// Where each sequence begins and ends.
    pub sequences: Sequences,
}

impl<'a> DecoderTokens<'a> {
    /// The next tokens of the one sequence that `cache` is of, for [`Tokens`] with this cache and
    /// the encoder's one sequence.
    pub fn continuing(ids: &'a [u32], cache: &Cache) -> Self {
        Self {
            ids,
            sequences: cache.next(ids.len()),
        }
    }
}

/// Why a forward pass is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A pass of an optimizer step.
    Training {
        /// Optimizer steps finished before this one.
        step: u64,
        /// A random key for the step, the same in all its micro-batches.
        step_key: u64,
        /// Which of the step's forward passes over the same examples this is, from 0.
        view: u8,
    },
    /// A pass whose result is all that matters: no dropout, no random routing.
    #[default]
    Evaluation,
}
