//! Flat buffers against their definitions.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::vector::{accumulate, add, scale, square_sum};
use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn all_lengths(length in 0..40_000usize, seed in 0..1000u64) {
        let (x, y) = (normals(length, seed), normals(length, seed + 1));
        let expected = [
            x.iter().zip(&y).map(|(&x, &y)| f64::from(x) + f64::from(y)).collect::<Vec<_>>(),
            x.iter().map(|&x| f64::from(x) * 0.3).collect(),
            vec![x.iter().map(|&x| f64::from(x).powi(2)).sum()],
        ];
        for (isa, results) in on_every_path(1e-6, || {
            let (mut sum, mut scaled) = (vec![f32::NAN; length], x.clone());
            add(&x, &y, &mut sum).unwrap();
            scale(&mut scaled, 0.3);
            let mut accumulated = y.clone();
            accumulate(&x, &mut accumulated).unwrap();
            assert_eq!(accumulated, sum);
            vec![sum, scaled, vec![square_sum(&x) as f32]]
        }) {
            let all = ["sum", "scaled", "squares"].iter().zip(&results);
            for ((name, got), expected) in all.zip(&expected) {
                assert_close(&format!("{isa:?}, {name}"), got, expected, 1e-7);
            }
        }
    }
}

#[test]
fn what_is_not_finite_shows() {
    assert!(square_sum(&[1.0, f32::NAN, 1.0]).is_nan());
    assert_eq!(square_sum(&[1.0, f32::NEG_INFINITY]), f64::INFINITY);
    // Squares that f32 does not hold.
    assert!(square_sum(&[1e30, 1e-30]).is_finite());
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let refused = |result| matches!(result, Err(KernelError::Length { .. }));
    assert!(refused(add(&[0.0; 3], &[0.0; 2], &mut [0.0; 3])));
    assert!(refused(add(&[0.0; 3], &[0.0; 3], &mut [0.0; 2])));
}
