//! The formats in which a frozen base may be kept in fewer bits.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use epiphyte_kernels::quantized::Format;
use serde::{Deserialize, Serialize};

use crate::OpsError;
use crate::fused::on_processor;

/// How the linear layers of a frozen base are kept: `nf4`, `fp4`, `int8` or `int4` in files and
/// flags. Products decode them to the base's precision as they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// 4-bit NormalFloat with double quantization, as QLoRA has it.
    Nf4,
    /// 4-bit floating point with double quantization.
    Fp4,
    /// 8-bit whole numbers with a scale for each output.
    Int8,
    /// 4-bit whole numbers with a scale for 32 values.
    Int4,
}

impl Quantization {
    const ALL: [Self; 4] = [Self::Nf4, Self::Fp4, Self::Int8, Self::Int4];

    /// The name in files and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Checks that quantized matrices can be used on `device`.
    ///
    /// # Errors
    /// [`OpsError::QuantizedOnGpu`].
    pub fn check(self, device: &Device) -> Result<(), OpsError> {
        match on_processor(device) {
            true => Ok(()),
            false => Err(OpsError::QuantizedOnGpu),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Quantization {
    type Err = OpsError;

    fn from_str(name: &str) -> Result<Self, OpsError> {
        let mut all = Self::ALL.into_iter();
        let found = all.find(|quantization| quantization.name() == name);
        found.ok_or_else(|| OpsError::UnknownQuantization(name.to_owned()))
    }
}

impl From<Quantization> for Format {
    fn from(quantization: Quantization) -> Self {
        match quantization {
            Quantization::Nf4 => Self::Nf4,
            Quantization::Fp4 => Self::Fp4,
            Quantization::Int8 => Self::Int8,
            Quantization::Int4 => Self::Int4,
        }
    }
}

impl From<Format> for Quantization {
    fn from(format: Format) -> Self {
        match format {
            Format::Nf4 => Self::Nf4,
            Format::Fp4 => Self::Fp4,
            Format::Int8 => Self::Int8,
            Format::Int4 => Self::Int4,
        }
    }
}
