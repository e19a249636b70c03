//! Scores and predictions of a model over a data set.

use burn::tensor::Tensor;
use epiphyte_data::Batches;
use epiphyte_methods::AdapterModule;
use epiphyte_models::{Adapter, AdapterBatch, Hidden, Identity, Model};
use epiphyte_ops::Sequences;

use crate::TrainError;
use crate::observer::{EvaluationMeter, Observer};
use crate::scoring::metrics::{self, DetailedScores};
use crate::scoring::model_input::{ModelInput, check_examples, micro_batch_tokens, targets};

/// A model with an adapter, and the data set that it is evaluated on.
#[derive(Clone, Copy)]
pub struct Evaluation<'a> {
    /// The model.
    pub model: &'a Model,
    /// The adapter.
    pub adapter: &'a dyn Adapter,
    /// Other adapters, which vote with it on what [`predict`] says.
    pub voters: &'a [AdapterModule],
    /// The data set.
    pub batches: &'a Batches,
    /// About how many tokens a micro-batch holds; by default as many as in a run that does not say.
    /// Scores do not depend on it, memory does.
    pub micro_batch_tokens: Option<usize>,
}

impl<'a> Evaluation<'a> {
    /// An evaluation in micro-batches of the default size.
    pub fn new(model: &'a Model, adapter: &'a dyn Adapter, batches: &'a Batches) -> Self {
        Self {
            model,
            adapter,
            voters: &[],
            batches,
            micro_batch_tokens: None,
        }
    }

    fn micro_batch_tokens(&self) -> usize {
        let device = self.model.base().word_embedding_table().device();
        micro_batch_tokens(self.micro_batch_tokens, device)
    }

    fn check(&self) -> Result<(), TrainError> {
        check_examples(self.model, self.adapter, self.batches.examples())
    }
}

impl std::fmt::Debug for Evaluation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluation")
            .field("examples", &self.batches.examples().len())
            .field("micro_batch_tokens", &self.micro_batch_tokens)
            .finish_non_exhaustive()
    }
}

/// Logits of every example of a data set, in the order of the file: `[outputs]` of a sequence,
/// `[tokens × outputs]` where the head reads each token, one of each choice. `observer` hears of
/// every batch.
///
/// Where several adapters vote, these are the logarithms of the shares that outputs have of the
/// votes, with the mean of the adapters' probabilities counted as one vote more: what most adapters
/// predict has the largest, and the mean decides between equals (Lester et al. 2021, arXiv
/// 2104.08691, section 7).
///
/// # Errors
/// If an example does not fit the model, or a logit is not finite.
pub fn predict(
    evaluation: &Evaluation<'_>,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let logits = predict_alone(evaluation, observer)?;
    if evaluation.voters.is_empty() {
        return Ok(logits);
    }
    let voters = evaluation.voters.len() as f64 + 1.0;
    let mut shares: Vec<Vec<f64>> = logits.iter().map(|row| vec![0.0; row.len()]).collect();
    let mut vote = |logits: &[Vec<f32>]| {
        for (shares, row) in shares.iter_mut().zip(logits) {
            shares[argmax(row)] += 1.0;
            for (share, probability) in shares.iter_mut().zip(softmax(row)) {
                *share += probability / voters;
            }
        }
    };
    vote(&logits);
    for voter in evaluation.voters {
        let own = Evaluation {
            adapter: voter,
            ..*evaluation
        };
        vote(&predict_alone(&own, observer)?);
    }
    let logit = |share: f64| (share / (voters + 1.0)).ln() as f32;
    let row = |shares: Vec<f64>| shares.into_iter().map(logit).collect();
    Ok(shares.into_iter().map(row).collect())
}

/// As [`predict`], of the evaluation's adapter alone.
fn predict_alone(
    evaluation: &Evaluation<'_>,
    observer: &mut dyn Observer,
) -> Result<Vec<Vec<f32>>, TrainError> {
    let mut logits = Vec::with_capacity(evaluation.batches.examples().len());
    each_row_of_logits(evaluation, observer, &mut |_, row| {
        logits.push(row.to_vec());
    })?;
    Ok(logits)
}

/// As [`predict`], one example after the other: `see` gets the position of each, from 0, and its
/// logits.
///
/// # Errors
/// As [`predict`].
pub(crate) fn each_row_of_logits(
    evaluation: &Evaluation<'_>,
    observer: &mut dyn Observer,
    see: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), TrainError> {
    evaluation.check()?;
    let Evaluation {
        model,
        adapter,
        batches,
        ..
    } = *evaluation;
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        for part in batch.micro_batches(evaluation.micro_batch_tokens()) {
            let input = ModelInput::new(model, &part);
            let values = model.logits(&input.tokens(), adapter);
            let [_, outputs] = values.dims();
            let values = to_vec(values);
            let sequences = part.sequences_per_example();
            let rows: Vec<usize> = match model.reads_tokens() {
                true => part.boundaries.clone(),
                false => (0..=part.boundaries.len() - 1).collect(),
            };
            let ends: Vec<usize> = rows.into_iter().step_by(sequences).collect();
            for (ends, &position) in ends.windows(2).zip(&part.positions) {
                let row = &values[ends[0] * outputs..ends[1] * outputs];
                if row.iter().any(|value| !value.is_finite()) {
                    return Err(TrainError::NotFinite {
                        what: format!("a logit of example {}", position + 1),
                    });
                }
                see(position, row);
            }
        }
        meter.advance(batch.examples(), batch.tokens());
    }
    Ok(())
}

/// The mean loss over all target tokens of a data set, and its perplexity.
///
/// # Errors
/// If an example does not fit the model, or there is no target.
pub(crate) fn token_scores(
    evaluation: &Evaluation<'_>,
    observer: &mut dyn Observer,
) -> Result<DetailedScores, TrainError> {
    let loss = mean_token_loss(evaluation, observer)?;
    Ok(metrics::language_modelling(loss).into())
}

/// The mean loss over all target tokens of a data set; what an adapter adds to the loss that it is
/// trained with does not count.
///
/// Layers run over micro-batches; the loss is computed once for each batch, from the rows that it
/// reads, so that the size of micro-batches does not change how it is rounded.
///
/// # Errors
/// If an example does not fit the model, or there is no target.
fn mean_token_loss(
    evaluation: &Evaluation<'_>,
    observer: &mut dyn Observer,
) -> Result<f64, TrainError> {
    evaluation.check()?;
    let Evaluation {
        model,
        adapter,
        batches,
        ..
    } = *evaluation;
    let mut meter = EvaluationMeter::new(observer, batches.examples().len());
    let (mut sum, mut count) = (0.0, 0);
    for batch in batches.epoch(0).batches_from(0) {
        let batch = batch?;
        let (mut read, mut rows) = (Vec::new(), Vec::new());
        for part in batch.micro_batches(evaluation.micro_batch_tokens()) {
            let input = ModelInput::new(model, &part);
            let tokens = input.tokens();
            let adapters = AdapterBatch::single(adapter, &tokens);
            let hidden = model.embed(&adapters.entries()[0]);
            let own = model.final_rows(&hidden);
            let loss_rows = targets(&part)
                .and_then(|targets| model.loss_rows(targets, &tokens, &own, &Identity));
            if let Some(loss_rows) = loss_rows {
                let selected = Some(loss_rows.rows());
                let hidden = model.run(0..model.layers(), hidden, selected, &adapters);
                let hidden = model.finish(hidden, &adapters);
                read.push(Hidden::new(hidden.states, hidden.rows));
            }
            rows.push(own);
        }
        let input = ModelInput::new(model, &batch);
        let tokens = input.tokens();
        let entry = AdapterBatch::single(adapter, &tokens).entries()[0];
        let rows = Sequences::concat(rows.iter());
        let loss_rows =
            targets(&batch).and_then(|targets| model.loss_rows(targets, &tokens, &rows, &Identity));
        let loss = loss_rows.and_then(|loss_rows| {
            let mean = model.loss_of(Hidden::concat(&read), &loss_rows, 0.0, &entry)?;
            Some((mean, loss_rows.targets()))
        });
        if let Some((mean, targets)) = loss {
            let mean = f64::from(value(mean));
            if !mean.is_finite() {
                return Err(TrainError::NotFinite {
                    what: format!("the loss of examples {}", numbers(&batch.positions)),
                });
            }
            sum += mean * targets as f64;
            count += targets;
        }
        meter.advance(batch.examples(), batch.tokens());
    }
    if count == 0 {
        return Err(crate::error::MetricError::Empty.into());
    }
    Ok(sum / count as f64)
}

/// The numbers of examples, counted from 1.
fn numbers(positions: &[usize]) -> String {
    let numbers: Vec<String> = positions.iter().map(|at| (at + 1).to_string()).collect();
    numbers.join(", ")
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

/// The probability of each class by its logit.
pub fn softmax(row: &[f32]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = row.iter().map(|&value| f64::from(value - largest).exp());
    let powers: Vec<f64> = powers.collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// `-log softmax(row)[label]`.
pub(crate) fn negative_log_likelihood(row: &[f32], label: usize) -> f64 {
    let (largest, sum) = largest_and_sum(row);
    sum.ln() - f64::from(row[label] - largest)
}

/// The largest logit, and `Σ exp(logit - largest)`.
pub(crate) fn largest_and_sum(row: &[f32]) -> (f32, f64) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers = row.iter().map(|&value| f64::from(value - largest).exp());
    (largest, powers.sum())
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
