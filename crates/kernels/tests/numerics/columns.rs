//! Columns against their definitions.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::columns::{scale, scale_in_place, sums};
use proptest::prelude::*;

use crate::support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn all_shapes(rows in 0..300usize, width in 1..100usize, seed in 0..1000u64) {
        let (x, other, factors) = (
            normals(rows * width, seed),
            normals(rows * width, seed + 1),
            normals(width, seed + 2),
        );
        // The partial sums of `rows` normals are up to about √rows, whatever the sum is in the end:
        // sums are compared relative to that.
        let size = (rows.max(1) as f32).sqrt();
        let relative = |sums: Vec<f32>| sums.into_iter().map(|sum| sum / size).collect();
        let mut expected = [vec![0.0; rows * width], vec![0.0; width], vec![0.0; width]];
        for index in 0..rows * width {
            let (column, x) = (index % width, f64::from(x[index]));
            expected[0][index] = x * f64::from(factors[column]);
            expected[1][column] += x / f64::from(size);
            expected[2][column] += x * f64::from(other[index]) / f64::from(size);
        }
        for (isa, results) in on_every_path(1e-6, || {
            let (mut y, mut total) = (vec![f32::NAN; rows * width], vec![f32::NAN; width]);
            let mut products = total.clone();
            scale(&x, &factors, &mut y).unwrap();
            let mut in_place = x.clone();
            scale_in_place(&mut in_place, &factors).unwrap();
            assert_eq!(in_place, y);
            sums(&x, None, &mut total).unwrap();
            sums(&x, Some(&other), &mut products).unwrap();
            vec![y, relative(total), relative(products)]
        }) {
            let all = ["scaled", "sums", "sums of products"].iter().zip(&results);
            for ((name, got), expected) in all.zip(&expected) {
                assert_close(&format!("{isa:?}, {name}"), got, expected, 1e-6);
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    assert!(matches!(
        scale(&[0.0; 3], &[1.0; 2], &mut [0.0; 3]),
        Err(KernelError::Rows { .. })
    ));
    assert!(matches!(
        scale(&[0.0; 4], &[1.0; 2], &mut [0.0; 3]),
        Err(KernelError::Length { .. })
    ));
    assert!(matches!(
        sums(&[0.0; 4], Some(&[0.0; 2]), &mut [0.0; 2]),
        Err(KernelError::Length { .. })
    ));
    sums(&[], None, &mut []).unwrap();
}
