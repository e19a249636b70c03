//! `generation_config.json`: where a text starts, how tokens are drawn, and where generation stops.
//!
//! The file is optional and comes before `config.json`: chat models keep the tokens that end a
//! turn here, several of them, while their `config.json` has only the end of a document.

use std::path::Path;

use crate::ModelError;
use crate::families::ModelConfig;
use crate::json::JsonObject;

/// The file's name in a model directory.
const FILE: &str = "generation_config.json";

/// The special tokens of generation, and how its authors mean a model to draw.
#[derive(Debug, Clone, PartialEq, Default)]
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
    /// How tokens are chosen, where the file says that they are drawn; none for the most likely
    /// one.
    pub sampling: Option<SamplingConfig>,
    /// What makes tokens that the text has already less likely; 1 does not.
    pub repetition_penalty: Option<f64>,
}

/// How tokens are drawn (`do_sample`), with the defaults of `transformers`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingConfig {
    /// The temperature; 1 if the file has none.
    pub temperature: f64,
    /// Draw from the most likely tokens, this number of them: 50 if the file has none, and none for
    /// a 0 there.
    pub top_k: Option<usize>,
    /// Draw from the fewest tokens whose probabilities add up to this.
    pub top_p: Option<f64>,
    /// Draw from tokens with at least this share of the most likely token's probability.
    pub min_p: Option<f64>,
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
            sampling: None,
            repetition_penalty: None,
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
            sampling: SamplingConfig::from_json(json)?,
            repetition_penalty: number(json, "repetition_penalty", |value| value > 0.0)?,
        })
    }
}

impl SamplingConfig {
    fn from_json(json: &JsonObject) -> Result<Option<Self>, ModelError> {
        /// What `transformers` takes where the file says that tokens are drawn, and not from how
        /// many.
        const TOP_K: usize = 50;
        if json.get::<Option<bool>>("do_sample", None)? != Some(true) {
            return Ok(None);
        }
        let is_share = |value: f64| value > 0.0 && value <= 1.0;
        let temperature = number(json, "temperature", |value| value >= 0.0)?;
        let top_k = json.get::<Option<usize>>("top_k", None)?.unwrap_or(TOP_K);
        Ok(Some(Self {
            temperature: temperature.unwrap_or(1.0),
            top_k: Some(top_k).filter(|&count| count > 0),
            // All tokens, as a limit of 1 says, is no limit.
            top_p: number(json, "top_p", is_share)?.filter(|&share| share < 1.0),
            min_p: number(json, "min_p", |value| value == 0.0 || is_share(value))?
                .filter(|&share| share > 0.0),
        }))
    }
}

/// A number that fulfills a condition, if the key is there and not null.
fn number(
    json: &JsonObject,
    key: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<Option<f64>, ModelError> {
    match json.get::<Option<f64>>(key, None)? {
        Some(value) if !fits(value) => {
            Err(json.invalid(key, format!("it is {value}, which is out of its range")))
        }
        value => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Result<GenerationConfig, ModelError> {
        let path = Path::new(FILE);
        GenerationConfig::from_json(&JsonObject::parse(path, json.as_bytes())?)
    }

    #[test]
    fn tokens_are_drawn_where_the_file_says_so() {
        let greedy = config(r#"{"temperature": 0.6, "top_p": 0.9}"#).unwrap();
        assert_eq!(greedy.sampling, None);
        let drawn = config(
            r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}"#,
        );
        let drawn = drawn.unwrap();
        let expected = SamplingConfig {
            temperature: 0.6,
            top_k: Some(50),
            top_p: Some(0.9),
            min_p: None,
        };
        assert_eq!(drawn.sampling, Some(expected));
        assert_eq!(drawn.repetition_penalty, Some(1.1));
        let all = config(r#"{"do_sample": true, "top_k": 0, "top_p": 1.0}"#).unwrap();
        let sampling = all.sampling.unwrap();
        assert_eq!((sampling.top_k, sampling.top_p), (None, None));
        for wrong in [r#""top_p": 7"#, r#""temperature": -1"#, r#""top_k": "x""#] {
            let error = config(&format!(r#"{{"do_sample": true, {wrong}}}"#)).unwrap_err();
            let key = wrong.split('"').nth(1).unwrap();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
