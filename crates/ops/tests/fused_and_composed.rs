//! Every operation twice: fused over the kernels, and composed of Burn's own operations. Results
//! and gradients of all operands agree, whatever is tracked; a NaN in any operand is in the result
//! of both.

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_ops::{
    Activation, AdamW, Angles, Attention, Dropout, FrozenMatrix, IGNORED, Keys, LowRank, Moments,
    Precision, Prefix, Sequences, Weight, add, add_layer_norm, attention, composed, dropout, exp,
    expand_rows, hadamard, language_model_loss, layer_norm, linear, low_rank_linear, mean_rows,
    random, rms_norm, rotate, scale, scale_columns, square_sum,
};

/// Operands of an operation, all tracked; the first column of `broken` is NaN.
fn operands(shapes: &[[usize; 2]], broken: Option<usize>) -> Vec<Tensor<2>> {
    let device = Device::default().autodiff();
    let tensor = |(index, &[rows, columns]): (usize, &[usize; 2])| {
        let mut values = random::normal(index as u64 + 1, rows * columns, 1.0);
        if broken == Some(index) {
            let firsts = values.iter_mut().step_by(columns);
            firsts.for_each(|value| *value = f32::NAN);
        }
        Tensor::from_data(TensorData::new(values, [rows, columns]), &device).require_grad()
    };
    shapes.iter().enumerate().map(tensor).collect()
}

fn values_of(tensor: Tensor<1>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().try_into_vec_as::<f32>().unwrap()
}

/// The result of `body`, and the gradient of a fixed weighting of it for every operand.
fn run(shapes: &[[usize; 2]], body: &dyn Fn(&[Tensor<2>]) -> Tensor<2>) -> Vec<Vec<f32>> {
    let operands = operands(shapes, None);
    let result = body(&operands);
    let [rows, columns] = result.dims();
    let weights = random::normal(99, rows * columns, 1.0);
    let weights = Tensor::<2>::from_data(
        TensorData::new(weights, [rows, columns]),
        &result.device().inner(),
    );
    let mut gradients = (result.clone() * weights).sum().backward();
    let mut all = vec![values(result)];
    for operand in &operands {
        all.push(
            operand
                .grad_remove(&mut gradients)
                .map(values)
                .unwrap_or_default(),
        );
    }
    all
}

/// Fused and composed agree to `tolerance`, relative to the largest value of each tensor.
fn agree(
    name: &str,
    shapes: &[[usize; 2]],
    tolerance: f32,
    body: impl Fn(&[Tensor<2>]) -> Tensor<2>,
) {
    let fused = run(shapes, &body);
    let plain = composed(|| run(shapes, &body));
    for (index, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
        assert_eq!(fused.len(), plain.len(), "{name}: tensor {index}");
        let largest = plain
            .iter()
            .fold(1e-6f32, |most, value| most.max(value.abs()));
        for (fused, plain) in fused.iter().zip(plain) {
            assert!(
                (fused - plain).abs() <= tolerance * largest,
                "{name}: tensor {index} has {fused}, composed {plain}, largest {largest}"
            );
        }
    }
    // An operand that this case does not read has no gradient.
    let is_read = |operand: &usize| !plain[operand + 1].is_empty();
    for broken in (0..shapes.len()).filter(is_read) {
        let has_nan = || {
            let result = values(body(&operands(shapes, Some(broken))));
            result.iter().any(|value| value.is_nan())
        };
        assert!(has_nan(), "{name}: fused hides a NaN in operand {broken}");
        assert!(
            composed(has_nan),
            "{name}: composed hides a NaN in operand {broken}"
        );
    }
    assert!(
        fused
            .iter()
            .skip(1)
            .any(|gradient| gradient.iter().any(|value| *value != 0.0)),
        "{name}"
    );
}

fn row(tensor: &Tensor<2>) -> Tensor<1> {
    let count = tensor.dims()[0] * tensor.dims()[1];
    tensor.clone().reshape([count])
}

#[test]
fn linear_layers() {
    let frozen = FrozenMatrix::new(
        random::normal(7, 5 * 33, 1.0),
        [5, 33],
        Precision::F32,
        &Device::default(),
    )
    .unwrap();
    let frozen = Weight::Frozen(frozen);
    agree("frozen", &[[17, 33]], 1e-5, |x| {
        linear(x[0].clone(), &frozen, None)
    });
    agree("frozen with bias", &[[17, 33], [1, 5]], 1e-5, |x| {
        linear(x[0].clone(), &frozen, Some(row(&x[1])))
    });
    agree("trained", &[[17, 33], [5, 33]], 1e-5, |x| {
        linear(x[0].clone(), &Weight::Trained(x[1].clone()), None)
    });
    agree(
        "trained with bias",
        &[[17, 33], [5, 33], [1, 5]],
        1e-5,
        |x| {
            linear(
                x[0].clone(),
                &Weight::Trained(x[1].clone()),
                Some(row(&x[2])),
            )
        },
    );
}

#[test]
fn low_rank_paths() {
    let values = random::normal(7, 5 * 33, 1.0);
    let frozen = FrozenMatrix::new(values, [5, 33], Precision::F32, &Device::default()).unwrap();
    let sequences = Sequences::new(vec![0, 6, 17]).with_keys(vec![1, 2]);
    for (name, p) in [("low rank", 0.0), ("low rank with dropout", 0.3)] {
        let path = |a: &Tensor<2>, b: &Tensor<2>| LowRank {
            a: a.clone(),
            b: b.clone(),
            scale: 0.7,
            dropout: Dropout::new(p, 3, &sequences),
        };
        let weight = Weight::Frozen(frozen.clone());
        agree(name, &[[17, 33], [3, 33], [5, 3]], 1e-5, |x| {
            low_rank_linear(x[0].clone(), &weight, None, path(&x[1], &x[2]))
        });
        let shapes = [[17, 33], [3, 33], [5, 3], [1, 5]];
        agree(&format!("{name}, bias"), &shapes, 1e-5, |x| {
            let bias = Some(row(&x[3]));
            low_rank_linear(x[0].clone(), &weight, bias, path(&x[1], &x[2]))
        });
        let shapes = [[17, 33], [3, 33], [5, 3], [5, 33]];
        agree(&format!("{name}, trained"), &shapes, 1e-5, |x| {
            let weight = Weight::Trained(x[3].clone());
            low_rank_linear(x[0].clone(), &weight, None, path(&x[1], &x[2]))
        });
    }
}

#[test]
fn sums_and_factors() {
    agree("sum", &[[9, 24], [9, 24]], 0.0, |x| {
        add(x[0].clone(), x[1].clone())
    });
    agree("a sum of one", &[[9, 24]], 0.0, |x| {
        add(x[0].clone(), x[0].clone())
    });
    agree("factors", &[[70, 24], [1, 24]], 1e-5, |x| {
        scale_columns(x[0].clone(), row(&x[1]))
    });
    // With a factor of zero the result no longer says what went in.
    let device = Device::default().autodiff();
    let zero_one = Tensor::<1>::from_floats([0.0, 1.0], &device);
    let mask = || zero_one.clone();
    agree("factors with a zero", &[[7, 2], [1, 2]], 1e-5, |x| {
        scale_columns(x[0].clone(), row(&x[1]) * mask())
    });
}

#[test]
fn hadamard_transforms() {
    agree("a small transform", &[[8, 8]], 1e-6, |x| {
        hadamard(x[0].clone().reshape([64])).reshape([8, 8])
    });
    // More than is transformed at a time.
    agree("a large transform", &[[256, 128]], 1e-5, |x| {
        hadamard(x[0].clone().reshape([1 << 15])).reshape([256, 128])
    });
}

#[test]
fn rows_of_sequences() {
    let rows = Sequences::new(vec![0, 3, 3, 73, 74]);
    agree("means", &[[74, 5]], 1e-6, |x| {
        mean_rows(x[0].clone(), &rows)
    });
    agree("expanded", &[[4, 5]], 1e-6, |x| {
        expand_rows(x[0].clone(), &rows)
    });
    // Against the definition, and the gradient against central differences in f64.
    let mean = |x: &[f64], sequence: usize, column: usize| {
        let (start, end) = (rows.boundaries()[sequence], rows.boundaries()[sequence + 1]);
        let sum: f64 = (start..end).map(|row| x[row * 5 + column]).sum();
        sum / (end - start).max(1) as f64
    };
    let weights: Vec<f64> = random::normal(99, 20, 1.0)
        .into_iter()
        .map(f64::from)
        .collect();
    let loss = |x: &[f64]| -> f64 {
        (0..20)
            .map(|at| weights[at] * mean(x, at / 5, at % 5))
            .sum()
    };
    let results = run(&[[74, 5]], &|x| mean_rows(x[0].clone(), &rows));
    let mut x: Vec<f64> = random::normal(1, 74 * 5, 1.0)
        .into_iter()
        .map(f64::from)
        .collect();
    for (at, result) in results[0].iter().enumerate() {
        assert!((f64::from(*result) - mean(&x, at / 5, at % 5)).abs() < 1e-6);
    }
    for (at, gradient) in results[1].iter().enumerate() {
        let value = x[at];
        let mut moved = |by: f64| {
            x[at] = value + by;
            loss(&x)
        };
        let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        x[at] = value;
        assert!(
            (f64::from(*gradient) - slope).abs() < 1e-6,
            "{gradient} {slope}"
        );
    }
}

#[test]
fn trained_tables() {
    let ids = [3u32, 0, 3, 69, 3];
    agree("rows of a trained table", &[[70, 5]], 1e-6, |x| {
        Weight::Trained(x[0].clone()).gather(&ids)
    });
}

#[test]
fn lengths_of_gradients() {
    let run = || {
        let values = TensorData::new(random::normal(4, 20_000, 3.0), [20_000]);
        let tensor = Tensor::<1>::from_data(values, &Device::default());
        let shared = tensor.clone();
        let scaled = scale(tensor, 0.25);
        (square_sum(&shared), square_sum(&scaled), values_of(scaled))
    };
    let (fused, plain) = (run(), composed(run));
    assert!((fused.0 / plain.0 - 1.0).abs() < 1e-5);
    assert!((fused.1 * 16.0 / fused.0 - 1.0).abs() < 1e-12);
    assert_eq!(fused.2, plain.2);
    let odd = Tensor::<1>::from_floats([1.0, f32::NAN], &Device::default());
    assert!(square_sum(&odd).is_nan());
}

#[test]
fn an_embedding_reads_the_rows_of_a_packed_table() {
    for precision in [Precision::F32, Precision::Bf16] {
        let values = random::normal(3, 70 * 5, 1.0);
        let table = FrozenMatrix::new(values, [70, 5], precision, &Device::default()).unwrap();
        let ids = [0u32, 69, 33, 33, 1];
        let expected = self::values(table.to_tensor());
        let expected: Vec<f32> = ids
            .iter()
            .flat_map(|&id| expected[id as usize * 5..][..5].to_vec())
            .collect();
        assert_eq!(self::values(table.gather(&ids)), expected);
    }
}

#[test]
fn norms() {
    agree("layer norm", &[[9, 24], [1, 24], [1, 24]], 2e-5, |x| {
        layer_norm(x[0].clone(), row(&x[1]), row(&x[2]), 1e-12)
    });
    let shapes = [[9, 24], [1, 24], [1, 24], [9, 24]];
    agree("layer norm of a sum", &shapes, 2e-5, |x| {
        add_layer_norm(x[0].clone(), x[3].clone(), row(&x[1]), row(&x[2]), 1e-12)
    });
    // A gamma of one or more: the result stands for what was normalized.
    agree("layer norm kept by its result", &shapes, 2e-5, |x| {
        let gamma = row(&x[1]).abs() + 1.0;
        add_layer_norm(x[0].clone(), x[3].clone(), gamma, row(&x[2]), 1e-12)
    });
    // A gamma of zero: the result no longer says what was normalized.
    let device = Device::default().autodiff();
    let mask: Vec<f32> = (0..24).map(|column| f32::from(column != 5)).collect();
    let mask = Tensor::<1>::from_floats(&mask[..], &device);
    agree("layer norm with a zero", &shapes[..3], 2e-5, |x| {
        layer_norm(x[0].clone(), row(&x[1]) * mask.clone(), row(&x[2]), 1e-12)
    });
    agree("layer norm of a sum with a zero", &shapes, 2e-5, |x| {
        let gamma = row(&x[1]) * mask.clone();
        add_layer_norm(x[0].clone(), x[3].clone(), gamma, row(&x[2]), 1e-12)
    });
    agree("rms norm", &[[9, 24], [1, 24]], 2e-5, |x| {
        rms_norm(x[0].clone(), row(&x[1]), 1e-5)
    });
}

#[test]
fn activations() {
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        let name = format!("{activation:?}");
        agree(&name, &[[11, 13]], 1e-5, |x| activation.apply(x[0].clone()));
        agree(&name, &[[11, 13], [11, 13]], 1e-5, |x| {
            activation.gate(x[0].clone(), x[1].clone())
        });
    }
    agree("exp", &[[11, 13]], 1e-5, |x| exp(x[0].clone()));
}

#[test]
fn rotation() {
    let angles: Vec<f32> = (0..6 * 4).map(|index| index as f32 * 0.37).collect();
    let angles = Angles::new(
        angles.iter().map(|angle| angle.cos()).collect(),
        angles.iter().map(|angle| angle.sin()).collect(),
    );
    for (name, angles) in [
        ("halves", angles.clone()),
        ("neighbors", angles.interleaved()),
    ] {
        agree(name, &[[6, 16]], 1e-5, |x| rotate(x[0].clone(), &angles, 8));
        // The last four elements of a head pass.
        agree(name, &[[6, 24]], 1e-5, |x| {
            rotate(x[0].clone(), &angles, 12)
        });
    }
}

#[test]
fn attentions() {
    let sequences = Sequences::new(vec![0, 5, 5, 12, 13]);
    let plain = Attention {
        heads: 4,
        kv_heads: 4,
        head_dim: 6,
        scale: 0.4,
        softcap: None,
        causal: false,
        window: None,
        dropout: 0.0,
    };
    let shapes = [
        ("bidirectional", plain.clone()),
        (
            "causal",
            Attention {
                causal: true,
                ..plain.clone()
            },
        ),
        (
            "window",
            Attention {
                causal: true,
                window: Some(3),
                ..plain.clone()
            },
        ),
        (
            "window to both sides",
            Attention {
                window: Some(3),
                ..plain.clone()
            },
        ),
        (
            "grouped",
            Attention {
                kv_heads: 2,
                causal: true,
                ..plain.clone()
            },
        ),
        (
            "softcap",
            Attention {
                softcap: Some(0.8),
                ..plain.clone()
            },
        ),
        (
            "dropout",
            Attention {
                kv_heads: 2,
                dropout: 0.3,
                ..plain
            },
        ),
    ];
    for (name, shape) in shapes {
        let keyed = sequences.clone().with_keys(vec![11, 12, 13, 14]);
        let kv = shape.kv_heads * shape.head_dim;
        agree(name, &[[13, 24], [13, kv], [13, kv]], 2e-5, |x| {
            let keys = Keys::new(x[1].clone(), x[2].clone());
            attention(&shape, x[0].clone(), &keyed, keys, 5)
        });
        agree(
            name,
            &[[13, 24], [13, kv], [13, kv], [3, kv], [3, kv]],
            2e-5,
            |x| {
                let prefix = Some(Prefix::Shared {
                    keys: x[3].clone(),
                    values: x[4].clone(),
                });
                let keys = Keys {
                    prefix,
                    ..Keys::new(x[1].clone(), x[2].clone())
                };
                attention(&shape, x[0].clone(), &keyed, keys, 5)
            },
        );
    }
}

/// Keys of other tokens than the queries', a prefix for each sequence, a trained bias, in every
/// combination.
#[test]
fn attentions_to_other_tokens() {
    let queries = Sequences::new(vec![0, 5, 5, 12, 13, 15]).with_keys(vec![11, 12, 13, 14, 15]);
    let cached = Sequences::new(vec![0, 9, 10, 13, 17, 17]);
    let plain = Attention {
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        scale: 0.4,
        softcap: None,
        causal: false,
        window: None,
        dropout: 0.0,
    };
    for causal in [false, true] {
        for window in [None, Some(4)] {
            for choice in 0..16 {
                let [other, prefix, bias, dropout] =
                    std::array::from_fn(|option| choice >> option & 1 == 1);
                let shape = Attention {
                    causal,
                    window,
                    dropout: if dropout { 0.3 } else { 0.0 },
                    ..plain.clone()
                };
                let key_rows = if other { &cached } else { &queries };
                let [tokens, length] = [key_rows.tokens(), if prefix { 2 } else { 0 }];
                // Larger than the batch needs.
                let (max_queries, columns) = (8, length + 10);
                let shapes = [
                    [15, 24],
                    [tokens, 12],
                    [tokens, 12],
                    [4 * max_queries, columns],
                    [10, 12],
                    [10, 12],
                ];
                let name = format!("{shape:?}, other tokens {other}, {prefix} {bias}");
                let count = if prefix { 6 } else { 4 };
                agree(&name, &shapes[..count], 2e-5, |x| {
                    let keys = Keys {
                        rows: other.then(|| cached.clone()),
                        prefix: prefix.then(|| Prefix::PerSequence {
                            length,
                            keys: x[4].clone(),
                            values: x[5].clone(),
                        }),
                        bias: bias.then(|| x[3].clone().reshape([4, max_queries, columns])),
                        ..Keys::new(x[1].clone(), x[2].clone())
                    };
                    attention(&shape, x[0].clone(), &queries, keys, 5)
                });
            }
        }
    }
}

#[test]
fn a_prefix_for_each_sequence_is_its_own() {
    let rows = Sequences::new(vec![0, 3, 5]);
    let shape = Attention {
        heads: 2,
        kv_heads: 2,
        head_dim: 4,
        scale: 0.5,
        softcap: None,
        causal: true,
        window: None,
        dropout: 0.0,
    };
    let x = operands(&[[5, 8], [5, 8], [5, 8], [6, 8], [6, 8]], None);
    let run = |rows: &Sequences, own: [Tensor<2>; 3], prefix: Prefix| {
        let [q, k, v] = own;
        let keys = Keys {
            prefix: Some(prefix),
            ..Keys::new(k, v)
        };
        values(attention(&shape, q, rows, keys, 0))
    };
    let own = [x[0].clone(), x[1].clone(), x[2].clone()];
    let each = Prefix::PerSequence {
        length: 3,
        keys: x[3].clone(),
        values: x[4].clone(),
    };
    let both = run(&rows, own.clone(), each);
    let mut alone = Vec::new();
    for sequence in 0..2 {
        let (start, end) = (rows.boundaries()[sequence], rows.boundaries()[sequence + 1]);
        let own = own.clone().map(|x| x.narrow(0, start, end - start));
        let shared = Prefix::Shared {
            keys: x[3].clone().narrow(0, 3 * sequence, 3),
            values: x[4].clone().narrow(0, 3 * sequence, 3),
        };
        alone.extend(run(&Sequences::new(vec![0, end - start]), own, shared));
    }
    assert_eq!(both, alone);
}

#[test]
fn dropped_elements() {
    let sequences = Sequences::new(vec![0, 4, 9]).with_keys(vec![1, 2]);
    agree("dropout", &[[9, 50]], 0.0, |x| {
        dropout(x[0].clone(), 0.25, 3, &sequences)
    });
    let [x] = &operands(&[[9, 50]], None)[..] else {
        unreachable!()
    };
    let dropped = values(dropout(x.clone(), 0.25, 3, &sequences));
    let zeros = dropped.iter().filter(|value| **value == 0.0).count();
    assert!(
        (60..170).contains(&zeros),
        "{zeros} of 450 are dropped at a quarter"
    );
    let unkeyed = Sequences::new(vec![0, 4, 9]);
    assert_eq!(
        values(dropout(x.clone(), 0.25, 3, &unkeyed)),
        values(x.clone())
    );
}

#[test]
fn what_a_sequence_draws_does_not_depend_on_its_company() {
    let [x] = &operands(&[[9, 50]], None)[..] else {
        unreachable!()
    };
    let together = Sequences::new(vec![0, 4, 9]).with_keys(vec![1, 2]);
    let alone = Sequences::new(vec![0, 5]).with_keys(vec![2]);
    let both = values(dropout(x.clone(), 0.25, 3, &together));
    let one = values(dropout(x.clone().narrow(0, 4, 5), 0.25, 3, &alone));
    assert_eq!(both[4 * 50..], one);
}

#[test]
fn language_model_heads() {
    let targets = [3i64, IGNORED, 0, 39, 7, IGNORED];
    for smoothing in [0.0, 0.1] {
        agree("trained head", &[[6, 10], [40, 10]], 2e-5, |x| {
            let head = Weight::Trained(x[1].clone());
            let loss = language_model_loss(x[0].clone(), &head, &targets, smoothing);
            loss.unwrap().unsqueeze()
        });
        let values = random::normal(5, 40 * 10, 1.0);
        let head = FrozenMatrix::new(values, [40, 10], Precision::F32, &Device::default()).unwrap();
        let head = Weight::Frozen(head);
        agree("frozen head", &[[6, 10]], 2e-5, |x| {
            language_model_loss(x[0].clone(), &head, &targets, smoothing)
                .unwrap()
                .unsqueeze()
        });
    }
    let [x] = &operands(&[[2, 10]], None)[..] else {
        unreachable!()
    };
    let head = Weight::Trained(operands(&[[40, 10]], None).remove(0));
    assert!(language_model_loss(x.clone(), &head, &[IGNORED, IGNORED], 0.0).is_none());
}

#[test]
fn optimizer_steps() {
    let steps = || {
        let tensor = |key| {
            let values = TensorData::new(random::normal(key, 37, 1.0), [37]);
            Tensor::<1>::from_data(values, &Device::default())
        };
        let optimizer = AdamW {
            weight_decay: 0.1,
            ..AdamW::default()
        };
        let mut value = tensor(1);
        let mut moments = Moments::zeros(&value);
        for step in 1..=5 {
            let gradient = tensor(step as u64 + 10);
            (value, moments) = optimizer.step(value, gradient, moments, 0.01, step);
        }
        values(value)
    };
    for (fused, plain) in steps().iter().zip(composed(steps)) {
        assert!((fused - plain).abs() < 1e-6, "{fused} {plain}");
    }
}

#[test]
fn what_is_not_tracked_gets_no_gradient() {
    let device = Device::default();
    let x = Tensor::<2>::ones([3, 4], &device);
    let w = Tensor::<2>::ones([2, 4], &device.autodiff()).require_grad();
    let y = linear(x.clone(), &Weight::Trained(w.clone()), None);
    let gradients = y.sum().backward();
    assert!(x.grad(&gradients).is_none());
    assert_eq!(values(w.grad(&gradients).unwrap()), [3.0; 8]);
}
