//! The keys and values of a text that a decoder has read, so that each further token costs one row.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use epiphyte_ops::Sequences;

use crate::adapter::AttentionKind;

/// What the attentions of a decoder keep of one sequence. [`Tokens::continuing`] and
/// [`DecoderTokens::continuing`] give the tokens that follow; a forward pass over them adds their
/// keys and values. Of an encoder-decoder, the first pass runs the encoder too and keeps the keys
/// and values of cross-attention, with which the decoder goes on alone.
///
/// Keys are kept as attention reads them: rotated, and as the adapter has changed them; those of
/// cross-attention before [`Adapter::attention`](crate::Adapter::attention), which is called with
/// them in each pass. Values of a prefix are not kept, since the adapter gives them in each pass.
///
/// [`Tokens::continuing`]: crate::Tokens::continuing
/// [`DecoderTokens::continuing`]: crate::DecoderTokens::continuing
#[derive(Debug, Default)]
pub struct Cache {
    attentions: Mutex<Attentions>,
}

/// By the attention's kind and its key.
type Attentions = HashMap<(AttentionKind, u64), KeyValues>;

impl Clone for Cache {
    /// A cache of a text with the same beginning, which may go on differently.
    fn clone(&self) -> Self {
        Self {
            attentions: Mutex::new(self.attentions().clone()),
        }
    }
}

/// Keys and values, `[tokens, kv_heads * head_dim]` each.
#[derive(Clone, Debug)]
struct KeyValues {
    keys: Tensor<2>,
    values: Tensor<2>,
}

impl Cache {
    /// A cache of a sequence of which nothing was read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many rows of the sequence were read, virtual tokens included.
    pub fn rows(&self) -> usize {
        let attentions = self.attentions();
        // Cross-attention's are those of another text.
        let own = attentions
            .iter()
            .filter(|((kind, _), _)| *kind == AttentionKind::Decoder);
        let rows = own.map(|(_, kept)| kept.keys.dims()[0]);
        rows.max().unwrap_or(0)
    }

    fn attentions(&self) -> MutexGuard<'_, Attentions> {
        self.attentions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The sequence of the next `count` tokens.
    pub(crate) fn next(&self, count: usize) -> Sequences {
        let first = self.rows() as u32;
        let positions = (first..).take(count).collect();
        Sequences::new(vec![0, count]).with_positions(positions)
    }

    /// All keys and values of an attention, with the `new` ones behind those that were there, and
    /// the sequence that they form.
    ///
    /// # Panics
    /// If there are neither.
    pub(crate) fn extended(
        &self,
        attention: (AttentionKind, u64),
        new: Option<[Tensor<2>; 2]>,
    ) -> ([Tensor<2>; 2], Sequences) {
        let mut attentions = self.attentions();
        let new = new.map(|[keys, values]| KeyValues {
            keys: keys.inner(),
            values: values.inner(),
        });
        let all = match (attentions.remove(&attention), new) {
            (Some(kept), Some(new)) => KeyValues {
                keys: Tensor::cat(vec![kept.keys, new.keys], 0),
                values: Tensor::cat(vec![kept.values, new.values], 0),
            },
            (kept, new) => kept.or(new).expect("the first pass gives keys"),
        };
        attentions.insert(attention, all.clone());
        let rows = Sequences::new(vec![0, all.keys.dims()[0]]);
        ([all.keys, all.values], rows)
    }
}
