//! From the keys of `config.json` to a [`RotaryEmbedding`].
//!
//! transformers 5 writes one object, `rope_parameters`; before, there were `rope_theta` and, for a
//! stretched context, `rope_scaling` with `rope_type` or (older still) `type`. Which key wins where
//! several are present follows `RotaryEmbeddingConfigMixin`.

use super::LARGEST_SIZE;
use crate::ModelError;
use crate::json::JsonObject;
use crate::rope::{RopeScaling, RotaryEmbedding};

/// transformers' `default_theta`.
const DEFAULT_THETA: f64 = 10_000.0;

pub(crate) fn from_json(
    json: &JsonObject,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<RotaryEmbedding, ModelError> {
    let outer_theta = json.get("rope_theta", None)?.unwrap_or(DEFAULT_THETA);
    let object = match json.object("rope_scaling")? {
        Some(object) => Some(object),
        None => json.object("rope_parameters")?,
    };
    let (rope_theta, scaling) = match &object {
        None => (outer_theta, RopeScaling::Default),
        Some(object) => {
            let dimensions = Dimensions {
                head_dim,
                max_position_embeddings,
                original: original_length(json, object, max_position_embeddings)?,
            };
            (
                object.get("rope_theta", None)?.unwrap_or(outer_theta),
                scaling(object, &dimensions)?,
            )
        }
    };
    for json in [Some(json), object.as_ref()].into_iter().flatten() {
        let key = "partial_rotary_factor";
        let part: f64 = json.get(key, None)?.unwrap_or(1.0);
        if part != 1.0 {
            return Err(json.unsupported(key, part.to_string(), "1: all dimensions turn"));
        }
    }
    // YaRN divides by its logarithm; at 1 and below, rotary positions mean nothing anyway.
    if !(rope_theta > 1.0 && rope_theta.is_finite()) {
        return Err(json.invalid("rope_theta", format!("{rope_theta} is not above 1")));
    }
    Ok(RotaryEmbedding {
        head_dim,
        rope_theta,
        max_position_embeddings,
        scaling,
    })
}

/// The lengths that the variants refer to.
struct Dimensions {
    head_dim: usize,
    max_position_embeddings: usize,
    original: usize,
}

/// The length in pre-training: a key of the file itself comes before the one in the object.
fn original_length(
    json: &JsonObject,
    object: &JsonObject,
    max_position_embeddings: usize,
) -> Result<usize, ModelError> {
    let key = "original_max_position_embeddings";
    for json in [json, object] {
        // Some files write it as 8192.0.
        if let Some(length) = json.get::<Option<f64>>(key, None)? {
            if length.fract() != 0.0 {
                return Err(json.invalid(key, format!("{length} is not a whole number")));
            }
            return super::in_range(json, key, length as usize, LARGEST_SIZE);
        }
    }
    Ok(max_position_embeddings)
}

fn scaling(object: &JsonObject, dimensions: &Dimensions) -> Result<RopeScaling, ModelError> {
    for layer_type in ["full_attention", "sliding_attention"] {
        if object.has(layer_type) {
            return Err(object.unsupported(
                layer_type,
                "an object for one type of layer",
                "one object for all layers",
            ));
        }
    }
    let &Dimensions {
        head_dim,
        max_position_embeddings,
        original,
    } = dimensions;
    let rope_type: Option<String> = object.get("rope_type", None)?;
    let rope_type = match rope_type {
        Some(rope_type) => rope_type,
        None => object.get("type", None)?.unwrap_or("default".to_owned()),
    };
    let original_max_position_embeddings = original;
    match rope_type.as_str() {
        "default" => Ok(RopeScaling::Default),
        "linear" => Ok(RopeScaling::Linear {
            factor: positive(object, "factor")?,
        }),
        "dynamic" if head_dim <= 2 => {
            Err(object.unsupported("rope_type", "`dynamic` on heads of 2 dimensions", "more"))
        }
        "dynamic" => Ok(RopeScaling::Dynamic {
            factor: positive(object, "factor")?,
        }),
        "yarn" => {
            let factor = given_positive(object, "factor")?
                .unwrap_or(max_position_embeddings as f64 / original as f64);
            Ok(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor: yarn_attention_factor(object, factor)?,
                beta_fast: optional_positive(object, "beta_fast")?.unwrap_or(32.0),
                beta_slow: optional_positive(object, "beta_slow")?.unwrap_or(1.0),
                truncate: object.get("truncate", true)?,
            })
        }
        "longrope" => {
            let factor = given_positive(object, "factor")?
                .unwrap_or(max_position_embeddings as f64 / original as f64);
            let attention_factor = match given_positive(object, "attention_factor")? {
                Some(stated) => stated,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
            };
            Ok(RopeScaling::LongRope {
                short_factor: divisors(object, "short_factor", head_dim / 2)?,
                long_factor: divisors(object, "long_factor", head_dim / 2)?,
                original_max_position_embeddings,
                attention_factor,
            })
        }
        "llama3" => {
            let low_freq_factor = positive(object, "low_freq_factor")?;
            let high_freq_factor = positive(object, "high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let problem = format!("{high_freq_factor} is not above low_freq_factor");
                return Err(object.invalid("high_freq_factor", problem));
            }
            Ok(RopeScaling::Llama3 {
                factor: positive(object, "factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            })
        }
        other => Err(object.unsupported(
            "rope_type",
            format!("`{other}`"),
            "default, linear, dynamic, yarn, longrope, llama3",
        )),
    }
}

/// What YaRN multiplies cosines and sines by: stated, or from `mscale` and `mscale_all_dim`
/// (DeepSeek's addition), or `0.1 ln(factor) + 1` as the paper has it.
fn yarn_attention_factor(object: &JsonObject, factor: f64) -> Result<f64, ModelError> {
    if let Some(stated) = given_positive(object, "attention_factor")? {
        return Ok(stated);
    }
    let scale = |mscale: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * mscale * factor.ln() + 1.0
        }
    };
    let mscale = optional_positive(object, "mscale")?;
    let mscale_all_dim = optional_positive(object, "mscale_all_dim")?;
    Ok(match mscale.zip(mscale_all_dim) {
        Some((mscale, all_dim)) => scale(mscale) / scale(all_dim),
        None => scale(1.0),
    })
}

/// A required number above 0.
fn positive(json: &JsonObject, key: &str) -> Result<f64, ModelError> {
    checked_positive(json, key, json.require(key)?)
}

/// A number above 0, where there is one.
fn given_positive(json: &JsonObject, key: &str) -> Result<Option<f64>, ModelError> {
    let given: Option<f64> = json.get(key, None)?;
    given
        .map(|value| checked_positive(json, key, value))
        .transpose()
}

/// A number above 0; absent, `null` and 0 are `None`, as Python's `or` reads them.
fn optional_positive(json: &JsonObject, key: &str) -> Result<Option<f64>, ModelError> {
    match json.get(key, None)? {
        None | Some(0.0) => Ok(None),
        Some(value) => checked_positive(json, key, value).map(Some),
    }
}

fn checked_positive(json: &JsonObject, key: &str, value: f64) -> Result<f64, ModelError> {
    if value.is_finite() && value > 0.0 {
        Ok(value)
    } else {
        Err(json.invalid(key, format!("{value} is not above 0")))
    }
}

/// One divisor per pair of dimensions.
fn divisors(json: &JsonObject, key: &str, pairs: usize) -> Result<Vec<f64>, ModelError> {
    let divisors: Vec<f64> = json.require(key)?;
    if divisors.len() != pairs {
        let problem = format!("{} numbers for {pairs} frequencies", divisors.len());
        return Err(json.invalid(key, problem));
    }
    divisors
        .into_iter()
        .map(|divisor| checked_positive(json, key, divisor))
        .collect()
}
