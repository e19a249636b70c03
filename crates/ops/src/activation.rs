//! Activation functions, under Hugging Face's names.

use std::str::FromStr;

use burn::tensor::{Tensor, activation};

use crate::OpsError;

/// An activation function, as `hidden_act` in a model's `config.json` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x Φ(x)` with the exact error function: `gelu`.
    Gelu,
    /// Its tanh approximation: `gelu_new`, `gelu_pytorch_tanh`.
    GeluTanh,
    /// `max(x, 0)`: `relu`.
    Relu,
    /// `x σ(x)`: `silu`, `swish`.
    Silu,
    /// `tanh`.
    Tanh,
}

impl Activation {
    /// The function of every element.
    ///
    /// # Shapes
    /// - `x`, result: `[tokens, width]`
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => activation::tanh(x),
        }
    }

    /// `f(gate) ⊙ up`, the gated feed-forward's middle (Shazeer 2020).
    ///
    /// # Shapes
    /// - `gate`, `up`, result: `[tokens, width]`
    pub fn gate(self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        self.apply(gate) * up
    }
}

impl FromStr for Activation {
    type Err = OpsError;

    fn from_str(name: &str) -> Result<Self, OpsError> {
        match name {
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            "relu" => Ok(Self::Relu),
            "silu" | "swish" => Ok(Self::Silu),
            "tanh" => Ok(Self::Tanh),
            other => Err(OpsError::UnknownActivation(other.to_owned())),
        }
    }
}
