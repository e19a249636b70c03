//! What a checkpoint holds: everything that the next step depends on.
//!
//! `training_state.safetensors` has each trained tensor with the optimizer's state for it, and the
//! method's own state; `trainer_state.json` has where the run stands. Order and dropout follow from
//! the seed and the position, so nothing else is needed to go on exactly.
//!
//! `trainer_state.json` holds the SHA-256 of both files, so that a checkpoint that was damaged or
//! edited is not taken for one that a run saved.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::safetensors_file::{Values, write_values};
use epiphyte_io::{FileError, sha256, sha256_of_file};
use epiphyte_methods::{AdapterModule, MethodError, StoredTensors, StoredValues};
use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::{Checkpoint, ModelError};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::training::checkpoints::{STATE_FILE, TENSORS_FILE};
use crate::training::early_stopping::EarlyStopping;
use crate::training::identity::Identity;
use crate::training::optimizer::{Optimizer, OptimizerState};

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// The run, so that another is not continued by mistake.
    pub(crate) identity: Identity,
    /// Optimizer steps in all.
    pub(crate) total: u64,
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
    /// SHA-256 of the tensors' file, in hexadecimal.
    tensors_sha256: String,
    /// SHA-256 of the state with this field empty, in hexadecimal.
    state_sha256: String,
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

/// What the keys of the trained tensors begin with.
const VALUE: &str = "value/";
/// What the keys of the method's own state begin with.
const METHOD: &str = "method/";

impl RunState {
    /// A run before its first step.
    pub(crate) fn new(identity: Identity, total: u64, early_stopping: EarlyStopping) -> Self {
        Self {
            identity,
            total,
            step: 0,
            stage: None,
            stage_step: 0,
            optimizer_steps: BTreeMap::new(),
            elapsed: 0.0,
            early_stopping,
            finished: false,
            recent: RecentSteps::default(),
            tensors_sha256: String::new(),
            state_sha256: String::new(),
        }
    }

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
        let codes = optimizer.codes.into_iter().map(|(key, codes)| {
            let shape = vec![codes.len()];
            (key, shape, Values::Bytes(Dtype::U8, codes.into()))
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
                StoredValues::Integers(kind, values) => {
                    let (dtype, bytes) = kind.bytes(&values);
                    Values::Bytes(dtype, bytes.into())
                }
            };
            (format!("{METHOD}{}", stored.key), stored.shape, values)
        });
        let tensors_path = dir.join(TENSORS_FILE);
        write_values(&tensors_path, tensors.chain(codes).chain(method))
            .map_err(ModelError::from)?;
        let mut state = Self {
            optimizer_steps: optimizer.steps,
            tensors_sha256: sha256_of_file(&tensors_path)?,
            ..self.clone()
        };
        state.state_sha256 = state.sha256();
        Ok(epiphyte_io::write(&dir.join(STATE_FILE), &state.to_json())?)
    }

    /// Reads where the run stands that saved the checkpoint of `step` in `dir`.
    ///
    /// # Errors
    /// [`TrainError::State`] if the file is damaged or is that of another step.
    pub(crate) fn read(dir: &Path, step: u64) -> Result<Self, TrainError> {
        let path = dir.join(STATE_FILE);
        let text = epiphyte_io::read_regular(&path).map_err(FileError::at("read", &path))?;
        let damaged = |reason: String| TrainError::State {
            path: path.clone(),
            reason,
        };
        let state: Self =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.state_sha256 != state.sha256() {
            let reason = "its contents do not have the SHA-256 that it states";
            return Err(damaged(reason.to_owned()));
        }
        if state.step != step {
            return Err(damaged(format!(
                "it is the state after step {}",
                state.step
            )));
        }
        Ok(state)
    }

    /// Takes the parameters and the optimizer's state from the checkpoint in `dir` that this state
    /// was read from.
    ///
    /// # Errors
    /// [`TrainError::State`] if the tensors are not those that were saved with this state, or a
    /// [`ModelError`] if they do not fit.
    pub(crate) fn restore(
        &self,
        dir: &Path,
        module: &mut AdapterModule,
        optimizer: &mut dyn Optimizer,
        device: &Device,
    ) -> Result<(), TrainError> {
        let path = dir.join(TENSORS_FILE);
        if sha256_of_file(&path)? != self.tensors_sha256 {
            let reason = format!("it does not have the SHA-256 that `{STATE_FILE}` states");
            return Err(TrainError::State { path, reason });
        }
        let file = Checkpoint::open_file(&path)?;
        let read = |key: &str, count: usize| -> Result<Tensor<1>, TrainError> {
            let values = TensorData::new(file.to_f32(key, &[count])?, [count]);
            Ok(Tensor::from_data(values, &device.clone().inner()))
        };
        let params: Vec<_> = module.trained().cloned().collect();
        let mut of_optimizer = OptimizerState {
            steps: self.optimizer_steps.clone(),
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
                let Some(view) = file.tensor(name) else {
                    continue;
                };
                if view.dtype == Dtype::U8 {
                    of_optimizer
                        .codes
                        .insert(name.to_owned(), view.bytes().into_owned());
                } else {
                    let tensor = read(name, view.shape.iter().product())?;
                    of_optimizer.tensors.insert(name.to_owned(), tensor);
                }
            }
        }
        optimizer.restore(&params.iter().collect::<Vec<_>>(), of_optimizer);
        module.restore_state(&mut MethodState(&file))?;
        Ok(())
    }

    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("a run's state is plain values")
    }

    /// The SHA-256 of the state, that of its own hash aside.
    fn sha256(&self) -> String {
        let unsigned = Self {
            state_sha256: String::new(),
            ..self.clone()
        };
        sha256(&unsigned.to_json())
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

    fn take_integers(
        &mut self,
        key: &str,
        shape: &[usize],
    ) -> Result<Option<Vec<i64>>, MethodError> {
        let view = self.0.tensor(&format!("{METHOD}{key}"));
        let view = view.filter(|view| view.shape == shape);
        Ok(view.as_ref().and_then(TensorView::to_integers))
    }
}
