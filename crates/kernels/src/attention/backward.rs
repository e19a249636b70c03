//! The backward pass: one task for each query head of each sequence.
//!
//! With probabilities P, dropout factors F and dP = dO vᵀ, the gradient of the scores is
//! dS = P (F dP - δ), where δ is the sum of P F dP over the keys, which is that of dO · O over the
//! head. Then dq = scale · dS k, dk = scale · dSᵀ q and dv = (F P)ᵀ dO. A task iterates over blocks
//! of keys, and for each over the blocks of queries that see it. If all keys are in one block, δ is
//! the former sum and the output is not read; which of the two depends on the sequence alone.
//!
//! The gradient of the bias is the sum of dS over the sequences. If it is wanted, one thread
//! runs all sequences of a head in order, so the sum does not depend on the number of threads and
//! needs no copies.

use std::ops::Range;

use super::{
    Attention, AttentionBackward, AttentionGradients, Head, KEYS, Operands, QUERIES, SCORES,
    by_head,
};
use crate::gemm::small::{
    ROW, multiply, pack_columns, pack_left, pack_rows, panels_len, transpose_left,
};
use crate::math::exp;
use crate::simd::{dot, kernel};
use crate::{scratch, threads};

/// Rows of keys or values whose gradients a thread sums at a time.
const SUMMED_ROWS: usize = 64;

/// [`Attention::backward`], its operands checked.
pub(super) fn backward(
    attention: &Attention<'_>,
    from: AttentionBackward<'_>,
    gradients: AttentionGradients<'_>,
) {
    let Attention {
        boundaries,
        heads,
        head_dim,
        ..
    } = *attention;
    let AttentionGradients {
        dq,
        dk,
        dv,
        d_prefix_keys,
        d_prefix_values,
        d_bias,
    } = gradients;
    let mut dk = KeyGradient::new(attention, dk, d_prefix_keys);
    let mut dv = KeyGradient::new(attention, dv, d_prefix_values);

    let dq = rows_of_tasks(dq.map(|dq| by_head(dq, boundaries, heads, head_dim)));
    let sites = (0..attention.sequences()).flat_map(|s| (0..heads).map(move |head| (s, head)));
    let tasks: Vec<_> = sites
        .zip(dq)
        .zip(dk.tasks(attention).zip(dv.tasks(attention)))
        .map(|(((sequence, head), dq), (dk, dv))| Task {
            sequence,
            head,
            dq,
            dk,
            dv,
        })
        .collect();
    let operands = Operands {
        q: from.q,
        k: from.k,
        v: from.v,
    };
    let run = |task: Task<'_>, d_bias: &mut [f32]| {
        let head = Head::new(attention, operands, task.sequence, task.head);
        let queries = QUERIES.min(head.query_count());
        let memory = [
            head.query_count(),
            queries.max(KEYS) * ROW,
            queries * SCORES,
            queries * SCORES,
            panels_len(head_dim, KEYS),
            panels_len(head_dim, KEYS),
            panels_len(KEYS, head_dim),
            panels_len(queries, head_dim),
            KEYS * head_dim,
            KEYS * head_dim,
            task.dq.len() * head_dim,
        ];
        scratch::floats(memory, |memory| {
            backward_head(head, from, task, d_bias, memory);
        });
    };
    match d_bias.filter(|d_bias| !d_bias.is_empty()) {
        None => threads::for_each(tasks, |task| run(task, &mut [])),
        Some(d_bias) => {
            let mut tasks_of_head: Vec<Vec<_>> = (0..heads).map(|_| Vec::new()).collect();
            for task in tasks {
                tasks_of_head[task.head].push(task);
            }
            let bias_of_head = d_bias.chunks_exact_mut(d_bias.len() / heads);
            threads::for_each(
                tasks_of_head.into_iter().zip(bias_of_head),
                |(tasks, bias)| {
                    bias.fill(0.0);
                    tasks.into_iter().for_each(|task| run(task, bias));
                },
            );
        }
    }

    dk.finish(attention);
    dv.finish(attention);
}

/// The gradients of one head of one sequence.
struct Task<'a> {
    sequence: usize,
    head: usize,
    dq: Vec<&'a mut [f32]>,
    dk: KeyRows<'a>,
    dv: KeyRows<'a>,
}

/// Where the gradients of a head's keys (or values) go, row by row; empty if not wanted.
struct KeyRows<'a> {
    prefix: Vec<&'a mut [f32]>,
    own: Vec<&'a mut [f32]>,
}

impl KeyRows<'_> {
    /// Whether the gradient of one of these keys is wanted.
    fn want(&self, keys: &Range<usize>, prefix_len: usize) -> bool {
        (keys.start < prefix_len && !self.prefix.is_empty())
            || (keys.end > prefix_len && !self.own.is_empty())
    }

    /// Takes the rows of these keys, `[keys, dim]`.
    fn store(&mut self, keys: &Range<usize>, prefix_len: usize, block: &[f32], dim: usize) {
        for (key, gradient) in keys.clone().zip(block.chunks_exact(dim)) {
            let row = match key.checked_sub(prefix_len) {
                None => self.prefix.get_mut(key),
                Some(key) => self.own.get_mut(key),
            };
            if let Some(row) = row {
                row.copy_from_slice(gradient);
            }
        }
    }
}

/// The gradient of the keys (or values) of all sequences, and that of the prefixes.
struct KeyGradient<'g> {
    own: SharedRows<'g>,
    prefix: SharedRows<'g>,
}

impl<'g> KeyGradient<'g> {
    fn new(
        attention: &Attention<'_>,
        own: Option<&'g mut [f32]>,
        prefix: Option<&'g mut [f32]>,
    ) -> Self {
        let prefixes = (0..=attention.sequences())
            .map(|s| s * attention.prefix_len())
            .collect();
        Self {
            own: SharedRows::new(attention, own, attention.key_boundaries().to_vec()),
            prefix: SharedRows::new(attention, prefix, prefixes),
        }
    }

    fn tasks(&mut self, attention: &Attention<'_>) -> impl Iterator<Item = KeyRows<'_>> {
        let rows = self.prefix.tasks(attention).zip(self.own.tasks(attention));
        rows.map(|(prefix, own)| KeyRows { prefix, own })
    }

    fn finish(self, attention: &Attention<'_>) {
        self.own.finish(attention);
        self.prefix.finish(attention);
    }
}

/// A `[rows, kv_heads * head_dim]` gradient to which several heads (and, for a shared prefix,
/// several sequences) contribute: each writes a copy of its own, and the copies are summed in
/// order.
struct SharedRows<'g> {
    gradient: Option<&'g mut [f32]>,
    /// `[rows of all copies, heads * head_dim]`; `None` if each row has one contributor, which then
    /// writes the gradient itself.
    copies: Option<Vec<f32>>,
    /// Where the rows of each sequence start.
    boundaries: Vec<usize>,
}

impl<'g> SharedRows<'g> {
    fn new(
        attention: &Attention<'_>,
        gradient: Option<&'g mut [f32]>,
        boundaries: Vec<usize>,
    ) -> Self {
        let written = boundaries[attention.sequences()] * attention.heads * attention.head_dim;
        let shared = gradient
            .as_ref()
            .is_some_and(|gradient| gradient.len() != written);
        Self {
            gradient,
            copies: shared.then(|| vec![0.0; written]),
            boundaries,
        }
    }

    /// The rows that each task writes.
    fn tasks(&mut self, attention: &Attention<'_>) -> impl Iterator<Item = Vec<&mut [f32]>> {
        let Attention {
            heads, head_dim, ..
        } = *attention;
        let target = match (&mut self.gradient, &mut self.copies) {
            (Some(_), Some(copies)) => Some(copies.as_mut_slice()),
            (Some(gradient), None) => Some(&mut **gradient),
            (None, _) => None,
        };
        rows_of_tasks(target.map(|target| by_head(target, &self.boundaries, heads, head_dim)))
    }

    fn finish(self, attention: &Attention<'_>) {
        let (Some(gradient), Some(copies)) = (self.gradient, self.copies) else {
            return;
        };
        let Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *attention;
        let (width, group) = (kv_heads * head_dim, heads / kv_heads);
        let copy_len = gradient.len() * group;
        let parts = gradient.chunks_mut(SUMMED_ROWS * width).enumerate();
        threads::for_each(parts, |(part, gradient)| {
            gradient.fill(0.0);
            let first = part * SUMMED_ROWS * width * group;
            for copy in copies.chunks_exact(copy_len) {
                let heads = copy[first..].chunks_exact(group * head_dim);
                for (sum, group) in gradient.chunks_exact_mut(head_dim).zip(heads) {
                    for head in group.chunks_exact(head_dim) {
                        sum.iter_mut()
                            .zip(head)
                            .for_each(|(sum, head)| *sum += head);
                    }
                }
            }
        });
    }
}

/// The rows of each task, or no rows for any task.
fn rows_of_tasks(rows: Option<Vec<Vec<&mut [f32]>>>) -> impl Iterator<Item = Vec<&mut [f32]>> {
    rows.into_iter()
        .flatten()
        .chain(std::iter::repeat_with(Vec::new))
}

fn backward_head(
    head: Head<'_>,
    from: AttentionBackward<'_>,
    task: Task<'_>,
    d_bias: &mut [f32],
    memory: [&mut [f32]; 11],
) {
    // A left operand; P, later F P; dP, later dS; right operands; gradients.
    let [
        delta,
        left,
        p,
        ds,
        key_columns,
        value_columns,
        key_rows,
        query_rows,
        dk_block,
        dv_block,
        dq_rows,
    ] = memory;
    let Task {
        mut dq,
        mut dk,
        mut dv,
        ..
    } = task;
    let (dim, count, prefix_len) = (head.attention.head_dim, head.query_count(), head.prefix_len);
    let tokens = from.lse.len() / head.attention.heads;
    let lse = &from.lse[head.head * tokens + head.queries.0..][..count];
    let whole = head.key_count() <= KEYS;
    if !whole {
        output_dots(&head, from, delta);
    }
    dq_rows.fill(0.0);

    for start in (0..head.key_count()).step_by(KEYS) {
        let keys = start..head.key_count().min(start + KEYS);
        let (want_k, want_v) = (dk.want(&keys, prefix_len), dv.want(&keys, prefix_len));
        if dq.is_empty() && d_bias.is_empty() && !want_k && !want_v {
            continue;
        }
        pack_left(keys.clone().map(|key| head.key(key)), left);
        pack_columns((dim, keys.len()), left, key_columns);
        pack_left(keys.clone().map(|key| head.value(key)), left);
        pack_columns((dim, keys.len()), left, value_columns);
        pack_rows(
            (keys.len(), dim),
            keys.clone().map(|key| head.key(key)),
            key_rows,
        );
        dk_block.fill(0.0);
        dv_block.fill(0.0);

        for first in (0..count).step_by(QUERIES) {
            let queries = first..count.min(first + QUERIES);
            if !head.meet(&queries, &keys) {
                continue;
            }
            let rows = |matrix| {
                queries
                    .clone()
                    .map(move |query| head.query_row(matrix, query))
            };
            let shape = (queries.len(), keys.len(), dim);
            pack_left(rows(from.q), left);
            multiply(shape, left, key_columns, (p, SCORES), false);
            pack_left(rows(from.d_out), left);
            multiply(shape, left, value_columns, (ds, SCORES), false);
            let delta = (!whole).then_some(&*delta);
            score_gradients(&head, &queries, &keys, lse, delta, p, ds, d_bias);

            if !dq.is_empty() {
                let dq = &mut dq_rows[first * dim..];
                multiply(
                    (queries.len(), dim, keys.len()),
                    ds,
                    key_rows,
                    (dq, dim),
                    true,
                );
            }
            let shape = (keys.len(), dim, queries.len());
            if want_k {
                transpose_left((keys.len(), queries.len()), ds, left);
                pack_rows((queries.len(), dim), rows(from.q), query_rows);
                multiply(shape, left, query_rows, (dk_block, dim), true);
            }
            if want_v {
                transpose_left((keys.len(), queries.len()), p, left);
                pack_rows((queries.len(), dim), rows(from.d_out), query_rows);
                multiply(shape, left, query_rows, (dv_block, dim), true);
            }
        }
        dk.store(&keys, prefix_len, dk_block, dim);
        dv.store(&keys, prefix_len, dv_block, dim);
    }

    for (row, gradient) in dq.iter_mut().zip(dq_rows.chunks_exact(dim)) {
        row.copy_from_slice(gradient);
    }
}

kernel! {
    /// δ of every query.
    fn output_dots<S>(head: &Head<'_>, from: AttentionBackward<'_>, delta: &mut [f32]) {
        for (query, delta) in delta.iter_mut().enumerate() {
            *delta = dot::<S>(head.query_row(from.d_out, query), head.query_row(from.out, query));
        }
    }
}

kernel! {
    /// Turns the products q kᵀ into F P, and dP into dS times the scale. Adds dS to `d_bias`, the
    /// head's, unless that is empty. Without `delta`, `keys` are all keys, and δ is summed here.
    #[expect(clippy::too_many_arguments, reason = "the operands and results of one block")]
    fn score_gradients<S>(
        head: &Head<'_>, queries: &Range<usize>, keys: &Range<usize>,
        lse: &[f32], delta: Option<&[f32]>, p: &mut [f32], ds: &mut [f32], d_bias: &mut [f32],
    ) {
        let scale = head.attention.scale;
        let rows = p.chunks_exact_mut(SCORES).zip(ds.chunks_exact_mut(SCORES));
        for (query, (p, ds)) in queries.clone().zip(rows) {
            let (p, ds) = (&mut p[..keys.len()], &mut ds[..keys.len()]);
            let lse = lse[query];
            if lse == f32::NEG_INFINITY {
                p.fill(0.0);
                ds.fill(0.0);
                continue;
            }
            let mut slopes = [1.0; KEYS];
            head.finish_scores::<S>(query, keys, p, Some(&mut slopes));
            for p in p.iter_mut() {
                *p = exp::<S>(*p - lse);
            }
            let factors = head.dropout.map(|dropout| head.dropout_factors(dropout, query, keys));
            if let Some(factors) = &factors {
                ds.iter_mut().zip(factors).for_each(|(ds, factor)| *ds *= factor);
            }
            let delta = match delta {
                Some(delta) => delta[query],
                None => dot::<S>(p, ds),
            };
            if !d_bias.is_empty() {
                let d_bias = &mut d_bias[query * head.bias_columns() + keys.start..];
                for ((d_bias, p), ds) in d_bias.iter_mut().zip(&*p).zip(&*ds) {
                    *d_bias += p * (ds - delta);
                }
            }
            for (p, ds) in p.iter().zip(ds.iter_mut()) {
                *ds = scale * *p * (*ds - delta);
            }
            if head.attention.softcap.is_some() {
                ds.iter_mut().zip(slopes).for_each(|(ds, slope)| *ds *= slope);
            }
            if let Some(factors) = &factors {
                p.iter_mut().zip(factors).for_each(|(p, factor)| *p *= factor);
            }
        }
    }
}
