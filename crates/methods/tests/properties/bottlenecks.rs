//! The equations of bottleneck adapters, written out in f64.

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_methods::AdapterModule;
use epiphyte_models::adapter::{Block, Role};
use epiphyte_models::{Adapter, ForwardContext, Mode, Sublayer, Tokens};
use epiphyte_ops::{Sequences, random};
use serde_json::{Value, json};

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

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

/// By its power series, which suffices for the small arguments here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The reference code's GELU (Hendrycks and Gimpel 2016).
fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// Stands for residual and norm: anything that is not linear.
fn close(output: f64, residual: f64) -> f64 {
    2.0 * (output + residual).tanh()
}

/// One row at a block.
struct Row {
    output: Vec<f64>,
    residual: Vec<f64>,
    input: Vec<f64>,
}

/// What the method makes of a sub-layer's output, and what `expected` says of each row.
fn check(method: &'static str, block: Block, expected: impl Fn(&AdapterModule, &Row) -> Vec<f64>) {
    check_with(method, json!({ "bottleneck_dim": 5 }), block, expected);
}

fn check_with(
    method: &'static str,
    settings: Value,
    block: Block,
    expected: impl Fn(&AdapterModule, &Row) -> Vec<f64>,
) {
    let on = bert();
    let module = case(method, settings).tune(&on).unwrap();
    perturb(&module);
    let matrix = |seed| {
        let values = random::normal(seed, 3 * WIDTH, 1.0);
        (
            values.clone(),
            Tensor::<2>::from_data(TensorData::new(values, [3, WIDTH]), &Device::default()),
        )
    };
    let [
        (output, output_tensor),
        (residual, residual_tensor),
        (input, input_tensor),
    ] = [1, 2, 3].map(matrix);
    let rows = Sequences::new(vec![0, 3]);
    let tokens = Tokens::new(&[0; 3], &[0; 3], rows.clone());
    let found = module.sublayer(
        &Sublayer {
            layer: 1,
            block,
            input: &input_tensor,
            residual: &residual_tensor,
            queries: None,
            add_residual: &|output| (output + residual_tensor.clone()).tanh() * 2.0,
        },
        output_tensor,
        &ForwardContext {
            rows: &rows,
            tokens: &tokens,
            mode: Mode::Evaluation,
            streams: &[],
        },
    );
    let wide = |row: &[f32]| {
        row.iter()
            .map(|&value| f64::from(value))
            .collect::<Vec<f64>>()
    };
    let row = |row: usize| {
        let of = |all: &[f32]| wide(&all[row * WIDTH..(row + 1) * WIDTH]);
        Row {
            output: of(&output),
            residual: of(&residual),
            input: of(&input),
        }
    };
    let expected: Vec<f32> = (0..3)
        .flat_map(|number| expected(&module, &row(number)))
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
        check("houlsby", block, |module, row| {
            sum(
                &row.output,
                &bottleneck(module, path, gelu_tanh, &row.output),
            )
        });
    }
}

const FEED_FORWARD: &str = "bert.encoder.layer.1.output";

#[test]
fn pfeiffer_reads_what_the_layer_would_return_and_adds_before_the_norm() {
    check("pfeiffer", Block::FeedForward, |module, row| {
        let pairs = row.output.iter().zip(&row.residual);
        let z: Vec<f64> = pairs.map(|(&o, &h)| close(o, h)).collect();
        sum(&row.output, &bottleneck(module, FEED_FORWARD, relu, &z))
    });
    check("pfeiffer", Block::SelfAttention, |_, row| {
        row.output.clone()
    });
}

#[test]
fn parallel_adapters_read_what_the_feed_forward_reads() {
    let with = |input: &str| json!({ "bottleneck_dim": 5, "parallel_input": input });
    for (input, of) in [
        ("normalized", (|row| &row.input) as fn(&Row) -> &Vec<f64>),
        ("residual", |row| &row.residual),
    ] {
        check_with(
            "parallel",
            with(input),
            Block::FeedForward,
            |module, row| {
                let added = bottleneck(module, FEED_FORWARD, relu, of(row));
                sum(&row.output, &added)
            },
        );
    }
    check("scaled-parallel", Block::FeedForward, |module, row| {
        let added = bottleneck(module, FEED_FORWARD, relu, &row.input);
        let scaled: Vec<f64> = added.iter().map(|value| 4.0 * value).collect();
        sum(&row.output, &scaled)
    });
    check("parallel", Block::SelfAttention, |_, row| {
        row.output.clone()
    });
}

/// Compacter++ reads and changes what Houlsby's adapter does after the feed-forward, with a weight
/// whose closed form `parts/phm.rs` tests.
#[test]
fn compacter_plus_plus_acts_after_the_feed_forward_alone() {
    let settings = json!({ "bottleneck_dim": 4, "phm_init_range": 1.0 });
    let attention = Block::SelfAttention;
    check_with("compacter-plus-plus", settings, attention, |_, row| {
        row.output.clone()
    });
}

/// Adapter+ changes the residual stream after the feed-forward's norm, not its output.
#[test]
fn adapter_plus_adds_after_the_block() {
    check("adapter-plus", Block::FeedForward, |_, row| {
        row.output.clone()
    });
    let on = bert();
    let module = case("adapter-plus", json!({ "bottleneck_dim": 5 }));
    let module = module.tune(&on).unwrap();
    perturb(&module);
    let values = random::normal(4, WIDTH, 1.0);
    let z: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
    let states = Tensor::<2>::from_data(TensorData::new(values, [1, WIDTH]), &Device::default());
    let rows = Sequences::new(vec![0, 1]);
    let tokens = Tokens::new(&[0], &[0], rows.clone());
    let cx = ForwardContext {
        rows: &rows,
        tokens: &tokens,
        mode: Mode::Evaluation,
        streams: &[],
    };
    let after = |block| to_vec(module.after_block(1, block, states.clone(), &cx));
    let scaling = module.parameters().get(&format!("{FEED_FORWARD}.scaling"));
    let scaling = scaling.unwrap().to_vec();
    let added = bottleneck(&module, FEED_FORWARD, gelu, &z);
    let scaled = scaling.iter().zip(added).map(|(&c, u)| f64::from(c) * u);
    let expected = sum(&z, &scaled.collect::<Vec<_>>());
    let expected: Vec<f32> = expected.into_iter().map(|value| value as f32).collect();
    assert!(distance(&expected, &after(Block::FeedForward)) < 1e-5);
    assert_eq!(after(Block::SelfAttention), to_vec(states.clone()));
}

/// Layers without bottlenecks compute what the base does, and nothing is trained below the lowest
/// that has one.
#[test]
fn layers_that_are_left_out_are_the_base() {
    let on = bert();
    for method in ["houlsby", "pfeiffer", "parallel", "adapter-plus"] {
        let of = |leave_out: Value| {
            let settings = json!({ "bottleneck_dim": 4, "leave_out": leave_out });
            case(method, settings).tune(&on)
        };
        let (all, upper) = (of(json!([])).unwrap(), of(json!([0])).unwrap());
        assert_eq!((all.first_layer(), upper.first_layer()), (0, 1), "{method}");
        let lower = |key: &str| key.contains("layer.0") || key.contains("embeddings");
        let mut keys = upper.parameters().trained().map(|param| param.key());
        assert!(!keys.any(lower), "{method}");
        for wrong in [json!([0, 1]), json!([2])] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains("`leave_out`"), "{method}: {error}");
        }
    }
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
