//! What a user sees while a run trains or a model reads a data set: a bar on standard error, or a log line
//! now and then.
//!
//! The bar is drawn only on a terminal. Into a file or a pipe, or with `--quiet`, the same figures go to
//! `tracing` every ten seconds instead, and the binary decides what becomes of them.
//!
//! ```
//! use epiphyte_train::progress::{Pass, Progress};
//!
//! let mut progress = Progress::new(200, 0, true);
//! progress.update(1, 0.6931, 5100.0);
//! progress.note("saved checkpoint-1");
//! progress.finish();
//!
//! let mut pass = Pass::new(872, true);
//! pass.advance(32, 800);
//! pass.finish();
//! ```

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{FormattedDuration, HumanCount, ProgressBar, ProgressStyle};

/// The time between two log lines where no bar is drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows how far a run is, its loss, its speed and the time left.
#[derive(Debug)]
pub struct Progress {
    meter: Meter,
}

impl Progress {
    /// Begins at `done_steps` of `total_steps` optimiser steps; more than 0 are done when a run is resumed.
    /// Draws a bar if standard error is a terminal and `quiet` is false.
    #[must_use]
    pub fn new(total_steps: u64, done_steps: u64, quiet: bool) -> Self {
        Self {
            meter: Meter::new("step", total_steps, done_steps, quiet),
        }
    }

    /// Takes note that `step` optimiser steps are done, with the loss and the speed in tokens per second
    /// to show; never more than the total. Cheap enough for every step: drawing and logging are limited to a sensible rate.
    pub fn update(&mut self, step: u64, loss: f64, tokens_per_second: f64) {
        self.update_at(Instant::now(), step, loss, tokens_per_second);
    }

    fn update_at(&mut self, now: Instant, step: u64, loss: f64, tokens_per_second: f64) {
        let figures = format!("loss {loss:.4}  {}", speed(tokens_per_second));
        self.meter.show(now, step, &figures);
    }

    /// Shows a message to the user without disturbing the bar.
    pub fn note(&self, message: &str) {
        match &self.meter.display {
            Display::Bar(bar) => bar.println(message),
            Display::Lines { .. } => tracing::info!("{message}"),
        }
    }

    /// Leaves the bar as it is on the screen and ends it.
    pub fn finish(self) {
        self.meter.finish();
    }
}

/// Shows how far one pass over a data set is, its speed and the time left.
#[derive(Debug)]
pub struct Pass {
    meter: Meter,
    examples: u64,
    tokens: u64,
}

impl Pass {
    /// Begins a pass over so many examples. Draws a bar if standard error is a terminal and `quiet` is
    /// false.
    #[must_use]
    pub fn new(examples: u64, quiet: bool) -> Self {
        Self {
            meter: Meter::new("example", examples, 0, quiet),
            examples: 0,
            tokens: 0,
        }
    }

    /// Takes note that `examples` more are done, of `tokens` tokens together.
    pub fn advance(&mut self, examples: usize, tokens: usize) {
        self.advance_at(Instant::now(), examples, tokens);
    }

    fn advance_at(&mut self, now: Instant, examples: usize, tokens: usize) {
        self.examples += examples as u64;
        self.tokens += tokens as u64;
        let seconds = (now - self.meter.started).as_secs_f64();
        let figures = speed(self.tokens as f64 / seconds.max(1e-9));
        self.meter.show(now, self.examples, &figures);
    }

    /// Leaves the bar as it is on the screen and ends it.
    pub fn finish(self) {
        self.meter.finish();
    }
}

/// A count on its way from where it began to its total, and where it is shown.
#[derive(Debug)]
struct Meter {
    unit: &'static str,
    total: u64,
    first: u64,
    started: Instant,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Meter {
    fn new(unit: &'static str, total: u64, first: u64, quiet: bool) -> Self {
        let display = if quiet || !io::stderr().is_terminal() {
            Display::Lines { last: None }
        } else {
            Display::Bar(bar(total, first))
        };
        Self {
            unit,
            total,
            first,
            started: Instant::now(),
            display,
        }
    }

    /// Shows that the count has come to `position`, with other figures and the time left.
    fn show(&mut self, now: Instant, position: u64, figures: &str) {
        let elapsed = now - self.started;
        let left = time_left(elapsed, position - self.first, self.total - position);
        let left = left.map_or_else(
            || "?".to_owned(),
            |left| FormattedDuration(left).to_string(),
        );
        let status = format!("{figures}  {left} left");
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(position);
                bar.set_message(status);
            }
            Display::Lines { last } => {
                let due = last.is_none_or(|last| now - last >= LINE_INTERVAL);
                if due || position == self.total {
                    *last = Some(now);
                    tracing::info!("{} {position} of {}: {status}", self.unit, self.total);
                }
            }
        }
    }

    fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.abandon();
        }
    }
}

fn bar(total: u64, done: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total)
        .with_style(style)
        .with_position(done)
}

/// The time that `remaining` take at the pace of the `done` ones; unknown before the first.
fn time_left(elapsed: Duration, done: u64, remaining: u64) -> Option<Duration> {
    let each = elapsed.as_secs_f64() / done as f64;
    Duration::try_from_secs_f64((each * remaining as f64).round()).ok()
}

/// For example `5,100 tokens/s`.
fn speed(tokens_per_second: f64) -> String {
    format!("{} tokens/s", HumanCount(tokens_per_second.round() as u64))
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
            let start = progress.meter.started;
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
        let mut progress = Progress {
            meter: Meter {
                unit: "step",
                total: 125,
                first: 100,
                started,
                display: Display::Bar(bar.clone()),
            },
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
        assert_eq!(speed(f64::NAN), "0 tokens/s");
        let mut progress = Progress::new(10, 0, true);
        progress.update(0, f64::NAN, f64::NAN);
    }

    #[test]
    fn a_pass_counts_examples_and_tokens() {
        let log = Log::default();
        tracing::subscriber::with_default(log.clone(), || {
            let mut pass = Pass::new(70, true);
            let start = pass.meter.started;
            for (second, examples) in [(5, 32), (9, 32), (10, 6)] {
                let now = start + Duration::from_secs(second);
                pass.advance_at(now, examples, 50 * examples);
            }
            pass.finish();
        });
        assert_eq!(
            *log.0.lock().unwrap(),
            [
                "example 32 of 70: 320 tokens/s  00:00:06 left",
                "example 70 of 70: 350 tokens/s  00:00:00 left",
            ]
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
