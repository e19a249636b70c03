//! What `eval` and `predict` share: a base, an adapter on it or its own head, and a file of examples.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::{Batches, LabelSet, Order, Table};
use epiphyte::hub::Hub;
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::{LoadOptions, ModelConfig};
use epiphyte::train::config::Precision;
use epiphyte::train::progress::Pass;
use epiphyte::train::{TaskKind, TaskSpec, Tuning, open_adapter};

use crate::arguments::Global;
use crate::failure::UsageError;

/// The flags of `eval` and `predict` alike.
#[derive(Args, Debug)]
pub(crate) struct DataArguments {
    /// Examples: .jsonl, .json, .csv, .tsv, .parquet or .txt
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Use only the first N rows
    #[arg(long, value_name = "N")]
    max_rows: Option<usize>,
    /// Sequences in a forward pass
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    task: TaskArguments,
}

/// A base and an adapter.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// Directory of the base model, or its name on the hub
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// Directory of the adapter; without it, the base as it is
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Use the adapter on another base than it was trained over
    #[arg(long)]
    pub(crate) allow_other_base: bool,
    /// Type of the frozen base: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = precision)]
    pub(crate) precision: Precision,
}

fn precision(text: &str) -> Result<Precision, String> {
    serde_json::from_value(text.into()).map_err(|_| "use f32 or bf16".to_owned())
}

impl ModelArguments {
    /// Reads base and adapter for a task.
    pub(crate) fn open(&self, spec: TaskSpec, global: &Global) -> Result<Tuning> {
        let load = LoadOptions {
            precision: self.precision.into(),
            ..LoadOptions::default()
        };
        let model = Hub::from_env().resolve(&self.model)?;
        let device = global.device()?;
        let adapter = self.adapter.as_deref();
        Ok(open_adapter(
            &model,
            adapter,
            Some(spec),
            self.allow_other_base,
            &device,
            &load,
        )?)
    }

    /// The adapter's configuration, if there is an adapter.
    pub(crate) fn adapter_file(&self) -> Result<Option<AdapterFile>> {
        Ok(self.adapter.as_deref().map(AdapterFile::open).transpose()?)
    }
}

/// The task, where the adapter does not say it or another data file is laid out otherwise.
#[derive(Args, Debug, Default)]
#[command(next_help_heading = "Task, where the adapter does not say it")]
pub(crate) struct TaskArguments {
    /// What the model does: sequence-classification, regression or causal-language-modelling
    #[arg(long, value_name = "TASK")]
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
    /// Language modelling: column of the prompt
    #[arg(long, value_name = "COLUMN")]
    prompt_column: Option<String>,
    /// Language modelling: column of the completion
    #[arg(long, value_name = "COLUMN")]
    completion_column: Option<String>,
    /// Language modelling: column of the chat messages
    #[arg(long, value_name = "COLUMN")]
    messages_column: Option<String>,
    /// Longest example in tokens
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Plain text: join all rows, cut into examples of max-length
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

/// A model and its examples, ready to run.
pub(crate) struct Opened {
    /// Base and adapter.
    pub(crate) tuning: Tuning,
    /// The examples in the order of the file.
    pub(crate) batches: Batches,
}

impl Opened {
    /// The progress of a pass over the examples.
    pub(crate) fn pass(&self, global: &Global) -> Pass {
        let examples = self.batches.examples().len() as u64;
        Pass::new(examples, global.hides_progress())
    }
}

impl DataArguments {
    /// Reads everything; examples without targets if `labelled` is false.
    pub(crate) fn open(&self, labelled: bool, global: &Global) -> Result<Opened> {
        let file = self.model.adapter_file()?;
        let model = Hub::from_env().resolve(&self.model.model)?;
        let config = ModelConfig::open(&model)?;
        let mut spec = self.task.spec(file.as_ref(), &config)?;
        if !labelled && spec.task == TaskKind::CausalLanguageModelling {
            let problem = "a language model has no labels to predict: use `epiphyte generate` or `epiphyte eval`";
            return Err(UsageError::Other(problem.to_owned()).into());
        }
        let reading = epiphyte::data::ReadOptions {
            format: self.task.format,
            ..spec.reading()
        };
        let table = spec.read(&self.data, &reading, self.max_rows)?;
        if spec.task == TaskKind::SequenceClassification && spec.labels.is_empty() {
            spec.labels = self.labels(&spec, file.as_ref(), &config, &table, labelled)?;
        }
        let tuning = self.model.open(spec, global)?;
        let bench = &tuning.bench;
        if tuning.tuned.is_none() && !bench.loaded.has_head {
            let problem = format!(
                "the checkpoint in `{}` has no head for {}: pass --adapter, or train one",
                model.display(),
                bench.spec.task
            );
            return Err(UsageError::Other(problem).into());
        }
        let batches = bench.batches(&table, labelled, self.batch_size, Order::Sequential)?;
        Ok(Opened { tuning, batches })
    }

    /// Names of the classes that nobody told: the base's, if it has as many as the head, else the data's.
    fn labels(
        &self,
        spec: &TaskSpec,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
        table: &Table,
        labelled: bool,
    ) -> Result<Vec<String>> {
        let outputs = match file {
            Some(file) => head_outputs(file)?,
            None => Some(config.labels().num_labels()),
        };
        let names = config.labels().names();
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
            "the head tells {outputs} classes apart, but `{}` has {} ({}): name them all with --labels",
            self.data.display(),
            found.names().len(),
            found.names().join(", ")
        );
        Err(UsageError::Other(problem).into())
    }
}

impl TaskArguments {
    /// The task: what flags say, else what the adapter says, else what follows from the base.
    ///
    /// The classes of an adapter that does not name them are left open.
    pub(crate) fn spec(
        &self,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
    ) -> Result<TaskSpec> {
        let told = told(file)?;
        let task = match (self.task, &told, file) {
            (Some(task), _, _) => task,
            (None, Some(told), _) => told.task,
            (None, None, Some(file)) => peft_task(file)?,
            (None, None, None) => {
                return Err(UsageError::Other(
                    "say the --task of a base without adapter".to_owned(),
                )
                .into());
            }
        };
        let mut spec = told.unwrap_or_else(|| TaskSpec {
            task,
            columns: epiphyte::data::Columns::default(),
            labels: Vec::new(),
            max_length: task
                .default_max_length()
                .min(config.max_position_embeddings()),
            packing: false,
            no_header: false,
            quoting: None,
        });
        spec.task = task;
        let columns = &mut spec.columns;
        if let Some(text_columns) = &self.text_columns {
            columns.text_columns.clone_from(text_columns);
        }
        for (told, place) in [
            (&self.label_column, &mut columns.label_column),
            (&self.prompt_column, &mut columns.prompt_column),
            (&self.completion_column, &mut columns.completion_column),
            (&self.messages_column, &mut columns.messages_column),
        ] {
            if told.is_some() {
                place.clone_from(told);
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

/// What an adapter of ours says about its task.
fn told(file: Option<&AdapterFile>) -> Result<Option<TaskSpec>> {
    let Some(ours) = file.and_then(AdapterFile::provenance) else {
        return Ok(None);
    };
    let spec = serde_json::from_value(ours.task.clone());
    Ok(Some(
        spec.context("the adapter's `epiphyte.task` is malformed")?,
    ))
}

/// The task of an adapter that PEFT wrote.
fn peft_task(file: &AdapterFile) -> Result<TaskKind> {
    match file.task_type() {
        Some("CAUSAL_LM") => Ok(TaskKind::CausalLanguageModelling),
        Some("SEQ_CLS") => Ok(match head_outputs(file)? {
            Some(1) => TaskKind::Regression,
            _ => TaskKind::SequenceClassification,
        }),
        _ => Err(
            UsageError::Other("the adapter does not say its task: pass --task".to_owned()).into(),
        ),
    }
}

/// The width of the head that an adapter brings.
fn head_outputs(file: &AdapterFile) -> Result<Option<usize>> {
    let tensors = file.tensors()?;
    let head = ["classifier.weight", "score.weight"];
    let name = tensors
        .names()
        .find(|name| head.iter().any(|head| name.ends_with(head)));
    Ok(name
        .and_then(|name| tensors.tensor(name))
        .map(|head| head.shape[0]))
}

/// The task for which `merge` and `generate` open an adapter: they need neither columns nor names.
pub(crate) fn spec_of_adapter(file: &AdapterFile, model: &Path) -> Result<TaskSpec> {
    let config = ModelConfig::open(model)?;
    let mut spec = TaskArguments::default().spec(Some(file), &config)?;
    if spec.task == TaskKind::SequenceClassification && spec.labels.is_empty() {
        let outputs = head_outputs(file)?.unwrap_or(config.labels().num_labels());
        spec.labels = match config.labels().names() {
            names if names.len() == outputs => names.to_vec(),
            _ => (0..outputs).map(|id| format!("LABEL_{id}")).collect(),
        };
    }
    Ok(spec)
}
