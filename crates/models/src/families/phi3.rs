//! Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv 2404.14219 and 2503.01743).
//!
//! Llama's decoder with queries, keys and values in one linear layer, gate and `up` in another, and
//! dropout on what blocks add; in Phi-4-mini, only a part of each head turns. Tensor names are
//! those of Hugging Face's `Phi3ForCausalLM`: `qkv_proj`, `gate_up_proj`.

use serde_json::json;

use super::Family;
use super::decoder::{
    Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS, NAMES, TARGETS,
};
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, FeedForwardNames, LayerNames, Projections};
use crate::config::dropout;

pub(super) const FAMILY: Family = Family {
    name: "Phi-3, Phi-4-mini",
    model_types: &["phi3"],
    // Four of a head's six dimensions turn.
    examples: || {
        vec![json!({
            "model_type": "phi3", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
            "partial_rotary_factor": 0.7, "sliding_window": 6, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": null,
        })]
    },
    parse: |json, _| {
        let mut config = DecoderConfig::read(json, &PHI3, &DEFAULTS)?;
        config.hidden_dropout = dropout(json, "resid_pdrop", 0.0)?;
        config.slide_everywhere(json, None)?;
        Ok(Box::new(config))
    },
};

static PHI3: Architecture = Architecture {
    model_type: "phi3",
    classes: ["Phi3ForCausalLM", "Phi3ForSequenceClassification"],
    token_heads: [Some("score"), None],
    targets: PACKED_TARGETS,
    layer: PACKED,
    dropout: Some(("resid_pdrop", false)),
    projections: Projections::Fused,
    packed: true,
    ..LLAMA
};

/// PEFT has no entry for `phi3`: those of LoRA are the layer with queries and values.
const PACKED_TARGETS: DefaultTargets = DefaultTargets {
    lora: &["qkv_proj"],
    adalora: &["qkv_proj"],
    ia3: &["qkv_proj", "down_proj"],
    ..TARGETS
};

const PACKED: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "self_attn.qkv_proj",
        ..NAMES.attention
    },
    feed_forward: FeedForwardNames {
        gate: None,
        up: "mlp.gate_up_proj",
        ..NAMES.feed_forward
    },
    ..NAMES
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32064,
    hidden_size: 3072,
    intermediate_size: 8192,
    max_position_embeddings: 4096,
    norm_eps: 1e-5,
    partial_rotary_factor: Some(1.0),
    eos_token_id: Some(32000),
    pad_token_id: Some(32000),
    ..LLAMA_DEFAULTS
};
