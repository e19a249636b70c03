//! Cross-entropy against its definition, alone and fused with a head.

use epiphyte_kernels::KernelError;
use epiphyte_kernels::cross_entropy::{CrossEntropy, DenseHead, HeadGradients};
use epiphyte_kernels::gemm::{PackedWeight, Precision};
use proptest::prelude::*;

use crate::support::*;

/// The losses of rows and the gradient of their sum.
fn reference(
    logits: &[f64],
    classes: usize,
    targets: &[i64],
    smoothing: f64,
) -> (Vec<f64>, Vec<f64>) {
    let (mut losses, mut d_logits) = (Vec::new(), Vec::new());
    for (z, &target) in logits.chunks(classes).zip(targets) {
        if target == -100 {
            losses.push(0.0);
            d_logits.extend(vec![0.0; classes]);
            continue;
        }
        let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln();
        let mean = z.iter().sum::<f64>() / classes as f64;
        losses.push((1.0 - smoothing) * (lse - z[target as usize]) + smoothing * (lse - mean));
        for (class, z) in z.iter().enumerate() {
            let hot = if class == target as usize {
                1.0 - smoothing
            } else {
                0.0
            };
            d_logits.push((z - lse).exp() - hot - smoothing / classes as f64);
        }
    }
    (losses, d_logits)
}

fn targets(rows: usize, classes: usize, seed: u64) -> Vec<i64> {
    (0..rows)
        .map(|row| (row * 31 + seed as usize) % (classes + classes.div_ceil(4)))
        .map(|target| {
            if target < classes {
                target as i64
            } else {
                -100
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn logits_of_all_shapes(
        rows in 0..200usize,
        classes in prop_oneof![1..10usize, 1..600usize],
        smoothing in prop::sample::select(vec![0.0f32, 0.1, 1.0]),
        spread in prop::sample::select(vec![1.0f32, 30.0]),
        seed in 0..1000u64,
    ) {
        let logits: Vec<f32> = normals(rows * classes, seed).iter().map(|x| x * spread).collect();
        let targets = targets(rows, classes, seed);
        let (losses, d_logits) = reference(&f64s(&logits), classes, &targets, f64::from(smoothing));
        let loss = CrossEntropy { label_smoothing: smoothing, ..CrossEntropy::default() };
        for (isa, results) in on_every_path(1e-6, || {
            let (mut losses, mut d_logits) = (vec![f32::NAN; rows], vec![f32::NAN; rows * classes]);
            let forward = loss.forward(&logits, classes, &targets, &mut losses).unwrap();
            let alone = std::mem::replace(&mut losses, vec![f32::NAN; rows]);
            let both = loss.forward_backward(&logits, classes, &targets, &mut losses, &mut d_logits).unwrap();
            assert_eq!(forward, both);
            assert_eq!(both.targets, targets.iter().filter(|&&target| target != -100).count());
            vec![losses, d_logits, alone, vec![both.sum as f32]]
        }) {
            assert_close(&format!("{isa:?}, losses"), &results[0], &losses, 1e-6);
            assert_close(&format!("{isa:?}, d_logits"), &results[1], &d_logits, 1e-6);
            assert_eq!(bits(&results[..1]), bits(&results[2..3]));
            assert_close(&format!("{isa:?}, sum"), &results[3], &[losses.iter().sum()], 1e-6);
        }
    }

    #[test]
    fn heads_of_all_shapes(
        rows in 0..60usize,
        width in 1..40usize,
        vocabulary in 1..200usize,
        smoothing in prop::sample::select(vec![0.0f32, 0.1]),
        seed in 0..1000u64,
    ) {
        check_head(rows, width, vocabulary, smoothing, seed);
    }
}

fn check_head(rows: usize, width: usize, vocabulary: usize, smoothing: f32, seed: u64) {
    let (hidden, weight) = (
        normals(rows * width, seed),
        normals(vocabulary * width, seed + 1),
    );
    let targets = targets(rows, vocabulary, seed);
    let (h, w) = (f64s(&hidden), f64s(&weight));
    let logits: Vec<f64> = h
        .chunks(width)
        .flat_map(|h| w.chunks(width).map(move |w| dot(h, w)))
        .collect();
    let (losses, d_logits) = reference(&logits, vocabulary, &targets, f64::from(smoothing));
    let (mut d_hidden, mut d_weight) = (vec![0.0; rows * width], vec![0.0; vocabulary * width]);
    for (index, d) in d_logits.iter().enumerate() {
        let (row, word) = (index / vocabulary, index % vocabulary);
        for column in 0..width {
            d_hidden[row * width + column] += d * w[word * width + column];
            d_weight[word * width + column] += d * h[row * width + column];
        }
    }
    let expected = [losses, d_hidden, d_weight];

    let loss = CrossEntropy {
        label_smoothing: smoothing,
        ..CrossEntropy::default()
    };
    for (isa, results) in on_every_path(1e-5, || {
        let dense = DenseHead {
            weight: &weight,
            width,
        };
        let (mut losses, mut d_hidden, mut d_weight) = (
            vec![f32::NAN; rows],
            vec![f32::NAN; rows * width],
            vec![f32::NAN; vocabulary * width],
        );
        let gradients = HeadGradients {
            d_hidden: Some(&mut d_hidden),
            d_weight: Some(&mut d_weight),
        };
        let trained = loss
            .with_head(&dense, &hidden, &targets, &mut losses, gradients)
            .unwrap();

        let packed = PackedWeight::pack(&weight, vocabulary, width, Precision::F32).unwrap();
        let (mut packed_losses, mut packed_d_hidden) =
            (losses.clone(), vec![f32::NAN; rows * width]);
        let gradients = HeadGradients {
            d_hidden: Some(&mut packed_d_hidden),
            d_weight: None,
        };
        let frozen = loss
            .with_head(&packed, &hidden, &targets, &mut packed_losses, gradients)
            .unwrap();
        assert_eq!(trained.targets, frozen.targets);
        vec![losses, d_hidden, d_weight, packed_losses, packed_d_hidden]
    }) {
        let names = [
            "losses",
            "d_hidden",
            "d_weight",
            "losses, packed",
            "d_hidden, packed",
        ];
        for (index, (name, got)) in names.iter().zip(&results).enumerate() {
            assert_close(&format!("{isa:?}, {name}"), got, &expected[index % 3], 5e-6);
        }
    }
}

/// So wide a vocabulary that the rows do not fit into the logits held at a time.
#[test]
fn rows_are_taken_in_turns() {
    check_head(40, 3, 600_000, 0.1, 1);
}

#[test]
fn a_row_does_not_see_the_others() {
    let (rows, width, vocabulary) = (37, 24, 333);
    let (hidden, weight) = (normals(rows * width, 1), normals(vocabulary * width, 2));
    let head = PackedWeight::pack(&weight, vocabulary, width, Precision::F32).unwrap();
    let targets = targets(rows, vocabulary, 3);
    let run = |hidden: &[f32], targets: &[i64]| {
        let (mut losses, mut d_hidden) = (vec![0.0; targets.len()], vec![0.0; hidden.len()]);
        let gradients = HeadGradients {
            d_hidden: Some(&mut d_hidden),
            d_weight: None,
        };
        CrossEntropy::default()
            .with_head(&head, hidden, targets, &mut losses, gradients)
            .unwrap();
        vec![losses, d_hidden]
    };
    let together = run(&hidden, &targets);
    for row in 0..rows {
        let alone = run(&hidden[row * width..][..width], &targets[row..=row]);
        let expected = [
            together[0][row..=row].to_vec(),
            together[1][row * width..][..width].to_vec(),
        ];
        assert_eq!(bits(&alone), bits(&expected), "row {row}");
    }
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    let (logits, targets) = (f64s(&normals(15, 1)), [2, -100, 4]);
    let (_, d_logits) = reference(&logits, 5, &targets, 0.2);
    let loss = |logits: &[f64]| reference(logits, 5, &targets, 0.2).0.iter().sum();
    assert_same_gradient("d_logits", &d_logits, &central_differences(loss, &logits));
}

#[test]
fn far_logits_neither_overflow_nor_vanish() {
    let logits = [1e30, -1e30, 0.0, 88.0, -90.0, f32::NEG_INFINITY];
    for (isa, results) in on_every_path(1e-6, || {
        let (mut losses, mut d_logits) = (vec![0.0; 2], vec![0.0; 6]);
        CrossEntropy::default()
            .forward_backward(&logits, 3, &[1, 0], &mut losses, &mut d_logits)
            .unwrap();
        vec![losses, d_logits]
    }) {
        assert_eq!(results[0], [2e30, 0.0], "{isa:?}");
        assert_eq!(results[1], [1.0, -1.0, 0.0, 0.0, 0.0, 0.0], "{isa:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let loss = CrossEntropy::default();
    let mut losses = [0.0; 2];
    for target in [3, -1, i64::MIN] {
        let error = loss
            .forward(&[0.0; 6], 3, &[0, target], &mut losses)
            .unwrap_err();
        assert_eq!(
            error,
            KernelError::Index {
                operand: "targets",
                position: 1,
                index: target,
                limit: 3
            }
        );
    }
    assert!(matches!(
        loss.forward(&[0.0; 5], 3, &[0, 1], &mut losses),
        Err(KernelError::Length {
            operand: "logits",
            ..
        })
    ));
    assert!(matches!(
        loss.forward(&[0.0; 3], 3, &[0], &mut losses),
        Err(KernelError::Length {
            operand: "losses",
            ..
        })
    ));
    let smooth = CrossEntropy {
        label_smoothing: 1.5,
        ..loss
    };
    assert!(matches!(
        smooth.forward(&[0.0; 6], 3, &[0, 1], &mut losses),
        Err(KernelError::Parameter { .. })
    ));
    let head = DenseHead {
        weight: &[0.0; 6],
        width: 2,
    };
    let error = loss
        .with_head(
            &head,
            &[0.0; 3],
            &[0, 1],
            &mut losses,
            HeadGradients::default(),
        )
        .unwrap_err();
    assert!(matches!(
        error,
        KernelError::Length {
            operand: "hidden",
            ..
        }
    ));
    loss.forward(&[], 3, &[], &mut []).unwrap();
}
