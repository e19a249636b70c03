//! How the two matrices of LoRA start.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How the two matrices start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// `A` uniform in `±1/√in`, `B` zero; `true` in the file.
    #[default]
    Kaiming,
    /// `A` normal with standard deviation `1/r`, `B` zero.
    Gaussian,
    /// Both uniform; `false` in the file.
    Random,
    /// Both at random with `B A = 0`.
    Orthogonal,
    /// The largest singular values of the weight.
    Pissa,
    /// The same, from this number of random subspace iterations.
    PissaIterations(usize),
    /// The QR decomposition of the weight.
    Olora,
    /// `B` the last left singular vectors, frozen, `A` zero.
    Mica,
    /// `A` the first right singular vectors of the layer's inputs, `B` zero.
    Eva,
    /// Singular values of the weight times the covariance of its inputs.
    Corda,
    /// Singular vectors of the weight's gradient.
    LoraGa,
    /// The largest singular values of what quantization has changed.
    Loftq,
}

impl LoraInit {
    /// Names in files, apart from `true` and `false`.
    const NAMES: [(&str, Self); 9] = [
        ("gaussian", Self::Gaussian),
        ("orthogonal", Self::Orthogonal),
        ("pissa", Self::Pissa),
        ("olora", Self::Olora),
        ("mica", Self::Mica),
        ("eva", Self::Eva),
        ("corda", Self::Corda),
        ("lora_ga", Self::LoraGa),
        ("loftq", Self::Loftq),
    ];

    /// Whether the training data decides the start.
    pub(super) fn reads_data(self) -> bool {
        matches!(self, Self::Eva | Self::Corda | Self::LoraGa)
    }

    /// Whether the start is taken out of the base and cannot be computed from it again, so that
    /// files hold plain LoRA of twice the rank.
    pub(super) fn is_stored_plain(self) -> bool {
        matches!(self, Self::PissaIterations(_) | Self::Corda | Self::LoraGa)
    }
}

impl Serialize for LoraInit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Kaiming => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            Self::PissaIterations(number) => {
                serializer.serialize_str(&format!("pissa_niter_{number}"))
            }
            named => {
                let mut names = Self::NAMES.iter();
                let name = names.find(|(_, init)| init == named);
                serializer.serialize_str(name.map_or("", |(name, _)| name))
            }
        }
    }
}

impl<'de> Deserialize<'de> for LoraInit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = match &value {
            Value::Bool(true) => return Ok(Self::Kaiming),
            Value::Bool(false) => return Ok(Self::Random),
            text => text.as_str().unwrap_or_default(),
        };
        let iterations = text.strip_prefix("pissa_niter_");
        let iterations = iterations.and_then(|number| number.parse().ok());
        let named = Self::NAMES.iter().find(|(name, _)| *name == text);
        match (text, iterations, named) {
            ("kaiming" | "true", ..) => Ok(Self::Kaiming),
            ("false", ..) => Ok(Self::Random),
            (_, Some(iterations), _) => Ok(Self::PissaIterations(iterations)),
            (_, _, Some((_, init))) => Ok(*init),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; kaiming (true in a file), gaussian, false, orthogonal, \
                 pissa, pissa_niter_N, olora, mica, eva, corda, lora_ga and loftq are"
            ))),
        }
    }
}

/// A start as a file has it.
pub(super) fn written_init(init: LoraInit) -> String {
    let init = json!(init);
    init.as_str().map_or(init.to_string(), str::to_owned)
}
