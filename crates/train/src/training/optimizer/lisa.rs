//! LISA (Pan et al. 2024, "LISA: layerwise importance sampling for memory-efficient large language
//! model fine-tuning", arXiv 2403.17919, algorithm 1): AdamW that moves the parameters of a few
//! layers at a time, drawn anew every few steps. What is in no layer, such as embeddings and heads,
//! moves at every step.
//!
//! Layers are drawn from the run's seed and the number of the interval, so that a resumed run draws
//! the same. Gradients of the other layers are dropped before gradients are clipped.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_methods::framework::gradients::Gradients;
use epiphyte_methods::{AdapterModule, Param, ParamId};
use epiphyte_models::Base;
use epiphyte_ops::random::{derive_key, uniform};

use super::{AdamW, Optimizer, OptimizerState};
use crate::TrainError;
use crate::training::config::RunConfig;

/// AdamW on a few layers at a time.
#[derive(Debug)]
pub struct Lisa {
    whole: AdamW,
    /// The layer of each parameter that is in one.
    layers: BTreeMap<ParamId, usize>,
    /// The layers of which anything is trained.
    trained: Vec<usize>,
    activated: usize,
    interval: u64,
    seed: u64,
}

impl Lisa {
    pub(super) fn of_run(
        run: &RunConfig,
        whole: AdamW,
        module: &AdapterModule,
        base: &Base,
    ) -> Result<Self, TrainError> {
        let of_param = |param: &Param| Some((param.id(), base.layer_of(param.key())?));
        let params = module.parameters().trained();
        let layers: BTreeMap<ParamId, usize> = params.filter_map(of_param).collect();
        let mut trained: Vec<usize> = layers.values().copied().collect();
        trained.sort_unstable();
        trained.dedup();
        if trained.len() <= run.lisa_activated_layers {
            return Err(TrainError::Setting {
                key: "lisa_activated_layers".to_owned(),
                problem: format!(
                    "`{}` trains tensors of {} of the base's layers, so that {} at a time leave \
                     none out: use --method full, fewer layers, or another optimizer",
                    run.method,
                    trained.len(),
                    run.lisa_activated_layers
                ),
            });
        }
        Ok(Self {
            whole,
            layers,
            trained,
            activated: run.lisa_activated_layers,
            interval: run.lisa_interval_steps,
            seed: run.seed,
        })
    }

    /// The layers that move in optimizer step `step`, from 0.
    fn active(&self, step: u64) -> Vec<usize> {
        let key = derive_key(self.seed ^ 0x6c69_7361, step / self.interval);
        let draws = uniform(key, self.trained.len(), 0.0, 1.0);
        let mut drawn: Vec<(f32, usize)> = draws.into_iter().zip(self.trained.clone()).collect();
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
        drawn.truncate(self.activated);
        drawn.into_iter().map(|(_, layer)| layer).collect()
    }
}

impl Optimizer for Lisa {
    fn select(&self, gradients: &mut Gradients, params: &[&Param], step: u64) {
        let active = self.active(step);
        for param in params {
            let layer = self.layers.get(&param.id());
            if layer.is_some_and(|layer| !active.contains(layer)) {
                gradients.take(param);
            }
        }
    }

    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        self.whole.step(param, gradient, learning_rate);
    }

    fn reset(&mut self) {
        self.whole.reset();
    }

    fn state(&self, params: &[&Param]) -> OptimizerState {
        self.whole.state(params)
    }

    fn restore(&mut self, params: &[&Param], state: OptimizerState) {
        self.whole.restore(params, state);
    }
}
