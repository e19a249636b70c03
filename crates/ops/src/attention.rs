//! Scaled dot-product attention over unpadded sequences.

use burn::tensor::{Tensor, TensorData, activation};

use crate::linear::index;
use crate::{Sequences, dropout};

/// The shape of an attention and who sees whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads` (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores, `1 / sqrt(head_dim)` as a rule.
    pub scale: f32,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// With `causal`: how many tokens, itself included, a token sees.
    pub window: Option<usize>,
    /// Probability with which an attention weight is dropped while training.
    pub dropout: f64,
}

/// Keys and values that every query sees besides those of its own sequence.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// `[length, kv_heads * head_dim]`
    pub keys: Tensor<2>,
    /// `[length, kv_heads * head_dim]`
    pub values: Tensor<2>,
}

/// `softmax(q kᵀ · scale + mask) v`, each sequence by itself, the prefix visible to all.
///
/// # Shapes
/// - `q`, result: `[tokens, heads * head_dim]`
/// - `k`, `v`: `[tokens, kv_heads * head_dim]`
///
/// `site` names the place for dropout.
pub fn attention(
    shape: &Attention,
    sequences: &Sequences,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    prefix: Option<Prefix>,
    site: u64,
) -> Tensor<2> {
    composed(shape, sequences, q, k, v, prefix, site)
}

/// The same from Burn's own operations: sequences are padded to the longest, scores are stored.
fn composed(
    shape: &Attention,
    sequences: &Sequences,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    prefix: Option<Prefix>,
    site: u64,
) -> Tensor<2> {
    let (batch, longest) = (sequences.count(), sequences.longest());
    if sequences.tokens() == 0 {
        return q;
    }
    let groups = shape.heads / shape.kv_heads;
    let device = q.device();
    let padded_rows = sequences.boundaries().windows(2).flat_map(|pair| {
        let (start, length) = (pair[0], pair[1] - pair[0]);
        (0..longest).map(move |at| if at < length { start + at } else { 0 })
    });
    let padded_rows = index(padded_rows, batch * longest, &device);
    let split = |x: Tensor<2>, heads: usize| {
        x.select(0, padded_rows.clone())
            .reshape([batch, longest, heads, shape.head_dim])
            .swap_dims(1, 2)
    };
    let (q, mut k, mut v) = (split(q, shape.heads), split(k, shape.kv_heads), split(v, shape.kv_heads));
    let mut prefix_length = 0;
    if let Some(prefix) = prefix {
        prefix_length = prefix.keys.dims()[0];
        let spread = |x: Tensor<2>| {
            x.reshape([1, prefix_length, shape.kv_heads, shape.head_dim])
                .swap_dims(1, 2)
                .repeat_dim(0, batch)
        };
        k = Tensor::cat(vec![spread(prefix.keys), k], 2);
        v = Tensor::cat(vec![spread(prefix.values), v], 2);
    }
    let columns = prefix_length + longest;
    let group = |x: Tensor<4>| {
        x.unsqueeze_dim::<5>(2)
            .repeat_dim(2, groups)
            .reshape([batch, shape.heads, columns, shape.head_dim])
    };
    let (k, v) = if groups == 1 { (k, v) } else { (group(k), group(v)) };
    let mask = TensorData::new(
        mask(shape, sequences, prefix_length),
        [batch, 1, longest, columns],
    );
    let mask = Tensor::<4>::from_data(mask, &device.clone().inner());
    let scores = q.matmul(k.swap_dims(2, 3)) * shape.scale + mask;
    let mut weights = activation::softmax(scores, 3);
    if let (Some(keys), true) = (sequences.keys(), shape.dropout > 0.0) {
        let mut kept = vec![0.0; batch * shape.heads * longest * columns];
        for (sequence, (key, length)) in keys.iter().zip(sequences.lengths()).enumerate() {
            for head in 0..shape.heads {
                for query in 0..length {
                    let row = (sequence * shape.heads + head) * longest + query;
                    let row = &mut kept[row * columns..][..prefix_length + length];
                    let place = dropout::place(*key, site);
                    dropout::mask(place, head * length + query, shape.dropout, row);
                }
            }
        }
        let kept = TensorData::new(kept, [batch, shape.heads, longest, columns]);
        weights = weights * Tensor::from_data(kept, &device.clone().inner());
    }
    let real_rows = sequences
        .lengths()
        .enumerate()
        .flat_map(|(sequence, length)| (0..length).map(move |at| sequence * longest + at));
    weights
        .matmul(v)
        .swap_dims(1, 2)
        .reshape([batch * longest, shape.heads * shape.head_dim])
        .select(0, index(real_rows, sequences.tokens(), &device))
}

/// 0 where a query sees a key, a very negative number where it does not: row-major
/// `[sequences, longest, prefix + longest]`.
fn mask(shape: &Attention, sequences: &Sequences, prefix: usize) -> Vec<f32> {
    let longest = sequences.longest();
    let mut mask = Vec::with_capacity(sequences.count() * longest * (prefix + longest));
    for length in sequences.lengths() {
        for query in 0..longest {
            mask.extend(std::iter::repeat_n(0.0, prefix));
            mask.extend((0..longest).map(|key| {
                let past = !shape.causal || key <= query;
                let near = shape.window.is_none_or(|window| query < key + window);
                if key < length && past && near { 0.0 } else { f32::MIN }
            }));
        }
    }
    mask
}
