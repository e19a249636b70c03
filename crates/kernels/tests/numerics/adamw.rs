//! AdamW against `torch.optim.AdamW` (the numbers of `adamw_reference.py`) and against f64.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::adamw::AdamW;
use proptest::prelude::*;

use crate::support::*;

#[test]
fn six_steps_are_those_of_torch() {
    let lines: Vec<Vec<f64>> = include_str!("../adamw_reference.txt")
        .lines()
        .map(|line| {
            line.split(' ')
                .map(|number| number.parse().unwrap())
                .collect()
        })
        .collect();
    let [learning_rate, beta_1, beta_2, epsilon, weight_decay] = lines[0][..] else {
        unreachable!()
    };
    let adamw = AdamW {
        learning_rate,
        betas: (beta_1, beta_2),
        epsilon,
        weight_decay,
    };
    let f32s = |line: &[f64]| -> Vec<f32> { line.iter().map(|&x| x as f32).collect() };

    for (isa, results) in on_every_path(1e-6, || {
        let mut parameters = f32s(&lines[1]);
        let (mut m, mut v) = (vec![0.0; parameters.len()], vec![0.0; parameters.len()]);
        let steps = lines[2..].chunks(2).zip(1..);
        steps
            .map(|(step, number)| {
                adamw
                    .step(number, &mut parameters, &f32s(&step[0]), &mut m, &mut v)
                    .unwrap();
                parameters.clone()
            })
            .collect()
    }) {
        assert_eq!(results.len(), 6);
        for (step, (got, expected)) in results.iter().zip(lines[3..].iter().step_by(2)).enumerate()
        {
            for (got, expected) in got.iter().zip(expected) {
                let error = (f64::from(*got) - expected).abs() / expected.abs();
                assert!(
                    error < 1e-6,
                    "{isa:?}, step {}: {got}, not {expected}",
                    step + 1
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn all_lengths(length in prop_oneof![0..100usize, 0..50_000usize], seed in 0..1000u64) {
        let adamw = AdamW::default();
        let start = normals(length, seed);
        let gradients: Vec<Vec<f32>> = (1..4).map(|step| normals(length, seed + step)).collect();
        let mut expected = f64s(&start);
        for (index, parameter) in expected.iter_mut().enumerate() {
            let (mut m, mut v) = (0.0, 0.0);
            for (gradient, step) in gradients.iter().zip(1..) {
                let gradient = f64::from(gradient[index]);
                *parameter -= 1e-3 * 1e-2 * *parameter;
                m = 0.9 * m + 0.1 * gradient;
                v = 0.999 * v + 0.001 * gradient * gradient;
                let m_hat = m / (1.0 - 0.9f64.powi(step));
            let v_hat = v / (1.0 - 0.999f64.powi(step));
                *parameter -= 1e-3 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (isa, results) in on_every_path(1e-6, || {
            let mut parameters = start.clone();
            let (mut m, mut v) = (vec![0.0; length], vec![0.0; length]);
            for (gradient, step) in gradients.iter().zip(1..) {
                adamw.step(step, &mut parameters, gradient, &mut m, &mut v).unwrap();
            }
            vec![parameters]
        }) {
            // A step rounds a parameter three times, each time by at most half a unit in the last
            // place.
            let roundings = 3.0 * gradients.len() as f64;
            let tolerance = roundings * f64::from(f32::EPSILON) / 2.0;
            assert_close(&format!("{isa:?}"), &results[0], &expected, tolerance);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut p, mut m, mut v) = ([0.0; 2], [0.0; 2], [0.0; 2]);
    let adamw = AdamW::default();
    assert!(matches!(
        adamw.step(0, &mut p, &[0.0; 2], &mut m, &mut v),
        Err(KernelError::Parameter {
            parameter: "step",
            ..
        })
    ));
    assert!(matches!(
        adamw.step(1, &mut p, &[0.0; 3], &mut m, &mut v),
        Err(KernelError::Length {
            operand: "gradients",
            ..
        })
    ));
    assert!(matches!(
        adamw.step(1, &mut p, &[0.0; 2], &mut [0.0; 1], &mut v),
        Err(KernelError::Length { operand: "m", .. })
    ));
}
