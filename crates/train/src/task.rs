//! What an adapter's file says about its task, so that `eval` and `predict` need not be told.

use std::path::Path;

use burn::tensor::Device;
use epiphyte_data::{
    Batches, Columns, EncodeOptions, Examples, LabelSet, Labels, Order, ReadOptions, Table,
    TaskKind, Tokenizer, check_max_length,
};
use epiphyte_models::{LoadOptions, Loaded, Task, load};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::RunConfig;

/// A task with everything that turns a file into examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What is learned.
    pub task: TaskKind,
    /// The columns.
    #[serde(flatten)]
    pub columns: Columns,
    /// Names of the classes, in the order of their ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// Longest example in tokens.
    pub max_length: usize,
    /// Plain text is joined and cut into examples of `max_length`.
    #[serde(default)]
    pub packing: bool,
    /// CSV and TSV files have no header.
    #[serde(default)]
    pub no_header: bool,
    /// Whether `"` quotes fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quoting: Option<bool>,
}

impl TaskSpec {
    /// The task of a run. Classes are those of the training data.
    ///
    /// # Errors
    /// If the training data cannot be read.
    pub fn of_run(run: &RunConfig, train: &Table) -> Result<Self, TrainError> {
        let columns = run.columns();
        let labels = match run.task {
            TaskKind::SequenceClassification => {
                let column = columns.label_column.as_deref().unwrap_or("label");
                LabelSet::from_column(train, column)?.names().to_vec()
            }
            _ => Vec::new(),
        };
        let usual = if run.task == TaskKind::CausalLanguageModelling {
            512
        } else {
            128
        };
        Ok(Self {
            task: run.task,
            columns,
            labels,
            max_length: run.max_length.unwrap_or(usual),
            packing: run.packing,
            no_header: run.no_header,
            quoting: run.quoting,
        })
    }

    /// The head that the task needs.
    pub fn head(&self) -> Task {
        match self.task {
            TaskKind::SequenceClassification => Task::SequenceClassification {
                labels: self.labels.len(),
            },
            TaskKind::Regression => Task::Regression,
            TaskKind::CausalLanguageModelling => Task::CausalLanguageModelling,
        }
    }

    /// PEFT's name of the task.
    pub fn peft_task_type(&self) -> &'static str {
        match self.task {
            TaskKind::SequenceClassification | TaskKind::Regression => "SEQ_CLS",
            TaskKind::CausalLanguageModelling => "CAUSAL_LM",
        }
    }

    /// Reads a data file.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(
        &self,
        path: &Path,
        options: &ReadOptions,
        limit: Option<usize>,
    ) -> Result<Table, TrainError> {
        Ok(Table::read(
            path,
            &ReadOptions {
                limit,
                ..options.clone()
            },
        )?)
    }

    /// How files of this task are read.
    pub fn reading(&self) -> ReadOptions {
        ReadOptions {
            header: !self.no_header,
            quoting: self.quoting,
            ..ReadOptions::default()
        }
    }

    /// The examples of a table; without targets if `labelled` is false.
    ///
    /// # Errors
    /// If columns are missing or labels unknown.
    pub fn examples(
        &self,
        table: &Table,
        tokenizer: &Tokenizer,
        labelled: bool,
    ) -> Result<Examples, TrainError> {
        let set;
        let labels = match self.task {
            _ if !labelled => Labels::Absent,
            TaskKind::SequenceClassification => {
                set = LabelSet::from_names(self.labels.iter().cloned())?;
                Labels::Classes(&set)
            }
            TaskKind::Regression => Labels::Numbers,
            TaskKind::CausalLanguageModelling => Labels::Absent,
        };
        let fields = self.columns.resolve(self.task)?;
        let options = EncodeOptions {
            max_length: self.max_length,
            packing: self.packing,
        };
        Ok(Examples::encode(
            table, &fields, labels, tokenizer, &options,
        )?)
    }
}

/// A base model with its tokenizer, ready for a task.
#[derive(Debug)]
pub struct Workbench {
    /// The model.
    pub loaded: Loaded,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The task.
    pub spec: TaskSpec,
}

impl Workbench {
    /// Reads model and tokenizer for a task.
    ///
    /// # Errors
    /// If files are missing or malformed, or `max_length` is over the model's limit.
    pub fn open(
        model: &Path,
        spec: TaskSpec,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let loaded = load(model, spec.head(), device, options)?;
        Self::with(loaded, model, spec)
    }

    /// The same for another task over a base that is in memory already.
    ///
    /// # Errors
    /// As [`Workbench::open`].
    pub fn beside(
        loaded: &Loaded,
        model: &Path,
        spec: TaskSpec,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let loaded = loaded.for_task(model, spec.head(), device, options)?;
        Self::with(loaded, model, spec)
    }

    fn with(loaded: Loaded, model: &Path, spec: TaskSpec) -> Result<Self, TrainError> {
        let tokenizer = Tokenizer::load(model)?;
        check_max_length(spec.max_length, loaded.config.max_position_embeddings())?;
        Ok(Self {
            loaded,
            tokenizer,
            spec,
        })
    }

    /// The examples of a table, in batches.
    ///
    /// # Errors
    /// As [`TaskSpec::examples`]; if a token is not in the model's vocabulary.
    pub fn batches(
        &self,
        table: &Table,
        labelled: bool,
        batch_size: usize,
        order: Order,
    ) -> Result<Batches, TrainError> {
        let examples = self
            .spec
            .examples(table, &self.tokenizer, labelled)?
            .examples;
        let vocabulary = self.loaded.config.vocab_size();
        let largest = examples.iter().flat_map(|example| &example.ids).max();
        if let Some(&id) = largest.filter(|&&id| id as usize >= vocabulary) {
            return Err(TrainError::Vocabulary { id, vocabulary });
        }
        Ok(Batches::new(examples, batch_size, order)?)
    }
}
