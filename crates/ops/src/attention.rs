//! Scaled dot-product attention over unpadded sequences.

use burn::tensor::{Tensor, TensorData, activation};
use epiphyte_kernels::attention as kernels;
use epiphyte_kernels::dropout::Dropout;
use epiphyte_kernels::memory::uninit_buffer;

use crate::Sequences;
use crate::dropout::site_key;
use crate::fused::{Fused, Gradient, Kept, Operand, Wanted, apply, uses_fused};
use crate::linear::{SHAPES, index};

/// The shape of an attention and which keys a query sees.
///
/// If the keys are other tokens than the queries ([`Keys::rows`]), `causal` and `window` align the
/// ends: the last query of a sequence has the position of its last key, as in decoding with a KV
/// cache. A prefix has the positions in front of the first key.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads` (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Bends scores into `(-softcap, softcap)`: `softcap · tanh(score / softcap)`, before the bias.
    pub softcap: Option<f32>,
    /// Hides keys after the query's position.
    pub causal: bool,
    /// Hides keys whose distance from the query's position is `window` or more, before it and
    /// (without `causal`) after it.
    pub window: Option<usize>,
    /// Probability with which an attention weight is dropped while training.
    pub dropout: f64,
}

/// The keys and values that queries attend to.
#[derive(Clone, Debug)]
pub struct Keys {
    /// `[key tokens, kv_heads * head_dim]`
    pub k: Tensor<2>,
    /// `[key tokens, kv_heads * head_dim]`
    pub v: Tensor<2>,
    /// The sequences of the rows of `k` and `v`, as many as those of the queries, if they are
    /// other tokens (cross-attention, KV cache). `None`: the rows of the queries.
    pub rows: Option<Sequences>,
    /// Keys and values in front of each sequence's own.
    pub prefix: Option<Prefix>,
    /// Added to the scores, the same in all sequences, such as T5's relative position bias:
    /// `[heads, max_queries, prefix length + max_keys]`, the prefix's columns first, the maxima at
    /// least those of the batch. Finite. Gets a gradient if tracked.
    pub bias: Option<Tensor<3>>,
}

impl Keys {
    /// Keys and values of the queries' own tokens, without prefix or bias.
    pub fn new(k: Tensor<2>, v: Tensor<2>) -> Self {
        Self {
            k,
            v,
            rows: None,
            prefix: None,
            bias: None,
        }
    }
}

/// Keys and values in front of each sequence's own. They have the positions before the first key,
/// so a window may hide them from later queries.
#[derive(Clone, Debug)]
pub enum Prefix {
    /// The same for all sequences.
    Shared {
        /// `[length, kv_heads * head_dim]`
        keys: Tensor<2>,
        /// `[length, kv_heads * head_dim]`
        values: Tensor<2>,
    },
    /// Another for each sequence.
    PerSequence {
        /// Rows of each sequence's prefix.
        length: usize,
        /// `[sequences * length, kv_heads * head_dim]`, sequence by sequence.
        keys: Tensor<2>,
        /// `[sequences * length, kv_heads * head_dim]`, sequence by sequence.
        values: Tensor<2>,
    },
}

impl Prefix {
    /// Rows of one sequence's prefix.
    pub fn length(&self) -> usize {
        match self {
            Self::Shared { keys, .. } => keys.dims()[0],
            Self::PerSequence { length, .. } => *length,
        }
    }

    /// The prefix of one sequence.
    #[must_use]
    pub fn part(&self, sequence: usize) -> Self {
        match self {
            Self::Shared { .. } => self.clone(),
            Self::PerSequence {
                length,
                keys,
                values,
            } => {
                let own = |x: &Tensor<2>| x.clone().narrow(0, sequence * length, *length);
                Self::PerSequence {
                    length: *length,
                    keys: own(keys),
                    values: own(values),
                }
            }
        }
    }

    /// Rows of one sequence's prefix, whether each sequence has its own, and keys and values.
    fn into_parts(self) -> (PrefixShape, [Tensor<2>; 2]) {
        let (length, per_sequence, operands) = match self {
            Self::Shared { keys, values } => (keys.dims()[0], false, [keys, values]),
            Self::PerSequence {
                length,
                keys,
                values,
            } => (length, true, [keys, values]),
        };
        let shape = PrefixShape {
            length,
            per_sequence,
        };
        (shape, operands)
    }
}

/// The shape of a prefix.
#[derive(Clone, Copy, Debug)]
struct PrefixShape {
    length: usize,
    per_sequence: bool,
}

/// `softmax(cap(q kᵀ · scale) + bias + mask) v` for each sequence, the prefix in front of its keys.
/// A query that sees no key gets zeros.
///
/// # Shapes
/// - `q`, result: `[tokens, heads * head_dim]`
/// - `rows`: the sequences of the rows of `q`, whose random keys turn dropout on
/// - `site`: which dropout this is
///
/// # Panics
/// If the shapes do not fit together.
pub fn attention(
    shape: &Attention,
    q: Tensor<2>,
    rows: &Sequences,
    keys: Keys,
    site: u64,
) -> Tensor<2> {
    let Keys {
        k,
        v,
        rows: key_rows,
        prefix,
        bias,
    } = keys;
    let (prefix, prefix_operands) = prefix.map(Prefix::into_parts).unzip();
    let op = Operation {
        shape: shape.clone(),
        key_rows: key_rows.unwrap_or_else(|| rows.clone()),
        rows: rows.clone(),
        prefix,
        bias: bias.as_ref().map(Tensor::dims),
        site,
    };
    let prefix_fused = prefix_operands.iter().flatten().all(uses_fused);
    let bias_fused = bias.as_ref().is_none_or(uses_fused);
    if [&q, &k, &v].into_iter().all(uses_fused) && prefix_fused && bias_fused {
        return match (prefix_operands, bias) {
            (None, None) => apply(op, [q.into(), k.into(), v.into()]),
            (None, Some(bias)) => apply(op, [q.into(), k.into(), v.into(), bias.into()]),
            (Some([keys, values]), None) => {
                let operands = [q, k, v, keys, values];
                apply(op, operands.map(Operand::from))
            }
            (Some([keys, values]), Some(bias)) => {
                let [q, k, v, keys, values] = [q, k, v, keys, values].map(Operand::from);
                apply(op, [q, k, v, keys, values, bias.into()])
            }
        };
    }
    op.composed(q, [k, v], prefix_operands, bias)
}

/// Attention over `q`, `k`, `v`, the prefix's keys and values if there is one, and the bias if
/// there is one, in this order.
#[derive(Clone, Debug)]
struct Operation {
    shape: Attention,
    rows: Sequences,
    key_rows: Sequences,
    prefix: Option<PrefixShape>,
    bias: Option<[usize; 3]>,
    site: u64,
}

impl Operation {
    /// Calls `body` with the kernel's view of this attention.
    fn with_kernel<T, const N: usize>(
        &self,
        operands: [&[f32]; N],
        body: impl FnOnce(kernels::Attention<'_>) -> T,
    ) -> T {
        let keys = self.rows.keys().filter(|_| self.shape.dropout > 0.0);
        let keys: Option<Vec<u64>> =
            keys.map(|keys| keys.iter().map(|&key| site_key(key, self.site)).collect());
        let shape = &self.shape;
        let mut further = operands[3..].iter();
        let mut next = || *further.next().expect("`attention` passes all operands");
        body(kernels::Attention {
            key_boundaries: Some(self.key_rows.boundaries()),
            scale: shape.scale,
            softcap: shape.softcap,
            kv_heads: shape.kv_heads,
            causal: shape.causal,
            window: shape.window,
            prefix: self.prefix.map(|prefix| kernels::Prefix {
                length: prefix.length,
                per_sequence: prefix.per_sequence,
                keys: next(),
                values: next(),
            }),
            bias: self.bias.map(|[_, max_queries, columns]| kernels::Bias {
                values: next(),
                max_queries,
                max_keys: columns.saturating_sub(self.prefix_length()),
            }),
            dropout: keys.as_ref().map(|keys| kernels::AttentionDropout {
                probability: shape.dropout as f32,
                keys,
            }),
            ..kernels::Attention::new(self.rows.boundaries(), shape.heads, shape.head_dim)
        })
    }

    fn prefix_length(&self) -> usize {
        self.prefix.map_or(0, |prefix| prefix.length)
    }

    /// Columns of the composed scores: the prefix, and the keys of the longest sequence.
    fn columns(&self) -> usize {
        self.prefix_length() + self.key_rows.longest()
    }
}

/// Results of the forward pass that the backward pass reads.
#[derive(Clone, Debug)]
struct Saved {
    /// Log-sum-exp of the scores, `[heads, tokens]`.
    lse: Vec<f32>,
    /// Whether the backward pass reads the result too.
    reads_output: bool,
}

impl<const N: usize> Fused<N> for Operation {
    type Saved = Saved;

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, Saved) {
        let [q, k, v] = [operands[0], operands[1], operands[2]];
        let mut out = uninit_buffer(q.len());
        let mut lse = uninit_buffer(self.shape.heads * self.rows.tokens());
        let reads_output = self.with_kernel(operands, |kernel| {
            kernel.forward(q, k, v, &mut out, &mut lse).expect(SHAPES);
            kernel.backward_reads_output()
        });
        (out, Saved { lse, reads_output })
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.rows.tokens(), self.shape.heads * self.shape.head_dim]
    }

    fn saved_operands(&self, _tracked: Wanted<N>, saved: &Saved) -> (Wanted<N>, bool) {
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
            wanted[operand].then(|| uninit_buffer(kept.inputs[operand].len()))
        });
        let mut slots = results.iter_mut().map(Option::as_deref_mut);
        let mut next = |present: bool| present.then(|| slots.next().flatten()).flatten();
        let gradients = kernels::AttentionGradients {
            dq: next(true),
            dk: next(true),
            dv: next(true),
            d_prefix_keys: next(self.prefix.is_some()),
            d_prefix_values: next(self.prefix.is_some()),
            d_bias: next(self.bias.is_some()),
        };
        self.with_kernel(kept.inputs, |kernel| kernel.backward(from, gradients))
            .expect(SHAPES);
        results.map(|result| result.map(Gradient::from))
    }
}

/// The same composed of Burn's own operations: sequences are padded to the longest, scores are
/// stored.
impl Operation {
    fn composed(
        &self,
        q: Tensor<2>,
        [k, v]: [Tensor<2>; 2],
        prefix: Option<[Tensor<2>; 2]>,
        bias: Option<Tensor<3>>,
    ) -> Tensor<2> {
        let (shape, rows) = (&self.shape, &self.rows);
        let (batch, longest, columns) = (rows.count(), rows.longest(), self.columns());
        if rows.tokens() == 0 {
            return q;
        }
        if columns == 0 {
            return q.zeros_like();
        }
        let device = q.device();
        let (keys, values) = match prefix {
            Some([keys, values]) => (Some(keys), Some(values)),
            None => (None, None),
        };
        let k = self.padded_keys(k, keys);
        let v = self.padded_keys(v, values);
        let q = padded(q, rows, [shape.heads, shape.head_dim]);
        let mask = self.mask();
        let seen: Vec<f32> = mask
            .chunks_exact(columns)
            .map(|row| f32::from(row.contains(&0.0)))
            .collect();
        let mask = TensorData::new(mask, [batch, 1, longest, columns]);
        let mask = Tensor::<4>::from_data(mask, &device.clone().inner());
        let mut scores = q.matmul(k.swap_dims(2, 3)) * shape.scale;
        if let Some(cap) = shape.softcap {
            scores = (scores / cap).tanh() * cap;
        }
        if let Some(bias) = bias {
            let bias = bias.slice([0..shape.heads, 0..longest, 0..columns]);
            scores = scores + bias.unsqueeze::<4>();
        }
        let mut weights = activation::softmax(scores + mask, 3);
        if seen.contains(&0.0) {
            let seen = TensorData::new(seen, [batch, 1, longest, 1]);
            weights = weights * Tensor::from_data(seen, &device.clone().inner());
        }
        if rows.keys().is_some() && shape.dropout > 0.0 {
            let factors = self.dropout_factors();
            let factors = TensorData::new(factors, [batch, shape.heads, longest, columns]);
            weights = weights * Tensor::from_data(factors, &device.clone().inner());
        }
        let real_rows = rows
            .lengths()
            .enumerate()
            .flat_map(|(sequence, length)| (0..length).map(move |at| sequence * longest + at));
        weights
            .matmul(v)
            .swap_dims(1, 2)
            .reshape([batch * longest, shape.heads * shape.head_dim])
            .select(0, index(real_rows, rows.tokens(), &device))
    }

    /// Keys or values of all query heads, the prefix first: `[sequences, heads, columns,
    /// head_dim]`.
    fn padded_keys(&self, own: Tensor<2>, prefix: Option<Tensor<2>>) -> Tensor<4> {
        let shape = &self.shape;
        let (batch, head) = (self.rows.count(), [shape.kv_heads, shape.head_dim]);
        let mut parts = Vec::new();
        if let (Some(prefix), Some(of)) = (prefix, self.prefix) {
            let count = if of.per_sequence { batch } else { 1 };
            let prefix = prefix
                .reshape([count, of.length, head[0], head[1]])
                .swap_dims(1, 2);
            parts.push(if of.per_sequence {
                prefix
            } else {
                prefix.repeat_dim(0, batch)
            });
        }
        if self.key_rows.longest() > 0 {
            parts.push(padded(own, &self.key_rows, head));
        }
        let all = Tensor::cat(parts, 2);
        match shape.heads / shape.kv_heads {
            1 => all,
            groups => all.unsqueeze_dim::<5>(2).repeat_dim(2, groups).reshape([
                batch,
                shape.heads,
                self.columns(),
                shape.head_dim,
            ]),
        }
    }

    /// Dropout's factors on the attention weights, `[sequences, heads, longest, columns]`, the same
    /// numbers as the fused kernel's.
    fn dropout_factors(&self) -> Vec<f32> {
        let (shape, longest, columns) = (&self.shape, self.rows.longest(), self.columns());
        let mut factors = vec![0.0; self.rows.count() * shape.heads * longest * columns];
        let keys = self.rows.keys().unwrap_or_default();
        let lengths = self.rows.lengths().zip(self.key_rows.lengths());
        for (sequence, (&key, (queries, keys))) in keys.iter().zip(lengths).enumerate() {
            let mask = Dropout::new(shape.dropout as f32, site_key(key, self.site))
                .expect("p is in [0, 1)");
            let keys = self.prefix_length() + keys;
            for head in 0..shape.heads {
                for query in 0..queries {
                    let row = (sequence * shape.heads + head) * longest + query;
                    let row = &mut factors[row * columns..][..keys];
                    row.fill(1.0);
                    let number = (query * shape.heads + head) as u64;
                    mask.apply(row, keys, number).expect(SHAPES);
                }
            }
        }
        factors
    }

    /// 0 where a query sees a key, a very negative number where it does not: row-major
    /// `[sequences, longest, columns]`.
    fn mask(&self) -> Vec<f32> {
        let Attention { causal, window, .. } = self.shape;
        let (longest, columns) = (self.rows.longest(), self.columns());
        let mut mask = Vec::with_capacity(self.rows.count() * longest * columns);
        for (queries, keys) in self.rows.lengths().zip(self.key_rows.lengths()) {
            for query in 0..longest {
                // Positions are counted from the first key; the prefix's are negative.
                let position = (query + keys) as i64 - queries as i64;
                mask.extend((0..columns).map(|column| {
                    let key = column as i64 - self.prefix_length() as i64;
                    let future = key >= 0 && causal && key > position;
                    let distance = if key < 0 {
                        position - key
                    } else {
                        (position - key).abs()
                    };
                    let far = window.is_some_and(|window| distance >= window as i64);
                    if key < keys as i64 && !future && !far {
                        0.0
                    } else {
                        f32::MIN
                    }
                }));
            }
        }
        mask
    }
}

/// Rows padded to the longest sequence and cut into heads, `[sequences, heads, longest, head_dim]`.
fn padded(x: Tensor<2>, rows: &Sequences, [heads, head_dim]: [usize; 2]) -> Tensor<4> {
    let (batch, longest) = (rows.count(), rows.longest());
    let padded_rows = rows.boundaries().windows(2).flat_map(|pair| {
        let (start, length) = (pair[0], pair[1] - pair[0]);
        (0..longest).map(move |at| if at < length { start + at } else { 0 })
    });
    let padded_rows = index(padded_rows, batch * longest, &x.device());
    x.select(0, padded_rows)
        .reshape([batch, longest, heads, head_dim])
        .swap_dims(1, 2)
}
