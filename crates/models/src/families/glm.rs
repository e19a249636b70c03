//! GLM-4 (GLM Team 2024, arXiv 2406.12793): `glm` for GLM-4-9B, the successor of ChatGLM, and
//! `glm4` for the models of 2025.
//!
//! Llama's decoder with gate and `up` in one linear layer and half of each head's dimensions
//! turning, in pairs of neighbors. `glm4` has norms before and after each block. Tensor names are
//! those of Hugging Face's `GlmForCausalLM` and `Glm4ForCausalLM`.

use serde_json::{Value, json};

use super::Family;
use super::decoder::{Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, NAMES};
use crate::ModelError;
use crate::blocks::{FeedForwardNames, LayerNames, NormPlacement};
use crate::json::JsonObject;

fn example(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 24, "max_position_embeddings": 64,
    })
}

pub(super) const FAMILY: Family = Family {
    name: "GLM-4-9B",
    model_types: &["glm"],
    examples: || vec![example("glm")],
    parse: |json, _| Ok(Box::new(read(json, &GLM)?)),
};

pub(super) const GLM4_FAMILY: Family = Family {
    name: "GLM-4-0414",
    model_types: &["glm4"],
    examples: || vec![example("glm4")],
    parse: |json, _| Ok(Box::new(read(json, &GLM4)?)),
};

fn read(
    json: &JsonObject,
    architecture: &'static Architecture,
) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(json, architecture, &DEFAULTS)?;
    config.qkv_bias = json.get("attention_bias", true)?;
    if !json.has("eos_token_id") || config.eos_token_ids.is_empty() {
        let ids = [151_329, 151_336, 151_338].into_iter();
        let ids = ids.filter(|&id| (id as usize) < config.vocab_size);
        config.eos_token_ids = ids.collect();
    }
    Ok(config)
}

static GLM: Architecture = Architecture {
    model_type: "glm",
    classes: ["GlmForCausalLM", "GlmForSequenceClassification"],
    token_heads: [Some("score"), None],
    layer: PACKED,
    packed: true,
    ..LLAMA
};

static GLM4: Architecture = Architecture {
    model_type: "glm4",
    classes: ["Glm4ForCausalLM", "Glm4ForSequenceClassification"],
    token_heads: [Some("score"), None],
    layer: LayerNames {
        output_norms: Some(["post_self_attn_layernorm", "post_mlp_layernorm"]),
        ..PACKED
    },
    placement: NormPlacement::Around,
    packed: true,
    ..LLAMA
};

const PACKED: LayerNames = LayerNames {
    feed_forward: FeedForwardNames {
        gate: None,
        up: "mlp.gate_up_proj",
        ..NAMES.feed_forward
    },
    ..NAMES
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_552,
    intermediate_size: 13696,
    num_hidden_layers: 40,
    num_key_value_heads: Some(2),
    head_dim: Some(128),
    max_position_embeddings: 131_072,
    norm_eps: 1.5625e-7,
    partial_rotary_factor: Some(0.5),
    interleaved: true,
    bos_token_id: None,
    eos_token_id: None,
    pad_token_id: Some(151_329),
    ..LLAMA_DEFAULTS
};
