//! From the keys of `config.json` to a [`RotaryEmbedding`].
//!
//! transformers 5 writes one object, `rope_parameters`; before, there were `rope_theta` and, for a
//! stretched context, `rope_scaling` with `rope_type` or (older still) `type`. Which key wins where
//! several are present follows `RotaryEmbeddingConfigMixin`.

use super::LARGEST_SIZE;
use crate::ModelError;
use crate::json::JsonObject;
use crate::rope::{RopeScaling, RotaryEmbedding};

/// What a rotary embedding is where the configuration has no key for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    /// Dimensions of a head.
    pub(crate) head_dim: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rope_theta: f64,
    /// The share of a head's dimensions that turns, in families where it may be less than all.
    pub(crate) partial_rotary_factor: Option<f64>,
    /// Whether neighboring dimensions form pairs.
    pub(crate) interleaved: bool,
}

/// The keys of a configuration that say how queries and keys are turned.
pub(crate) struct Rope<'a> {
    json: &'a JsonObject,
    defaults: RopeDefaults,
}

impl<'a> Rope<'a> {
    pub(crate) fn new(json: &'a JsonObject, defaults: RopeDefaults) -> Self {
        Self { json, defaults }
    }

    /// The rotary embedding of all layers.
    pub(crate) fn whole(&self) -> Result<RotaryEmbedding, ModelError> {
        let object = match self.json.object("rope_scaling")? {
            Some(object) => Some(object),
            None => self.json.object("rope_parameters")?,
        };
        self.read(object.as_ref(), "rope_theta", self.defaults.rope_theta)
    }

    /// That of the layers of full attention, and that of the layers with a window, whose theta has
    /// a key of its own in transformers 4.
    pub(crate) fn of_layer_types(
        &self,
        local_theta: (&str, f64),
    ) -> Result<[RotaryEmbedding; 2], ModelError> {
        let types = self.json.object("rope_parameters")?;
        let of_type = |key| match &types {
            Some(types) => types.object(key),
            None => Ok(None),
        };
        if let Some(types) = types.as_ref().filter(|it| it.has("rope_type")) {
            let supported = "an object for each type of layer";
            return Err(types.unsupported("rope_type", "one for all layers", supported));
        }
        let (full, sliding) = (of_type("full_attention")?, of_type("sliding_attention")?);
        // What transformers 4 writes changes single keys of what transformers 5 writes.
        let full = match (self.json.object("rope_scaling")?, full) {
            (Some(scaling), Some(full)) => Some(scaling.over(&full)),
            (scaling, full) => scaling.or(full),
        };
        let (key, theta) = local_theta;
        Ok([
            self.read(full.as_ref(), "rope_theta", self.defaults.rope_theta)?,
            self.read(sliding.as_ref(), key, theta)?,
        ])
    }

    /// The rotary embedding of an object, its theta outside of it under `theta_key`.
    fn read(
        &self,
        object: Option<&JsonObject>,
        theta_key: &str,
        default_theta: f64,
    ) -> Result<RotaryEmbedding, ModelError> {
        let (json, defaults) = (self.json, &self.defaults);
        let rotary_dim = self.rotary_dim(object)?;
        let outer_theta = json.get(theta_key, None)?.unwrap_or(default_theta);
        let max_position_embeddings = defaults.max_position_embeddings;
        let (rope_theta, scaling) = match object {
            None => (outer_theta, RopeScaling::Default),
            Some(object) => {
                let dimensions = Dimensions {
                    head_dim: rotary_dim,
                    max_position_embeddings,
                    original: original_length(json, object, max_position_embeddings)?,
                };
                (
                    object.get("rope_theta", None)?.unwrap_or(outer_theta),
                    scaling(object, &dimensions)?,
                )
            }
        };
        // YaRN divides by its logarithm; at 1 and below, rotary positions mean nothing anyway.
        if !(rope_theta > 1.0 && rope_theta.is_finite()) {
            return Err(json.invalid("rope_theta", format!("{rope_theta} is not above 1")));
        }
        Ok(RotaryEmbedding {
            head_dim: rotary_dim,
            interleaved: defaults.interleaved,
            rope_theta,
            max_position_embeddings,
            scaling,
        })
    }

    /// How many dimensions of a head turn.
    fn rotary_dim(&self, object: Option<&JsonObject>) -> Result<usize, ModelError> {
        let (key, head_dim) = ("partial_rotary_factor", self.defaults.head_dim);
        // The object's value comes first.
        let mut stated = None;
        for json in object.into_iter().chain([self.json]) {
            let part: Option<f64> = json.get(key, None)?;
            if let Some(part) = part.filter(|&it| it != 1.0)
                && self.defaults.partial_rotary_factor.is_none()
            {
                return Err(json.unsupported(key, part.to_string(), "1: all dimensions turn"));
            }
            stated = stated.or(part);
        }
        let part = stated.or(self.defaults.partial_rotary_factor);
        let part = part.unwrap_or(1.0);
        let rotary_dim = (head_dim as f64 * part) as usize;
        if !(part > 0.0 && part <= 1.0) || rotary_dim == 0 {
            let problem = format!("{part} leaves no dimension of {head_dim} to turn");
            return Err(self.json.invalid(key, problem));
        }
        if rotary_dim.is_multiple_of(2) {
            return Ok(rotary_dim);
        }
        Err(self.json.invalid(
            "head_dim",
            format!("{rotary_dim} is odd; rotary positions turn pairs of dimensions"),
        ))
    }
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
        // Early Phi-3 files say `su` or `yarn`.
        "longrope" => longrope(object, dimensions),
        "su" | "yarn" if object.has("short_factor") => longrope(object, dimensions),
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

/// LongRoPE: one divisor per frequency.
fn longrope(object: &JsonObject, dimensions: &Dimensions) -> Result<RopeScaling, ModelError> {
    let &Dimensions {
        head_dim,
        max_position_embeddings,
        original,
    } = dimensions;
    let original_max_position_embeddings = original;
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
