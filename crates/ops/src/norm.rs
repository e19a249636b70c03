//! Layer norm and root-mean-square norm.

use burn::tensor::Tensor;
use epiphyte_kernels::memory::uninit_buffer;
use epiphyte_kernels::norm::{self as kernels, Norm, NormGradients, RowStatistics};
use epiphyte_kernels::vector;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over each row (Ba et al. 2016), the
/// variance biased as in PyTorch's `LayerNorm`.
///
/// # Shapes
/// - `x`, result: `[tokens, hidden]`
/// - `gamma`, `beta`: `[hidden]`
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<2> {
    if uses_fused(&x) && uses_fused(&gamma) && uses_fused(&beta) {
        let op = RowNorm {
            shape: x.dims(),
            epsilon: epsilon as f32,
            layer: true,
        };
        return apply(op, [x.into(), gamma.into(), beta.into()]);
    }
    let centered = x.clone() - x.mean_dim(1);
    let variance = centered.clone().square().mean_dim(1);
    centered / (variance + epsilon).sqrt() * gamma.unsqueeze::<2>() + beta.unsqueeze::<2>()
}

/// [`layer_norm`] of `x + residual`, without storing the sum.
///
/// # Shapes
/// - `x`, `residual`, result: `[tokens, hidden]`
/// - `gamma`, `beta`: `[hidden]`
pub fn add_layer_norm(
    x: Tensor<2>,
    residual: Tensor<2>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let here = uses_fused(&x) && uses_fused(&residual) && uses_fused(&gamma) && uses_fused(&beta);
    if here {
        let op = RowNorm {
            shape: x.dims(),
            epsilon: epsilon as f32,
            layer: true,
        };
        return apply(op, [x.into(), gamma.into(), beta.into(), residual.into()]);
    }
    layer_norm(x + residual, gamma, beta, epsilon)
}

/// `x / sqrt(mean(x²) + epsilon) * gamma` over each row (Zhang and Sennrich 2019).
///
/// # Shapes
/// - `x`, result: `[tokens, hidden]`
/// - `gamma`: `[hidden]`
pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, epsilon: f64) -> Tensor<2> {
    if uses_fused(&x) && uses_fused(&gamma) {
        let op = RowNorm {
            shape: x.dims(),
            epsilon: epsilon as f32,
            layer: false,
        };
        return apply(op, [x.into(), gamma.into()]);
    }
    let mean_square = x.clone().square().mean_dim(1);
    x / (mean_square + epsilon).sqrt() * gamma.unsqueeze::<2>()
}

/// A layer norm over `x`, `gamma`, `beta` and perhaps a residual; an RMS norm over `x` and `gamma`.
#[derive(Clone, Debug)]
struct RowNorm {
    shape: [usize; 2],
    epsilon: f32,
    layer: bool,
}

/// Results of the forward pass that the backward pass reads.
#[derive(Clone, Debug)]
struct Saved {
    statistics: Vec<RowStatistics>,
    normalized: Normalized,
}

/// From what the backward pass computes the normalized rows.
#[derive(Clone, Debug)]
enum Normalized {
    /// The result, which the next operation often saves anyway.
    Output,
    /// x, if a gamma is too small to divide the result by.
    Input,
    /// The sum of x and the residual, likewise.
    Sum(Vec<f32>),
}

impl RowNorm {
    fn norm<'a, const N: usize>(&self, operands: [&'a [f32]; N]) -> Norm<'a> {
        let (gamma, epsilon) = (operands[1], self.epsilon);
        if self.layer {
            Norm::Layer {
                gamma,
                beta: operands[2],
                epsilon,
            }
        } else {
            Norm::Rms { gamma, epsilon }
        }
    }
}

impl<const N: usize> Fused<N> for RowNorm {
    type Saved = Saved;

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, Saved) {
        let [rows, width] = self.shape;
        let norm = self.norm(operands);
        let (x, residual) = (operands[0], operands.get(3).copied());
        let normalized = match residual {
            _ if norm.is_invertible() => Normalized::Output,
            None => Normalized::Input,
            Some(residual) => {
                let mut sum = uninit_buffer(x.len());
                vector::add(x, residual, &mut sum).expect(SHAPES);
                Normalized::Sum(sum)
            }
        };
        let mut y = uninit_buffer(rows * width);
        let mut statistics = vec![RowStatistics::default(); rows];
        norm.forward(x, residual, &mut y, &mut statistics)
            .expect(SHAPES);
        let saved = Saved {
            statistics,
            normalized,
        };
        (y, saved)
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn saved_operands(&self, _tracked: Wanted<N>, saved: &Saved) -> (Wanted<N>, bool) {
        let input = matches!(saved.normalized, Normalized::Input);
        let output = matches!(saved.normalized, Normalized::Output);
        // x, gamma, beta, residual.
        let inputs = [input, true, true, false];
        (std::array::from_fn(|operand| inputs[operand]), output)
    }

    fn backward(
        &self,
        kept: Kept<'_, N, Saved>,
        mut gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        let width = self.shape[1];
        let (mut d_gamma, mut d_beta) = (
            vec![0.0; width],
            vec![0.0; if self.layer { width } else { 0 }],
        );
        let rows = match &kept.saved.normalized {
            Normalized::Output => kernels::Kept::Output(kept.output),
            Normalized::Input => kernels::Kept::Input(kept.inputs[0]),
            Normalized::Sum(sum) => kernels::Kept::Input(sum),
        };
        let trained = wanted[1] || (self.layer && wanted[2]);
        let parameters = trained.then_some(NormGradients {
            d_gamma: &mut d_gamma,
            d_beta: &mut d_beta,
        });
        self.norm(kept.inputs)
            .backward(
                rows,
                &kept.saved.statistics,
                gradient.values_mut(),
                parameters,
            )
            .expect(SHAPES);
        let gradients = [
            gradient.clone(),
            Gradient::from(d_gamma),
            Gradient::from(d_beta),
            gradient,
        ];
        let mut gradients = gradients.into_iter();
        wanted.map(|wanted| gradients.next().filter(|_| wanted))
    }
}
