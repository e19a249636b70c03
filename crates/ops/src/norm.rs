//! Layer norm and root-mean-square norm.

use burn::tensor::Tensor;

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` over each row (Ba et al. 2016), the
/// variance biased as in PyTorch's `LayerNorm`.
///
/// # Shapes
/// - `x`, result: `[tokens, width]`
/// - `gamma`, `beta`: `[width]`
pub fn layer_norm(x: Tensor<2>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f64) -> Tensor<2> {
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
    let mean_square = x.clone().square().mean_dim(1);
    x / (mean_square + epsilon).sqrt() * gamma.unsqueeze::<2>()
}
