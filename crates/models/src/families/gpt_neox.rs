//! GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia (Biderman et al. 2023, arXiv
//! 2304.01373).
//!
//! Decoder with layer norms whose blocks read the same states, `x + Attn(N₁(x)) + FF(N₂(x))`. A
//! quarter of each head's dimensions turns, and one linear layer has query, key and value of each
//! head in turn. Tensor names are those of Hugging Face's `GPTNeoXForCausalLM`, whose head is
//! `embed_out`.

use serde_json::json;

use super::Family;
use super::decoder::{Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS};
use crate::ModelError;
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, FeedForwardNames, LayerNames, Projections};
use crate::config::dropout;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "GPT-NeoX, Pythia",
    model_types: &["gpt_neox"],
    // Two of a head's four dimensions turn.
    examples: || {
        vec![json!({
            "model_type": "gpt_neox", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 64,
            "rotary_pct": 0.5, "hidden_dropout": 0.1, "attention_dropout": 0.1,
        })]
    },
    parse: |json, _| Ok(Box::new(read(json)?)),
};

fn read(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    // The names of other families mean nothing in a file of this one.
    let json = &json
        .without(&["partial_rotary_factor", "rope_theta"])
        .with_aliases(&[
            ("rotary_pct", "partial_rotary_factor"),
            ("rotary_emb_base", "rope_theta"),
        ]);
    let mut config = DecoderConfig::read(json, &GPT_NEOX, &DEFAULTS)?;
    config.parallel = json.get("use_parallel_residual", true)?;
    config.qkv_bias = json.get("attention_bias", true)?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = true;
    config.hidden_dropout = dropout(json, "hidden_dropout", 0.0)?;
    config.embedding_dropout = config.hidden_dropout;
    Ok(config)
}

static GPT_NEOX: Architecture = Architecture {
    model_type: "gpt_neox",
    classes: ["GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification"],
    token_heads: [Some("classifier"), Some("qa_outputs")],
    targets: DefaultTargets {
        lora: &["query_key_value"],
        adalora: &["query_key_value"],
        ia3: &["query_key_value", "dense_4h_to_h"],
        ia3_feedforward: &["dense_4h_to_h"],
    },
    prefix: "gpt_neox.",
    prefix_of_answers: "gpt_neox.",
    layers: "gpt_neox.layers",
    layer: LayerNames {
        attention: AttentionNames {
            query: "attention.query_key_value",
            key: "attention.query_key_value",
            value: "attention.query_key_value",
            output: "attention.dense",
            norms: None,
        },
        attention_norm: "input_layernorm",
        cross_attention: None,
        feed_forward: FeedForwardNames {
            gate: None,
            up: "mlp.dense_h_to_4h",
            down: "mlp.dense_4h_to_h",
        },
        feed_forward_norm: "post_attention_layernorm",
        output_norms: None,
    },
    final_norm: "gpt_neox.final_layer_norm",
    words_and_head: ["gpt_neox.embed_in.weight", "embed_out.weight"],
    ignorable: [
        &[
            "attention.bias",
            "attention.masked_bias",
            "rotary_emb.inv_freq",
            "score.weight",
        ],
        &[
            "attention.bias",
            "attention.masked_bias",
            "rotary_emb.inv_freq",
            "embed_out.weight",
        ],
    ],
    epsilon: "layer_norm_eps",
    dropout: Some(("hidden_dropout", true)),
    rms: false,
    projections: Projections::FusedByHead,
    gated: false,
    ..LLAMA
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50432,
    hidden_size: 6144,
    intermediate_size: 24576,
    num_hidden_layers: 44,
    num_attention_heads: 64,
    heads_vary: false,
    hidden_act: "gelu",
    norm_eps: 1e-5,
    partial_rotary_factor: Some(0.25),
    bos_token_id: Some(0),
    ..LLAMA_DEFAULTS
};
