//! Packed products against crate `gemm` (which has no packed operand: it packs the weight in every
//! call) at the shapes of BERT-base, a 0.5B Llama and MiniLM.
//!
//! `cargo bench -p epiphyte-kernels --bench gemm`; `RAYON_NUM_THREADS` sets the threads. Throughput
//! counts a multiplication and an addition as one element each.

use std::hint::black_box;
use std::ops::Range;

use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use epiphyte_kernels::gemm::{Epilogue, Operand, PackedWeight, Precision, matmul};
use epiphyte_kernels::quantized::{Format, QuantizedWeight};

/// Tokens, in, out.
const SHAPES: [[usize; 3]; 10] = [
    [2048, 768, 768],
    [2048, 768, 3072],
    [2048, 3072, 768],
    [512, 896, 896],
    [512, 896, 4864],
    [512, 4864, 896],
    [512, 896, 151_936],
    [1700, 384, 384],
    [1700, 384, 1536],
    [1700, 1536, 384],
];

/// Values in [-1, 1) that no two neighbors share.
fn values(length: usize) -> Vec<f32> {
    (0..length as u32)
        .map(|i| (i.wrapping_mul(0x9e37_79b9) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

/// `c = a b` by crate `gemm`; `b` is `[k, n]`, or its transpose.
#[expect(unsafe_code, reason = "the crate's interface")]
fn crate_gemm([m, k, n]: [usize; 3], a: &[f32], b: &[f32], b_transposed: bool, c: &mut [f32]) {
    assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n);
    let (row, column) = if b_transposed {
        (1, k as isize)
    } else {
        (n as isize, 1)
    };
    let threads = gemm::Parallelism::Rayon(0);
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    // SAFETY: the pointers cover the matrices, as just asserted.
    unsafe {
        let to = (1, n as isize);
        gemm::gemm(
            m, n, k, c, to.0, to.1, false, a, 1, k as isize, b, column, row, 0.0, 1.0, false,
            false, false, threads,
        );
    }
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, mut body: impl FnMut()) {
    group.bench_function(name, |bencher| bencher.iter(&mut body));
}

fn products(criterion: &mut Criterion) {
    for [tokens, input, out] in SHAPES {
        let mut group = criterion.benchmark_group(format!("{tokens}x{input}->{out}"));
        group
            .throughput(Throughput::Elements(2 * (tokens * input * out) as u64))
            .sample_size(10);
        let (x, weight, g) = (
            values(tokens * input),
            values(out * input),
            values(tokens * out),
        );
        let (mut y, mut dx) = (vec![0.0; tokens * out], vec![0.0; tokens * input]);
        let pack =
            |precision| PackedWeight::pack(&weight, out, input, precision).expect("the shape fits");
        let packed = [
            ("f32", pack(Precision::F32)),
            ("bf16", pack(Precision::Bf16)),
        ];

        measure(&mut group, "forward/crate gemm", || {
            crate_gemm([tokens, input, out], &x, &weight, true, black_box(&mut y))
        });
        for (name, packed) in &packed {
            measure(&mut group, &format!("forward/{name}"), || {
                packed
                    .forward(&x, Epilogue::default(), black_box(&mut y))
                    .expect("the shapes fit");
            });
        }
        measure(&mut group, "backward/crate gemm", || {
            crate_gemm([tokens, out, input], &g, &weight, false, black_box(&mut dx))
        });
        for (name, packed) in &packed {
            measure(&mut group, &format!("backward/{name}"), || {
                packed
                    .backward_input(&g, None, black_box(&mut dx), false)
                    .expect("the shapes fit");
            });
        }
    }
}

/// Copies of a weight that one measurement reads: more than a cache holds.
const COPIES: usize = 24;

/// Few rows, as text generation has them, times weights in bf16 and quantized, `[4864, 896]`.
/// Throughput counts weights.
fn few_rows(criterion: &mut Criterion) {
    let (input, out) = (896, 4864);
    let weight = values(out * input);
    let rows_of = |rows: Range<usize>| &weight[rows.start * input..rows.end * input];
    let formats = [
        ("bf16", None),
        ("nf4", Some(Format::Nf4)),
        ("int8", Some(Format::Int8)),
        ("int4", Some(Format::Int4)),
    ];
    for (name, format) in formats {
        let copy = |_| match format {
            None => PackedWeight::pack_rows(rows_of, out, input, Precision::Bf16),
            Some(format) => {
                let weight = QuantizedWeight::quantize(rows_of, [out, input], format);
                PackedWeight::quantized(&weight, Precision::Bf16)
            }
        };
        let copies: Vec<PackedWeight> = (0..COPIES).map(copy).collect();
        let mut group = criterion.benchmark_group(format!("few rows/{name}"));
        group
            .throughput(Throughput::Elements((COPIES * out * input) as u64))
            .sample_size(10);
        for rows in [1, 8] {
            let (x, mut y) = (values(rows * input), vec![0.0; rows * out]);
            measure(&mut group, &format!("{rows}"), || {
                for copy in &copies {
                    copy.forward(&x, Epilogue::default(), black_box(&mut y))
                        .expect("the shapes fit");
                }
            });
        }
    }
}

/// The products of a low-rank path, r = 8.
fn low_rank(criterion: &mut Criterion) {
    let (tokens, width, rank) = (2048, 768, 8);
    let mut group = criterion.benchmark_group(format!("rank {rank} beside {tokens}x{width}"));
    let (x, a) = (values(tokens * width), values(rank * width));
    let (mut h, mut y) = (values(tokens * rank), values(tokens * width));
    let down = [tokens, width, rank];
    measure(&mut group, "down/crate gemm", || {
        crate_gemm(down, &x, &a, true, black_box(&mut h))
    });
    measure(&mut group, "down/matmul", || {
        matmul(
            down,
            1.0,
            Operand::Plain(&x),
            Operand::Transposed(&a),
            0.0,
            black_box(&mut h),
        )
        .expect("the shapes fit");
    });
    let up = [tokens, rank, width];
    measure(&mut group, "up/crate gemm", || {
        crate_gemm(up, &h, &a, false, black_box(&mut y))
    });
    measure(&mut group, "up/matmul", || {
        matmul(
            up,
            1.0,
            Operand::Plain(&h),
            Operand::Plain(&a),
            0.0,
            black_box(&mut y),
        )
        .expect("the shapes fit");
    });
}

criterion_group!(benches, products, few_rows, low_rank);
criterion_main!(benches);
