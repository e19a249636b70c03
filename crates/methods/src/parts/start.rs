//! How a method that HF PEFT has starts: its key `init_weights`.

use epiphyte_models::adapter::name_id;
use epiphyte_ops::random;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::sync::Arc;

use crate::framework::parameters::{Init, ParameterSet};

/// `init_weights`: whether a method leaves the base as it is at first. HF PEFT has the random start
/// for tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Nothing changes at first: `true` in files.
    #[default]
    Identity,
    /// Everything starts at random: `false` in files.
    Random,
}

impl Start {
    /// `zero` for the start that changes nothing, else `random`.
    pub(crate) fn choose(self, zero: Init, random: Init) -> Init {
        match self {
            Self::Identity => zero,
            Self::Random => random,
        }
    }
}

impl Serialize for Start {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(*self == Self::Identity)
    }
}

impl<'de> Deserialize<'de> for Start {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("identity")) => Ok(Self::Identity),
            (Value::Bool(false), _) | (_, Some("random")) => Ok(Self::Random),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; identity (true in a file) and random (false) are"
            ))),
        }
    }
}

/// Kaiming's uniform distribution as HF PEFT uses it (`a = √5`), for tensors whose last dimension
/// is `fan_in`.
pub(crate) fn kaiming(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { bound }
}

/// Normal values around `mean` for the parameter that is to be declared under `key`.
pub(crate) fn normal_around(
    mean: f32,
    std: f64,
    count: usize,
    key: &str,
    parameters: &ParameterSet,
) -> Init {
    let draw = parameters.seed() ^ name_id(key);
    Init::Computed(Arc::new(move || {
        let noise = random::normal(draw, count, std).into_iter();
        noise.map(|noise| mean + noise).collect()
    }))
}
