//! Tensors of the base that are trained whole with a method, besides the task's head, by HF PEFT's
//! rules: biases (`bias`) and modules (`modules_to_save`).

use epiphyte_models::Base;
use serde::{Deserialize, Serialize};

use crate::MethodError;

/// What PEFT puts between the path of a module that it wraps and the names of its own tensors.
const WRAPPED: &str = ".base_layer";

crate::settings! {
    /// Which tensors of the base are trained whole with a method.
    pub struct WholeTensors {
        /// Biases of the base to train: none, all, or those of the targets (lora_only).
        bias: TrainedBiases = TrainedBiases::None, as Text, unset "none";
        /// Modules to train and store whole besides the task's head: ends of their paths.
        modules_to_save: Option<Vec<String>> = None;
    }
}

/// Which biases of the base are trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrainedBiases {
    /// None.
    None,
    /// All.
    All,
    /// Those of the method's targets, under the method's own word: `lora_only`.
    OfTargets(String),
}

impl Serialize for TrainedBiases {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::None => "none",
            Self::All => "all",
            Self::OfTargets(word) => word,
        })
    }
}

impl<'de> Deserialize<'de> for TrainedBiases {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        match word.as_str() {
            "none" => Ok(Self::None),
            "all" => Ok(Self::All),
            only if only.ends_with("_only") => Ok(Self::OfTargets(word)),
            _ => Err(serde::de::Error::custom(format!(
                "\"{word}\" is not known; none, all and lora_only are"
            ))),
        }
    }
}

impl WholeTensors {
    /// The names of the tensors, each with the key under which files store it; `wraps` says whether
    /// a module is one that the method acts on.
    pub fn names<'b>(
        &self,
        base: &'b Base,
        wraps: &dyn Fn(&str) -> bool,
    ) -> Vec<(&'b str, String)> {
        let tensors = base.tensors().keys().map(String::as_str);
        let chosen = tensors.filter_map(|name| {
            let (path, parameter) = name.rsplit_once('.')?;
            let wrapped = wraps(path);
            let by_bias = match &self.bias {
                TrainedBiases::None => false,
                TrainedBiases::All => parameter == "bias",
                TrainedBiases::OfTargets(_) => wrapped && parameter == "bias",
            };
            let is_chosen = by_bias || self.modules().any(|module| is_in(name, module));
            let infix = if wrapped { WRAPPED } else { "" };
            (is_chosen && !base.is_of_head(name))
                .then(|| (name, format!("{path}{infix}.{parameter}")))
        });
        chosen.collect()
    }

    /// The number of their values.
    pub fn count(&self, base: &Base, wraps: &dyn Fn(&str) -> bool) -> usize {
        let names = self.names(base, wraps).into_iter();
        let tensors = names.filter_map(|(name, _)| base.tensor(name));
        tensors.map(|tensor| tensor.count()).sum()
    }

    /// Checks that each name matches a module of the base.
    ///
    /// # Errors
    /// [`MethodError::Value`].
    pub fn check_start(&self, method: &'static str, base: &Base) -> Result<(), MethodError> {
        let names = || base.tensors().keys();
        let unmatched = self
            .modules()
            .find(|module| !names().any(|name| is_in(name, module)));
        let Some(module) = unmatched else {
            return Ok(());
        };
        let example = names().next().and_then(|name| name.rsplit_once('.'));
        Err(MethodError::Value {
            method,
            key: "modules_to_save",
            value: module.to_owned(),
            expected: format!(
                "no module's path ends so; one is `{}`",
                example.map_or("", |(path, _)| path)
            ),
        })
    }

    fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules_to_save.iter().flatten().map(String::as_str)
    }
}

/// Whether the tensor `name` is below a module whose path ends with `module`, in PEFT's sense of
/// the word: without a dot in between.
fn is_in(name: &str, module: &str) -> bool {
    let mut path = name;
    while let Some((parent, _)) = path.rsplit_once('.') {
        if parent.ends_with(module) {
            return true;
        }
        path = parent;
    }
    false
}
