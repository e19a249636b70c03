//! What an adapter costs when a model is used: time and memory of a forward pass with it, and
//! without.

use std::time::Instant;

use burn::tensor::Device;
use epiphyte_data::Batches;
use epiphyte_models::{Adapter, AdapterBatch, Identity, Model};
use epiphyte_ops::allocator;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::scoring::model_input::{ModelInput, micro_batch_tokens};

/// Passes of which the shortest counts.
const PASSES: usize = 5;

/// Forward passes over one micro-batch, with an adapter that is not merged and without one. A
/// merged model computes what the base computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inference {
    /// Tokens of the micro-batch.
    pub tokens: usize,
    /// Of the base alone.
    pub base: Pass,
    /// Of the base with the adapter.
    pub adapter: Pass,
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
    /// Runs the first examples of a data set with and without the adapter, in turn.
    ///
    /// # Errors
    /// If a batch cannot be made.
    pub(crate) fn measure(
        model: &Model,
        adapter: &dyn Adapter,
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
        // The first passes read matrices that training did not need.
        let (_, _) = (forward(&Identity), forward(adapter));
        let mut best = (forward(&Identity), forward(adapter));
        for _ in 1..PASSES {
            best.0 = shorter(best.0, forward(&Identity));
            best.1 = shorter(best.1, forward(adapter));
        }
        Ok(Some(Self {
            tokens: part.tokens(),
            base: best.0,
            adapter: best.1,
        }))
    }

    /// How many times longer a forward pass with the adapter takes.
    pub fn slowdown(&self) -> f64 {
        self.adapter.seconds / self.base.seconds
    }
}
