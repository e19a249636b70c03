//! The arguments that `eval` and `predict` share: a base model, an adapter or the base's own head,
//! and a file of examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::{Batches, LabelSet, Order, Table};
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::{HeadKind, LoadOptions, ModelConfig};
use epiphyte::ops::Precision;
use epiphyte::train::tasks::names as task_names;
use epiphyte::train::{LoadedAdapter, TaskKind, TaskSpec, open_adapter};

use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;

/// The flags of `eval` and `predict`.
#[derive(Args, Debug)]
pub(crate) struct DataArguments {
    /// Examples: .jsonl, .json, .csv, .tsv, .parquet or .txt
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Use only the first N rows
    #[arg(long, value_name = "N")]
    max_rows: Option<usize>,
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    task: TaskArguments,
}

/// A base model and an adapter.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// Directory of the base model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory of the adapter, or its name on the hub [default: the base model alone]
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Allow another base model than the adapter was trained with
    #[arg(long)]
    pub(crate) allow_other_base: bool,
    /// Data type of the frozen base: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) precision: Precision,
}

impl ModelArguments {
    /// Finds the base model's directory and reads the adapter's configuration.
    pub(crate) fn locate(&self) -> Result<Located<'_>> {
        let adapter = self.adapter.as_deref().map(hub::resolve_adapter);
        let adapter = adapter.transpose()?;
        let adapter = adapter.as_deref().map(AdapterFile::open);
        Ok(Located {
            arguments: self,
            adapter: adapter.transpose()?,
            model: hub::resolve(&self.model)?,
        })
    }
}

/// A base and an adapter that have been found, but not loaded.
pub(crate) struct Located<'a> {
    arguments: &'a ModelArguments,
    /// Directory of the base model.
    pub(crate) model: PathBuf,
    /// The adapter's configuration, if there is an adapter.
    pub(crate) adapter: Option<AdapterFile>,
}

impl Located<'_> {
    /// Loads base and adapter for a task.
    pub(crate) fn load(self, spec: TaskSpec, global: &Global) -> Result<LoadedAdapter> {
        let load = LoadOptions {
            precision: self.arguments.precision,
            ..LoadOptions::default()
        };
        Ok(open_adapter(
            &self.model,
            self.adapter,
            Some(spec),
            self.arguments.allow_other_base,
            &global.device()?,
            &load,
        )?)
    }
}

/// The task: needed where the adapter does not record it, or where the data has other columns.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Task, if the adapter does not record it")]
pub(crate) struct TaskArguments {
    #[arg(long, value_name = "TASK", help = format!("Task: {}", task_names().join(", ")))]
    task: Option<TaskKind>,
    /// Text column, or two for pairs
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    text_columns: Option<Vec<String>>,
    /// Column of the label or number [default: label]
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<String>,
    /// Names of the classes in the order of their ids
    #[arg(long, value_name = "A,B,..", value_delimiter = ',')]
    labels: Option<Vec<String>>,
    /// Language modeling: column of the prompt
    #[arg(long, value_name = "COLUMN")]
    prompt_column: Option<String>,
    /// Language modeling: column of the completion
    #[arg(long, value_name = "COLUMN")]
    completion_column: Option<String>,
    /// Language modeling: column of the chat messages
    #[arg(long, value_name = "COLUMN")]
    messages_column: Option<String>,
    /// Sequence to sequence: column of the source text
    #[arg(long, value_name = "COLUMN")]
    source_column: Option<String>,
    /// Sequence to sequence: column of the target text
    #[arg(long, value_name = "COLUMN")]
    target_column: Option<String>,
    /// Longest example in tokens
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Plain text: join all rows and cut them into examples of max-length tokens
    #[arg(long)]
    packing: bool,
    /// Format of the data: json, jsonl, csv, tsv, parquet or text [default: by extension]
    #[arg(long, value_name = "FORMAT")]
    format: Option<epiphyte::data::Format>,
    /// CSV and TSV without a header line; columns are called 0, 1, ...
    #[arg(long)]
    no_header: bool,
    /// Whether " quotes fields [default: CSV true, TSV false]
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    quoting: Option<bool>,
}

/// A loaded model and its examples.
pub(crate) struct Opened {
    /// Base model and adapter.
    pub(crate) loaded_adapter: LoadedAdapter,
    /// The examples in the order of the file.
    pub(crate) batches: Batches,
}

impl DataArguments {
    /// Refuses an output file that is one of the inputs, by whatever path: the data, or a file of
    /// the base model or of the adapter, which hold no predictions (.jsonl).
    pub(crate) fn check_output(&self, output: &Path) -> Result<()> {
        let Ok(resolved) = output.canonicalize() else {
            return Ok(());
        };
        let model = hub::resolve(&self.model.model)?;
        let directories = [Some(&*model), self.model.adapter.as_deref()];
        let is_lines = resolved.extension().is_some_and(|it| it == "jsonl");
        let directories = directories.into_iter().flatten().filter(|_| !is_lines);
        for input in directories.chain([&*self.data]) {
            let holds = |input: PathBuf| resolved.starts_with(input);
            if input.canonicalize().is_ok_and(holds) {
                let problem = format!(
                    "--output `{}` is an input, in `{}`: choose another file",
                    output.display(),
                    input.display()
                );
                return Err(UsageError::Other(problem).into());
            }
        }
        Ok(())
    }

    /// Loads the model and reads the examples, without targets if `labelled` is false.
    pub(crate) fn open(&self, labelled: bool, global: &Global) -> Result<Opened> {
        let located = self.model.locate()?;
        let file = located.adapter.as_ref();
        let config = ModelConfig::open(&located.model)?;
        let mut spec = self.task.spec(file, &config)?;
        if !labelled && spec.task.predicts_text() {
            let problem = "a language model has no labels to predict: use `epiphyte generate` or `epiphyte eval`";
            return Err(UsageError::Other(problem.to_owned()).into());
        }
        let reading = epiphyte::data::ReadOptions {
            format: self.task.format,
            ..spec.reading()
        };
        let table = spec.read(&self.data, &reading, self.max_rows)?;
        if spec.task.has_classes() && spec.labels.is_empty() {
            spec.labels = self.labels(&spec, file, &config, &table, labelled)?;
        }
        let model = located.model.clone();
        let mut loaded_adapter = located.load(spec, global)?;
        if self.task.max_length.is_none() {
            loaded_adapter.fit_max_length();
        }
        let task_model = &loaded_adapter.task_model;
        if loaded_adapter.module.is_none() && !task_model.loaded.has_head {
            let problem = format!(
                "the checkpoint in `{}` has no head for {}: pass --adapter, or train one",
                model.display(),
                task_model.spec.task
            );
            return Err(UsageError::Other(problem).into());
        }
        let batches = task_model.batches(&table, labelled, self.batch_size, Order::Sequential)?;
        Ok(Opened {
            loaded_adapter,
            batches,
        })
    }

    /// Class names when neither flags nor adapter give them: the base model's if their number
    /// matches the head, otherwise those found in the data.
    fn labels(
        &self,
        spec: &TaskSpec,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
        table: &Table,
        labelled: bool,
    ) -> Result<Vec<String>> {
        let of_base = &config.facts().labels;
        let outputs = match file {
            Some(file) => head_outputs(file, config)?,
            None => Some(of_base.num_labels()),
        };
        let names = of_base.names();
        if outputs.is_none_or(|outputs| outputs == names.len()) {
            return Ok(names.to_vec());
        }
        let outputs = outputs.unwrap_or_default();
        if !labelled {
            return Ok((0..outputs).map(|id| format!("LABEL_{id}")).collect());
        }
        let found = LabelSet::from_column(table, spec.columns.label())?;
        if found.names().len() == outputs {
            return Ok(found.names().to_vec());
        }
        let problem = format!(
            "the head has {outputs} classes, but `{}` has {} ({}): name them all with --labels",
            self.data.display(),
            found.names().len(),
            found.names().join(", ")
        );
        Err(UsageError::Other(problem).into())
    }
}

impl TaskArguments {
    /// The task: flags override what the adapter records, which overrides the base model's
    /// defaults. If neither names the classes, `labels` stays empty.
    pub(crate) fn spec(
        &self,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
    ) -> Result<TaskSpec> {
        let recorded = recorded_task(file)?;
        let task = match (self.task, &recorded, file) {
            (Some(task), _, _) => task,
            (None, Some(recorded), _) => recorded.task,
            (None, None, Some(file)) => peft_task(file, config)?,
            (None, None, None) => {
                return Err(UsageError::Other(
                    "pass --task: there is no adapter that records it".to_owned(),
                )
                .into());
            }
        };
        let default_length = task.default_max_length();
        let limit = config.facts().max_position_embeddings;
        let mut spec = recorded.unwrap_or_else(|| TaskSpec {
            task,
            columns: epiphyte::data::Columns::default(),
            labels: Vec::new(),
            max_length: default_length.min(limit.unwrap_or(usize::MAX)),
            packing: false,
            no_header: false,
            quoting: None,
        });
        spec.task = task;
        let columns = &mut spec.columns;
        if let Some(text_columns) = &self.text_columns {
            columns.text_columns.clone_from(text_columns);
        }
        for (given, column) in [
            (&self.label_column, &mut columns.label_column),
            (&self.prompt_column, &mut columns.prompt_column),
            (&self.completion_column, &mut columns.completion_column),
            (&self.messages_column, &mut columns.messages_column),
            (&self.source_column, &mut columns.source_column),
            (&self.target_column, &mut columns.target_column),
        ] {
            if given.is_some() {
                column.clone_from(given);
            }
        }
        if let Some(labels) = &self.labels {
            spec.labels.clone_from(labels);
        }
        spec.max_length = self.max_length.unwrap_or(spec.max_length);
        spec.packing |= self.packing;
        spec.no_header |= self.no_header;
        spec.quoting = self.quoting.or(spec.quoting);
        Ok(spec)
    }
}

/// The task that an adapter written by Epiphyte records.
fn recorded_task(file: Option<&AdapterFile>) -> Result<Option<TaskSpec>> {
    let Some(ours) = file.and_then(AdapterFile::provenance) else {
        return Ok(None);
    };
    let spec = serde_json::from_value(ours.task.clone());
    Ok(Some(
        spec.context("the adapter's `epiphyte.task` is malformed")?,
    ))
}

/// The task of an adapter that PEFT wrote.
fn peft_task(file: &AdapterFile, config: &ModelConfig) -> Result<TaskKind> {
    let outputs = head_outputs(file, config)?;
    let task = file.task_type();
    let task = task.and_then(|task_type| TaskKind::from_peft(task_type, outputs));
    let problem = "the adapter does not record its task: pass --task";
    Ok(task.ok_or_else(|| UsageError::Other(problem.to_owned()))?)
}

/// The number of outputs of the classification head that an adapter brings.
///
/// A head of several layers ends with the last by name, as `classifier.out_proj` follows
/// `classifier.dense`.
fn head_outputs(file: &AdapterFile, config: &ModelConfig) -> Result<Option<usize>> {
    let Some(head) = classification_head(config) else {
        return Ok(None);
    };
    let tensors = file.tensors()?;
    let weights = tensors.names().filter(|name| is_weight_of(name, head));
    let shapes = weights.filter_map(|name| Some(tensors.tensor(name)?.shape));
    let last = shapes.filter(|shape| shape.len() == 2).last();
    Ok(last.map(|shape| shape[0]))
}

/// The path of a family's classification head.
pub(crate) fn classification_head(config: &ModelConfig) -> Option<&'static str> {
    let labels = config.facts().labels.num_labels();
    config
        .family()
        .task_head(HeadKind::Classification { labels })
}

/// Whether a name is that of a weight of the module at `path`, or of one below it.
pub(crate) fn is_weight_of(name: &str, path: &str) -> bool {
    name.strip_suffix(".weight")
        .is_some_and(|module| format!(".{module}.").contains(&format!(".{path}.")))
}

/// The task for commands that need neither columns nor class names: `merge`, `generate`, `inspect`.
pub(crate) fn spec_of_adapter(file: &AdapterFile, model: &Path) -> Result<TaskSpec> {
    let config = ModelConfig::open(model)?;
    let mut spec = TaskArguments::default().spec(Some(file), &config)?;
    if spec.task.has_classes() && spec.labels.is_empty() {
        let labels = &config.facts().labels;
        let outputs = head_outputs(file, &config)?.unwrap_or(labels.num_labels());
        spec.labels = match labels.names() {
            names if names.len() == outputs => names.to_vec(),
            _ => (0..outputs).map(|id| format!("LABEL_{id}")).collect(),
        };
    }
    Ok(spec)
}
