//! One attention with its numbers, and what it should give, in f64.

use epiphyte_kernels::attention::{
    Attention, AttentionBackward, AttentionDropout, AttentionGradients, Bias, Prefix,
};
use epiphyte_kernels::dropout::Dropout;

use crate::support::*;

/// An attention and its operands.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) lengths: Vec<usize>,
    /// Lengths of the keys where they differ.
    pub(super) key_lengths: Option<Vec<usize>>,
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) causal: bool,
    pub(super) softcap: Option<f32>,
    pub(super) window: Option<usize>,
    pub(super) prefix_len: usize,
    /// Whether each sequence has a prefix of its own.
    pub(super) prefixes: bool,
    pub(super) bias: bool,
    pub(super) dropout: f32,
    pub(super) seed: u64,
}

impl Case {
    pub(super) fn plain(lengths: &[usize], kv_heads: usize, group: usize, head_dim: usize) -> Self {
        Self {
            lengths: lengths.to_vec(),
            key_lengths: None,
            kv_heads,
            group,
            head_dim,
            causal: false,
            softcap: None,
            window: None,
            prefix_len: 0,
            prefixes: false,
            bias: false,
            dropout: 0.0,
            seed: 1,
        }
    }

    pub(super) fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    /// A score after the cap, and its slope.
    fn capped(&self, score: f64) -> (f64, f64) {
        match self.softcap.map(f64::from) {
            Some(cap) => (
                (score / cap).tanh() * cap,
                1.0 - (score / cap).tanh().powi(2),
            ),
            None => (score, 1.0),
        }
    }

    pub(super) fn key_lengths(&self) -> &[usize] {
        self.key_lengths.as_ref().unwrap_or(&self.lengths)
    }
}

pub(super) fn boundaries(lengths: &[usize]) -> Vec<usize> {
    let mut end = 0;
    std::iter::once(0)
        .chain(lengths.iter().map(|length| {
            end += length;
            end
        }))
        .collect()
}

/// The numbers of a case.
pub(super) struct Numbers {
    pub(super) boundaries: Vec<usize>,
    pub(super) key_boundaries: Option<Vec<usize>>,
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    pub(super) d_out: Vec<f32>,
    pub(super) prefix_keys: Vec<f32>,
    pub(super) prefix_values: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) max_queries: usize,
    pub(super) max_keys: usize,
    pub(super) keys: Vec<u64>,
}

impl Numbers {
    pub(super) fn of(case: &Case) -> Self {
        let (tokens, key_tokens) = (
            case.lengths.iter().sum::<usize>(),
            case.key_lengths().iter().sum::<usize>(),
        );
        let (width, kv_width) = (case.heads() * case.head_dim, case.kv_heads * case.head_dim);
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        let (max_queries, max_keys) = (longest(&case.lengths) + 1, longest(case.key_lengths()) + 2);
        let mut bias = normals(
            case.heads() * max_queries * (case.prefix_len + max_keys),
            case.seed + 7,
        );
        let prefix_rows = if case.prefixes {
            case.prefix_len * case.lengths.len()
        } else {
            case.prefix_len
        };
        // Some keys hidden by the bias.
        bias.iter_mut()
            .filter(|bias| **bias > 1.5)
            .for_each(|bias| *bias = f32::NEG_INFINITY);
        Self {
            boundaries: boundaries(&case.lengths),
            key_boundaries: case.key_lengths.as_deref().map(boundaries),
            q: normals(tokens * width, case.seed),
            k: normals(key_tokens * kv_width, case.seed + 1),
            v: normals(key_tokens * kv_width, case.seed + 2),
            d_out: normals(tokens * width, case.seed + 3),
            prefix_keys: normals(prefix_rows * kv_width, case.seed + 4),
            prefix_values: normals(prefix_rows * kv_width, case.seed + 5),
            bias,
            max_queries,
            max_keys,
            keys: (0..case.lengths.len() as u64)
                .map(|sequence| case.seed * 1000 + sequence)
                .collect(),
        }
    }

    pub(super) fn attention(&self, case: &Case) -> Attention<'_> {
        Attention {
            key_boundaries: self.key_boundaries.as_deref(),
            kv_heads: case.kv_heads,
            causal: case.causal,
            softcap: case.softcap,
            window: case.window,
            prefix: (case.prefix_len > 0).then_some(Prefix {
                length: case.prefix_len,
                per_sequence: case.prefixes,
                keys: &self.prefix_keys,
                values: &self.prefix_values,
            }),
            bias: case.bias.then_some(Bias {
                values: &self.bias,
                max_queries: self.max_queries,
                max_keys: self.max_keys,
            }),
            dropout: (case.dropout > 0.0).then_some(AttentionDropout {
                probability: case.dropout,
                keys: &self.keys,
            }),
            ..Attention::new(&self.boundaries, case.heads(), case.head_dim)
        }
    }

    /// Everything the kernels compute: out, lse, dq, dk, dv, d_prefix_keys, d_prefix_values and,
    /// with a bias, d_bias.
    pub(super) fn kernels(&self, case: &Case) -> Vec<Vec<f32>> {
        let attention = self.attention(case);
        let mut out = vec![f32::NAN; self.q.len()];
        let mut lse = vec![f32::NAN; self.q.len() / case.head_dim];
        attention
            .forward(&self.q, &self.k, &self.v, &mut out, &mut lse)
            .unwrap();
        let bias = if case.bias { &self.bias[..] } else { &[] };
        let [mut dq, mut dk, mut dv, mut dpk, mut dpv, mut d_bias] = [
            &self.q[..],
            &self.k,
            &self.v,
            &self.prefix_keys,
            &self.prefix_values,
            bias,
        ]
        .map(|x| vec![f32::NAN; x.len()]);
        let gradients = AttentionGradients {
            dq: Some(&mut dq),
            dk: Some(&mut dk),
            dv: Some(&mut dv),
            d_prefix_keys: Some(&mut dpk),
            d_prefix_values: Some(&mut dpv),
            d_bias: Some(&mut d_bias),
        };
        let read = if attention.backward_reads_output() {
            &out[..]
        } else {
            &[]
        };
        attention
            .backward(self.saved(read, &lse), gradients)
            .unwrap();
        vec![out, lse, dq, dk, dv, dpk, dpv, d_bias]
    }

    pub(super) fn saved<'a>(&'a self, out: &'a [f32], lse: &'a [f32]) -> AttentionBackward<'a> {
        AttentionBackward {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            out,
            lse,
            d_out: &self.d_out,
        }
    }

    /// The operands of the reference: q, k, v, prefix keys, prefix values, bias.
    pub(super) fn operands(&self, case: &Case) -> [Vec<f64>; 6] {
        [
            &self.q[..],
            &self.k,
            &self.v,
            &self.prefix_keys,
            &self.prefix_values,
            if case.bias { &self.bias } else { &[] },
        ]
        .map(f64s)
    }

    /// Calls `visit` with every query token, each of its heads, and the keys that it sees.
    pub(super) fn visits(&self, case: &Case, mut visit: impl FnMut(usize, usize, &[Key])) {
        let key_boundaries = self.key_boundaries.as_ref().unwrap_or(&self.boundaries);
        let lengths = case.lengths.iter().zip(case.key_lengths());
        for (sequence, (&queries, &keys)) in lengths.enumerate() {
            for query in 0..queries {
                for head in 0..case.heads() {
                    let columns = case.prefix_len + keys;
                    let mut factors = vec![1.0; columns];
                    if case.dropout > 0.0 {
                        let dropout = Dropout::new(case.dropout, self.keys[sequence]).unwrap();
                        dropout
                            .apply(
                                &mut factors,
                                columns.max(1),
                                (query * case.heads() + head) as u64,
                            )
                            .unwrap();
                    }
                    let position = (query + keys) as i64 - queries as i64;
                    let mut visible = Vec::new();
                    for (column, &factor) in factors.iter().enumerate() {
                        let own = column as i64 - case.prefix_len as i64;
                        // The prefix is always in the past; how far, its place in front of the keys
                        // says.
                        let hidden_by_window = |window: usize| {
                            position - own >= window as i64
                                || own >= 0 && own - position >= window as i64
                        };
                        let seen = (own < 0 || !case.causal || own <= position)
                            && !case.window.is_some_and(hidden_by_window);
                        let bias = (head * self.max_queries + query)
                            * (case.prefix_len + self.max_keys)
                            + column;
                        if seen {
                            visible.push(Key {
                                prefix: own < 0,
                                row: if own < 0 && case.prefixes {
                                    sequence * case.prefix_len + column
                                } else if own < 0 {
                                    column
                                } else {
                                    key_boundaries[sequence] + own as usize
                                },
                                bias,
                                factor: f64::from(factor),
                            });
                        }
                    }
                    visit(self.boundaries[sequence] + query, head, &visible);
                }
            }
        }
    }

    pub(super) fn reference_forward(
        &self,
        case: &Case,
        operands: &[Vec<f64>; 6],
    ) -> (Vec<f64>, Vec<f64>) {
        let [q, k, v, prefix_keys, prefix_values, bias] = operands;
        let (heads, dim) = (case.heads(), case.head_dim);
        let tokens = q.len() / (heads * dim);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; tokens * heads]);
        self.visits(case, |token, head, keys| {
            let kv_row = |row: usize| (row * case.kv_heads + head / case.group) * dim;
            let q = &q[(token * heads + head) * dim..][..dim];
            let scores: Vec<f64> = keys
                .iter()
                .map(|key| {
                    let matrix = if key.prefix { prefix_keys } else { k };
                    let score = dot(q, &matrix[kv_row(key.row)..][..dim]) / (dim as f64).sqrt();
                    case.capped(score).0 + key.bias(bias)
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores
                .iter()
                .map(|s| {
                    if largest.is_finite() {
                        (s - largest).exp()
                    } else {
                        0.0
                    }
                })
                .sum();
            lse[head * tokens + token] = if total > 0.0 {
                largest + total.ln()
            } else {
                f64::NEG_INFINITY
            };
            for (key, score) in keys.iter().zip(&scores) {
                if total > 0.0 {
                    let probability = (score - largest).exp() / total * key.factor;
                    let matrix = if key.prefix { prefix_values } else { v };
                    for d in 0..dim {
                        out[(token * heads + head) * dim + d] +=
                            probability * matrix[kv_row(key.row) + d];
                    }
                }
            }
        });
        (out, lse)
    }

    pub(super) fn reference_backward(
        &self,
        case: &Case,
        operands: &[Vec<f64>; 6],
    ) -> ([Vec<f64>; 6], [f64; 6]) {
        let (out, lse) = self.reference_forward(case, operands);
        let [q, k, v, prefix_keys, prefix_values, bias] = operands;
        let d_out = f64s(&self.d_out);
        let (heads, dim) = (case.heads(), case.head_dim);
        let tokens = q.len() / (heads * dim);
        let scale = 1.0 / (dim as f64).sqrt();
        let mut gradients = operands.each_ref().map(|x| vec![0.0; x.len()]);
        let mut terms = operands.each_ref().map(|x| vec![0.0; x.len()]);
        let [dq, dk, dv, dpk, dpv, d_bias] = &mut gradients;
        let [tq, tk, tv, tpk, tpv, t_bias] = &mut terms;
        let absolute =
            |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x * y).abs()).sum::<f64>();
        self.visits(case, |token, head, keys| {
            let kv_row = |row: usize| (row * case.kv_heads + head / case.group) * dim;
            let at = (token * heads + head) * dim;
            let lse = lse[head * tokens + token];
            if lse == f64::NEG_INFINITY {
                return;
            }
            let delta = dot(&out[at..][..dim], &d_out[at..][..dim]);
            let delta_terms = absolute(&out[at..][..dim], &d_out[at..][..dim]);
            for key in keys {
                let (k, v, dk, dv, tk, tv) = match key.prefix {
                    true => (
                        prefix_keys,
                        prefix_values,
                        &mut *dpk,
                        &mut *dpv,
                        &mut *tpk,
                        &mut *tpv,
                    ),
                    false => (k, v, &mut *dk, &mut *dv, &mut *tk, &mut *tv),
                };
                let row = kv_row(key.row);
                let score = dot(&q[at..][..dim], &k[row..][..dim]) * scale;
                let (score, slope) = case.capped(score);
                let score = score + key.bias(bias);
                let p = (score - lse).exp();
                let d_score = p * (key.factor * dot(&d_out[at..][..dim], &v[row..][..dim]) - delta);
                let score_terms = p
                    * (key.factor * absolute(&d_out[at..][..dim], &v[row..][..dim]) + delta_terms);
                if let Some(sum) = d_bias.get_mut(key.bias) {
                    *sum += d_score;
                    t_bias[key.bias] += score_terms;
                }
                let (ds, ds_terms) = (d_score * slope * scale, score_terms * slope * scale);
                for d in 0..dim {
                    dq[at + d] += ds * k[row + d];
                    dk[row + d] += ds * q[at + d];
                    dv[row + d] += p * key.factor * d_out[at + d];
                    tq[at + d] += (ds_terms * k[row + d]).abs();
                    tk[row + d] += (ds_terms * q[at + d]).abs();
                    tv[row + d] += (p * key.factor * d_out[at + d]).abs();
                }
            }
        });
        let largest = |terms: Vec<f64>| terms.into_iter().fold(0.0, f64::max);
        (gradients, terms.map(largest))
    }
}

/// A key that a query sees.
pub(super) struct Key {
    pub(super) prefix: bool,
    pub(super) row: usize,
    /// Where its bias is, if there is one.
    bias: usize,
    pub(super) factor: f64,
}

impl Key {
    fn bias(&self, values: &[f64]) -> f64 {
        values.get(self.bias).copied().unwrap_or(0.0)
    }
}
