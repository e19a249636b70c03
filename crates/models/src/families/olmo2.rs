//! OLMo 2 (OLMo Team 2024, arXiv 2501.00656): Llama's decoder with norms after the blocks instead
//! of before them, `x₁ = x + N(Attn(x))`, and a norm over all heads of queries, and of keys,
//! together. Tensor names are those of Hugging Face's `Olmo2ForCausalLM`.

use serde_json::json;

use super::Family;
use super::decoder::{Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, NAMES};
use crate::blocks::{LayerNames, NormPlacement};

pub(super) const FAMILY: Family = Family {
    name: "OLMo 2",
    model_types: &["olmo2"],
    examples: || {
        vec![json!({
            "model_type": "olmo2", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
            "max_position_embeddings": 64, "tie_word_embeddings": false,
        })]
    },
    parse: |json, _| {
        let mut config = DecoderConfig::read(json, &OLMO2, &DEFAULTS)?;
        config.qkv_bias = json.get("attention_bias", false)?;
        config.attention_output_bias = config.qkv_bias;
        Ok(Box::new(config))
    },
};

static OLMO2: Architecture = Architecture {
    model_type: "olmo2",
    classes: ["Olmo2ForCausalLM", "Olmo2ForSequenceClassification"],
    token_heads: [None, None],
    layer: LayerNames {
        attention_norm: "post_attention_layernorm",
        feed_forward_norm: "post_feedforward_layernorm",
        ..NAMES
    },
    placement: NormPlacement::Output,
    normalizes_heads: Some(false),
    ..LLAMA
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50304,
    norm_eps: 1e-5,
    bos_token_id: None,
    eos_token_id: Some(50279),
    pad_token_id: Some(1),
    ..LLAMA_DEFAULTS
};
