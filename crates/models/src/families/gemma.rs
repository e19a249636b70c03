//! Gemma (Gemma Team 2024, arXiv 2403.08295), Gemma 2 (arXiv 2408.00118) and the text model of
//! Gemma 3 (arXiv 2503.19786).
//!
//! Llama's decoder with word embeddings times the root of the hidden size, norms that store their
//! scales less 1, and a gate with the tanh approximation of GELU. Gemma 2 has norms before and
//! after each block, `x₁ = x + N₂(Attn(N₁(x)))`, bends scores and logits with `cap · tanh(· /
//! cap)`, and lets every other layer see a window only. Gemma 3 normalizes the heads of queries and
//! keys instead of bending scores, and its layers with a window have a rotary embedding of their
//! own. Tensor names are those of Hugging Face's `GemmaForCausalLM`, `Gemma2ForCausalLM` and
//! `Gemma3ForCausalLM`. The model that reads images too (`gemma3`) is not supported.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::Family;
use super::decoder::{
    Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, NAMES, QWEN_TARGETS,
};
use crate::ModelError;
use crate::blocks::{LayerNames, NormPlacement};
use crate::config::{Rope, activation, epsilon, sliding_layers};
use crate::json::JsonObject;

/// A small model of a member; `more` are the keys that only it has.
fn example(model_type: &str, more: &Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

pub(super) const FAMILY: Family = Family {
    name: "Gemma",
    model_types: &["gemma"],
    examples: || vec![example("gemma", &json!({}))],
    parse: |json, _| {
        let mut config = read(json, &GEMMA, &GEMMA_DEFAULTS)?;
        // Early files say `gelu` and mean its approximation, as transformers knows.
        if config.hidden_act == Activation::Gelu {
            config.hidden_act = Activation::GeluTanh;
        }
        Ok(Box::new(config))
    },
};

pub(super) const GEMMA2_FAMILY: Family = Family {
    name: "Gemma 2",
    model_types: &["gemma2"],
    examples: || {
        let more = json!({
            "sliding_window": 4, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        });
        vec![example("gemma2", &more)]
    },
    parse: |json, _| {
        let mut config = read(json, &GEMMA2, &GEMMA2_DEFAULTS)?;
        config.hidden_act = hidden_activation(json)?;
        config.softcaps = [
            softcap(json, "attn_logit_softcapping", Some(50.0))?,
            softcap(json, "final_logit_softcapping", Some(30.0))?,
        ];
        scale_queries(json, &mut config)?;
        let sliding = sliding_layers(json, config.num_hidden_layers, |layer| (layer + 1) % 2 != 0)?;
        config.slide(json, Some(4096), &sliding)?;
        Ok(Box::new(config))
    },
};

pub(super) const GEMMA3_FAMILY: Family = Family {
    name: "Gemma 3 (text)",
    model_types: &["gemma3_text"],
    examples: || {
        let more = json!({
            "sliding_window": 4, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2,
        });
        vec![example("gemma3_text", &more)]
    },
    parse: |json, _| Ok(Box::new(gemma3(json)?)),
};

fn gemma3(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    let key = "attn_logit_softcapping";
    if softcap(json, key, None)?.is_some() {
        let supported = "null, since transformers does not apply it here";
        return Err(json.unsupported(key, "a number", supported));
    }
    let mut config = read(json, &GEMMA3, &GEMMA3_DEFAULTS)?;
    config.hidden_act = hidden_activation(json)?;
    config.softcaps = [None, softcap(json, "final_logit_softcapping", None)?];
    scale_queries(json, &mut config)?;
    let pattern: usize = json.get("sliding_window_pattern", 6)?;
    if pattern == 0 {
        return Err(json.invalid("sliding_window_pattern", "0 is not a number of layers"));
    }
    let sliding = sliding_layers(json, config.num_hidden_layers, |layer| {
        (layer + 1) % pattern != 0
    })?;
    config.slide(json, Some(4096), &sliding)?;
    let rope = Rope::new(json, config.rope_defaults(&GEMMA3_DEFAULTS, 1_000_000.0));
    config.rope = rope
        .of_layer_types(("rope_local_base_freq", 10_000.0))?
        .into();
    let rope_of_layers = sliding.iter().map(|&slides| Some(usize::from(slides)));
    config.rope_of_layers = rope_of_layers.collect();
    Ok(config)
}

/// What the three have in common.
fn read(
    json: &JsonObject,
    architecture: &'static Architecture,
    defaults: &Defaults,
) -> Result<DecoderConfig, ModelError> {
    let key = "use_bidirectional_attention";
    if json.flag(key, false)? {
        return Err(json.unsupported(key, "true", "false: a decoder"));
    }
    let mut config = DecoderConfig::read(json, architecture, defaults)?;
    config.qkv_bias = json.get("attention_bias", false)?;
    config.attention_output_bias = config.qkv_bias;
    config.embedding_scale = Some((config.hidden_size as f64).sqrt());
    Ok(config)
}

/// The activation of the second and third generation, which do not read `hidden_act`.
fn hidden_activation(json: &JsonObject) -> Result<Activation, ModelError> {
    let key = "hidden_activation";
    match json.get::<Option<String>>(key, None)? {
        Some(name) => activation(json, key, &name),
        None => Ok(Activation::GeluTanh),
    }
}

/// Scores are divided by the root of a number of their own.
fn scale_queries(json: &JsonObject, config: &mut DecoderConfig) -> Result<(), ModelError> {
    let key = "query_pre_attn_scalar";
    let scalar = epsilon(json, key, 256.0)?;
    if scalar == 0.0 {
        return Err(json.invalid(key, "0 is not above 0"));
    }
    config.attention_scale = scalar.powf(-0.5);
    Ok(())
}

fn softcap(json: &JsonObject, key: &str, default: Option<f64>) -> Result<Option<f64>, ModelError> {
    let cap: Option<f64> = json.get(key, default)?;
    match cap {
        Some(cap) if !(cap as f32 > 0.0 && (cap as f32).is_finite()) => {
            Err(json.invalid(key, format!("{cap} is not above 0")))
        }
        cap => Ok(cap),
    }
}

static GEMMA: Architecture = Architecture {
    model_type: "gemma",
    classes: ["GemmaForCausalLM", "GemmaForSequenceClassification"],
    token_heads: [Some("score"), None],
    targets: QWEN_TARGETS,
    norm_offset: 1.0,
    ..LLAMA
};

static GEMMA2: Architecture = Architecture {
    model_type: "gemma2",
    classes: ["Gemma2ForCausalLM", "Gemma2ForSequenceClassification"],
    token_heads: [Some("score"), None],
    targets: QWEN_TARGETS,
    norm_offset: 1.0,
    placement: NormPlacement::Around,
    layer: AROUND,
    ..LLAMA
};

static GEMMA3: Architecture = Architecture {
    model_type: "gemma3_text",
    classes: ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification"],
    token_heads: [None, None],
    targets: QWEN_TARGETS,
    norm_offset: 1.0,
    placement: NormPlacement::Around,
    layer: AROUND,
    normalizes_heads: Some(true),
    ..LLAMA
};

const AROUND: LayerNames = LayerNames {
    feed_forward_norm: "pre_feedforward_layernorm",
    output_norms: Some(["post_attention_layernorm", "post_feedforward_layernorm"]),
    ..NAMES
};

const GEMMA_DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 3072,
    intermediate_size: 24576,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    hidden_act: "gelu_pytorch_tanh",
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    bos_token_id: Some(2),
    eos_token_id: Some(1),
    pad_token_id: Some(0),
    ..LLAMA_DEFAULTS
};

const GEMMA2_DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    heads_divide: true,
    ..GEMMA_DEFAULTS
};

const GEMMA3_DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    max_position_embeddings: 131_072,
    rope_theta: None,
    ..GEMMA2_DEFAULTS
};
