//! Activation functions, under Hugging Face's names.

use std::str::FromStr;

use burn::tensor::{Tensor, activation};
use epiphyte_kernels::activation as kernels;
use epiphyte_kernels::memory::uninit_buffer;

use crate::OpsError;
use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

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
    /// Its name in Hugging Face's configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_new",
            Self::Relu => "relu",
            Self::Silu => "silu",
            Self::Tanh => "tanh",
        }
    }

    /// Applies the function to every element.
    ///
    /// # Shapes
    /// - `x`, result: `[tokens, hidden]`
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        if uses_fused(&x) {
            return apply(
                Elementwise {
                    curve: self.into(),
                    shape: x.dims(),
                },
                [x.into()],
            );
        }
        match self {
            // Not `activation::gelu`: on most backends its gradient is that of the tanh
            // approximation.
            Self::Gelu => {
                let twice_phi = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
                x * twice_phi * 0.5
            }
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
            Self::Silu => activation::silu(x),
            Self::Tanh => activation::tanh(x),
        }
    }

    /// `f(gate) ⊙ up`, the intermediate activations of a gated feed-forward (Shazeer 2020).
    ///
    /// # Shapes
    /// - `gate`, `up`, result: `[tokens, hidden]`
    pub fn gate(self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        if uses_fused(&gate) && uses_fused(&up) {
            let op = Elementwise {
                curve: self.into(),
                shape: gate.dims(),
            };
            return apply(op, [gate.into(), up.into()]);
        }
        self.apply(gate) * up
    }
}

/// `e^x` of every element, whose bytes do not depend on the elements around it.
///
/// # Shapes
/// - `x`, result: `[tokens, hidden]`
pub fn exp(x: Tensor<2>) -> Tensor<2> {
    if uses_fused(&x) {
        let op = Elementwise {
            curve: kernels::Activation::Exp,
            shape: x.dims(),
        };
        return apply(op, [x.into()]);
    }
    x.exp()
}

/// `f(x)`, or over two operands `f(gate) ⊙ up`.
#[derive(Clone, Debug)]
struct Elementwise {
    curve: kernels::Activation,
    shape: [usize; 2],
}

impl<const N: usize> Fused<N> for Elementwise {
    type Saved = ();

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, ()) {
        let mut y = uninit_buffer(operands[0].len());
        match operands.get(1) {
            Some(up) => self.curve.gated_forward(operands[0], up, &mut y),
            None => self.curve.forward(operands[0], &mut y),
        }
        .expect(SHAPES);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn backward(
        &self,
        kept: Kept<'_, N, ()>,
        mut gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        let x = kept.inputs[0];
        let first = match kept.inputs.get(1) {
            Some(up) => {
                let mut d_gate = uninit_buffer(x.len());
                self.curve
                    .gated_backward(x, up, gradient.values_mut(), &mut d_gate)
                    .expect(SHAPES);
                Gradient::from(d_gate)
            }
            None => {
                let values = gradient.values_mut();
                self.curve.backward(x, values).expect(SHAPES);
                gradient.clone()
            }
        };
        let mut gradients = [first, gradient].into_iter();
        wanted.map(|wanted| gradients.next().filter(|_| wanted))
    }
}

impl From<Activation> for kernels::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Gelu => Self::GeluErf,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Relu => Self::Relu,
            Activation::Silu => Self::Silu,
            Activation::Tanh => Self::Tanh,
        }
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
