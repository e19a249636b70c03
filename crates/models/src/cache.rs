//! The keys and values of a text that a decoder has read, so that each further token costs one row.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::Tensor;
use epiphyte_ops::Sequences;

/// What the attentions of a decoder keep of one sequence. [`Tokens::continuing`] gives the tokens
/// that follow; a forward pass over them adds their keys and values.
///
/// Keys are kept as attention reads them: rotated, and as the adapter has changed them. Values of a
/// prefix are not kept, since the adapter gives them in each pass.
///
/// [`Tokens::continuing`]: crate::Tokens::continuing
#[derive(Debug, Default)]
pub struct Cache {
    /// By the attention's key.
    attentions: Mutex<HashMap<u64, KeyValues>>,
}

impl Clone for Cache {
    /// A cache of a text with the same beginning, which may go on differently.
    fn clone(&self) -> Self {
        let attentions = self.attentions.lock();
        let attentions = attentions.unwrap_or_else(PoisonError::into_inner);
        Self {
            attentions: Mutex::new(attentions.clone()),
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
        let attentions = self.attentions.lock();
        let attentions = attentions.unwrap_or_else(PoisonError::into_inner);
        let rows = attentions.values().map(|kept| kept.keys.dims()[0]);
        rows.max().unwrap_or(0)
    }

    /// All keys and values of an attention, with these behind those that were there, and the
    /// sequence that they form.
    pub(crate) fn extended(
        &self,
        attention: u64,
        keys: Tensor<2>,
        values: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>, Sequences) {
        let attentions = self.attentions.lock();
        let mut attentions = attentions.unwrap_or_else(PoisonError::into_inner);
        let (keys, values) = (keys.inner(), values.inner());
        let all = match attentions.remove(&attention) {
            Some(kept) => KeyValues {
                keys: Tensor::cat(vec![kept.keys, keys], 0),
                values: Tensor::cat(vec![kept.values, values], 0),
            },
            None => KeyValues { keys, values },
        };
        attentions.insert(attention, all.clone());
        let rows = Sequences::new(vec![0, all.keys.dims()[0]]);
        (all.keys, all.values, rows)
    }
}
