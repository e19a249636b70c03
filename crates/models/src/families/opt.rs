//! OPT (Zhang et al. 2022, arXiv 2205.01068).
//!
//! Decoder with layer norms before the blocks, learned positions that begin at row 2, and a
//! feed-forward with ReLU. Tensor names are those of Hugging Face's `OPTForCausalLM`. The model of
//! 350 million parameters, whose embeddings are narrower than its hidden states, is refused.

use serde_json::json;

use super::Family;
use super::decoder::{Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS};
use crate::ModelError;
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, FeedForwardNames, LayerNames};
use crate::config::dropout;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "OPT",
    model_types: &["opt"],
    // GELU instead of ReLU, so that slopes can be measured everywhere.
    examples: || {
        vec![json!({
            "model_type": "opt", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "ffn_dim": 24, "max_position_embeddings": 32,
            "attention_dropout": 0.1, "activation_function": "gelu",
        })]
    },
    parse: |json, _| Ok(Box::new(read(json)?)),
};

/// The first token's row of the learned positions.
const FIRST_POSITION: usize = 2;

fn read(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    for (key, needed) in [
        ("enable_bias", true),
        ("layer_norm_elementwise_affine", true),
    ] {
        if json.get(key, Some(needed))? != Some(needed) {
            return Err(json.unsupported(key, "false", "true"));
        }
    }
    let json = &json.with_aliases(&[
        ("ffn_dim", "intermediate_size"),
        ("activation_function", "hidden_act"),
        ("init_std", "initializer_range"),
    ]);
    let mut config = DecoderConfig::read(json, &OPT, &DEFAULTS)?;
    let narrow: Option<usize> = json.get("word_embed_proj_dim", None)?;
    if let Some(narrow) = narrow.filter(|&narrow| narrow != config.hidden_size) {
        let key = "word_embed_proj_dim";
        return Err(json.unsupported(key, narrow.to_string(), "the hidden size"));
    }
    config.norms_after = !json.get("do_layer_norm_before", true)?;
    config.has_final_norm = !config.norms_after && !json.get("_remove_final_layer_norm", false)?;
    config.qkv_bias = true;
    config.attention_output_bias = true;
    config.mlp_bias = true;
    config.hidden_dropout = dropout(json, "dropout", 0.1)?;
    config.learned_positions = Some([
        config.max_position_embeddings + FIRST_POSITION,
        FIRST_POSITION,
    ]);
    Ok(config)
}

static OPT: Architecture = Architecture {
    model_type: "opt",
    classes: ["OPTForCausalLM", "OPTForSequenceClassification"],
    token_heads: [None, Some("qa_outputs")],
    targets: DefaultTargets {
        lora: &["q_proj", "v_proj"],
        adalora: &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        ia3: &["q_proj", "k_proj", "fc2"],
        ia3_feedforward: &["fc2"],
    },
    prefix_of_answers: "model.",
    layers: "model.decoder.layers",
    layer: LayerNames {
        attention: AttentionNames {
            query: "self_attn.q_proj",
            key: "self_attn.k_proj",
            value: "self_attn.v_proj",
            output: "self_attn.out_proj",
            norms: None,
        },
        attention_norm: "self_attn_layer_norm",
        cross_attention: None,
        feed_forward: FeedForwardNames {
            gate: None,
            up: "fc1",
            down: "fc2",
        },
        feed_forward_norm: "final_layer_norm",
        output_norms: None,
    },
    final_norm: "model.decoder.final_layer_norm",
    words_and_head: ["model.decoder.embed_tokens.weight", "lm_head.weight"],
    epsilon: "layer_norm_eps",
    dropout: Some(("dropout", false)),
    rms: false,
    gated: false,
    ..LLAMA
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50272,
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    heads_vary: false,
    hidden_act: "relu",
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope_theta: None,
    bos_token_id: Some(2),
    pad_token_id: Some(1),
    ..LLAMA_DEFAULTS
};
