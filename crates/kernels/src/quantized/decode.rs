//! From codes to values.

use super::Format;
use crate::Isa;
use crate::simd::kernel;

/// Writes the values of the codes from `first` on, which share a scale, to `to`.
pub(super) fn decode(format: Format, codes: &[u8], first: usize, scale: f32, to: &mut [f32]) {
    let Some(table) = format.levels() else {
        return whole_numbers(&codes[first..][..to.len()], scale, to);
    };
    // Codes begin and end in the middle of a byte where rows have an odd length.
    let (first, to) = match (first % 2, to) {
        (1, [value, rest @ ..]) => {
            *value = table[usize::from(codes[first / 2] & 15)] * scale;
            (first + 1, rest)
        }
        (_, to) => (first, to),
    };
    let (pairs, last) = to.as_chunks_mut::<2>();
    let codes = &codes[first / 2..];
    if let [value] = last {
        *value = table[usize::from(codes[pairs.len()] >> 4)] * scale;
    }
    let codes = &codes[..pairs.len()];
    match Isa::current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512(codes, table, scale, pairs),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2(codes, table, scale, pairs),
        _ => halves(codes, table, scale, pairs),
    }
}

kernel! {
    fn whole_numbers<S>(codes: &[u8], scale: f32, to: &mut [f32]) {
        for (value, &code) in to.iter_mut().zip(codes) {
            *value = f32::from(code as i8) * scale;
        }
    }
}

fn halves(codes: &[u8], table: &[f32; 16], scale: f32, to: &mut [[f32; 2]]) {
    for (pair, &code) in to.iter_mut().zip(codes) {
        *pair = [code >> 4, code & 15].map(|half| table[usize::from(half)] * scale);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "intrinsics over raw pointers")]

    use std::arch::x86_64::*;

    use super::halves;

    /// Bytes whose codes are decoded together.
    const BYTES: usize = 16;

    /// [`halves`]: the table is one register.
    pub(super) fn avx512(codes: &[u8], table: &[f32; 16], scale: f32, to: &mut [[f32; 2]]) {
        // SAFETY: the caller checked for AVX-512.
        unsafe { with_avx512(codes, table, scale, to) }
    }

    #[target_feature(enable = "avx512f")]
    fn with_avx512(codes: &[u8], table: &[f32; 16], scale: f32, to: &mut [[f32; 2]]) {
        // SAFETY: the table has 16 numbers.
        let table_of = unsafe { _mm512_loadu_ps(table.as_ptr()) };
        let scale_of = _mm512_set1_ps(scale);
        let (chunks, codes) = codes.as_chunks::<BYTES>();
        let (whole, rest) = to.split_at_mut(chunks.len() * BYTES);
        for (chunk, to) in chunks.iter().zip(whole.as_chunks_mut::<BYTES>().0) {
            for (half, to) in interleaved(chunk)
                .into_iter()
                .zip(to.as_chunks_mut::<8>().0)
            {
                let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(half), table_of);
                // SAFETY: 8 pairs are 16 numbers.
                unsafe {
                    _mm512_storeu_ps(to.as_mut_ptr().cast(), _mm512_mul_ps(values, scale_of));
                }
            }
        }
        halves(codes, table, scale, rest);
    }

    /// [`halves`]: the table is two registers.
    pub(super) fn avx2(codes: &[u8], table: &[f32; 16], scale: f32, to: &mut [[f32; 2]]) {
        // SAFETY: the caller checked for AVX2.
        unsafe { with_avx2(codes, table, scale, to) }
    }

    #[target_feature(enable = "avx2")]
    fn with_avx2(codes: &[u8], table: &[f32; 16], scale: f32, to: &mut [[f32; 2]]) {
        // SAFETY: the table has 16 numbers.
        let (low, high) = unsafe {
            let start = table.as_ptr();
            (_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8)))
        };
        let scale_of = _mm256_set1_ps(scale);
        let (chunks, codes) = codes.as_chunks::<BYTES>();
        let (whole, rest) = to.split_at_mut(chunks.len() * BYTES);
        for (chunk, to) in chunks.iter().zip(whole.as_chunks_mut::<BYTES>().0) {
            let [first, second] = interleaved(chunk);
            let quarters = [
                first,
                _mm_srli_si128::<8>(first),
                second,
                _mm_srli_si128::<8>(second),
            ];
            for (quarter, to) in quarters.into_iter().zip(to.as_chunks_mut::<4>().0) {
                let codes = _mm256_cvtepu8_epi32(quarter);
                // The highest bit of a code says which half of the table.
                let is_high = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let values = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(low, codes),
                    _mm256_permutevar8x32_ps(high, codes),
                    is_high,
                );
                // SAFETY: 4 pairs are 8 numbers.
                unsafe {
                    _mm256_storeu_ps(to.as_mut_ptr().cast(), _mm256_mul_ps(values, scale_of));
                }
            }
        }
        halves(codes, table, scale, rest);
    }

    /// The 32 codes of 16 bytes, a byte each.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn interleaved(bytes: &[u8; BYTES]) -> [__m128i; 2] {
        // SAFETY: these are 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        let mask = _mm_set1_epi8(15);
        let high = _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask);
        let low = _mm_and_si128(bytes, mask);
        [_mm_unpacklo_epi8(high, low), _mm_unpackhi_epi8(high, low)]
    }
}
