//! Optimizers: what moves parameters along their gradients.
//!
//! A file each: AdamW (`adamw`), the same with its state in 8 bits (`adamw_8bit`), Adafactor
//! (`adafactor`), GaLore (`galore`) and LISA (`lisa`). GaLore and LISA save memory where
//! weights themselves are trained (`--method full`), as in the papers; they are optimizers here and
//! not methods, because what they store is what the method stores.

mod adafactor;
mod adamw;
mod adamw_8bit;
mod galore;
mod lisa;

use std::collections::BTreeMap;
use std::fmt::{self, Debug, Display};
use std::str::FromStr;

use burn::tensor::{Tensor, TensorData};
use epiphyte_methods::framework::gradients::Gradients;
use epiphyte_methods::{AdapterModule, Param};
use epiphyte_models::Base;
use serde::{Deserialize, Serialize};

pub use self::adafactor::Adafactor;
pub use self::adamw::AdamW;
pub use self::adamw_8bit::AdamW8Bit;
pub use self::galore::{Galore, GaloreSettings};
pub use self::lisa::Lisa;
use crate::TrainError;
use crate::training::config::RunConfig;

/// Moves parameters along their gradients and keeps the state that this needs.
pub trait Optimizer: Debug + Send {
    /// Called with the gradients of optimizer step `step`, from 0, before they are clipped: takes
    /// those that it will not use.
    fn select(&self, _gradients: &mut Gradients, _params: &[&Param], _step: u64) {}

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

/// The state of an optimizer, as a checkpoint holds it. A key is a kind, `/`, and the parameter's
/// key.
#[derive(Clone, Debug, Default)]
pub struct OptimizerState {
    /// Flat tensors without autodiff.
    pub tensors: BTreeMap<String, Tensor<1>>,
    /// Codes of values in 8 bits.
    pub codes: BTreeMap<String, Vec<u8>>,
    /// The number of steps that each parameter has made, by its key alone.
    pub steps: BTreeMap<String, u64>,
}

impl OptimizerState {
    /// The bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        let tensors = self
            .tensors
            .values()
            .map(|tensor| tensor.dims()[0] * size_of::<f32>());
        let codes = self.codes.values().map(Vec::len);
        tensors.chain(codes).sum::<usize>() as u64
    }

    /// Puts values under the kind and the parameter's key.
    fn put(&mut self, kind: &str, param: &Param, values: &[f32]) {
        let device = param.flat().inner().device();
        let tensor = Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &device);
        self.tensors
            .insert(format!("{kind}/{}", param.key()), tensor);
    }

    /// Takes what [`OptimizerState::put`] put.
    fn take(&mut self, kind: &str, param: &Param) -> Option<Vec<f32>> {
        let tensor = self.tensors.remove(&format!("{kind}/{}", param.key()))?;
        Some(to_vec(tensor))
    }
}

/// The optimizers there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerKind {
    /// AdamW.
    #[default]
    #[serde(rename = "adamw")]
    AdamW,
    /// AdamW with its state in 8 bits.
    #[serde(rename = "adamw-8bit")]
    AdamW8Bit,
    /// Adafactor.
    Adafactor,
    /// AdamW in a subspace of each matrix's gradient.
    Galore,
    /// AdamW on a few layers at a time.
    Lisa,
}

impl OptimizerKind {
    const NAMES: [(&str, Self); 5] = [
        ("adamw", Self::AdamW),
        ("adamw-8bit", Self::AdamW8Bit),
        ("adafactor", Self::Adafactor),
        ("galore", Self::Galore),
        ("lisa", Self::Lisa),
    ];

    /// The optimizer of a run that trains `module`.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if there is nothing that GaLore or LISA could act on, or a value is
    /// out of range.
    pub(crate) fn build(
        self,
        run: &RunConfig,
        module: &AdapterModule,
        base: &Base,
    ) -> Result<Box<dyn Optimizer>, TrainError> {
        let adamw = AdamW::new(epiphyte_ops::AdamW {
            beta1: run.adam_beta1,
            beta2: run.adam_beta2,
            epsilon: run.adam_epsilon,
            weight_decay: run.weight_decay,
        });
        Ok(match self {
            Self::AdamW => Box::new(adamw),
            Self::AdamW8Bit => Box::new(AdamW8Bit::new(adamw)),
            Self::Adafactor => Box::new(Adafactor::new(run.weight_decay)),
            Self::Galore => Box::new(Galore::of_run(run, adamw, module, base)?),
            Self::Lisa => Box::new(Lisa::of_run(run, adamw, module, base)?),
        })
    }
}

impl Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = Self::NAMES.iter();
        let name = names.find(|(_, kind)| kind == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for OptimizerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let mut names = Self::NAMES.iter();
        let found = names.find(|(known, _)| *known == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let known: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!(
                "unknown optimizer `{name}`: use one of {}",
                known.join(", ")
            )
        })
    }
}

/// A parameter's weight decay: that of its group, or the run's for tensors with two or more
/// dimensions, as transformers' `Trainer` leaves out biases and norms.
fn weight_decay(param: &Param, of_run: f64) -> f64 {
    let of_group = param.group().weight_decay;
    of_group.unwrap_or(match param.shape().len() {
        0 | 1 => 0.0,
        _ => of_run,
    })
}

/// The values of a flat tensor without autodiff.
fn to_vec(tensor: Tensor<1>) -> Vec<f32> {
    let values = tensor.try_into_vec_as::<f32>();
    values.expect("gradients and parameters are f32 and on a device that can be read")
}

/// Replaces a parameter's values by what `change` makes of them.
fn update_values(param: &Param, change: impl FnOnce(&mut [f32])) {
    param.update(|value| {
        let device = value.device();
        let mut values = to_vec(value);
        change(&mut values);
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &device)
    });
}
