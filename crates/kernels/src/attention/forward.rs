//! The forward pass: one task for each block of queries of each head of each sequence.

use std::ops::Range;

use super::{Attention, Head, KEYS, Operands, QUERIES, SCORES, by_head};
use crate::gemm::small::{ROW, multiply, pack_columns, pack_left, pack_rows, panels_len};
use crate::math::exp;
use crate::simd::{kernel, max, sum};
use crate::{scratch, threads};

/// A block of queries and where its results go.
struct Block<'a> {
    sequence: usize,
    head: usize,
    first: usize,
    out: Vec<&'a mut [f32]>,
    lse: &'a mut [f32],
}

/// [`Attention::forward`], its operands checked.
pub(super) fn forward(
    attention: &Attention<'_>,
    operands: Operands<'_>,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let Attention {
        boundaries,
        heads,
        head_dim,
        ..
    } = *attention;
    let tokens = out.len() / (heads * head_dim);
    let mut out = by_head(out, boundaries, heads, head_dim)
        .into_iter()
        .map(Vec::into_iter);
    let mut lse: Vec<_> = lse.chunks_exact_mut(tokens.max(1)).collect();
    let mut blocks = Vec::new();
    for (sequence, pair) in boundaries.windows(2).enumerate() {
        let count = pair[1] - pair[0];
        for (head, (lse, mut out)) in lse.iter_mut().zip(out.by_ref().take(heads)).enumerate() {
            let Some(lse) = lse.split_off_mut(..count) else {
                continue;
            };
            for (block, lse) in lse.chunks_mut(QUERIES).enumerate() {
                let out = out.by_ref().take(QUERIES).collect();
                blocks.push(Block {
                    sequence,
                    head,
                    first: block * QUERIES,
                    out,
                    lse,
                });
            }
        }
    }
    threads::for_each(blocks, |block| {
        let head = Head::new(attention, operands, block.sequence, block.head);
        let count = block.out.len();
        let memory = [
            count * ROW,
            KEYS * ROW,
            count * SCORES,
            panels_len(head_dim, KEYS).max(panels_len(KEYS, head_dim)),
            count * head_dim,
        ];
        scratch::floats(memory, |memory| forward_block(head, block, memory));
    });
}

fn forward_block(head: Head<'_>, block: Block<'_>, memory: [&mut [f32]; 5]) {
    let Block {
        first, out, lse, ..
    } = block;
    let [q, k, scores, panels, result] = memory;
    let (dim, count) = (head.attention.head_dim, out.len());
    let queries = first..first + count;
    let mut running = Running {
        largest: [f32::NEG_INFINITY; QUERIES],
        total: [0.0; QUERIES],
    };
    pack_left(
        queries
            .clone()
            .map(|query| head.query_row(head.operands.q, query)),
        q,
    );
    result.fill(0.0);

    for start in (0..head.key_count()).step_by(KEYS) {
        let keys = start..head.key_count().min(start + KEYS);
        if !head.meet(&queries, &keys) {
            continue;
        }
        pack_left(keys.clone().map(|key| head.key(key)), k);
        pack_columns((dim, keys.len()), k, panels);
        multiply((count, keys.len(), dim), q, panels, (scores, SCORES), false);
        exponentiate(&head, &queries, &keys, scores, &mut running, result);
        pack_rows(
            (keys.len(), dim),
            keys.clone().map(|key| head.value(key)),
            panels,
        );
        multiply(
            (count, dim, keys.len()),
            scores,
            panels,
            (result, dim),
            true,
        );
    }

    let rows = result
        .chunks_exact(dim)
        .zip(running.largest.into_iter().zip(running.total));
    for ((out, lse), (result, (largest, total))) in out.into_iter().zip(lse).zip(rows) {
        let unseen = total == 0.0;
        let scale = if unseen { 0.0 } else { 1.0 / total };
        *lse = if unseen {
            f32::NEG_INFINITY
        } else {
            largest + total.ln()
        };
        out.iter_mut()
            .zip(result)
            .for_each(|(out, result)| *out = result * scale);
    }
}

/// For each query, the largest score so far and the sum of exponentials relative to it.
struct Running {
    largest: [f32; QUERIES],
    total: [f32; QUERIES],
}

kernel! {
    /// Turns products of queries and keys into probabilities that are not yet divided by their sum,
    /// and rescales the results so far to the new running maximum.
    fn exponentiate<S>(
        head: &Head<'_>, queries: &Range<usize>, keys: &Range<usize>,
        scores: &mut [f32], running: &mut Running, result: &mut [f32],
    ) {
        let dim = head.attention.head_dim;
        let rows = scores.chunks_exact_mut(SCORES).zip(result.chunks_exact_mut(dim));
        let running = running.largest.iter_mut().zip(&mut running.total);
        let rows = queries.clone().zip(rows).zip(running);
        for ((query, (scores, result)), (largest, total)) in rows {
            let scores = &mut scores[..keys.len()];
            head.finish_scores::<S>(query, keys, scores, None);
            let larger = max(scores).max(*largest);
            // Every key is hidden. NaN, which a maximum passes over, goes on and makes the sum NaN.
            if larger == f32::NEG_INFINITY && !scores.iter().any(|score| score.is_nan()) {
                scores.fill(0.0);
                continue;
            }
            let shrink = exp::<S>(*largest - larger);
            for score in scores.iter_mut() {
                *score = exp::<S>(*score - larger);
            }
            *total = *total * shrink + sum(scores);
            *largest = larger;
            if let Some(dropout) = head.dropout {
                let factors = head.dropout_factors(dropout, query, keys);
                scores.iter_mut().zip(factors).for_each(|(score, factor)| *score *= factor);
            }
            result.iter_mut().for_each(|result| *result *= shrink);
        }
    }
}
