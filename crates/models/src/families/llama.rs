//! Llama (Touvron et al. 2023, arXiv 2302.13971), Mistral (Jiang et al. 2023, arXiv 2310.06825) and
//! Qwen2 (Yang et al. 2024, arXiv 2407.10671).
//!
//! Decoder with norms before the blocks: `x₁ = x + Attn(N(x))`, `x₂ = x₁ + FF(N(x₁))` with RMS
//! norms, rotary positions, grouped heads and a gated feed-forward. Tensor names are those of
//! Hugging Face's `LlamaForCausalLM` and `LlamaForSequenceClassification`; below `transformer.`
//! those of `LlamaForQuestionAnswering` and `Qwen2ForQuestionAnswering`.
//!
//! The members differ in defaults, in which linear layers have a bias and in which layers have a
//! sliding window (transformers' `models/{llama,mistral,qwen2}/configuration_*.py`).

use serde_json::json;

use super::Family;
use super::decoder::{
    Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, QWEN_TARGETS, qwen_windows,
};
use crate::ModelError;
use crate::config::sliding_layers;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "Llama, Mistral, Qwen2",
    model_types: &["llama", "mistral", "qwen2"],
    // Heads of 6 make the queries' size 24, unlike the hidden size; two of them share keys.
    examples: || {
        vec![json!({
            "model_type": "llama", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
        })]
    },
    parse: |json, model_type| {
        Ok(Box::new(match model_type {
            "mistral" => mistral(json)?,
            "qwen2" => qwen2(json)?,
            _ => llama(json)?,
        }))
    },
};

static MISTRAL: Architecture = Architecture {
    model_type: "mistral",
    classes: ["MistralForCausalLM", "MistralForSequenceClassification"],
    prefix_of_answers: "model.",
    ..LLAMA
};

static QWEN2: Architecture = Architecture {
    model_type: "qwen2",
    classes: ["Qwen2ForCausalLM", "Qwen2ForSequenceClassification"],
    targets: QWEN_TARGETS,
    ..LLAMA
};

fn llama(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        heads_divide: true,
        ..LLAMA_DEFAULTS
    };
    let mut config = DecoderConfig::read(json, &LLAMA, &defaults)?;
    config.qkv_bias = json.get("attention_bias", false)?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = json.get("mlp_bias", false)?;
    Ok(config)
}

fn mistral(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        intermediate_size: 14336,
        num_key_value_heads: Some(8),
        max_position_embeddings: 4096 * 32,
        ..LLAMA_DEFAULTS
    };
    let mut config = DecoderConfig::read(json, &MISTRAL, &defaults)?;
    // With `layer_types`, which Ministral's files have, some layers may see all tokens.
    let sliding = sliding_layers(json, config.num_hidden_layers, |_| true)?;
    config.slide(json, Some(4096), &sliding)?;
    Ok(config)
}

fn qwen2(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    let defaults = Defaults {
        vocab_size: 151936,
        intermediate_size: 22016,
        num_key_value_heads: Some(32),
        max_position_embeddings: 32768,
        bos_token_id: None,
        eos_token_id: None,
        ..LLAMA_DEFAULTS
    };
    let mut config = DecoderConfig::read(json, &QWEN2, &defaults)?;
    config.qkv_bias = true;
    qwen_windows(json, &mut config)?;
    Ok(config)
}
