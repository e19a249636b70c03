//! The progress of training and evaluation: a bar on standard error, or log lines.
//!
//! The bar is drawn only on a terminal. Into a file or a pipe the same figures are log lines, every
//! ten seconds; with `--quiet` or `--json` they are shown only where the log level asks for them.

use epiphyte::train::observer::{EvaluationProgress, LogLines, Observer, TrainingProgress};
use indicatif::{ProgressBar, ProgressStyle};

use crate::global::Global;
use crate::output;

/// What a command passes to training and evaluation to show their progress.
pub(crate) enum Progress {
    Bar(Bar),
    Lines(LogLines),
}

impl Progress {
    /// A bar if standard error is a terminal and the flags do not hide it, else log lines.
    pub(crate) fn new(global: &Global) -> Self {
        if global.hides_progress() || !output::is_terminal() {
            Self::Lines(LogLines::default())
        } else {
            Self::Bar(Bar::new())
        }
    }

    /// Leaves the bar on the screen as it is.
    pub(crate) fn finish(self) {
        if let Self::Bar(Bar { bar, .. }) = self {
            bar.abandon();
        }
    }

    fn observer(&mut self) -> &mut dyn Observer {
        match self {
            Self::Bar(bar) => bar,
            Self::Lines(lines) => lines,
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, progress: &TrainingProgress) {
        self.observer().step(progress);
    }

    fn evaluation_progress(&mut self, progress: &EvaluationProgress) {
        self.observer().evaluation_progress(progress);
    }

    fn calibration_progress(&mut self, progress: &EvaluationProgress) {
        self.observer().calibration_progress(progress);
    }

    fn message(&mut self, text: &str) {
        self.observer().message(text);
    }
}

/// A progress bar. It counts optimizer steps during training, and then an evaluation shows only in
/// the text next to it; without training it counts the examples of the evaluation.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// The text of the last training step, if training has begun.
    training: Option<String>,
}

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: ProgressBar::new(0).with_style(style),
            training: None,
        }
    }

    fn show(&self, position: u64, total: u64, text: String) {
        self.bar.set_length(total);
        self.bar.set_position(position);
        self.bar.set_message(text);
    }
}

impl Observer for Bar {
    fn step(&mut self, progress: &TrainingProgress) {
        let text = progress.to_string();
        self.training = Some(text.clone());
        self.show(progress.step, progress.total, text);
    }

    fn evaluation_progress(&mut self, progress: &EvaluationProgress) {
        match &self.training {
            None => self.show(progress.examples, progress.total, progress.to_string()),
            Some(training) if progress.is_complete() => self.bar.set_message(training.clone()),
            Some(_) => self.bar.set_message(format!(
                "evaluating {}/{}  {progress}",
                progress.examples, progress.total
            )),
        }
    }

    fn calibration_progress(&mut self, progress: &EvaluationProgress) {
        self.bar.set_message(format!(
            "calibrating {}/{}  {progress}",
            progress.examples, progress.total
        ));
    }

    fn message(&mut self, text: &str) {
        self.bar.println(output::visible(text));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TRAINING: TrainingProgress = TrainingProgress {
        step: 105,
        total: 125,
        first: 100,
        loss: 0.25,
        tokens_per_second: 80.0,
        elapsed: Duration::from_secs(5),
    };

    fn hidden() -> Bar {
        let bar = Bar::new();
        bar.bar
            .set_draw_target(indicatif::ProgressDrawTarget::hidden());
        bar
    }

    fn evaluation(examples: u64) -> EvaluationProgress {
        EvaluationProgress {
            examples,
            total: 70,
            tokens: 50 * examples,
            elapsed: Duration::from_secs(5),
        }
    }

    #[test]
    fn the_template_is_valid() {
        assert!(ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").is_ok());
    }

    #[test]
    fn training_counts_steps_and_an_evaluation_inside_it_shows_in_the_text() {
        let mut bar = hidden();
        bar.step(&TRAINING);
        let training = "loss 0.2500  80 tokens/s  00:00:20 left";
        assert_eq!((bar.bar.position(), bar.bar.length()), (105, Some(125)));
        assert_eq!(bar.bar.message(), training);
        bar.evaluation_progress(&evaluation(35));
        assert_eq!((bar.bar.position(), bar.bar.length()), (105, Some(125)));
        assert_eq!(
            bar.bar.message(),
            "evaluating 35/70  350 tokens/s  00:00:05 left"
        );
        bar.evaluation_progress(&evaluation(70));
        assert_eq!(bar.bar.message(), training);
    }

    #[test]
    fn an_evaluation_alone_counts_examples() {
        let mut bar = hidden();
        bar.evaluation_progress(&evaluation(35));
        assert_eq!((bar.bar.position(), bar.bar.length()), (35, Some(70)));
        assert_eq!(bar.bar.message(), "350 tokens/s  00:00:05 left");
    }
}
