//! Learning-rate schedules: the factor by which the learning rate is multiplied at each optimizer
//! step.
//!
//! The definitions are those of `transformers.optimization`: `get_linear_schedule_with_warmup`,
//! `get_cosine_schedule_with_warmup` (half a wave), `get_constant_schedule` and
//! `get_constant_schedule_with_warmup`. As there, the first optimizer step is step 0, so a run with
//! warm-up begins with a factor of 0, and step `total_steps` is the first one that would have 0
//! again.
//!
//! ```
//! use epiphyte_train::training::schedule::{Schedule, ScheduleKind, Warmup};
//!
//! let warmup_steps = Warmup::Ratio(0.1).steps(100)?;
//! let schedule = Schedule { kind: ScheduleKind::Linear, warmup_steps, total_steps: 100 };
//! assert_eq!(schedule.factor(0), 0.0);
//! assert_eq!(schedule.factor(5), 0.5);
//! assert_eq!(schedule.factor(10), 1.0);
//! assert_eq!(schedule.factor(55), 0.5);
//! # Ok::<(), epiphyte_train::error::ScheduleError>(())
//! ```

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ScheduleError;

/// The shape of a schedule, with the names of transformers' `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Up to 1 during warm-up, then down to 0 in a straight line.
    #[default]
    Linear,
    /// Up to 1 during warm-up, then down to 0 along half a cosine wave.
    Cosine,
    /// Always 1; has no warm-up.
    Constant,
    /// Up to 1 during warm-up, then 1.
    ConstantWithWarmup,
}

impl ScheduleKind {
    /// Every schedule, in the order in which they are listed to users.
    pub const ALL: [Self; 4] = [
        Self::Linear,
        Self::Cosine,
        Self::Constant,
        Self::ConstantWithWarmup,
    ];

    /// The name in files and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
        }
    }
}

impl fmt::Display for ScheduleKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for ScheduleKind {
    type Err = ScheduleError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| ScheduleError::UnknownKind(name.to_owned()))
    }
}

/// How long the learning rate rises, as `warmup_steps` or `warmup_ratio` of transformers say it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// This many optimizer steps.
    Steps(u64),
    /// This share of all optimizer steps, from 0 to 1, rounded up.
    Ratio(f64),
}

impl Warmup {
    /// The number of warm-up steps in a run of `total_steps` optimizer steps.
    ///
    /// A ratio is rounded up as `TrainingArguments.get_warmup_steps` does: the ceiling of the
    /// product in double precision, so that 0.07 of 100 steps, 7.000000000000001, is 8.
    ///
    /// # Errors
    /// [`ScheduleError::WarmupRatio`] if the ratio is not in `0.0..=1.0`.
    pub fn steps(self, total_steps: u64) -> Result<u64, ScheduleError> {
        match self {
            Self::Steps(steps) => Ok(steps),
            Self::Ratio(ratio) if (0.0..=1.0).contains(&ratio) => {
                Ok((total_steps as f64 * ratio).ceil() as u64)
            }
            Self::Ratio(ratio) => Err(ScheduleError::WarmupRatio(ratio)),
        }
    }
}

/// A learning-rate schedule of a run whose length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// Optimizer steps during which the factor rises from 0 to 1.
    pub warmup_steps: u64,
    /// Optimizer steps of the whole run, warm-up included.
    pub total_steps: u64,
}

impl Schedule {
    /// The factor of the learning rate at optimizer step `step`, counted from 0; in `0.0..=1.0`.
    #[must_use]
    pub fn factor(&self, step: u64) -> f64 {
        if self.kind == ScheduleKind::Constant {
            return 1.0;
        }
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let decay_steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        match self.kind {
            ScheduleKind::Linear => self.total_steps.saturating_sub(step) as f64 / decay_steps,
            ScheduleKind::Cosine => {
                let progress = (step - self.warmup_steps) as f64 / decay_steps;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        schedules: Vec<GoldenSchedule>,
        warmup_ratios: Vec<(u64, f64, u64)>,
    }

    #[derive(Deserialize)]
    struct GoldenSchedule {
        #[serde(flatten)]
        schedule: Schedule,
        factors: Vec<f64>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden_metrics.json")).unwrap()
    }

    #[test]
    fn factors_are_those_of_transformers() {
        for GoldenSchedule { schedule, factors } in golden().schedules {
            for (step, expected) in factors.into_iter().enumerate() {
                let actual = schedule.factor(step as u64);
                // Python's and Rust's cosine may differ in the last bit; nothing else rounds
                // differently.
                let tolerance = if schedule.kind == ScheduleKind::Cosine {
                    2.3e-16
                } else {
                    0.0
                };
                assert!(
                    (actual - expected).abs() <= tolerance,
                    "{schedule:?}, step {step}: {actual} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn ratios_are_rounded_up_as_transformers_does() {
        for (total, ratio, expected) in golden().warmup_ratios {
            assert_eq!(
                Warmup::Ratio(ratio).steps(total),
                Ok(expected),
                "{ratio} of {total}"
            );
        }
    }

    #[test]
    fn a_ratio_that_is_no_share_is_refused() {
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(
                Warmup::Ratio(ratio).steps(10),
                Err(ScheduleError::WarmupRatio(_))
            ));
        }
    }

    #[test]
    fn names_are_read_back_and_others_refused() {
        for kind in ScheduleKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        let error = "polynomial".parse::<ScheduleKind>().unwrap_err();
        assert_eq!(error, ScheduleError::UnknownKind("polynomial".to_owned()));
    }

    proptest! {
        #[test]
        fn rises_then_falls_within_zero_and_one(
            kind in prop::sample::select(&ScheduleKind::ALL[..]),
            warmup_steps in 0_u64..50,
            decay_steps in 1_u64..200,
        ) {
            let schedule = Schedule { kind, warmup_steps, total_steps: warmup_steps + decay_steps };
            let factors: Vec<f64> = (0..=schedule.total_steps).map(|step| schedule.factor(step)).collect();
            prop_assert!(factors.iter().all(|factor| (0.0..=1.0).contains(factor)));
            let (rising, falling) = factors.split_at(warmup_steps as usize);
            prop_assert!(rising.is_sorted());
            prop_assert!(falling.is_sorted_by(|a, b| a >= b));
            prop_assert_eq!(falling[0], 1.0);
            let decays = matches!(kind, ScheduleKind::Linear | ScheduleKind::Cosine);
            prop_assert_eq!(*falling.last().unwrap(), if decays { 0.0 } else { 1.0 });
        }
    }
}
