//! Layer norm and root-mean-square norm.

use burn::tensor::Tensor;
use epiphyte_kernels::norm::{Norm, NormBackward, NormGradients, RowStatistics};

use crate::fused::{Fused, Kept, Wanted, apply, runs_here};
use crate::linear::SHAPES;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over each row (Ba et al. 2016), the
/// variance biased as in PyTorch's `LayerNorm`.
///
/// # Shapes
/// - `x`, result: `[tokens, width]`
/// - `gamma`, `beta`: `[width]`
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<2> {
    if runs_here(&x) && runs_here(&gamma) && runs_here(&beta) {
        let op = RowNorm {
            shape: x.dims(),
            epsilon: epsilon as f32,
        };
        return apply(op, [x.into(), gamma.into(), beta.into()]);
    }
    let centred = x.clone() - x.mean_dim(1);
    let variance = centred.clone().square().mean_dim(1);
    centred / (variance + epsilon).sqrt() * gamma.unsqueeze::<2>() + beta.unsqueeze::<2>()
}

/// `x / sqrt(mean(x²) + epsilon) * gamma` over each row (Zhang and Sennrich 2019).
///
/// # Shapes
/// - `x`, result: `[tokens, width]`
/// - `gamma`: `[width]`
pub fn rms_norm(x: Tensor<2>, gamma: Tensor<1>, epsilon: f64) -> Tensor<2> {
    if runs_here(&x) && runs_here(&gamma) {
        let op = RowNorm {
            shape: x.dims(),
            epsilon: epsilon as f32,
        };
        return apply(op, [x.into(), gamma.into()]);
    }
    let mean_square = x.clone().square().mean_dim(1);
    x / (mean_square + epsilon).sqrt() * gamma.unsqueeze::<2>()
}

/// A layer norm over `x`, `gamma` and `beta`; an RMS norm over `x` and `gamma`.
#[derive(Clone, Debug)]
struct RowNorm {
    shape: [usize; 2],
    epsilon: f32,
}

impl RowNorm {
    fn norm<'a, const N: usize>(&self, operands: [&'a [f32]; N]) -> Norm<'a> {
        let (gamma, epsilon) = (operands[1], self.epsilon);
        match operands.get(2) {
            Some(beta) => Norm::Layer {
                gamma,
                beta,
                epsilon,
            },
            None => Norm::Rms { gamma, epsilon },
        }
    }
}

impl<const N: usize> Fused<N> for RowNorm {
    type Saved = Vec<RowStatistics>;

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, Vec<RowStatistics>) {
        let [rows, width] = self.shape;
        let mut y = vec![0.0; rows * width];
        let mut statistics = vec![RowStatistics::default(); rows];
        self.norm(operands)
            .forward(operands[0], None, &mut y, &mut statistics)
            .expect(SHAPES);
        (y, statistics)
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn backward(
        &self,
        kept: Kept<'_, N, Vec<RowStatistics>>,
        gradient: &[f32],
        wanted: Wanted<N>,
    ) -> [Option<Vec<f32>>; N] {
        let [rows, width] = self.shape;
        let mut dx = vec![0.0; rows * width];
        let (mut d_gamma, mut d_beta) =
            (vec![0.0; width], vec![0.0; if N == 3 { width } else { 0 }]);
        let from = NormBackward {
            x: kept.inputs[0],
            statistics: kept.saved,
            dy: gradient,
            d_sum: None,
        };
        let parameters = wanted[1..].contains(&true);
        let parameters = parameters.then_some(NormGradients {
            d_gamma: &mut d_gamma,
            d_beta: &mut d_beta,
        });
        self.norm(kept.inputs)
            .backward(from, &mut dx, parameters)
            .expect(SHAPES);
        let mut gradients = [dx, d_gamma, d_beta].into_iter();
        wanted.map(|wanted| gradients.next().filter(|_| wanted))
    }
}
