//! What all numerics tests share: inputs, comparisons, forced instruction sets and thread counts.

use epiphyte_kernels::Isa;
use epiphyte_kernels::random::normal;

/// `length` standard normal numbers.
pub(crate) fn normals(length: usize, seed: u64) -> Vec<f32> {
    normal(seed, length, 1.0)
}

pub(crate) fn f64s(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Asserts that each element is within `tolerance`, relative to the largest of the expected ones
/// (or to 1 where all are smaller). Infinities and NaN must be equal.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    let finite = expected.iter().filter(|x| x.is_finite());
    let scale = finite.fold(1.0f64, |scale, x| scale.max(x.abs()));
    assert_within(what, got, expected, tolerance * scale);
}

/// Asserts that each element is within `error`. Infinities and NaN must be equal.
#[track_caller]
pub(crate) fn assert_within(what: &str, got: &[f32], expected: &[f64], error: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let got = f64::from(got);
        let equal = got == expected || (got.is_nan() && expected.is_nan());
        assert!(
            equal || (got - expected).abs() <= error,
            "{what}[{index}] is {got}, not {expected} (allowed error {error:e})"
        );
    }
}

/// Runs a kernel on every instruction set and on 1, 2 and 8 threads. The bytes must not depend on
/// the threads, and every set must agree with the portable one within `tolerance`. Returns the
/// results of each set.
#[track_caller]
pub(crate) fn on_every_path(
    tolerance: f64,
    kernel: impl Fn() -> Vec<Vec<f32>> + Sync,
) -> Vec<(Isa, Vec<Vec<f32>>)> {
    let mut results: Vec<(Isa, Vec<Vec<f32>>)> = Vec::new();
    for isa in Isa::available() {
        let one = with_threads(1, || isa.with(&kernel));
        for threads in [2, 8] {
            let many = with_threads(threads, || isa.with(&kernel));
            assert_eq!(
                bits(&one),
                bits(&many),
                "{isa:?}: {threads} threads differ from one"
            );
        }
        if let Some((_, portable)) = results.first() {
            for (index, (got, portable)) in one.iter().zip(portable).enumerate() {
                let what = format!("{isa:?} against portable, result {index}");
                assert_close(&what, got, &f64s(portable), tolerance);
            }
        }
        results.push((isa, one));
    }
    results
}

pub(crate) fn with_threads<T: Send>(threads: usize, body: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(body)
}

pub(crate) fn bits(results: &[Vec<f32>]) -> Vec<Vec<u32>> {
    results
        .iter()
        .map(|result| result.iter().map(|x| x.to_bits()).collect())
        .collect()
}

/// The gradient of `function` at `x` by central differences.
pub(crate) fn central_differences(function: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|index| {
            let at = x[index];
            let mut beside = |value| {
                x[index] = value;
                function(&x)
            };
            let slope = (beside(at + STEP) - beside(at - STEP)) / (2.0 * STEP);
            x[index] = at;
            slope
        })
        .collect()
}

/// Asserts that two f64 gradients agree as far as central differences do.
#[track_caller]
pub(crate) fn assert_same_gradient(what: &str, got: &[f64], differences: &[f64]) {
    for (index, (got, expected)) in got.iter().zip(differences).enumerate() {
        let error = (got - expected).abs();
        assert!(
            error <= 1e-7 * (1.0 + expected.abs()),
            "{what}[{index}] is {got}, not {expected}"
        );
    }
}

pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}
