//! `config.json`: which family a model belongs to, and its numbers.
//!
//! Keys, defaults and their meaning are those of transformers 5.23; old spellings that its releases
//! still read (`rope_scaling` with `type`) are read here too. Values that would make the model
//! compute something else than it computes here (another position embedding, a quantized base) are
//! errors, never ignored. Keys that do not change the numbers are.

mod bert;
mod labels;
mod llama;
mod rope;

use std::path::Path;

use epiphyte_ops::Activation;

pub use bert::BertConfig;
pub use labels::{Labels, ProblemType};
pub use llama::LlamaConfig;
use llama::LlamaKind;

use crate::ModelError;
use crate::json::JsonObject;

/// The file's name in a model directory.
const FILE: &str = "config.json";

const ADVICE: &str = "place the model's config.json there, from the model's page on huggingface.co \
    or a copy of it; config.json, model.safetensors and tokenizer.json belong in one directory";

/// The values of `model_type` that are supported.
const SUPPORTED: &str = "bert, llama, mistral, qwen2";

/// The largest size that is believed of a model: sizes are multiplied and become allocations.
const LARGEST_SIZE: usize = i32::MAX as usize;
/// The largest number of layers that is believed of a model.
const MOST_LAYERS: usize = 10_000;

/// The configuration of a supported model.
///
/// # Example
/// ```
/// use epiphyte_models::config::ModelConfig;
/// let json = br#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6}"#;
/// let ModelConfig::Bert(config) = ModelConfig::parse("config.json".as_ref(), json)? else {
///     unreachable!()
/// };
/// assert_eq!(config.hidden_size, 384);
/// assert_eq!(config.intermediate_size, 3072); // transformers' default
/// assert_eq!(config.hidden_act, "gelu");
/// # Ok::<(), epiphyte_models::ModelError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelConfig {
    /// BERT and what has its architecture, such as MiniLM.
    Bert(BertConfig),
    /// Llama, Mistral and Qwen2.
    Llama(LlamaConfig),
}

impl ModelConfig {
    /// Reads `config.json` in a model directory.
    ///
    /// # Errors
    /// [`ModelError::MissingDirectory`], [`ModelError::MissingFile`], [`ModelError::NotUtf8`],
    /// [`ModelError::Json`], [`ModelError::UnknownArchitecture`], [`ModelError::InvalidConfig`] and
    /// [`ModelError::UnsupportedConfig`].
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        if !dir.is_dir() {
            return Err(ModelError::MissingDirectory {
                dir: dir.to_owned(),
            });
        }
        Self::from_json(&JsonObject::read(&dir.join(FILE), ADVICE)?)
    }

    /// Parses the bytes of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::open`], but for missing files.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, ModelError> {
        Self::from_json(&JsonObject::parse(path, json)?)
    }

    fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        let model_type: Option<String> = json.get("model_type", None)?;
        if let Some(quantization) = json.object("quantization_config")? {
            let method: String = quantization.get("quant_method", String::new())?;
            return Err(json.unsupported(
                "quantization_config",
                format!("a base that was saved quantized ({method})"),
                "F64, F32, F16 and BF16 weights",
            ));
        }
        match model_type.as_deref() {
            Some("bert") => BertConfig::from_json(json).map(Self::Bert),
            Some("llama") => LlamaConfig::from_json(json, LlamaKind::Llama).map(Self::Llama),
            Some("mistral") => LlamaConfig::from_json(json, LlamaKind::Mistral).map(Self::Llama),
            Some("qwen2") => LlamaConfig::from_json(json, LlamaKind::Qwen2).map(Self::Llama),
            other => {
                let architectures = architectures(json)?;
                let found = other.or(architectures.first().map(String::as_str));
                Err(ModelError::UnknownArchitecture {
                    path: json.path().to_owned(),
                    found: found.unwrap_or("(no model_type)").to_owned(),
                    supported: SUPPORTED,
                })
            }
        }
    }

    /// `architectures`: the transformers classes that saved the model, such as
    /// `BertForSequenceClassification`.
    pub fn architectures(&self) -> &[String] {
        match self {
            Self::Bert(config) => &config.architectures,
            Self::Llama(config) => &config.architectures,
        }
    }

    /// Names of the classes of a classification head.
    pub fn labels(&self) -> &Labels {
        match self {
            Self::Bert(config) => &config.labels,
            Self::Llama(config) => &config.labels,
        }
    }

    /// Width of the hidden states.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.hidden_size,
            Self::Llama(config) => config.hidden_size,
        }
    }

    /// Number of layers.
    pub fn num_hidden_layers(&self) -> usize {
        match self {
            Self::Bert(config) => config.num_hidden_layers,
            Self::Llama(config) => config.num_hidden_layers,
        }
    }

    /// Rows of the embedding matrix.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bert(config) => config.vocab_size,
            Self::Llama(config) => config.vocab_size,
        }
    }

    /// The longest sequence that the model was made for.
    pub fn max_position_embeddings(&self) -> usize {
        match self {
            Self::Bert(config) => config.max_position_embeddings,
            Self::Llama(config) => config.max_position_embeddings,
        }
    }

    /// The token for padding, where the model has one.
    pub fn pad_token_id(&self) -> Option<u32> {
        match self {
            Self::Bert(config) => config.pad_token_id,
            Self::Llama(config) => config.pad_token_id,
        }
    }
}

/// The activations that are supported, under the names of transformers' `ACT2FN`.
const HIDDEN_ACTS: [&str; 7] = [
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "silu",
    "swish",
    "tanh",
];

/// [`HIDDEN_ACTS`] for messages.
const SUPPORTED_ACTS: &str = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh";

/// The activation function of a configuration, by the name under `hidden_act`.
pub(crate) fn activation(name: &str) -> Result<Activation, ModelError> {
    name.parse().map_err(|_| ModelError::UnsupportedConfig {
        path: FILE.into(),
        key: "hidden_act".to_owned(),
        found: name.to_owned(),
        supported: SUPPORTED_ACTS,
    })
}

/// The name of the activation inside the feed-forward block.
fn hidden_act(json: &JsonObject, default: &str) -> Result<String, ModelError> {
    let key = "hidden_act";
    let name = json.get(key, default.to_owned())?;
    if HIDDEN_ACTS.contains(&name.as_str()) {
        return Ok(name);
    }
    Err(json.unsupported(key, format!("`{name}`"), SUPPORTED_ACTS))
}

fn architectures(json: &JsonObject) -> Result<Vec<String>, ModelError> {
    Ok(json
        .get::<Option<Vec<String>>>("architectures", None)?
        .unwrap_or_default())
}

/// A size: at least 1, and small enough to be multiplied.
fn size(json: &JsonObject, key: &str, default: usize) -> Result<usize, ModelError> {
    let value = json.get(key, default)?;
    in_range(json, key, value, LARGEST_SIZE)
}

fn num_hidden_layers(json: &JsonObject, default: usize) -> Result<usize, ModelError> {
    let key = "num_hidden_layers";
    in_range(json, key, json.get(key, default)?, MOST_LAYERS)
}

fn in_range(json: &JsonObject, key: &str, value: usize, most: usize) -> Result<usize, ModelError> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is not between 1 and {most}")))
    }
}

/// A probability of dropping: at least 0 and below 1. `null` is no dropout.
fn dropout(json: &JsonObject, key: &str, default: f64) -> Result<f64, ModelError> {
    let value = json.get(key, Some(default))?.unwrap_or(0.0);
    if (0.0..1.0).contains(&value) {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is not between 0 and 1")))
    }
}

/// A small constant under a root: finite and not negative.
fn epsilon(json: &JsonObject, key: &str, default: f64) -> Result<f64, ModelError> {
    let value: f64 = json.get(key, default)?;
    if value.is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is negative")))
    }
}

/// An optional token id, which has to be in the vocabulary.
fn token(
    json: &JsonObject,
    key: &str,
    default: Option<u32>,
    vocab_size: usize,
) -> Result<Option<u32>, ModelError> {
    // Some published configurations say -1 for "none".
    let id = json
        .get::<Option<i64>>(key, default.map(i64::from))?
        .filter(|&id| id >= 0);
    match id.map(u32::try_from) {
        None => Ok(None),
        Some(Ok(id)) if (id as usize) < vocab_size => Ok(Some(id)),
        Some(_) => Err(json.invalid(
            key,
            format!(
                "{} is outside the vocabulary of {vocab_size}",
                id.unwrap_or_default()
            ),
        )),
    }
}
