//! What a fine-tuning method is, beside what it does in a forward pass.

use std::fmt::Debug;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base};
use serde_json::{Map, Value};

use crate::settings::Settings;
use crate::{MethodError, ParameterSet};

/// Where training stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Optimiser steps finished.
    pub step: usize,
    /// Optimiser steps planned.
    pub total: usize,
}

/// A method at work on a base: its places in the forward pass ([`Adapter`]) and its life around it.
///
/// Every function but [`Method::merged`] and [`Method::changed`] has a default that fits methods
/// whose parameters are what they store.
pub trait Method: Adapter + Debug {
    /// Added to the loss of every step.
    fn penalty(&self) -> Option<Tensor<1>> {
        None
    }

    /// Before the forward passes of a step.
    fn before_step(&mut self, _moment: Moment) {}

    /// When gradients are complete, before they are clipped and used: one for each parameter, in the order in which
    /// they were declared, the task's head's after the method's.
    fn after_backward(&mut self, _gradients: &mut [Option<Tensor<1>>], _moment: Moment) {}

    /// When the optimiser has moved the parameters.
    fn after_step(&mut self, _moment: Moment) {}

    /// What the adapter's file holds: key and values in shape. By default every parameter.
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        parameters.iter().map(Stored::of).collect()
    }

    /// What the base's tensor `name` becomes when the method is folded into it; none if it stays.
    ///
    /// # Errors
    /// [`MethodError::NotMergeable`] for methods that are more than a change of weights.
    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError>;

    /// How many values of the deployed base differ from the frozen one; what a method adds beside
    /// the base counts as changed too.
    fn changed(&self) -> usize;
}

/// One tensor of an adapter's file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The key, without the prefix that all keys share.
    pub key: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: Vec<f32>,
}

impl Stored {
    /// A parameter as it is now.
    pub fn of(param: &crate::Param) -> Self {
        Self {
            key: param.key().to_owned(),
            shape: param.shape().to_vec(),
            values: param.to_vec(),
        }
    }
}

/// How keys of an adapter's file begin (HF PEFT's rules).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStyle {
    /// `base_model.model.<path>.<parameter>`, the task's head likewise.
    WeightSpace,
    /// Bare names; the task's head under `base_model.<path>`.
    PromptLearning,
}

impl KeyStyle {
    /// What stands before the method's own keys.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::WeightSpace => "base_model.model.",
            Self::PromptLearning => "",
        }
    }

    /// What stands before the keys of the task's head.
    pub fn head_prefix(self) -> &'static str {
        match self {
            Self::WeightSpace => "base_model.model.",
            Self::PromptLearning => "base_model.",
        }
    }
}

/// What a user may set about a method. Field names are HF PEFT's keys where PEFT has the method.
pub trait MethodConfig: Settings {
    /// The name on the command line.
    const NAME: &'static str;
    /// `peft_type` in `adapter_config.json`.
    const PEFT_TYPE: &'static str;
    /// Whether HF PEFT has the method and reads its files.
    const IN_PEFT: bool;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Where it is defined.
    const PAPER: &'static str;
    /// How its keys begin.
    const KEYS: KeyStyle;
    /// Whether it can be folded into the base.
    const MERGES: bool;

    /// Whether a model with the untrained method computes the same as the base.
    fn starts_as_identity(&self) -> bool;

    /// Settings to test the method with, for models of hidden size 16 with 32 positions: objects of
    /// keys and values. Together they should reach every part of the method.
    fn examples() -> Vec<Value> {
        vec![Value::Object(Map::new())]
    }

    /// Declares the trained tensors and returns the method at work on `base`.
    ///
    /// # Errors
    /// If a value is out of range or nothing in the base matches.
    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError>;

    /// How many values it trains on `base`, from the closed formula, the task's head not counted.
    ///
    /// # Errors
    /// As [`MethodConfig::build`].
    fn count(&self, base: &Base) -> Result<usize, MethodError>;

    /// What the file says where the configuration leaves it to the base: resolved targets, widths.
    fn resolved(&self, base: &Base) -> Self;

    /// The configuration under which what the file stores are the parameters; another one only where
    /// training uses tensors that are dropped afterwards.
    fn stored(&self) -> Self {
        self.clone()
    }

    /// Keys that HF PEFT writes and that follow from the base, such as `token_dim`.
    const COMPUTED: &'static [&'static str] = &[];

    /// The values of [`MethodConfig::COMPUTED`].
    fn computed(&self, _base: &Base) -> Map<String, Value> {
        Map::new()
    }

    /// Keys that HF PEFT writes besides those of the configuration, with the values that say "off".
    fn peft_defaults() -> Map<String, Value> {
        Map::new()
    }
}
