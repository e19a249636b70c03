//! `generation_config.json`: where a text starts and where generation stops.
//!
//! The file is optional and comes before `config.json`: chat models keep the tokens that end a
//! turn here, several of them, while their `config.json` has only the end of a document.

use std::path::Path;

use crate::ModelError;
use crate::families::ModelConfig;
use crate::json::JsonObject;

/// The file's name in a model directory.
const FILE: &str = "generation_config.json";

/// The special tokens of generation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GenerationConfig {
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end it; empty where the model has none.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// The token with which the text of an encoder-decoder begins, if it is not that of the
    /// model's configuration.
    pub decoder_start_token_id: Option<u32>,
    /// The first token that an encoder-decoder writes.
    pub forced_bos_token_id: Option<u32>,
    /// The token with which an encoder-decoder ends a text that has reached its longest length.
    pub forced_eos_token_id: Option<u32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in a model directory; without it, takes what `config` says.
    ///
    /// # Errors
    /// [`ModelError::NotUtf8`], [`ModelError::Json`] and [`ModelError::InvalidConfig`].
    pub fn open(dir: &Path, config: &ModelConfig) -> Result<Self, ModelError> {
        match JsonObject::read(&dir.join(FILE), "") {
            Ok(json) => Self::from_json(&json),
            Err(ModelError::MissingFile { .. }) => Ok(Self::from_config(config)),
            Err(error) => Err(error),
        }
    }

    fn from_config(config: &ModelConfig) -> Self {
        let facts = config.facts();
        let [forced_bos_token_id, forced_eos_token_id] = config.family().forced_tokens();
        Self {
            bos_token_id: facts.bos_token_id,
            eos_token_ids: facts.eos_token_ids.clone(),
            pad_token_id: facts.pad_token_id,
            decoder_start_token_id: None,
            forced_bos_token_id,
            forced_eos_token_id,
        }
    }

    fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        let first = |key| -> Result<Option<u32>, ModelError> {
            Ok(json.token_ids(key, None)?.first().copied())
        };
        Ok(Self {
            bos_token_id: first("bos_token_id")?,
            eos_token_ids: json.token_ids("eos_token_id", None)?,
            pad_token_id: first("pad_token_id")?,
            decoder_start_token_id: first("decoder_start_token_id")?,
            forced_bos_token_id: first("forced_bos_token_id")?,
            forced_eos_token_id: first("forced_eos_token_id")?,
        })
    }
}
