//! Scores and predictions of a model over a data set.

use burn::tensor::Tensor;
use epiphyte_data::{Batch, Batches, Targets};
use epiphyte_models::{Adapter, Tokens, Transformer};
use epiphyte_ops::Sequences;

use crate::TrainError;
use crate::metrics::{self, Metrics};
use crate::observer::{EvaluationMeter, Observer, Silent};
use crate::task::TaskKind;

/// The model's tokens of a batch.
pub(crate) fn tokens(batch: &Batch) -> Tokens<'_> {
    Tokens {
        ids: &batch.ids,
        type_ids: &batch.type_ids,
        sequences: Sequences::new(batch.boundaries.clone()),
    }
}

/// The model's targets of a batch; none if they are unknown.
pub(crate) fn targets(batch: &Batch) -> Option<epiphyte_models::Targets<'_>> {
    match &batch.targets {
        Targets::Classes(classes) => Some(epiphyte_models::Targets::Classes(classes)),
        Targets::Numbers(numbers) => Some(epiphyte_models::Targets::Values(numbers)),
        Targets::Tokens(labels) => Some(epiphyte_models::Targets::Tokens(labels)),
        // No model has a decoder yet.
        Targets::Sequences(_) | Targets::Absent => None,
    }
}

/// Logits of every sequence of a data set, in the order of the file: `[sequences][outputs]`. `observer`
/// hears of every batch.
///
/// # Errors
/// If a logit is not finite.
pub fn predict(
    model: &dyn Transformer,
    adapter: &dyn Adapter,
    batches: &Batches,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    let mut logits = Vec::with_capacity(batches.examples().len());
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        let values = to_vec(model.logits(&tokens(&batch), adapter));
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

/// The names of the scores that [`evaluate`] measures; `f1_weighted` only for more than two classes.
pub fn measured(task: TaskKind) -> &'static [&'static str] {
    match task {
        TaskKind::SequenceClassification => &[
            "accuracy",
            "f1",
            "f1_weighted",
            "loss",
            "matthews",
            "precision",
            "recall",
        ],
        TaskKind::Regression => &["loss", "mae", "mse", "pearson", "spearman"],
        TaskKind::CausalLanguageModelling => &["loss", "perplexity"],
    }
}

/// Scores over a data set with targets: for classification `accuracy`, `f1`, `matthews`, …; for
/// regression `pearson`, `spearman`, `mse`, `mae`; for language models `perplexity`; always `loss`.
///
/// # Errors
/// If there is nothing to score, or a number is not finite.
pub fn evaluate(
    model: &dyn Transformer,
    adapter: &dyn Adapter,
    batches: &Batches,
    task: TaskKind,
) -> Result<Metrics, TrainError> {
    evaluate_watched(model, adapter, batches, task, &mut Silent)
}

/// As [`evaluate`]; `observer` hears of every batch.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_watched(
    model: &dyn Transformer,
    adapter: &dyn Adapter,
    batches: &Batches,
    task: TaskKind,
    observer: &mut dyn Observer,
) -> Result<Metrics, TrainError> {
    if task == TaskKind::CausalLanguageModelling {
        return language_modelling(model, adapter, batches, observer);
    }
    let logits = predict(model, adapter, batches, observer)?;
    let examples = batches.examples();
    if task == TaskKind::Regression {
        let predictions: Vec<f64> = logits.iter().map(|row| f64::from(row[0])).collect();
        let targets: Vec<f64> = examples
            .iter()
            .filter_map(|example| match example.target {
                epiphyte_data::Target::Number(number) => Some(f64::from(number)),
                _ => None,
            })
            .collect();
        let mut metrics = metrics::regression(&predictions, &targets)?;
        metrics.insert("loss", metrics.get("mse").unwrap_or(f64::NAN));
        return Ok(metrics);
    }
    let labels: Vec<usize> = examples
        .iter()
        .filter_map(|example| match example.target {
            epiphyte_data::Target::Class(class) => Some(class),
            _ => None,
        })
        .collect();
    let predictions: Vec<usize> = logits.iter().map(|row| argmax(row)).collect();
    let mut metrics = metrics::classification(&predictions, &labels, logits[0].len())?;
    let losses = logits
        .iter()
        .zip(&labels)
        .map(|(row, &label)| negative_log_likelihood(row, label));
    metrics.insert("loss", losses.sum::<f64>() / labels.len() as f64);
    Ok(metrics)
}

fn language_modelling(
    model: &dyn Transformer,
    adapter: &dyn Adapter,
    batches: &Batches,
    observer: &mut dyn Observer,
) -> Result<Metrics, TrainError> {
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        let loss =
            targets(&batch).and_then(|targets| model.loss(&tokens(&batch), targets, 0.0, adapter));
        if let Some(loss) = loss {
            sum += f64::from(value(loss.mean)) * loss.targets as f64;
            count += loss.targets;
        }
        meter.advance(batch.sequences(), batch.tokens());
    }
    if count == 0 {
        return Err(crate::error::MetricError::Empty.into());
    }
    Ok(metrics::language_modelling(sum / count as f64))
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

fn negative_log_likelihood(row: &[f32], label: usize) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_score_is_named() {
        let named = |task, metrics: Metrics| {
            let mut found: Vec<&str> = metrics.iter().map(|(name, _)| name).collect();
            if !found.contains(&"loss") {
                found.push("loss");
                found.sort_unstable();
            }
            assert_eq!(found, measured(task));
        };
        named(
            TaskKind::SequenceClassification,
            metrics::classification(&[0, 1, 2], &[0, 1, 2], 3).unwrap(),
        );
        named(
            TaskKind::Regression,
            metrics::regression(&[0.0, 1.0], &[0.0, 1.0]).unwrap(),
        );
        named(
            TaskKind::CausalLanguageModelling,
            metrics::language_modelling(1.0),
        );
    }
}
