//! Activations and gated units against their definitions.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::activation::Activation;
use proptest::prelude::*;

use crate::support::*;

const ALL: [Activation; 6] = [
    Activation::GeluErf,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
    Activation::Exp,
];

fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluErf => x * 0.5 * libm::erfc(-x / 2f64.sqrt()),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
        Activation::Exp => x.exp(),
    }
}

fn slope(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::GeluErf => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * libm::erfc(-x / 2f64.sqrt()) + x * density
        }
        Activation::GeluTanh => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (scale * (x + 0.044715 * x.powi(3))).tanh();
            0.5 * (1.0 + tanh)
                + 0.5 * x * (1.0 - tanh * tanh) * scale * (1.0 + 3.0 * 0.044715 * x * x)
        }
        Activation::Relu => f64::from(u8::from(x > 0.0)),
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            sigmoid * (1.0 + x * (1.0 - sigmoid))
        }
        Activation::Tanh => 1.0 - x.tanh().powi(2),
        Activation::Exp => x.exp(),
    }
}

#[test]
fn reference_slopes_are_those_of_the_reference() {
    for activation in ALL {
        let x: Vec<f64> = (-60..60).map(|x| f64::from(x) / 10.0 + 0.05).collect();
        let slopes: Vec<f64> = x.iter().map(|&x| slope(activation, x)).collect();
        let sum = |x: &[f64]| x.iter().map(|&x| value(activation, x)).sum();
        assert_same_gradient(
            &format!("{activation:?}"),
            &slopes,
            &central_differences(sum, &x),
        );
    }
}

/// Ordinary numbers, then those where something may overflow, vanish or meet a branch.
fn inputs(length: usize, seed: u64) -> Vec<f32> {
    let mut x = normals(length, seed);
    x.iter_mut().for_each(|x| *x *= 3.0);
    x.extend([
        0.0, -0.0, 1e-30, -1e-30, 0.625, -0.625, 1.312, -1.312, 12.0, -12.0, 90.0, -90.0, 1e5, -1e5,
    ]);
    x
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn all_lengths(length in 0..20_000usize, seed in 0..1000u64) {
        for activation in ALL {
            let mut x = inputs(length, seed);
            // Where the result is a number in single precision.
            x.retain(|x| activation != Activation::Exp || x.abs() < 80.0);
            let n = x.len();
            let (up, dy) = (normals(n, seed + 1), normals(n, seed + 2));
            let values: Vec<f64> = x.iter().map(|&x| value(activation, f64::from(x))).collect();
            let slopes: Vec<f64> = x.iter().map(|&x| slope(activation, f64::from(x))).collect();
            let times = |a: &[f64], b: &[f32]| -> Vec<f64> {
                a.iter().zip(b).map(|(a, &b)| a * f64::from(b)).collect()
            };
            let expected = [
                values.clone(),
                times(&slopes, &dy),
                times(&values, &up),
                times(&times(&slopes, &dy), &up),
                times(&values, &dy),
            ];
            let paths = on_every_path(1e-6, || {
                let mut results = vec![vec![f32::NAN; n]; 5];
                let [y, dx, gated, d_gate, d_up] = &mut results[..] else { unreachable!() };
                activation.forward(&x, y).unwrap();
                dx.copy_from_slice(&dy);
                activation.backward(&x, dx).unwrap();
                activation.gated_forward(&x, &up, gated).unwrap();
                d_up.copy_from_slice(&dy);
                activation.gated_backward(&x, &up, d_up, d_gate).unwrap();
                results
            });
            for (isa, results) in paths {
                let all = ["y", "dx", "gated", "d_gate", "d_up"].iter().zip(&results);
                for ((what, got), expected) in all.zip(&expected) {
                    let what = format!("{isa:?}, {activation:?}, {what}");
                    // Each element for itself: large ones must not excuse small ones.
                    for (got, expected) in got.iter().zip(expected) {
                        assert_close(&what, &[*got], &[*expected], 1e-6);
                    }
                }
            }
        }
    }
}

#[test]
fn extremes_stay_finite_and_nan_stays() {
    let x = [f32::MAX, f32::MIN, 1e20, -1e20, f32::NAN];
    for activation in ALL {
        // It has no finite extreme; `math.rs` tests all of its range.
        if activation == Activation::Exp {
            continue;
        }
        for (isa, results) in on_every_path(0.0, || {
            let (mut y, mut dx) = (vec![0.0; 5], vec![1.0; 5]);
            activation.forward(&x, &mut y).unwrap();
            activation.backward(&x, &mut dx).unwrap();
            vec![y, dx]
        }) {
            let [y, dx] = &results[..] else {
                unreachable!()
            };
            let (high, flat) = if activation == Activation::Tanh {
                (1.0, 0.0)
            } else {
                (f32::MAX, 1.0)
            };
            assert_eq!((y[0], dx[0]), (high, flat), "{isa:?}, {activation:?}");
            assert_eq!(
                y[1].abs(),
                if activation == Activation::Tanh {
                    1.0
                } else {
                    0.0
                }
            );
            assert!(
                dx[1].abs() < 1e-30 && y[2].is_finite() && y[3].is_finite(),
                "{isa:?}, {activation:?}"
            );
            assert!(
                dx[2].is_finite() && dx[3].is_finite(),
                "{isa:?}, {activation:?}"
            );
            assert!(y[4].is_nan(), "{isa:?}, {activation:?}");
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let x = [0.0; 3];
    let refused = |result| matches!(result, Err(KernelError::Length { .. }));
    assert!(refused(Activation::Relu.forward(&x, &mut [0.0; 2])));
    assert!(refused(Activation::Relu.backward(&x, &mut [0.0; 2])));
    assert!(refused(Activation::Relu.gated_forward(
        &x,
        &[0.0; 4],
        &mut [0.0; 3]
    )));
    assert!(refused(Activation::Relu.gated_backward(
        &x,
        &x,
        &mut [0.0; 3],
        &mut [0.0; 1]
    )));
}
