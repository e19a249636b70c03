//! Virtual tokens: what prompt tuning and prefix tuning share.
//!
//! Their files hold one tensor, `prompt_embeddings`, a row for each virtual token, and HF PEFT
//! writes into their configuration what it needs to know of the base.

use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::MethodError;

/// The key of the one tensor.
pub(crate) const KEY: &str = "prompt_embeddings";

/// The keys that HF PEFT fills in from the base.
pub(crate) const COMPUTED: &[&str] = &[
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "token_dim",
];

/// Their values, for vectors that are `heads` heads side by side and `token_dim` wide.
pub(crate) fn computed(base: &Base, heads: usize, token_dim: usize) -> Map<String, Value> {
    // Of an encoder-decoder PEFT counts the encoder's layers.
    let layers = match base.dimensions.encoder_layers {
        0 => base.dimensions.layers,
        encoder_layers => encoder_layers,
    };
    let values = [json!(heads), json!(layers), json!(1), json!(token_dim)];
    COMPUTED
        .iter()
        .map(|&key| key.to_owned())
        .zip(values)
        .collect()
}

/// Checks that there is at least one virtual token and room for a real one.
pub(crate) fn check(method: &'static str, count: usize, base: &Base) -> Result<(), MethodError> {
    let most = base.dimensions.max_positions.unwrap_or(usize::MAX);
    let most = most.saturating_sub(1);
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(MethodError::Value {
        method,
        key: "num_virtual_tokens",
        value: count.to_string(),
        expected: format!(
            "it must be from 1 to {most}: they take positions in front of the text's own"
        ),
    })
}
