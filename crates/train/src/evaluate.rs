//! Scores and predictions of a model over a data set.

use burn::tensor::Tensor;
use epiphyte_data::Batches;
use epiphyte_models::{Adapter, Model};

use crate::TrainError;
use crate::metrics::Metrics;
use crate::model_input::{ModelInput, targets};
use crate::observer::{EvaluationMeter, Observer, Silent};
use crate::tasks::TaskKind;

/// Logits of every sequence of a data set, in the order of the file: `[sequences][outputs]`. `observer`
/// hears of every batch.
///
/// # Errors
/// If a logit is not finite.
pub fn predict(
    model: &Model,
    adapter: &dyn Adapter,
    batches: &Batches,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    let mut logits = Vec::with_capacity(batches.examples().len());
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        let input = ModelInput::new(model, &batch);
        let values = to_vec(model.logits(&input.tokens(), adapter));
        let width = values.len() / batch.sequences().max(1);
        for (row, position) in values.chunks(width.max(1)).zip(&batch.positions) {
            if row.iter().any(|value| !value.is_finite()) {
                return Err(TrainError::NonFinite {
                    what: format!("logits of example {}", position + 1),
                    step: 0,
                });
            }
            logits.push(row.to_vec());
        }
        meter.advance(batch.sequences(), batch.tokens());
    }
    Ok(logits)
}

/// Scores over a data set with labels, without an observer; as [`Task::evaluate`](crate::Task::evaluate).
///
/// # Errors
/// As there.
pub fn evaluate(
    model: &Model,
    adapter: &dyn Adapter,
    batches: &Batches,
    task: TaskKind,
) -> Result<Metrics, TrainError> {
    task.evaluate(model, adapter, batches, &mut Silent)
}

/// The mean loss over all target tokens of a data set.
///
/// # Errors
/// If there is no target.
pub(crate) fn mean_token_loss(
    model: &Model,
    adapter: &dyn Adapter,
    batches: &Batches,
    observer: &mut dyn Observer,
) -> Result<f64, TrainError> {
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        let input = ModelInput::new(model, &batch);
        let loss =
            targets(&batch).and_then(|targets| model.loss(&input.tokens(), targets, 0.0, adapter));
        if let Some(loss) = loss {
            sum += f64::from(value(loss.mean)) * loss.targets as f64;
            count += loss.targets;
        }
        meter.advance(batch.sequences(), batch.tokens());
    }
    if count == 0 {
        return Err(crate::error::MetricError::Empty.into());
    }
    Ok(sum / count as f64)
}

/// The class with the largest logit, the first of equals.
pub fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (class, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = class;
        }
    }
    best
}

/// `-log softmax(row)[label]`.
pub(crate) fn negative_log_likelihood(row: &[f32], label: usize) -> f64 {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row
        .iter()
        .map(|&value| f64::from(value - largest).exp())
        .sum();
    sum.ln() - f64::from(row[label] - largest)
}

fn to_vec(tensor: Tensor<2>) -> Vec<f32> {
    tensor
        .inner()
        .try_into_vec_as::<f32>()
        .expect("logits are f32 on a device that can be read")
}

/// The one value of a loss.
pub(crate) fn value(tensor: Tensor<1>) -> f32 {
    tensor.inner().into_scalar()
}
