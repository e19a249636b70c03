//! Few rows times the codes of a weight: what text generation multiplies.
//!
//! A panel that is decoded to memory first is written and read once for each row; with few rows
//! that takes longer than the products. Here the codes become factors in registers. Each element of
//! the result is the same chain of multiply-adds as in the register tile, so it has the same bytes.

#![expect(
    unsafe_code,
    reason = "calls code compiled for more than the baseline, over raw pointers"
)]

use std::arch::x86_64::*;
use std::mem::transmute;
use std::ops::Range;

use super::lanes::{Avx512, Avx512Bf16, Lanes};
use super::macrokernel::FEW;
use super::microkernel::{PANEL, ROW};
use crate::quantized::Squares;

/// How many bytes ahead codes are prefetched: the processor's own prefetcher stops at each page.
const AHEAD: usize = 2048;

/// The factors that the words of the left operand hold.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Factors {
    /// f32, times the values as they are.
    F32,
    /// f32 that are bf16 widened, times values rounded to bf16.
    Rounded,
    /// Two bf16, times two values rounded to bf16, by the processor's dot product.
    Pairs,
}

/// Packed rows, and what they are multiplied by.
pub(super) struct Work<'a> {
    pub(super) squares: &'a Squares,
    pub(super) panel: usize,
    /// Those of the panel's inputs that the rows hold.
    pub(super) inputs: Range<usize>,
    /// The rows, [`ROW`] words apart.
    pub(super) left: &'a [u32],
}

/// The sums of `sums.len()` packed rows times inputs of a panel. The processor has AVX-512, and for
/// pairs its bf16 dot product.
///
/// False, and no sums, where two inputs of a pair have different scales.
pub(super) fn multiply(work: &Work<'_>, factors: Factors, sums: &mut [[f32; PANEL]]) -> bool {
    if factors == Factors::Pairs && work.squares.splits_pairs() {
        return false;
    }
    let words = match factors {
        Factors::Pairs => work.inputs.len().div_ceil(2),
        Factors::F32 | Factors::Rounded => work.inputs.len(),
    };
    assert!((1..=FEW).contains(&sums.len()));
    assert!(words <= ROW && work.left.len() >= (sums.len() - 1) * ROW + words);
    // SAFETY: the caller checked for the instruction set; the left operand holds the rows.
    unsafe {
        match factors {
            Factors::F32 => plain::<false>(work, sums),
            Factors::Rounded => plain::<true>(work, sums),
            Factors::Pairs => pairs(work, sums),
        }
    }
    true
}

/// # Safety
/// As for [`rows`], with AVX-512.
#[target_feature(enable = "avx512f")]
unsafe fn plain<const ROUNDED: bool>(work: &Work<'_>, sums: &mut [[f32; PANEL]]) {
    // SAFETY: passed on to the caller.
    unsafe {
        if ROUNDED {
            height::<Rounded>(work, sums);
        } else {
            height::<F32>(work, sums);
        }
    }
}

/// # Safety
/// As for [`rows`], with the bf16 dot product.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pairs(work: &Work<'_>, sums: &mut [[f32; PANEL]]) {
    // SAFETY: passed on to the caller.
    unsafe { height::<Pairs>(work, sums) }
}

/// Calls [`rows`] for the format and for as many rows as there are.
///
/// # Safety
/// As for [`rows`].
#[inline(always)]
unsafe fn height<K: Kind>(work: &Work<'_>, sums: &mut [[f32; PANEL]]) {
    macro_rules! heights {
        ($codes:expr; $($rows:literal)*) => {
            match sums.len() {
                $($rows => rows::<K, _, $rows>($codes, work, sums),)*
                _ => unreachable!("at most eight rows"),
            }
        };
    }
    // SAFETY: passed on to the caller; there are 16 levels.
    unsafe {
        match work.squares.levels() {
            Some(levels) => {
                let codes = Halves(_mm512_loadu_ps(levels.as_ptr()));
                heights!(codes; 1 2 3 4 5 6 7 8)
            }
            None => heights!(Bytes; 1 2 3 4 5 6 7 8),
        }
    }
}

/// The sums of `M` rows. Inlined into a function that enables the instruction set.
///
/// # Safety
/// The processor has it; the work holds the factors of `M` rows.
#[inline(always)]
unsafe fn rows<K: Kind, C: Codes, const M: usize>(
    codes: C,
    work: &Work<'_>,
    to: &mut [[f32; PANEL]],
) {
    // No closures: they would be compiled without the instruction set.
    // SAFETY: `left` holds the words, and a run's codes are those of its inputs.
    unsafe {
        let mut sums = [[K::Sums::zero(); 2]; M];
        let mut left = work.left.as_ptr();
        let (mut input, end) = (work.inputs.start, work.inputs.end);
        while input < end {
            let run = work.squares.run(work.panel, input..end);
            input += run.inputs;
            let scales = [
                _mm512_loadu_ps(run.scales.as_ptr()),
                _mm512_loadu_ps(run.scales.as_ptr().add(16)),
            ];
            let mut at = run.codes.as_ptr();
            for word in 0..run.inputs.div_ceil(K::INPUTS) {
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                let first = values(codes, at, scales);
                let second = if K::INPUTS == 2 && 2 * word + 1 < run.inputs {
                    values(codes, at.add(C::BYTES), scales)
                } else {
                    [_mm512_setzero_ps(); 2]
                };
                let columns = K::columns(first, second);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let factor = K::Sums::spread(left.add(row * ROW));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = sum.add_product(factor, column);
                    }
                }
                at = at.wrapping_add(K::INPUTS * C::BYTES);
                left = left.add(1);
            }
        }
        for (to, [low, high]) in to.iter_mut().zip(sums) {
            low.store(1.0, false, to.as_mut_ptr());
            high.store(1.0, false, to.as_mut_ptr().add(16));
        }
    }
}

/// The values of 32 codes: their levels times the scales.
///
/// # Safety
/// As for [`Codes::levels`].
#[inline(always)]
unsafe fn values<C: Codes>(codes: C, at: *const u8, scales: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: passed on to the caller.
    unsafe {
        let [low, high] = codes.levels(at);
        [
            _mm512_mul_ps(low, scales[0]),
            _mm512_mul_ps(high, scales[1]),
        ]
    }
}

/// How the codes of an input become levels.
///
/// # Safety of all functions
/// The processor has AVX-512, and the codes are there.
trait Codes: Copy {
    /// Bytes of an input's codes.
    const BYTES: usize;

    /// The levels of 32 codes.
    unsafe fn levels(self, codes: *const u8) -> [__m512; 2];
}

/// Codes of 4 bits: two in a byte, and the register of their levels.
#[derive(Clone, Copy)]
struct Halves(__m512);

impl Codes for Halves {
    const BYTES: usize = PANEL / 2;

    #[inline(always)]
    unsafe fn levels(self, codes: *const u8) -> [__m512; 2] {
        // SAFETY: the caller has AVX-512, and 16 bytes there.
        unsafe {
            // Only the lowest four bits of each word choose a level.
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.cast()));
            let high = _mm512_srli_epi32::<4>(low);
            [
                _mm512_permutexvar_ps(low, self.0),
                _mm512_permutexvar_ps(high, self.0),
            ]
        }
    }
}

/// Codes of 8 bits, whose levels they are themselves.
#[derive(Clone, Copy)]
struct Bytes;

impl Codes for Bytes {
    const BYTES: usize = PANEL;

    #[inline(always)]
    unsafe fn levels(self, codes: *const u8) -> [__m512; 2] {
        // SAFETY: the caller has AVX-512, and 32 bytes there.
        unsafe {
            let low = _mm_loadu_si128(codes.cast());
            let high = _mm_loadu_si128(codes.add(16).cast());
            [
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)),
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)),
            ]
        }
    }
}

/// A kind of [`Factors`].
///
/// # Safety of all functions
/// The processor has the instruction set.
trait Kind {
    /// The sums.
    type Sums: Lanes;

    /// Inputs of a word.
    const INPUTS: usize;

    /// The words of one input, or of two.
    unsafe fn columns(first: [__m512; 2], second: [__m512; 2])
    -> [<Self::Sums as Lanes>::Words; 2];
}

/// [`Factors::F32`].
struct F32;

impl Kind for F32 {
    type Sums = Avx512;
    const INPUTS: usize = 1;

    #[inline(always)]
    unsafe fn columns(first: [__m512; 2], _second: [__m512; 2]) -> [__m512; 2] {
        first
    }
}

/// [`Factors::Rounded`].
struct Rounded;

impl Kind for Rounded {
    type Sums = Avx512;
    const INPUTS: usize = 1;

    #[inline(always)]
    unsafe fn columns(first: [__m512; 2], _second: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: the caller has AVX-512.
        unsafe { [rounded(first[0]), rounded(first[1])] }
    }
}

/// Values rounded to bf16, to nearest and ties to even, as `packing::round` does.
///
/// # Safety
/// The processor has AVX-512.
#[inline(always)]
unsafe fn rounded(values: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(values);
        let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
        let nearest = _mm512_add_epi32(bits, half);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let bits = _mm512_mask_mov_epi32(nearest, is_nan, quiet);
        _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x1_0000)))
    }
}

/// [`Factors::Pairs`].
struct Pairs;

/// Where the values of a pair are among those that are rounded together: the first of output i is
/// number i, the second number 16 + i.
const PAIRS: [u16; PANEL] = {
    let mut places = [0; PANEL];
    let mut output = 0;
    while output < PANEL / 2 {
        places[2 * output] = output as u16;
        places[2 * output + 1] = (16 + output) as u16;
        output += 1;
    }
    places
};

impl Kind for Pairs {
    type Sums = Avx512Bf16;
    const INPUTS: usize = 2;

    #[inline(always)]
    unsafe fn columns(first: [__m512; 2], second: [__m512; 2]) -> [__m512i; 2] {
        // SAFETY: the caller has AVX-512 BW and BF16; there are 32 places; __m512bh and __m512i are
        // the same 64 bytes.
        unsafe {
            let places = _mm512_loadu_si512(PAIRS.as_ptr().cast());
            let low = _mm512_cvtne2ps_pbh(second[0], first[0]);
            let high = _mm512_cvtne2ps_pbh(second[1], first[1]);
            [
                _mm512_permutexvar_epi16(places, transmute::<__m512bh, __m512i>(low)),
                _mm512_permutexvar_epi16(places, transmute::<__m512bh, __m512i>(high)),
            ]
        }
    }
}
