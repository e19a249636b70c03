//! Tasks: what a model learns to do. One file each, and the table that lists them.
//!
//! A task goes from the columns of a file to examples, says which head the model needs, and scores
//! what the model predicts. Adding one touches its own file and its line in [`TASKS`].

mod causal_lm;
pub mod class_order;
mod cloze;
mod masked_lm;
mod multi_label_classification;
mod multiple_choice;
pub mod presets;
pub(crate) mod question_answering;
mod regression;
mod sentence_embedding;
mod seq2seq;
mod sequence_classification;
mod spec;
mod token_classification;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use epiphyte_data::{
    Columns, DataError, Fields, Layout, Masking, OutputColumn, OutputFormat, ReadOptions, Table,
    Tokenizer,
};
use epiphyte_models::config::ProblemType;
use epiphyte_models::{HeadKind, Model, ModelConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use self::spec::{TaskModel, TaskRows, TaskSpec};
use crate::observer::Observer;
use crate::scoring::evaluate::Evaluation;
use crate::scoring::metrics::DetailedScores;
use crate::{RunConfig, TrainError};

/// The tasks there are; the first is the default.
pub static TASKS: &[&dyn Task] = &[
    &sequence_classification::SequenceClassification,
    &regression::Regression,
    &token_classification::TokenClassification,
    &question_answering::QuestionAnswering,
    &multiple_choice::MultipleChoice,
    &multi_label_classification::MultiLabelClassification,
    &causal_lm::CausalLm,
    &seq2seq::Seq2Seq,
    &sentence_embedding::SentenceEmbedding,
    &masked_lm::MaskedLm,
    &cloze::ClozeTask,
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

    /// HF PEFT's `task_type` in `adapter_config.json`; empty if it has none for the task.
    fn peft_task_type(&self) -> &'static str;

    /// The class of transformers that opens a base with its head, for the model card.
    fn auto_class(&self, spec: &TaskSpec) -> &'static str;

    /// The hub's `pipeline_tag` for the model card.
    fn pipeline_tag(&self, spec: &TaskSpec) -> &'static str;

    /// Whether a class of transformers, as `architectures` names it, has its head.
    fn is_of_class(&self, class: &str) -> bool {
        let ending = self.head(0).class_ending();
        ending.is_some_and(|ending| class.ends_with(ending))
    }

    /// Whether a head of its kind with this many outputs may be for it, where the configuration
    /// says `problem` of it or nothing.
    fn fits(&self, _outputs: usize, _problem: Option<ProblemType>) -> bool {
        true
    }

    /// The `problem_type` of its head in `config.json`, where heads of one kind are for several
    /// problems.
    fn problem_type(&self) -> Option<ProblemType> {
        None
    }

    /// The head that a model needs; `labels` is the number of classes.
    fn head(&self, labels: usize) -> HeadKind;

    /// As [`Task::head`], with all that is known of the task.
    fn head_of(&self, spec: &TaskSpec) -> HeadKind {
        self.head(spec.labels.len())
    }

    /// Reads the task's settings that a base's directory has.
    ///
    /// # Errors
    /// If a file there is malformed.
    fn of_directory(&self, _spec: &mut TaskSpec, _model: &Path) -> Result<(), TrainError> {
        Ok(())
    }

    /// Takes from a run what its settings say of the task.
    ///
    /// # Errors
    /// If they contradict each other or the data.
    fn configure(&self, _spec: &mut TaskSpec, _run: &RunConfig) -> Result<(), TrainError> {
        Ok(())
    }

    /// Makes a model that was loaded one of the task.
    ///
    /// # Errors
    /// If the tokenizer does not fit the task.
    fn prepare(
        &self,
        _spec: &TaskSpec,
        _tokenizer: &Tokenizer,
        _model: &mut Model,
    ) -> Result<(), TrainError> {
        Ok(())
    }

    /// What hides tokens of the examples.
    ///
    /// # Errors
    /// If the tokenizer has no mask token.
    fn masking(&self, _tokenizer: &Tokenizer, _seed: u64) -> Result<Option<Masking>, DataError> {
        Ok(None)
    }

    /// Files that an adapter of the task and a merged model have beside their own, as paths below
    /// their directories.
    fn files(&self, _spec: &TaskSpec, _hidden_size: usize) -> Vec<(PathBuf, Value)> {
        Vec::new()
    }

    /// The longest example in tokens, if nothing is set.
    fn default_max_length(&self) -> usize {
        128
    }

    /// The flags that name its columns, for hints.
    fn column_flags(&self) -> &'static str {
        "--text-columns and --label-column"
    }

    /// The layouts by which the task recognizes its data, where no input is named.
    fn layouts(&self) -> &'static [Layout] {
        &[]
    }

    /// The names that the label's column may have, where none is named, besides `label`.
    fn label_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// The columns by name: those configured, or where there are none those by which the task
    /// recognizes its data.
    ///
    /// # Errors
    /// If the data may be read in several ways.
    fn columns(&self, columns: &Columns, table: &Table) -> Result<Columns, DataError> {
        let mut columns = columns.recognized(table, self.layouts())?;
        if columns.label_column.is_none() {
            columns.label_column = table.first_of(self.label_names()).map(str::to_owned);
        }
        Ok(columns)
    }

    /// The columns that are to be read from a file before [`Task::columns`] is known.
    ///
    /// # Errors
    /// If the prompt template is invalid.
    fn columns_to_read(&self, columns: &Columns) -> Result<Vec<String>, DataError> {
        let mut names = columns.to_read(self.layouts())?;
        names.extend(self.label_names().iter().map(|&name| name.to_owned()));
        Ok(names)
    }

    /// Whether its loss is a cross-entropy, in which targets may be smoothed.
    fn smooths_targets(&self) -> bool {
        let of_sums = [
            ProblemType::Regression,
            ProblemType::MultiLabelClassification,
        ];
        self.problem_type().is_none_or(|it| !of_sums.contains(&it))
    }

    /// Whether long texts are read in windows that overlap, and answers are parts of them.
    fn reads_windows(&self) -> bool {
        false
    }

    /// Whether a file of plain text is one row; else each of its lines is.
    fn reads_whole_files(&self) -> bool {
        false
    }

    /// How a file of plain text is read: as the column of texts that an example reads, if there is
    /// one only.
    fn plain_text(&self, columns: &Columns) -> ReadOptions {
        let mut options = ReadOptions {
            lines: !self.reads_whole_files(),
            ..ReadOptions::default()
        };
        let targets = [
            Some(columns.label()),
            columns.target_column.as_deref(),
            columns.completion_column.as_deref(),
        ];
        let mut inputs = self.columns_to_read(columns).unwrap_or_default();
        inputs.retain(|column| {
            let column = column.as_str();
            !targets.contains(&Some(column)) && columns.label_columns.iter().all(|it| it != column)
        });
        inputs.dedup();
        if let [only] = inputs.as_slice() {
            options.text_column.clone_from(only);
        }
        options
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

    /// Whether the logits of an example are those of several classes or choices, of which the
    /// largest is predicted.
    fn is_one_of_several(&self) -> bool {
        false
    }

    /// Whether the model predicts text, token by token.
    fn predicts_text(&self) -> bool {
        self.head(0) == HeadKind::LanguageModel
    }

    /// Adds what follows from the training data to the task, which an adapter then records.
    ///
    /// # Errors
    /// If columns are missing or hold something else.
    fn complete(&self, _spec: &mut TaskSpec, _train: &Table) -> Result<(), DataError> {
        Ok(())
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

    /// Scores over a data set with labels; `loss` is always one of them. `rows` are those of the
    /// evaluation's examples.
    ///
    /// # Errors
    /// If there is nothing to score, or a number is not finite.
    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError>;

    /// What the model says of each row, as columns for a file of this format; nothing if it is not
    /// for this task to say, but for `generate`.
    ///
    /// # Errors
    /// [`TrainError::NoPredictions`] if the task predicts text; if a number is not finite.
    fn predictions(
        &self,
        _evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        _format: OutputFormat,
        _observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        Err(TrainError::NoPredictions)
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
            let has_outputs = outputs.is_none_or(|outputs| task.fits(outputs, None));
            task.peft_task_type() == task_type && has_outputs
        };
        TASKS.iter().find(fits).map(|&task| Self(task))
    }

    /// The task that a base's `config.json` says its head is for; none if it does not say, or if
    /// there is no such task.
    pub fn of_base(config: &ModelConfig) -> Option<Self> {
        let facts = config.facts();
        let (outputs, problem) = (facts.labels.num_labels(), facts.labels.problem_type);
        let fits = |task: &&&dyn Task| {
            let mut classes = facts.architectures.iter();
            classes.any(|class| task.is_of_class(class)) && task.fits(outputs, problem)
        };
        TASKS.iter().find(fits).map(|&task| Self(task))
    }

    /// The task of sentence embeddings.
    pub fn embedding() -> Self {
        Self(&sentence_embedding::SentenceEmbedding)
    }

    /// The task of words for a template.
    pub fn cloze() -> Self {
        Self(&cloze::ClozeTask)
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
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_of_plain_text_is_the_column_that_an_example_reads() {
        let read = |task: &str, columns: serde_json::Value| {
            let task: TaskKind = task.parse().unwrap();
            let columns: Columns = serde_json::from_value(columns).unwrap();
            task.plain_text(&columns).text_column
        };
        for (task, columns, column) in [
            ("sequence-classification", json!({}), "text"),
            (
                "sequence-classification",
                json!({ "text_columns": ["review"] }),
                "review",
            ),
            (
                "sequence-classification",
                json!({ "text_columns": ["a", "b"] }),
                "text",
            ),
            (
                "seq2seq",
                json!({ "source_column": "article", "target_column": "summary" }),
                "article",
            ),
            (
                "cloze",
                json!({ "prompt_template": "{sentence} It was {mask}." }),
                "sentence",
            ),
            (
                "cloze",
                json!({ "prompt_template": "{a}? {mask}, {b}" }),
                "text",
            ),
        ] {
            assert_eq!(read(task, columns.clone()), column, "{task}: {columns}");
        }
    }

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
