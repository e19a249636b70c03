//! `config.json` and `generation_config.json`: against transformers, and against nonsense.

use std::fs;
use std::path::Path;

use epiphyte_models::config::ProblemType;
use epiphyte_models::families;
use epiphyte_models::families::bert::BertConfig;
use epiphyte_models::families::decoder::DecoderConfig;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::rope::RopeScaling;
use epiphyte_models::{ModelConfig, ModelError};
use epiphyte_ops::Activation;
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(config: &Value) -> Result<ModelConfig, ModelError> {
    ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
}

/// A golden object, with the keys that were looked at.
struct Expected<'a> {
    object: &'a Value,
    seen: Vec<&'static str>,
}

impl Expected<'_> {
    #[track_caller]
    fn equal(&mut self, key: &'static str, found: impl serde::Serialize) {
        let found = serde_json::to_value(found).unwrap();
        let expected = &self.object[key];
        let same = match (found.as_f64(), expected.as_f64()) {
            (Some(a), Some(b)) => a == b,
            _ => found == *expected,
        };
        assert!(same, "{key}: {found}, transformers has {expected}");
        self.seen.push(key);
    }

    #[track_caller]
    fn is_activation(&mut self, key: &'static str, found: Activation) {
        let expected = self.object[key].as_str().unwrap();
        assert_eq!(found, expected.parse().unwrap(), "{key}: {expected}");
        self.seen.push(key);
    }
}

/// `golden/config.json` is written by `make_config_golden.py`.
#[test]
fn configurations_are_read_as_transformers_reads_them() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../golden/config.json")).unwrap();
    assert!(cases.len() >= 12);
    for case in &cases {
        let config = parse(&case["config"]).unwrap();
        let mut it = Expected {
            object: &case["expected"],
            seen: Vec::new(),
        };
        let facts = config.facts();
        it.equal("vocab_size", facts.vocab_size);
        it.equal("hidden_size", facts.hidden_size);
        it.equal("num_hidden_layers", facts.num_hidden_layers);
        it.equal("max_position_embeddings", facts.max_position_embeddings);
        it.equal("pad_token_id", facts.pad_token_id);
        it.equal("labels", facts.labels.names());
        it.equal(
            "problem_type",
            facts.labels.problem_type.map(|kind| match kind {
                ProblemType::Regression => "regression",
                ProblemType::SingleLabelClassification => "single_label_classification",
                ProblemType::MultiLabelClassification => "multi_label_classification",
            }),
        );
        if let Some(config) = config.of_family::<BertConfig>() {
            it.equal("num_attention_heads", config.num_attention_heads);
            it.equal("intermediate_size", config.intermediate_size);
            it.is_activation("hidden_act", config.hidden_act);
            it.equal("initializer_range", config.initializer_range);
            it.equal("hidden_dropout_prob", config.hidden_dropout_prob);
            it.equal(
                "attention_probs_dropout_prob",
                config.attention_probs_dropout_prob,
            );
            it.equal("type_vocab_size", config.type_vocab_size);
            it.equal("layer_norm_eps", config.layer_norm_eps);
            it.equal("classifier_dropout", config.classifier_dropout);
        } else if let Some(config) = config.of_family::<DecoderConfig>() {
            assert_eq!(facts.initializer_range, config.initializer_range);
            assert_eq!(config.model_type(), case["config"]["model_type"]);
            let factors = config.rope.iter().map(|rope| match rope.scaling {
                RopeScaling::Default => None,
                RopeScaling::Linear { factor } => Some(factor),
                ref other => panic!("{other:?}"),
            });
            it.equal("rope_factors", factors.collect::<Vec<_>>());
            assert_eq!(config.window_of_layer(config.num_hidden_layers), None);
            it.equal("num_attention_heads", config.num_attention_heads);
            it.equal("intermediate_size", config.intermediate_size);
            it.is_activation("hidden_act", config.hidden_act);
            it.equal("initializer_range", config.initializer_range);
            it.equal("num_key_value_heads", config.num_key_value_heads);
            it.equal("head_dim", config.head_dim);
            it.equal("norm_eps", config.norm_eps);
            it.equal("tie_word_embeddings", config.tie_word_embeddings);
            it.equal("attention_dropout", config.attention_dropout);
            let thetas: Vec<f64> = config.rope.iter().map(|rope| rope.rope_theta).collect();
            it.equal("rope_thetas", thetas);
            let rotary: Vec<usize> = config.rope.iter().map(|rope| rope.head_dim).collect();
            it.equal("rotary_dims", rotary);
            it.equal("rope_of_layers", &config.rope_of_layers);
            it.equal("attention_scale", config.attention_scale);
            it.equal("softcaps", config.softcaps);
            it.equal("bos_token_id", config.bos_token_id);
            it.equal("eos_token_ids", &config.eos_token_ids);
            it.equal("sliding_windows", &config.sliding_windows);
            it.equal("qkv_bias", config.qkv_bias);
            it.equal("attention_output_bias", config.attention_output_bias);
            it.equal("mlp_bias", config.mlp_bias);
        } else {
            panic!("{config:?}");
        }
        for key in case["expected"].as_object().unwrap().keys() {
            assert!(it.seen.contains(&key.as_str()), "`{key}` is not compared");
        }
    }
}

#[test]
fn labels_go_both_ways() {
    let config = json!({"model_type": "bert", "id2label": {"1": "yes", "0": "no"}});
    let config = parse(&config).unwrap();
    let labels = &config.facts().labels;
    assert_eq!(labels.num_labels(), 2);
    assert_eq!((labels.name(1), labels.name(2)), (Some("yes"), None));
    assert_eq!((labels.id("no"), labels.id("maybe")), (Some(0), None));
}

/// As transformers loads them: a class that is left out has the name that it gives, and a name may
/// be a number.
#[test]
fn labels_may_have_gaps_and_numbers() {
    for (labels, names) in [
        (json!({"0": "a", "2": "b"}), ["a", "LABEL_1"]),
        (json!({"0": 1, "1": 5}), ["1", "5"]),
        (
            json!({"1": "LABEL_1", "0": "LABEL_0"}),
            ["LABEL_0", "LABEL_1"],
        ),
    ] {
        let config = parse(&json!({"model_type": "bert", "id2label": labels})).unwrap();
        let labels = &config.facts().labels;
        assert_eq!(labels.names(), names);
        assert_eq!(labels.are_named(), names[0] != "LABEL_0");
    }
}

/// A pruned vocabulary may lack the token that the configuration still names.
#[test]
fn special_tokens_outside_the_vocabulary_are_none() {
    for model_type in ["llama", "gpt2", "roberta"] {
        let config = json!({"model_type": model_type, "vocab_size": 300, "bos_token_id": 50_000});
        assert_eq!(parse(&config).unwrap().facts().bos_token_id, None);
    }
}

/// `dense_act_fn` and `is_gated_act` override `feed_forward_proj`, as in transformers 5.23, whose
/// `T5Config` sets what is left of the file after it has taken that apart.
#[test]
fn t5_has_the_activation_that_transformers_takes() {
    use epiphyte_models::families::t5::T5Config;
    for (config, activation, gated) in [
        (json!({"dense_act_fn": "silu"}), Activation::Silu, false),
        (
            json!({"feed_forward_proj": "relu", "is_gated_act": true}),
            Activation::Relu,
            true,
        ),
        (
            json!({"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}),
            Activation::Gelu,
            true,
        ),
        (
            json!({"feed_forward_proj": "gated-gelu"}),
            Activation::GeluTanh,
            true,
        ),
        (
            json!({"feed_forward_proj": "gated-silu", "is_gated_act": false}),
            Activation::Silu,
            false,
        ),
    ] {
        let config = with_model_type("t5", &config).unwrap();
        let config = config.of_family::<T5Config>().unwrap();
        assert_eq!((config.activation, config.gated), (activation, gated));
    }
}

#[test]
fn what_results_depend_on_is_told_apart_from_what_they_do_not() {
    let config = |json: Value| with_model_type("bert", &json).unwrap().computation();
    let plain = config(json!({}));
    for same in [
        json!({"transformers_version": "5.0", "hidden_act": "gelu", "hidden_dropout_prob": 0.5}),
        json!({"layer_norm_eps": 1e-12, "architectures": ["BertModel"], "id2label": {"0": "a"}}),
    ] {
        assert_eq!(config(same), plain);
    }
    for other in [
        json!({"hidden_act": "relu"}),
        json!({"num_attention_heads": 6}),
        json!({"layer_norm_eps": 1e-5}),
    ] {
        assert_ne!(config(other.clone()), plain, "{other}");
    }
    let rope = |json: Value| with_model_type("llama", &json).unwrap().computation()["rope"].clone();
    let plain = rope(json!({}));
    assert_eq!(
        rope(json!({"rope_parameters": {"rope_theta": 10000.0}})),
        plain
    );
    assert_ne!(rope(json!({"rope_theta": 5e5})), plain);
    let scaled = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}});
    assert_ne!(rope(scaled), plain);
}

#[test]
fn unknown_architectures_are_named_with_the_known_ones() {
    for (config, name) in [
        (json!({"model_type": "opus"}), "opus"),
        (json!({"architectures": ["OpusModel"]}), "OpusModel"),
        (json!({}), "(no model_type)"),
    ] {
        let error = parse(&config).unwrap_err();
        assert!(
            matches!(&error, ModelError::UnknownArchitecture { found, .. } if found == name),
            "{error:?}"
        );
        for known in families::supported() {
            assert!(error.to_string().contains(known), "{error}");
        }
    }
}

#[test]
fn values_that_make_no_sense_are_named() {
    let cases = [
        json!({"hidden_size": "768"}),
        json!({"hidden_size": null}),
        json!({"hidden_size": 0}),
        json!({"hidden_size": -1}),
        json!({"hidden_size": 768.5}),
        json!({"vocab_size": 1u64 << 40}),
        json!({"num_hidden_layers": 1_000_000_000}),
        json!({"hidden_dropout_prob": 1.0}),
        json!({"hidden_dropout_prob": -0.1}),
        json!({"classifier_dropout": 2}),
        json!({"layer_norm_eps": -1e-12}),
        json!({"pad_token_id": 30522}),
        json!({"num_attention_heads": 7}),
        json!({"id2label": {"0": {}}}),
        json!({"hidden_dropout_prob": 0.99999998}),
        json!({"layer_norm_eps": 1e39}),
        json!({"id2label": {"0": "a", "00": "b"}}),
        json!({"id2label": {"zero": "a"}}),
        json!({"id2label": ["a"]}),
        json!({"num_labels": 1_000_000_000}),
        json!({"problem_type": "guessing"}),
        json!({"architectures": "BertModel"}),
    ];
    invalid("bert", &cases);
    let cases = [
        json!({"num_key_value_heads": 3}),
        json!({"num_key_value_heads": 0}),
        json!({"num_attention_heads": 7}),
        json!({"head_dim": 0}),
        json!({"head_dim": 7}),
        json!({"eos_token_id": "</s>"}),
        json!({"eos_token_id": [1, "x"]}),
        json!({"eos_token_id": 1u64 << 40}),
        json!({"bos_token_id": "<s>"}),
        json!({"rope_theta": 0}),
        json!({"rope_theta": "10000"}),
        json!({"rope_scaling": "linear"}),
    ];
    invalid("llama", &cases);
    invalid(
        "mistral",
        &[
            json!({"sliding_window": 0}),
            json!({"sliding_window": "all"}),
        ],
    );
    let cases = [
        json!({"num_attention_heads": 7}),
        json!({"local_attention": 0}),
        json!({"global_attn_every_n_layers": 0}),
        json!({"layer_types": ["full_attention"]}),
    ];
    invalid("modernbert", &cases);
    let cases = [
        json!({"num_hidden_groups": 0}),
        json!({"num_hidden_groups": 13}),
        json!({"inner_group_num": 0}),
        json!({"inner_group_num": 10_000}),
    ];
    invalid("albert", &cases);
    let short = json!({"use_sliding_window": true, "layer_types": ["full_attention"]});
    let error = with_model_type("qwen2", &short).unwrap_err();
    assert!(
        matches!(&error, ModelError::InvalidConfig { key, .. } if key == "layer_types"),
        "{error:?}"
    );
}

/// Every case has one key, and the error names it.
fn invalid(model_type: &str, cases: &[Value]) {
    for case in cases {
        let name = case.as_object().unwrap().keys().next().unwrap();
        match with_model_type(model_type, case) {
            Err(ModelError::InvalidConfig { key, path, .. }) => {
                assert_eq!((&key, path.to_str()), (name, Some("config.json")));
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

fn with_model_type(model_type: &str, config: &Value) -> Result<ModelConfig, ModelError> {
    let mut config = config.clone();
    config["model_type"] = json!(model_type);
    parse(&config)
}

#[test]
fn what_is_not_implemented_is_refused_and_not_ignored() {
    let yarn = json!({"type": "su", "factor": 4.0});
    let per_layer = json!({"full_attention": {"rope_type": "default"}});
    for (model_type, case, at) in [
        ("bert", json!({"hidden_act": "quick_gelu"}), "hidden_act"),
        (
            "bert",
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type",
        ),
        ("bert", json!({"is_decoder": true}), "is_decoder"),
        (
            "bert",
            json!({"add_cross_attention": true}),
            "add_cross_attention",
        ),
        ("bert", json!({"pruned_heads": {"0": [1]}}), "pruned_heads"),
        ("llama", json!({"is_causal": false}), "is_causal"),
        (
            "gemma3_text",
            json!({"attn_logit_softcapping": 2.0}),
            "attn_logit_softcapping",
        ),
        ("gpt2", json!({"is_causal": false}), "is_causal"),
        ("t5", json!({"is_causal": false}), "is_causal"),
        ("bart", json!({"is_causal": false}), "is_causal"),
        (
            "llama",
            json!({"quantization_config": {"quant_method": "hqq", "bits": 4}}),
            "quantization_config",
        ),
        (
            "llama",
            json!({"rope_scaling": yarn}),
            "rope_scaling.rope_type",
        ),
        (
            "llama",
            json!({"rope_parameters": per_layer}),
            "rope_parameters.full_attention",
        ),
        (
            "llama",
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor",
        ),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
            "rope_parameters.partial_rotary_factor",
        ),
        (
            "gemma3_text",
            json!({"use_bidirectional_attention": true}),
            "use_bidirectional_attention",
        ),
        (
            "gemma3_text",
            json!({"rope_parameters": {"rope_type": "default"}}),
            "rope_parameters.rope_type",
        ),
        (
            "opt",
            json!({"word_embed_proj_dim": 512}),
            "word_embed_proj_dim",
        ),
        ("opt", json!({"enable_bias": false}), "enable_bias"),
        (
            "opt",
            json!({"activation_function": "quick_gelu"}),
            "activation_function",
        ),
        (
            "deberta-v2",
            json!({"conv_kernel_size": 3}),
            "conv_kernel_size",
        ),
        (
            "deberta-v2",
            json!({"relative_attention": true, "pos_att_type": "p2p"}),
            "pos_att_type",
        ),
        (
            "bart",
            json!({"encoder_attention_heads": 8, "decoder_attention_heads": 16}),
            "decoder_attention_heads",
        ),
        (
            "mpnet",
            json!({"relative_attention_num_buckets": 16}),
            "relative_attention_num_buckets",
        ),
        (
            "modernbert",
            json!({"classifier_pooling": "max"}),
            "classifier_pooling",
        ),
        (
            "modernbert",
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            "rope_scaling",
        ),
        (
            "modernbert",
            json!({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}),
            "layer_types",
        ),
        (
            "llama",
            json!({"num_hidden_layers": 1, "layer_types": ["linear_attention"]}),
            "layer_types",
        ),
        (
            "albert",
            json!({"position_embedding_type": "relative_key"}),
            "position_embedding_type",
        ),
        (
            "qwen2",
            json!({"use_sliding_window": true, "num_hidden_layers": 1, "layer_types": ["chunked_attention"]}),
            "layer_types",
        ),
    ] {
        match with_model_type(model_type, &case) {
            Err(ModelError::UnsupportedConfig { key, supported, .. }) => {
                assert_eq!(key, at);
                assert!(!supported.is_empty());
            }
            other => panic!("{case}: {other:?}"),
        }
    }
}

#[test]
fn harmless_values_are_not_refused() {
    for case in [
        json!({"position_embedding_type": "absolute", "pruned_heads": {}, "is_decoder": false}),
        json!({"quantization_config": null, "id2label": null, "num_labels": null, "architectures": null}),
        json!({"pad_token_id": -1, "transformers_version": "9.0", "torch_dtype": "bfloat16"}),
    ] {
        with_model_type("bert", &case).unwrap();
    }
    for case in [
        json!({"rope_scaling": null, "rope_parameters": {}, "rope_theta": null}),
        json!({"eos_token_id": null, "attention_dropout": null, "head_dim": null}),
        json!({"sliding_window": 0}),
        json!({"rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192.0,
        }}),
    ] {
        with_model_type("llama", &case).unwrap();
    }
}

#[test]
fn incomplete_scaling_names_the_key() {
    for (scaling, key) in [
        (json!({"type": "linear"}), "factor"),
        (json!({"type": "linear", "factor": 0}), "factor"),
        (json!({"rope_type": "dynamic", "factor": "2"}), "factor"),
        (json!({"rope_type": "yarn", "factor": -1}), "factor"),
        (json!({"rope_type": "yarn", "factor": 0}), "factor"),
        (json!({"rope_type": "longrope", "factor": 0}), "factor"),
        (
            json!({"rope_type": "yarn", "factor": 2, "attention_factor": 0}),
            "attention_factor",
        ),
        (
            json!({"rope_type": "longrope", "factor": 2, "attention_factor": -1}),
            "attention_factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8}),
            "low_freq_factor",
        ),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}),
            "high_freq_factor",
        ),
        (
            json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
            "short_factor",
        ),
        (
            json!({"rope_type": "yarn", "original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
    ] {
        match with_model_type("llama", &json!({"rope_scaling": scaling})) {
            Err(ModelError::InvalidConfig { key: found, .. }) => {
                assert_eq!(found, format!("rope_scaling.{key}"));
            }
            other => panic!("{scaling}: {other:?}"),
        }
    }
}

#[test]
fn files_that_are_not_json_are_named_with_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let open = || ModelConfig::open(dir.path()).unwrap_err();
    assert!(matches!(open(), ModelError::MissingFile { path: p, .. } if p == path));
    fs::write(&path, b"").unwrap();
    assert!(matches!(open(), ModelError::Json { .. }));
    fs::write(&path, b"{\n  \"model_type\": \"bert\",\n}").unwrap();
    let error = open();
    assert!(
        matches!(&error, ModelError::Json { line: 3, path: p, .. } if *p == path),
        "{error:?}"
    );
    fs::write(&path, b"{\"model_type\": \"b\xe9rt\"}").unwrap();
    assert!(matches!(open(), ModelError::NotUtf8 { offset: 17, .. }));
    fs::write(&path, b"[]").unwrap();
    assert!(matches!(open(), ModelError::Json { .. }));
    let absent = ModelConfig::open(&dir.path().join("absent")).unwrap_err();
    assert!(matches!(absent, ModelError::MissingDirectory { .. }));
}

#[test]
fn generation_config_comes_before_config() {
    let dir = tempfile::tempdir().unwrap();
    let config = parse(&json!({"model_type": "llama", "eos_token_id": 5})).unwrap();
    let open = || GenerationConfig::open(dir.path(), &config);
    assert_eq!(open().unwrap().eos_token_ids, [5]);
    assert_eq!(open().unwrap().bos_token_id, Some(1));

    let path = dir.path().join("generation_config.json");
    let json =
        json!({"eos_token_id": [128001, 128009], "bos_token_id": 128000, "temperature": 0.6});
    fs::write(&path, json.to_string()).unwrap();
    let expected = GenerationConfig {
        bos_token_id: Some(128000),
        eos_token_ids: vec![128001, 128009],
        ..GenerationConfig::default()
    };
    assert_eq!(open().unwrap(), expected);

    fs::write(&path, r#"{"eos_token_id": {"id": 2}}"#).unwrap();
    let error = open().unwrap_err();
    assert!(
        matches!(&error, ModelError::InvalidConfig { key, .. } if key == "eos_token_id"),
        "{error:?}"
    );
}

/// Values of every kind under keys that are read.
fn any_config() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..9).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![
            Just("llama3"),
            Just("yarn"),
            Just("longrope"),
            Just("dynamic"),
            Just("gelu")
        ]
        .prop_map(Value::from),
        prop::collection::vec(0.5f64..9.0, 0..3).prop_map(Value::from),
    ];
    let rope_key = prop_oneof![
        Just("rope_type"),
        Just("factor"),
        Just("low_freq_factor"),
        Just("high_freq_factor"),
        Just("short_factor"),
        Just("long_factor"),
        Just("original_max_position_embeddings"),
        Just("rope_theta"),
        Just("mscale"),
        Just("mscale_all_dim"),
        Just("beta_fast"),
    ];
    let scaling =
        prop::collection::hash_map(rope_key, leaf.clone(), 0..6).prop_map(|map| json!(map));
    let key = prop_oneof![
        Just("hidden_size"),
        Just("num_attention_heads"),
        Just("num_hidden_layers"),
        Just("head_dim"),
        Just("num_key_value_heads"),
        Just("max_position_embeddings"),
        Just("eos_token_id"),
        Just("id2label"),
        Just("layer_types"),
        Just("rope_theta"),
        Just("use_sliding_window"),
        Just("max_window_layers"),
        Just("vocab_size"),
    ];
    let model_type = prop_oneof![Just("bert"), Just("llama"), Just("mistral"), Just("qwen2")];
    (
        prop::collection::hash_map(key, leaf, 0..5),
        scaling,
        model_type,
    )
        .prop_map(|(map, scaling, model_type)| {
            let mut config = json!(map);
            config["rope_scaling"] = scaling;
            config["model_type"] = json!(model_type);
            config
        })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(ModelConfig::parse(Path::new("config.json"), &bytes).is_err());
    }

    #[test]
    fn random_values_never_panic(config in any_config()) {
        if let Ok(config) = parse(&config)
            && let Some(config) = config.of_family::<DecoderConfig>()
            && config.head_dim <= 1024
        {
            for rope in &config.rope {
                rope.tables(&[0, 1, 1000]);
            }
        }
    }
}
