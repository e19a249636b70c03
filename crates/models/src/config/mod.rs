//! `config.json`, key by key: what the configurations of several families read in the same way.
//!
//! Keys, defaults and their meaning are those of transformers 5.23; old spellings that its releases
//! still read (`rope_scaling` with `type`) are read here too. Values that would make the model
//! compute something else than it computes here (another position embedding, a quantized base) are
//! errors, never ignored. Keys that do not change the numbers are.

mod labels;
mod rope;

use epiphyte_ops::Activation;

pub(crate) use labels::MOST_LABELS;
pub use labels::{Labels, ProblemType};
pub(crate) use rope::{Rope, RopeDefaults};

use crate::ModelError;
use crate::json::JsonObject;

/// The largest size that is believed of a model: sizes are multiplied and become allocations.
pub(crate) const LARGEST_SIZE: usize = i32::MAX as usize;
/// The largest number of layers that is believed of a model.
pub(crate) const MOST_LAYERS: usize = 10_000;

/// The activations that are supported, under the names of transformers' `ACT2FN`.
const ACTIVATIONS: &str = "gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh";

/// The activation inside the feed-forward block.
pub(crate) fn hidden_act(json: &JsonObject, default: &str) -> Result<Activation, ModelError> {
    activation(json, "hidden_act", default)
}

/// An activation under the family's own key.
pub(crate) fn activation(
    json: &JsonObject,
    key: &str,
    default: &str,
) -> Result<Activation, ModelError> {
    let name = json.get(key, default.to_owned())?;
    let unsupported = |_| json.unsupported(key, format!("`{name}`"), ACTIVATIONS);
    name.parse().map_err(unsupported)
}

/// Refuses a decoder whose tokens see those after them, as embedding models made of decoders have
/// it.
pub(crate) fn refuse_not_causal(json: &JsonObject) -> Result<(), ModelError> {
    match json.flag("is_causal", true)? {
        true => Ok(()),
        false => Err(json.unsupported("is_causal", "false", "true: causal attention")),
    }
}

pub(crate) fn architectures(json: &JsonObject) -> Result<Vec<String>, ModelError> {
    Ok(json
        .get::<Option<Vec<String>>>("architectures", None)?
        .unwrap_or_default())
}

/// A size: at least 1, and small enough to be multiplied.
pub(crate) fn size(json: &JsonObject, key: &str, default: usize) -> Result<usize, ModelError> {
    let value = json.get(key, default)?;
    in_range(json, key, value, LARGEST_SIZE)
}

pub(crate) fn num_hidden_layers(json: &JsonObject, default: usize) -> Result<usize, ModelError> {
    layer_count(json, "num_hidden_layers", default)
}

/// The number of layers under the family's own key.
pub(crate) fn layer_count(
    json: &JsonObject,
    key: &str,
    default: usize,
) -> Result<usize, ModelError> {
    in_range(json, key, json.get(key, default)?, MOST_LAYERS)
}

pub(crate) fn in_range(
    json: &JsonObject,
    key: &str,
    value: usize,
    most: usize,
) -> Result<usize, ModelError> {
    if (1..=most).contains(&value) {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is not between 1 and {most}")))
    }
}

/// A probability of dropping: at least 0 and below 1. `null` is no dropout.
pub(crate) fn dropout(json: &JsonObject, key: &str, default: f64) -> Result<f64, ModelError> {
    let value = json.get(key, Some(default))?.unwrap_or(0.0);
    // Kernels compute in single precision, in which numbers just below 1 are 1.
    if (0.0..1.0).contains(&(value as f32)) {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is not between 0 and 1")))
    }
}

/// A small constant under a root: finite and not negative.
pub(crate) fn epsilon(json: &JsonObject, key: &str, default: f64) -> Result<f64, ModelError> {
    let value: f64 = json.get(key, default)?;
    if (value as f32).is_finite() && value >= 0.0 {
        Ok(value)
    } else {
        let problem = format!("{value} is not a number of single precision, 0 or more");
        Err(json.invalid(key, problem))
    }
}

/// A token with which texts begin or end; none where the vocabulary does not have it, as in
/// configurations of pruned vocabularies.
pub(crate) fn special_token(
    json: &JsonObject,
    key: &str,
    default: Option<u32>,
    vocab_size: usize,
) -> Result<Option<u32>, ModelError> {
    let ids = json.token_ids(key, default)?;
    Ok(ids
        .first()
        .copied()
        .filter(|&id| (id as usize) < vocab_size))
}

/// An optional token id, which has to be in the vocabulary.
pub(crate) fn token(
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

/// Which of the layers see a window only: as `layer_types` says or, without that, as `default`
/// does.
pub(crate) fn sliding_layers(
    json: &JsonObject,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ModelError> {
    let Some(types) = json.get::<Option<Vec<String>>>("layer_types", None)? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        let problem = format!("{} types for {layers} layers", types.len());
        return Err(json.invalid("layer_types", problem));
    }
    let types = types.iter().map(|it| match it.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        _ => Err(json.unsupported(
            "layer_types",
            format!("`{it}`"),
            "full_attention, sliding_attention",
        )),
    });
    types.collect()
}
