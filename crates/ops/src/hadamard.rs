//! The Walsh-Hadamard transform as an operation; its own transpose.

use burn::tensor::Tensor;
use epiphyte_kernels::hadamard::transform;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// `H x` with the unnormalized Hadamard matrix `H` in natural (Sylvester's) order.
///
/// # Shapes
/// - `x`, result: `[n]`, where `n` is a power of two
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use epiphyte_ops::hadamard;
///
/// let x = Tensor::<1>::from_floats([1.0, 2.0, 3.0, 4.0], &Device::default());
/// let y = hadamard(x).to_data().to_vec::<f32>().unwrap();
/// assert_eq!(y, [10.0, -2.0, -4.0, 0.0]);
/// ```
///
/// # Panics
/// If `n` is no power of two.
pub fn hadamard(x: Tensor<1>) -> Tensor<1> {
    let [size] = x.dims();
    assert!(size.is_power_of_two(), "{size} is no power of two");
    if uses_fused(&x) {
        return apply(Transform { size }, [x.into()]);
    }
    let mut y = x;
    let mut half = 1;
    while half < size {
        let pairs = y.reshape([size / (2 * half), 2, half]);
        let first = pairs.clone().narrow(1, 0, 1);
        let second = pairs.narrow(1, 1, 1);
        let (sum, difference) = (first.clone() + second.clone(), first - second);
        y = Tensor::cat(vec![sum, difference], 1).reshape([size]);
        half *= 2;
    }
    y
}

#[derive(Clone, Debug)]
struct Transform {
    size: usize,
}

impl Fused<1> for Transform {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let mut y = x.to_vec();
        transform(&mut y).expect(SHAPES);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.size]
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
            transform(gradient.values_mut()).expect(SHAPES);
            gradient
        })]
    }
}
