//! Rotary position embedding.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use epiphyte_kernels::rope::Rope;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// The cosines and sines of the tokens of one forward pass, shared by all layers.
#[derive(Clone, Debug)]
pub struct Angles {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
}

impl Angles {
    /// Angles from cosines and sines, `tokens * head_dim / 2` values each, row-major.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>) -> Self {
        Self {
            cos: cos.into(),
            sin: sin.into(),
        }
    }

    /// The angles of several passes' tokens, one after another.
    pub fn concat<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        Self {
            cos: parts
                .clone()
                .flat_map(|part| part.cos.iter().copied())
                .collect(),
            sin: parts.flat_map(|part| part.sin.iter().copied()).collect(),
        }
    }
}

/// Rotates every head of `x` by its token's angles (Su et al. 2021), in the half-split layout of
/// Hugging Face's Llama: element `i` is paired with element `i + head_dim / 2`.
///
/// # Shapes
/// - `x`, result: `[tokens, heads * head_dim]`
///
/// # Panics
/// If the angles are not those of as many tokens.
pub fn rotate(x: Tensor<2>, angles: &Angles, head_dim: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    if uses_fused(&x) {
        let op = Rotation {
            shape: [tokens, width],
            angles: angles.clone(),
            head_dim,
        };
        return apply(op, [x.into()]);
    }
    let (heads, half) = (width / head_dim, head_dim / 2);
    let device = x.device().inner();
    let table = |values: &[f32]| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), [tokens, 1, half]), &device)
    };
    let (cos, sin) = (table(&angles.cos), table(&angles.sin));
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

/// The rotation; its backward pass rotates by the negative angles.
#[derive(Clone, Debug)]
struct Rotation {
    shape: [usize; 2],
    angles: Angles,
    head_dim: usize,
}

impl Rotation {
    /// Rotates the heads of `x` in place.
    fn turn(&self, x: &mut [f32], back: bool) {
        let rope = Rope {
            cos: &self.angles.cos,
            sin: &self.angles.sin,
            rotary_dim: self.head_dim,
            head_dim: self.head_dim,
        };
        let rows: Vec<u32> = (0..self.shape[0] as u32).collect();
        let result = if back {
            rope.backward(x, &rows)
        } else {
            rope.forward(x, &rows)
        };
        result.expect(SHAPES);
    }
}

impl Fused<1> for Rotation {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let mut turned = x.to_vec();
        self.turn(&mut turned, false);
        (turned, ())
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &()) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        mut gradient: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| {
            self.turn(gradient.values_mut(), true);
            gradient
        })]
    }
}
