//! Kronecker products as weights: what the methods of KronA's kind and LoKr share.
//!
//! With `A: [a₁, a₂]` and `B: [b₁, b₂]`, `A ⊗ B: [a₁ b₁, a₂ b₂]` holds `A[i, j] B[k, l]` at row
//! `i b₁ + k` and column `j b₂ + l`. It is never made: a row `x`, cut into `a₂` pieces of `b₂`
//! values each, is `X: [a₂, b₂]`, and `x (A ⊗ B)ᵀ` is `A X Bᵀ: [a₁, b₁]`, row after row.
//!
//! `A` starts uniform in `±1/√a₂` (Kaiming with a = √5) and `B` at zero, so nothing changes at
//! first.

use burn::tensor::Tensor;
use epiphyte_ops::{Weight, linear};

use crate::MethodError;
use crate::framework::parameters::{Init, Param, ParameterSet};

crate::settings! {
    /// The settings of Kronecker products.
    pub struct KroneckerConfig {
        /// Rows and columns of the first factor; they divide the layer's outputs and inputs.
        krona_factor: Option<Vec<usize>> = None, unset "near the roots of these";
        /// Factor on the Kronecker product.
        krona_scale: f64 = 1.0, in SinglePrecision;
    }
}

/// The shapes of the two factors: `[a₁, a₂]` and `[b₁, b₂]`.
type Shapes = [[usize; 2]; 2];

impl KroneckerConfig {
    /// The factors' shapes for a weight `[out, in]` at `path`.
    fn shapes(
        &self,
        method: &'static str,
        path: &str,
        sizes: [usize; 2],
    ) -> Result<Shapes, MethodError> {
        let first = match self.krona_factor.as_deref() {
            None => sizes.map(near_root),
            Some(&[rows, columns])
                if rows > 0
                    && columns > 0
                    && sizes[0].is_multiple_of(rows)
                    && sizes[1].is_multiple_of(columns) =>
            {
                [rows, columns]
            }
            Some(given) => {
                return Err(MethodError::Value {
                    method,
                    key: "krona_factor",
                    value: format!("{given:?}"),
                    expected: format!(
                        "it must be two numbers that divide {} and {}, the outputs and inputs of \
                         `{path}`",
                        sizes[0], sizes[1]
                    ),
                });
            }
        };
        Ok([first, [sizes[0] / first[0], sizes[1] / first[1]]])
    }

    /// Declares `{path}.krona_A` and `{path}.krona_B` for a weight `[out, in]`.
    ///
    /// # Errors
    /// If the first factor's shape does not divide that of the weight.
    pub(crate) fn declare(
        &self,
        method: &'static str,
        path: &str,
        sizes: [usize; 2],
        parameters: &mut ParameterSet,
    ) -> Result<Kronecker, MethodError> {
        let [first, second] = self.shapes(method, path, sizes)?;
        let bound = 1.0 / (first[1] as f64).sqrt();
        let a = format!("{path}.krona_A");
        Ok(Kronecker {
            a: parameters.declare(a, &first, Init::Uniform { bound }),
            b: parameters.declare(format!("{path}.krona_B"), &second, Init::Zeros),
            scale: self.krona_scale as f32,
        })
    }

    /// How many values the factors of a weight `[out, in]` hold.
    ///
    /// # Errors
    /// As [`KroneckerConfig::declare`].
    pub(crate) fn count(
        &self,
        method: &'static str,
        path: &str,
        sizes: [usize; 2],
    ) -> Result<usize, MethodError> {
        let [first, second] = self.shapes(method, path, sizes)?;
        Ok(first[0] * first[1] + second[0] * second[1])
    }
}

/// The largest divisor of `size` that is not above its root.
fn near_root(size: usize) -> usize {
    let candidates = (1..=size).take_while(|divisor| divisor * divisor <= size);
    let divisors = candidates.filter(|&divisor| size.is_multiple_of(divisor));
    divisors.last().unwrap_or(1)
}

/// `x (A ⊗ B)ᵀ`.
///
/// # Shapes
/// - `x`: `[tokens, a₂ b₂]`
/// - `a`: `[a₁, a₂]`, `b`: `[b₁, b₂]`
/// - result: `[tokens, a₁ b₁]`
pub(crate) fn kronecker_linear(x: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [tokens, _] = x.dims();
    let ([a1, a2], [b1, b2]) = (a.dims(), b.dims());
    let pieces = x.reshape([tokens * a2, b2]);
    let narrowed = linear(pieces, &Weight::Trained(b), None);
    let turned = narrowed.reshape([tokens, a2, b1]).swap_dims(1, 2);
    let turned = turned.reshape([tokens * b1, a2]);
    let widened = linear(turned, &Weight::Trained(a), None);
    let rows = widened.reshape([tokens, b1, a1]).swap_dims(1, 2);
    rows.reshape([tokens, a1 * b1])
}

/// `A ⊗ B`, `[a₁ b₁, a₂ b₂]`, of `a`: `[a₁, a₂]` and `b`: `[b₁, b₂]`.
pub(crate) fn kronecker_product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([a1, a2], [b1, b2]) = (a.dims(), b.dims());
    let product = a.reshape([a1, 1, a2, 1]) * b.reshape([1, b1, 1, b2]);
    product.reshape([a1 * b1, a2 * b2])
}

/// `s · (A ⊗ B)`.
#[derive(Debug)]
pub(crate) struct Kronecker {
    a: Param,
    b: Param,
    scale: f32,
}

impl Kronecker {
    /// `s · x (A ⊗ B)ᵀ`.
    ///
    /// # Shapes
    /// - `x`: `[tokens, in]`
    /// - result: `[tokens, out]`
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kronecker_linear(x, self.a.get(), self.b.get()) * self.scale
    }

    /// `s · (A ⊗ B)`, `[out, in]`.
    pub(crate) fn weight(&self) -> Tensor<2> {
        kronecker_product(self.a.get(), self.b.get()) * self.scale
    }

    /// How many values the factors hold.
    pub(crate) fn count(&self) -> usize {
        self.a.count() + self.b.count()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_ops::random;

    use super::{KroneckerConfig, near_root};
    use crate::ParameterSet;

    #[test]
    fn factors_are_near_the_root() {
        let sizes = [768, 3072, 4096, 11_008, 7, 1];
        assert_eq!(sizes.map(near_root), [24, 48, 64, 86, 1, 1]);
    }

    /// Written out from the definition, with no two sizes alike.
    #[test]
    fn the_product_is_that_of_the_definition() {
        let config = KroneckerConfig {
            krona_factor: Some(vec![2, 3]),
            krona_scale: 0.5,
        };
        let mut parameters = ParameterSet::new(&Device::default(), 0);
        let (outputs, inputs) = (10, 12);
        let product = config
            .declare("krona", "layer", [outputs, inputs], &mut parameters)
            .unwrap();
        let (a, b) = (random::normal(1, 6, 1.0), random::normal(2, 20, 1.0));
        product.a.set_values(a.clone());
        product.b.set_values(b.clone());
        let expected: Vec<f32> = (0..outputs)
            .flat_map(|row| (0..inputs).map(move |column| (row, column)))
            .map(|(row, column)| {
                let (i, k, j, l) = (row / 5, row % 5, column / 4, column % 4);
                0.5 * a[i * 3 + j] * b[k * 4 + l]
            })
            .collect();
        let weight = product.weight();
        assert_eq!(weight.dims(), [outputs, inputs]);
        let dense = weight.clone().try_into_vec_as::<f32>().unwrap();
        assert_eq!(dense, expected);

        let x = TensorData::new(random::normal(3, 2 * inputs, 1.0), [2, inputs]);
        let x = Tensor::<2>::from_data(x, &Device::default());
        let difference = product.forward(x.clone()) - x.matmul(weight.transpose());
        assert!(difference.abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn a_factor_that_does_not_divide_is_named() {
        let config = KroneckerConfig {
            krona_factor: Some(vec![5, 2]),
            ..KroneckerConfig::default()
        };
        let error = config.count("krona", "query", [8, 8]).unwrap_err();
        assert!(
            error.to_string().contains("`krona_factor` is [5, 2]")
                && error.to_string().contains("`query`"),
            "{error}"
        );
    }
}
