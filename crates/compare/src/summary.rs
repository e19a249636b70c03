//! What the runs of a suite come to: means over seeds, and how methods compare.

use std::collections::{BTreeMap, BTreeSet};

use epiphyte_methods::{Kind, ParameterCounts, by_name};
use epiphyte_train::report::account::MemoryUse;
use epiphyte_train::scoring::forgetting::Forgetting;
use epiphyte_train::scoring::inference::Inference;
use epiphyte_train::scoring::metrics::Metrics;
use epiphyte_train::training::early_stopping::Selection;
use serde::Serialize;

use crate::result::{RunResult, Status};
use crate::statistics::{Mean, holm, paired_t_test, signed_rank_test};

/// A method for a task on a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The model's name.
    pub model: String,
    /// The task's name.
    pub task: String,
    /// The method's name in the suite.
    pub name: String,
    /// The method.
    pub method: String,
    /// Its kind.
    pub kind: Kind,
    /// Which score counts.
    pub score_name: String,
    /// The settings that were chosen; empty if there was no choice.
    pub point: String,
    /// The number of runs that chose the settings; 1 if there was no choice.
    pub tried: usize,
    /// The score of each seed.
    pub scores: Vec<(u64, f64)>,
    /// The score over seeds.
    pub score: Mean,
    /// The means over seeds of the other scores that every run measured.
    pub other_scores: Metrics,
    /// The method's parameter counts.
    pub declared: ParameterCounts,
    /// The largest rank of the change of a matrix, where the method can be merged.
    pub largest_rank: Option<usize>,
    /// Values of the merged base that differ; none if it cannot be merged.
    pub measured_changed: Option<usize>,
    /// Bytes of the adapter on disk.
    pub stored_bytes: u64,
    /// The most bytes in use in a training step.
    pub peak_bytes: Option<u64>,
    /// The bytes in use at that time, by what needs them.
    pub memory: Option<MemoryUse>,
    /// Layers of the base through which gradients passed, of how many.
    pub gradient_layers: [usize; 2],
    /// Seconds of a run, evaluations included.
    pub seconds: f64,
    /// Training tokens a second.
    pub tokens_per_second: Option<f64>,
    /// How many times longer a forward pass takes than the base's.
    pub slowdown: Option<f64>,
    /// The same with the adapter merged, where it can be: the least of all runs.
    pub merged_slowdown: Option<f64>,
    /// The pass of the run in which that was least.
    pub inference: Option<Inference>,
    /// The score of the base's own task before and after, the latter the mean over seeds.
    pub forgetting: Option<Forgetting>,
    /// How it compares with the baseline; none for the baseline itself.
    pub comparison: Option<Comparison>,
}

/// A method beside the baseline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The mean difference of the scores; positive is better than the baseline.
    pub difference: f64,
    /// The probability of such a difference by chance; none for fewer than two pairs, or where all
    /// pairs differ by the same.
    pub probability: Option<f64>,
    /// The same, corrected for the number of methods that were tested.
    pub corrected: Option<f64>,
}

/// A method over all tasks of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overall {
    /// The model's name.
    pub model: String,
    /// The method's name in the suite.
    pub name: String,
    /// The mean over tasks of the mean over seeds, for methods that finished every task.
    pub score: f64,
    /// The number of tasks.
    pub tasks: usize,
    /// Signed-rank test over all pairs of task and seed.
    pub comparison: Option<Comparison>,
}

/// Why a method has no score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Absent {
    /// The model's name.
    pub model: String,
    /// The task's name.
    pub task: String,
    /// The method's name in the suite.
    pub name: String,
    /// Whether it cannot act there, or failed.
    pub status: Status,
    /// Why.
    pub reason: String,
}

/// What a suite came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// A row for each method, task and model; best scores first within each task.
    pub rows: Vec<Row>,
    /// A row for each method and model, if there is more than one task.
    pub overall: Vec<Overall>,
    /// The methods without a score.
    pub absent: Vec<Absent>,
}

impl Summary {
    /// The summary of runs.
    pub fn of(results: &[RunResult], baseline: &str) -> Self {
        let counted = results.iter().filter(|it| !it.trial);
        let mut places: Vec<(&str, &str)> = Vec::new();
        let mut groups: BTreeMap<[&str; 3], Vec<&RunResult>> = BTreeMap::new();
        for result in counted {
            let place = (&result.model[..], &result.task[..]);
            if !places.contains(&place) {
                places.push(place);
            }
            let key = [place.0, place.1, &result.name];
            groups.entry(key).or_default().push(result);
        }
        let mut summary = Self::default();
        for (key, runs) in &groups {
            let unfinished = runs.iter().find(|run| run.status != Status::Finished);
            summary.absent.extend(unfinished.map(|run| Absent {
                model: run.model.clone(),
                task: run.task.clone(),
                name: run.name.clone(),
                status: run.status,
                reason: run.reason.clone().unwrap_or_default(),
            }));
            let trials = results.iter().filter(|it| it.trial);
            let mut trials: Vec<&str> = trials
                .filter(|it| [&it.model[..], &it.name] == [key[0], key[2]])
                .map(|it| &it.task[..])
                .collect();
            // Settings may have been chosen on another task for all of them.
            if trials.contains(&key[1]) {
                trials.retain(|task| *task == key[1]);
            }
            summary.rows.extend(Row::of(runs, trials.len().max(1)));
        }
        for (model, task) in &places {
            compare(&mut summary.rows, &groups, [model, task, baseline]);
        }
        let order = |row: &Row| {
            let place = places
                .iter()
                .position(|it| *it == (&row.model[..], &row.task[..]));
            let better = Selection::by(&row.score_name).greater_is_better;
            let score = if better {
                -row.score.mean
            } else {
                row.score.mean
            };
            (place, score)
        };
        summary.rows.sort_by(|one, other| {
            let (one, other) = (order(one), order(other));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
        });
        summary.overall = overall(&summary.rows, &groups, baseline);
        summary
    }

    /// Models and tasks, in the order of the suite.
    pub fn places(&self) -> Vec<(&str, &str)> {
        let mut places = Vec::new();
        for row in &self.rows {
            let place = (&row.model[..], &row.task[..]);
            if places.last() != Some(&place) {
                places.push(place);
            }
        }
        places
    }

    /// The rows of a task on a model, best scores first.
    pub fn of_place(&self, (model, task): (&str, &str)) -> Vec<&Row> {
        let rows = self.rows.iter();
        rows.filter(|row| row.model == model && row.task == task)
            .collect()
    }
}

/// The means of the scores that do not count and that each of these runs measured.
fn other_scores(runs: &[&RunResult]) -> Metrics {
    let first = runs.iter().take(1).flat_map(|run| run.metrics.iter());
    let others = first.filter(|(name, _)| *name != runs[0].score_name);
    let means = others.filter_map(|(name, _)| {
        let values = runs.iter().map(|run| run.metrics.get(name));
        let values: Vec<f64> = values.collect::<Option<_>>()?;
        Some((name, Mean::of(&values)?.mean))
    });
    means.collect()
}

/// The names of the other scores of any of these rows, sorted.
pub(crate) fn names_of_other_scores<'a>(rows: &[&'a Row]) -> BTreeSet<&'a str> {
    let scores = rows.iter().flat_map(|row| row.other_scores.iter());
    scores.map(|(name, _)| name).collect()
}

impl Row {
    /// The row of finished runs that differ in their seed alone.
    fn of(runs: &[&RunResult], tried: usize) -> Option<Self> {
        let finished = runs.iter().filter(|run| run.status == Status::Finished);
        let runs: Vec<&RunResult> = finished.copied().collect();
        let first = *runs.first()?;
        let scores = runs.iter().filter_map(|run| Some((run.seed, run.score?)));
        let scores: Vec<(u64, f64)> = scores.collect();
        let of_seeds: Vec<f64> = scores.iter().map(|(_, score)| *score).collect();
        let costs: Vec<_> = runs.iter().filter_map(|run| run.cost.as_ref()).collect();
        let mean = |values: Vec<f64>| Mean::of(&values).map(|mean| mean.mean);
        let memory = || costs.iter().filter_map(|cost| cost.memory);
        let merged = first
            .change
            .as_ref()
            .and_then(|change| change.merged.as_ref());
        let cost = *costs.first()?;
        let inferences = costs.iter().filter_map(|cost| cost.inference);
        let slowdowns = inferences.clone().filter_map(|it| it.merged_slowdown());
        let merged_slowdown = slowdowns.min_by(f64::total_cmp);
        let least = |one: Inference, other: Inference| match other.slowdown() < one.slowdown() {
            true => other,
            false => one,
        };
        let inference = inferences.reduce(least);
        let forgotten = costs.iter().filter_map(|cost| cost.forgetting.as_ref());
        let after = mean(forgotten.filter_map(|it| it.after).collect());
        let forgetting = cost.forgetting.clone().map(|it| Forgetting { after, ..it });
        Some(Self {
            model: first.model.clone(),
            task: first.task.clone(),
            name: first.name.clone(),
            method: first.method.clone(),
            kind: by_name(&first.method).map_or(Kind::Other, |method| (method.kind)()),
            score_name: first.score_name.clone(),
            point: match first.used_example {
                true => first.method_settings(),
                false => first.point.clone(),
            },
            tried,
            score: Mean::of(&of_seeds)?,
            other_scores: other_scores(&runs),
            scores,
            declared: first.declared?,
            largest_rank: merged.and_then(|merged| merged.largest_rank()),
            measured_changed: merged.map(|merged| merged.changed_parameters),
            stored_bytes: cost.stored_bytes,
            peak_bytes: memory().map(|memory| memory.peak).max(),
            memory: memory().max_by_key(|memory| memory.peak),
            gradient_layers: [cost.gradient_layers, cost.layers],
            seconds: mean(costs.iter().map(|cost| cost.seconds).collect())?,
            tokens_per_second: mean(costs.iter().filter_map(|it| it.tokens_per_second).collect()),
            slowdown: inference.map(|it| it.slowdown()),
            merged_slowdown,
            inference,
            forgetting,
            comparison: None,
        })
    }

    /// The probability of their difference by chance, of the seeds that both have; none for fewer
    /// than two.
    pub(crate) fn probability_of_equality(&self, other: &Self) -> Option<f64> {
        let other: BTreeMap<u64, f64> = other.scores.iter().copied().collect();
        let pairs = self.scores.iter();
        let pairs = pairs.filter_map(|(seed, score)| Some((*score, *other.get(seed)?)));
        let (own, other): (Vec<f64>, Vec<f64>) = pairs.unzip();
        paired_t_test(&own, &other)
    }

    /// Whether more of the score is better.
    pub fn greater_is_better(&self) -> bool {
        Selection::by(&self.score_name).greater_is_better
    }
}

/// A number with its sign and four digits; what rounds to zero has no minus.
pub(crate) fn signed(number: f64) -> String {
    match format!("{number:+.4}") {
        text if text == "-0.0000" => "+0.0000".to_owned(),
        text => text,
    }
}

/// A probability with three digits; one that these would show as zero is `<0.001`.
pub(crate) fn probability(p: f64) -> String {
    match format!("{p:.3}") {
        text if text == "0.000" => "<0.001".to_owned(),
        text => text,
    }
}

type Groups<'a> = BTreeMap<[&'a str; 3], Vec<&'a RunResult>>;

/// The scores of two methods for a task, of the seeds that both have; larger is better.
fn pairs(groups: &Groups<'_>, one: [&str; 3], other: [&str; 3]) -> (Vec<f64>, Vec<f64>) {
    let scores = |key: [&str; 3]| -> BTreeMap<u64, f64> {
        let runs = groups.get(&key).into_iter().flatten();
        let scores = runs.filter_map(|run| {
            let sign = if Selection::by(&run.score_name).greater_is_better {
                1.0
            } else {
                -1.0
            };
            Some((run.seed, sign * run.score?))
        });
        scores.collect()
    };
    let (one, other) = (scores(one), scores(other));
    let both = one
        .iter()
        .filter_map(|(seed, score)| Some((*score, *other.get(seed)?)));
    both.unzip()
}

/// Compares every method of a task with the baseline.
fn compare(rows: &mut [Row], groups: &Groups<'_>, [model, task, baseline]: [&str; 3]) {
    let of_place = |row: &&mut Row| row.model == model && row.task == task && row.name != baseline;
    let mut rows: Vec<&mut Row> = rows.iter_mut().filter(of_place).collect();
    for row in &mut rows {
        let (own, of_baseline) = pairs(groups, [model, task, &row.name], [model, task, baseline]);
        row.comparison = Comparison::of(&own, &of_baseline, paired_t_test);
    }
    correct(rows.into_iter().filter_map(|row| row.comparison.as_mut()));
}

impl Comparison {
    /// The difference with its sign and four digits: `+0.0123`.
    pub fn signed(&self) -> String {
        signed(self.difference)
    }

    /// The corrected probability with three digits: `0.012`, `<0.001`.
    pub fn shown(&self) -> Option<String> {
        self.corrected.map(probability)
    }

    fn of(own: &[f64], other: &[f64], test: fn(&[f64], &[f64]) -> Option<f64>) -> Option<Self> {
        let differences = own.iter().zip(other).map(|(own, other)| own - other);
        let mean = Mean::of(&differences.collect::<Vec<f64>>())?;
        Some(Self {
            difference: mean.mean,
            probability: test(own, other).filter(|_| mean.count > 1),
            corrected: None,
        })
    }
}

fn correct<'a>(comparisons: impl Iterator<Item = &'a mut Comparison>) {
    let tested: Vec<&mut Comparison> = comparisons.filter(|it| it.probability.is_some()).collect();
    let probabilities = tested.iter().filter_map(|it| it.probability);
    let corrected = holm(&probabilities.collect::<Vec<f64>>());
    for (comparison, corrected) in tested.into_iter().zip(corrected) {
        comparison.corrected = Some(corrected);
    }
}

/// Each method over all tasks of a model, the best first. Scores that are better when smaller have
/// no mean with others.
fn overall(rows: &[Row], groups: &Groups<'_>, baseline: &str) -> Vec<Overall> {
    let mut models: Vec<&str> = Vec::new();
    for row in rows {
        if !models.contains(&&row.model[..]) {
            models.push(&row.model);
        }
    }
    let mut all = Vec::new();
    for model in models {
        let of_model: Vec<&Row> = rows.iter().filter(|row| row.model == model).collect();
        let mut tasks: Vec<&str> = of_model.iter().map(|row| &row.task[..]).collect();
        tasks.dedup();
        if tasks.len() < 2 || of_model.iter().any(|row| !row.greater_is_better()) {
            continue;
        }
        let mut of_methods: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        for row in of_model {
            of_methods.entry(&row.name).or_default().push(row);
        }
        let complete = of_methods
            .into_iter()
            .filter(|(_, rows)| rows.len() == tasks.len());
        let mut methods: Vec<Overall> = complete
            .map(|(name, rows)| {
                let scores: f64 = rows.iter().map(|row| row.score.mean).sum();
                let both = tasks.iter();
                let both =
                    both.map(|task| pairs(groups, [model, *task, name], [model, *task, baseline]));
                let (own, other): (Vec<_>, Vec<_>) = both.unzip();
                let (own, other) = (own.concat(), other.concat());
                let comparison = Comparison::of(&own, &other, signed_rank_test);
                Overall {
                    model: model.to_owned(),
                    name: name.to_owned(),
                    score: scores / tasks.len() as f64,
                    tasks: tasks.len(),
                    comparison: comparison.filter(|_| name != baseline),
                }
            })
            .collect();
        correct(methods.iter_mut().filter_map(|it| it.comparison.as_mut()));
        methods.sort_by(|one, other| other.score.total_cmp(&one.score));
        all.extend(methods);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{probability, signed};

    #[test]
    fn no_probability_is_shown_as_zero() {
        assert_eq!(probability(0.0), "<0.001");
        assert_eq!(probability(4.9e-4), "<0.001");
        assert_eq!(probability(0.0316), "0.032");
    }

    #[test]
    fn what_rounds_to_zero_has_no_minus() {
        assert_eq!(signed(-0.00001), "+0.0000");
        assert_eq!(signed(-0.0), "+0.0000");
        assert_eq!(signed(-0.01234), "-0.0123");
        assert_eq!(signed(0.5), "+0.5000");
    }
}
