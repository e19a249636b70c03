//! AdamW, as PyTorch defines it, and the norm of gradients.

use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use epiphyte_kernels::{adamw, vector};

use crate::fused::uses_fused;
use crate::linear::SHAPES;

/// The sum of squares of a flat tensor without autodiff, in f64 if the device allows, for the norm
/// of a gradient. Not finite if a value is not.
pub fn square_sum(tensor: &Tensor<1>) -> f64 {
    if uses_fused(tensor) {
        return vector::square_sum(plain(tensor.clone()).storage());
    }
    f64::from(tensor.clone().square().sum().into_scalar::<f32>())
}

/// `sum + more`, flat and without autodiff; in place if the sum is not shared.
pub fn accumulate(sum: Tensor<1>, more: Tensor<1>) -> Tensor<1> {
    if uses_fused(&sum) && uses_fused(&more) {
        let (mut sum, more) = (plain(sum), plain(more));
        vector::accumulate(more.storage(), sum.storage_mut()).expect(SHAPES);
        return Tensor::from_primitive::<Flex>(sum);
    }
    sum + more
}

/// `factor · tensor`, flat and without autodiff; in place if the values are not shared.
pub fn scale(tensor: Tensor<1>, factor: f64) -> Tensor<1> {
    if uses_fused(&tensor) {
        let mut tensor = plain(tensor);
        vector::scale(tensor.storage_mut(), factor as f32);
        return Tensor::from_primitive::<Flex>(tensor);
    }
    tensor * factor
}

/// The dense storage of a tensor without autodiff.
fn plain(tensor: Tensor<1>) -> FlexTensor {
    let tensor = tensor.try_into_primitive::<Flex>();
    tensor
        .expect("the caller checked `uses_fused` and gives tensors without autodiff")
        .to_contiguous()
}

/// The settings of AdamW (Loshchilov and Hutter 2019), with PyTorch's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// The two running means that AdamW keeps for a tensor.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Running mean of gradients, `[values]`.
    pub first: Tensor<1>,
    /// Running mean of squared gradients, `[values]`.
    pub second: Tensor<1>,
}

impl Moments {
    /// Moments before the first step, like `value`.
    pub fn zeros(value: &Tensor<1>) -> Self {
        let zeros = value.clone().inner().zeros_like();
        Self {
            first: zeros.clone(),
            second: zeros,
        }
    }

    /// Takes the moments out of `self`, so that they are not shared and can be updated in place.
    pub fn take(&mut self) -> Self {
        let nothing = Tensor::empty([0], &self.first.device());
        Self {
            first: std::mem::replace(&mut self.first, nothing.clone()),
            second: std::mem::replace(&mut self.second, nothing),
        }
    }
}

impl AdamW {
    /// One step: the new value and the updated moments.
    ///
    /// `step` counts from 1. All tensors are flat and without autodiff.
    pub fn step(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
        learning_rate: f64,
        step: usize,
    ) -> (Tensor<1>, Moments) {
        if uses_fused(&value) && uses_fused(&gradient) {
            return self.step_in_place(value, gradient, moments, learning_rate, step);
        }
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        let first = moments.first * self.beta1 + gradient.clone() * (1.0 - self.beta1);
        let second = moments.second * self.beta2 + gradient.square() * (1.0 - self.beta2);
        let correction1 = 1.0 - self.beta1.powi(step);
        let correction2 = (1.0 - self.beta2.powi(step)).sqrt();
        let denominator = second.clone().sqrt() / correction2 + self.epsilon;
        let decayed = value * (1.0 - learning_rate * self.weight_decay);
        let value = decayed - first.clone() / denominator * (learning_rate / correction1);
        (value, Moments { first, second })
    }

    /// The same in one pass over memory. Tensors that are not shared are changed in place.
    fn step_in_place(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
        learning_rate: f64,
        step: usize,
    ) -> (Tensor<1>, Moments) {
        let (mut value, gradient) = (plain(value), plain(gradient));
        let (mut first, mut second) = (plain(moments.first), plain(moments.second));
        let kernel = adamw::AdamW {
            learning_rate,
            betas: (self.beta1, self.beta2),
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
        };
        let (value_slice, m, v) = (
            value.storage_mut(),
            first.storage_mut(),
            second.storage_mut(),
        );
        kernel
            .step(step as u64, value_slice, gradient.storage(), m, v)
            .expect(SHAPES);
        let tensor = Tensor::from_primitive::<Flex>;
        (
            tensor(value),
            Moments {
                first: tensor(first),
                second: tensor(second),
            },
        )
    }
}
