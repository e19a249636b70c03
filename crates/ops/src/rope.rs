//! Rotary position embedding.

use burn::tensor::{Tensor, TensorData};

/// Rotates every head of `x` by its token's angles (Su et al. 2021), in the half-split layout of
/// Hugging Face's Llama: element `i` is paired with element `i + head_dim / 2`.
///
/// # Shapes
/// - `x`, result: `[tokens, heads * head_dim]`
/// - `cos`, `sin`: `tokens * head_dim / 2` values, row-major
///
/// # Panics
/// If the shapes do not fit.
pub fn rotate(x: Tensor<2>, cos: &[f32], sin: &[f32], head_dim: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    let (heads, half) = (width / head_dim, head_dim / 2);
    let device = x.device().inner();
    let angles = |values: &[f32]| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), [tokens, 1, half]), &device)
    };
    let (cos, sin) = (angles(cos), angles(sin));
    let x = x.reshape([tokens, heads, head_dim]);
    let first = x.clone().narrow(2, 0, half);
    let second = x.narrow(2, half, half);
    let rotated = Tensor::cat(
        vec![
            first.clone() * cos.clone() - second.clone() * sin.clone(),
            second * cos + first * sin,
        ],
        2,
    );
    rotated.reshape([tokens, width])
}
