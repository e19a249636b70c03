//! Houlsby's and Pfeiffer's equations, written out in f64.

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_methods::AdapterModule;
use epiphyte_models::adapter::{Block, Role};
use epiphyte_models::{Adapter, ForwardContext, Mode, Sublayer, Tokens};
use epiphyte_ops::{Sequences, random};
use serde_json::json;

use crate::support::{bert, case, distance, models, perturb, to_vec};

const WIDTH: usize = 16;

/// `up · f(down · z + b) + b` for one row.
fn bottleneck(module: &AdapterModule, path: &str, f: fn(f64) -> f64, z: &[f64]) -> Vec<f64> {
    let param = |name: &str| {
        module
            .parameters()
            .get(&format!("{path}.{name}"))
            .unwrap()
            .to_vec()
    };
    let map = |name: &str, x: &[f64]| -> Vec<f64> {
        let weight = param(&format!("{name}.weight"));
        let rows = weight.chunks(x.len()).zip(param(&format!("{name}.bias")));
        rows.map(|(row, bias)| {
            f64::from(bias)
                + row
                    .iter()
                    .zip(x)
                    .map(|(w, x)| f64::from(*w) * x)
                    .sum::<f64>()
        })
        .collect()
    };
    let middle: Vec<f64> = map("adapter_down", z).into_iter().map(f).collect();
    map("adapter_up", &middle)
}

fn relu(x: f64) -> f64 {
    x.max(0.0)
}

/// The reference code's GELU (Hendrycks and Gimpel 2016).
fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// Stands for residual and norm: anything that is not linear.
fn close(output: f64, residual: f64) -> f64 {
    2.0 * (output + residual).tanh()
}

/// What the method makes of a sub-layer's output, and what `expected` says of each row.
fn check(
    method: &'static str,
    block: Block,
    expected: impl Fn(&AdapterModule, &[f64], &[f64]) -> Vec<f64>,
) {
    let on = bert();
    let module = case(method, json!({ "bottleneck_dim": 5 }))
        .tune(&on)
        .unwrap();
    perturb(&module);
    let matrix = |seed| {
        let values = random::normal(seed, 3 * WIDTH, 1.0);
        (
            values.clone(),
            Tensor::<2>::from_data(TensorData::new(values, [3, WIDTH]), &Device::default()),
        )
    };
    let ((output, output_tensor), (residual, residual_tensor)) = (matrix(1), matrix(2));
    let rows = Sequences::new(vec![0, 3]);
    let tokens = Tokens::new(&[0; 3], &[0; 3], rows.clone());
    let found = module.sublayer(
        &Sublayer {
            layer: 1,
            block,
            input: &residual_tensor,
            residual: &residual_tensor,
            add_residual: &|output| (output + residual_tensor.clone()).tanh() * 2.0,
        },
        output_tensor,
        &ForwardContext {
            rows: &rows,
            tokens: &tokens,
            mode: Mode::Evaluation,
        },
    );
    let wide = |row: &[f32]| {
        row.iter()
            .map(|&value| f64::from(value))
            .collect::<Vec<f64>>()
    };
    let rows = output.chunks(WIDTH).zip(residual.chunks(WIDTH));
    let expected: Vec<f32> = rows
        .flat_map(|(output, residual)| expected(&module, &wide(output), &wide(residual)))
        .map(|value| value as f32)
        .collect();
    assert!(distance(&expected, &to_vec(found)) < 1e-5, "{method}");
}

#[test]
fn houlsby_adds_to_what_leaves_each_sublayer() {
    for (block, path) in [
        (
            Block::SelfAttention,
            "bert.encoder.layer.1.attention.output",
        ),
        (Block::FeedForward, "bert.encoder.layer.1.output"),
    ] {
        check("houlsby", block, |module, output, _| {
            let added = bottleneck(module, path, gelu_tanh, output);
            output.iter().zip(added).map(|(o, u)| o + u).collect()
        });
    }
}

#[test]
fn pfeiffer_reads_what_the_layer_would_return_and_adds_before_the_norm() {
    check(
        "pfeiffer",
        Block::FeedForward,
        |module, output, residual| {
            let z: Vec<f64> = output
                .iter()
                .zip(residual)
                .map(|(&o, &h)| close(o, h))
                .collect();
            let added = bottleneck(module, "bert.encoder.layer.1.output", relu, &z);
            output.iter().zip(added).map(|(o, u)| o + u).collect()
        },
    );
    check("pfeiffer", Block::SelfAttention, |_, output, _| {
        output.to_vec()
    });
}

/// Bottlenecks are declared in the order of linear layers and looked up by layer. They are refused
/// where layers share these.
#[test]
fn each_layer_has_one_output_of_each_block_in_order() {
    for on in models() {
        let base = on.model.base();
        let all: Vec<Option<usize>> = (0..base.dimensions.layers).map(Some).collect();
        for role in [Role::AttentionOutput, Role::FeedForwardOut] {
            let linears = base.linears().iter().filter(|it| it.site.role == role);
            let layers: Vec<Option<usize>> = linears.map(|it| it.site.layer).collect();
            match (1..all.len()).any(|layer| base.shared_across(layer).is_some()) {
                true => assert!(layers.len() < all.len(), "{}: {role:?}", on.name),
                false => assert_eq!(layers, all, "{}: {role:?}", on.name),
            }
        }
    }
}
