//! Elementary functions without a table, a branch or a call, so that loops over them vectorize.
//!
//! Errors in units in the last place (ulp) against f64, over every instruction set; the tests walk
//! through a dense sample of all floats:
//!
//! | function | error | from |
//! | --- | --- | --- |
//! | [`exp`] | 1.5 ulp, denormal results included | reduction by ln 2, Cephes' `expf` polynomial |
//! | [`tanh`] | 2 ulp | Cephes' `tanhf`: polynomial below 0.625, then `exp` |
//! | [`sigmoid`] | 3 ulp down to x = -87, then 0 | `exp` |
//! | [`normal_cdf`] | 1.2e-7 absolute, 3 ulp for x > 0 | N. Juffa's `erff` polynomials |
//!
//! NaN gives NaN; infinities give the limits.

use crate::simd::Simd;

/// `e^x`; 0 below -103.98 and infinity above 88.73.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    // Added to a small number, it rounds it to an integer and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2_HIGH: f32 = 0.693_359_4; // few enough bits that its multiples are exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let x = clamp(x, -104.0, 89.0);
    let rounded = S::mul_add(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = S::mul_add(n, -LN_2_LOW, S::mul_add(n, -LN_2_HIGH, x));

    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = S::mul_add(p, r, c);
    }
    let p = S::mul_add(p, r * r, r) + 1.0;

    // 2^n in two factors: n = 128 and the denormals have no single one.
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: f32) -> f32 {
    let magnitude = x.abs();
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = S::mul_add(p, square, c);
    }
    let near = S::mul_add(p * square, x, x);
    let far = 1.0 - 2.0 / (exp::<S>(2.0 * magnitude) + 1.0);
    if magnitude < 0.625 {
        near
    } else {
        far.copysign(x)
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<S>(-x))
}

/// The standard normal distribution function, `(1 + erf(x / √2)) / 2`.
#[inline(always)]
pub(crate) fn normal_cdf<S: Simd>(x: f32) -> f32 {
    let a = x * std::f32::consts::FRAC_1_SQRT_2;
    let t = a.abs();
    let s = a * a;

    // erf near 0.
    let mut near = -5.967_617e-4;
    for c in [
        4.991_194_2e-3,
        -2.676_813_5e-2,
        1.128_199_3e-1,
        -3.761_253_4e-1,
        1.283_791_7e-1,
    ] {
        near = S::mul_add(near, s, c);
    }
    let near = S::mul_add(near, a, a);

    // The logarithm of erfc(t) away from 0.
    let p = S::mul_add(-1.728_534_7e-5, t, 3.831_972e-4);
    let q = S::mul_add(-3.883_964e-3, t, 2.425_462_2e-2);
    let mut tail = S::mul_add(p, s, q);
    for c in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        tail = S::mul_add(tail, t, c);
    }
    let tail = 0.5 * exp::<S>(S::mul_add(tail, t, -t));

    if t <= 0.927_734_4 {
        S::mul_add(0.5, near, 0.5)
    } else if x < 0.0 {
        tail
    } else {
        1.0 - tail
    }
}

/// `x` held between `low` and `high`; NaN stays NaN.
#[inline(always)]
pub(crate) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > high { high } else { x };
    if x < low { low } else { x }
}

/// `2^n` for n in -126..=127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::simd::kernel;

    kernel! {
        fn exps<S>(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) { *y = exp::<S>(x); }
        }
    }
    kernel! {
        fn tanhs<S>(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) { *y = tanh::<S>(x); }
        }
    }
    kernel! {
        fn sigmoids<S>(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) { *y = sigmoid::<S>(x); }
        }
    }
    kernel! {
        fn normal_cdfs<S>(x: &[f32], y: &mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) { *y = normal_cdf::<S>(x); }
        }
    }

    /// One float in 509 of all finite ones, of both signs.
    fn sample() -> Vec<f32> {
        (0..=u32::MAX)
            .step_by(509)
            .map(f32::from_bits)
            .filter(|x| x.is_finite())
            .collect()
    }

    /// The distance of `got` from `exact` in units of `exact`'s last place.
    fn ulps(got: f32, exact: f64) -> f64 {
        let magnitude = (exact.abs() as f32).max(f32::MIN_POSITIVE);
        let ulp = f64::from(f32::from_bits(magnitude.to_bits() + 1)) - f64::from(magnitude);
        (f64::from(got) - exact).abs() / ulp
    }

    fn worst(
        function: impl Fn(&[f32], &mut [f32]),
        exact: impl Fn(f64) -> f64,
        domain: impl Fn(f32) -> bool,
        error: impl Fn(f32, f64) -> f64,
    ) -> f64 {
        let x: Vec<f32> = sample().into_iter().filter(|&x| domain(x)).collect();
        let exact: Vec<f64> = x.iter().map(|&x| exact(f64::from(x))).collect();
        let mut y = vec![0.0; x.len()];
        let mut worst = 0.0f64;
        for isa in Isa::available() {
            isa.with(|| function(&x, &mut y));
            for ((&x, &y), &exact) in x.iter().zip(&y).zip(&exact) {
                let error = error(y, exact);
                assert!(!error.is_nan(), "{isa:?}: f({x}) = {y}, not {exact}");
                worst = worst.max(error);
            }
        }
        worst
    }

    #[test]
    fn exp_is_exact_to_its_bound() {
        let error = worst(exps, f64::exp, |x| x.abs() < 88.72, ulps);
        assert!(error < 1.5, "{error} ulp");
        let error = worst(exps, f64::exp, |x| (-103.9..-87.3).contains(&x), ulps);
        assert!(error < 1.5, "{error} ulp for denormal results");
        assert_eq!(
            worst(exps, |_| 0.0, |x| x < -104.0, |y, _| f64::from(y)),
            0.0
        );
        assert_eq!(
            worst(exps, |_| 0.0, |x| x > 88.73, |y, _| f64::from(y.recip())),
            0.0
        );
    }

    #[test]
    fn tanh_is_exact_to_its_bound() {
        let error = worst(tanhs, f64::tanh, |_| true, ulps);
        assert!(error < 2.0, "{error} ulp");
    }

    #[test]
    fn sigmoid_is_exact_to_its_bound() {
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        let error = worst(sigmoids, exact, |x| x > -87.0, ulps);
        assert!(error < 3.0, "{error} ulp");
        assert!(worst(sigmoids, |_| 0.0, |x| x <= -87.0, |y, _| f64::from(y)) < 2e-38);
    }

    #[test]
    fn normal_cdf_is_exact_to_its_bound() {
        let exact = |x: f64| 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
        let error = worst(normal_cdfs, exact, |x| x > 0.0, ulps);
        assert!(error < 3.0, "{error} ulp");
        let error = worst(
            normal_cdfs,
            exact,
            |_| true,
            |y, exact| (f64::from(y) - exact).abs(),
        );
        assert!(error < 1.2e-7, "{error}");
    }

    #[test]
    fn the_ends_of_the_line() {
        for isa in Isa::available() {
            let at = |function: fn(&[f32], &mut [f32])| {
                let mut y = [0.0; 3];
                isa.with(|| function(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY], &mut y));
                assert!(y[0].is_nan(), "{isa:?}");
                (y[1], y[2])
            };
            assert_eq!(at(exps), (f32::INFINITY, 0.0));
            assert_eq!(at(tanhs), (1.0, -1.0));
            assert_eq!(at(sigmoids), (1.0, 0.0));
            assert_eq!(at(normal_cdfs), (1.0, 0.0));
        }
    }
}
