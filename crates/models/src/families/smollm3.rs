//! SmolLM3 (Bakouch et al. 2025): Llama's decoder in which every fourth layer leaves queries and
//! keys as they are, without positions. Tensor names are those of Hugging Face's
//! `SmolLM3ForCausalLM`.

use serde_json::json;

use super::Family;
use super::decoder::{Architecture, DecoderConfig, Defaults, LLAMA, LLAMA_DEFAULTS};
use crate::ModelError;
use crate::config::sliding_layers;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "SmolLM3",
    model_types: &["smollm3"],
    examples: || {
        vec![json!({
            "model_type": "smollm3", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
            "max_position_embeddings": 64, "tie_word_embeddings": false,
            "no_rope_layer_interval": 2, "use_sliding_window": true, "sliding_window": 4,
            "attention_bias": true, "mlp_bias": true,
        })]
    },
    parse: |json, _| Ok(Box::new(read(json)?)),
};

fn read(json: &JsonObject) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(json, &SMOLLM3, &DEFAULTS)?;
    config.qkv_bias = json.get("attention_bias", false)?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = json.get("mlp_bias", false)?;
    let layers = config.num_hidden_layers;
    let interval: usize = json.get("no_rope_layer_interval", 4)?;
    if interval == 0 {
        return Err(json.invalid("no_rope_layer_interval", "0 is not a number of layers"));
    }
    let rotates: Vec<u8> = match json.get("no_rope_layers", None)? {
        Some(stated) => stated,
        None => (0..layers)
            .map(|layer| u8::from((layer + 1) % interval != 0))
            .collect(),
    };
    if rotates.len() != layers {
        let problem = format!("{} entries for {layers} layers", rotates.len());
        return Err(json.invalid("no_rope_layers", problem));
    }
    let rope_of_layers = rotates.iter().map(|&rotates| (rotates != 0).then_some(0));
    config.rope_of_layers = rope_of_layers.collect();
    let slides = json.get("use_sliding_window", false)?;
    let sliding = sliding_layers(json, layers, |layer| slides && rotates[layer] == 0)?;
    config.slide(json, None, &sliding)?;
    Ok(config)
}

static SMOLLM3: Architecture = Architecture {
    model_type: "smollm3",
    classes: ["SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification"],
    ..LLAMA
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32768,
    tie_word_embeddings: true,
    rope_theta: Some(2_000_000.0),
    bos_token_id: Some(128_000),
    eos_token_id: Some(128_001),
    pad_token_id: Some(128_004),
    ..LLAMA_DEFAULTS
};
