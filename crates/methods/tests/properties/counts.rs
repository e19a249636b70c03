//! Numbers of trained values: closed formula, declared tensors, and the numbers in the literature.

use burn::tensor::Device;
use epiphyte_methods::MethodError;
use epiphyte_models::{HeadKind, Model, ModelConfig, random_model};
use serde_json::{Value, json};

use crate::support::{LABELS, bert, case, cases, everywhere, llama, model};

#[test]
fn the_closed_formula_counts_the_declared_tensors() {
    everywhere(|name, case, on, module| {
        let counts = module.counts(on.model.base());
        let count = case.count(&on.model);
        assert_eq!(count, counts.trainable_parameters, "{name}");
        let has_head = on.head.outputs().is_some();
        assert_eq!(counts.head_parameters > 0, has_head, "{name}");
    });
}

/// What acts on a module that layers share has one set of values; what acts between layers has one
/// for each. Methods that need modules of a layer's own say so.
#[test]
fn shared_modules_count_once() {
    let on = model("albert", HeadKind::Classification { labels: LABELS });
    let layers = on.model.base().dimensions.layers;
    assert_eq!(layers, 2);
    let prefix = json!({ "num_virtual_tokens": 3 });
    for (method, settings, expected) in [
        ("lora", json!({ "r": 2 }), 2 * 2 * (16 + 16)),
        ("ia3", json!({}), 2 * 16 + 24),
        ("prefix-tuning", prefix, layers * 2 * 3 * 16),
    ] {
        assert_eq!(
            case(method, settings).count(&on.model),
            expected,
            "{method}"
        );
    }
    let need_their_own = [
        "houlsby",
        "pfeiffer",
        "mam",
        "unipelt",
        "ladder-side-tuning",
    ];
    let examples = cases().into_iter();
    let examples = examples.filter(|case| need_their_own.contains(&case.method));
    let freeze = case("freeze", json!({ "freeze_trainable_layers": 1 }));
    for case in examples.chain([freeze]) {
        let error = case.tune(&on).unwrap_err();
        assert!(
            matches!(&error, MethodError::NotApplicable { reason, .. } if reason.contains("layers")),
            "{case:?}: {error}"
        );
    }
}

#[test]
fn heads_have_the_published_sizes() {
    for (on, expected) in [(bert(), LABELS * 16 + LABELS), (llama(), LABELS * 16)] {
        let module = case("lora", json!({})).tune(&on).unwrap();
        let counts = module.counts(on.model.base());
        assert_eq!(counts.head_parameters, expected, "{}", on.name);
    }
}

/// One layer of bert-base, so that all of it need not be made.
fn one_layer_of_bert_base() -> Model {
    let config = json!({
        "model_type": "bert", "architectures": ["BertForSequenceClassification"],
        "vocab_size": 8, "hidden_size": 768, "num_hidden_layers": 1, "num_attention_heads": 12,
        "intermediate_size": 3072, "max_position_embeddings": 512,
    });
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes()).unwrap();
    random_model(
        &config,
        HeadKind::Classification { labels: 2 },
        &Device::default(),
        Default::default(),
        0,
    )
    .unwrap()
}

/// What bert-base trains: what stands outside of its layers, and twelve times what stands in one.
#[test]
fn counts_on_bert_base_are_those_of_the_literature() {
    let model = one_layer_of_bert_base();
    let d = 768;
    let published: [(&'static str, Value, usize, usize); 17] = [
        ("lora", json!({ "r": 8 }), 0, 294_912),
        ("lora", json!({ "r": 64 }), 0, 2_359_296),
        (
            "lora",
            json!({ "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"] }),
            0,
            1_327_104,
        ),
        ("ia3", json!({}), 0, 64_512),
        (
            "ia3",
            json!({ "target_modules": r".*(key|value|layer\.\d+\.output\.dense)" }),
            0,
            55_296,
        ),
        ("bitfit", json!({}), 2 * d, 102_912),
        (
            "freeze",
            json!({ "freeze_trainable_layers": 1 }),
            0,
            12 * 4_722_432,
        ),
        (
            "houlsby",
            json!({ "train_layer_norms": false }),
            0,
            2_379_264,
        ),
        ("houlsby", json!({}), 2 * d, 2_417_664),
        (
            "houlsby",
            json!({ "reduction_factor": 16, "train_layer_norms": false }),
            0,
            1_789_056,
        ),
        ("pfeiffer", json!({}), 0, 894_528),
        ("pfeiffer", json!({ "bottleneck_dim": 256 }), 0, 4_730_880),
        (
            "prompt-tuning",
            json!({ "num_virtual_tokens": 20 }),
            20 * d,
            15_360,
        ),
        (
            "prefix-tuning",
            json!({ "num_virtual_tokens": 20 }),
            0,
            368_640,
        ),
        // What stands outside of the layers: the vectors and the map to the middle.
        (
            "prefix-tuning",
            json!({ "num_virtual_tokens": 30, "prefix_projection": true, "encoder_hidden_size": 512 }),
            30 * d + d * 512 + 512,
            9_872_384,
        ),
        (
            "p-tuning-v2",
            json!({ "num_virtual_tokens": 30, "prefix_projection": true }),
            30 * d + d * 512 + 512,
            9_872_384,
        ),
        (
            "p-tuning-v2",
            json!({ "num_virtual_tokens": 30 }),
            0,
            552_960,
        ),
    ];
    for (method, settings, outside, expected) in published {
        let case = case(method, settings);
        let count = case.count(&model);
        assert_eq!(
            12 * (count - outside) + outside,
            expected,
            "{} {}",
            case.method,
            case.settings
        );
    }
}

/// Written out for the small Llama: d = 16, two layers, queries 24 wide, keys 12, feed-forward 24.
#[test]
fn counts_on_llama_follow_the_formulas() {
    let (d, layers, q, kv, ff, p, m) = (16, 2, 24, 12, 24, 7, 3);
    let norms = (2 * layers + 1) * d;
    let on = llama();
    for (method, settings, expected) in [
        ("lora", json!({ "r": 4 }), layers * 4 * ((d + q) + (d + kv))),
        (
            "lora",
            json!({ "r": 4, "target_modules": "all-linear" }),
            layers * 4 * (2 * (d + q) + 2 * (d + kv) + 3 * (d + ff)),
        ),
        ("ia3", json!({}), layers * (2 * kv + ff)),
        (
            "freeze",
            json!({ "freeze_trainable_layers": 1 }),
            3 * d * ff,
        ),
        (
            "houlsby",
            json!({ "bottleneck_dim": m }),
            2 * layers * (2 * d * m + m + d) + norms,
        ),
        (
            "pfeiffer",
            json!({ "bottleneck_dim": m }),
            layers * (2 * d * m + m + d),
        ),
        ("prompt-tuning", json!({ "num_virtual_tokens": p }), p * d),
        (
            "prefix-tuning",
            json!({ "num_virtual_tokens": p }),
            2 * layers * p * kv,
        ),
        (
            "prefix-tuning",
            json!({ "num_virtual_tokens": p, "prefix_projection": true }),
            p * kv + kv * kv + kv + 2 * layers * kv * kv + 2 * layers * kv,
        ),
        (
            "full",
            json!({}),
            30 * d + norms + layers * (2 * d * q + 2 * d * kv + 3 * d * ff),
        ),
    ] {
        assert_eq!(
            case(method, settings.clone()).count(&on.model),
            expected,
            "{method} {settings}"
        );
    }
}

/// What is trained, changed and stored are three numbers.
#[test]
fn a_folded_network_is_trained_but_not_stored() {
    let on = llama();
    let module = case(
        "prefix-tuning",
        json!({ "num_virtual_tokens": 5, "prefix_projection": true }),
    )
    .tune(&on)
    .unwrap();
    let account = module.counts(on.model.base());
    assert_eq!(account.stored_parameters, 2 * 2 * 5 * 12);
    assert_eq!(account.changed_parameters, account.stored_parameters);
    assert!(account.trainable_parameters > account.stored_parameters);
}
