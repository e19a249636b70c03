//! A factor for each column.

use burn::tensor::Tensor;
use epiphyte_kernels::columns;
use epiphyte_kernels::memory::uninit_buffer;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// The smallest factor that the result is divided by.
const LEAST: f32 = 1e-12;

/// `x ⊙ factors`, each row by the same factors.
///
/// # Shapes
/// - `x`, result: `[tokens, hidden]`
/// - `factors`: `[hidden]`
pub fn scale_columns(x: Tensor<2>, factors: Tensor<1>) -> Tensor<2> {
    if uses_fused(&x) && uses_fused(&factors) {
        let op = Scale { shape: x.dims() };
        return apply(op, [x.into(), factors.into()]);
    }
    x * factors.unsqueeze::<2>()
}

#[derive(Clone, Debug)]
struct Scale {
    shape: [usize; 2],
}

impl Fused<2> for Scale {
    /// Whether x can be computed from the result, so that x need not be saved: attention saves its
    /// operands, which are these results, anyway.
    type Saved = bool;

    fn forward(&self, [x, factors]: [&[f32]; 2]) -> (Vec<f32>, bool) {
        let mut y = uninit_buffer(x.len());
        columns::scale(x, factors, &mut y).expect(SHAPES);
        let invertible = |factor: &f32| factor.is_finite() && factor.abs() >= LEAST;
        (y, factors.iter().all(invertible))
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn saved_operands(&self, [_, factors]: Wanted<2>, invertible: &bool) -> (Wanted<2>, bool) {
        ([factors && !invertible, true], factors && *invertible)
    }

    fn backward(
        &self,
        kept: Kept<'_, 2, bool>,
        mut gradient: Gradient,
        [x, factors]: Wanted<2>,
    ) -> [Option<Gradient>; 2] {
        let [input, values] = kept.inputs;
        let d_factors = factors.then(|| {
            let invertible = *kept.saved;
            let other = if invertible { kept.output } else { input };
            let mut sums = vec![0.0; values.len()];
            columns::sums(&gradient, Some(other), &mut sums).expect(SHAPES);
            if invertible {
                let sums = sums.iter_mut().zip(values);
                sums.for_each(|(sum, factor)| *sum /= factor);
            }
            Gradient::from(sums)
        });
        let dx = x.then(|| {
            columns::scale_in_place(gradient.values_mut(), values).expect(SHAPES);
            gradient
        });
        [dx, d_factors]
    }
}
