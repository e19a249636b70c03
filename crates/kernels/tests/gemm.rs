//! The matrix products against f64, on every instruction set that this processor has, and their
//! promises: the number of threads changes no byte, nor do the other rows.

use epiphyte_kernels::gemm::{Epilogue, LowRank, Operand, PackedWeight, Precision, affine, matmul};
use epiphyte_kernels::{Isa, KernelError};
use half::bf16;
use proptest::prelude::*;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::Bf16];

/// Pseudo-random values by a multiplicative hash, in [-1, 1).
fn values(length: usize, seed: u32) -> Vec<f32> {
    (0..length as u32)
        .map(|i| {
            let mut z = (i ^ seed.rotate_left(16)).wrapping_mul(0x9e37_79b9);
            z = (z ^ z >> 15).wrapping_mul(0x85eb_ca6b);
            ((z ^ z >> 13) >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// The same, a third of them replaced by zeros, denormals, tiny and huge numbers (up to `huge`).
fn extremes(length: usize, seed: u32, huge: f32) -> Vec<f32> {
    let odd = [
        0.0,
        -0.0,
        1e-40,
        -1e-45,
        1e-30,
        huge,
        -huge,
        f32::MIN_POSITIVE,
    ];
    let mut values = values(length, seed);
    for (i, value) in values.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
        *value = odd[(i / 3 + seed as usize) % odd.len()];
    }
    values
}

fn rounded(x: &[f32]) -> Vec<f32> {
    x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

fn as_multiplied(x: &[f32], precision: Precision) -> Vec<f32> {
    match precision {
        Precision::F32 => x.to_vec(),
        Precision::Bf16 => rounded(x),
    }
}

fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns)
        .map(|i| x[i % rows * columns + i / rows])
        .collect()
}

fn in_pool<T: Send>(threads: usize, body: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(body)
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Checks `c = before + a b`, b given as `[k, n]`, within the bound of the roundings that any order
/// of summation may make, and the denormals that bf16 products may take as zero.
#[track_caller]
fn check([m, k, n]: [usize; 3], a: &[f32], b: &[f32], before: &[f32], c: &[f32], what: &str) {
    const UNIT: f64 = 1.0 / (1 << 24) as f64;
    let tiny = f64::from(f32::MIN_POSITIVE);
    for row in 0..m {
        for column in 0..n {
            let start = f64::from(before[row * n + column]);
            let (mut exact, mut size, mut lost) = (start, start.abs(), 0.0);
            for i in 0..k {
                let (a, b) = (f64::from(a[row * k + i]), f64::from(b[i * n + column]));
                exact += a * b;
                size += (a * b).abs();
                lost += tiny * (1.0 + a.abs() + b.abs());
            }
            let bound = (2 * k + 2) as f64 * UNIT * size + lost;
            let got = f64::from(c[row * n + column]);
            assert!(
                (got - exact).abs() <= bound,
                "{what}: [{row}, {column}] is {got}, not {exact} (±{bound:e})"
            );
        }
    }
}

/// Both directions of one packed weight on every instruction set.
fn check_packed([tokens, input, out]: [usize; 3], x: &[f32], weight: &[f32], g: &[f32]) {
    for precision in PRECISIONS {
        let multiplied = as_multiplied(weight, precision);
        let packed = PackedWeight::pack(weight, out, input, precision).unwrap();
        for isa in Isa::available() {
            let what = format!("{isa:?} {precision:?} {tokens} x {input} x {out}");
            isa.with(|| {
                assert_eq!(
                    bits(&packed.unpack()),
                    bits(&multiplied),
                    "{what}: unpacked"
                );
                let again = PackedWeight::pack(weight, out, input, precision).unwrap();
                assert_eq!(bits(&again.unpack()), bits(&multiplied), "{what}: packed");

                let mut y = vec![f32::NAN; tokens * out];
                packed.forward(x, Epilogue::default(), &mut y).unwrap();
                let (given, x) = (x, as_multiplied(x, precision));
                check(
                    [tokens, input, out],
                    &x,
                    &transposed(&multiplied, out, input),
                    &vec![0.0; y.len()],
                    &y,
                    &what,
                );

                let mut dx = vec![f32::NAN; tokens * input];
                packed.backward_input(g, None, &mut dx, false).unwrap();
                let g_multiplied = as_multiplied(g, precision);
                check(
                    [tokens, out, input],
                    &g_multiplied,
                    &multiplied,
                    &vec![0.0; dx.len()],
                    &dx,
                    &what,
                );

                // A term of low rank is a longer reduction.
                const RANK: usize = 3;
                let left = values(tokens * RANK, 8);
                let beside = |x: &[f32], width: usize| -> Vec<f32> {
                    (0..tokens)
                        .flat_map(|row| [&x[row * width..][..width], &left[row * RANK..][..RANK]])
                        .flatten()
                        .copied()
                        .collect()
                };
                let right = values(RANK * out, 9);
                let low_rank = Some(LowRank {
                    left: &left,
                    right: &right,
                });
                let epilogue = Epilogue {
                    low_rank,
                    ..Epilogue::default()
                };
                packed.forward(given, epilogue, &mut y).unwrap();
                let below = [transposed(&multiplied, out, input), right.clone()].concat();
                check(
                    [tokens, input + RANK, out],
                    &beside(&x, input),
                    &below,
                    &vec![0.0; y.len()],
                    &y,
                    &format!("{what}, low rank"),
                );
                let right = values(RANK * input, 9);
                let low_rank = Some(LowRank {
                    left: &left,
                    right: &right,
                });
                packed.backward_input(g, low_rank, &mut dx, false).unwrap();
                let below = [&multiplied[..], &right].concat();
                check(
                    [tokens, out + RANK, input],
                    &beside(&g_multiplied, out),
                    &below,
                    &vec![0.0; dx.len()],
                    &dx,
                    &format!("{what}, low rank backward"),
                );

                let before = values(dx.len(), 7);
                let mut sum = before.clone();
                packed.backward_input(g, None, &mut sum, true).unwrap();
                check(
                    [tokens, out, input],
                    &g_multiplied,
                    &multiplied,
                    &before,
                    &sum,
                    &what,
                );
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn packed_products_are_exact_to_their_roundings(
        tokens in 0usize..70, input in 0usize..140, out in 0usize..140, seed: u32,
    ) {
        let (x, weight) = (values(tokens * input, seed), values(out * input, seed ^ 1));
        check_packed([tokens, input, out], &x, &weight, &values(tokens * out, seed ^ 2));
    }

    #[test]
    fn packed_products_of_extreme_values(
        tokens in 1usize..20, input in 1usize..70, out in 1usize..70, seed in 0u32..1000,
    ) {
        let weight = extremes(out * input, seed + 1, 1e4);
        let (x, g) = (extremes(tokens * input, seed, 1e30), extremes(tokens * out, seed + 2, 1e30));
        check_packed([tokens, input, out], &x, &weight, &g);
    }

    #[test]
    fn general_products_are_exact_to_their_roundings(
        m in 0usize..50, k in 0usize..80, n in 0usize..80, seed: u32, which in 0usize..3,
    ) {
        let (a, b) = (values(m * k, seed), values(k * n, seed ^ 1));
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        let before = values(m * n, seed ^ 2);
        let (alpha, beta) = [(1.0, 0.0), (1.0, 1.0), (-0.5, 2.0)][which];
        let scaled: Vec<f32> = a.iter().map(|a| alpha * a).collect();
        let start: Vec<f32> = before.iter().map(|c| beta * c).collect();
        for isa in Isa::available() {
            for (a, b) in [
                (Operand::Plain(&a), Operand::Plain(&b)),
                (Operand::Plain(&a), Operand::Transposed(&bt)),
                (Operand::Transposed(&at), Operand::Plain(&b)),
                (Operand::Transposed(&at), Operand::Transposed(&bt)),
            ] {
                let mut c = if beta == 0.0 { vec![f32::NAN; m * n] } else { before.clone() };
                isa.with(|| matmul([m, k, n], alpha, a, b, beta, &mut c)).unwrap();
                let what = format!("{isa:?} {m} x {k} x {n}");
                check([m, k, n], &scaled, &transposed(&bt, n, k), &start, &c, &what);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_changing_weight_with_a_bias(
        tokens in 0..40usize, input in 0..70usize, out in 1..70usize, seed: u32,
    ) {
        let (x, weight, bias) = (
            values(tokens * input, seed),
            values(out * input, seed ^ 1),
            values(out, seed ^ 2),
        );
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; tokens * out];
            isa.with(|| affine([tokens, input, out], &x, &weight, &bias, &mut y)).unwrap();
            let weight = transposed(&weight, out, input);
            check([tokens, input, out], &x, &weight, &bias.repeat(tokens), &y, &format!("{isa:?}"));
        }
    }
}

/// Shapes that need several blocks of the reduction, several tasks and all edges.
const LONG: [[usize; 3]; 3] = [[37, 1111, 67], [300, 70, 1500], [1, 2100, 33]];

#[test]
fn long_reductions() {
    for [tokens, input, out] in LONG {
        let (x, weight, g) = (
            values(tokens * input, 1),
            values(out * input, 2),
            values(tokens * out, 3),
        );
        check_packed([tokens, input, out], &x, &weight, &g);
    }
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    for [tokens, input, out] in LONG {
        let (x, weight, g) = (
            values(tokens * input, 1),
            values(out * input, 2),
            values(tokens * out, 3),
        );
        for (isa, precision) in Isa::available()
            .into_iter()
            .flat_map(|isa| PRECISIONS.map(|p| (isa, p)))
        {
            let run = |threads| {
                in_pool(threads, || {
                    isa.with(|| {
                        let packed = PackedWeight::pack(&weight, out, input, precision).unwrap();
                        let (mut y, mut dx) = (vec![0.0; tokens * out], vec![0.5; tokens * input]);
                        let mut dw = vec![0.0; out * input];
                        packed.forward(&x, Epilogue::default(), &mut y).unwrap();
                        packed.backward_input(&g, None, &mut dx, true).unwrap();
                        let shape = [out, tokens, input];
                        matmul(
                            shape,
                            1.0,
                            Operand::Transposed(&g),
                            Operand::Plain(&x),
                            0.0,
                            &mut dw,
                        )
                        .unwrap();
                        [bits(&y), bits(&dx), bits(&dw)]
                    })
                })
            };
            let one = run(1);
            for threads in [2, 3, 8] {
                assert!(
                    run(threads) == one,
                    "{isa:?} {precision:?}: {threads} threads"
                );
            }
        }
    }
}

#[test]
fn other_rows_change_no_byte() {
    let [tokens, input, out] = [61, 700, 90];
    let (x, weight, g) = (
        values(tokens * input, 1),
        values(out * input, 2),
        values(tokens * out, 3),
    );
    for (isa, precision) in Isa::available()
        .into_iter()
        .flat_map(|isa| PRECISIONS.map(|p| (isa, p)))
    {
        isa.with(|| {
            let packed = PackedWeight::pack(&weight, out, input, precision).unwrap();
            let run = |rows: std::ops::Range<usize>| {
                let (mut y, mut dx, mut z) = (
                    vec![0.0; rows.len() * out],
                    vec![0.0; rows.len() * input],
                    vec![0.0; rows.len() * out],
                );
                let x = &x[rows.start * input..rows.end * input];
                packed.forward(x, Epilogue::default(), &mut y).unwrap();
                packed
                    .backward_input(&g[rows.start * out..rows.end * out], None, &mut dx, false)
                    .unwrap();
                let shape = [rows.len(), input, out];
                matmul(
                    shape,
                    1.0,
                    Operand::Plain(x),
                    Operand::Transposed(&weight),
                    0.0,
                    &mut z,
                )
                .unwrap();
                [bits(&y), bits(&dx), bits(&z)]
            };
            let together = run(0..tokens);
            for count in [1, 2, 5, 13, 14, 29] {
                for start in (0..tokens).step_by(count) {
                    let rows = start..tokens.min(start + count);
                    let alone = run(rows.clone());
                    for (alone, (together, width)) in
                        alone.iter().zip(together.iter().zip([out, input, out]))
                    {
                        assert!(
                            alone[..] == together[rows.start * width..rows.end * width],
                            "{isa:?} {precision:?} {rows:?}"
                        );
                    }
                }
            }
        });
    }
}

#[test]
fn the_epilogue_is_the_separate_operations() {
    let [tokens, input, out] = [31, 50, 333];
    let (x, weight, bias) = (
        values(tokens * input, 1),
        values(out * input, 2),
        values(out, 3),
    );
    for (isa, precision) in Isa::available()
        .into_iter()
        .flat_map(|isa| PRECISIONS.map(|p| (isa, p)))
    {
        isa.with(|| {
            let packed = PackedWeight::pack(&weight, out, input, precision).unwrap();
            let forward = |epilogue: Epilogue<'_>| {
                let mut y = vec![f32::NAN; tokens * out];
                packed.forward(&x, epilogue, &mut y).unwrap();
                y
            };
            let plain = forward(Epilogue::default());
            let biased: Vec<f32> = plain
                .iter()
                .enumerate()
                .map(|(i, y)| y + bias[i % out])
                .collect();
            let bias = Some(&bias[..]);
            assert_eq!(
                bits(&forward(Epilogue {
                    bias,
                    ..Default::default()
                })),
                bits(&biased)
            );
        });
    }
}

#[test]
fn a_weight_takes_the_memory_of_its_numbers() {
    let weight = values(96 * 64, 1);
    let bytes = PRECISIONS.map(|precision| {
        PackedWeight::pack(&weight, 96, 64, precision)
            .unwrap()
            .bytes()
    });
    assert_eq!(bytes, [96 * 64 * 4, 96 * 64 * 2]);
}

#[test]
fn wrong_shapes_are_refused() {
    let error = PackedWeight::pack(&[0.0; 5], 2, 3, Precision::F32).unwrap_err();
    assert_eq!(
        error,
        KernelError::Length {
            operand: "weight",
            shape: vec![2, 3],
            got: 5
        }
    );
    assert_eq!(
        error.to_string(),
        "`weight` has 5 elements, but its shape [2, 3] needs 6"
    );

    let weight = PackedWeight::pack(&[0.0; 6], 2, 3, Precision::Bf16).unwrap();
    let refused = |x: &[f32], epilogue, y: &mut [f32]| weight.forward(x, epilogue, y).unwrap_err();
    let none = Epilogue::default;
    assert_eq!(
        refused(&[0.0; 4], none(), &mut [0.0; 2]),
        KernelError::Rows {
            operand: "x",
            width: 3,
            got: 4
        }
    );
    let error = KernelError::Length {
        operand: "y",
        shape: vec![2, 2],
        got: 3,
    };
    assert_eq!(refused(&[0.0; 6], none(), &mut [0.0; 3]), error);
    let error = KernelError::Length {
        operand: "bias",
        shape: vec![2],
        got: 1,
    };
    assert_eq!(
        refused(
            &[0.0; 3],
            Epilogue {
                bias: Some(&[0.0]),
                ..none()
            },
            &mut [0.0; 2]
        ),
        error
    );
    let error = weight
        .backward_input(&[0.0; 3], None, &mut [0.0; 3], false)
        .unwrap_err();
    assert_eq!(
        error,
        KernelError::Rows {
            operand: "g",
            width: 2,
            got: 3
        }
    );
    let error = matmul(
        [2, 3, 4],
        1.0,
        Operand::Transposed(&[0.0; 6]),
        Operand::Plain(&[0.0; 11]),
        0.0,
        &mut [],
    );
    assert_eq!(
        error,
        Err(KernelError::Length {
            operand: "b",
            shape: vec![3, 4],
            got: 11
        })
    );
}
