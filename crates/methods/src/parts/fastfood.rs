//! Fastfood: a fast random projection of a few values to many.
//!
//! Le, Sarlós, Smola, "Fastfood: Approximating Kernel Expansions in Loglinear Time", ICML 2013, as
//! Li et al. 2018 (arXiv 1804.08838) and Aghajanyan et al. 2021 (arXiv 2012.13255) use it:
//!
//! `P θ = (H G Π H B θ)[..D] / √(D Σ G²)` with `θ: [d]` padded with zeros (or cut) to `n`, the
//! power of two from `D` on; `B` a diagonal of signs, `H` the unnormalized Hadamard matrix, `Π` a
//! permutation, `G` a diagonal of normal values. Where `D = n` every column of `P` has length one.
//!
//! Signs, permutation and normal values follow from a key. Of padded values only the first `d` are
//! not zero, so the first transform is one of the power of two from `d` on, repeated.

use burn::tensor::{Device, Int, Tensor, TensorData};
use epiphyte_ops::{hadamard, random};

/// The projection from `[d]` to `[D]`.
#[derive(Debug)]
pub(crate) struct Fastfood {
    /// `B` as far as it is read, `[min(d, n)]`.
    signs: Tensor<1>,
    /// For each of the `n` values the one of the first transform that `Π` puts there.
    sources: Tensor<1, Int>,
    /// `G`, `[n]`.
    gaussian: Tensor<1>,
    /// The number of values of the first transform.
    inner: usize,
    size: usize,
    factor: f32,
}

impl Fastfood {
    /// The projection of `inputs` values to `size`, drawn from `key`.
    pub(crate) fn new(key: u64, inputs: usize, size: usize, device: &Device) -> Self {
        let padded = size.next_power_of_two();
        let labelled = |label| random::derive_key(key, label);
        let (signs, order) = (labelled(0), labelled(1));
        let signs = (0..inputs.min(padded) as u64)
            .map(|at| match random::derive_key(signs, at) % 2 {
                0 => -1.0,
                _ => 1.0,
            })
            .collect();
        Self::of(
            signs,
            &permutation(order, padded),
            random::normal(labelled(2), padded, 1.0),
            size,
            device,
        )
    }

    /// The projection of given draws; `permutation[i]` is what comes to place `i`.
    fn of(
        signs: Vec<f32>,
        permutation: &[u32],
        gaussian: Vec<f32>,
        size: usize,
        device: &Device,
    ) -> Self {
        let inner = signs.len().next_power_of_two();
        let squares = gaussian.iter().map(|value| f64::from(*value).powi(2));
        let factor = 1.0 / (size as f64 * squares.sum::<f64>()).sqrt();
        let sources = permutation.iter().map(|&at| (at as usize % inner) as i32);
        let sources: Vec<i32> = sources.collect();
        let length = sources.len();
        Self {
            inner,
            size,
            factor: factor as f32,
            signs: tensor(signs, device),
            sources: Tensor::from_data(TensorData::new(sources, [length]), device),
            gaussian: tensor(gaussian, device),
        }
    }

    /// `P θ`.
    ///
    /// # Shapes
    /// - `theta`: `[d]`
    /// - result: `[D]`
    pub(crate) fn project(&self, theta: Tensor<1>) -> Tensor<1> {
        let [read] = self.signs.dims();
        let theta = match theta.dims()[0] == read {
            true => theta,
            false => theta.narrow(0, 0, read),
        };
        let signed = theta * self.signs.clone();
        let padded = match self.inner - read {
            0 => signed,
            rest => {
                let zeros = Tensor::zeros([rest], &signed.device());
                Tensor::cat(vec![signed, zeros], 0)
            }
        };
        let permuted = hadamard(padded).select(0, self.sources.clone());
        let mixed = hadamard(permuted * self.gaussian.clone());
        let cut = match mixed.dims()[0] == self.size {
            true => mixed,
            false => mixed.narrow(0, 0, self.size),
        };
        cut * self.factor
    }
}

fn tensor(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// A random order of the numbers below `count` (Fisher and Yates).
fn permutation(key: u64, count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    for last in (1..count).rev() {
        let other = random::derive_key(key, last as u64) % (last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use epiphyte_ops::random;
    use serde::Deserialize;

    use super::{Fastfood, permutation, tensor};

    fn device() -> Device {
        Device::default()
    }

    fn values(tensor: Tensor<1>) -> Vec<f32> {
        tensor.try_into_vec_as::<f32>().unwrap()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    }

    /// A projection by the reference code; `tests/make_fastfood.py` wrote it.
    #[derive(Deserialize)]
    struct Golden {
        size: usize,
        signs: Vec<f32>,
        permutation: Vec<u32>,
        gaussian: Vec<f32>,
        theta: Vec<f32>,
        projected: Vec<f32>,
    }

    #[test]
    fn projections_are_those_of_the_reference_code() {
        let text = include_str!("../../tests/golden_fastfood.json");
        let cases: Vec<Golden> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 3);
        for case in cases {
            let read = case.theta.len().min(case.signs.len());
            let signs = case.signs[..read].to_vec();
            let projection = Fastfood::of(
                signs,
                &case.permutation,
                case.gaussian,
                case.size,
                &device(),
            );
            let found = values(projection.project(tensor(case.theta, &device())));
            assert_eq!(found.len(), case.projected.len());
            for (found, expected) in found.iter().zip(&case.projected) {
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn columns_have_length_one_where_nothing_is_cut() {
        let projection = Fastfood::new(3, 20, 64, &device());
        for column in 0..20 {
            let mut unit = vec![0.0; 20];
            unit[column] = 1.0;
            let projected = values(projection.project(tensor(unit, &device())));
            assert!((dot(&projected, &projected) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn the_gradient_is_the_transpose() {
        for (inputs, size) in [(20, 50), (5, 64), (90, 40)] {
            let projection = Fastfood::new(1, inputs, size, &device());
            let theta = random::normal(7, inputs, 1.0);
            let other = random::normal(8, size, 1.0);
            let leaf = tensor(theta.clone(), &device()).autodiff().require_grad();
            let projected = projection.project(leaf.clone());
            let weighted = (projected.clone() * tensor(other.clone(), &device())).sum();
            let gradients = weighted.backward();
            let transposed = values(leaf.grad(&gradients).unwrap());
            let (left, right) = (
                dot(&values(projected.inner()), &other),
                dot(&theta, &transposed),
            );
            assert!((left - right).abs() < 1e-5, "{left} {right}");
        }
    }

    #[test]
    fn an_order_holds_each_number_once_and_follows_from_its_key() {
        let order = permutation(4, 100);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<u32>>());
        assert_eq!(order, permutation(4, 100));
        assert_ne!(order, permutation(5, 100));
    }
}
