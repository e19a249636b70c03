//! The forward pass: one task for each block of queries of each head of each sequence.

use super::{Attention, Head, KEYS, Operands, QUERIES, by_head};
use crate::math::exp;
use crate::simd::{kernel, max, sum};
use crate::tile::{Left, multiply, pack_columns, pack_rows};
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
    let Attention { boundaries, heads, head_dim, .. } = *attention;
    let tokens = out.len() / (heads * head_dim);
    let mut out = by_head(out, boundaries, heads, head_dim).into_iter().map(Vec::into_iter);
    let mut lse: Vec<_> = lse.chunks_exact_mut(tokens.max(1)).collect();
    let mut blocks = Vec::new();
    for (sequence, pair) in boundaries.windows(2).enumerate() {
        let count = pair[1] - pair[0];
        for (head, (lse, mut out)) in lse.iter_mut().zip(out.by_ref().take(heads)).enumerate() {
            let Some(lse) = lse.split_off_mut(..count) else { continue };
            for (block, lse) in lse.chunks_mut(QUERIES).enumerate() {
                let out = out.by_ref().take(QUERIES).collect();
                blocks.push(Block { sequence, head, first: block * QUERIES, out, lse });
            }
        }
    }
    threads::for_each(blocks, |block| {
        let head = Head::new(attention, operands, block.sequence, block.head);
        let (count, padded) = (block.out.len(), attention.padded_dim());
        let memory = [count * KEYS, KEYS * padded, count * padded];
        scratch::floats(memory, |memory| forward_block(head, block, memory));
    });
}

kernel! {
    fn forward_block<S>(head: Head<'_>, block: Block<'_>, memory: [&mut [f32]; 3]) {
        let Block { first, mut out, lse, .. } = block;
        let [scores, panels, result] = memory;
        let (dim, padded, count) = (head.attention.head_dim, head.attention.padded_dim(), out.len());
        let queries = first..first + count;
        let q = head.query_rows(head.operands.q, first);

        result.fill(0.0);
        // Of the scores so far: the largest, and the sum of exponentials relative to it.
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        let mut total = [0.0f32; QUERIES];

        for start in (0..head.key_count()).step_by(KEYS) {
            let keys = start..head.key_count().min(start + KEYS);
            if !head.meet(&queries, &keys) {
                continue;
            }
            pack_columns::<S>(dim, keys.len(), |key| head.key(start + key), panels);
            multiply::<S, false, false>((count, keys.len(), dim), q, panels, scores, KEYS);

            for (row, scores) in scores.chunks_exact_mut(KEYS).enumerate() {
                let scores = &mut scores[..keys.len()];
                head.finish_scores(first + row, &keys, scores);
                let larger = max(scores).max(largest[row]);
                if larger == f32::NEG_INFINITY {
                    scores.fill(0.0);
                    continue;
                }
                let shrink = exp::<S>(largest[row] - larger);
                for score in scores.iter_mut() {
                    *score = exp::<S>(*score - larger);
                }
                total[row] = total[row] * shrink + sum(scores);
                largest[row] = larger;
                if let Some(dropout) = head.dropout {
                    let factors = head.dropout_factors(dropout, first + row, &keys);
                    scores.iter_mut().zip(factors).for_each(|(score, factor)| *score *= factor);
                }
                let result = &mut result[row * padded..][..padded];
                result.iter_mut().for_each(|result| *result *= shrink);
            }

            pack_rows::<S>(keys.len(), dim, |key| head.value(start + key), panels);
            let probabilities = Left { data: scores, stride: KEYS };
            multiply::<S, false, true>((count, dim, keys.len()), probabilities, panels, result, padded);
        }

        for (row, (out, lse)) in out.iter_mut().zip(lse).enumerate() {
            let unseen = total[row] == 0.0;
            let scale = if unseen { 0.0 } else { 1.0 / total[row] };
            *lse = if unseen { f32::NEG_INFINITY } else { largest[row] + total[row].ln() };
            for (out, result) in out.iter_mut().zip(&result[row * padded..]) {
                *out = result * scale;
            }
        }
    }
}
