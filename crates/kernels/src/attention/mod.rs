//! Attention over sequences without padding, forward and backward, without stored scores.
//!
//! `softmax(cap(scale · q kᵀ) + bias) v` per sequence and head. Scores are computed block by block:
//! the forward pass keeps a running maximum and sum (Milakov and Gimelshein 2018) and saves the
//! log-sum-exp, from which the backward pass recomputes each probability (Dao et al. 2022,
//! FlashAttention). The memory saved grows with the number of tokens, not with its square.
//!
//! Hidden states are `[tokens, heads * head_dim]`; the sequences are concatenated, and `boundaries`
//! holds the offset of each. Blocks are counted from the start of a sequence, so neither the other
//! sequences nor the number of threads change a byte of its result.
//!
//! ```
//! use epiphyte_kernels::attention::Attention;
//!
//! // Sequences of two tokens and of one, one head of one element. Equal keys: the mean of the
//! // values.
//! let attention = Attention { causal: true, ..Attention::new(&[0, 2, 3], 1, 1) };
//! let (mut out, mut lse) = ([0.0; 3], [0.0; 3]);
//! attention.forward(&[1.0; 3], &[0.5; 3], &[2.0, 4.0, 8.0], &mut out, &mut lse)?;
//! assert_eq!(out, [2.0, 3.0, 8.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

mod backward;
mod forward;

use std::ops::Range;

use crate::KernelError;
use crate::dropout::{self, Dropout};
use crate::gemm::small::{LONGEST, ROW};
use crate::math::tanh;
use crate::simd::Simd;

/// Queries of a block.
const QUERIES: usize = 128;
/// Keys of a block; whole blocks of [`crate::dropout`].
const KEYS: usize = 128;
/// From the scores of one query to those of the next.
const SCORES: usize = ROW;

/// The shape of an attention and which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Where each sequence starts among the query tokens, and where the last one ends:
    /// `[sequences + 1]`.
    pub boundaries: &'a [usize],
    /// The same for the keys if they are other tokens: cross-attention, or decoding with a KV
    /// cache. `causal` and `window` then align the ends: the last query of a sequence has the
    /// position of its last key.
    pub key_boundaries: Option<&'a [usize]>,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values; a divisor of `heads`, each shared by as many successive query
    /// heads (grouped-query attention, Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Factor on the product of query and key.
    pub scale: f32,
    /// Bends scores into `(-softcap, softcap)`: `softcap · tanh(score / softcap)`, before the bias
    /// (Gemma 2).
    pub softcap: Option<f32>,
    /// Hides keys after the query's position.
    pub causal: bool,
    /// Hides keys whose distance from the query's position is `window` or more, before it and
    /// (without `causal`) after it: `sliding_window` of Hugging Face's configurations.
    pub window: Option<usize>,
    /// Keys and values in front of each sequence's own.
    pub prefix: Option<Prefix<'a>>,
    /// Added to the scores.
    pub bias: Option<Bias<'a>>,
    /// Zeroes probabilities at random.
    pub dropout: Option<AttentionDropout<'a>>,
}

/// Keys and values in front of each sequence's own (prefix tuning, Li and Liang 2021). They have
/// the positions before the first key, so they are never in a query's future, but may be outside
/// its window.
#[derive(Clone, Copy, Debug)]
pub struct Prefix<'a> {
    /// Keys of one sequence's prefix.
    pub length: usize,
    /// Whether each sequence has a prefix of its own; otherwise all share one.
    pub per_sequence: bool,
    /// `[length, kv_heads * head_dim]`, or `[sequences * length, kv_heads * head_dim]`.
    pub keys: &'a [f32],
    /// As `keys`.
    pub values: &'a [f32],
}

/// A number for each head, query and key, the same in all sequences, such as T5's relative
/// position bias; minus infinity hides the key.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// `[heads, max_queries, prefix length + max_keys]`; the prefix's columns come first.
    pub values: &'a [f32],
    /// At least the queries of the longest sequence.
    pub max_queries: usize,
    /// At least the keys of the longest sequence, without the prefix.
    pub max_keys: usize,
}

/// Dropout of attention probabilities.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDropout<'a> {
    /// The probability that a probability is zeroed.
    pub probability: f32,
    /// A random key for each sequence (see [`crate::dropout`]), so that a mask belongs to a
    /// sequence, not to its index in the batch. Row `query * heads + head`, column the key, the
    /// prefix first.
    pub keys: &'a [u64],
}

/// The operands and results of the forward pass, and the gradient of the output.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBackward<'a> {
    /// Queries, `[tokens, heads * head_dim]`.
    pub q: &'a [f32],
    /// Keys, `[key tokens, kv_heads * head_dim]`.
    pub k: &'a [f32],
    /// Values, `[key tokens, kv_heads * head_dim]`.
    pub v: &'a [f32],
    /// Output, `[tokens, heads * head_dim]`; may be empty unless
    /// [`Attention::backward_reads_output`].
    pub out: &'a [f32],
    /// Log-sum-exp, `[heads, tokens]`.
    pub lse: &'a [f32],
    /// Gradient of the output, `[tokens, heads * head_dim]`.
    pub d_out: &'a [f32],
}

/// The gradients that [`Attention::backward`] computes; those that are `None` cost nothing.
#[derive(Debug, Default)]
pub struct AttentionGradients<'a> {
    /// Receives that of the queries, `[tokens, heads * head_dim]`.
    pub dq: Option<&'a mut [f32]>,
    /// Receives that of the keys, `[key tokens, kv_heads * head_dim]`.
    pub dk: Option<&'a mut [f32]>,
    /// Receives that of the values, `[key tokens, kv_heads * head_dim]`.
    pub dv: Option<&'a mut [f32]>,
    /// Receives that of the prefix keys, in the shape of [`Prefix::keys`]; a shared prefix gets the
    /// sum over the sequences.
    pub d_prefix_keys: Option<&'a mut [f32]>,
    /// Receives that of the prefix values, likewise.
    pub d_prefix_values: Option<&'a mut [f32]>,
    /// Receives that of the bias, in the shape of [`Bias::values`], summed over the sequences.
    pub d_bias: Option<&'a mut [f32]>,
}

impl<'a> Attention<'a> {
    /// Bidirectional self-attention with `heads` heads of `head_dim` and the scale 1 / √head_dim.
    /// For other kinds of attention, change its fields.
    pub fn new(boundaries: &'a [usize], heads: usize, head_dim: usize) -> Self {
        Self {
            boundaries,
            key_boundaries: None,
            heads,
            kv_heads: heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            causal: false,
            window: None,
            prefix: None,
            bias: None,
            dropout: None,
        }
    }

    /// Computes the output `out` (`[tokens, heads * head_dim]`) and the log-sum-exp of the scores
    /// `lse` (`[heads, tokens]`), from `q` (`[tokens, heads * head_dim]`), `k` and `v` (`[key
    /// tokens, kv_heads * head_dim]`).
    ///
    /// A query that sees no key gets zeros and the log-sum-exp minus infinity.
    ///
    /// # Errors
    /// [`KernelError::Length`], [`KernelError::Boundaries`] or [`KernelError::Parameter`] when
    /// shapes do not fit together.
    pub fn forward(
        &self,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        out: &mut [f32],
        lse: &mut [f32],
    ) -> Result<(), KernelError> {
        let tokens = self.check(q, k, v)?;
        KernelError::check_length("out", out, &[tokens, self.heads, self.head_dim])?;
        KernelError::check_length("lse", lse, &[self.heads, tokens])?;
        forward::forward(self, Operands { q, k, v }, out, lse);
        Ok(())
    }

    /// Computes the gradients that are `Some`.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn backward(
        &self,
        from: AttentionBackward<'_>,
        gradients: AttentionGradients<'_>,
    ) -> Result<(), KernelError> {
        let tokens = self.check(from.q, from.k, from.v)?;
        let outputs = [tokens, self.heads, self.head_dim];
        if self.backward_reads_output() || !from.out.is_empty() {
            KernelError::check_length("out", from.out, &outputs)?;
        }
        KernelError::check_length("d_out", from.d_out, &outputs)?;
        KernelError::check_length("lse", from.lse, &[self.heads, tokens])?;
        let key_tokens = from.k.len() / (self.kv_heads * self.head_dim);
        let keys = [key_tokens, self.kv_heads, self.head_dim];
        let prefix = [self.prefix.map_or(0, |prefix| prefix.keys.len())];
        let bias = [self.bias.map_or(0, |bias| bias.values.len())];
        for (operand, gradient, shape) in [
            ("dq", &gradients.dq, &outputs[..]),
            ("dk", &gradients.dk, &keys),
            ("dv", &gradients.dv, &keys),
            ("d_prefix_keys", &gradients.d_prefix_keys, &prefix),
            ("d_prefix_values", &gradients.d_prefix_values, &prefix),
            ("d_bias", &gradients.d_bias, &bias),
        ] {
            if let Some(gradient) = gradient {
                KernelError::check_length(operand, gradient, shape)?;
            }
        }
        backward::backward(self, from, gradients);
        Ok(())
    }

    /// Whether the backward pass reads the output: if a sequence has more keys, the prefix
    /// included, than one block holds. With fewer, all probabilities of a query are in one block
    /// and give the same sum.
    pub fn backward_reads_output(&self) -> bool {
        let mut lengths = self.key_boundaries().windows(2);
        lengths.any(|pair| self.prefix_len() + pair[1].saturating_sub(pair[0]) > KEYS)
    }

    /// Checks everything but the outputs, and counts the query tokens.
    fn check(&self, q: &[f32], k: &[f32], v: &[f32]) -> Result<usize, KernelError> {
        let Self {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        if head_dim == 0 || head_dim > LONGEST {
            let (got, allowed) = (head_dim.to_string(), "between 1 and 512");
            return Err(KernelError::Parameter {
                parameter: "head_dim",
                got,
                allowed,
            });
        }
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            let (got, allowed) = (kv_heads.to_string(), "a divisor of heads, both at least 1");
            return Err(KernelError::Parameter {
                parameter: "kv_heads",
                got,
                allowed,
            });
        }
        if let Some(cap) = self.softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            return Err(KernelError::Parameter {
                parameter: "softcap",
                got: cap.to_string(),
                allowed: "a finite number above 0",
            });
        }
        let tokens = KernelError::count_rows("q", q, heads * head_dim)?;
        let key_tokens = KernelError::count_rows("k", k, kv_heads * head_dim)?;
        KernelError::check_length("v", v, &[key_tokens, kv_heads, head_dim])?;
        check_boundaries("boundaries", self.boundaries, tokens)?;
        check_boundaries("key_boundaries", self.key_boundaries(), key_tokens)?;
        KernelError::check_length(
            "key_boundaries",
            self.key_boundaries(),
            &[self.boundaries.len()],
        )?;
        if let Some(prefix) = self.prefix {
            let prefixes = if prefix.per_sequence {
                self.sequences()
            } else {
                1
            };
            let shape = [prefixes, prefix.length, kv_heads, head_dim];
            KernelError::check_length("prefix.keys", prefix.keys, &shape)?;
            KernelError::check_length("prefix.values", prefix.values, &shape)?;
        }
        if let Some(bias) = self.bias {
            let longest = |boundaries: &[usize]| {
                boundaries
                    .windows(2)
                    .map(|pair| pair[1] - pair[0])
                    .max()
                    .unwrap_or(0)
            };
            let queries = bias.max_queries.max(longest(self.boundaries));
            let keys = bias.max_keys.max(longest(self.key_boundaries()));
            let shape = [heads, queries, self.prefix_len() + keys];
            KernelError::check_length("bias.values", bias.values, &shape)?;
        }
        if let Some(dropout) = self.dropout {
            Dropout::new(dropout.probability, 0)?;
            KernelError::check_length("dropout.keys", dropout.keys, &[self.sequences()])?;
        }
        Ok(tokens)
    }

    fn sequences(&self) -> usize {
        self.boundaries.len() - 1
    }

    fn prefix_len(&self) -> usize {
        self.prefix.map_or(0, |prefix| prefix.length)
    }

    fn key_boundaries(&self) -> &'a [usize] {
        self.key_boundaries.unwrap_or(self.boundaries)
    }
}

fn check_boundaries(
    operand: &'static str,
    boundaries: &[usize],
    tokens: usize,
) -> Result<(), KernelError> {
    let ends = (boundaries.first(), boundaries.last()) == (Some(&0), Some(&tokens));
    match ends && boundaries.is_sorted() {
        true => Ok(()),
        false => Err(KernelError::Boundaries { operand, tokens }),
    }
}

/// Queries, keys and values of all sequences.
#[derive(Clone, Copy)]
struct Operands<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

/// One head of one sequence. Its keys are counted from the first of the prefix.
#[derive(Clone, Copy)]
struct Head<'a> {
    attention: &'a Attention<'a>,
    operands: Operands<'a>,
    head: usize,
    /// Its query tokens, and its key tokens without the prefix.
    queries: (usize, usize),
    key_tokens: (usize, usize),
    /// The first row of its prefix, and how many rows that has.
    prefix_start: usize,
    prefix_len: usize,
    dropout: Option<Dropout>,
}

impl<'a> Head<'a> {
    #[inline(always)]
    fn new(
        attention: &'a Attention<'a>,
        operands: Operands<'a>,
        sequence: usize,
        head: usize,
    ) -> Self {
        let range = |boundaries: &[usize]| (boundaries[sequence], boundaries[sequence + 1]);
        Self {
            attention,
            operands,
            head,
            queries: range(attention.boundaries),
            key_tokens: range(attention.key_boundaries()),
            prefix_start: match attention.prefix {
                Some(prefix) if prefix.per_sequence => sequence * prefix.length,
                _ => 0,
            },
            prefix_len: attention.prefix_len(),
            dropout: attention
                .dropout
                .and_then(|dropout| Dropout::new(dropout.probability, dropout.keys[sequence]).ok()),
        }
    }

    /// How many queries it has.
    #[inline(always)]
    fn query_count(&self) -> usize {
        self.queries.1 - self.queries.0
    }

    /// How many keys it has, with the prefix.
    #[inline(always)]
    fn key_count(&self) -> usize {
        self.prefix_len + self.key_tokens.1 - self.key_tokens.0
    }

    /// A query's row of a `[tokens, heads * head_dim]` matrix.
    #[inline(always)]
    fn query_row<'b>(&self, matrix: &'b [f32], query: usize) -> &'b [f32] {
        let Attention {
            heads, head_dim, ..
        } = *self.attention;
        &matrix[((self.queries.0 + query) * heads + self.head) * head_dim..][..head_dim]
    }

    #[inline(always)]
    fn key(&self, key: usize) -> &'a [f32] {
        self.key_row(
            self.attention.prefix.map_or(&[], |prefix| prefix.keys),
            self.operands.k,
            key,
        )
    }

    #[inline(always)]
    fn value(&self, key: usize) -> &'a [f32] {
        self.key_row(
            self.attention.prefix.map_or(&[], |prefix| prefix.values),
            self.operands.v,
            key,
        )
    }

    #[inline(always)]
    fn key_row(&self, prefix: &'a [f32], own: &'a [f32], key: usize) -> &'a [f32] {
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self.attention;
        let (matrix, row) = match key.checked_sub(self.prefix_len) {
            None => (prefix, self.prefix_start + key),
            Some(key) => (own, self.key_tokens.0 + key),
        };
        let head = self.head / (heads / kv_heads);
        &matrix[(row * kv_heads + head) * head_dim..][..head_dim]
    }

    /// The keys that a query sees; perhaps none. The prefix has the positions in front of the
    /// sequence's own keys: always in the past, but not always within the window.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let count = self.key_count() - self.prefix_len;
        let position = (query + count) as isize - self.query_count() as isize;
        let prefix_len = self.prefix_len as isize;
        let start = match self.attention.window {
            None => 0,
            Some(window) => (prefix_len + position + 1).saturating_sub_unsigned(window),
        };
        let end = match (self.attention.window, self.attention.causal) {
            (_, true) => position + 1,
            (None, false) => count as isize,
            (Some(window), false) => position.saturating_add_unsigned(window),
        };
        let end = self.prefix_len + end.clamp(0, count as isize) as usize;
        end.min(start.max(0) as usize)..end
    }

    /// From one query's row of the bias to the next.
    #[inline(always)]
    fn bias_columns(&self) -> usize {
        let max_keys = self.attention.bias.map_or(0, |bias| bias.max_keys);
        self.prefix_len + max_keys
    }

    /// Whether one of these queries sees one of these keys.
    #[inline(always)]
    fn meet(&self, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        // Both ends of the visible range grow with the query.
        let start = self.visible(queries.start).start;
        let end = self.visible(queries.end - 1).end;
        keys.start < end && start < keys.end
    }

    /// Turns products of a query with these keys into scores: scaled, capped, biased, and minus
    /// infinity where hidden. Writes how much each capped score grows with its product.
    #[inline(always)]
    fn finish_scores<S: Simd>(
        &self,
        query: usize,
        keys: &Range<usize>,
        scores: &mut [f32],
        slopes: Option<&mut [f32; KEYS]>,
    ) {
        let scale = self.attention.scale;
        scores.iter_mut().for_each(|score| *score *= scale);
        if let Some(cap) = self.attention.softcap {
            scores
                .iter_mut()
                .for_each(|score| *score = tanh::<S>(*score / cap));
            if let Some(slopes) = slopes {
                let slopes = slopes.iter_mut().zip(&*scores);
                slopes.for_each(|(slope, tanh)| *slope = 1.0 - tanh * tanh);
            }
            scores.iter_mut().for_each(|score| *score *= cap);
        }
        if let Some(bias) = self.attention.bias {
            let row = self.head * bias.max_queries + query;
            let bias = &bias.values[row * self.bias_columns() + keys.start..];
            scores
                .iter_mut()
                .zip(bias)
                .for_each(|(score, bias)| *score += bias);
        }
        let visible = self.visible(query);
        for hidden in [0..visible.start, visible.end..keys.end] {
            let start = hidden.start.max(keys.start).min(keys.end);
            let end = hidden.end.max(start).min(keys.end);
            scores[start - keys.start..end - keys.start].fill(f32::NEG_INFINITY);
        }
    }

    /// Dropout's factors on the probabilities of a query and these keys.
    #[inline(always)]
    fn dropout_factors(&self, dropout: Dropout, query: usize, keys: &Range<usize>) -> [f32; KEYS] {
        let row = (query * self.attention.heads + self.head) as u64;
        let mut factors = [0.0; KEYS];
        for (block, factors) in factors
            .as_chunks_mut::<{ dropout::BLOCK }>()
            .0
            .iter_mut()
            .enumerate()
        {
            *factors = dropout.factors(row, keys.start / dropout::BLOCK + block);
        }
        factors
    }
}

/// Cuts a `[tokens, heads * head_dim]` matrix into the rows of each sequence and head, at index
/// `sequence * heads + head`.
fn by_head<'b>(
    matrix: &'b mut [f32],
    boundaries: &[usize],
    heads: usize,
    head_dim: usize,
) -> Vec<Vec<&'b mut [f32]>> {
    let mut rows = matrix.chunks_exact_mut(heads * head_dim);
    let mut parts = Vec::with_capacity((boundaries.len() - 1) * heads);
    for pair in boundaries.windows(2) {
        let count = pair[1] - pair[0];
        let first = parts.len();
        parts.resize_with(first + heads, || Vec::with_capacity(count));
        for row in rows.by_ref().take(count) {
            for (part, row) in parts[first..]
                .iter_mut()
                .zip(row.chunks_exact_mut(head_dim))
            {
                part.push(row);
            }
        }
    }
    parts
}
