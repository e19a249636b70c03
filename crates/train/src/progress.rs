//! What a user sees while a run trains: a bar on standard error, or a log line now and then.
//!
//! The bar is drawn only on a terminal. Into a file or a pipe, or with `--quiet`, the same figures go to
//! `tracing` every ten seconds instead, and the binary decides what becomes of them.
//!
//! ```
//! use epiphyte_train::progress::Progress;
//!
//! let mut progress = Progress::new(200, 0, true);
//! progress.update(1, 0.6931, 5100.0);
//! progress.note("saved checkpoint-1");
//! progress.finish();
//! ```

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, HumanCount, ProgressBar, ProgressStyle};

/// The time between two log lines where no bar is drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a run is, its loss, its speed and the time left.
#[derive(Debug)]
pub struct Progress {
    total_steps: u64,
    first_step: u64,
    started: Instant,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Progress {
    /// Begins at `done_steps` of `total_steps` optimiser steps; more than 0 are done when a run is resumed.
    /// Draws a bar if standard error is a terminal and `quiet` is false.
    #[must_use]
    pub fn new(total_steps: u64, done_steps: u64, quiet: bool) -> Self {
        let display = if quiet || !io::stderr().is_terminal() {
            Display::Lines { last: None }
        } else {
            Display::Bar(bar(total_steps, done_steps))
        };
        Self {
            total_steps,
            first_step: done_steps,
            started: Instant::now(),
            display,
        }
    }

    /// Takes note that `step` optimiser steps are done, with the loss and the speed in tokens per second
    /// to show; never more than the total. Cheap enough for every step: drawing and logging are limited to a sensible rate.
    pub fn update(&mut self, step: u64, loss: f64, tokens_per_second: f64) {
        self.update_at(Instant::now(), step, loss, tokens_per_second);
    }

    fn update_at(&mut self, now: Instant, step: u64, loss: f64, tokens_per_second: f64) {
        let left = time_left(
            now - self.started,
            step - self.first_step,
            self.total_steps - step,
        );
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_message(status(loss, tokens_per_second, left));
                bar.set_position(step);
            }
            Display::Lines { last } => {
                let due = last.is_none_or(|last| now - last >= LINE_INTERVAL);
                if due || step == self.total_steps {
                    *last = Some(now);
                    let status = status(loss, tokens_per_second, left);
                    tracing::info!("step {step} of {}: {status}", self.total_steps);
                }
            }
        }
    }

    /// Shows a message to the user without disturbing the bar.
    pub fn note(&self, message: &str) {
        match &self.display {
            Display::Bar(bar) => bar.println(message),
            Display::Lines { .. } => tracing::info!("{message}"),
        }
    }

    /// Leaves the bar as it is on the screen and ends it.
    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.abandon();
        }
    }
}

fn bar(total_steps: u64, done_steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total_steps)
        .with_style(style)
        .with_position(done_steps)
}

/// The time that `remaining` steps take at the pace of the `done` ones; unknown before the first.
fn time_left(elapsed: Duration, done: u64, remaining: u64) -> Option<Duration> {
    let per_step = elapsed.as_secs_f64() / done as f64;
    Duration::try_from_secs_f64((per_step * remaining as f64).round()).ok()
}

/// For example `loss 0.6931  5,100 tokens/s  00:03:20 left`.
fn status(loss: f64, tokens_per_second: f64, left: Option<Duration>) -> String {
    let speed = HumanCount(tokens_per_second.round() as u64);
    let left = left.map_or_else(
        || "?".to_owned(),
        |left| FormattedDuration(left).to_string(),
    );
    format!("loss {loss:.4}  {speed} tokens/s  {left} left")
}

#[cfg(test)]
mod tests {
    use std::fmt;
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

    #[test]
    fn without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut progress = Progress::new(125, 100, true);
            let start = progress.started;
            for second in 1..=25 {
                let now = start + Duration::from_secs(second);
                progress.update_at(now, 100 + second, 0.5, 5100.4);
            }
            progress.note("saved checkpoint-125");
            progress.finish();
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
    fn the_bar_shows_the_same_figures() {
        let bar = bar(125, 100);
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        let started = Instant::now();
        let display = Display::Bar(bar.clone());
        let mut progress = Progress {
            total_steps: 125,
            first_step: 100,
            started,
            display,
        };
        progress.update_at(started + Duration::from_secs(5), 105, 0.25, 80.0);
        assert_eq!((bar.position(), bar.length()), (105, Some(125)));
        assert_eq!(bar.message(), "loss 0.2500  80 tokens/s  00:00:20 left");
        assert!(ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}").is_ok());
    }

    #[test]
    fn figures_that_are_not_known_do_no_harm() {
        assert_eq!(time_left(Duration::from_secs(3), 0, 10), None);
        assert_eq!(time_left(Duration::ZERO, 0, 10), None);
        assert_eq!(
            status(f64::NAN, f64::NAN, None),
            "loss NaN  0 tokens/s  ? left"
        );
    }

    proptest! {
        #[test]
        fn half_way_as_much_time_is_left_as_has_passed(seconds in 0_u64..1_000_000, steps in 1_u64..10_000) {
            let elapsed = Duration::from_secs(seconds);
            prop_assert_eq!(time_left(elapsed, steps, steps), Some(elapsed));
        }
    }
}
