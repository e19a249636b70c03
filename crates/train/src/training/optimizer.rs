//! Optimizers: what moves parameters along their gradients.

use std::collections::BTreeMap;
use std::fmt::Debug;

use burn::tensor::Tensor;
use epiphyte_methods::{Param, ParamId};
use epiphyte_ops::Moments;

/// Moves parameters along their gradients and keeps the state that this needs.
pub trait Optimizer: Debug + Send {
    /// Moves one parameter. `learning_rate` is that of the step, with the schedule and the
    /// parameter's [group](epiphyte_methods::ParamGroup) applied.
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64);

    /// Forgets moments and step counts.
    fn reset(&mut self);

    /// What a checkpoint holds, for exact resume.
    fn state(&self, params: &[&Param]) -> OptimizerState;

    /// Takes back what [`Optimizer::state`] gave. What it does not hold begins anew.
    fn restore(&mut self, params: &[&Param], state: OptimizerState);
}

/// The state of an optimizer, as a checkpoint holds it.
#[derive(Clone, Debug, Default)]
pub struct OptimizerState {
    /// Flat tensors without autodiff, by key; a key is a kind, `/`, and the parameter's key.
    pub tensors: BTreeMap<String, Tensor<1>>,
    /// The number of steps that each parameter has made.
    pub steps: BTreeMap<String, u64>,
}

/// AdamW (Loshchilov and Hutter 2019), as PyTorch defines it.
///
/// Weight decay applies to tensors with two or more dimensions, as transformers' `Trainer` leaves
/// out biases and norms, unless a parameter's group says otherwise. Bias correction counts the
/// steps of each parameter for itself.
#[derive(Debug)]
pub struct AdamW {
    settings: epiphyte_ops::AdamW,
    moments: BTreeMap<ParamId, (Moments, usize)>,
}

impl AdamW {
    /// An optimizer without state.
    pub fn new(settings: epiphyte_ops::AdamW) -> Self {
        Self {
            settings,
            moments: BTreeMap::new(),
        }
    }

    fn weight_decay(&self, param: &Param) -> f64 {
        param
            .group()
            .weight_decay
            .unwrap_or(match param.shape().len() {
                0 | 1 => 0.0,
                _ => self.settings.weight_decay,
            })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        let settings = epiphyte_ops::AdamW {
            weight_decay: self.weight_decay(param),
            ..self.settings
        };
        let state = self.moments.remove(&param.id());
        let (moments, steps) = state.unwrap_or_else(|| (Moments::zeros(&param.flat()), 0));
        param.update(|value| {
            let (value, moved) = settings.step(value, gradient, moments, learning_rate, steps + 1);
            self.moments.insert(param.id(), (moved, steps + 1));
            value
        });
    }

    fn reset(&mut self) {
        self.moments.clear();
    }

    fn state(&self, params: &[&Param]) -> OptimizerState {
        let mut state = OptimizerState::default();
        for param in params {
            if let Some((moments, steps)) = self.moments.get(&param.id()) {
                let [first, second] = MOMENTS.map(|name| format!("{name}/{}", param.key()));
                state.tensors.insert(first, moments.first.clone());
                state.tensors.insert(second, moments.second.clone());
                state.steps.insert(param.key().to_owned(), *steps as u64);
            }
        }
        state
    }

    fn restore(&mut self, params: &[&Param], mut state: OptimizerState) {
        self.moments.clear();
        for param in params {
            let keys = MOMENTS.map(|name| format!("{name}/{}", param.key()));
            let [first, second] = keys.map(|key| state.tensors.remove(&key));
            let steps = state.steps.get(param.key());
            if let (Some(first), Some(second), Some(&steps)) = (first, second, steps) {
                let moments = Moments { first, second };
                self.moments.insert(param.id(), (moments, steps as usize));
            }
        }
    }
}

/// The names under which checkpoints hold the moments.
const MOMENTS: [&str; 2] = ["first", "second"];
