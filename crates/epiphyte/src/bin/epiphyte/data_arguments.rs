//! The arguments that `eval` and `predict` share: a base model, an adapter or the base's own head,
//! and a file of examples.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::{Batches, DataFile, Order, ReadOptions, Table, Value};
use epiphyte::methods::file::{AdapterFile, CONFIG_FILE};
use epiphyte::models::heads::EmbeddingPooling;
use epiphyte::models::{HeadKind, LoadOptions, ModelConfig, head_outputs};
use epiphyte::ops::{Precision, Quantization};
use epiphyte::train::tasks::class_order::{BaseClasses, ClassOrder, TrainedHead, for_prediction};
use epiphyte::train::tasks::names as task_names;
use epiphyte::train::tasks::presets::Preset;
use epiphyte::train::{LoadedAdapter, TaskKind, TaskRows, TaskSpec, TrainError, open_adapter};

use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::output;
use crate::outputs::Input;

/// The flags of `eval` and `predict`.
#[derive(Args, Debug)]
pub(crate) struct DataArguments {
    /// Examples: .jsonl, .json, .csv, .tsv, .parquet, .conll or .txt, the text formats also with
    /// .gz; a directory of such files, a pattern with * and ?, or several, separated by commas; -
    /// for standard input. Each line of a .txt file is a row; for causal-lm the whole file is one
    #[arg(long, value_name = "FILE", required = true)]
    data: Option<PathBuf>,
    /// Texts in place of a file.
    #[arg(skip)]
    texts: Vec<String>,
    /// Use only N rows: `eval` a random sample, always the same; `predict` the first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows: Option<u64>,
    /// Sequences in a batch
    #[arg(long, value_name = "N", default_value_t = 32)]
    batch_size: usize,
    /// Adapters of the same task that vote with --adapter: what most of them predict is predicted
    #[arg(
        long,
        value_name = "DIR,DIR",
        value_delimiter = ',',
        requires = "adapter"
    )]
    ensemble: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    task: TaskArguments,
}

/// A base model and an adapter.
#[derive(Args, Debug)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// Directory or GGUF file of the base model, or its name on the hub [default: the base that the
    /// adapter names]
    #[arg(long, value_name = "DIR", required_unless_present = "adapter")]
    pub(crate) model: Option<PathBuf>,
    /// Directory of the adapter, or its name on the hub
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,
    /// Allow another base model than the adapter was trained with
    #[arg(long)]
    pub(crate) allow_other_base: bool,
    /// Use an adapter whose two files were not written together, or were edited
    #[arg(long)]
    pub(crate) allow_edited_adapter: bool,
    /// Data type of the frozen base: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    pub(crate) precision: Precision,
    /// Quantize the linear layers of the base: nf4, fp4, int8 or int4 [default: none, or as the
    /// base's files are]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) quantization: Option<Quantization>,
}

impl ModelArguments {
    /// How the base is loaded.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions {
            precision: self.precision,
            quantization: self.quantization,
            ..LoadOptions::default()
        }
    }

    /// What is read of a base model in `model` and of the adapter.
    pub(crate) fn inputs<'a>(&'a self, model: &'a Path) -> Vec<Input<'a>> {
        let adapter = self.adapter.as_deref();
        let adapter = adapter.map(|adapter| Input::new("the adapter", adapter));
        let model = Input::new("the base model", model);
        [model].into_iter().chain(adapter).collect()
    }

    /// Finds the base model's directory or file.
    pub(crate) fn model_dir(&self) -> Result<PathBuf> {
        model_dir(self.model.as_deref(), self.adapter.as_deref())
    }

    /// Finds the base model's directory, with a note if the adapter names it, and reads the
    /// adapter's configuration.
    pub(crate) fn locate(&self, global: &Global) -> Result<Located<'_>> {
        let adapter = self.adapter.as_deref().map(hub::resolve_adapter);
        let adapter = adapter.transpose()?;
        let open = match self.allow_edited_adapter {
            true => AdapterFile::open_edited,
            false => AdapterFile::open,
        };
        let adapter = adapter.as_deref().map(open);
        let adapter = adapter.transpose()?;
        let model = base_dir(self.model.as_deref(), self.adapter.as_deref(), global)?;
        Ok(Located {
            arguments: self,
            adapter,
            model,
        })
    }
}

/// The directory or file of a base model, with a note if it is that which the adapter names.
pub(crate) fn base_dir(
    model: Option<&Path>,
    adapter: Option<&Path>,
    global: &Global,
) -> Result<PathBuf> {
    let directory = model_dir(model, adapter)?;
    if model.is_none() && !global.quiet {
        output::note(&format!(
            "note: the base model is `{}`, which the adapter names",
            directory.display()
        ));
    }
    Ok(directory)
}

/// The directory or file of a base model: of `model`, else of the base that the adapter names.
fn model_dir(model: Option<&Path>, adapter: Option<&Path>) -> Result<PathBuf> {
    if let Some(model) = model {
        return Ok(hub::resolve(model)?);
    }
    let adapter = adapter.context("the command line demands --model or --adapter")?;
    let file = hub::resolve_adapter(adapter)?.join(CONFIG_FILE);
    let json = epiphyte::io::read_regular(&file);
    let json = json.with_context(|| format!("cannot read `{}`", file.display()))?;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap_or_default();
    let name = json["base_model_name_or_path"].as_str().unwrap_or_default();
    if name.is_empty() {
        let problem = format!(
            "`{}` does not name the base model: pass --model",
            file.display()
        );
        return Err(UsageError::Other(problem).into());
    }
    hub::resolve(Path::new(name)).with_context(|| {
        format!(
            "the base model `{name}`, which `{}` names, was not found: pass --model",
            file.display()
        )
    })
}

/// Says that the task is that of `train` and not that of the base.
pub(crate) fn note_task(spec: &TaskSpec, global: &Global) {
    if !global.quiet {
        output::note(&format!(
            "note: there is a label, so the task is {}, as in `train`; --task names another",
            spec.task
        ));
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
        let load = self.arguments.load_options();
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
    #[arg(long, value_name = "TASK", help = format!("Task: {}; or a data set, such as glue/rte (see \
        `epiphyte data sets`), whose directory --data takes", task_names().join(", ")))]
    task: Option<NamedTask>,
    /// Text column, or two for pairs
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = trimmed)]
    text_columns: Option<Vec<String>>,
    /// Column of the label or number [default: label]
    #[arg(long, value_name = "COLUMN")]
    label_column: Option<String>,
    /// Multi-label classification: a column of 0 and 1 for each class
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = trimmed)]
    label_columns: Option<Vec<String>>,
    /// Multiple choice: columns of the choices
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = trimmed)]
    choice_columns: Option<Vec<String>>,
    /// Names of the classes in the order of their ids
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', value_parser = trimmed)]
    labels: Option<Vec<String>>,
    /// Language modeling: column of the prompt, or several, joined by a blank line
    #[arg(long, value_name = "A,B", value_delimiter = ',', value_parser = trimmed)]
    prompt_column: Option<Vec<String>>,
    /// Language modeling: the prompt as a text with {column} in it, or alpaca
    #[arg(long, value_name = "TEXT")]
    prompt_template: Option<String>,
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
    /// Sentence embeddings: mean, cls or lasttoken [default: as the base says, else mean]
    #[arg(long, value_name = "POOLING", value_parser = parse_pooling)]
    pooling: Option<EmbeddingPooling>,
    /// Sentence embeddings: whether they have length 1 [default: whether the base has 2_Normalize]
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    normalize: Option<bool>,
    /// Cloze: JSON file with the words that stand for each class
    #[arg(long, value_name = "FILE")]
    verbalizer: Option<PathBuf>,
    /// Longest example in tokens
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Question answering: tokens that neighboring windows of a text share
    #[arg(long, value_name = "N")]
    doc_stride: Option<usize>,
    /// Question answering: longest answer in tokens [default: as in training, or 30]
    #[arg(long, value_name = "N")]
    max_answer_length: Option<usize>,
    /// Plain text: join all rows and cut them into examples of max-length tokens [default: as in
    /// training; true without an adapter]
    #[arg(long, value_name = "true|false", hide_possible_values = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "true")]
    packing: Option<bool>,
    /// Language modeling: file with a chat template in place of the model's own [default: as in
    /// training]
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Format of the data: json, jsonl, csv, tsv, parquet, conll or text [default: by extension]
    #[arg(long, value_name = "FORMAT")]
    format: Option<epiphyte::data::Format>,
    /// CSV and TSV without a header line; columns are called 0, 1, ...
    #[arg(long)]
    no_header: bool,
    /// CSV and TSV: character between fields, or tab
    #[arg(long, value_name = "CHARACTER", value_parser = epiphyte::data::parse_delimiter)]
    delimiter: Option<char>,
    /// Whether " quotes fields [default: CSV true, TSV false]
    #[arg(long, value_name = "true|false", hide_possible_values = true)]
    quoting: Option<bool>,
}

/// A task, or a data set with its task.
#[derive(Clone, Copy, Debug)]
struct NamedTask {
    kind: TaskKind,
    preset: Option<&'static Preset>,
}

impl std::str::FromStr for NamedTask {
    type Err = TrainError;

    fn from_str(name: &str) -> Result<Self, TrainError> {
        let preset = Preset::named(name);
        let kind = preset.map_or(name, |preset| preset.task).parse()?;
        Ok(Self { kind, preset })
    }
}

/// A loaded model and its examples.
pub(crate) struct Opened {
    /// Base model and adapter.
    pub(crate) loaded_adapter: LoadedAdapter,
    /// The rows of the file.
    pub(crate) table: Table,
    /// The examples in the order of the file.
    pub(crate) batches: Batches,
}

impl Opened {
    /// The rows that the examples were made of.
    pub(crate) fn rows(&self) -> TaskRows<'_> {
        self.loaded_adapter.task_model.rows(&self.table)
    }
}

/// A loaded model and a file that is not tokenized.
pub(crate) struct Unencoded {
    /// Base model and adapter.
    pub(crate) loaded_adapter: LoadedAdapter,
    /// The rows of the file.
    pub(crate) table: Table,
}

impl DataArguments {
    /// Takes this task, whatever `--task` names.
    pub(crate) fn set_task(&mut self, kind: TaskKind) {
        self.task.task = Some(NamedTask { kind, preset: None });
    }

    /// Takes these texts, if there are any, in place of a file.
    pub(crate) fn set_texts(&mut self, texts: Vec<String>) {
        self.texts = texts;
    }

    /// How many sequences are in a batch.
    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The directory of the base model.
    pub(crate) fn model_dir(&self) -> Result<PathBuf> {
        self.model.model_dir()
    }

    /// The files of the data.
    pub(crate) fn files(&self) -> Result<Vec<PathBuf>> {
        let Some(data) = &self.data else {
            return Ok(Vec::new());
        };
        let given = self.task.file(data)?;
        let options = ReadOptions {
            format: self.task.format,
            ..ReadOptions::default()
        };
        let files = DataFile::all(&given, &options)?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    /// What the command reads, with the base model in `model` and the data in `files`.
    pub(crate) fn inputs<'a>(&'a self, model: &'a Path, files: &'a [PathBuf]) -> Vec<Input<'a>> {
        let mut inputs = self.model.inputs(model);
        let voters = self.ensemble.iter();
        inputs.extend(voters.map(|voter| Input::new("an adapter", voter)));
        inputs.extend(files.iter().map(|file| Input::new("the data", file)));
        inputs
    }

    /// Loads the model and reads the examples, without targets if `labelled` is false. Of the data
    /// also the `columns` that the task does not read are kept.
    pub(crate) fn open(
        &self,
        labelled: bool,
        columns: &[String],
        global: &Global,
    ) -> Result<Opened> {
        let Unencoded {
            loaded_adapter,
            table,
        } = self.open_unencoded(labelled, columns, global)?;
        let task_model = &loaded_adapter.task_model;
        let batches = task_model.batches(&table, labelled, self.batch_size, Order::Sequential)?;
        Ok(Opened {
            loaded_adapter,
            table,
            batches,
        })
    }

    /// [`DataArguments::open`], without the examples.
    pub(crate) fn open_unencoded(
        &self,
        labelled: bool,
        columns: &[String],
        global: &Global,
    ) -> Result<Unencoded> {
        let located = self.model.locate(global)?;
        let file = located.adapter.as_ref();
        let config = ModelConfig::open(&located.model)?;
        let mut spec = self.task.spec(file, &config, &located.model)?;
        let mut of_training = match spec.task == TaskKind::embedding() {
            true => self.task.of_training(file, &config, &located.model)?,
            // The base has a head of its own, which is what is asked about.
            false => None,
        };
        if !labelled && spec.task.predicts_text() {
            let problem = TrainError::NoPredictions.to_string();
            return Err(UsageError::Other(problem).into());
        }
        let rows = self.max_rows.map(|rows| rows as usize);
        let mut reading = self.task.reading(&spec)?;
        reading.limit = rows.filter(|_| !labelled);
        if let Some(read) = &mut reading.columns {
            read.extend_from_slice(columns);
            let others = of_training.as_ref().map(TaskSpec::reading).transpose()?;
            read.extend(others.and_then(|it| it.columns).unwrap_or_default());
        }
        let mut table = self.table(&reading)?;
        if let Some(other) = of_training.take_if(|it| self.task.is_labelled(it, &table)) {
            note_task(&other, global);
            spec = other;
        }
        if let Some(rows) = rows {
            table = table.sample(rows, 0)?;
        }
        let columns = spec.task.columns(&spec.columns, &table);
        spec.columns = columns.map_err(|error| TrainError::of_columns(spec.task, error))?;
        if spec.task.has_classes() {
            let base = BaseClasses::open(&located.model, &config, spec.task)?;
            // Where an adapter names the classes, predictions do not depend on the data's labels.
            let compared = labelled || spec.labels.is_empty();
            let found = spec.task.classes(&spec.columns, &table).ok();
            let found = found.as_deref().filter(|_| compared);
            let classes = self.classes(file, &config, &base, spec.task, found)?;
            (spec.labels, spec.labels_by_id) = (classes.names, classes.by_id);
        }
        let model = located.model.clone();
        let mut loaded_adapter = located.load(spec, global)?;
        for voter in &self.ensemble {
            let file = AdapterFile::open(&hub::resolve_adapter(voter)?)?;
            loaded_adapter.add_voter(&file, self.model.allow_other_base)?;
        }
        if self.task.max_length.is_none() {
            loaded_adapter.fit_max_length();
        }
        let task_model = &loaded_adapter.task_model;
        if loaded_adapter.module.is_none() && !task_model.loaded.has_head {
            let task = task_model.spec.task;
            let (given, other) = match self.task.task {
                Some(_) => ("", ""),
                None => (
                    ", which its config.json says it is for",
                    ", or the --task of its head",
                ),
            };
            let problem = format!(
                "the checkpoint in `{}` has no head for {task}{given}: pass --adapter{other}, or train \
                 one",
                model.display()
            );
            return Err(UsageError::Other(problem).into());
        }
        Ok(Unencoded {
            loaded_adapter,
            table,
        })
    }

    /// The rows of the file, or of the texts in its place.
    fn table(&self, reading: &ReadOptions) -> Result<Table> {
        if let Some(data) = &self.data {
            return Ok(Table::read(self.task.file(data)?, reading)?);
        }
        let texts = self.texts.iter().map(|text| Value::Text(text.clone()));
        let column = (reading.text_column.clone(), texts.collect());
        Ok(Table::from_columns("--text", [column])?)
    }

    /// The classes of the head: as the adapter records them, the base names them, or the user does.
    /// `found` are the labels of the data, with which they are compared.
    fn classes(
        &self,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
        base: &BaseClasses,
        task: TaskKind,
        found: Option<&[String]>,
    ) -> Result<ClassOrder> {
        let head = task.head(config.facts().labels.num_labels());
        let own_outputs = file.map(|file| head_outputs(file.tensors(), config, head));
        let own_outputs = own_outputs.transpose()?;
        let recorded = recorded_task(file)?;
        let head = TrainedHead {
            recorded: recorded.as_ref(),
            has_adapter: file.is_some(),
            outputs: own_outputs.flatten().or(base.outputs),
            base,
        };
        let given = match (&self.task.labels, &recorded) {
            // A data set's order stands behind the one that an adapter records.
            (None, Some(recorded)) if !recorded.labels.is_empty() => Vec::new(),
            _ => self.task.class_names(),
        };
        Ok(for_prediction(&head, &given, found)?)
    }
}

impl TaskArguments {
    /// The data set, if one is named.
    fn preset(&self) -> Option<&'static Preset> {
        self.task.and_then(|task| task.preset)
    }

    /// The file of examples: of a data set's directory, its file for evaluation.
    pub(crate) fn file(&self, data: &Path) -> Result<PathBuf> {
        let Some(preset) = self.preset().filter(|_| data.is_dir()) else {
            return Ok(data.to_owned());
        };
        preset.eval_file(data).ok_or_else(|| {
            let problem = format!(
                "--data: `{}` has no {}, the evaluation data of {}: name the file",
                data.display(),
                preset.eval.join(" or "),
                preset.name
            );
            UsageError::Other(problem).into()
        })
    }

    /// How the file of a task is read.
    pub(crate) fn reading(&self, spec: &TaskSpec) -> Result<ReadOptions> {
        Ok(ReadOptions {
            format: self.format,
            ..spec.reading()?
        })
    }

    /// The names of the classes: those that are given, or those of the data set.
    pub(crate) fn class_names(&self) -> Vec<String> {
        let of_preset = || {
            let labels = self.preset().map_or(&[][..], |preset| preset.labels);
            labels.iter().map(|&label| label.to_owned()).collect()
        };
        self.labels.clone().unwrap_or_else(of_preset)
    }

    /// The task: flags override what the adapter records, which overrides the base model's
    /// defaults. `labels` are those that the adapter records.
    pub(crate) fn spec(
        &self,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
        model: &Path,
    ) -> Result<TaskSpec> {
        let recorded = recorded_task(file)?;
        let task = match (self.task, &recorded, file) {
            (Some(task), _, _) => task.kind,
            (None, Some(recorded), _) => recorded.task,
            (None, None, Some(file)) => peft_task(file, config)?.ok_or_else(|| {
                let problem = "the adapter does not record its task: pass --task";
                UsageError::Other(problem.to_owned())
            })?,
            (None, None, None) => {
                let problem = "pass --task: there is no adapter that records it, and config.json \
                               does not say what the model is for";
                let task = TaskKind::of_base(config);
                task.ok_or_else(|| UsageError::Other(problem.to_owned()))?
            }
        };
        self.spec_of(task, recorded, config, model)
    }

    /// The task that `train` would take, to be compared with that of the base's head, which is none
    /// of the task's; none if they are the same, or the task is said.
    pub(crate) fn of_training(
        &self,
        file: Option<&AdapterFile>,
        config: &ModelConfig,
        model: &Path,
    ) -> Result<Option<TaskSpec>> {
        let kind = TaskKind::default();
        if self.task.is_some() || file.is_some() || TaskKind::of_base(config) == Some(kind) {
            return Ok(None);
        }
        self.spec_of(kind, None, config, model).map(Some)
    }

    /// Whether the flags or the data name a label of a task.
    pub(crate) fn is_labelled(&self, spec: &TaskSpec, table: &Table) -> bool {
        self.label_column.is_some() || table.has_column(spec.columns.label())
    }

    /// The settings of a task.
    fn spec_of(
        &self,
        task: TaskKind,
        recorded: Option<TaskSpec>,
        config: &ModelConfig,
        model: &Path,
    ) -> Result<TaskSpec> {
        for (flag, is_given) in [
            ("--doc-stride", self.doc_stride.is_some()),
            ("--max-answer-length", self.max_answer_length.is_some()),
        ] {
            if is_given && !task.reads_windows() {
                let problem = format!("{flag} has no use for {task}: leave it out");
                return Err(UsageError::Other(problem).into());
            }
        }
        let default_length = task.default_max_length();
        let limit = config.facts().max_position_embeddings;
        let max_length = default_length.min(limit.unwrap_or(usize::MAX));
        let mut spec = recorded.unwrap_or_else(|| TaskSpec {
            packing: task.predicts_text(),
            ..TaskSpec::new(task, max_length)
        });
        spec.task = task;
        task.of_directory(&mut spec, model)?;
        if let Some(embedding) = &mut spec.embedding {
            embedding.pooling = self.pooling.unwrap_or(embedding.pooling);
            embedding.normalize = self.normalize.unwrap_or(embedding.normalize);
        }
        if let Some(path) = &self.verbalizer {
            spec.read_verbalizer(path)?;
        }
        let columns = &mut spec.columns;
        if let Some(preset) = self.preset() {
            let names = preset.text_columns.iter();
            columns.text_columns = names.map(|&name| name.to_owned()).collect();
            columns.label_column = Some(preset.label_column.to_owned());
            spec.no_header |= preset.no_header;
        }
        for (given, several) in [
            (&self.text_columns, &mut columns.text_columns),
            (&self.label_columns, &mut columns.label_columns),
            (&self.choice_columns, &mut columns.choice_columns),
        ] {
            if let Some(given) = given {
                several.clone_from(given);
            }
        }
        // Either of the two replaces both.
        if self.prompt_column.is_some() || self.prompt_template.is_some() {
            columns.prompt_column = self.prompt_column.clone().unwrap_or_default();
            columns.prompt_template.clone_from(&self.prompt_template);
        }
        for (given, column) in [
            (&self.label_column, &mut columns.label_column),
            (&self.completion_column, &mut columns.completion_column),
            (&self.messages_column, &mut columns.messages_column),
            (&self.source_column, &mut columns.source_column),
            (&self.target_column, &mut columns.target_column),
        ] {
            if given.is_some() {
                column.clone_from(given);
            }
        }
        spec.max_length = self.max_length.unwrap_or(spec.max_length);
        spec.doc_stride = self.doc_stride.or(spec.doc_stride);
        spec.max_answer_length = self.max_answer_length.or(spec.max_answer_length);
        spec.packing = self.packing.unwrap_or(spec.packing);
        if let Some(path) = &self.chat_template {
            spec.chat_template = Some(read_template(path)?);
        }
        spec.no_header |= self.no_header;
        spec.quoting = self.quoting.or(spec.quoting);
        spec.delimiter = self.delimiter.or(spec.delimiter);
        Ok(spec)
    }
}

/// A name of a list without the blanks around it, as `train` reads lists.
pub(crate) fn trimmed(name: &str) -> Result<String, Infallible> {
    Ok(name.trim().to_owned())
}

/// A pooling by its name.
fn parse_pooling(name: &str) -> Result<EmbeddingPooling, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// The source of a chat template.
pub(crate) fn read_template(path: &Path) -> Result<String> {
    let text = epiphyte::io::read_text(path);
    text.with_context(|| format!("cannot read `{}`", path.display()))
}

/// The task that an adapter written by Epiphyte records.
fn recorded_task(file: Option<&AdapterFile>) -> Result<Option<TaskSpec>> {
    let recorded = file.map_or(Ok(None), TaskSpec::recorded);
    recorded.context("the adapter's `epiphyte.task` is malformed")
}

/// The task of an adapter that PEFT wrote; none if neither its configuration nor a head in its file
/// says one.
fn peft_task(file: &AdapterFile, config: &ModelConfig) -> Result<Option<TaskKind>> {
    let outputs = outputs_of(file, config)?;
    let of_head = outputs.and(Some("SEQ_CLS"));
    let mut types = [file.task_type(), of_head].into_iter().flatten();
    Ok(types.find_map(|task_type| TaskKind::from_peft(task_type, outputs)))
}

/// The number of outputs of the classification head that an adapter brings.
fn outputs_of(file: &AdapterFile, config: &ModelConfig) -> Result<Option<usize>> {
    let labels = config.facts().labels.num_labels();
    let head = HeadKind::Classification { labels };
    Ok(head_outputs(file.tensors(), config, head)?)
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

/// The task for commands that need neither columns nor class names: `merge`, `generate`, `inspect`;
/// none if the adapter has neither a task nor a head. `given` are names of the classes, or none.
pub(crate) fn spec_of_adapter(
    file: &AdapterFile,
    model: &Path,
    given: &[String],
) -> Result<Option<TaskSpec>> {
    let config = ModelConfig::open(model)?;
    let kind = match recorded_task(Some(file))? {
        Some(recorded) => Some(recorded.task),
        None => peft_task(file, &config)?,
    };
    let arguments = TaskArguments {
        task: kind.map(|kind| NamedTask { kind, preset: None }),
        ..TaskArguments::default()
    };
    if arguments.task.is_none() {
        return Ok(None);
    }
    let mut spec = arguments.spec(Some(file), &config, model)?;
    if !given.is_empty() && !spec.task.has_classes() {
        let problem = format!(
            "--labels names classes, but the adapter is for {}",
            spec.task
        );
        return Err(UsageError::Other(problem).into());
    }
    if !given.is_empty() {
        let base = BaseClasses::open(model, &config, spec.task)?;
        let recorded = recorded_task(Some(file))?;
        let head = TrainedHead {
            recorded: recorded.as_ref(),
            has_adapter: true,
            outputs: outputs_of(file, &config)?.or(base.outputs),
            base: &base,
        };
        spec.labels = for_prediction(&head, given, None)?.names;
    } else if spec.task.has_classes() && spec.labels.is_empty() {
        let labels = &config.facts().labels;
        let outputs = outputs_of(file, &config)?.unwrap_or(labels.num_labels());
        spec.labels = match labels.names() {
            names if names.len() == outputs => names.to_vec(),
            _ => (0..outputs).map(|id| format!("LABEL_{id}")).collect(),
        };
    }
    Ok(Some(spec))
}
