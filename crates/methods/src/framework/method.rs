//! What a fine-tuning method is, apart from what it does in a forward pass.

use std::fmt::Debug;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base};
use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::framework::calibration::CalibrationData;
use crate::framework::gradients::Gradients;
use crate::framework::settings::Settings;
use crate::framework::taxonomy::{Claims, Kind};
use crate::{MethodError, Param, ParameterSet};

/// Where training stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// Optimizer steps finished in the run.
    pub step: u64,
    /// Optimizer steps planned for the run.
    pub total: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// Optimizer steps finished in the stage.
    pub stage_step: u64,
    /// Optimizer steps planned for the stage.
    pub stage_total: u64,
}

/// A part of training with its own learning-rate schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its optimizer steps.
    pub steps: u64,
    /// What becomes of the optimizer's state when it begins.
    pub optimizer: OptimizerState,
}

impl Stage {
    /// A stage that begins with a fresh optimizer.
    pub fn fresh(steps: u64) -> Self {
        Self {
            steps,
            optimizer: OptimizerState::Fresh,
        }
    }
}

/// What becomes of the optimizer's state when a stage begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerState {
    /// Moments and step counts start anew.
    Fresh,
    /// They go on.
    Kept,
}

/// What a file holds of the parameters: each trained one and each constant, under each of its keys.
pub(crate) fn stored_parameters(parameters: &ParameterSet) -> impl Iterator<Item = Stored> {
    let copies = parameters.copies();
    let copies = copies.map(|(key, param)| Stored::f32(key, param.shape(), param.to_vec()));
    parameters.stored().map(Stored::of).chain(copies)
}

/// Takes the values of all stored parameters from a file. Of copies under other keys the last that
/// is there counts, as in HF PEFT.
///
/// # Errors
/// If a tensor is missing or has another shape.
pub(crate) fn load_stored(
    parameters: &ParameterSet,
    file: &mut dyn StoredTensors,
) -> Result<(), MethodError> {
    for param in parameters.stored() {
        if let Some(values) = file.take(param.key(), param.shape())? {
            param.set_values(values);
        }
    }
    for (key, param) in parameters.copies() {
        if file.shape(key).is_some()
            && let Some(values) = file.take(key, param.shape())?
        {
            param.set_values(values);
        }
    }
    Ok(())
}

/// A method at work on a base: its hooks in the forward pass ([`Adapter`]) and its life around it.
///
/// Every function except [`Method::merged`] and [`Method::changed`] has a default that fits methods
/// whose parameters are what they store.
pub trait Method: Adapter + Debug {
    /// The stages of a run of `steps` optimizer steps; their steps add up to `steps`.
    fn stages(&self, steps: u64) -> Vec<Stage> {
        vec![Stage::fresh(steps)]
    }

    /// Checks that the settings fit a run of `steps` optimizer steps, before it begins.
    ///
    /// # Errors
    /// [`MethodError::Value`], which names the setting.
    fn check_steps(&self, _steps: u64) -> Result<(), MethodError> {
        Ok(())
    }

    /// Called before the first step of each stage, also of the first. May run the training data,
    /// set masks, and rewind parameters: `head` are those of the task's head.
    ///
    /// # Errors
    /// If the data does not suffice, or running it fails.
    fn begin_stage(
        &mut self,
        _stage: usize,
        _head: &ParameterSet,
        _data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        Ok(())
    }

    /// Called before the forward passes of a step.
    fn before_step(&mut self, _info: StepInfo) {}

    /// Added to the loss of every step.
    fn penalty(&self) -> Option<Tensor<1>> {
        None
    }

    /// If given, each micro-batch runs forward twice, as two views of the step, and the divergence
    /// between the two predictions, times this, is added to the loss of the first.
    fn consistency_weight(&self) -> Option<f64> {
        None
    }

    /// Called when the gradients of a step are complete, before they are clipped and used.
    fn after_backward(&mut self, _gradients: &mut Gradients, _info: StepInfo) {}

    /// Whether [`Method::after_step`] reads the gradients, which then stay in memory until it
    /// returns.
    fn reads_gradients_after_step(&self) -> bool {
        false
    }

    /// Called when the optimizer has moved the parameters, with the gradients as it saw them, if
    /// the method [reads them](Method::reads_gradients_after_step).
    fn after_step(&mut self, _gradients: &Gradients, _info: StepInfo) {}

    /// Whether a parameter may get no gradient in a step: one of several experts, a layer that is
    /// frozen for a while.
    fn may_lack_gradient(&self, _param: &Param) -> bool {
        false
    }

    /// What a checkpoint holds of the method beside its parameters, for exact resume.
    fn state(&self) -> Vec<Stored> {
        Vec::new()
    }

    /// Takes back what [`Method::state`] gave.
    ///
    /// # Errors
    /// If something is missing or has another shape.
    fn restore_state(&mut self, _state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        Ok(())
    }

    /// What the adapter's file holds. By default every trained parameter and constant.
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        stored_parameters(parameters).collect()
    }

    /// Takes back what [`Method::stored`] gave.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        load_stored(parameters, file)
    }

    /// The settings that the adapter's file gets, where training decides some of them.
    fn saved_settings(&self, settings: Map<String, Value>) -> Map<String, Value> {
        settings
    }

    /// What the base's tensor `name` becomes when the method is folded into it, in the order in
    /// which Hugging Face stores it; none if it stays.
    ///
    /// # Errors
    /// [`MethodError::NotMergeable`] for methods that are more than a change of weights.
    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError>;

    /// The number of values of the deployed base that differ from the frozen one; what a method
    /// adds to the base counts as changed too.
    fn changed(&self) -> usize;

    /// The number of values that gradients move. By default those of every trained parameter.
    fn trainable(&self, parameters: &ParameterSet) -> usize {
        parameters.count()
    }
}

/// One tensor of an adapter's file or of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The key, without the prefix that all keys share.
    pub key: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The values, row-major.
    pub values: StoredValues,
}

/// The values of a stored tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum StoredValues {
    /// 32-bit floating point.
    F32(Vec<f32>),
    /// Integers: indices.
    Integers(IntegerType, Vec<i64>),
}

/// How integers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegerType {
    /// 8 bits without sign.
    U8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
}

impl IntegerType {
    /// The type's name in a file, and the little-endian bytes of these values.
    pub fn bytes(self, values: &[i64]) -> (Dtype, Vec<u8>) {
        let values = values.iter().copied();
        match self {
            Self::U8 => (Dtype::U8, values.map(|value| value as u8).collect()),
            Self::I16 => {
                let bytes = values.flat_map(|value| (value as i16).to_le_bytes());
                (Dtype::I16, bytes.collect())
            }
            Self::I32 => {
                let bytes = values.flat_map(|value| (value as i32).to_le_bytes());
                (Dtype::I32, bytes.collect())
            }
            Self::I64 => (Dtype::I64, values.flat_map(i64::to_le_bytes).collect()),
        }
    }
}

impl StoredValues {
    /// The number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Integers(_, values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Stored {
    /// A parameter as it is now.
    pub fn of(param: &Param) -> Self {
        Self::f32(param.key(), param.shape(), param.to_vec())
    }

    /// Floating-point values under a key.
    pub fn f32(key: impl Into<String>, shape: &[usize], values: Vec<f32>) -> Self {
        Self {
            key: key.into(),
            shape: shape.to_vec(),
            values: StoredValues::F32(values),
        }
    }

    /// A vector of indices under a key.
    pub fn i32(key: impl Into<String>, values: Vec<i32>) -> Self {
        let shape = [values.len()];
        let values = values.into_iter().map(i64::from).collect();
        Self::integers(key, &shape, IntegerType::I32, values)
    }

    /// Integers under a key.
    pub fn integers(
        key: impl Into<String>,
        shape: &[usize],
        kind: IntegerType,
        values: Vec<i64>,
    ) -> Self {
        Self {
            key: key.into(),
            shape: shape.to_vec(),
            values: StoredValues::Integers(kind, values),
        }
    }
}

/// Tensors of a file, taken by key.
///
/// What is missing or has another shape is noted and reported with everything else that is wrong
/// with the file; [`StoredTensors::take`] then returns nothing.
pub trait StoredTensors {
    /// The shape of a tensor.
    fn shape(&self, key: &str) -> Option<Vec<usize>>;

    /// Takes a floating-point tensor of this shape, row-major.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError>;

    /// Takes indices, of any shape, row-major.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn take_indices(&mut self, key: &str) -> Result<Option<Vec<i32>>, MethodError>;

    /// Takes a tensor of integers of any type, of this shape, row-major.
    ///
    /// # Errors
    /// If the file cannot be read.
    fn take_integers(
        &mut self,
        key: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<i64>>, MethodError>;
}

/// How keys of an adapter's file begin (HF PEFT's rules).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStyle {
    /// `base_model.model.<path>.<parameter>`, the task's head likewise; a tensor of the whole
    /// model, whose key has no path, under `base_model.<parameter>`. A key that begins with
    /// `base_model.` stays as it is.
    WeightSpace,
    /// Bare names; the task's head under `base_model.<path>`.
    PromptLearning,
}

impl KeyStyle {
    /// What stands before one of the method's own keys.
    pub fn prefix(self, key: &str) -> &'static str {
        match self {
            Self::WeightSpace if key.starts_with("base_model.") => "",
            Self::WeightSpace if key.contains('.') => "base_model.model.",
            Self::WeightSpace => "base_model.",
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
    /// The key of `adapter_config.json`, with whether it asks for something, that tells the method
    /// apart from others of its `peft_type`; it is among [`MethodConfig::peft_defaults`].
    const PEFT_VARIANT: Option<(&'static str, bool)> = None;
    /// Whether HF PEFT has the method and reads its files.
    const IN_PEFT: bool;
    /// One line on what it does.
    const SUMMARY: &'static str;
    /// Where it is defined.
    const PAPER: &'static str;
    /// How its keys begin.
    const KEYS: KeyStyle;
    /// The peak learning rate of a run that sets none.
    const LEARNING_RATE: f64 = 1e-3;
    /// Whether it can be folded into the base.
    const MERGES: bool;

    /// What papers and surveys say about its costs.
    const CLAIMS: Option<Claims> = None;

    /// Its kind: the folder of its file.
    fn kind() -> Kind {
        Kind::of_path(std::any::type_name::<Self>())
    }

    /// Whether a model with the untrained method computes the same as the base.
    fn starts_as_identity(&self) -> bool;

    /// Settings to test the method with, for models of hidden size 16 with 32 positions: objects of
    /// keys and values. Together they should reach every part of the method.
    fn examples() -> Vec<Value> {
        vec![Value::Object(Map::new())]
    }

    /// Texts among its settings whose tokens it needs before it is built, each with whether the
    /// tokenizer's special tokens belong to it; `labels` are the names of the task's classes.
    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        Vec::new()
    }

    /// Takes the tokens of each of [`MethodConfig::texts`].
    fn set_tokens(&mut self, _tokens: Vec<Vec<u32>>) {}

    /// Checks rules that only the start of training follows, such as initial values that can be
    /// made and names that match something. Finished adapters may break them.
    ///
    /// # Errors
    /// An error that names the setting.
    fn check_start(&self, _base: &Base) -> Result<(), MethodError> {
        Ok(())
    }

    /// Settings that have a meaning in training only: of a finished adapter, a value out of range
    /// is passed over.
    const TRAINING_ONLY: &'static [&'static str] = &[];

    /// Settings that HF PEFT does not have, of a method that it has: the file says them only where
    /// they are not the default.
    const OWN: &'static [&'static str] = &[];

    /// Keys of HF PEFT's files that have a meaning in training only and are no settings here.
    const IGNORED: &'static [&'static str] = &[];

    /// Whether HF PEFT's configuration lists modules that are saved whole.
    const LISTS_MODULES: bool = true;

    /// Keys of HF PEFT's files that cannot be followed if they ask for something, each with why not
    /// and what to do instead.
    const REFUSED: &'static [(&'static str, &'static str)] = &[];

    /// Whether a run of it is trained by itself: the order in which its gradients are added depends
    /// on the rest of the graph, so that beside other runs it would have other bytes than alone.
    const TRAINS_ALONE: bool = false;

    /// Whether it leaves biases alone, so that those that HF PEFT trained with it (`bias`) can
    /// stand in for the base's.
    const SPARES_BIASES: bool = false;

    /// The `config` of AdapterHub's file for these settings; none where AdapterHub does not have
    /// them.
    ///
    /// # Errors
    /// If a setting is out of range.
    fn to_adapterhub(&self, _base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        Ok(None)
    }

    /// The settings that a `config` of AdapterHub's file means over this base; none if it is that
    /// of another method.
    fn of_adapterhub(_config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        None
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

    /// The configuration for loading a saved adapter. Differs from `self` only if training uses
    /// tensors that are not saved (prefix MLP).
    fn stored(&self) -> Self {
        self.clone()
    }

    /// Keys that HF PEFT writes and that follow from the base, such as `token_dim`.
    const COMPUTED: &'static [&'static str] = &[];

    /// The values of [`MethodConfig::COMPUTED`].
    fn computed(&self, _base: &Base) -> Map<String, Value> {
        Map::new()
    }

    /// What a setting is that a file of HF PEFT leaves out, where that is not our default.
    fn file_defaults() -> Map<String, Value> {
        Map::new()
    }

    /// Keys that HF PEFT writes besides those of the configuration, with the values that say "off".
    fn peft_defaults() -> Map<String, Value> {
        Map::new()
    }
}
