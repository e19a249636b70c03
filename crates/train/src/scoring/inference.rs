//! What an adapter costs when a model is used: time and memory of a forward pass with it, with it
//! merged into the base, and without.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use epiphyte_data::Batches;
use epiphyte_methods::{AdapterModule, MethodError};
use epiphyte_models::{Adapter, AdapterBatch, Base, Identity, Model, StandIn};
use epiphyte_ops::allocator;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::scoring::model_input::{ModelInput, micro_batch_tokens};

/// Passes of which the shortest counts: at least so many.
const PASSES: usize = 5;

/// More passes are made of short ones, up to this time or this number of them.
const ENOUGH: (Duration, usize) = (Duration::from_millis(200), 50);

/// Forward passes over one micro-batch, with an adapter, with it merged and without one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inference {
    /// Tokens of the micro-batch.
    pub tokens: usize,
    /// Of the base alone.
    pub base: Pass,
    /// Of the base with the adapter.
    pub adapter: Pass,
    /// Of the base with the adapter merged into it, in the base's number format; none where the
    /// method cannot be merged, or the run was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged: Option<Pass>,
}

/// A forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// The shortest time of several, in seconds.
    pub seconds: f64,
    /// The most bytes in use beyond those before; none if the program does not count them.
    pub bytes: Option<u64>,
}

impl Inference {
    /// Runs the first examples of a data set with and without the adapter, in turn; with
    /// `measure_merged`, merged too.
    ///
    /// # Errors
    /// If a batch cannot be made.
    pub(crate) fn measure(
        model: &Model,
        module: &AdapterModule,
        measure_merged: bool,
        batches: &Batches,
        tokens: Option<usize>,
        device: &Device,
    ) -> Result<Option<Self>, TrainError> {
        let epoch = batches.epoch(0);
        let batch = epoch.batch(0)?;
        let parts = batch.micro_batches(micro_batch_tokens(tokens, device));
        let Some(part) = parts.into_iter().next() else {
            return Ok(None);
        };
        let merged = match measure_merged {
            true => Merged::of(module, model.base())?,
            false => None,
        };
        let input = ModelInput::new(model, &part);
        let tokens = input.tokens();
        let forward = |adapter: &dyn Adapter| {
            allocator::mark();
            let (before, started) = (allocator::live_bytes(), Instant::now());
            let adapters = AdapterBatch::single(adapter, &tokens);
            let hidden = model.embed(&adapters.entries()[0]);
            let hidden = model.run(0..model.layers(), hidden, None, &adapters);
            // Devices compute when a result is read.
            let _ = model.finish(hidden, &adapters).states.inner().into_data();
            Pass {
                seconds: started.elapsed().as_secs_f64(),
                bytes: before
                    .zip(allocator::peak_bytes_since_mark())
                    .map(|(before, peak)| peak.saturating_sub(before)),
            }
        };
        let shorter = |one: Pass, other: Pass| match other.seconds < one.seconds {
            true => other,
            false => one,
        };
        let forwards = || {
            let merged = merged.as_ref().map(|merged| forward(merged));
            (forward(&Identity), forward(module), merged)
        };
        // The first passes read matrices that training did not need.
        let _ = forwards();
        let (mut best, started) = (forwards(), Instant::now());
        for done in 1..ENOUGH.1 {
            if done >= PASSES && started.elapsed() > ENOUGH.0 {
                break;
            }
            let (base, adapter, merged) = forwards();
            best.0 = shorter(best.0, base);
            best.1 = shorter(best.1, adapter);
            best.2 = best.2.zip(merged).map(|(one, other)| shorter(one, other));
        }
        Ok(Some(Self {
            tokens: part.tokens(),
            base: best.0,
            adapter: best.1,
            merged: best.2,
        }))
    }

    /// How many times longer a forward pass with the adapter takes.
    pub fn slowdown(&self) -> f64 {
        self.adapter.seconds / self.base.seconds
    }

    /// How many times longer a forward pass with the adapter merged takes, where it can be.
    pub fn merged_slowdown(&self) -> Option<f64> {
        Some(self.merged?.seconds / self.base.seconds)
    }
}

/// A base with an adapter merged into it: what became of its tensors.
struct Merged(BTreeMap<String, StandIn>);

impl Merged {
    /// None if the method cannot be merged.
    fn of(module: &AdapterModule, base: &Base) -> Result<Option<Self>, MethodError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in base.tensors() {
            let values = match module.merged(name, base) {
                Ok(Some(values)) => values.inner(),
                Ok(None) => continue,
                Err(MethodError::NotMergeable { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            let stand_in = match tensor.matrix().zip(tensor.unflatten(values.clone())) {
                Some((matrix, values)) => StandIn::Frozen(matrix.with_values(values)),
                None => StandIn::Tensor(values),
            };
            tensors.insert(name.clone(), stand_in);
        }
        Ok(Some(Self(tensors)))
    }
}

impl Adapter for Merged {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.0.get(name).cloned()
    }
}
