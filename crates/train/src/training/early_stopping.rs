//! The best evaluation so far, and when to stop for want of a better one.
//!
//! The rule is that of transformers' `Trainer` with `EarlyStoppingCallback`: any strict improvement
//! makes an evaluation the best one (its checkpoint is kept), but only an improvement by more than
//! `min_delta` over the best one before it resets the patience. An evaluation that is NaN or
//! infinite never improves.
//!
//! ```
//! use epiphyte_train::training::early_stopping::{EarlyStopping, Selection};
//! use epiphyte_train::scoring::metrics::Metrics;
//!
//! let selection = Selection { patience: Some(2), ..Selection::by("accuracy") };
//! let mut stopping = EarlyStopping::new(selection);
//! let mut stops = Vec::new();
//! for (step, accuracy) in [(100, 0.7), (200, 0.8), (300, 0.75), (400, 0.79)] {
//!     let metrics = Metrics::from_iter([("accuracy", accuracy)]);
//!     stops.push(stopping.observe(step, &metrics)?.stop);
//! }
//! assert_eq!(stops, [false, false, false, true]);
//! assert_eq!(stopping.best().map(|best| best.step), Some(200));
//! # Ok::<(), epiphyte_train::error::MetricError>(())
//! ```

use serde::{Deserialize, Serialize};

use crate::error::MetricError;
use crate::scoring::metrics::Metrics;

/// By what the best evaluation is chosen and how long training goes on without a better one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Selection {
    /// The metric that decides (`metric_for_best_model` of transformers).
    pub metric: String,
    /// Whether more of it is better: true for accuracy, false for a loss.
    pub greater_is_better: bool,
    /// Stop after this many evaluations without improvement; `None` never stops.
    pub patience: Option<u32>,
    /// An improvement must exceed this to reset the patience (`early_stopping_threshold`); not
    /// negative.
    pub min_delta: f64,
}

impl Selection {
    /// Selects by `metric`, in the direction that the metric has, and never stops early.
    #[must_use]
    pub fn by(metric: &str) -> Self {
        Self {
            metric: metric.to_owned(),
            greater_is_better: !matches!(metric, "loss" | "perplexity" | "mse" | "mae"),
            patience: None,
            min_delta: 0.0,
        }
    }
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its value of the deciding metric, finite.
    pub value: f64,
    /// The optimizer step after which it was measured.
    pub step: u64,
}

/// What an evaluation means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It is the best so far: keep its checkpoint.
    pub is_best: bool,
    /// The patience is used up: stop training.
    pub stop: bool,
}

/// Follows the evaluations of a run; saved with its checkpoints, so that a resumed run decides
/// alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EarlyStopping {
    selection: Selection,
    best: Option<Best>,
    evaluations_without_improvement: u32,
}

impl EarlyStopping {
    /// Starts with no evaluation seen.
    #[must_use]
    pub fn new(selection: Selection) -> Self {
        Self {
            selection,
            best: None,
            evaluations_without_improvement: 0,
        }
    }

    /// The rule that is followed.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// The best evaluation so far; `None` before the first one with a finite value.
    #[must_use]
    pub fn best(&self) -> Option<Best> {
        self.best
    }

    /// Takes note of the evaluation after optimizer step `step`.
    ///
    /// # Errors
    /// [`MetricError::NotMeasured`] if the deciding metric is not among `metrics`.
    pub fn observe(&mut self, step: u64, metrics: &Metrics) -> Result<Verdict, MetricError> {
        let value =
            metrics
                .get(&self.selection.metric)
                .ok_or_else(|| MetricError::NotMeasured {
                    name: self.selection.metric.clone(),
                    available: metrics
                        .iter()
                        .map(|(name, _)| name)
                        .collect::<Vec<_>>()
                        .join(", "),
                })?;
        let gain = match self.best {
            _ if !value.is_finite() => f64::NEG_INFINITY,
            None => f64::INFINITY,
            Some(best) if self.selection.greater_is_better => value - best.value,
            Some(best) => best.value - value,
        };
        let is_best = gain > 0.0;
        if is_best {
            self.best = Some(Best { value, step });
        }
        if is_best && gain > self.selection.min_delta {
            self.evaluations_without_improvement = 0;
        } else {
            self.evaluations_without_improvement += 1;
        }
        let stop = self
            .selection
            .patience
            .is_some_and(|patience| self.evaluations_without_improvement >= patience);
        Ok(Verdict { is_best, stop })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn observe(stopping: &mut EarlyStopping, step: u64, value: f64) -> Verdict {
        stopping
            .observe(step, &Metrics::from_iter([("score", value)]))
            .unwrap()
    }

    #[derive(Deserialize)]
    struct Golden {
        early_stopping: Vec<GoldenRun>,
    }

    #[derive(Deserialize)]
    struct GoldenRun {
        patience: u32,
        min_delta: f64,
        greater_is_better: bool,
        values: Vec<f64>,
        best_steps: Vec<u64>,
        stops: Vec<bool>,
    }

    #[test]
    fn decides_as_transformers_does() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden_metrics.json")).unwrap();
        for run in golden.early_stopping {
            let mut stopping = EarlyStopping::new(Selection {
                metric: "score".to_owned(),
                greater_is_better: run.greater_is_better,
                patience: Some(run.patience),
                min_delta: run.min_delta,
            });
            let mut best_steps = Vec::new();
            let mut stops = Vec::new();
            for (step, &value) in run.values.iter().enumerate() {
                stops.push(observe(&mut stopping, step as u64, value).stop);
                best_steps.push(stopping.best().unwrap().step);
            }
            assert_eq!(
                (best_steps, stops),
                (run.best_steps, run.stops),
                "{:?}",
                run.values
            );
        }
    }

    #[test]
    fn nan_and_infinity_are_never_the_best() {
        let mut stopping = EarlyStopping::new(Selection {
            patience: Some(3),
            ..Selection::by("score")
        });
        for (step, value) in [f64::NAN, f64::INFINITY].into_iter().enumerate() {
            let verdict = observe(&mut stopping, step as u64, value);
            assert_eq!(
                verdict,
                Verdict {
                    is_best: false,
                    stop: false
                }
            );
        }
        assert_eq!(stopping.best(), None);
        assert!(observe(&mut stopping, 2, f64::NAN).stop);
    }

    #[test]
    fn a_metric_that_is_not_measured_is_named() {
        let mut stopping = EarlyStopping::new(Selection::by("f1"));
        let metrics = Metrics::from_iter([("accuracy", 0.5), ("loss", 0.7)]);
        let message = stopping.observe(1, &metrics).unwrap_err().to_string();
        assert!(
            message.contains("`f1`") && message.contains("accuracy, loss"),
            "{message}"
        );
    }

    #[test]
    fn losses_are_better_when_smaller() {
        for (metric, greater_is_better) in [
            ("loss", false),
            ("perplexity", false),
            ("mse", false),
            ("mae", false),
            ("accuracy", true),
        ] {
            assert_eq!(
                Selection::by(metric).greater_is_better,
                greater_is_better,
                "{metric}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_state_saved_and_read_back_decides_alike(
            values in prop::collection::vec(-1e3_f64..1e3, 1..30),
            saved_after in 0_usize..30,
            patience in 1_u32..5,
            min_delta in 0.0_f64..10.0,
            greater_is_better: bool,
        ) {
            let selection =
                Selection { patience: Some(patience), min_delta, greater_is_better, ..Selection::by("score") };
            let mut whole = EarlyStopping::new(selection);
            let mut resumed = whole.clone();
            for (step, &value) in values.iter().enumerate() {
                if step == saved_after {
                    let text = serde_json::to_string(&resumed).unwrap();
                    resumed = serde_json::from_str(&text).unwrap();
                }
                prop_assert_eq!(
                    observe(&mut whole, step as u64, value),
                    observe(&mut resumed, step as u64, value)
                );
                prop_assert_eq!(&whole, &resumed);
            }
            let best = whole.best().unwrap();
            let extreme = values.iter().copied().reduce(if greater_is_better { f64::max } else { f64::min });
            prop_assert_eq!(Some(best.value), extreme);
            prop_assert_eq!(values.iter().position(|&value| value == best.value), Some(best.step as usize));
        }
    }
}
