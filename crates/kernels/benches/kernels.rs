//! What the kernels beside the products cost, at the shapes of BERT-base (16 x 128 tokens) and of
//! a 0.5B Llama (4 x 128 tokens).
//!
//! Attention reports floating-point operations (of its products alone), the others bytes that have
//! to move at least once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use epiphyte_kernels::activation::Activation;
use epiphyte_kernels::adamw::AdamW;
use epiphyte_kernels::attention::{
    Attention, AttentionBackward, AttentionDropout, AttentionGradients,
};
use epiphyte_kernels::cross_entropy::{CrossEntropy, HeadGradients};
use epiphyte_kernels::dropout::Dropout;
use epiphyte_kernels::gemm::{PackedWeight, Precision};
use epiphyte_kernels::norm::{Kept, Norm, RowStatistics};
use epiphyte_kernels::random::normal;
use epiphyte_kernels::rope::Rope;

fn normals(length: usize, seed: u64) -> Vec<f32> {
    normal(seed, length, 1.0)
}

struct Shape {
    name: &'static str,
    lengths: &'static [usize],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    causal: bool,
    dropout: f32,
}

const SHAPES: [Shape; 4] = [
    Shape {
        name: "bert-base 16x128",
        lengths: &[128; 16],
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        causal: false,
        dropout: 0.0,
    },
    Shape {
        name: "bert-base 16x128, dropout",
        lengths: &[128; 16],
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        causal: false,
        dropout: 0.1,
    },
    Shape {
        name: "llama-0.5b 4x128",
        lengths: &[128; 4],
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        causal: true,
        dropout: 0.0,
    },
    Shape {
        name: "llama-0.5b 1x2048",
        lengths: &[2048],
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        causal: true,
        dropout: 0.0,
    },
];

fn attention(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attention");
    for shape in &SHAPES {
        let mut boundaries = vec![0];
        for length in shape.lengths {
            boundaries.push(boundaries[boundaries.len() - 1] + length);
        }
        let tokens = boundaries[boundaries.len() - 1];
        let (width, kv_width) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        let (q, k, v) = (
            normals(tokens * width, 1),
            normals(tokens * kv_width, 2),
            normals(tokens * kv_width, 3),
        );
        let d_out = normals(tokens * width, 4);
        let keys: Vec<u64> = (0..shape.lengths.len() as u64).collect();
        let attention = Attention {
            kv_heads: shape.kv_heads,
            causal: shape.causal,
            dropout: (shape.dropout > 0.0).then_some(AttentionDropout {
                probability: shape.dropout,
                keys: &keys,
            }),
            ..Attention::new(&boundaries, shape.heads, shape.head_dim)
        };
        let (mut out, mut lse) = (vec![0.0; tokens * width], vec![0.0; tokens * shape.heads]);
        let pairs: usize = shape.lengths.iter().map(|length| length * length).sum();
        let product = 2 * pairs * width / if shape.causal { 2 } else { 1 };

        group.throughput(Throughput::Elements(2 * product as u64));
        group.bench_function(format!("{}, forward", shape.name), |bencher| {
            bencher.iter(|| attention.forward(&q, &k, &v, &mut out, &mut lse).unwrap());
        });
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        group.throughput(Throughput::Elements(5 * product as u64));
        group.bench_function(format!("{}, backward", shape.name), |bencher| {
            bencher.iter(|| {
                let from = AttentionBackward {
                    q: &q,
                    k: &k,
                    v: &v,
                    out: &out,
                    lse: &lse,
                    d_out: &d_out,
                };
                let gradients = AttentionGradients {
                    dq: Some(&mut dq),
                    dk: Some(&mut dk),
                    dv: Some(&mut dv),
                    ..AttentionGradients::default()
                };
                attention.backward(from, gradients).unwrap();
            });
        });
    }
}

fn rows(criterion: &mut Criterion) {
    let (tokens, width) = (2048, 768);
    let bytes = |tensors: usize| Throughput::Bytes((tensors * tokens * width * 4) as u64);
    let (x, residual, dy) = (
        normals(tokens * width, 1),
        normals(tokens * width, 2),
        normals(tokens * width, 3),
    );
    let mut y = x.clone();
    let (gamma, beta) = (normals(width, 4), normals(width, 5));
    let mut statistics = vec![RowStatistics::default(); tokens];
    let norm = Norm::Layer {
        gamma: &gamma,
        beta: &beta,
        epsilon: 1e-5,
    };

    let mut group = criterion.benchmark_group("2048x768");
    group.throughput(bytes(3));
    group.bench_function("residual + layer norm, forward", |bencher| {
        bencher.iter(|| {
            norm.forward(&x, Some(&residual), &mut y, &mut statistics)
                .unwrap();
        });
    });
    group.throughput(bytes(3));
    group.bench_function("layer norm, backward", |bencher| {
        let mut gradient = dy.clone();
        bencher.iter(|| {
            norm.backward(Kept::Input(&x), &statistics, &mut gradient, None)
                .unwrap();
        });
    });
    group.throughput(bytes(2));
    group.bench_function("dropout", |bencher| {
        let dropout = Dropout::new(0.1, 7).unwrap();
        bencher.iter(|| dropout.apply(&mut y, width, 0).unwrap());
    });
    group.bench_function("rope", |bencher| {
        let (cos, sin) = (normals(128 * 32, 6), normals(128 * 32, 7));
        let rope = Rope {
            cos: &cos,
            sin: &sin,
            rotary_dim: 64,
            head_dim: 64,
            interleaved: false,
        };
        let positions: Vec<u32> = (0..tokens as u32).map(|token| token % 128).collect();
        bencher.iter(|| rope.forward(&mut y, &positions).unwrap());
    });
}

fn activations(criterion: &mut Criterion) {
    let length = 2048 * 3072;
    let (x, up) = (normals(length, 1), normals(length, 2));
    let (mut y, mut d_up) = (x.clone(), x.clone());
    let bytes = |tensors: usize| Throughput::Bytes((tensors * length * 4) as u64);
    let mut group = criterion.benchmark_group("2048x3072");
    for activation in [Activation::GeluErf, Activation::GeluTanh, Activation::Silu] {
        group.throughput(bytes(2));
        group.bench_function(format!("{activation:?}, forward"), |bencher| {
            bencher.iter(|| activation.forward(&x, &mut y).unwrap());
        });
        group.throughput(bytes(3));
        group.bench_function(format!("{activation:?}, backward"), |bencher| {
            bencher.iter(|| activation.backward(&x, &mut y).unwrap());
        });
    }
    group.throughput(bytes(5));
    group.bench_function("gated Silu, backward", |bencher| {
        bencher.iter(|| {
            Activation::Silu
                .gated_backward(&x, &up, &mut d_up, &mut y)
                .unwrap();
        });
    });
}

fn adamw(criterion: &mut Criterion) {
    let length = 10_000_000;
    let gradients = normals(length, 1);
    let (mut parameters, mut m, mut v) = (normals(length, 2), vec![0.0; length], vec![0.0; length]);
    let mut group = criterion.benchmark_group("adamw");
    group.throughput(Throughput::Bytes(7 * 4 * length as u64));
    group.bench_function("10M parameters", |bencher| {
        bencher.iter(|| {
            AdamW::default()
                .step(3, &mut parameters, &gradients, &mut m, &mut v)
                .unwrap();
        });
    });
}

fn head(criterion: &mut Criterion) {
    let (rows, width, vocabulary) = (508, 896, 151_936);
    let weight = PackedWeight::pack(
        &normals(vocabulary * width, 1),
        vocabulary,
        width,
        Precision::F32,
    )
    .unwrap();
    let hidden = normals(rows * width, 2);
    let targets: Vec<i64> = (0..rows as i64).map(|row| row * 299).collect();
    let (mut losses, mut d_hidden) = (vec![0.0; rows], vec![0.0; rows * width]);
    let mut group = criterion.benchmark_group("head + cross-entropy");
    group.sample_size(10);
    group.throughput(Throughput::Elements(4 * (rows * width * vocabulary) as u64));
    group.bench_function("llama-0.5b 4x127", |bencher| {
        bencher.iter(|| {
            let gradients = HeadGradients {
                d_hidden: Some(&mut d_hidden),
                d_weight: None,
            };
            let loss = CrossEntropy::default().with_head(
                &weight,
                &hidden,
                &targets,
                &mut losses,
                gradients,
            );
            black_box(loss.unwrap());
        });
    });
}

criterion_group!(benches, attention, rows, activations, adamw, head);
criterion_main!(benches);
