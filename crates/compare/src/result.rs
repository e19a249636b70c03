//! The result of one run, as it lies in the run's directory and in `results.json`.

use std::path::Path;

use epiphyte_io::FileError;
use epiphyte_methods::file::CONFIG_FILE;
use epiphyte_methods::{ParameterCounts, by_name};
use epiphyte_train::report::account::{Change, Cost, RunAccount};
use epiphyte_train::report::journal::{self, Record};
use epiphyte_train::scoring::metrics::Metrics;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::CompareError;
use crate::suite::Group;

/// The file of a result in a run's directory.
pub(crate) const RESULT_FILE: &str = "result.json";

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It was trained and scored.
    Finished,
    /// The method cannot act on the model or for the task, or its defaults do not fit and the suite
    /// gives no others.
    NotApplicable,
    /// It was not run, because it would need more than a budget allows.
    BeyondBudget,
    /// It went wrong.
    Failed,
}

impl Status {
    /// Whether a run that ended so is not made again.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Finished | Self::NotApplicable)
    }
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The method.
    pub method: String,
    /// The method's name in the suite.
    pub name: String,
    /// The model's name in the suite.
    pub model: String,
    /// The task's name in the suite.
    pub task: String,
    /// The run's seed.
    pub seed: u64,
    /// What tells its settings apart from others of the method; empty if there is no choice.
    pub point: String,
    /// Whether it was run to choose settings, and does not count.
    pub trial: bool,
    /// The optimizer steps of a trial that has a part of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_steps: Option<u64>,
    /// Whether it had the settings of the method's example, because its defaults do not fit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used_example: bool,
    /// How it ended.
    pub status: Status,
    /// Why it did not finish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which score counts.
    pub score_name: String,
    /// The score.
    pub score: Option<f64>,
    /// All scores.
    pub metrics: Metrics,
    /// What the method declares.
    #[serde(flatten)]
    pub declared: Option<ParameterCounts>,
    /// What training changed.
    pub change: Option<Change>,
    /// What training took.
    pub cost: Option<Cost>,
    /// The mean training loss of logged steps: step and loss.
    pub losses: Vec<(u64, f64)>,
    /// The score of each evaluation: step and score.
    pub scores: Vec<(u64, f64)>,
    /// The settings of the run.
    pub settings: Map<String, Value>,
    /// The adapter's configuration as its file has it, with what the settings leave to the base.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub adapter_config: Map<String, Value>,
}

impl RunResult {
    /// A run of a group that has not ended yet; a trial with its steps, if it has a part of them.
    pub(crate) fn new(group: &Group, point: &str, seed: u64, trial: Option<Option<u64>>) -> Self {
        Self {
            method: group.method.clone(),
            name: group.name.clone(),
            model: group.model.clone(),
            task: group.task.clone(),
            seed,
            point: point.to_owned(),
            trial: trial.is_some(),
            trial_steps: trial.flatten(),
            used_example: false,
            status: Status::Failed,
            reason: None,
            score_name: group.score.clone(),
            score: None,
            metrics: Metrics::default(),
            declared: None,
            change: None,
            cost: None,
            losses: Vec::new(),
            scores: Vec::new(),
            settings: Map::new(),
            adapter_config: Map::new(),
        }
    }

    /// A finished training run that belongs to no suite, from its directory.
    ///
    /// # Errors
    /// [`CompareError::Empty`] if there is no log; if a file is malformed.
    pub fn of_directory(directory: &Path) -> Result<Self, CompareError> {
        let log = directory.join("log.jsonl");
        if !log.is_file() {
            return Err(CompareError::Empty {
                path: directory.to_owned(),
                what: "log of a run",
                give: "the output directories of `epiphyte train`",
            });
        }
        let account = RunAccount::read(directory)?;
        let name = directory.file_name().unwrap_or(directory.as_os_str());
        let name = name.to_string_lossy().into_owned();
        let method = account.as_ref().map_or("?", |account| &account.method);
        let mut result = Self {
            method: method.to_owned(),
            name,
            model: String::new(),
            task: String::new(),
            seed: 0,
            point: String::new(),
            trial: false,
            trial_steps: None,
            used_example: false,
            status: Status::Finished,
            reason: None,
            score_name: String::new(),
            score: None,
            metrics: Metrics::default(),
            declared: account.as_ref().map(|account| account.declared),
            change: account.as_ref().map(|account| account.change.clone()),
            cost: account.map(|account| account.cost),
            losses: Vec::new(),
            scores: Vec::new(),
            settings: Map::new(),
            adapter_config: Map::new(),
        };
        if let Some(last) = result.read_log(directory)? {
            result.score = last.get(&result.score_name);
            result.metrics = last;
        }
        Ok(result)
    }

    /// Takes the curves from a run's log, and the name of the score where none is known. Returns
    /// the scores of the last evaluation.
    pub(crate) fn read_log(&mut self, directory: &Path) -> Result<Option<Metrics>, CompareError> {
        let records = journal::read(&directory.join("log.jsonl"));
        let records = records.map_err(epiphyte_train::TrainError::from)?;
        let mut last = None;
        for record in records {
            match record {
                Record::Step(step) if step.loss.is_finite() => {
                    self.losses.push((step.step, step.loss));
                }
                Record::Step(_) => {}
                Record::Evaluation(evaluation) => {
                    if self.score_name.is_empty() {
                        self.score_name = evaluation.metrics.leading().to_owned();
                    }
                    let score = evaluation.metrics.get(&self.score_name);
                    let score = score.filter(|score| score.is_finite());
                    self.scores
                        .extend(score.map(|score| (evaluation.step, score)));
                    last = Some(evaluation.metrics);
                }
            }
        }
        Ok(last)
    }

    /// Takes the adapter's configuration from a run's directory, if it has one.
    pub(crate) fn read_adapter(&mut self, directory: &Path) {
        let text = epiphyte_io::read_regular(&directory.join(CONFIG_FILE)).unwrap_or_default();
        self.adapter_config = serde_json::from_slice(&text).unwrap_or_default();
    }

    /// The one whose result is known.
    pub(crate) fn identity(&self) -> [String; 6] {
        let seed = self.seed.to_string();
        let trial = format!("{} {:?}", self.trial, self.trial_steps);
        [
            &self.model,
            &self.task,
            &self.name,
            &self.point,
            &seed,
            &trial,
        ]
        .map(Clone::clone)
    }

    /// The result in a run's directory, if there is one.
    ///
    /// # Errors
    /// [`CompareError::Damaged`].
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, CompareError> {
        let path = directory.join(RESULT_FILE);
        let text = match epiphyte_io::read_regular(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FileError::new("read", &path, error).into()),
        };
        serde_json::from_slice(&text).map_err(|error| CompareError::Damaged {
            path,
            reason: error.to_string(),
        })
    }

    /// Writes the result into a run's directory.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), CompareError> {
        let failed = FileError::at("create", directory);
        std::fs::create_dir_all(directory).map_err(failed)?;
        let text = serde_json::to_string(self).expect("a result is plain values");
        Ok(epiphyte_io::write(
            &directory.join(RESULT_FILE),
            text.as_bytes(),
        )?)
    }

    /// The settings of its method that are not defaults: `rank 8, alpha 16`.
    pub(crate) fn method_settings(&self) -> String {
        let flags = by_name(&self.method).map_or(&[][..], |method| method.flags);
        let is_own = |key: &str| flags.iter().any(|flag| flag.is_called(key));
        let own = self.settings.iter().filter(|(key, _)| is_own(key));
        let texts = own.map(|(key, value)| format!("{key} {value}"));
        texts.collect::<Vec<String>>().join(", ")
    }

    /// The bytes in use at the peak of training.
    pub fn peak_bytes(&self) -> Option<u64> {
        Some(self.cost.as_ref()?.memory?.peak)
    }

    /// Whether the registered method of this name can be merged into its base.
    pub fn merges(&self) -> bool {
        by_name(&self.method).is_ok_and(|method| method.merges)
    }
}
