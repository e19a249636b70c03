//! A task with its columns and classes, as an adapter's file stores it, and a model ready for it.

use std::path::Path;

use burn::tensor::Device;
use epiphyte_data::{
    Batches, Columns, DataError, Day, EncodeOptions, Examples, Fields, LabelSet, Order,
    ReadOptions, Table, Tokenizer, WordPlace, WritingPrompt, check_max_length,
};
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::heads::EmbeddingHead;
use epiphyte_models::{Adapter, Base, HeadKind, LoadOptions, Loaded, load, load_sharing};
use serde::{Deserialize, Serialize};

use super::TaskKind;
use crate::TrainError;
use crate::scoring::model_input::longest_example;

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
    /// Whether their order is that of ids that others use too: those of the base's `id2label`, or
    /// those that the user gives. False if the names were sorted, and in older adapters.
    #[serde(default)]
    pub labels_by_id: bool,
    /// How embeddings are made and compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<EmbeddingHead>,
    /// The words that stand for each class in a cloze template, in the order of the classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbalizer: Vec<Vec<String>>,
    /// Where the model predicts the word of a cloze template.
    #[serde(default, skip_serializing_if = "is_mask")]
    pub word_place: WordPlace,
    /// Longest example in tokens.
    pub max_length: usize,
    /// Question answering: how many tokens neighboring windows of a text share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doc_stride: Option<usize>,
    /// Question answering: the longest answer in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer_length: Option<usize>,
    /// Question answering: whether a question may have no answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub version_2_with_negative: bool,
    /// Plain text is joined and cut into examples of `max_length`.
    #[serde(default)]
    pub packing: bool,
    /// A chat template in place of the base model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The day that the chat template reads; the current one if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub today: Option<Day>,
    /// CSV and TSV files have no header.
    #[serde(default)]
    pub no_header: bool,
    /// Whether `"` quotes fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quoting: Option<bool>,
    /// The character between the fields of CSV and TSV files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
}

impl TaskSpec {
    /// A task with the default columns, no classes yet, and examples of at most this many tokens.
    pub fn new(task: TaskKind, max_length: usize) -> Self {
        Self {
            task,
            columns: Columns::default(),
            labels: Vec::new(),
            labels_by_id: false,
            embedding: None,
            verbalizer: Vec::new(),
            word_place: WordPlace::default(),
            max_length,
            doc_stride: None,
            max_answer_length: None,
            version_2_with_negative: false,
            packing: false,
            chat_template: None,
            today: None,
            no_header: false,
            quoting: None,
            delimiter: None,
        }
    }

    /// The task that an adapter of ours records; none in an adapter that PEFT wrote.
    ///
    /// # Errors
    /// If the record is malformed.
    pub fn recorded(file: &AdapterFile) -> serde_json::Result<Option<Self>> {
        let ours = file.provenance();
        ours.map(|ours| Self::deserialize(&ours.task)).transpose()
    }

    /// The classes, in the order of their ids.
    ///
    /// # Errors
    /// [`DataError::LabelSet`] if there is none, or one twice.
    pub(crate) fn label_set(&self) -> Result<LabelSet, DataError> {
        let labels = LabelSet::from_names(self.labels.iter().cloned())?;
        Ok(labels.in_order_of_ids(self.labels_by_id))
    }

    /// The head that the task needs.
    pub fn head(&self) -> HeadKind {
        self.task.head_of(self)
    }

    /// How files of this task are read: the columns that it needs.
    ///
    /// # Errors
    /// If the prompt template is invalid.
    pub fn reading(&self) -> Result<ReadOptions, TrainError> {
        let columns = self.task.columns_to_read(&self.columns);
        Ok(ReadOptions {
            header: !self.no_header,
            quoting: self.quoting,
            delimiter: self.delimiter,
            columns: Some(columns.map_err(|error| TrainError::of_columns(self.task, error))?),
            ..self.task.plain_text(&self.columns)
        })
    }

    /// What the columns of a row are to the task.
    fn fields(&self, labelled: bool) -> Result<Fields, TrainError> {
        let fields = self.task.fields(self, labelled);
        fields.map_err(|error| TrainError::of_columns(self.task, error))
    }

    /// What a model of this task is to write about.
    ///
    /// # Errors
    /// If the task writes no text, columns are missing, or a row cannot be read.
    pub fn prompts(
        &self,
        table: &Table,
        tokenizer: &Tokenizer,
        references: Option<&str>,
    ) -> Result<Vec<WritingPrompt>, TrainError> {
        let fields = self.fields(false)?;
        let prompts =
            WritingPrompt::of_table(table, &fields, tokenizer, references, self.max_length);
        prompts.map_err(|error| TrainError::of_columns(self.task, error))
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
        let fields = self.fields(labelled)?;
        let options = EncodeOptions {
            packing: self.packing,
            doc_stride: self.doc_stride,
            ..EncodeOptions::new(self.max_length)
        };
        let examples = Examples::encode(table, &fields, tokenizer, &options);
        examples.map_err(|error| TrainError::of_columns(self.task, error))
    }
}

fn is_mask(place: &WordPlace) -> bool {
    *place == WordPlace::Mask
}

/// The rows of a data set, with what turned them into examples.
#[derive(Clone, Copy, Debug)]
pub struct TaskRows<'a> {
    /// The rows.
    pub table: &'a Table,
    /// The tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The task.
    pub spec: &'a TaskSpec,
}

/// A base model with its tokenizer, ready for a task.
#[derive(Debug)]
pub struct TaskModel {
    /// The model.
    pub loaded: Loaded,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The task.
    pub spec: TaskSpec,
}

impl TaskModel {
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
    /// As [`TaskModel::open`].
    pub fn beside(
        base: &Base,
        model: &Path,
        spec: TaskSpec,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<Self, TrainError> {
        let loaded = load_sharing(base, model, spec.head(), device, options)?;
        Self::with(loaded, model, spec)
    }

    fn with(mut loaded: Loaded, model: &Path, spec: TaskSpec) -> Result<Self, TrainError> {
        let mut tokenizer = Tokenizer::load(model)?;
        if let Some(template) = &spec.chat_template {
            tokenizer.set_chat_template(template.clone());
        }
        if let Some(day) = spec.today {
            tokenizer.set_today(day);
        }
        check_max_length(
            spec.max_length,
            loaded
                .config
                .facts()
                .max_position_embeddings
                .unwrap_or(usize::MAX),
        )?;
        spec.task.prepare(&spec, &tokenizer, &mut loaded.model)?;
        Ok(Self {
            loaded,
            tokenizer,
            spec,
        })
    }

    /// Shortens the task's `max_length` to the positions that the model has besides those that
    /// `adapter` takes, for a length that is a default and not the user's choice.
    pub fn fit_max_length(&mut self, adapter: &dyn Adapter) {
        let longest = longest_example(&self.loaded.model, adapter);
        let max_length = &mut self.spec.max_length;
        *max_length = longest.unwrap_or(*max_length).min(*max_length);
    }

    /// The rows of a table, from which [`TaskModel::batches`] makes examples.
    pub fn rows<'a>(&'a self, table: &'a Table) -> TaskRows<'a> {
        TaskRows {
            table,
            tokenizer: &self.tokenizer,
            spec: &self.spec,
        }
    }

    /// The examples of a table, in batches.
    ///
    /// # Errors
    /// As [`TaskSpec::examples`].
    pub fn batches(
        &self,
        table: &Table,
        labelled: bool,
        batch_size: usize,
        order: Order,
    ) -> Result<Batches, TrainError> {
        let examples = self.spec.examples(table, &self.tokenizer, labelled)?;
        let seed = match order {
            Order::Sequential => 0,
            Order::Shuffled { seed } | Order::LengthGrouped { seed } => seed,
        };
        let batches = Batches::of(examples, batch_size, order)?;
        Ok(match self.spec.task.masking(&self.tokenizer, seed)? {
            Some(masking) => batches.masked(masking),
            None => batches,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_that_do_not_fit_name_the_task() {
        // A text column has a default name where the text itself is what is predicted.
        let tasks = super::super::names().into_iter();
        let tasks = tasks.map(|name| name.parse::<TaskKind>().unwrap());
        for task in tasks.filter(|task| !task.predicts_text()) {
            let spec = TaskSpec {
                labels: vec!["1".to_owned()],
                ..TaskSpec::new(task, 8)
            };
            let error = spec.fields(true).unwrap_err().to_string();
            assert!(error.starts_with(task.name()), "{error}");
        }
    }
}
