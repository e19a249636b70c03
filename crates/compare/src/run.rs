//! Carries out the runs of a suite, one after another.
//!
//! Each run has a directory in `runs/`, with its result once it has ended. A comparison that was
//! stopped, or whose machine lost power, goes on where it was: runs with a result are not made
//! again, and a run with a checkpoint is continued, which ends with the same bytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use epiphyte_io::{FileError, sha256};
use epiphyte_methods::MethodError;
use epiphyte_train::training::checkpoints::Checkpoints;
use epiphyte_train::{
    Interrupt, Observer, RunConfig, RunOptions, SharedBase, TrainError, holds_run, plan, train,
};
use serde_json::{Map, Value};

use crate::CompareError;
use crate::budget::Budget;
use crate::inputs::{INPUTS, Inputs};
use crate::result::{RunResult, Status};
use crate::suite::{Group, Suite};

/// The directory of all runs, in the output directory.
pub(crate) const RUNS: &str = "runs";

/// Optimizer steps from which a plan takes its figures.
const PLANNED_STEPS: usize = 2;

/// A part of a suite's methods, for several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are.
    pub count: usize,
}

impl Shard {
    /// Whether the runs of a method, by its number, are of this shard.
    pub(crate) fn has(self, method: usize) -> bool {
        method % self.count == self.number - 1
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/');
        let numbers =
            parts.and_then(|(number, count)| Some((number.parse().ok()?, count.parse().ok()?)));
        match numbers {
            Some((number, count)) if (1..=count).contains(&number) => Ok(Self { number, count }),
            _ => Err(format!(
                "`{text}` is not a part such as 1/4: a number from 1, and how many"
            )),
        }
    }
}

/// How a suite is carried out.
#[derive(Clone, Debug)]
pub struct RunSuite<'a> {
    /// The suite.
    pub suite: &'a Suite,
    /// The directory of its runs and reports.
    pub output: &'a Path,
    /// The part that is run; all of it if none.
    pub shard: Option<Shard>,
    /// Make runs again that have a result of other settings.
    pub overwrite: bool,
    /// Keep adapters and checkpoints of finished runs.
    pub keep_adapters: bool,
    /// What a run may need: a method that is planned to need more is not run.
    pub budget: Option<Budget>,
    /// Take every run from its result, as merged shards have left it: one without is an error.
    pub from_results: bool,
    /// Where tensors live.
    pub options: RunOptions,
}

/// What is told of a suite in progress.
pub trait SuiteObserver {
    /// Where the events of the next run go.
    fn run(&mut self, number: usize, total: usize, result: &RunResult) -> Box<dyn Observer + '_>;

    /// A run has ended.
    fn ended(&mut self, result: &RunResult);
}

/// Whether all of a suite, or of a shard, was carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Carried {
    /// Everything has a result.
    Out(Vec<RunResult>),
    /// An interrupt was requested.
    Interrupted,
}

impl RunSuite<'_> {
    /// Carries out what has no result yet, and returns all results in the order of the suite.
    ///
    /// # Errors
    /// If files cannot be read or written, or a run has a result of other settings. What is wrong
    /// with one method is in its result.
    pub fn run(
        &self,
        interrupt: &Interrupt,
        observer: &mut dyn SuiteObserver,
    ) -> Result<Carried, CompareError> {
        self.check_names()?;
        let groups = self.suite.of_shard(self.shard);
        if !self.from_results {
            self.check_tasks(&groups)?;
        }
        let options = RunOptions {
            shared_base: Some(SharedBase::default()),
            measure_inference: true,
            ..self.options.clone()
        };
        let total = groups.iter().map(|group| self.suite.runs_of(group)).sum();
        let mut runner = Runner {
            suite: self,
            options,
            interrupt,
            observer,
            number: 0,
            total,
            results: Vec::new(),
            inputs: Inputs::default(),
        };
        let mut missing: Vec<&Group> = Vec::new();
        for group in &groups {
            match runner.group(group) {
                Err(CompareError::Missing { .. }) => missing.push(group),
                has_ended => {
                    if !has_ended? {
                        return Ok(Carried::Interrupted);
                    }
                }
            }
        }
        match missing.is_empty() {
            true => Ok(Carried::Out(runner.results)),
            false => Err(CompareError::Missing {
                methods: by_method(&missing, &groups),
            }),
        }
    }
}

/// The methods of these groups, with their tasks where `all` has others of theirs.
fn by_method(groups: &[&Group], all: &[&Group]) -> Vec<String> {
    let mut names: Vec<&str> = groups.iter().map(|group| &group.name[..]).collect();
    names.sort_unstable();
    names.dedup();
    let named = names.into_iter().map(|name| {
        let own = groups.iter().filter(|group| group.name == name);
        let places = own.map(|group| format!("{} on {}", group.task, group.model));
        let places: Vec<String> = places.collect();
        match places.len() == all.iter().filter(|group| group.name == name).count() {
            true => format!("`{name}`"),
            false => format!("`{name}` ({})", places.join(", ")),
        }
    });
    named.collect()
}

impl RunSuite<'_> {
    /// Whether a run that ended so is not made again.
    pub(crate) fn has_ended(&self, status: Status) -> bool {
        status.is_final() || (self.from_results && status == Status::Failed)
    }

    /// Checks that no two names lead to one directory.
    fn check_names(&self) -> Result<(), CompareError> {
        let mut names: HashMap<(String, String), &str> = HashMap::new();
        for group in &self.suite.groups {
            let points = group.points.iter();
            let points = points.map(|it| (format!("settings of {}", group.name), &it.name));
            let parts = [
                ("models".to_owned(), &group.model),
                ("tasks".to_owned(), &group.task),
                ("methods".to_owned(), &group.name),
            ];
            for (what, name) in parts.into_iter().chain(points) {
                let key = (what.clone(), file_name(name));
                let known = names.entry(key).or_insert(name);
                if known != name {
                    return Err(CompareError::Suite {
                        name: self.suite.name.clone(),
                        problem: format!(
                            "the {what} `{known}` and `{name}` have one name as directories: rename one"
                        ),
                    });
                }
            }
        }
        Ok(())
    }
}

struct Runner<'a> {
    suite: &'a RunSuite<'a>,
    options: RunOptions,
    interrupt: &'a Interrupt,
    observer: &'a mut dyn SuiteObserver,
    number: usize,
    total: usize,
    results: Vec<RunResult>,
    inputs: Inputs,
}

impl Runner<'_> {
    /// The settings that make a run what it is, with the hashes of what it reads.
    fn settings(&mut self, run: &RunConfig) -> Result<Map<String, Value>, CompareError> {
        let Ok(Value::Object(mut settings)) = serde_json::to_value(run) else {
            unreachable!("a run is an object of plain values");
        };
        settings.remove("output");
        settings.insert(INPUTS.to_owned(), self.inputs.of(run)?.into());
        Ok(settings)
    }

    /// Runs a group; false if it was interrupted.
    fn group(&mut self, group: &Group) -> Result<bool, CompareError> {
        if let Some(reason) = self.beyond_budget(group)? {
            for (seed, run) in &group.points[0].runs {
                let mut result = RunResult::new(group, "", *seed, None);
                result.settings = self.settings(run)?;
                result.status = Status::BeyondBudget;
                result.reason = Some(reason.clone());
                self.observer.ended(&result);
                self.results.push(result);
            }
            self.number += self.suite.suite.runs_of(group);
            return Ok(true);
        }
        let Some(chosen) = self.choose(self.suite.suite.chooser(group))? else {
            return Ok(false);
        };
        let chosen = &group.points[chosen];
        for seed in &self.suite.suite.seeds {
            let new = RunResult::new(group, &chosen.name, *seed, None);
            let (run, example) = (&chosen.runs[seed], chosen.examples.get(seed));
            if self.one(new, run, example)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What a group's runs would need beyond the budget, by the plan of its first; none if they
    /// have results, or there is no budget.
    fn beyond_budget(&mut self, group: &Group) -> Result<Option<String>, CompareError> {
        let Some(budget) = self.suite.budget else {
            return Ok(None);
        };
        let point = &group.points[0];
        let (seed, run) = point.runs.first_key_value().expect("a suite has seeds");
        let directory = |seed| {
            let first = RunResult::new(group, &point.name, seed, None);
            self.suite.output.join(RUNS).join(path_of(&first))
        };
        let known = RunResult::read(&directory(*seed))?;
        if known.is_some_and(|known| known.status.is_final()) {
            return Ok(None);
        }
        let planned = |run: &RunConfig| {
            let run = RunConfig {
                output: directory(*seed),
                ..run.clone()
            };
            plan(&run, &self.options, PLANNED_STEPS, None)
        };
        let mut found = planned(run);
        if let (Some(example), true) = (
            point.examples.get(seed),
            defaults_do_not_fit(run, found.as_ref().err()),
        ) {
            found = planned(example);
        }
        // What is wrong with a run is told when it is made.
        Ok(found.ok().and_then(|plan| budget.excludes(&plan)))
    }

    /// The number of the point that does best in the last round of trials; none if it was
    /// interrupted.
    fn choose(&mut self, group: &Group) -> Result<Option<usize>, CompareError> {
        let mut left: Vec<usize> = (0..group.points.len()).collect();
        let rounds = group.rounds();
        for (round, &points) in rounds.iter().enumerate() {
            left.truncate(points);
            let mut scored = Vec::new();
            for &at in &left {
                let point = &group.points[at];
                let run = &point.trials[round];
                let part = run.max_steps.filter(|_| round + 1 < rounds.len());
                let new = RunResult::new(group, &point.name, run.seed, Some(part));
                let Some(trial) = self.one(new, run, None)? else {
                    return Ok(None);
                };
                let sign = if group.greater_is_better() { 1.0 } else { -1.0 };
                let score = trial.score.map_or(f64::NEG_INFINITY, |score| sign * score);
                scored.push((at, score));
            }
            // Of equal ones the first stays first.
            scored.sort_by(|one, other| other.1.total_cmp(&one.1));
            left = scored.into_iter().map(|(at, _)| at).collect();
        }
        Ok(Some(left[0]))
    }

    /// The result of a run, which is made if there is none; none if it was interrupted. `example`
    /// takes the run's place if the method's defaults do not fit.
    fn one(
        &mut self,
        new: RunResult,
        run: &RunConfig,
        example: Option<&RunConfig>,
    ) -> Result<Option<RunResult>, CompareError> {
        // Trials choose for several tasks.
        let identity = new.identity();
        if let Some(known) = self
            .results
            .iter()
            .find(|known| known.identity() == identity)
        {
            return Ok(Some(known.clone()));
        }
        self.number += 1;
        let directory = self.suite.output.join(RUNS).join(path_of(&new));
        let settings = self.settings(run)?;
        let of_example = example.map(|example| self.settings(example)).transpose()?;
        let is_own = |known: &RunResult| {
            known.settings == settings || Some(&known.settings) == of_example.as_ref()
        };
        let result = match RunResult::read(&directory)? {
            Some(known) if is_own(&known) && self.suite.has_ended(known.status) => known,
            Some(known) if !is_own(&known) && !self.suite.overwrite => {
                return Err(CompareError::OtherSettings {
                    path: directory,
                    difference: difference(&known.settings, &settings),
                });
            }
            _ if self.suite.from_results => {
                return Err(CompareError::Missing {
                    methods: vec![new.name],
                });
            }
            _ => {
                let new = RunResult { settings, ..new };
                match self.make(new, run, example.zip(of_example), &directory)? {
                    Some(made) => made,
                    None => return Ok(None),
                }
            }
        };
        self.results.push(result.clone());
        Ok(Some(result))
    }

    /// Makes a run, or with the method's example where the defaults do not fit; none if it was
    /// interrupted.
    fn make(
        &mut self,
        mut result: RunResult,
        run: &RunConfig,
        example: Option<(&RunConfig, Map<String, Value>)>,
        directory: &Path,
    ) -> Result<Option<RunResult>, CompareError> {
        let has_checkpoint =
            directory.is_dir() && !Checkpoints::inspect(directory).list()?.is_empty();
        let options = RunOptions {
            resume: has_checkpoint && !self.suite.overwrite,
            overwrite: self.suite.overwrite || (holds_run(directory) && !has_checkpoint),
            ..self.options.clone()
        };
        // What is no run's would not be replaced.
        let old = directory.join(crate::result::RESULT_FILE);
        if old.exists() {
            std::fs::remove_file(&old).map_err(FileError::at("remove", &old))?;
        }
        let mut observer = self.observer.run(self.number, self.total, &result);
        let mut train = |run: &RunConfig| {
            let run = RunConfig {
                output: directory.to_owned(),
                ..run.clone()
            };
            train(&run, &options, self.interrupt, &mut *observer)
        };
        let mut trained = train(run);
        if let (Some((example, settings)), true) =
            (example, defaults_do_not_fit(run, trained.as_ref().err()))
        {
            trained = train(example);
            result.settings = settings;
            result.used_example = true;
        }
        drop(observer);
        match trained {
            Ok(report) if report.status == "interrupted" => return Ok(None),
            Ok(report) => {
                result.status = Status::Finished;
                result.metrics = report.metrics.unwrap_or_default();
                result.score = result.metrics.get(&result.score_name);
                result.score = result.score.filter(|score| score.is_finite());
                result.declared = Some(report.account);
                (result.change, result.cost) = (report.change, Some(report.cost));
                result.read_log(directory)?;
                result.read_adapter(directory);
                if result.score.is_none() {
                    result.status = Status::Failed;
                    let name = &result.score_name;
                    result.reason = Some(format!("`{name}` was not measured, or is not finite"));
                }
            }
            Err(TrainError::Method(MethodError::NotApplicable { method, reason, .. })) => {
                result.status = Status::NotApplicable;
                result.reason = Some(format!("{method}: {reason}"));
            }
            Err(error) if !result.used_example && defaults_do_not_fit(run, Some(&error)) => {
                result.status = Status::NotApplicable;
                result.reason = Some(format!(
                    "its defaults do not fit, and the suite gives no others: {}",
                    message(&error)
                ));
            }
            // What concerns one run is told with its result; what concerns all of them ends here.
            Err(error @ (TrainError::Hub(_) | TrainError::Data(_) | TrainError::File(_))) => {
                return Err(error.into());
            }
            Err(error @ (TrainError::Columns { .. } | TrainError::OutputInUse { .. })) => {
                return Err(error.into());
            }
            Err(error) => {
                result.status = Status::Failed;
                result.reason = Some(message(&error));
            }
        }
        if !self.suite.keep_adapters {
            clear(directory)?;
        }
        result.write(directory)?;
        self.observer.ended(&result);
        Ok(Some(result))
    }
}

/// Whether a run failed because settings that its method has by default do not fit, or have to be
/// given.
fn defaults_do_not_fit(run: &RunConfig, error: Option<&TrainError>) -> bool {
    let concerns_settings = matches!(
        error,
        Some(TrainError::Method(
            MethodError::Configuration { .. }
                | MethodError::Setting { .. }
                | MethodError::Value { .. }
                | MethodError::NoTarget { .. }
        ))
    );
    concerns_settings && run.method_settings.is_empty()
}

/// An error with its causes.
fn message(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// The first setting in which two runs differ.
fn difference(one: &Map<String, Value>, other: &Map<String, Value>) -> String {
    let keys = one.keys().chain(other.keys());
    let key = keys
        .into_iter()
        .find(|key| one.get(*key) != other.get(*key));
    let key = key.map_or("", String::as_str);
    if key == INPUTS {
        let [was, is] = [one, other].map(|it| it.get(key).and_then(Value::as_object));
        let names = was.into_iter().chain(is).flat_map(Map::keys);
        let value = |it: Option<&Map<String, Value>>, name: &str| it?.get(name).cloned();
        let mut changed = names.filter(|name| value(was, name) != value(is, name));
        let name = changed.next().map_or(INPUTS, String::as_str);
        return format!("the files that `{name}` names have changed since");
    }
    let [one, other] = [one, other].map(|it| it.get(key).unwrap_or(&Value::Null).to_string());
    format!("`{key}` was {one} and is {other}")
}

/// The path of a run's directory below that of all runs.
pub(crate) fn path_of(result: &RunResult) -> PathBuf {
    let seed = match (result.trial, result.trial_steps) {
        (false, _) => format!("seed-{}", result.seed),
        (true, None) => format!("trial-{}", result.seed),
        (true, Some(steps)) => format!("trial-{}-{steps}-steps", result.seed),
    };
    let parts = [
        &result.model,
        &result.task,
        &result.name,
        &result.point,
        &seed,
    ];
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.map(|part| file_name(part)).collect()
}

/// The longest name of a directory; settings of many keys would make longer ones.
const LONGEST: usize = 120;

/// A name as a file system takes it.
fn file_name(name: &str) -> String {
    let plain = |character: char| match character {
        '-' | '_' | '.' | '+' => character,
        letter if letter.is_alphanumeric() => letter,
        _ => '_',
    };
    let plain: String = name.chars().map(plain).collect();
    match plain.trim_start_matches('.') {
        "" => "_".to_owned(),
        trimmed => shortened(trimmed, LONGEST),
    }
}

/// The name of a file, with a hash in the place of what is beyond `longest` bytes.
pub(crate) fn shortened(name: &str, longest: usize) -> String {
    if name.len() <= longest {
        return name.to_owned();
    }
    let hash = &sha256(name.as_bytes())[..16];
    let end = name.floor_char_boundary(longest - hash.len() - 1);
    format!("{}-{hash}", &name[..end])
}

/// Removes everything from a run's directory but its log and its account.
fn clear(directory: &Path) -> Result<(), CompareError> {
    if !directory.is_dir() {
        return Ok(());
    }
    let entries = std::fs::read_dir(directory).map_err(FileError::at("read", directory))?;
    for entry in entries {
        let path = entry.map_err(FileError::at("read", directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if matches!(&*name, "log.jsonl" | "account.json") || name.starts_with('.') {
            continue;
        }
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        removed.map_err(FileError::at("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Shard, file_name};

    #[test]
    fn shards_have_every_method_once() {
        for count in 1..5 {
            let shards = (1..=count).map(|number| Shard { number, count });
            let shards: Vec<Shard> = shards.collect();
            for method in 0..20 {
                assert_eq!(shards.iter().filter(|shard| shard.has(method)).count(), 1);
            }
        }
        assert_eq!(
            "2/3".parse(),
            Ok(Shard {
                number: 2,
                count: 3
            })
        );
        for wrong in ["0/3", "4/3", "1", "1/0", "a/b"] {
            wrong.parse::<Shard>().unwrap_err();
        }
    }

    #[test]
    fn names_become_names_of_files() {
        assert_eq!(file_name("lora, rank 8"), "lora__rank_8");
        assert_eq!(file_name("../up"), "_up");
        assert_eq!(file_name(".."), "_");
        let [one, other] = ["a", "b"].map(|end| file_name(&("x".repeat(300) + end)));
        assert!(one.len() <= 120 && one != other, "{one}");
        assert!(file_name(&"é".repeat(300)).len() <= 120);
        assert_ne!(file_name("情感"), file_name("日志"));
    }
}
