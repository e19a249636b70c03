//! BERT's numbers: transformers' `models/bert/configuration_bert.py`.

use super::{Labels, architectures, dropout, epsilon, hidden_act, num_hidden_layers, size, token};
use crate::ModelError;
use crate::json::JsonObject;

/// The configuration of a BERT encoder (Devlin et al. 2018, arXiv:1810.04805).
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the word embeddings; default 30522.
    pub vocab_size: usize,
    /// Width of the hidden states; default 768.
    pub hidden_size: usize,
    /// Number of layers; default 12.
    pub num_hidden_layers: usize,
    /// Heads of a layer, which divide the width; default 12.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block; default 3072.
    pub intermediate_size: usize,
    /// Activation inside the feed-forward block; default `gelu`.
    pub hidden_act: String,
    /// Dropout after the embeddings and after each sub-layer; default 0.1.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention probabilities; default 0.1.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position embeddings: the longest sequence; default 512.
    pub max_position_embeddings: usize,
    /// Rows of the token type embeddings; default 2.
    pub type_vocab_size: usize,
    /// Standard deviation of newly initialised weights; default 0.02.
    pub initializer_range: f64,
    /// Epsilon of the layer norms; default 1e-12.
    pub layer_norm_eps: f64,
    /// The padding token; default 0.
    pub pad_token_id: Option<u32>,
    /// Dropout before a classification head; where absent, `hidden_dropout_prob` is used.
    pub classifier_dropout: Option<f64>,
    /// The classes of a classification head.
    pub labels: Labels,
}

impl BertConfig {
    pub(super) fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        refuse_other_architectures(json)?;
        let vocab_size = size(json, "vocab_size", 30522)?;
        let config = Self {
            architectures: architectures(json)?,
            vocab_size,
            hidden_size: size(json, "hidden_size", 768)?,
            num_hidden_layers: num_hidden_layers(json, 12)?,
            num_attention_heads: size(json, "num_attention_heads", 12)?,
            intermediate_size: size(json, "intermediate_size", 3072)?,
            hidden_act: hidden_act(json, "gelu")?,
            hidden_dropout_prob: dropout(json, "hidden_dropout_prob", 0.1)?,
            attention_probs_dropout_prob: dropout(json, "attention_probs_dropout_prob", 0.1)?,
            max_position_embeddings: size(json, "max_position_embeddings", 512)?,
            type_vocab_size: size(json, "type_vocab_size", 2)?,
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            layer_norm_eps: epsilon(json, "layer_norm_eps", 1e-12)?,
            pad_token_id: token(json, "pad_token_id", Some(0), vocab_size)?,
            classifier_dropout: match json.get("classifier_dropout", None::<f64>)? {
                None => None,
                Some(_) => Some(dropout(json, "classifier_dropout", 0.0)?),
            },
            labels: Labels::from_json(json)?,
        };
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(json.invalid(
                "num_attention_heads",
                format!(
                    "{} heads do not divide hidden_size {}",
                    config.num_attention_heads, config.hidden_size
                ),
            ));
        }
        Ok(config)
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// Refuses the options with which `model_type` `bert` computes something else.
fn refuse_other_architectures(json: &JsonObject) -> Result<(), ModelError> {
    let positions = json.get("position_embedding_type", Some("absolute".to_owned()))?;
    if let Some(other) = positions.filter(|it| it != "absolute") {
        return Err(json.unsupported("position_embedding_type", format!("`{other}`"), "absolute"));
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if json.get(key, Some(false))?.unwrap_or(false) {
            return Err(json.unsupported(key, "true", "false: an encoder"));
        }
    }
    if json.object("pruned_heads")?.is_some() {
        return Err(json.unsupported("pruned_heads", "a list of heads", "no pruned heads"));
    }
    Ok(())
}
