//! AdamW (Loshchilov and Hutter 2019), as PyTorch defines it.
//!
//! Bias correction counts the steps of each parameter for itself.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_methods::{Param, ParamId};
use epiphyte_ops::Moments;

use super::{Optimizer, OptimizerState, weight_decay};

/// The names under which checkpoints hold the moments.
const MOMENTS: [&str; 2] = ["first", "second"];

/// AdamW.
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

    /// The settings with the parameter's own weight decay.
    pub(super) fn settings_of(&self, param: &Param) -> epiphyte_ops::AdamW {
        epiphyte_ops::AdamW {
            weight_decay: weight_decay(param, self.settings.weight_decay),
            ..self.settings
        }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        let settings = self.settings_of(param);
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
