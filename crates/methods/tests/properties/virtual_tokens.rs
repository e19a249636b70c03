//! Prompts and prefixes made from real tokens do what the tokens would have done.

use std::sync::Mutex;

use burn::tensor::Tensor;
use epiphyte_methods::AdapterModule;
use epiphyte_models::rope::{RopeScaling, RotaryEmbedding};
use epiphyte_models::{
    Adapter, ForwardContext, HeadKind, Identity, LazyLinear, Model, Role, Site, Tokens,
};
use epiphyte_ops::{Angles, Sequences, rotate};
use serde_json::{Value, json};

use crate::support::{Case, bert, case, distance, llama, model, to_vec};

const IN_FRONT: [u32; 3] = [8, 21, 2];
const TEXT: [u32; 4] = [13, 5, 5, 27];

fn tokens<'a>(ids: &'a [u32], type_ids: &'a [u32]) -> Tokens<'a> {
    Tokens::new(ids, type_ids, Sequences::new(vec![0, ids.len()]))
}

fn prompt_table(module: &AdapterModule) -> Vec<f32> {
    module
        .parameters()
        .get("prompt_embeddings")
        .unwrap()
        .to_vec()
}

fn word_rows(model: &Model, ids: &[u32]) -> Vec<f32> {
    to_vec(model.base().word_embedding_table().gather(ids))
}

fn text_start(ids: Value, count: usize) -> Case {
    case(
        "prompt-tuning",
        json!({
            "num_virtual_tokens": count, "prompt_tuning_init": "TEXT",
            "prompt_tuning_init_token_ids": ids,
        }),
    )
}

#[test]
fn a_prompt_of_word_embeddings_is_the_words() {
    for on in [bert(), llama()] {
        let model = &on.model;
        let module = text_start(json!(IN_FRONT), 3).tune(&on).unwrap();
        let all = [IN_FRONT.as_slice(), &TEXT].concat();
        let fed = model.logits(&tokens(&all, &[0, 0, 0, 0, 0, 1, 1]), &Identity);
        let prompted = model.logits(&tokens(&TEXT, &[0, 0, 1, 1]), &module);
        assert!(
            distance(&to_vec(fed), &to_vec(prompted)) < 1e-5,
            "{}",
            on.name
        );
    }
}

#[test]
fn prompts_start_as_they_are_told() {
    let on = llama();
    let start = |case: Case| prompt_table(&case.tune(&on).unwrap());
    let words = |ids: &[u32]| word_rows(&on.model, ids);
    assert_eq!(start(text_start(json!([4, 9]), 5)), words(&[4, 9, 4, 9, 4]));
    assert_eq!(start(text_start(json!([4, 9, 1]), 2)), words(&[4, 9]));

    let sampled = start(case(
        "prompt-tuning",
        json!({ "num_virtual_tokens": 50, "prompt_tuning_init": "SAMPLE_VOCAB" }),
    ));
    let all = words(&(0..30).collect::<Vec<u32>>());
    let mut seen = std::collections::BTreeSet::new();
    for row in sampled.chunks(16) {
        seen.insert(
            all.chunks(16)
                .position(|word| word == row)
                .expect("a row of the table"),
        );
    }
    assert!(
        seen.len() > 15,
        "50 draws of 30 rows hit about 24, not {}",
        seen.len()
    );

    let labels = start(case(
        "prompt-tuning",
        json!({
            "num_virtual_tokens": 3, "prompt_tuning_init": "LABELS",
            "prompt_tuning_init_label_token_ids": [[7], [1, 2]],
        }),
    ));
    assert_eq!(labels[..16], words(&[7]));
    let (one, two) = (words(&[1]), words(&[2]));
    let mean: Vec<f32> = one.iter().zip(&two).map(|(a, b)| (a + b) / 2.0).collect();
    assert!(distance(&labels[16..32], &mean) < 1e-6);
    assert!(all.chunks(16).any(|word| *word == labels[32..]));
}

#[test]
fn impossible_starts_are_errors_that_name_the_key() {
    let on = bert();
    for (case, words) in [
        (
            text_start(json!([30]), 3),
            "token 30 is not in the vocabulary of 30",
        ),
        (text_start(json!([]), 3), "`prompt_tuning_init_token_ids`"),
        (
            case("prompt-tuning", json!({ "num_virtual_tokens": 0 })),
            "`num_virtual_tokens` is 0",
        ),
        (
            case("prefix-tuning", json!({ "num_virtual_tokens": 32 })),
            "from 1 to 31",
        ),
        (
            case("prefix-tuning", json!({ "prefix_dropout": 1.0 })),
            "`prefix_dropout` is 1",
        ),
        (
            case("houlsby", json!({ "bottleneck_dim": 17 })),
            "from 1 to the model's width, 16",
        ),
        (
            case("pfeiffer", json!({ "bottleneck_dim": 0 })),
            "`bottleneck_dim` is 0",
        ),
        (
            case("pfeiffer", json!({ "reduction_factor": 0.5 })),
            "`reduction_factor` is 0.5",
        ),
        (
            case(
                "pfeiffer",
                json!({ "bottleneck_dim": 2, "reduction_factor": 8 }),
            ),
            "give one of them",
        ),
        (
            case("houlsby", json!({ "non_linearity": "step" })),
            "`non_linearity`",
        ),
        (
            case("prompt-tuning", json!({ "prompt_tuning_init": "LABELS" })),
            "0 labels",
        ),
    ] {
        let error = case.tune(&on).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// The identity that writes down each layer's keys, before they are turned, and values.
#[derive(Default)]
struct Past(Mutex<Vec<(Role, Vec<f32>)>>);

impl Adapter for Past {
    fn linear(&self, site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let y = product.compute();
        if matches!(site.role, Role::Key | Role::Value) {
            self.0.lock().unwrap().push((site.role, to_vec(y.clone())));
        }
        y
    }
}

/// Keys and values of `IN_FRONT`, as a prefix of Llama, stand for `IN_FRONT` itself.
#[test]
fn a_prefix_of_past_keys_and_values_is_the_past() {
    let on = model("llama", HeadKind::LanguageModel);
    let model = &on.model;
    let dimensions = &model.base().dimensions;
    let (head_dim, kv) = (
        dimensions.head_dim,
        dimensions.head_dim * dimensions.kv_heads,
    );
    // The example's rotary positions are the plain ones.
    let rope = RotaryEmbedding {
        head_dim,
        interleaved: false,
        rope_theta: 10_000.0,
        max_position_embeddings: 64,
        scaling: RopeScaling::Default,
    };
    let (cos, sin) = rope.tables(&[0, 1, 2]);
    let angles = Angles::new(cos, sin);

    let past = Past::default();
    model.hidden(&tokens(&IN_FRONT, &[0; 3]), &past);
    let blocks: Vec<Vec<f32>> = past
        .0
        .into_inner()
        .unwrap()
        .into_iter()
        .map(|(role, values)| match role {
            Role::Key => {
                let keys = Tensor::<1>::from_data(values.as_slice(), &Default::default());
                to_vec(rotate(keys.reshape([3, kv]), &angles, head_dim))
            }
            _ => values,
        })
        .collect();
    assert_eq!(blocks.len(), 4, "key and value of two layers");
    let table = (0..3).flat_map(|row| {
        blocks
            .iter()
            .flat_map(move |block| block[row * kv..][..kv].to_vec())
    });

    let module = case("prefix-tuning", json!({ "num_virtual_tokens": 3 }))
        .tune(&on)
        .unwrap();
    let param = module.parameters().get("prompt_embeddings").unwrap();
    param.set_values(table.collect());
    let prefixed = to_vec(model.hidden(&tokens(&TEXT, &[0; 4]), &module).states);
    let all = [IN_FRONT.as_slice(), &TEXT].concat();
    let whole = to_vec(model.hidden(&tokens(&all, &[0; 7]), &Identity).states);
    let width = model.base().dimensions.hidden_size;
    assert!(distance(&whole[3 * width..], &prefixed) < 1e-5);
}

#[test]
fn peft_finds_the_measures_that_it_computes() {
    let on = llama();
    for (method, heads, token_dim) in [
        ("prompt-tuning", 4, 16),
        ("prefix-tuning", 2, 12),
        ("p-tuning", 4, 16),
        ("p-tuning-v2", 2, 12),
        ("multitask-prompt-tuning", 4, 16),
        ("cartridge", 2, 12),
    ] {
        let config = epiphyte_methods::by_name(method)
            .unwrap()
            .configure(Default::default())
            .unwrap();
        let mut written = config.resolved(on.model.base());
        written.extend(config.computed(on.model.base()));
        for (key, expected) in [
            ("num_attention_heads", heads),
            ("num_layers", 2),
            ("num_transformer_submodules", 1),
            ("token_dim", token_dim),
        ] {
            assert_eq!(written[key], expected, "`{key}` of {method}");
        }
    }
}
