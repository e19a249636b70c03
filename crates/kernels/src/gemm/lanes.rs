//! One vector register of f32 sums, for each instruction set.
//!
//! The reduction reads its factors in *words* of four bytes. A word is one f32 or, where the
//! processor multiplies bf16 itself, two bf16 that follow each other in the reduction. The code
//! that calls this file copies words of either kind.

#![expect(unsafe_code, reason = "intrinsics over raw pointers")]

/// A vector of f32 sums and the operations that the register tile needs.
///
/// # Safety of all functions
/// The processor has the instruction set, and pointers cover what the function reads or writes;
/// they need no alignment beyond that of their type.
pub(super) trait Lanes: Copy {
    /// How many sums.
    const COUNT: usize;

    /// As many words.
    type Words: Copy;

    /// All zero.
    unsafe fn zero() -> Self;

    /// `COUNT` words from memory.
    unsafe fn words(from: *const u32) -> Self::Words;

    /// One word from memory, in every lane.
    unsafe fn spread(from: *const u32) -> Self::Words;

    /// `self + a * b`.
    unsafe fn add_product(self, a: Self::Words, b: Self::Words) -> Self;

    /// `to = scale * self`, or `to += scale * self`.
    unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32);

    /// Prefetches the cache line of `address`, which may be any address.
    #[inline(always)]
    fn prefetch(_address: *const f32) {}
}

/// Eight sums in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Lanes for Portable {
    const COUNT: usize = 8;
    type Words = [f32; 8];

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 8])
    }

    #[inline(always)]
    unsafe fn words(from: *const u32) -> [f32; 8] {
        // SAFETY: the caller's pointer covers 8 words.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn spread(from: *const u32) -> [f32; 8] {
        // SAFETY: the caller's pointer covers 1 word.
        [f32::from_bits(unsafe { *from }); 8]
    }

    #[inline(always)]
    unsafe fn add_product(mut self, a: [f32; 8], b: [f32; 8]) -> Self {
        for lane in 0..8 {
            self.0[lane] += a[lane] * b[lane];
        }
        self
    }

    #[inline(always)]
    unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
        // SAFETY: the caller's pointer covers 8 floats that nothing else uses.
        let to = unsafe { &mut *to.cast::<[f32; 8]>() };
        for (to, sum) in to.iter_mut().zip(self.0) {
            *to = scale * sum + if accumulate { *to } else { 0.0 };
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx2Pairs, Avx512, Avx512Bf16, Avx512Pairs};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::Lanes;

    /// Eight sums, f32 words.
    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx2(__m256);

    /// Sixteen sums, f32 words.
    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx512(__m512);

    /// Sixteen sums, words of two bf16: multiplied by the processor's own dot product if `DOT`,
    /// else as f32 that they become in registers, added in the order of [`Avx512`] over the same
    /// numbers as f32.
    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx512OfPairs<const DOT: bool>(__m512);

    /// Pairs and the dot product.
    pub(in crate::gemm) type Avx512Bf16 = Avx512OfPairs<true>;

    /// Pairs without it.
    pub(in crate::gemm) type Avx512Pairs = Avx512OfPairs<false>;

    /// Eight sums, words of two bf16 that become f32 in registers. The order of additions is that
    /// of [`Avx2`] over the same numbers as f32.
    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Avx2Pairs(__m256);

    /// The upper half of a word: the second of two bf16, as an f32.
    const SECOND: i32 = 0xffff_0000_u32 as i32;

    #[inline(always)]
    fn prefetch(address: *const f32) {
        // SAFETY: a prefetch touches no memory that the program could observe.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }

    impl Lanes for Avx2 {
        const COUNT: usize = 8;
        type Words = __m256;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX2.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn words(from: *const u32) -> __m256 {
            // SAFETY: the caller has AVX2, and 8 words there.
            unsafe { _mm256_loadu_ps(from.cast()) }
        }

        #[inline(always)]
        unsafe fn spread(from: *const u32) -> __m256 {
            // SAFETY: the caller has AVX2, and a word there.
            unsafe { _mm256_set1_ps(*from.cast()) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: __m256, b: __m256) -> Self {
            // SAFETY: the caller has FMA.
            Self(unsafe { _mm256_fmadd_ps(a, b, self.0) })
        }

        #[inline(always)]
        unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
            // SAFETY: the caller has AVX2 and FMA, and 8 floats there.
            unsafe {
                let scale = _mm256_set1_ps(scale);
                let before = if accumulate {
                    _mm256_loadu_ps(to)
                } else {
                    _mm256_setzero_ps()
                };
                _mm256_storeu_ps(to, _mm256_fmadd_ps(scale, self.0, before));
            }
        }

        #[inline(always)]
        fn prefetch(address: *const f32) {
            prefetch(address);
        }
    }

    impl Lanes for Avx512 {
        const COUNT: usize = 16;
        type Words = __m512;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX-512.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn words(from: *const u32) -> __m512 {
            // SAFETY: the caller has AVX-512, and 16 words there.
            unsafe { _mm512_loadu_ps(from.cast()) }
        }

        #[inline(always)]
        unsafe fn spread(from: *const u32) -> __m512 {
            // SAFETY: the caller has AVX-512, and a word there.
            unsafe { _mm512_set1_ps(*from.cast()) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: __m512, b: __m512) -> Self {
            // SAFETY: the caller has AVX-512.
            Self(unsafe { _mm512_fmadd_ps(a, b, self.0) })
        }

        #[inline(always)]
        unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
            // SAFETY: the caller has AVX-512, and 16 floats there.
            unsafe {
                let scale = _mm512_set1_ps(scale);
                let before = if accumulate {
                    _mm512_loadu_ps(to)
                } else {
                    _mm512_setzero_ps()
                };
                _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, self.0, before));
            }
        }

        #[inline(always)]
        fn prefetch(address: *const f32) {
            prefetch(address);
        }
    }

    impl Lanes for Avx2Pairs {
        const COUNT: usize = 8;
        type Words = __m256i;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX2.
            Self(unsafe { _mm256_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn words(from: *const u32) -> __m256i {
            // SAFETY: the caller has AVX2, and 8 words there.
            unsafe { _mm256_loadu_si256(from.cast()) }
        }

        #[inline(always)]
        unsafe fn spread(from: *const u32) -> __m256i {
            // SAFETY: the caller has AVX2, and a word there.
            unsafe { _mm256_set1_epi32(*from.cast()) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: __m256i, b: __m256i) -> Self {
            // SAFETY: the caller has AVX2 and FMA.
            unsafe {
                let first = |pair| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair));
                let mask = _mm256_set1_epi32(SECOND);
                let second = |pair| _mm256_castsi256_ps(_mm256_and_si256(pair, mask));
                let sum = _mm256_fmadd_ps(first(a), first(b), self.0);
                Self(_mm256_fmadd_ps(second(a), second(b), sum))
            }
        }

        #[inline(always)]
        unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
            // SAFETY: passed on to the caller.
            unsafe { Avx2(self.0).store(scale, accumulate, to) }
        }

        #[inline(always)]
        fn prefetch(address: *const f32) {
            prefetch(address);
        }
    }

    impl<const DOT: bool> Lanes for Avx512OfPairs<DOT> {
        const COUNT: usize = 16;
        type Words = __m512i;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: the caller has AVX-512.
            Self(unsafe { _mm512_setzero_ps() })
        }

        #[inline(always)]
        unsafe fn words(from: *const u32) -> __m512i {
            // SAFETY: the caller has AVX-512, and 16 words there.
            unsafe { _mm512_loadu_si512(from.cast()) }
        }

        #[inline(always)]
        unsafe fn spread(from: *const u32) -> __m512i {
            // SAFETY: the caller has AVX-512, and a word there.
            unsafe { _mm512_set1_epi32(*from.cast()) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: __m512i, b: __m512i) -> Self {
            // SAFETY: the caller has AVX-512, and AVX512_BF16 if `DOT`; __m512i and __m512bh are
            // the same 64 bytes.
            unsafe {
                if DOT {
                    let bf16 = transmute::<__m512i, __m512bh>;
                    return Self(_mm512_dpbf16_ps(self.0, bf16(a), bf16(b)));
                }
                let first = |pair| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair));
                let mask = _mm512_set1_epi32(SECOND);
                let second = |pair| _mm512_castsi512_ps(_mm512_and_si512(pair, mask));
                let sum = _mm512_fmadd_ps(first(a), first(b), self.0);
                Self(_mm512_fmadd_ps(second(a), second(b), sum))
            }
        }

        #[inline(always)]
        unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
            // SAFETY: passed on to the caller.
            unsafe { Avx512(self.0).store(scale, accumulate, to) }
        }

        #[inline(always)]
        fn prefetch(address: *const f32) {
            prefetch(address);
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::Neon;

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use std::arch::aarch64::*;

    use super::Lanes;

    /// Four sums, f32 words.
    #[derive(Clone, Copy)]
    pub(in crate::gemm) struct Neon(float32x4_t);

    impl Lanes for Neon {
        const COUNT: usize = 4;
        type Words = float32x4_t;

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: every AArch64 processor that Rust targets has NEON.
            Self(unsafe { vdupq_n_f32(0.0) })
        }

        #[inline(always)]
        unsafe fn words(from: *const u32) -> float32x4_t {
            // SAFETY: the caller has 4 words there.
            unsafe { vld1q_f32(from.cast()) }
        }

        #[inline(always)]
        unsafe fn spread(from: *const u32) -> float32x4_t {
            // SAFETY: the caller has a word there.
            unsafe { vld1q_dup_f32(from.cast()) }
        }

        #[inline(always)]
        unsafe fn add_product(self, a: float32x4_t, b: float32x4_t) -> Self {
            // SAFETY: as for `zero`.
            Self(unsafe { vfmaq_f32(self.0, a, b) })
        }

        #[inline(always)]
        unsafe fn store(self, scale: f32, accumulate: bool, to: *mut f32) {
            // SAFETY: the caller has 4 floats there.
            unsafe {
                let before = if accumulate {
                    vld1q_f32(to)
                } else {
                    vdupq_n_f32(0.0)
                };
                vst1q_f32(to, vfmaq_n_f32(before, self.0, scale));
            }
        }
    }
}
