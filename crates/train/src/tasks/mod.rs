//! Tasks: what a model learns to do. One file each, and the table that lists them.
//!
//! A task goes from the columns of a file to examples, says which head the model needs, and scores
//! what the model predicts. Adding one touches its own file and its line in [`TASKS`].

mod causal_lm;
pub mod class_order;
pub mod presets;
mod regression;
mod seq2seq;
mod sequence_classification;
mod spec;

use std::fmt;
use std::str::FromStr;

use epiphyte_data::{Columns, DataError, Fields, Table};
use epiphyte_models::config::ProblemType;
use epiphyte_models::{HeadKind, ModelConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::spec::{TaskModel, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::Evaluation;
use crate::scoring::metrics::{DetailedScores, Metrics};

/// The tasks there are; the first is the default.
pub static TASKS: &[&dyn Task] = &[
    &sequence_classification::SequenceClassification,
    &regression::Regression,
    &causal_lm::CausalLm,
    &seq2seq::Seq2Seq,
];

/// What a model learns to do.
pub trait Task: fmt::Debug + Sync {
    /// The name in configurations and on the command line.
    fn name(&self) -> &'static str;

    /// One line on what is predicted.
    fn summary(&self) -> &'static str;

    /// Former names, which stay accepted.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// HF PEFT's `task_type` in `adapter_config.json`.
    fn peft_task_type(&self) -> &'static str;

    /// The hub's `pipeline_tag` for the model card.
    fn pipeline_tag(&self) -> &'static str;

    /// The head that a model needs; `labels` is the number of classes.
    fn head(&self, labels: usize) -> HeadKind;

    /// The longest example in tokens, if nothing is set.
    fn default_max_length(&self) -> usize {
        128
    }

    /// The flags that name its columns, for hints.
    fn column_flags(&self) -> &'static str {
        "--text-columns and --label-column"
    }

    /// The columns by name: those configured, or where there are none those by which the task
    /// recognizes its data.
    ///
    /// # Errors
    /// If the data may be read in several ways.
    fn columns(&self, columns: &Columns, _table: &Table) -> Result<Columns, DataError> {
        Ok(columns.clone())
    }

    /// The columns that are to be read from a file before [`Task::columns`] is known.
    ///
    /// # Errors
    /// If the prompt template is invalid.
    fn columns_to_read(&self, columns: &Columns) -> Result<Vec<String>, DataError> {
        columns.named()
    }

    /// The names of the classes that a column has, sorted; none if the task has no classes.
    ///
    /// # Errors
    /// If the column is missing or holds no labels.
    fn classes(&self, _columns: &Columns, _table: &Table) -> Result<Vec<String>, DataError> {
        Ok(Vec::new())
    }

    /// Whether predictions are classes, whose names an adapter must know.
    fn has_classes(&self) -> bool {
        false
    }

    /// Whether the model predicts text, token by token.
    fn predicts_text(&self) -> bool {
        self.head(0) == HeadKind::LanguageModel
    }

    /// What the columns of a row are to the task; labels are not read if `labelled` is false.
    ///
    /// # Errors
    /// If the columns do not fit the task.
    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError>;

    /// The names of the scores that [`Task::evaluate`] measures, sorted: those of data with this
    /// many classes, or all there may be.
    fn scores(&self, classes: Option<usize>) -> Vec<&'static str>;

    /// Checks what training data must have beside the right columns.
    ///
    /// # Errors
    /// If nothing can be learned from the data.
    fn check_training_data(&self, _columns: &Columns, _table: &Table) -> Result<(), DataError> {
        Ok(())
    }

    /// Scores over a data set with labels; `loss` is always one of them.
    ///
    /// # Errors
    /// If there is nothing to score, or a number is not finite.
    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Metrics, TrainError>;

    /// [`Task::evaluate`], with what the scores of a classification are made of.
    ///
    /// # Errors
    /// As [`Task::evaluate`].
    fn evaluate_in_detail(
        &self,
        evaluation: &Evaluation<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        Ok(DetailedScores {
            metrics: self.evaluate(evaluation, observer)?,
            confusion: None,
        })
    }
}

/// A task of [`TASKS`].
#[derive(Clone, Copy, Debug)]
pub struct TaskKind(&'static dyn Task);

impl TaskKind {
    /// The task whose adapters say this `task_type`, for a head with this many outputs where there
    /// is one.
    pub fn from_peft(task_type: &str, outputs: Option<usize>) -> Option<Self> {
        let fits = |task: &&&dyn Task| {
            let has_classes = outputs.is_none_or(|outputs| (outputs > 1) == task.has_classes());
            task.peft_task_type() == task_type && (task.predicts_text() || has_classes)
        };
        TASKS.iter().find(fits).map(|&task| Self(task))
    }

    /// The task that a base's `config.json` says its head is for; none if it does not say, or if
    /// there is no such task.
    pub fn of_base(config: &ModelConfig) -> Option<Self> {
        let facts = config.facts();
        let outputs = facts.labels.num_labels();
        let peft_task_type = facts.architectures.iter().find_map(|class| {
            let kinds = [
                ("ForSequenceClassification", "SEQ_CLS"),
                ("ForCausalLM", "CAUSAL_LM"),
                ("LMHeadModel", "CAUSAL_LM"),
                ("ForConditionalGeneration", "SEQ_2_SEQ_LM"),
            ];
            let fits = |(ending, _): &(&str, &str)| class.ends_with(ending);
            kinds.into_iter().find(fits).map(|(_, task_type)| task_type)
        })?;
        if facts.labels.problem_type == Some(ProblemType::Regression) && outputs > 1 {
            return None;
        }
        Self::from_peft(peft_task_type, Some(outputs))
    }

    /// The first task that predicts text.
    pub fn text() -> Self {
        let text = TASKS.iter().find(|task| task.predicts_text());
        Self(*text.expect("a task of the table predicts text"))
    }
}

impl std::ops::Deref for TaskKind {
    type Target = dyn Task;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl Default for TaskKind {
    fn default() -> Self {
        Self(TASKS[0])
    }
}

impl PartialEq for TaskKind {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for TaskKind {}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TaskKind {
    type Err = TrainError;

    fn from_str(name: &str) -> Result<Self, TrainError> {
        let is_called = |task: &&&dyn Task| task.name() == name || task.aliases().contains(&name);
        match TASKS.iter().find(is_called) {
            Some(&task) => Ok(Self(task)),
            None => Err(TrainError::UnknownTask {
                name: name.to_owned(),
                known: quoted(names()),
            }),
        }
    }
}

/// Names in backquotes, separated by commas.
fn quoted(names: Vec<&str>) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

/// The names of all tasks.
pub fn names() -> Vec<&'static str> {
    TASKS.iter().map(|task| task.name()).collect()
}

impl Serialize for TaskKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TaskKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_former_ones_accepted() {
        for task in TASKS {
            let mut spellings = vec![task.name()];
            spellings.extend(task.aliases());
            for name in spellings {
                assert_eq!(name.parse::<TaskKind>().unwrap().name(), task.name());
            }
        }
        let error = "poetry".parse::<TaskKind>().unwrap_err().to_string();
        assert!(
            error.contains("poetry") && error.contains(TASKS[0].name()),
            "{error}"
        );
    }
}
