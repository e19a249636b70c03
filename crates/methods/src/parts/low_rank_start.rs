//! How the two matrices of a low-rank path start, where that is more than random numbers.
//!
//! Starts that are not zero take what they add out of the base, so that nothing changes at first:
//! the layer is `W - s B₀ A₀ + s B A`, and `B₀`, `A₀` are kept apart here instead of changing `W`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_ops::{FrozenMatrix, random};

use crate::framework::parameters::Init;
use crate::parts::svd::{Svd, qr};

/// The pair `A: [r, in]`, `B: [out, r]`.
pub(crate) type Pair = [Tensor<2>; 2];

/// Computes a pair.
type Compute = Box<dyn Fn() -> Pair + Send + Sync>;

/// A pair that is computed once, when it is first needed, or set when training begins.
#[derive(Clone)]
pub(crate) struct Start(Arc<Inner>);

struct Inner {
    pair: OnceLock<Pair>,
    compute: Option<Compute>,
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Start")
    }
}

impl Start {
    /// A pair that `compute` returns.
    pub(crate) fn computed(compute: impl Fn() -> Pair + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            pair: OnceLock::new(),
            compute: Some(Box::new(compute)),
        }))
    }

    /// A pair that the training data decides.
    pub(crate) fn of_data() -> Self {
        Self(Arc::new(Inner {
            pair: OnceLock::new(),
            compute: None,
        }))
    }

    /// The pair; none while the data has not decided it.
    pub(crate) fn pair(&self) -> Option<&Pair> {
        match &self.0.compute {
            Some(compute) => Some(self.0.pair.get_or_init(compute)),
            None => self.0.pair.get(),
        }
    }

    /// Puts what the data decided in place; a second time it stays as it is.
    pub(crate) fn set(&self, pair: Pair) {
        let _ = self.0.pair.set(pair);
    }

    /// The initial values of the pair's `A` or `B`, by index.
    pub(crate) fn init(&self, index: usize) -> Init {
        let start = self.clone();
        Init::Computed(Arc::new(move || match start.pair() {
            Some(pair) => to_vec(pair[index].clone()),
            None => Vec::new(),
        }))
    }
}

/// The values of a matrix, row-major.
pub(crate) fn to_vec(matrix: Tensor<2>) -> Vec<f32> {
    let values = matrix.inner().try_into_vec_as::<f32>();
    values.expect("a base is f32 and on a device that can be read")
}

/// A matrix of normal numbers that follow from the key.
pub(crate) fn normal(key: u64, shape: [usize; 2], device: &Device) -> Tensor<2> {
    let values = random::normal(key, shape[0] * shape[1], 1.0);
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// PiSSA: the largest singular values, half of each in either matrix, divided by the scaling.
pub(crate) fn pissa(svd: &Svd, rank: usize, scaling: f64) -> Pair {
    let share = scaling.sqrt().recip();
    [
        svd.right(0..rank, 0.5) * share,
        svd.left(0..rank, 0.5) * share,
    ]
}

/// A decomposition to `rank` values by subspace iterations from random vectors, as
/// `torch.svd_lowrank` (Halko et al. 2009, algorithm 5.1).
pub(crate) fn randomized_svd(matrix: Tensor<2>, rank: usize, iterations: usize, key: u64) -> Svd {
    let [_, columns] = matrix.dims();
    let random = normal(key, [columns, rank], &matrix.device());
    subspace_svd(matrix, random, iterations)
}

/// The largest singular values of a matrix `[rows, columns]` from iterations on a random subspace,
/// `random: [columns, rank]` (Halko, Martinsson, Tropp 2011, as `torch.svd_lowrank` has it).
pub(crate) fn subspace_svd(matrix: Tensor<2>, random: Tensor<2>, iterations: usize) -> Svd {
    let [mut q, _] = qr(matrix.clone().matmul(random));
    for _ in 0..iterations {
        let [other, _] = qr(matrix.clone().transpose().matmul(q));
        [q, _] = qr(matrix.clone().matmul(other));
    }
    Svd::new(q.clone().transpose().matmul(matrix)).times(&q)
}

/// OLoRA: the first columns of Q and the first rows of R.
pub(crate) fn olora(weight: &FrozenMatrix, rank: usize) -> Pair {
    let [q, r] = qr(weight.to_tensor());
    [r.narrow(0, 0, rank), q.narrow(1, 0, rank)]
}

/// Two matrices with `B A = 0`: `A` lies in the odd rows of an orthogonal matrix, `B` in the even.
pub(crate) fn orthogonal(
    seed: u64,
    path: &str,
    [outputs, inputs]: [usize; 2],
    rank: usize,
) -> Pair {
    let device = Device::flex();
    let key = |name: &str| seed ^ name_id(&format!("{path}.{name}"));
    let [q, _] = qr(normal(key("orthogonal"), [rank, rank], &device));
    let half = rank / 2;
    let rows = q.reshape([half, 2 * rank]);
    let (first, second) = (rows.clone().narrow(1, 0, rank), rows.narrow(1, rank, rank));
    let a = normal(key("orthogonal_a"), [inputs, half], &device).matmul(first);
    let b = normal(key("orthogonal_b"), [outputs, half], &device).matmul(second);
    [a.transpose() / 10.0, b / 10.0]
}

/// LoRA-GA's settings (`lora_ga_config`).
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LoraGaConfig {
    /// Which singular vectors of the gradient go where: `ArB2r`, `A2rBr`, `ArBr` or `random`.
    pub direction: String,
    /// How `B` is scaled: `stable`, `weight_svd`, `gd_scale` or `unit`.
    pub scale: String,
    /// The divisor of `stable`.
    pub stable_gamma: f64,
}

impl Default for LoraGaConfig {
    fn default() -> Self {
        Self {
            direction: "ArB2r".to_owned(),
            scale: "stable".to_owned(),
            stable_gamma: 16.0,
        }
    }
}

impl LoraGaConfig {
    /// The pair for a weight `[out, in]` with this gradient.
    pub(crate) fn pair(
        &self,
        gradient: Tensor<2>,
        weight: &FrozenMatrix,
        rank: usize,
        (scaling, key): (f64, u64),
    ) -> Pair {
        let outputs = weight.shape()[0] as f64;
        let svd = Svd::new(gradient);
        let [of_a, of_b]: [Vec<usize>; 2] = match self.direction.as_str() {
            "ArBr" => [0, 1].map(|odd| (0..rank).map(|at| 2 * at + 1 - odd).collect()),
            "random" => {
                let draws = random::uniform(key, 2 * rank, 0.0, 1.0);
                let mut numbers: Vec<usize> = (0..2 * rank).collect();
                numbers.sort_by(|&a, &b| draws[a].total_cmp(&draws[b]));
                numbers.truncate(rank);
                [numbers.clone(), numbers]
            }
            "A2rBr" => [(rank..2 * rank).collect(), (0..rank).collect()],
            _ => [(0..rank).collect(), (rank..2 * rank).collect()],
        };
        let (a, b) = (svd.right_of(&of_a), svd.left_of(&of_b));
        let divisor = match self.scale.as_str() {
            "stable" => self.stable_gamma.sqrt() / outputs.powf(0.25),
            "weight_svd" => {
                let largest = svd.values[of_b[0]];
                let of_weight = Svd::new(weight.to_tensor()).values[0];
                if largest > 0.0 {
                    largest / of_weight
                } else {
                    1.0
                }
            }
            "gd_scale" => return [a / scaling, b / scaling],
            _ => 1.0,
        };
        [a, b / divisor]
    }
}

/// CorDA's settings (`corda_config`); where intermediate results are kept is not a setting here.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct CordaConfig {
    /// Which singular values the path takes: the largest (`ipm`) or the smallest (`kpm`).
    pub corda_method: String,
}

impl Default for CordaConfig {
    fn default() -> Self {
        Self {
            corda_method: "ipm".to_owned(),
        }
    }
}

impl CordaConfig {
    /// The pair for a weight `[out, in]` whose inputs have this covariance `[in, in]`.
    pub(crate) fn pair(
        &self,
        covariance: &Tensor<2>,
        weight: &FrozenMatrix,
        rank: usize,
        scaling: f64,
    ) -> Pair {
        let [size, _] = covariance.dims();
        let eye = || Tensor::<2>::eye(size, &covariance.device());
        let mean = (covariance.clone() * eye()).sum().into_scalar::<f32>() / size as f32;
        let spectrum = Svd::new(covariance.clone());
        // Damped until the inverse is one: eigenvalues are shifted, eigenvectors stay.
        let mut damp = 0.01;
        let (damped, inverse) = loop {
            let damped = covariance.clone() + eye() * (mean * damp);
            let inverse = spectrum.inverse_shifted(f64::from(mean * damp));
            let error = damped.clone().matmul(inverse.clone()) - eye();
            let error = (error.clone() * error).sum().into_scalar::<f32>().sqrt();
            if error < 0.05 || damp > 1e6 {
                break (damped, inverse);
            }
            damp *= 2.0;
        };
        let svd = Svd::new(weight.to_tensor().matmul(damped));
        let all = svd.values.len();
        let range = match self.corda_method.as_str() {
            "kpm" => all - rank..all,
            _ => 0..rank,
        };
        let share = scaling.sqrt().recip();
        let a = svd.right(range.clone(), 0.5).matmul(inverse) * share;
        [a, svd.left(range, 0.5) * share]
    }
}
