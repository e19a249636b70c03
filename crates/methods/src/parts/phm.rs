//! Linear layers whose weight is a sum of Kronecker products: parameterized hypercomplex
//! multiplication (Zhang et al. 2021, arXiv 2102.08597), as Compacter has it.
//!
//! `W = Σ_i A_i ⊗ B_i` with `A_i: [n, n]`, the rule, and `B_i: [in / n, out / n]`, which may be a
//! product `s_i t_i` of rank `r`; `y = x W + b`. `W` is computed once a step from the trained
//! factors.
//!
//! | | |
//! | --- | --- |
//! | one layer trains | `n³` of its own rule, or nothing of one that all share; `in · out / n`, or `r (in + out)`; `out` |
//! | file | `<path>.phm_rule` `[n, n, n]`, or `phm_rule` once; `<path>.W` `[n, in / n, out / n]`, or `<path>.W_left` `[n, in / n, r]` and `<path>.W_right` `[n, r, out / n]`; `<path>.b` `[out]` |

use burn::tensor::Tensor;

use crate::MethodError;
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::bottleneck::{Bottleneck, Scaling, Slot, Variant};
use crate::parts::dense::Dense;

crate::settings! {
    /// The settings of such layers, under AdapterHub's names.
    pub struct PhmConfig {
        /// Number of Kronecker products; divides the hidden size and the size of the bottleneck.
        phm_dim: usize = 4, in Size;
        /// Rank of the second factors.
        phm_rank: Option<usize> = None, in Size, unset "full";
        /// One set of first factors, the rule, for all layers: true or false.
        shared_phm_rule: bool = false, as Boolean;
        /// Standard deviation of the rule's initial values.
        phm_init_range: f64 = 0.01, in Positive;
    }
}

impl PhmConfig {
    /// How many values bottlenecks of size `dim` train, of which there are `count`.
    ///
    /// # Errors
    /// If `phm_dim` does not divide a size.
    pub fn count(
        &self,
        variant: &Variant,
        [width, dim]: [usize; 2],
        count: usize,
    ) -> Result<usize, MethodError> {
        let n = self.phm_dim;
        if !width.is_multiple_of(n) || !dim.is_multiple_of(n) {
            return Err(MethodError::Value {
                method: variant.method,
                key: "phm_dim",
                value: n.to_string(),
                expected: format!(
                    "it must divide the hidden size, {width}, and the size of the bottleneck, {dim}"
                ),
            });
        }
        let factors = match self.phm_rank {
            Some(rank) => 2 * rank * (width + dim),
            None => 2 * width * dim / n,
        };
        let rules = match self.shared_phm_rule {
            true => 1,
            false => 2 * count,
        };
        Ok(count * (factors + width + dim) + rules * n * n * n)
    }

    /// The rule that all layers share, if they do.
    pub fn shared_rule(&self, parameters: &mut ParameterSet) -> Option<Param> {
        let rule = || self.rule("phm_rule".to_owned(), parameters);
        self.shared_phm_rule.then(rule)
    }

    fn rule(&self, key: String, parameters: &mut ParameterSet) -> Param {
        let init = Init::Normal {
            std: self.phm_init_range,
        };
        parameters.declare(key, &[self.phm_dim; 3], init)
    }

    /// Declares a bottleneck of two such layers; [`PhmConfig::count`] has checked that its sizes
    /// fit.
    pub fn bottleneck(
        &self,
        slot: &Slot<'_>,
        shared: Option<&Param>,
        parameters: &mut ParameterSet,
    ) -> Bottleneck {
        let mut layer =
            |name, shape| self.layer(&slot.key(name), shape, shared.cloned(), parameters);
        Bottleneck {
            down: layer("adapter_down", [slot.dim, slot.width]),
            up: layer("adapter_up", [slot.width, slot.dim]),
            activation: slot.activation,
            scaling: Scaling::One,
        }
    }

    /// Factors start uniform as Glorot and Bengio 2010 have it, with gain √2, as in the reference
    /// code.
    fn layer(
        &self,
        path: &str,
        [outputs, inputs]: [usize; 2],
        shared: Option<Param>,
        parameters: &mut ParameterSet,
    ) -> Dense {
        let n = self.phm_dim;
        let rule = shared.unwrap_or_else(|| self.rule(format!("{path}.phm_rule"), parameters));
        let mut factor = |name: &str, [rows, columns]: [usize; 2]| {
            let bound = (2.0 * 6.0 / (rows + columns) as f64).sqrt();
            let key = format!("{path}.{name}");
            parameters.declare(key, &[n, rows, columns], Init::Uniform { bound })
        };
        let factors = match self.phm_rank {
            Some(rank) => vec![
                factor("W_left", [inputs / n, rank]),
                factor("W_right", [rank, outputs / n]),
            ],
            None => vec![factor("W", [inputs / n, outputs / n])],
        };
        let bias = parameters.declare(format!("{path}.b"), &[outputs], Init::Zeros);
        let compute = move || {
            let factors = factors.iter().map(Param::get::<3>);
            let second = factors.reduce(Tensor::matmul).expect("one factor or two");
            kronecker_sum(rule.get(), second)
        };
        let key = format!("{path}.weight");
        let weight = parameters.derived(key, &[outputs, inputs], compute);
        Dense::of(weight, bias)
    }
}

/// `(Σ_i A_i ⊗ B_i)ᵀ`, row-major.
///
/// # Shapes
/// - `a`: `[terms, n, n]`
/// - `b`: `[terms, in / n, out / n]`
/// - result: `[out · in]`
fn kronecker_sum(a: Tensor<3>, b: Tensor<3>) -> Tensor<1> {
    let ([terms, n, _], [_, rows, columns]) = (a.dims(), b.dims());
    // Element (a, c, k, p) of the product is W[a · rows + k, c · columns + p].
    let a = a.reshape([terms, n * n]).transpose();
    let products = a.matmul(b.reshape([terms, rows * columns]));
    let products: Tensor<4> = products.reshape([n, n, rows, columns]);
    products.permute([1, 3, 0, 2]).reshape([-1])
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_ops::random;

    use super::kronecker_sum;

    fn of(values: Vec<f32>, shape: [usize; 3]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values, shape), &Device::default())
    }

    /// Against the definition, element by element.
    #[test]
    fn the_weight_is_the_sum_of_kronecker_products() {
        let (terms, n, rows, columns) = (3, 3, 2, 4);
        let a = random::normal(1, terms * n * n, 1.0);
        let b = random::normal(2, terms * rows * columns, 1.0);
        let found = kronecker_sum(
            of(a.clone(), [terms, n, n]),
            of(b.clone(), [terms, rows, columns]),
        );
        let found = found.try_into_vec_as::<f32>().unwrap();
        let (inputs, outputs) = (n * rows, n * columns);
        for input in 0..inputs {
            for output in 0..outputs {
                let term = |i: usize| {
                    let a = a[(i * n + input / rows) * n + output / columns];
                    let b = b[(i * rows + input % rows) * columns + output % columns];
                    f64::from(a) * f64::from(b)
                };
                let expected: f64 = (0..terms).map(term).sum();
                let found = f64::from(found[output * inputs + input]);
                assert!((found - expected).abs() < 1e-5, "{input} {output}");
            }
        }
    }

    /// With `A_1 = I` and `A_2 = [[0, -1], [1, 0]]` the layer multiplies complex numbers.
    #[test]
    fn two_terms_are_complex_multiplication() {
        let a = of(vec![1.0, 0.0, 0.0, 1.0, 0.0, -1.0, 1.0, 0.0], [2, 2, 2]);
        let (real, imaginary) = (3.0, 5.0);
        let b = of(vec![real, imaginary], [2, 1, 1]);
        let w = kronecker_sum(a, b).try_into_vec_as::<f32>().unwrap();
        // Transposed: [[real, -imaginary], [imaginary, real]].
        assert_eq!(w, [real, imaginary, -imaginary, real]);
    }
}
