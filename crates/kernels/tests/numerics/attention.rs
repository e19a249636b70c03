//! Attention against the definition: all scores, a softmax, a sum.

mod case;

use epiphyte_kernels::attention::{
    Attention, AttentionBackward, AttentionDropout, AttentionGradients, Bias, Prefix,
};
use epiphyte_kernels::{Isa, KernelError};
use proptest::prelude::*;

use crate::support::*;
use case::{Case, Numbers};

const NAMES: [&str; 8] = [
    "out",
    "lse",
    "dq",
    "dk",
    "dv",
    "d_prefix_keys",
    "d_prefix_values",
    "d_bias",
];

fn check(case: &Case) {
    let numbers = Numbers::of(case);
    let operands = numbers.operands(case);
    let (out, lse) = numbers.reference_forward(case, &operands);
    let (gradients, terms) = numbers.reference_backward(case, &operands);
    // Gradients are sums whose terms may cancel, to nothing where a query has one key: they are as
    // exact as their terms are large.
    let largest = terms.into_iter().fold(1.0, f64::max);
    for (isa, results) in on_every_path(1e-5 * largest, || numbers.kernels(case)) {
        let name = |index: usize| format!("{isa:?}, {}", NAMES[index]);
        assert_close(&name(0), &results[0], &out, 5e-6);
        assert_close(&name(1), &results[1], &lse, 5e-6);
        for (index, (expected, size)) in gradients.iter().zip(terms).enumerate() {
            assert_within(
                &name(2 + index),
                &results[2 + index],
                expected,
                2e-6 * size.max(1.0),
            );
        }
    }
}

fn cases(length: std::ops::Range<usize>, sequences: usize) -> impl Strategy<Value = Case> {
    let shape = (
        prop::collection::vec((length.clone(), length), 0..=sequences),
        1..3usize,
        1..4usize,
        1..40usize,
    );
    let options = (
        (any::<bool>(), prop::option::of(0.5..3.0f32)),
        prop::option::of(0..40usize),
        prop::sample::select(vec![0, 0, 1, 5, 130]),
        any::<[bool; 2]>(),
        prop::sample::select(vec![0.0f32, 0.3]),
        any::<bool>(),
        0..1000u64,
    );
    (shape, options).prop_map(
        |(
            (lengths, kv_heads, group, head_dim),
            ((causal, softcap), window, prefix_len, [bias, prefixes], dropout, crossed, seed),
        )| {
            let (lengths, key_lengths): (Vec<_>, Vec<_>) = lengths.into_iter().unzip();
            let key_lengths = crossed.then_some(key_lengths);
            Case {
                lengths,
                key_lengths,
                kv_heads,
                group,
                head_dim,
                causal,
                softcap,
                window,
                prefix_len,
                prefixes,
                bias,
                dropout,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn short_sequences(case in cases(0..12, 5)) {
        check(&case);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn sequences_of_several_blocks(case in cases(0..300, 2)) {
        check(&case);
    }
}

#[test]
fn shapes_of_real_models() {
    check(&Case::plain(&[128], 2, 1, 64));
    check(&Case {
        causal: true,
        dropout: 0.1,
        ..Case::plain(&[257, 40], 1, 7, 64)
    });
    check(&Case {
        causal: true,
        window: Some(100),
        ..Case::plain(&[400], 1, 2, 128)
    });
    check(&Case {
        prefix_len: 20,
        ..Case::plain(&[130, 3], 1, 1, 80)
    });
}

/// A bias over several blocks of queries and keys, and sequences shorter than it.
#[test]
fn a_bias_that_is_trained() {
    check(&Case {
        bias: true,
        dropout: 0.1,
        ..Case::plain(&[150, 1, 300], 2, 2, 16)
    });
    check(&Case {
        bias: true,
        causal: true,
        prefix_len: 130,
        prefixes: true,
        key_lengths: Some(vec![160, 0]),
        ..Case::plain(&[140, 3], 2, 1, 16)
    });
}

/// A prefix shared by the sequences is the same as a copy of it for each; its gradient is the sum.
#[test]
fn a_shared_prefix_is_a_prefix_for_each() {
    let shared = Case {
        prefix_len: 5,
        dropout: 0.2,
        ..Case::plain(&[130, 4, 9], 2, 2, 12)
    };
    let each = Case {
        prefixes: true,
        ..shared.clone()
    };
    let numbers = Numbers::of(&shared);
    let copies = Numbers {
        prefix_keys: numbers.prefix_keys.repeat(3),
        prefix_values: numbers.prefix_values.repeat(3),
        ..Numbers::of(&each)
    };
    let (shared, each) = (numbers.kernels(&shared), copies.kernels(&each));
    assert_eq!(bits(&shared[..5]), bits(&each[..5]));
    for gradient in 5..7 {
        let (sum, parts) = (&shared[gradient], &each[gradient]);
        for (index, sum) in sum.iter().enumerate() {
            let terms: f32 = parts.iter().skip(index).step_by(shared[5].len()).sum();
            assert!((sum - terms).abs() < 1e-5, "{}", NAMES[gradient]);
        }
    }
}

/// The prefix alone is more than a block of keys.
#[test]
fn a_long_prefix_and_no_keys_of_its_own() {
    check(&Case {
        prefix_len: 130,
        key_lengths: Some(vec![0, 2]),
        ..Case::plain(&[1, 3], 1, 1, 5)
    });
}

#[test]
fn reference_gradients_are_those_of_the_reference() {
    for case in [
        Case {
            causal: true,
            prefix_len: 2,
            bias: true,
            dropout: 0.3,
            ..Case::plain(&[3, 0, 4], 2, 2, 3)
        },
        Case {
            window: Some(2),
            softcap: Some(0.7),
            key_lengths: Some(vec![4, 2]),
            ..Case::plain(&[3, 3], 1, 2, 2)
        },
        Case {
            prefix_len: 2,
            prefixes: true,
            bias: true,
            key_lengths: Some(vec![1, 5, 0]),
            ..Case::plain(&[3, 2, 1], 1, 2, 3)
        },
    ] {
        let numbers = Numbers::of(&case);
        let operands = numbers.operands(&case);
        let d_out = f64s(&numbers.d_out);
        let (gradients, _) = numbers.reference_backward(&case, &operands);
        for (index, gradient) in gradients.iter().enumerate() {
            let loss = |x: &[f64]| {
                let mut operands = operands.clone();
                operands[index] = x.to_vec();
                dot(&numbers.reference_forward(&case, &operands).0, &d_out)
            };
            let differences = central_differences(loss, &operands[index]);
            assert_same_gradient(NAMES[index + 2], gradient, &differences);
        }
    }
}

#[test]
fn a_sequence_does_not_see_its_neighbors() {
    let together = Case {
        causal: true,
        dropout: 0.2,
        ..Case::plain(&[50, 140, 7], 2, 2, 24)
    };
    let numbers = Numbers::of(&together);
    let results = numbers.kernels(&together);
    let (width, kv_width) = (together.heads() * 24, together.kv_heads * 24);
    let tokens = 50 + 140 + 7;
    for (sequence, range) in [(0, 0..50), (1, 50..190), (2, 190..197)] {
        let case = Case {
            lengths: vec![range.len()],
            ..together.clone()
        };
        let cut = |x: &[f32], width: usize| x[range.start * width..range.end * width].to_vec();
        let alone = Numbers {
            boundaries: vec![0, range.len()],
            q: cut(&numbers.q, width),
            k: cut(&numbers.k, kv_width),
            v: cut(&numbers.v, kv_width),
            d_out: cut(&numbers.d_out, width),
            keys: vec![numbers.keys[sequence]],
            ..Numbers::of(&case)
        };
        let lse = |x: &[f32], tokens: usize, range: std::ops::Range<usize>| -> Vec<f32> {
            x.chunks(tokens)
                .flat_map(|head| head[range.clone()].to_vec())
                .collect()
        };
        let expected = vec![
            cut(&results[0], width),
            lse(&results[1], tokens, range.clone()),
            cut(&results[2], width),
            cut(&results[3], kv_width),
            cut(&results[4], kv_width),
        ];
        assert_eq!(
            bits(&alone.kernels(&case)[..5]),
            bits(&expected),
            "sequence {sequence}"
        );
    }
}

/// A NaN or an infinite product in the scores of a query is in its result, on every path, and in no
/// other query's.
#[test]
fn a_score_that_is_not_finite_is_not_passed_over() {
    let case = Case {
        causal: true,
        ..Case::plain(&[40], 1, 1, 4)
    };
    for broken in [f32::NAN, f32::INFINITY] {
        let mut numbers = Numbers::of(&case);
        numbers.q[7 * 4] = broken;
        for isa in Isa::available() {
            let results = isa.with(|| numbers.kernels(&case));
            for (query, row) in results[0].chunks(4).enumerate() {
                let finite = row.iter().all(|value| value.is_finite());
                assert_eq!(finite, query != 7, "{isa:?}, {broken}: query {query}");
            }
        }
        // A key reaches all queries that see it.
        let mut numbers = Numbers::of(&case);
        numbers.k[7 * 4] = broken;
        for isa in Isa::available() {
            let results = isa.with(|| numbers.kernels(&case));
            for (query, row) in results[0].chunks(4).enumerate().take(7) {
                assert!(
                    row.iter().all(|value| value.is_finite()),
                    "{isa:?}: {query}"
                );
            }
            let reached = results[0].chunks(4).skip(7);
            if broken.is_nan() {
                assert!(reached.flatten().all(|value| value.is_nan()), "{isa:?}");
            }
        }
    }
}

#[test]
fn queries_that_see_nothing_are_zero() {
    let case = Case {
        window: Some(0),
        ..Case::plain(&[5], 1, 1, 4)
    };
    let results = Numbers::of(&case).kernels(&case);
    assert!(results[1].iter().all(|&lse| lse == f32::NEG_INFINITY));
    for (name, result) in NAMES
        .iter()
        .zip(&results)
        .filter(|(name, _)| **name != "lse")
    {
        assert!(result.iter().all(|&x| x == 0.0), "{name}");
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let case = Case {
        causal: true,
        ..Case::plain(&[140], 1, 1, 8)
    };
    let mut numbers = Numbers::of(&case);
    numbers.q.iter_mut().for_each(|q| *q *= 1e4);
    let results = numbers.kernels(&case);
    let (out, _) = numbers.reference_forward(&case, &numbers.operands(&case));
    assert!(results.iter().flatten().all(|x| x.is_finite()));
    // Scores near 1e4 carry errors near 1e-3, and so do the probabilities.
    assert_close("out", &results[0], &out, 1e-2);
}

#[test]
fn each_gradient_alone_is_the_same() {
    let case = Case {
        prefix_len: 3,
        bias: true,
        causal: true,
        ..Case::plain(&[130, 5], 2, 2, 16)
    };
    let numbers = Numbers::of(&case);
    let all = numbers.kernels(&case);
    let attention = numbers.attention(&case);
    for wanted in 0..6 {
        let mut gradient = vec![f32::NAN; all[wanted + 2].len()];
        let mut slots = [const { None }; 6];
        slots[wanted] = Some(gradient.as_mut_slice());
        let [dq, dk, dv, d_prefix_keys, d_prefix_values, d_bias] = slots;
        let gradients = AttentionGradients {
            dq,
            dk,
            dv,
            d_prefix_keys,
            d_prefix_values,
            d_bias,
        };
        attention
            .backward(numbers.saved(&all[0], &all[1]), gradients)
            .unwrap();
        assert_eq!(
            bits(&[gradient]),
            bits(&all[wanted + 2..wanted + 3]),
            "{}",
            NAMES[wanted + 2]
        );
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, mut out, mut lse) = ([0.0; 12], [0.0; 12], [0.0; 6]);
    let good = Attention::new(&[0, 3], 2, 2);
    good.forward(&x, &x, &x, &mut out, &mut lse).unwrap();
    let mut refused = |attention: Attention<'_>| {
        attention
            .forward(&x, &x, &x, &mut out, &mut lse)
            .unwrap_err()
    };
    for boundaries in [&[][..], &[0], &[0, 2], &[1, 3], &[0, 2, 1, 3]] {
        let error = refused(Attention { boundaries, ..good });
        assert!(
            matches!(error, KernelError::Boundaries { .. }),
            "{boundaries:?}: {error}"
        );
    }
    let error = refused(Attention {
        kv_heads: 0,
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Parameter {
            parameter: "kv_heads",
            ..
        }
    ));
    let error = refused(Attention {
        head_dim: 0,
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Parameter {
            parameter: "head_dim",
            ..
        }
    ));
    let error = refused(Attention {
        kv_heads: 1,
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Boundaries {
            operand: "key_boundaries",
            ..
        }
    ));
    let error = refused(Attention {
        prefix: Some(Prefix {
            length: 3,
            per_sequence: false,
            keys: &x,
            values: &x[..4],
        }),
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Length {
            operand: "prefix.values",
            ..
        }
    ));
    let error = refused(Attention {
        bias: Some(Bias {
            values: &x,
            max_queries: 1,
            max_keys: 6,
        }),
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Length {
            operand: "bias.values",
            ..
        }
    ));
    let error = refused(Attention {
        dropout: Some(AttentionDropout {
            probability: 0.1,
            keys: &[],
        }),
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Length {
            operand: "dropout.keys",
            ..
        }
    ));
    let error = refused(Attention {
        dropout: Some(AttentionDropout {
            probability: 1.0,
            keys: &[1],
        }),
        ..good
    });
    assert!(matches!(
        error,
        KernelError::Parameter {
            parameter: "probability",
            ..
        }
    ));
    let error = good.forward(&x, &x, &x, &mut out, &mut []).unwrap_err();
    assert!(matches!(error, KernelError::Length { operand: "lse", .. }));
    let mut short = [0.0; 11];
    let saved = AttentionBackward {
        q: &x,
        k: &x,
        v: &x,
        out: &x,
        lse: &lse,
        d_out: &x,
    };
    let gradients = AttentionGradients {
        dk: Some(&mut short),
        ..AttentionGradients::default()
    };
    assert!(matches!(
        good.backward(saved, gradients),
        Err(KernelError::Length { operand: "dk", .. })
    ));
}
