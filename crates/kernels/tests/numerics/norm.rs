//! Norms against their definitions.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::norm::{Kept, Norm, NormGradients, RowStatistics};
use proptest::prelude::*;

use crate::support::*;

const EPSILON: f64 = 1e-5;

fn reference(layer: bool, x: &[f64], gamma: &[f64], beta: &[f64]) -> Vec<f64> {
    let width = gamma.len() as f64;
    let mut y = Vec::new();
    for row in x.chunks(gamma.len()) {
        let mean = if layer {
            row.iter().sum::<f64>() / width
        } else {
            0.0
        };
        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
        let rstd = 1.0 / (square + EPSILON).sqrt();
        for (x, (gamma, beta)) in row.iter().zip(gamma.iter().zip(beta)) {
            y.push((x - mean) * rstd * gamma + if layer { *beta } else { 0.0 });
        }
    }
    y
}

/// The gradients of x, gamma and beta.
fn reference_gradients(layer: bool, x: &[f64], gamma: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let width = gamma.len();
    let (mut dx, mut d_gamma, mut d_beta) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        let n = width as f64;
        let mean = if layer {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let rstd = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPSILON).sqrt();
        let h: Vec<f64> = x.iter().map(|x| (x - mean) * rstd).collect();
        let g: Vec<f64> = dy.iter().zip(gamma).map(|(dy, gamma)| dy * gamma).collect();
        let mean_g = if layer {
            g.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let mean_gh = dot(&g, &h) / n;
        for i in 0..width {
            dx.push(rstd * (g[i] - mean_g - h[i] * mean_gh));
            d_gamma[i] += dy[i] * h[i];
            d_beta[i] += dy[i];
        }
    }
    [dx, d_gamma, d_beta]
}

/// How much of f32's rounding a gradient of these rows may show: the mean is taken from x and what
/// is left divided by the deviation, and the gradient is divided by it once more.
fn amplification(layer: bool, x: &[f64], width: usize) -> f64 {
    let of_row = |x: &[f64]| {
        let n = width as f64;
        let mean = if layer {
            x.iter().sum::<f64>() / n
        } else {
            0.0
        };
        let rstd = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPSILON).sqrt();
        let largest = x.iter().fold(0.0f64, |largest, x| largest.max(x.abs()));
        (1.0 + rstd * largest) * rstd.max(1.0)
    };
    x.chunks(width).map(of_row).fold(1.0, f64::max)
}

fn check(layer: bool, rows: usize, width: usize, offset: f32, seed: u64) {
    let mut x = normals(rows * width, seed);
    x.iter_mut().for_each(|x| *x += offset);
    let residual = normals(rows * width, seed + 1);
    // Away from zero, so that the result says what was normalized.
    let (mut gamma, mut beta, dy) = (
        normals(width, seed + 2),
        normals(width, seed + 3),
        normals(rows * width, seed + 4),
    );
    gamma
        .iter_mut()
        .for_each(|gamma| *gamma += 0.5f32.copysign(*gamma));
    let bounded = beta.iter_mut().zip(&gamma);
    bounded.for_each(|(beta, gamma)| *beta = beta.clamp(-4.0 * gamma.abs(), 4.0 * gamma.abs()));
    let sum: Vec<f32> = x
        .iter()
        .zip(&residual)
        .map(|(x, residual)| x + residual)
        .collect();

    let y = reference(layer, &f64s(&x), &f64s(&gamma), &f64s(&beta));
    let y_of_sum = reference(layer, &f64s(&sum), &f64s(&gamma), &f64s(&beta));
    let [dx, d_gamma, d_beta] = reference_gradients(layer, &f64s(&sum), &f64s(&gamma), &f64s(&dy));
    let d_beta = if layer { d_beta } else { vec![] };
    let expected = [
        y,
        y_of_sum,
        dx.clone(),
        d_gamma.clone(),
        d_beta.clone(),
        dx,
        d_gamma,
        d_beta,
    ];

    let of = |x: &[f32]| amplification(layer, &f64s(x), width);
    let tolerance = 1e-6 * of(&x).max(of(&sum));
    for (isa, results) in on_every_path(tolerance, || {
        let epsilon = EPSILON as f32;
        let norm = match layer {
            true => Norm::Layer {
                gamma: &gamma,
                beta: &beta,
                epsilon,
            },
            false => Norm::Rms {
                gamma: &gamma,
                epsilon,
            },
        };
        let like_x = || vec![f32::NAN; rows * width];
        let (mut y, mut y_of_sum) = (like_x(), like_x());
        let mut statistics = vec![RowStatistics::default(); rows];
        norm.forward(&x, None, &mut y, &mut statistics).unwrap();
        norm.forward(&x, Some(&residual), &mut y_of_sum, &mut statistics)
            .unwrap();
        assert!(norm.is_invertible());

        let mut results = vec![y, y_of_sum.clone()];
        for kept in [Kept::Input(&sum), Kept::Output(&y_of_sum)] {
            let mut gradient = dy.clone();
            let (mut d_gamma, mut d_beta) = (
                vec![f32::NAN; width],
                vec![f32::NAN; if layer { width } else { 0 }],
            );
            let parameters = NormGradients {
                d_gamma: &mut d_gamma,
                d_beta: &mut d_beta,
            };
            norm.backward(kept, &statistics, &mut gradient, Some(parameters))
                .unwrap();
            let mut alone = dy.clone();
            norm.backward(kept, &statistics, &mut alone, None).unwrap();
            assert_eq!(gradient, alone);
            results.extend([gradient, d_gamma, d_beta]);
        }
        results
    }) {
        let names = [
            "y",
            "y of the sum",
            "dx",
            "d_gamma",
            "d_beta",
            "dx from y",
            "d_gamma from y",
            "d_beta from y",
        ];
        for ((name, got), expected) in names.iter().zip(&results).zip(&expected) {
            assert_close(&format!("{isa:?}, {name}"), got, expected, tolerance);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn all_shapes(
        layer: bool, rows in 0..200usize, width in 1..150usize, offset in -2.0..2.0f32, seed in 0..1000u64,
    ) {
        check(layer, rows, width, offset, seed);
    }
}

#[test]
fn widths_of_real_models() {
    for width in [384, 768, 896, 4096] {
        check(true, 70, width, 0.0, 3);
        check(false, 70, width, 0.0, 4);
    }
}

/// The mean is far from zero: subtracting squares would leave nothing of the variance.
#[test]
fn a_large_mean_does_not_drown_the_variance() {
    check(true, 3, 256, 1000.0, 5);
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    let (x, gamma, beta, dy) = (
        f64s(&normals(15, 1)),
        f64s(&normals(5, 2)),
        f64s(&normals(5, 3)),
        f64s(&normals(15, 4)),
    );
    for layer in [true, false] {
        let [dx, d_gamma, d_beta] = reference_gradients(layer, &x, &gamma, &dy);
        let by_x = central_differences(|x| dot(&reference(layer, x, &gamma, &beta), &dy), &x);
        let by_gamma = central_differences(
            |gamma| dot(&reference(layer, &x, gamma, &beta), &dy),
            &gamma,
        );
        let by_beta =
            central_differences(|beta| dot(&reference(layer, &x, &gamma, beta), &dy), &beta);
        assert_same_gradient("dx", &dx, &by_x);
        assert_same_gradient("d_gamma", &d_gamma, &by_gamma);
        if layer {
            assert_same_gradient("d_beta", &d_beta, &by_beta);
        }
    }
}

#[test]
fn a_row_does_not_see_the_others() {
    let (rows, width) = (150, 33);
    let (x, gamma) = (normals(rows * width, 1), normals(width, 2));
    let norm = Norm::Rms {
        gamma: &gamma,
        epsilon: 1e-6,
    };
    let run = |x: &[f32]| {
        let (mut y, mut statistics) = (
            vec![0.0; x.len()],
            vec![RowStatistics::default(); x.len() / width],
        );
        norm.forward(x, None, &mut y, &mut statistics).unwrap();
        y
    };
    let together = run(&x);
    for (x, expected) in x.chunks(width).zip(together.chunks(width)) {
        assert_eq!(run(x), expected);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (gamma, mut y, mut one) = ([1.0; 4], [0.0; 8], [RowStatistics::default(); 1]);
    let mut two = [RowStatistics::default(); 2];
    let norm = Norm::Layer {
        gamma: &gamma,
        beta: &[0.0; 4],
        epsilon: 1e-5,
    };
    assert!(matches!(
        norm.forward(&[0.0; 7], None, &mut y, &mut two),
        Err(KernelError::Rows { .. })
    ));
    assert!(matches!(
        norm.forward(&[0.0; 8], None, &mut y, &mut one),
        Err(KernelError::Length {
            operand: "statistics",
            ..
        })
    ));
    let crooked = Norm::Layer {
        gamma: &gamma,
        beta: &[0.0; 3],
        epsilon: 1e-5,
    };
    assert!(matches!(
        crooked.forward(&[0.0; 8], None, &mut y, &mut two),
        Err(KernelError::Length {
            operand: "beta",
            ..
        })
    ));
    assert!(matches!(
        norm.forward(&[0.0; 8], Some(&[0.0; 4]), &mut y, &mut two),
        Err(KernelError::Length {
            operand: "residual",
            ..
        })
    ));
    norm.forward(&[], None, &mut [], &mut []).unwrap();
}

#[test]
fn a_scale_that_says_too_little_cannot_be_undone() {
    let invertible = |gamma: f32, beta: f32| {
        let (gamma, beta) = ([1.0, gamma], [0.0, beta]);
        let layer = Norm::Layer {
            gamma: &gamma,
            beta: &beta,
            epsilon: 1e-5,
        };
        layer.is_invertible()
    };
    assert!(invertible(1.0, 0.0) && invertible(-0.1, 0.5) && invertible(0.001, 0.0));
    assert!(!invertible(0.0, 0.0) && !invertible(0.01, 0.5) && !invertible(f32::NAN, 0.0));
}
