//! A trained linear layer with a bias: the building block of methods that add small networks.

use burn::tensor::Tensor;
use epiphyte_ops::{Weight, linear};

use crate::framework::parameters::{Init, Param, ParameterSet};

/// `x Wᵀ + b`, both trained.
#[derive(Debug)]
pub(crate) struct Dense {
    /// `[out, in]`
    weight: Param,
    /// `[out]`
    bias: Param,
}

impl Dense {
    /// Declares `{path}.weight` `[out, in]` and `{path}.bias` `[out]`.
    pub(crate) fn declare(
        parameters: &mut ParameterSet,
        path: &str,
        [outputs, inputs]: [usize; 2],
        (weight, bias): (Init, Init),
    ) -> Self {
        Self {
            weight: parameters.declare(format!("{path}.weight"), &[outputs, inputs], weight),
            bias: parameters.declare(format!("{path}.bias"), &[outputs], bias),
        }
    }

    /// A layer of these tensors, `[out, in]` and `[out]`; the weight may be derived from others.
    pub(crate) fn of(weight: Param, bias: Param) -> Self {
        Self { weight, bias }
    }

    /// The same, never moved.
    pub(crate) fn constant(
        parameters: &mut ParameterSet,
        path: &str,
        [outputs, inputs]: [usize; 2],
        (weight, bias): (Init, Init),
    ) -> Self {
        Self {
            weight: parameters.constant(format!("{path}.weight"), &[outputs, inputs], weight),
            bias: parameters.constant(format!("{path}.bias"), &[outputs], bias),
        }
    }

    /// `[out, in]`
    pub(crate) fn weight(&self) -> &Param {
        &self.weight
    }

    /// # Shapes
    /// - `x`: `[rows, in]`
    /// - result: `[rows, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        linear(
            x,
            &Weight::Trained(self.weight.get()),
            Some(self.bias.get()),
        )
    }

    /// How many values such a layer holds.
    pub(crate) fn count([outputs, inputs]: [usize; 2]) -> usize {
        outputs * inputs + outputs
    }
}
