//! GaLore (Zhao et al. 2024, "GaLore: memory-efficient LLM training by gradient low-rank
//! projection", arXiv 2403.03507, algorithm 2), as `galore_torch.GaLoreAdamW` computes it.
//!
//! The gradient `G: [out, in]` of a linear layer's weight is projected onto its first `r`
//! singular vectors, on the smaller side: `R = G Q` with `Q: [in, r]` if `out ≥ in`, else `R = Qᵀ
//! G` with `Q: [out, r]`. The moments are those of `R`; the step of Adam in this subspace is
//! projected back and multiplied by a scale. `Q` is computed anew every few steps, and the
//! moments go on. All other parameters are AdamW's.

use std::collections::{BTreeMap, BTreeSet};

use burn::tensor::{Tensor, TensorData};
use epiphyte_methods::parts::svd::Svd;
use epiphyte_methods::{AdapterModule, Param, ParamId};
use epiphyte_models::Base;

use super::{AdamW, Optimizer, OptimizerState, to_vec};
use crate::TrainError;
use crate::training::config::RunConfig;

/// Kinds in checkpoints: the moments of the projected gradient, and the projection.
const KINDS: [&str; 3] = ["galore_first", "galore_second", "galore_projection"];

/// The settings of GaLore.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaloreSettings {
    /// Dimensions of the subspace.
    pub rank: usize,
    /// Steps between two projections.
    pub update_proj_gap: u64,
    /// What the step is multiplied by.
    pub scale: f64,
}

/// AdamW in a subspace of each matrix's gradient.
#[derive(Debug)]
pub struct Galore {
    whole: AdamW,
    settings: GaloreSettings,
    /// The parameters whose gradients are projected.
    projected: BTreeSet<ParamId>,
    states: BTreeMap<ParamId, State>,
}

/// The state of one parameter.
#[derive(Debug)]
struct State {
    /// `[out, r]` or `[r, in]`.
    first: Tensor<2>,
    second: Tensor<2>,
    /// `[in, r]` or `[out, r]`, with orthonormal columns.
    projection: Tensor<2>,
    steps: u64,
}

impl Galore {
    /// An optimizer without state that projects the gradients of these parameters.
    pub fn new(whole: AdamW, settings: GaloreSettings, projected: BTreeSet<ParamId>) -> Self {
        Self {
            whole,
            settings,
            projected,
            states: BTreeMap::new(),
        }
    }

    /// That of a run: the weights of the base's linear layers that it trains are projected.
    pub(super) fn of_run(
        run: &RunConfig,
        whole: AdamW,
        module: &AdapterModule,
        base: &Base,
    ) -> Result<Self, TrainError> {
        let linears = base.linears().iter();
        let weights: BTreeSet<String> = linears
            .map(|linear| format!("{}.weight", linear.site.path))
            .collect();
        let params = module.parameters().trained();
        let params =
            params.filter(|param| weights.contains(param.key()) && param.shape().len() == 2);
        let projected: BTreeSet<ParamId> = params.map(|param| param.id()).collect();
        if projected.is_empty() {
            return Err(TrainError::Setting {
                key: "optimizer".to_owned(),
                problem: format!(
                    "galore projects the gradients of the base's linear layers, and `{}` trains \
                     none of their weights: use --method full, or another optimizer",
                    run.method
                ),
            });
        }
        let settings = GaloreSettings {
            rank: run.galore_rank,
            update_proj_gap: run.galore_update_proj_gap,
            scale: run.galore_scale,
        };
        Ok(Self::new(whole, settings, projected))
    }
}

/// Whether the columns of a matrix are projected, and not its rows.
fn is_tall(param: &Param) -> bool {
    param.shape()[0] >= param.shape()[1]
}

impl Optimizer for Galore {
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        if !self.projected.contains(&param.id()) {
            return self.whole.step(param, gradient, learning_rate);
        }
        let [rows, columns] = [param.shape()[0], param.shape()[1]];
        let gradient = gradient.reshape([rows, columns]);
        let before = self.states.remove(&param.id());
        let steps = before.as_ref().map_or(0, |state| state.steps);
        let projection = match &before {
            Some(state) if !steps.is_multiple_of(self.settings.update_proj_gap) => {
                state.projection.clone()
            }
            _ => {
                let svd = Svd::new(gradient.clone());
                let rank = self.settings.rank.min(svd.values.len());
                let projection = match is_tall(param) {
                    true => svd.right(0..rank, 0.0).transpose(),
                    false => svd.left(0..rank, 0.0),
                };
                // Laid out as a checkpoint restores it, so that products have the same last bits.
                let (shape, device) = (projection.dims(), projection.device());
                let values = to_vec(projection.flatten(0, 1));
                Tensor::from_data(TensorData::new(values, shape), &device)
            }
        };
        let low = match is_tall(param) {
            true => gradient.matmul(projection.clone()),
            false => projection.clone().transpose().matmul(gradient),
        };
        let settings = self.whole.settings_of(param);
        let (beta1, beta2) = (settings.beta1, settings.beta2);
        let (first, second) = match before {
            Some(state) => (state.first, state.second),
            None => (low.zeros_like(), low.zeros_like()),
        };
        let first = first * beta1 + low.clone() * (1.0 - beta1);
        let second = second * beta2 + low.clone() * low * (1.0 - beta2);
        let steps = steps + 1;
        let power = i32::try_from(steps).unwrap_or(i32::MAX);
        let [of_first, of_second] = [beta1, beta2].map(|beta| 1.0 - beta.powi(power));
        let size = learning_rate * of_second.sqrt() / of_first;
        let direction = first.clone() / (second.clone().sqrt() + settings.epsilon);
        let direction = match is_tall(param) {
            true => direction.matmul(projection.clone().transpose()),
            false => projection.clone().matmul(direction),
        };
        let decay = 1.0 - learning_rate * settings.weight_decay;
        let change = direction.reshape([param.count()]) * (size * self.settings.scale);
        param.update(|value| (value - change) * decay);
        let state = State {
            first,
            second,
            projection,
            steps,
        };
        self.states.insert(param.id(), state);
    }

    fn reset(&mut self) {
        self.whole.reset();
        self.states.clear();
    }

    fn state(&self, params: &[&Param]) -> OptimizerState {
        let mut state = self.whole.state(params);
        for param in params {
            let Some(own) = self.states.get(&param.id()) else {
                continue;
            };
            let tensors = [&own.first, &own.second, &own.projection];
            for (kind, tensor) in KINDS.iter().zip(tensors) {
                state.put(kind, param, &to_vec(tensor.clone().flatten(0, 1)));
            }
            state.steps.insert(param.key().to_owned(), own.steps);
        }
        state
    }

    fn restore(&mut self, params: &[&Param], mut state: OptimizerState) {
        self.states.clear();
        for param in params
            .iter()
            .filter(|param| self.projected.contains(&param.id()))
        {
            let steps = state.steps.remove(param.key());
            let tensors = KINDS.map(|kind| state.take(kind, param));
            let ([Some(first), Some(second), Some(projection)], Some(steps)) = (tensors, steps)
            else {
                continue;
            };
            let device = param.flat().inner().device();
            let [rows, columns] = [param.shape()[0], param.shape()[1]];
            let (long, short) = (rows.max(columns), rows.min(columns));
            let rank = projection.len() / short;
            let matrix = |values: Vec<f32>, shape: [usize; 2]| {
                Tensor::<2>::from_data(TensorData::new(values, shape), &device)
            };
            let shape = if is_tall(param) {
                [long, rank]
            } else {
                [rank, long]
            };
            let own = State {
                first: matrix(first, shape),
                second: matrix(second, shape),
                projection: matrix(projection, [short, rank]),
                steps,
            };
            self.states.insert(param.id(), own);
        }
        self.whole.restore(params, state);
    }
}
