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
    interleaved: bool,
}

impl Angles {
    /// Angles from cosines and sines, `tokens * rotary_dim / 2` values each, row-major.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>) -> Self {
        Self {
            cos: cos.into(),
            sin: sin.into(),
            interleaved: false,
        }
    }

    /// The same for the layout of the paper and of GLM: element `2i` of a head is paired with `2i +
    /// 1`.
    #[must_use]
    pub fn interleaved(self) -> Self {
        Self {
            interleaved: true,
            ..self
        }
    }

    /// The angles of several passes' tokens, one after another.
    pub fn concat<'a>(parts: impl Iterator<Item = &'a Self> + Clone) -> Self {
        Self {
            cos: parts
                .clone()
                .flat_map(|part| part.cos.iter().copied())
                .collect(),
            interleaved: parts.clone().any(|part| part.interleaved),
            sin: parts.flat_map(|part| part.sin.iter().copied()).collect(),
        }
    }
}

/// Rotates the first elements of every head of `x` by its token's angles (Su et al. 2021), as many
/// as there are angles for; the others pass. In the half-split layout of Hugging Face's Llama
/// element `i` is paired with element `i + rotary_dim / 2`.
///
/// # Shapes
/// - `x`, result: `[tokens, heads * head_dim]`
///
/// # Panics
/// If the angles are not those of as many tokens.
pub fn rotate(x: Tensor<2>, angles: &Angles, head_dim: usize) -> Tensor<2> {
    let [tokens, width] = x.dims();
    if tokens == 0 {
        return x;
    }
    let half = angles.cos.len() / tokens;
    if uses_fused(&x) {
        let op = Rotation {
            shape: [tokens, width],
            angles: angles.clone(),
            rotary_dim: 2 * half,
            head_dim,
        };
        return apply(op, [x.into()]);
    }
    let heads = width / head_dim;
    let device = x.device().inner();
    let table = |values: &[f32]| {
        Tensor::<3>::from_data(TensorData::new(values.to_vec(), [tokens, 1, half]), &device)
    };
    let (cos, sin) = (table(&angles.cos), table(&angles.sin));
    let x = x.reshape([tokens, heads, head_dim]);
    let turning = x.clone().narrow(2, 0, 2 * half);
    let [first, second] = match angles.interleaved {
        false => [0, 1].map(|which| turning.clone().narrow(2, which * half, half)),
        true => {
            let pairs = turning.reshape([tokens, heads, half, 2]);
            [0, 1].map(|which| {
                let ones = pairs.clone().narrow(3, which, 1);
                ones.reshape([tokens, heads, half])
            })
        }
    };
    let turned = [
        first.clone() * cos.clone() - second.clone() * sin.clone(),
        second * cos + first * sin,
    ];
    let turned = match angles.interleaved {
        false => Tensor::cat(turned.into(), 2),
        true => {
            let turned = Tensor::stack::<4>(turned.into(), 3);
            turned.reshape([tokens, heads, 2 * half])
        }
    };
    let rotated = match head_dim - 2 * half {
        0 => turned,
        passing => Tensor::cat(vec![turned, x.narrow(2, 2 * half, passing)], 2),
    };
    rotated.reshape([tokens, width])
}

/// The rotation; its backward pass rotates by the negative angles.
#[derive(Clone, Debug)]
struct Rotation {
    shape: [usize; 2],
    angles: Angles,
    rotary_dim: usize,
    head_dim: usize,
}

impl Rotation {
    /// Rotates the heads of `x` in place.
    fn turn(&self, x: &mut [f32], back: bool) {
        let rope = Rope {
            cos: &self.angles.cos,
            sin: &self.angles.sin,
            rotary_dim: self.rotary_dim,
            head_dim: self.head_dim,
            interleaved: self.angles.interleaved,
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
