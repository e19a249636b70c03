//! What a checkpoint holds beside the adapter: everything that the next step depends on.
//!
//! `training_state.safetensors` has each trained tensor with AdamW's two moments; `trainer_state.json`
//! has where the run stands. Order and dropout follow from the seed and the position, so nothing else
//! is needed to go on exactly.

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::FileError;
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::{Param, Tuned};
use epiphyte_models::{Checkpoint, ModelError};
use epiphyte_ops::Moments;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::RunConfig;
use crate::early_stopping::EarlyStopping;
use crate::trainer::Recent;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// The run, so that another is not continued by mistake.
    pub(crate) run: RunConfig,
    /// Optimiser steps done.
    pub(crate) step: u64,
    /// Seconds spent.
    pub(crate) elapsed: f64,
    /// The best evaluation and the patience left.
    pub(crate) early_stopping: EarlyStopping,
    /// Whether the run is over.
    pub(crate) finished: bool,
    /// The steps since the last log line.
    pub(crate) recent: Recent,
}

const STATE_FILE: &str = "trainer_state.json";
const TENSORS_FILE: &str = "training_state.safetensors";

impl RunState {
    /// Writes the state of a run into `dir`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub(crate) fn save(
        &self,
        dir: &Path,
        tuned: &Tuned,
        moments: &[Moments],
    ) -> Result<(), TrainError> {
        let tensors = tuned.trained().zip(moments).flat_map(|(param, moments)| {
            let kinds = [
                ("value", param.flat().inner()),
                ("first", moments.first.clone()),
                ("second", moments.second.clone()),
            ];
            kinds.map(|(kind, tensor)| {
                let values = move || {
                    let values = tensor.try_into_vec_as::<f32>();
                    values.expect("a run's state is f32 on a device that can be read")
                };
                (
                    format!("{kind}/{}", param.key()),
                    vec![param.count()],
                    values,
                )
            })
        });
        write_f32(&dir.join(TENSORS_FILE), tensors).map_err(ModelError::from)?;
        let text = serde_json::to_vec_pretty(self).expect("a run's state is plain values");
        Ok(epiphyte_io::write(&dir.join(STATE_FILE), &text)?)
    }

    /// Reads the state of a run from `dir` into its parameters.
    ///
    /// # Errors
    /// If a file is missing or malformed, or belongs to another method.
    pub(crate) fn load(
        dir: &Path,
        tuned: &Tuned,
        device: &Device,
    ) -> Result<(Self, Vec<Moments>), TrainError> {
        let path = dir.join(STATE_FILE);
        let text = fs::read(&path).map_err(FileError::at("read", &path))?;
        let state: Self = serde_json::from_slice(&text).map_err(|error| TrainError::State {
            path,
            reason: error.to_string(),
        })?;
        let tensors = Checkpoint::open_file(&dir.join(TENSORS_FILE))?;
        let read = |kind: &str, param: &Param| -> Result<Tensor<1>, TrainError> {
            let values = tensors.to_f32(&format!("{kind}/{}", param.key()), &[param.count()])?;
            let values = TensorData::new(values, [param.count()]);
            Ok(Tensor::from_data(values, &device.clone().inner()))
        };
        let mut moments = Vec::new();
        for param in tuned.trained() {
            param.set(read("value", param)?);
            moments.push(Moments {
                first: read("first", param)?,
                second: read("second", param)?,
            });
        }
        Ok((state, moments))
    }
}
