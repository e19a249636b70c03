//! What a run would do, without doing it: settings, data, steps and parameters.

use std::path::{Path, PathBuf};

use epiphyte_data::{Batches, Target};
use epiphyte_methods::{AdapterModule, ParameterCounts};
use serde::Serialize;

use crate::TrainError;
use crate::report::settings::{ResolvedSetting, resolved_settings};
use crate::run::{Encoded, Prepared, RunOptions, check_runs};
use crate::run_directory;
use crate::tasks::TaskSpec;
use crate::training::config::RunConfig;
use crate::training::trainer::Plan;

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct DryRun {
    /// The directory that it would write.
    pub output: PathBuf,
    /// Every setting that has a value.
    pub settings: Vec<ResolvedSetting>,
    /// Names of the classes in the order of their ids; none if the task has no classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The training data.
    pub training: DataSummary,
    /// The evaluation data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<DataSummary>,
    /// Texts that the model writes at each evaluation; none if no texts are scored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub texts: Option<usize>,
    /// Optimizer steps in an epoch.
    pub steps_per_epoch: u64,
    /// Optimizer steps in all.
    pub steps: u64,
    /// Parameters.
    #[serde(flatten)]
    pub account: ParameterCounts,
}

/// A file of examples as the model reads it.
#[derive(Clone, Debug, Serialize)]
pub struct DataSummary {
    /// The file.
    pub path: PathBuf,
    /// Rows of the file that are used.
    pub rows: usize,
    /// Examples made of them.
    pub examples: usize,
    /// Examples that lost their end to `max_length`.
    pub truncated: usize,
    /// Rows that gave no example, because no token to predict was left in them.
    pub dropped: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens of the shortest, the median and the longest example.
    pub shortest: usize,
    /// Half of the examples have at most this many tokens.
    pub median: usize,
    /// Tokens of the longest example.
    pub longest: usize,
    /// How many examples have how many tokens, from short to long.
    pub lengths: Vec<LengthRange>,
    /// Examples of each class, in the order of the ids; none if the task has no classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<usize>,
}

/// Examples with lengths in a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LengthRange {
    /// The least number of tokens.
    pub from: usize,
    /// The greatest number of tokens.
    pub to: usize,
    /// The number of examples.
    pub examples: usize,
}

/// What `runs` over one base would do. Base and data are read and everything is checked that can
/// be without training; nothing is written.
///
/// # Errors
/// As [`train_several`](crate::train_several) before its first step.
pub fn dry_run(runs: &[RunConfig], options: &RunOptions) -> Result<Vec<DryRun>, TrainError> {
    check_runs(runs)?;
    for run in runs {
        run_directory::check(&run.output, options.start())?;
    }
    let prepared = Prepared::all(runs, options)?;
    let runs = prepared.iter();
    runs.map(|(prepared, module)| of_run(prepared, module))
        .collect()
}

fn of_run(prepared: &Prepared<'_>, module: &AdapterModule) -> Result<DryRun, TrainError> {
    let Prepared {
        run,
        task_model,
        train,
        eval,
        ..
    } = prepared;
    let (model, spec) = (&task_model.loaded.model, &task_model.spec);
    let data = prepared.evaluation_data();
    let plan = Plan::checked(run, model, module, &train.batches, data)?;
    let evaluation = run.eval_data.as_ref().zip(eval.as_ref());
    let texts = data.and_then(|data| data.texts);
    Ok(DryRun {
        output: run.output.clone(),
        settings: resolved_settings(run, spec, plan, module, model.base()),
        labels: spec.labels.clone(),
        training: summary(&run.train_data, train, spec),
        evaluation: evaluation.map(|(path, eval)| summary(path, eval, spec)),
        texts: texts.map(|texts| texts.prompts().len()),
        steps_per_epoch: plan.per_epoch,
        steps: plan.total,
        account: module.counts(model.base()),
    })
}

fn summary(path: &Path, data: &Encoded, spec: &TaskSpec) -> DataSummary {
    let batches: &Batches = &data.batches;
    let examples = batches.examples();
    let lengths = (0..examples.len()).map(|position| examples.length(position));
    let mut lengths: Vec<usize> = lengths.collect();
    lengths.sort_unstable();
    let at = |index: usize| lengths.get(index).copied().unwrap_or(0);
    let mut classes = vec![0; spec.labels.len()];
    for example in examples.iter() {
        let own: Vec<usize> = match example.target {
            Target::Class(class) => vec![class],
            Target::ClassSet(set) => (0..set.len()).filter(|&class| set[class]).collect(),
            Target::TokenClasses(labels) => {
                let labels = labels.into_iter();
                labels
                    .filter_map(|label| usize::try_from(label).ok())
                    .collect()
            }
            _ => Vec::new(),
        };
        for class in own {
            if let Some(count) = classes.get_mut(class) {
                *count += 1;
            }
        }
    }
    DataSummary {
        path: path.to_owned(),
        rows: data.rows,
        examples: examples.len(),
        truncated: examples.truncated,
        dropped: examples.dropped,
        tokens: lengths.iter().sum(),
        shortest: at(0),
        median: at(lengths.len().saturating_sub(1) / 2),
        longest: at(lengths.len().saturating_sub(1)),
        lengths: histogram(&lengths),
        classes,
    }
}

/// Ranges that end at powers of two, from the first to the last that has an example.
fn histogram(lengths: &[usize]) -> Vec<LengthRange> {
    let mut ranges: Vec<LengthRange> = Vec::new();
    let (Some(&shortest), Some(&longest)) = (lengths.iter().min(), lengths.iter().max()) else {
        return ranges;
    };
    let mut to = shortest.next_power_of_two().max(8);
    let mut from = if to == 8 { 1 } else { to / 2 + 1 };
    while from <= longest {
        let fits = lengths.iter().filter(|it| (from..=to).contains(it));
        let examples = fits.count();
        ranges.push(LengthRange { from, to, examples });
        (from, to) = (to + 1, to * 2);
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_every_example_once() {
        let range = |from, to, examples| LengthRange { from, to, examples };
        assert_eq!(
            histogram(&[3, 8, 9, 16, 16, 17, 70]),
            [
                range(1, 8, 2),
                range(9, 16, 3),
                range(17, 32, 1),
                range(33, 64, 0),
                range(65, 128, 1),
            ]
        );
        assert_eq!(histogram(&[128, 100]), [range(65, 128, 2)]);
        assert_eq!(histogram(&[]), []);
    }
}
