//! How one body of plain Rust becomes machine code for every instruction set.
//!
//! A kernel is written once, over slices, with the operations of [`Simd`]. The `kernel!` macro
//! compiles it once for each [`Isa`](crate::Isa) under `#[target_feature]`, where the compiler
//! vectorizes its loops, and calls the copy that [`Isa::current`](crate::Isa::current) names. No
//! kernel names an intrinsic, and every copy does the same operations in the same order; they
//! differ only in whether a product and a sum are rounded once (FMA) or twice (portable).
//!
//! All that a kernel calls must be `#[inline(always)]`: a call that stays a call is compiled for
//! the baseline.

/// An instruction set, as a type.
pub(crate) trait Simd {
    /// `a * b + c`.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// [`Isa::Portable`](crate::Isa::Portable): no FMA, which would be a function call there.
pub(crate) struct Portable;

/// [`Isa::Neon`](crate::Isa::Neon).
#[cfg(target_arch = "aarch64")]
pub(crate) struct Neon;

/// [`Isa::Avx2`](crate::Isa::Avx2).
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx2;

/// [`Isa::Avx512`](crate::Isa::Avx512).
#[cfg(target_arch = "x86_64")]
pub(crate) struct Avx512;

impl Simd for Portable {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

macro_rules! fused {
    ($(#[$attribute:meta] $simd:ident,)*) => {$(
        #[$attribute]
        impl Simd for $simd {
            #[inline(always)]
            fn mul_add(a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }
        }
    )*};
}

fused! {
    #[cfg(target_arch = "aarch64")] Neon,
    #[cfg(target_arch = "x86_64")] Avx2,
    #[cfg(target_arch = "x86_64")] Avx512,
}

/// Defines a function that runs the best copy of its body: `fn name<S>(..) { .. }`, where `S` is
/// the [`Simd`] that the copy is compiled for. Further type parameters may follow `S`.
macro_rules! kernel {
    (
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident<$simd:ident $(, $generic:ident: $bound:path)*>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    ) => {
        $(#[$attribute])*
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "calls code compiled for more than the baseline")
        )]
        $visibility fn $name<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$simd: $crate::simd::Simd $(, $generic: $bound)*>(
                $($argument: $type),*
            ) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
                body::<$crate::simd::Avx2 $(, $generic)*>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
            fn avx512<$($generic: $bound),*>($($argument: $type),*) $(-> $result)? {
                body::<$crate::simd::Avx512 $(, $generic)*>($($argument),*)
            }

            match $crate::Isa::current() {
                // SAFETY: `Isa::current` never names a set that the processor lacks.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => unsafe { avx2::<$($generic),*>($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 => unsafe {
                    avx512::<$($generic),*>($($argument),*)
                },
                #[cfg(target_arch = "aarch64")]
                $crate::Isa::Neon => body::<$crate::simd::Neon $(, $generic)*>($($argument),*),
                _ => body::<$crate::simd::Portable $(, $generic)*>($($argument),*),
            }
        }
    };
}
pub(crate) use kernel;

/// Independent partial results of a reduction: enough to hide the latency of an addition.
const LANES: usize = 32;

/// Combines `step(partial, x)` over a slice in [`LANES`] partial results, then these in a fixed
/// tree: the order depends on the length alone.
#[inline(always)]
pub(crate) fn fold(
    x: &[f32],
    start: f32,
    step: impl Fn(f32, f32) -> f32,
    merge: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, x);
    }
    tree(lanes, merge)
}

/// The sum of `x`, in the order of [`fold`].
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    fold(x, 0.0, |lane, x| lane + x, |a, b| a + b)
}

/// The largest of `x`; minus infinity when there is none. A NaN may or may not win.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    fold(x, f32::NEG_INFINITY, larger, larger)
}

/// The sum of `x[i] * y[i]`, in the order of [`fold`].
#[inline(always)]
pub(crate) fn dot<S: Simd>(x: &[f32], y: &[f32]) -> f32 {
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = S::mul_add(x, y, *lane);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane = S::mul_add(x, y, *lane);
    }
    tree(lanes, |a, b| a + b)
}

#[inline(always)]
fn tree(mut lanes: [f32; LANES], merge: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (low, &mut high) in low.iter_mut().zip(high) {
            *low = merge(*low, high);
        }
        half /= 2;
    }
    lanes[0]
}
