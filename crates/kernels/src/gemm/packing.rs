//! Packing: rounding to bf16, pairing, transposing words.

use super::microkernel::PANEL;
use crate::Isa;
use crate::simd::kernel;

/// The bits of `x` rounded to the nearest bf16 (ties to even), as an f32 with an empty lower half.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    let quiet_nan = bits | 0x0040_0000;
    (if x.is_nan() { quiet_nan } else { nearest }) & 0xffff_0000
}

kernel! {
    /// Rounds to bf16 and leaves each as an f32 in a word of its own.
    pub(super) fn round<S>(x: &[f32], words: &mut [u32]) {
        for (word, &x) in words.iter_mut().zip(x) {
            *word = rounded(x);
        }
    }
}

kernel! {
    /// [`round`] of words that are f32, in place.
    pub(super) fn round_in_place<S>(words: &mut [u32]) {
        for word in words {
            *word = rounded(f32::from_bits(*word));
        }
    }
}

kernel! {
    /// Rounds the values of a square to bf16, and pairs those of neighboring rows: `[32, 32]`
    /// becomes `[16 pairs, 32]`.
    pub(super) fn pair_rows<S>(rows: &[f32], pairs: &mut [u32]) {
        let (rows, _) = rows.as_chunks::<{ 2 * PANEL }>();
        let (pairs, _) = pairs.as_chunks_mut::<PANEL>();
        for (rows, pairs) in rows.iter().zip(pairs) {
            for i in 0..PANEL {
                pairs[i] = rounded(rows[i]) >> 16 | rounded(rows[PANEL + i]);
            }
        }
    }
}

kernel! {
    fn round_halves<S>(x: &[f32], halves: &mut [u16]) {
        for (half, &x) in halves.iter_mut().zip(x) {
            *half = (rounded(x) >> 16) as u16;
        }
    }
}

/// Rounds to bf16 and puts two into each word, the first at the lower address. An odd last one is
/// paired with zero.
pub(super) fn round_pairs(x: &[f32], words: &mut [u32]) {
    let halves = bytemuck::cast_slice_mut(&mut words[..x.len().div_ceil(2)]);
    if x.len() % 2 == 1 {
        halves[x.len()] = 0;
    }
    round_halves(x, halves);
}

kernel! {
    /// Splits a square's pairs of bf16 into f32: `[16 pairs, 32]` becomes `[32, 32]`.
    pub(super) fn widen<S>(pairs: &[u32], to: &mut [u32]) {
        for (pairs, to) in pairs.chunks_exact(PANEL).zip(to.chunks_exact_mut(2 * PANEL)) {
            let (low, high) = to.split_at_mut(PANEL);
            for ((pair, low), high) in pairs.iter().zip(low).zip(high) {
                *low = pair << 16;
                *high = pair & 0xffff_0000;
            }
        }
    }
}

kernel! {
    /// Transposes the pairing of a square's bf16: `[32, 16 pairs]`, each pair along its row,
    /// becomes `[16 pairs, 32]`, each pair made of two rows.
    pub(super) fn repair<S>(rows: &[u32], to: &mut [u32]) {
        let (rows, _) = bytemuck::cast_slice::<_, u16>(rows).as_chunks::<{ 2 * PANEL }>();
        let (to, _) = bytemuck::cast_slice_mut::<_, u16>(to).as_chunks_mut::<{ 2 * PANEL }>();
        for (rows, to) in rows.iter().zip(to) {
            for i in 0..PANEL {
                (to[2 * i], to[2 * i + 1]) = (rows[i], rows[PANEL + i]);
            }
        }
    }
}

/// How many rows ahead of the one being copied to prefetch, for rows of `words`.
pub(super) fn rows_ahead(words: usize) -> usize {
    (512 / words.max(1)).clamp(2, 16)
}

/// Prefetches words that will be needed soon. The hardware prefetcher follows one row, but does not
/// predict which row is next.
#[inline(always)]
pub(super) fn prefetch<T>(soon: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in soon.chunks(64 / size_of::<T>()) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch touches no memory that the program could observe.
        #[expect(unsafe_code, reason = "an intrinsic over a raw pointer")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}

/// A matrix of words inside a slice: its first element at the slice's start, `stride` words from
/// row to row.
pub(super) struct Matrix<Words> {
    pub(super) words: Words,
    pub(super) stride: usize,
}

/// `to[column][row] = from[row][column]` for `rows` rows and `columns` columns of `from`.
///
/// # Panics
/// If a slice is too short.
pub(super) fn transpose(rows: usize, columns: usize, from: Matrix<&[u32]>, to: Matrix<&mut [u32]>) {
    const BLOCK: usize = 16;
    if rows == 0 || columns == 0 {
        return;
    }
    let isa = Isa::current();
    for row in (0..rows).step_by(BLOCK) {
        for column in (0..columns).step_by(BLOCK) {
            let (rows, columns) = ((rows - row).min(BLOCK), (columns - column).min(BLOCK));
            let from = Matrix {
                words: &from.words[row * from.stride + column..],
                stride: from.stride,
            };
            let to = Matrix {
                words: &mut to.words[column * to.stride + row..],
                stride: to.stride,
            };
            match isa {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 | Isa::Avx512Bf16 => avx512::transpose_block(rows, columns, from, to),
                _ => transpose_block(rows, columns, from, to),
            }
        }
    }
}

fn transpose_block(rows: usize, columns: usize, from: Matrix<&[u32]>, to: Matrix<&mut [u32]>) {
    for column in 0..columns {
        let to = &mut to.words[column * to.stride..][..rows];
        for (row, to) in to.iter_mut().enumerate() {
            *to = from.words[row * from.stride + column];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    #![expect(unsafe_code, reason = "intrinsics over raw pointers")]

    use std::arch::x86_64::*;

    use super::Matrix;

    /// Transposes up to 16 x 16 words in registers.
    ///
    /// # Panics
    /// If a slice is too short.
    pub(super) fn transpose_block(
        rows: usize,
        columns: usize,
        from: Matrix<&[u32]>,
        to: Matrix<&mut [u32]>,
    ) {
        assert!((1..=16).contains(&rows) && (1..=16).contains(&columns));
        assert!(from.words.len() >= (rows - 1) * from.stride + columns);
        assert!(to.words.len() >= (columns - 1) * to.stride + rows);
        // SAFETY: the caller checked for AVX-512; the slices hold the block, as just asserted.
        unsafe { block(rows, columns, from, to) }
    }

    /// # Safety
    /// The slices hold the block.
    #[target_feature(enable = "avx512f")]
    unsafe fn block(rows: usize, columns: usize, from: Matrix<&[u32]>, to: Matrix<&mut [u32]>) {
        let first = |count: usize| ((1u32 << count) - 1) as __mmask16;

        let mut r = [_mm512_setzero_si512(); 16];
        for (row, r) in r.iter_mut().enumerate() {
            if row < rows {
                // SAFETY: the row is below `rows`, and the mask ends at `columns`.
                *r = unsafe {
                    let from = from.words.as_ptr().add(row * from.stride);
                    _mm512_maskz_loadu_epi32(first(columns), from.cast())
                };
            }
        }

        // Pairs of rows, word by word; then fours, two words by two.
        let mut pairs = r;
        for i in (0..16).step_by(2) {
            pairs[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
            pairs[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
        }
        // fours[4 g + j], quarter q: column 4 q + j of rows 4 g to 4 g + 3.
        let mut fours = pairs;
        for i in (0..16).step_by(4) {
            fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
            fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
            fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
            fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
        }
        // Quarters 0 and 2 (even) or 1 and 3 (odd) of two, then of four registers.
        let mut columns_of = fours;
        for j in 0..4 {
            let even = |a, b| _mm512_shuffle_i32x4::<0x88>(a, b);
            let odd = |a, b| _mm512_shuffle_i32x4::<0xdd>(a, b);
            let (top_even, bottom_even) = (
                even(fours[j], fours[4 + j]),
                even(fours[8 + j], fours[12 + j]),
            );
            let (top_odd, bottom_odd) = (
                odd(fours[j], fours[4 + j]),
                odd(fours[8 + j], fours[12 + j]),
            );
            columns_of[j] = even(top_even, bottom_even);
            columns_of[4 + j] = even(top_odd, bottom_odd);
            columns_of[8 + j] = odd(top_even, bottom_even);
            columns_of[12 + j] = odd(top_odd, bottom_odd);
        }

        for (column, words) in columns_of.iter().enumerate() {
            if column < columns {
                // SAFETY: the column is below `columns`, and the mask ends at `rows`.
                unsafe {
                    let to = to.words.as_mut_ptr().add(column * to.stride);
                    _mm512_mask_storeu_epi32(to.cast(), first(rows), *words);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rounding_is_that_of_half(bits: Vec<u32>) {
            let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let expected: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            for isa in Isa::available() {
                isa.with(|| {
                    let mut words = vec![0; x.len()];
                    round(&x, &mut words);
                    let same = |(&word, &e): (&u32, &u16)| word == u32::from(e) << 16;
                    prop_assert!(words.iter().zip(&expected).all(same));

                    let mut words = vec![0; x.len().div_ceil(2)];
                    round_pairs(&x, &mut words);
                    for (pair, expected) in words.iter().zip(expected.chunks(2)) {
                        let high = expected.get(1).map_or(0, |&high| u32::from(high));
                        prop_assert_eq!(*pair, u32::from(expected[0]) | high << 16);
                    }
                    Ok(())
                })?;
            }
        }

        #[test]
        fn transposing(rows in 0usize..40, columns in 0usize..40, gap in 0usize..3) {
            let from: Vec<u32> = (0..(rows * (columns + gap)) as u32).collect();
            for isa in Isa::available() {
                let mut to = vec![u32::MAX; columns * (rows + gap)];
                isa.with(|| {
                    let from = Matrix { words: &from[..], stride: columns + gap };
                    let to = Matrix { words: &mut to[..], stride: rows + gap };
                    transpose(rows, columns, from, to);
                });
                for (index, &word) in to.iter().enumerate() {
                    let (column, row) = (index / (rows + gap), index % (rows + gap));
                    let from = from.get(row * (columns + gap) + column);
                    let expected = from.filter(|_| row < rows).copied().unwrap_or(u32::MAX);
                    prop_assert_eq!(word, expected, "{:?}, row {}, column {}", isa, row, column);
                }
            }
        }
    }
}
