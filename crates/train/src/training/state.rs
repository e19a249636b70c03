//! What a checkpoint holds: everything that the next step depends on.
//!
//! `training_state.safetensors` has each trained tensor with the optimizer's state for it, and the
//! method's own state; `trainer_state.json` has where the run stands. Order and dropout follow from
//! the seed and the position, so nothing else is needed to go on exactly.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::FileError;
use epiphyte_io::safetensors_file::{Values, write_values};
use epiphyte_methods::{AdapterModule, MethodError, StoredTensors, StoredValues};
use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::{Checkpoint, ModelError};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::training::config::RunConfig;
use crate::training::early_stopping::EarlyStopping;
use crate::training::optimizer::{Optimizer, OptimizerState};

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// The run, so that another is not continued by mistake.
    pub(crate) run: RunConfig,
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// The stage that has begun, from 0; none before the first.
    pub(crate) stage: Option<usize>,
    /// Optimizer steps done in the stage.
    pub(crate) stage_step: u64,
    /// Optimizer steps that each parameter has made.
    pub(crate) optimizer_steps: BTreeMap<String, u64>,
    /// Seconds spent.
    pub(crate) elapsed: f64,
    /// The best evaluation and the patience left.
    pub(crate) early_stopping: EarlyStopping,
    /// Whether the run is over.
    pub(crate) finished: bool,
    /// The steps since the last log record.
    pub(crate) recent: RecentSteps,
}

/// The steps since the last log record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RecentSteps {
    /// The sum of their losses.
    pub(crate) loss: f64,
    /// Their number.
    pub(crate) steps: usize,
    /// The last gradient norm, before clipping.
    pub(crate) norm: f64,
    /// The last learning rate.
    pub(crate) learning_rate: f64,
}

impl RecentSteps {
    /// Their mean loss; NaN without steps.
    pub(crate) fn mean_loss(&self) -> f64 {
        self.loss / self.steps as f64
    }
}

const STATE_FILE: &str = "trainer_state.json";
const TENSORS_FILE: &str = "training_state.safetensors";

/// What the keys of the trained tensors begin with.
const VALUE: &str = "value/";
/// What the keys of the method's own state begin with.
const METHOD: &str = "method/";

impl RunState {
    /// Writes the state of a run into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn save(
        &self,
        dir: &Path,
        module: &AdapterModule,
        optimizer: &dyn Optimizer,
    ) -> Result<(), TrainError> {
        let params: Vec<_> = module.trained().collect();
        let optimizer = optimizer.state(&params);
        let values = params.iter().map(|param| {
            let tensor = param.flat().inner();
            (format!("{VALUE}{}", param.key()), tensor)
        });
        let tensors = values.chain(optimizer.tensors).map(|(key, tensor)| {
            let shape = tensor.dims().to_vec();
            let values = move || {
                let values = tensor.try_into_vec_as::<f32>();
                values.expect("a run's state is f32 on a device that can be read")
            };
            (key, shape, Values::F32(Box::new(values)))
        });
        let method = module.state().into_iter().map(|stored| {
            let values = match stored.values {
                StoredValues::F32(values) => Values::F32(Box::new(|| values)),
                StoredValues::I32(values) => Values::I32(values),
            };
            (format!("{METHOD}{}", stored.key), stored.shape, values)
        });
        write_values(&dir.join(TENSORS_FILE), tensors.chain(method)).map_err(ModelError::from)?;
        let state = Self {
            optimizer_steps: optimizer.steps,
            ..self.clone()
        };
        let text = serde_json::to_vec_pretty(&state).expect("a run's state is plain values");
        Ok(epiphyte_io::write(&dir.join(STATE_FILE), &text)?)
    }

    /// Reads the state of a run from `dir` into its parameters and its optimizer.
    ///
    /// # Errors
    /// If a file is missing or malformed, or belongs to another method.
    pub(crate) fn load(
        dir: &Path,
        module: &mut AdapterModule,
        optimizer: &mut dyn Optimizer,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let path = dir.join(STATE_FILE);
        let text = fs::read(&path).map_err(FileError::at("read", &path))?;
        let state: Self = serde_json::from_slice(&text).map_err(|error| TrainError::State {
            path,
            reason: error.to_string(),
        })?;
        let file = Checkpoint::open_file(&dir.join(TENSORS_FILE))?;
        let read = |key: &str, count: usize| -> Result<Tensor<1>, TrainError> {
            let values = TensorData::new(file.to_f32(key, &[count])?, [count]);
            Ok(Tensor::from_data(values, &device.clone().inner()))
        };
        let params: Vec<_> = module.trained().cloned().collect();
        let mut of_optimizer = OptimizerState {
            steps: state.optimizer_steps.clone(),
            ..OptimizerState::default()
        };
        for param in &params {
            param.set(read(&format!("{VALUE}{}", param.key()), param.count())?);
            let others = file.names().filter(|name| {
                let of_optimizer = !name.starts_with(VALUE) && !name.starts_with(METHOD);
                let kind_and_key = name.split_once('/');
                of_optimizer && kind_and_key.is_some_and(|(_, key)| key == param.key())
            });
            for name in others {
                let tensor = read(name, param.count())?;
                of_optimizer.tensors.insert(name.to_owned(), tensor);
            }
        }
        optimizer.restore(&params.iter().collect::<Vec<_>>(), of_optimizer);
        module.restore_state(&mut MethodState(&file))?;
        Ok(state)
    }
}

/// The method's own state in a checkpoint.
struct MethodState<'c>(&'c Checkpoint);

impl StoredTensors for MethodState<'_> {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let view = self.0.tensor(&format!("{METHOD}{key}"))?;
        Some(view.shape.to_vec())
    }

    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        Ok(Some(self.0.to_f32(&format!("{METHOD}{key}"), shape)?))
    }

    fn take_indices(&mut self, key: &str) -> Result<Option<Vec<i32>>, MethodError> {
        let view = self.0.tensor(&format!("{METHOD}{key}"));
        Ok(view.as_ref().and_then(TensorView::to_i32))
    }
}
