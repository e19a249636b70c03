//! Sums of activations.

use burn::tensor::Tensor;
use epiphyte_kernels::memory::uninit_buffer;
use epiphyte_kernels::vector;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// `x + y`: a block's output added to the residual stream.
///
/// # Shapes
/// - `x`, `y`, result: `[tokens, hidden]`
pub fn add(x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
    if uses_fused(&x) && uses_fused(&y) {
        let op = Sum { shape: x.dims() };
        return apply(op, [x.into(), y.into()]);
    }
    x + y
}

#[derive(Clone, Debug)]
struct Sum {
    shape: [usize; 2],
}

impl Fused<2> for Sum {
    type Saved = ();

    fn forward(&self, [x, y]: [&[f32]; 2]) -> (Vec<f32>, ()) {
        let mut sum = uninit_buffer(x.len());
        vector::add(x, y, &mut sum).expect(SHAPES);
        (sum, ())
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn saved_operands(&self, _tracked: Wanted<2>, _saved: &()) -> (Wanted<2>, bool) {
        ([false; 2], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 2, ()>,
        gradient: Gradient,
        wanted: Wanted<2>,
    ) -> [Option<Gradient>; 2] {
        wanted.map(|wanted| wanted.then(|| gradient.clone()))
    }
}
