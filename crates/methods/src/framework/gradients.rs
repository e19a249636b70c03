//! The gradients of an optimizer step, by parameter.

use std::collections::BTreeMap;

use burn::tensor::{Gradients as Tape, Tensor};
use epiphyte_ops::{accumulate, pull_back, scale};

use crate::framework::parameters::{Param, ParamId, ParameterSet};

/// The gradients of one or several backward passes, accumulated by parameter; flat, without
/// autodiff.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    by_param: BTreeMap<ParamId, Tensor<1>>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The gradient of a parameter, if it got one.
    pub fn get(&self, param: &Param) -> Option<&Tensor<1>> {
        self.by_param.get(&param.id())
    }

    /// Takes the gradient of a parameter out.
    pub fn take(&mut self, param: &Param) -> Option<Tensor<1>> {
        self.by_param.remove(&param.id())
    }

    /// Adds to the gradient of a parameter.
    pub fn add(&mut self, param: &Param, gradient: Tensor<1>) {
        let sum = match self.by_param.remove(&param.id()) {
            Some(sum) => accumulate(sum, gradient),
            None => gradient,
        };
        self.by_param.insert(param.id(), sum);
    }

    /// Replaces the gradient of a parameter, if it got one.
    pub fn update(&mut self, param: &Param, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        if let Some(gradient) = self.take(param) {
            self.by_param.insert(param.id(), change(gradient));
        }
    }

    /// Multiplies the gradient of a parameter.
    pub fn scale(&mut self, param: &Param, factor: f64) {
        self.update(param, |gradient| scale(gradient, factor));
    }

    /// Takes what a backward pass found for these parameters and adds it.
    pub fn collect<'p>(&mut self, params: impl Iterator<Item = &'p Param>, tape: &mut Tape) {
        for param in params {
            if let Some(gradient) = param.flat().grad_remove(tape) {
                self.add(param, gradient);
            }
        }
    }

    /// Carries the gradients of derived parameters back to the parameters that they are computed
    /// from.
    ///
    /// Call once, after the last backward pass of a step.
    pub fn pull_back_derived(&mut self, parameters: &ParameterSet) {
        for (param, graph) in parameters.take_derived() {
            let Some(gradient) = self.take(param) else {
                continue;
            };
            if !(graph.is_autodiff() && graph.is_tracked()) {
                continue;
            }
            let mut tape = pull_back(graph, gradient).backward();
            // A derived parameter may be computed from another that was declared before it.
            let sources = parameters.trained().chain(parameters.derived_params());
            self.collect(sources, &mut tape);
        }
    }
}
