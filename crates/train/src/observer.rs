//! What a run and an evaluation report while they work. A library draws nothing: the caller passes
//! an [`Observer`], and the binary's is a progress bar.
//!
//! ```
//! use epiphyte_train::observer::{Observer, TrainingProgress};
//!
//! /// Collects the loss of every step.
//! #[derive(Default)]
//! struct Losses(Vec<f64>);
//!
//! impl Observer for Losses {
//!     fn step(&mut self, progress: &TrainingProgress) {
//!         self.0.push(progress.loss);
//!     }
//! }
//! ```

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

use crate::display;

/// The time between two log lines of [`LogLines`].
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Receives the events of training and evaluation. Each method does nothing by default.
///
/// The methods are called from the thread that trains, between its computations, so they should
/// return quickly.
pub trait Observer {
    /// An optimizer step is done. Called after every step, before its evaluation and checkpoint.
    /// Where several runs are trained together, once after each of them has done its step.
    fn step(&mut self, progress: &TrainingProgress) {
        let _ = progress;
    }

    /// A batch of an evaluation or prediction is done. Called after every batch, also for the
    /// evaluations inside a training run.
    fn evaluation_progress(&mut self, progress: &EvaluationProgress) {
        let _ = progress;
    }

    /// A batch of the data that a method runs before a stage of training is done: the entries that
    /// FISH Mask trains are chosen by it.
    fn calibration_progress(&mut self, progress: &EvaluationProgress) {
        let _ = progress;
    }

    /// Something worth telling the user, such as the scores of an evaluation: one line of text.
    fn message(&mut self, text: &str) {
        let _ = text;
    }
}

/// How far training is. Displayed: loss, speed and the time left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingProgress {
    /// Optimizer steps done, those before a resume included; summed over runs trained together.
    pub step: u64,
    /// Optimizer steps of the whole training.
    pub total: u64,
    /// Optimizer steps that were done before this process began.
    pub first: u64,
    /// Mean training loss since the last log record, averaged over the runs; NaN if unknown.
    pub loss: f64,
    /// Training tokens a second. Time spent calibrating, evaluating and saving does not count.
    pub tokens_per_second: f64,
    /// Time since training began in this process, evaluating and saving included.
    pub elapsed: Duration,
}

impl Display for TrainingProgress {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let left = time_left(
            self.elapsed,
            self.step.saturating_sub(self.first),
            self.total.saturating_sub(self.step),
        );
        if !self.loss.is_nan() {
            write!(formatter, "loss {:.4}  ", self.loss)?;
        }
        write!(formatter, "{}  {left} left", speed(self.tokens_per_second))
    }
}

/// How far one evaluation, prediction or calibration is. Displayed: speed and the time left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationProgress {
    /// Examples done.
    pub examples: u64,
    /// Examples of the data set.
    pub total: u64,
    /// Tokens of the examples that are done.
    pub tokens: u64,
    /// Time since the evaluation began.
    pub elapsed: Duration,
}

impl EvaluationProgress {
    /// Whether every example is done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.examples >= self.total
    }
}

impl Display for EvaluationProgress {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let left = time_left(
            self.elapsed,
            self.examples,
            self.total.saturating_sub(self.examples),
        );
        let per_second = self.tokens as f64 / self.elapsed.as_secs_f64().max(1e-9);
        write!(formatter, "{}  {left} left", speed(per_second))
    }
}

/// Ignores every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Writes events to `tracing` at level `info`: messages at once, progress every ten seconds and at
/// the end.
#[derive(Clone, Debug, Default)]
pub struct LogLines {
    /// When progress was last written.
    last: Option<Instant>,
    /// Whether training has begun: then an evaluation is a part of it.
    training: bool,
}

impl LogLines {
    /// Whether ten seconds have passed since the last line.
    fn is_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|last| now - last >= LINE_INTERVAL)
    }

    fn step_at(&mut self, now: Instant, progress: &TrainingProgress) {
        self.training = true;
        if self.is_due(now) || progress.step == progress.total {
            self.last = Some(now);
            tracing::info!("step {} of {}: {progress}", progress.step, progress.total);
        }
    }

    fn evaluation_progress_at(&mut self, now: Instant, progress: &EvaluationProgress) {
        // The scores of an evaluation inside training are a message, which says that it is
        // complete.
        if self.is_due(now) || (progress.is_complete() && !self.training) {
            let what = if self.training { "evaluating, " } else { "" };
            self.examples(now, what, progress);
        }
    }

    fn calibration_progress_at(&mut self, now: Instant, progress: &EvaluationProgress) {
        if self.is_due(now) || progress.is_complete() {
            self.examples(now, "calibrating, ", progress);
        }
    }

    fn examples(&mut self, now: Instant, what: &str, progress: &EvaluationProgress) {
        self.last = Some(now);
        let EvaluationProgress {
            examples, total, ..
        } = progress;
        tracing::info!("{what}example {examples} of {total}: {progress}");
    }
}

impl Observer for LogLines {
    fn step(&mut self, progress: &TrainingProgress) {
        self.step_at(Instant::now(), progress);
    }

    fn evaluation_progress(&mut self, progress: &EvaluationProgress) {
        self.evaluation_progress_at(Instant::now(), progress);
    }

    fn calibration_progress(&mut self, progress: &EvaluationProgress) {
        self.calibration_progress_at(Instant::now(), progress);
    }

    fn message(&mut self, text: &str) {
        tracing::info!("{text}");
    }
}

/// Counts the examples and tokens of one evaluation or calibration and reports them to an observer.
pub(crate) struct EvaluationMeter<'a> {
    observer: &'a mut dyn Observer,
    report: fn(&mut dyn Observer, &EvaluationProgress),
    progress: EvaluationProgress,
    started: Instant,
}

impl<'a> EvaluationMeter<'a> {
    /// Begins an evaluation of `total` examples.
    pub(crate) fn new(observer: &'a mut dyn Observer, total: usize) -> Self {
        Self {
            observer,
            report: |observer, progress| observer.evaluation_progress(progress),
            progress: EvaluationProgress {
                examples: 0,
                total: total as u64,
                tokens: 0,
                elapsed: Duration::ZERO,
            },
            started: Instant::now(),
        }
    }

    /// Begins a calibration with `total` examples.
    pub(crate) fn calibration(observer: &'a mut dyn Observer, total: usize) -> Self {
        Self {
            report: |observer, progress| observer.calibration_progress(progress),
            ..Self::new(observer, total)
        }
    }

    /// Reports that a batch of `examples` with `tokens` tokens is done.
    pub(crate) fn advance(&mut self, examples: usize, tokens: usize) {
        self.progress.examples += examples as u64;
        self.progress.tokens += tokens as u64;
        self.progress.elapsed = self.started.elapsed();
        (self.report)(self.observer, &self.progress);
    }
}

/// The time that `remaining` items take at the pace of the `done` ones; `?` before the first.
fn time_left(elapsed: Duration, done: u64, remaining: u64) -> String {
    let each = elapsed.as_secs_f64() / done as f64;
    let left = Duration::try_from_secs_f64((each * remaining as f64).round());
    left.map_or_else(|_| "?".to_owned(), display::duration)
}

/// For example `5,100 tokens/s`.
fn speed(tokens_per_second: f64) -> String {
    format!(
        "{} tokens/s",
        display::count(tokens_per_second.round() as u64)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing::field::{Field, Visit};
    use tracing::{Event, Metadata, Subscriber, span};

    use super::*;

    /// Keeps the messages that are logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl Visit for Log {
        fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }

    impl Subscriber for Log {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    const TRAINING: TrainingProgress = TrainingProgress {
        step: 100,
        total: 125,
        first: 100,
        loss: 0.5,
        tokens_per_second: 5100.4,
        elapsed: Duration::ZERO,
    };

    fn evaluation(examples: u64, second: u64) -> EvaluationProgress {
        EvaluationProgress {
            examples,
            total: 70,
            tokens: 50 * examples,
            elapsed: Duration::from_secs(second),
        }
    }

    #[test]
    fn a_log_line_comes_every_ten_seconds_and_at_the_end() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut lines = LogLines::default();
            let start = Instant::now();
            for second in 1..=25 {
                let elapsed = Duration::from_secs(second);
                let progress = TrainingProgress {
                    step: 100 + second,
                    elapsed,
                    ..TRAINING
                };
                lines.step_at(start + elapsed, &progress);
            }
            lines.message("saved checkpoint-125");
        });
        assert_eq!(
            *log.0.lock().unwrap(),
            [
                "step 101 of 125: loss 0.5000  5,100 tokens/s  00:00:24 left",
                "step 111 of 125: loss 0.5000  5,100 tokens/s  00:00:14 left",
                "step 121 of 125: loss 0.5000  5,100 tokens/s  00:00:04 left",
                "step 125 of 125: loss 0.5000  5,100 tokens/s  00:00:00 left",
                "saved checkpoint-125",
            ]
        );
    }

    #[test]
    fn an_evaluation_counts_examples_and_tokens() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut lines = LogLines::default();
            let start = Instant::now();
            for (second, examples) in [(5, 32), (9, 64), (10, 70)] {
                let now = start + Duration::from_secs(second);
                lines.evaluation_progress_at(now, &evaluation(examples, second));
            }
        });
        assert_eq!(
            *log.0.lock().unwrap(),
            [
                "example 32 of 70: 320 tokens/s  00:00:06 left",
                "example 70 of 70: 350 tokens/s  00:00:00 left",
            ]
        );
    }

    #[test]
    fn an_evaluation_inside_training_is_logged_only_if_it_takes_long() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut lines = LogLines::default();
            let start = Instant::now();
            lines.step_at(start, &TRAINING);
            for (second, examples) in [(1, 10), (10, 32), (19, 70)] {
                let now = start + Duration::from_secs(second);
                lines.evaluation_progress_at(now, &evaluation(examples, second));
            }
        });
        assert_eq!(
            *log.0.lock().unwrap(),
            [
                "step 100 of 125: loss 0.5000  5,100 tokens/s  ? left",
                "evaluating, example 32 of 70: 160 tokens/s  00:00:12 left",
            ]
        );
    }

    #[test]
    fn a_calibration_is_logged_as_such() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut lines = LogLines::default();
            let start = Instant::now();
            for (second, examples) in [(1, 10), (2, 32), (3, 70)] {
                let now = start + Duration::from_secs(second);
                lines.calibration_progress_at(now, &evaluation(examples, second));
            }
        });
        assert_eq!(
            *log.0.lock().unwrap(),
            [
                "calibrating, example 10 of 70: 500 tokens/s  00:00:06 left",
                "calibrating, example 70 of 70: 1,167 tokens/s  00:00:00 left",
            ]
        );
    }

    #[test]
    fn unknown_figures_are_shown_as_such() {
        assert_eq!(time_left(Duration::from_secs(3), 0, 10), "?");
        assert_eq!(time_left(Duration::ZERO, 0, 10), "?");
        assert_eq!(speed(f64::NAN), "0 tokens/s");
        let progress = TrainingProgress {
            loss: f64::NAN,
            tokens_per_second: f64::NAN,
            ..TRAINING
        };
        assert_eq!(progress.to_string(), "0 tokens/s  ? left");
    }

    proptest! {
        #[test]
        fn after_half_of_the_steps_the_time_left_is_the_time_spent(
            seconds in 0_u64..1_000_000,
            steps in 1_u64..10_000,
        ) {
            let elapsed = Duration::from_secs(seconds);
            prop_assert_eq!(time_left(elapsed, steps, steps), display::duration(elapsed));
        }
    }
}
