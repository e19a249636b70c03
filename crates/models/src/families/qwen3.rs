//! Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama's decoder in which each head of queries and
//! keys is normalized before it turns. Tensor names are those of Hugging Face's `Qwen3ForCausalLM`.

use serde_json::json;

use super::Family;
use super::decoder::{
    Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, QWEN_TARGETS, qwen_windows,
};

pub(super) const FAMILY: Family = Family {
    name: "Qwen3",
    model_types: &["qwen3"],
    examples: || {
        vec![json!({
            "model_type": "qwen3", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
            "attention_bias": true,
        })]
    },
    parse: |json, _| {
        let mut config = DecoderConfig::read(json, &QWEN3, &DEFAULTS)?;
        config.qkv_bias = json.get("attention_bias", false)?;
        config.attention_output_bias = config.qkv_bias;
        qwen_windows(json, &mut config)?;
        Ok(Box::new(config))
    },
};

static QWEN3: Architecture = Architecture {
    model_type: "qwen3",
    classes: ["Qwen3ForCausalLM", "Qwen3ForSequenceClassification"],
    targets: QWEN_TARGETS,
    normalizes_heads: Some(true),
    ..LLAMA
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151936,
    intermediate_size: 22016,
    num_key_value_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32768,
    bos_token_id: None,
    eos_token_id: None,
    ..LLAMA_DEFAULTS
};
