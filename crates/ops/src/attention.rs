//! Scaled dot-product attention over unpadded sequences.

use burn::tensor::{Tensor, TensorData, activation};
use epiphyte_kernels::attention as kernels;
use epiphyte_kernels::dropout::Dropout;
use epiphyte_kernels::memory::uncleared;

use crate::Sequences;
use crate::dropout::place;
use crate::fused::{Fused, Gradient, Kept, Wanted, apply, runs_here};
use crate::linear::{SHAPES, index};

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

/// Keys and values that every query sees besides those of its own sequence. They take the positions in
/// front of it, so that with a window later queries no longer see them.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// `[length, kv_heads * head_dim]`
    pub keys: Tensor<2>,
    /// `[length, kv_heads * head_dim]`
    pub values: Tensor<2>,
}

/// `softmax(q kᵀ · scale + mask) v`, each sequence by itself, the prefix in front of each.
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
    let prefix_here = prefix
        .as_ref()
        .is_none_or(|p| runs_here(&p.keys) && runs_here(&p.values));
    if [&q, &k, &v].into_iter().all(runs_here) && prefix_here {
        let op = Fusion {
            shape: shape.clone(),
            sequences: sequences.clone(),
            site,
        };
        return match prefix {
            Some(Prefix { keys, values }) => apply(
                op,
                [q.into(), k.into(), v.into(), keys.into(), values.into()],
            ),
            None => apply(op, [q.into(), k.into(), v.into()]),
        };
    }
    composed(shape, sequences, q, k, v, prefix, site)
}

/// Attention over `q`, `k` and `v`, or these and a prefix's keys and values, without stored scores.
#[derive(Clone, Debug)]
struct Fusion {
    shape: Attention,
    sequences: Sequences,
    site: u64,
}

impl Fusion {
    /// Calls `body` with the kernel's view of this attention.
    fn with<T, const N: usize>(
        &self,
        operands: [&[f32]; N],
        body: impl FnOnce(kernels::Attention<'_>) -> T,
    ) -> T {
        let keys = self.sequences.keys().filter(|_| self.shape.dropout > 0.0);
        let keys: Option<Vec<u64>> =
            keys.map(|keys| keys.iter().map(|&key| place(key, self.site)).collect());
        let shape = &self.shape;
        body(kernels::Attention {
            scale: shape.scale,
            kv_heads: shape.kv_heads,
            causal: shape.causal,
            window: shape.window,
            prefix: operands
                .get(3)
                .zip(operands.get(4))
                .map(|(keys, values)| kernels::Prefix { keys, values }),
            dropout: keys.as_ref().map(|keys| kernels::AttentionDropout {
                probability: shape.dropout as f32,
                keys,
            }),
            ..kernels::Attention::new(self.sequences.boundaries(), shape.heads, shape.head_dim)
        })
    }
}

/// What attention finds out for its way back.
#[derive(Clone, Debug)]
struct Saved {
    /// Log-sum-exp of the scores, `[heads, tokens]`.
    lse: Vec<f32>,
    /// Whether the way back reads the result too.
    reads_output: bool,
}

impl<const N: usize> Fused<N> for Fusion {
    type Saved = Saved;

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, Saved) {
        let [q, k, v] = [operands[0], operands[1], operands[2]];
        let mut out = uncleared(q.len());
        let mut lse = uncleared(self.shape.heads * self.sequences.tokens());
        let reads_output = self.with(operands, |kernel| {
            kernel.forward(q, k, v, &mut out, &mut lse).expect(SHAPES);
            kernel.backward_reads_output()
        });
        (out, Saved { lse, reads_output })
    }

    fn shape(&self) -> Vec<usize> {
        vec![
            self.sequences.tokens(),
            self.shape.heads * self.shape.head_dim,
        ]
    }

    fn keeps(&self, _tracked: Wanted<N>, saved: &Saved) -> (Wanted<N>, bool) {
        ([true; N], saved.reads_output)
    }

    fn backward(
        &self,
        kept: Kept<'_, N, Saved>,
        gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        let from = kernels::AttentionBackward {
            q: kept.inputs[0],
            k: kept.inputs[1],
            v: kept.inputs[2],
            out: kept.output,
            lse: &kept.saved.lse,
            d_out: &gradient,
        };
        let mut results: [Option<Vec<f32>>; N] = std::array::from_fn(|operand| {
            wanted[operand].then(|| uncleared(kept.inputs[operand].len()))
        });
        let mut slots = results.iter_mut().map(Option::as_deref_mut);
        let mut next = || slots.next().flatten();
        let gradients = kernels::AttentionGradients {
            dq: next(),
            dk: next(),
            dv: next(),
            d_prefix_keys: next(),
            d_prefix_values: next(),
        };
        self.with(kept.inputs, |kernel| kernel.backward(from, gradients))
            .expect(SHAPES);
        results.map(|result| result.map(Gradient::from))
    }
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
    let (q, mut k, mut v) = (
        split(q, shape.heads),
        split(k, shape.kv_heads),
        split(v, shape.kv_heads),
    );
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
        x.unsqueeze_dim::<5>(2).repeat_dim(2, groups).reshape([
            batch,
            shape.heads,
            columns,
            shape.head_dim,
        ])
    };
    let (k, v) = if groups == 1 {
        (k, v)
    } else {
        (group(k), group(v))
    };
    let mask = TensorData::new(
        mask(shape, sequences, prefix_length),
        [batch, 1, longest, columns],
    );
    let mask = Tensor::<4>::from_data(mask, &device.clone().inner());
    let scores = q.matmul(k.swap_dims(2, 3)) * shape.scale + mask;
    let mut weights = activation::softmax(scores, 3);
    if sequences.keys().is_some() && shape.dropout > 0.0 {
        let factors = dropout_factors(shape, sequences, prefix_length, site);
        let factors = TensorData::new(factors, [batch, shape.heads, longest, columns]);
        weights = weights * Tensor::from_data(factors, &device.clone().inner());
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

/// What dropout multiplies attention weights by, `[sequences, heads, longest, prefix + longest]`: the
/// fused kernel's own numbers.
fn dropout_factors(shape: &Attention, sequences: &Sequences, prefix: usize, site: u64) -> Vec<f32> {
    let longest = sequences.longest();
    let columns = prefix + longest;
    let mut factors = vec![0.0; sequences.count() * shape.heads * longest * columns];
    let keys = sequences.keys().unwrap_or_default();
    for (sequence, (&key, length)) in keys.iter().zip(sequences.lengths()).enumerate() {
        let mask = Dropout::new(shape.dropout as f32, place(key, site)).expect("p is in [0, 1)");
        for head in 0..shape.heads {
            for query in 0..length {
                let row = (sequence * shape.heads + head) * longest + query;
                let row = &mut factors[row * columns..][..prefix + length];
                row.fill(1.0);
                let number = (query * shape.heads + head) as u64;
                mask.apply(row, prefix + length, number).expect(SHAPES);
            }
        }
    }
    factors
}

/// 0 where a query sees a key, a very negative number where it does not: row-major
/// `[sequences, longest, prefix + longest]`.
fn mask(shape: &Attention, sequences: &Sequences, prefix: usize) -> Vec<f32> {
    let longest = sequences.longest();
    let mut mask = Vec::with_capacity(sequences.count() * longest * (prefix + longest));
    for length in sequences.lengths() {
        for query in 0..longest {
            // The prefix takes the positions in front of the sequence's own.
            let query = prefix + query;
            mask.extend((0..prefix + longest).map(|key| {
                let past = !shape.causal || key <= query;
                let near = shape.window.is_none_or(|window| query < key + window);
                if key < prefix + length && past && near {
                    0.0
                } else {
                    f32::MIN
                }
            }));
        }
    }
    mask
}
