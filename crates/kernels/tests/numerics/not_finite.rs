//! A NaN in any operand of any kernel is in its results: never a plausible number in its place.

use epiphyte_kernels::activation::Activation;
use epiphyte_kernels::adamw::AdamW;
use epiphyte_kernels::attention::{Attention, AttentionBackward, AttentionGradients, Bias, Prefix};
use epiphyte_kernels::cross_entropy::{CrossEntropy, DenseHead, HeadGradients};
use epiphyte_kernels::dropout::Dropout;
use epiphyte_kernels::embedding::{gather, scatter_add};
use epiphyte_kernels::gemm::{Epilogue, LowRank, Operand, PackedWeight, Precision, affine, matmul};
use epiphyte_kernels::norm::{Kept, Norm, NormGradients, RowStatistics};
use epiphyte_kernels::rope::Rope;
use epiphyte_kernels::{Isa, columns, vector};

use crate::support::normals;

/// More than a block of every kernel, so that a NaN meets vectors and their remainders.
const ROWS: usize = 70;
const WIDTH: usize = 37;

/// Puts a NaN at several places of each operand in turn, on every instruction set, and asserts that
/// some result has one too.
#[track_caller]
fn reaches_results(
    what: &str,
    lengths: &[usize],
    kernel: impl Fn(&[Vec<f32>]) -> Vec<Vec<f32>> + Sync,
) {
    let operands = lengths.iter().zip(1..);
    let operands: Vec<Vec<f32>> = operands.map(|(&n, seed)| normals(n, seed)).collect();
    for isa in Isa::available() {
        let finite = isa.with(|| kernel(&operands));
        let is_finite = finite.iter().flatten().all(|x| x.is_finite());
        assert!(is_finite, "{what}, {isa:?}: not finite without a NaN");
        for (index, &length) in lengths.iter().enumerate() {
            for at in [0, length / 2, length - 1] {
                let mut operands = operands.clone();
                operands[index][at] = f32::NAN;
                let results = isa.with(|| kernel(&operands));
                assert!(
                    results.iter().flatten().any(|x| x.is_nan()),
                    "{what}, {isa:?}: element {at} of operand {index} is in no result"
                );
            }
        }
    }
}

#[test]
fn in_activations() {
    let n = ROWS * WIDTH;
    for activation in [
        Activation::GeluErf,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Exp,
    ] {
        reaches_results(&format!("{activation:?}"), &[n], |operands| {
            let mut y = vec![0.0; n];
            activation.forward(&operands[0], &mut y).unwrap();
            vec![y]
        });
        reaches_results(&format!("{activation:?} backward"), &[n, n], |operands| {
            let mut gradient = operands[1].clone();
            activation.backward(&operands[0], &mut gradient).unwrap();
            vec![gradient]
        });
        reaches_results(&format!("{activation:?} gated"), &[n, n], |operands| {
            let mut y = vec![0.0; n];
            activation
                .gated_forward(&operands[0], &operands[1], &mut y)
                .unwrap();
            vec![y]
        });
        let what = format!("{activation:?} gated backward");
        reaches_results(&what, &[n, n, n], |operands| {
            let (mut gradient, mut d_gate) = (operands[2].clone(), vec![0.0; n]);
            activation
                .gated_backward(&operands[0], &operands[1], &mut gradient, &mut d_gate)
                .unwrap();
            vec![d_gate, gradient]
        });
    }
}

#[test]
fn in_norms() {
    let n = ROWS * WIDTH;
    for rms in [false, true] {
        let norm = |operands: &[Vec<f32>], body: &dyn Fn(Norm<'_>) -> Vec<Vec<f32>>| {
            // Scales away from 0, so that the result may be kept in place of the input.
            let gamma: Vec<f32> = operands[0].iter().map(|x| x.abs() + 1.0).collect();
            let (gamma, epsilon) = (&gamma[..], 1e-5);
            body(match rms {
                true => Norm::Rms { gamma, epsilon },
                false => Norm::Layer {
                    gamma,
                    beta: &operands[1],
                    epsilon,
                },
            })
        };
        let forward = |norm: &Norm<'_>, x: &[f32], residual: Option<&[f32]>| {
            let mut y = vec![0.0; n];
            let mut statistics = vec![RowStatistics::default(); ROWS];
            norm.forward(x, residual, &mut y, &mut statistics).unwrap();
            (y, statistics)
        };
        let lengths = [WIDTH, WIDTH, n, n];
        reaches_results("norm", &lengths, |operands| {
            norm(operands, &|norm| {
                let (mut y, _) = forward(&norm, &operands[2], Some(&operands[3]));
                if rms {
                    // An RMS norm has no shift.
                    y.extend(&operands[1]);
                }
                vec![y]
            })
        });
        reaches_results("norm backward", &lengths, |operands| {
            norm(operands, &|norm| {
                let (_, statistics) = forward(&norm, &operands[2], None);
                let mut gradient = operands[3].clone();
                let (mut d_gamma, mut d_beta) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
                let parameters = NormGradients {
                    d_gamma: &mut d_gamma,
                    d_beta: if rms { &mut [] } else { &mut d_beta },
                };
                let kept = Kept::Input(&operands[2]);
                norm.backward(kept, &statistics, &mut gradient, Some(parameters))
                    .unwrap();
                // The shift is in no gradient.
                vec![gradient, d_gamma, operands[1].clone()]
            })
        });
    }
}

#[test]
fn in_cross_entropy() {
    let targets: Vec<i64> = (0..ROWS as i64).map(|row| row % WIDTH as i64).collect();
    for label_smoothing in [0.0, 0.1] {
        let loss = CrossEntropy {
            label_smoothing,
            ..CrossEntropy::default()
        };
        reaches_results("cross-entropy", &[ROWS * WIDTH], |operands| {
            let mut losses = vec![0.0; ROWS];
            let sum = loss.forward(&operands[0], WIDTH, &targets, &mut losses);
            vec![vec![sum.unwrap().sum as f32]]
        });
        reaches_results("cross-entropy backward", &[ROWS * WIDTH], |operands| {
            let (mut losses, mut d_logits) = (vec![0.0; ROWS], vec![0.0; ROWS * WIDTH]);
            loss.forward_backward(&operands[0], WIDTH, &targets, &mut losses, &mut d_logits)
                .unwrap();
            vec![d_logits]
        });
        let lengths = [WIDTH * 8, ROWS * 8];
        reaches_results("cross-entropy of a head", &lengths, |operands| {
            let head = DenseHead {
                weight: &operands[0],
                width: 8,
            };
            let (mut losses, mut d_hidden) = (vec![0.0; ROWS], vec![0.0; ROWS * 8]);
            let gradients = HeadGradients {
                d_hidden: Some(&mut d_hidden),
                d_weight: None,
            };
            loss.with_head(&head, &operands[1], &targets, &mut losses, gradients)
                .unwrap();
            // Losses and gradients, each by itself.
            let sums = [&losses, &d_hidden].map(|values| values.iter().sum::<f32>());
            vec![vec![if sums.iter().all(|sum| sum.is_nan()) {
                f32::NAN
            } else {
                1.0
            }]]
        });
    }
}

#[test]
fn in_products() {
    let [m, k, n] = [ROWS, WIDTH, 45];
    reaches_results("matmul", &[m * k, k * n], |operands| {
        let mut c = vec![0.0; m * n];
        let (a, b) = (Operand::Plain(&operands[0]), Operand::Plain(&operands[1]));
        matmul([m, k, n], 0.5, a, b, 0.0, &mut c).unwrap();
        vec![c]
    });
    reaches_results("affine", &[m * k, n * k, n], |operands| {
        let mut y = vec![0.0; m * n];
        affine([m, k, n], &operands[0], &operands[1], &operands[2], &mut y).unwrap();
        vec![y]
    });
    for precision in [Precision::F32, Precision::Bf16] {
        let lengths = [n * k, m * k, n, m * 2, 2 * n];
        reaches_results(&format!("{precision:?} weight"), &lengths, |operands| {
            let weight = PackedWeight::pack(&operands[0], n, k, precision).unwrap();
            let epilogue = Epilogue {
                bias: Some(&operands[2]),
                low_rank: Some(LowRank {
                    left: &operands[3],
                    right: &operands[4],
                }),
            };
            let mut y = vec![0.0; m * n];
            weight.forward(&operands[1], epilogue, &mut y).unwrap();
            vec![y]
        });
        let what = format!("{precision:?} weight backward");
        reaches_results(&what, &[n * k, m * n], |operands| {
            let weight = PackedWeight::pack(&operands[0], n, k, precision).unwrap();
            let mut dx = vec![0.0; m * k];
            weight
                .backward_input(&operands[1], None, &mut dx, false)
                .unwrap();
            vec![dx]
        });
        reaches_results(&format!("{precision:?} rows"), &[n * k], |operands| {
            let weight = PackedWeight::pack(&operands[0], n, k, precision).unwrap();
            let mut rows = vec![0.0; n * k];
            for (index, row) in rows.chunks_mut(k).enumerate() {
                weight.row(index, row).unwrap();
            }
            vec![rows]
        });
    }
}

#[test]
fn in_attention() {
    let (heads, dim, prefix) = (2, 8, 3);
    let (width, longest) = (heads * dim, 40);
    let boundaries = [0, longest, ROWS];
    let bias = heads * longest * (prefix + longest);
    let lengths = [
        ROWS * width,
        ROWS * width,
        ROWS * width,
        prefix * width,
        prefix * width,
        bias,
        ROWS * width,
    ];
    for (causal, softcap) in [(false, None), (true, None), (true, Some(2.0))] {
        let kernel = |operands: &[Vec<f32>], backward: bool| {
            let attention = Attention {
                causal,
                softcap,
                prefix: Some(Prefix {
                    length: prefix,
                    per_sequence: false,
                    keys: &operands[3],
                    values: &operands[4],
                }),
                bias: Some(Bias {
                    values: &operands[5],
                    max_queries: longest,
                    max_keys: longest,
                }),
                ..Attention::new(&boundaries, heads, dim)
            };
            let [q, k, v] = [&operands[0], &operands[1], &operands[2]];
            let (mut out, mut lse) = (vec![0.0; ROWS * width], vec![0.0; heads * ROWS]);
            attention.forward(q, k, v, &mut out, &mut lse).unwrap();
            if !backward {
                return vec![out];
            }
            let mut results: Vec<Vec<f32>> = lengths[..3]
                .iter()
                .map(|&length| vec![0.0; length])
                .collect();
            let [dq, dk, dv] = results.get_disjoint_mut([0, 1, 2]).unwrap();
            let from = AttentionBackward {
                q,
                k,
                v,
                out: &out,
                lse: &lse,
                d_out: &operands[6],
            };
            let gradients = AttentionGradients {
                dq: Some(dq),
                dk: Some(dk),
                dv: Some(dv),
                ..AttentionGradients::default()
            };
            attention.backward(from, gradients).unwrap();
            results
        };
        let forward = |operands: &[Vec<f32>]| kernel(operands, false);
        let backward = |operands: &[Vec<f32>]| kernel(operands, true);
        reaches_results("attention", &lengths[..6], |operands| {
            let mut operands = operands.to_vec();
            operands.push(vec![0.0; lengths[6]]);
            forward(&operands)
        });
        reaches_results("attention backward", &lengths, backward);
    }
}

#[test]
fn in_the_optimizer_and_flat_buffers() {
    let n = ROWS * WIDTH;
    reaches_results("AdamW", &[n, n, n, n], |operands| {
        let [mut parameters, gradients, mut m, mut v] =
            [0, 1, 2, 3].map(|index| operands[index].clone());
        // A mean of squares is not negative; `abs` keeps a NaN.
        v.iter_mut().for_each(|v| *v = v.abs());
        AdamW::default()
            .step(3, &mut parameters, &gradients, &mut m, &mut v)
            .unwrap();
        vec![parameters]
    });
    reaches_results("sums", &[n, n], |operands| {
        let mut sum = vec![0.0; n];
        vector::add(&operands[0], &operands[1], &mut sum).unwrap();
        vector::accumulate(&operands[0], &mut sum).unwrap();
        let square = vector::square_sum(&sum) as f32;
        vec![vec![square]]
    });
    reaches_results("columns", &[n, WIDTH, n], |operands| {
        let (mut y, mut total) = (vec![0.0; n], vec![0.0; WIDTH]);
        columns::scale(&operands[0], &operands[1], &mut y).unwrap();
        columns::sums(&y, Some(&operands[2]), &mut total).unwrap();
        vec![total]
    });
    reaches_results("dropout", &[n], |operands| {
        let mut x = operands[0].clone();
        Dropout::new(0.9, 7)
            .unwrap()
            .apply(&mut x, WIDTH, 0)
            .unwrap();
        vec![x]
    });
}

#[test]
fn in_tables_and_rotations() {
    let indices: Vec<i64> = (0..ROWS as i64).collect();
    reaches_results("gather", &[ROWS * WIDTH], |operands| {
        let mut y = vec![0.0; ROWS * WIDTH];
        gather(&operands[0], WIDTH, &indices, &mut y).unwrap();
        vec![y]
    });
    reaches_results("scatter", &[ROWS * WIDTH, ROWS * WIDTH], |operands| {
        let mut table = operands[1].clone();
        scatter_add(&operands[0], WIDTH, &indices, &mut table).unwrap();
        vec![table]
    });
    let positions: Vec<u32> = (0..ROWS as u32).collect();
    let lengths = [ROWS * 12, ROWS * 3, ROWS * 3];
    reaches_results("rotary positions", &lengths, |operands| {
        let rope = Rope {
            cos: &operands[1],
            sin: &operands[2],
            rotary_dim: 6,
            head_dim: 6,
            interleaved: false,
        };
        let mut x = operands[0].clone();
        rope.forward(&mut x, &positions).unwrap();
        vec![x]
    });
}
