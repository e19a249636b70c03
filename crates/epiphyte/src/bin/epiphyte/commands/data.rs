//! `epiphyte data`: what a model reads of a file, and the data sets that are known by name.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use epiphyte::data::{Columns, Example, Examples, IGNORED, Table, Target, Tokenizer};
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::ModelConfig;
use epiphyte::train::tasks::class_order::check_named;
use epiphyte::train::tasks::presets::PRESETS;
use epiphyte::train::{TaskSpec, TrainError};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::data_arguments::{TaskArguments, base_dir, note_task};
use crate::global::Global;
use crate::hub;
use crate::output::{self, Align};

const PREVIEW_EXAMPLES: &str = "\
Examples:
  epiphyte data preview --model llama --data chats.jsonl --messages-column messages
  epiphyte data preview --model bert-base-uncased --task glue/rte --data RTE --rows 1
  epiphyte data preview --model gpt2 --adapter adapter --data test.csv --json";

/// What is shown about data.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show rows as the model reads them, which tokens have a loss, and how long they are
    #[command(after_help = PREVIEW_EXAMPLES)]
    Preview(Box<Preview>),
    /// List the data sets that --task takes in the place of a task
    #[command(after_help = "Examples:\n  epiphyte data sets\n  epiphyte data sets --json")]
    Sets,
}

#[derive(Args, Debug)]
pub(crate) struct Preview {
    /// Examples: .jsonl, .json, .csv, .tsv, .parquet or .txt, the text formats also with .gz; a
    /// directory of such files, a pattern with * and ?, or several, separated by commas; - for
    /// standard input. Each line of a .txt file is a row; for causal-lm the whole file is one
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Rows that are shown
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// Read only the first N rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_rows: Option<u64>,
    /// Directory or GGUF file of the base model, or its name on the hub; its weights are not read
    /// [default: the base that the adapter names]
    #[arg(long, value_name = "DIR", required_unless_present = "adapter")]
    model: Option<PathBuf>,
    /// Directory of an adapter that records its task and columns, or its name on the hub
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    task: TaskArguments,
}

pub(crate) fn run(command: Command, global: &Global) -> Result<ExitCode> {
    match command {
        Command::Preview(arguments) => preview(&arguments, global)?,
        Command::Sets => sets(global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What is read of a file.
#[derive(Serialize)]
struct Shown<'a> {
    data: &'a std::path::Path,
    task: &'static str,
    columns: &'a Columns,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    labels: &'a [String],
    rows: usize,
    examples: usize,
    max_length: usize,
    /// Examples that are over the maximum length and lost their end.
    truncated: usize,
    /// Tokens that they lost.
    removed_tokens: usize,
    /// Rows without a token to predict, which are left out.
    dropped: usize,
    lengths: Lengths,
    preview: Vec<ShownExample>,
}

/// Lengths of examples in tokens.
#[derive(Serialize)]
struct Lengths {
    shortest: usize,
    median: usize,
    mean: f64,
    longest: usize,
    /// How many examples are at most this long and longer than the entry before says.
    histogram: Vec<(usize, usize)>,
}

/// An example as the model reads it.
#[derive(Serialize)]
struct ShownExample {
    tokens: usize,
    /// Tokens that have a loss.
    loss_tokens: usize,
    parts: Vec<Part>,
    #[serde(skip_serializing_if = "Json::is_null")]
    label: Json,
}

/// Tokens in a row that all have a loss, or all have none.
#[derive(Serialize)]
struct Part {
    text: String,
    has_loss: bool,
}

fn preview(arguments: &Preview, global: &Global) -> Result<()> {
    let adapter = arguments.adapter.as_deref().map(hub::resolve_adapter);
    let adapter = adapter.transpose()?;
    let adapter = adapter.as_deref().map(AdapterFile::open).transpose()?;
    let (model, adapter_dir) = (arguments.model.as_deref(), arguments.adapter.as_deref());
    let model = base_dir(model, adapter_dir, global)?;
    let config = ModelConfig::open(&model)?;
    let mut spec = arguments.task.spec(adapter.as_ref(), &config, &model)?;
    let mut of_training = arguments
        .task
        .of_training(adapter.as_ref(), &config, &model)?;
    let mut reading = arguments.task.reading(&spec)?;
    reading.limit = arguments.max_rows.map(|rows| rows as usize);
    if let Some(read) = &mut reading.columns {
        let others = of_training.as_ref().map(TaskSpec::reading).transpose()?;
        read.extend(others.and_then(|it| it.columns).unwrap_or_default());
    }
    let table = Table::read(arguments.task.file(&arguments.data)?, &reading)?;
    if let Some(other) = of_training.take_if(|it| arguments.task.is_labelled(it, &table)) {
        note_task(&other, global);
        spec = other;
    }
    let columns = spec.task.columns(&spec.columns, &table);
    spec.columns = columns.map_err(|error| TrainError::of_columns(spec.task, error))?;
    if spec.task.has_classes() && spec.labels.is_empty() {
        spec.labels = arguments.task.class_names();
        check_named(&spec.labels)?;
        if spec.labels.is_empty() {
            let classes = spec.task.classes(&spec.columns, &table);
            spec.labels = classes.map_err(|error| TrainError::of_columns(spec.task, error))?;
        }
    }
    let mut tokenizer = Tokenizer::load(&model)?;
    if let Some(template) = &spec.chat_template {
        tokenizer.set_chat_template(template.clone());
    }
    let examples = spec.examples(&table, &tokenizer, true)?;
    let shown = (0..arguments.rows.min(examples.len())).filter_map(|at| examples.get(at));
    let shown = shown.map(|example| shown_example(&example, &spec, &tokenizer));
    let shown = Shown {
        data: table.path(),
        task: spec.task.name(),
        columns: &spec.columns,
        labels: &spec.labels,
        rows: table.len(),
        examples: examples.len(),
        max_length: spec.max_length,
        truncated: examples.truncated,
        removed_tokens: examples.removed_tokens,
        dropped: examples.dropped,
        lengths: lengths(&examples),
        preview: shown.collect::<Result<_>>()?,
    };
    match global.json {
        true => output::json(&shown),
        false => print(&shown),
    }
}

/// An example's tokens as texts.
fn shown_example(
    example: &Example,
    spec: &TaskSpec,
    tokenizer: &Tokenizer,
) -> Result<ShownExample> {
    let text = |ids: &[u32]| tokenizer.decode(ids, false);
    let whole = |has_loss| {
        Ok::<_, anyhow::Error>(Part {
            text: text(&example.ids)?,
            has_loss,
        })
    };
    // The tokens in runs of those that have a loss and those that have none.
    let marked = |has_loss: &dyn Fn(usize) -> bool| {
        let mut parts = Vec::new();
        let mut start = 0;
        for end in 1..=example.ids.len() {
            if end == example.ids.len() || has_loss(end) != has_loss(start) {
                parts.push(Part {
                    text: text(&example.ids[start..end])?,
                    has_loss: has_loss(start),
                });
                start = end;
            }
        }
        let count = (0..example.ids.len()).filter(|&at| has_loss(at)).count();
        Ok::<_, anyhow::Error>((parts, count))
    };
    let class = |id: usize| {
        spec.labels
            .get(id)
            .cloned()
            .map_or(Json::Null, Json::String)
    };
    let (parts, label, loss_tokens) = match &example.target {
        Target::Tokens(labels) => {
            // The first token is never predicted.
            let (parts, count) = marked(&|at| at > 0 && labels[at] != IGNORED)?;
            (parts, Json::Null, count)
        }
        Target::TokenClasses(labels) => {
            let (parts, count) = marked(&|at| labels[at] != IGNORED)?;
            let tags = labels
                .iter()
                .filter_map(|&label| usize::try_from(label).ok());
            (parts, tags.map(class).collect(), count)
        }
        Target::Span([first, last]) => {
            let (parts, count) = marked(&|at| (*first..=*last).contains(&at))?;
            (parts, Json::Null, count)
        }
        Target::ClassSet(set) => {
            let chosen = (0..set.len()).filter(|&id| set[id]);
            (vec![whole(false)?], chosen.map(class).collect(), 0)
        }
        Target::Choice { chosen, .. } => (vec![whole(false)?], json!(chosen), 0),
        Target::Texts { score, .. } => (vec![whole(false)?], json!(score), 0),
        Target::Sequence(labels) => {
            let ids: Vec<u32> = labels
                .iter()
                .filter_map(|&id| u32::try_from(id).ok())
                .collect();
            let target = Part {
                text: text(&ids)?,
                has_loss: true,
            };
            (vec![whole(false)?, target], Json::Null, ids.len())
        }
        Target::Class(id) => (vec![whole(false)?], class(*id), 0),
        Target::Number(number) => (vec![whole(false)?], Json::from(*number), 0),
        Target::Absent => (vec![whole(false)?], Json::Null, 0),
    };
    Ok(ShownExample {
        tokens: example.ids.len(),
        loss_tokens,
        parts,
        label,
    })
}

/// The lengths of all examples.
fn lengths(examples: &Examples) -> Lengths {
    let mut all: Vec<usize> = (0..examples.len()).map(|at| examples.length(at)).collect();
    all.sort_unstable();
    let longest = all.last().copied().unwrap_or(0);
    let mut histogram: Vec<(usize, usize)> = Vec::new();
    let mut bound = 8;
    let mut counted = 0;
    while counted < all.len() {
        let to = all.partition_point(|&length| length <= bound);
        if to > counted || !histogram.is_empty() {
            histogram.push((bound, to - counted));
        }
        counted = to;
        bound *= 2;
    }
    Lengths {
        shortest: all.first().copied().unwrap_or(0),
        median: all.get(all.len() / 2).copied().unwrap_or(0),
        mean: all.iter().sum::<usize>() as f64 / all.len().max(1) as f64,
        longest,
        histogram,
    }
}

fn print(shown: &Shown<'_>) -> Result<()> {
    let count = |number: usize| output::count(number as u64);
    let columns = serde_json::to_value(shown.columns)?;
    let columns = columns.as_object().into_iter().flatten();
    let columns = columns.map(|(key, value)| format!("{} {value}", key.replace('_', "-")));
    let columns: Vec<String> = columns.collect();
    let Lengths {
        shortest,
        median,
        mean,
        longest,
        ..
    } = &shown.lengths;
    output::pairs(&[
        ("data", shown.data.display().to_string()),
        ("task", shown.task.to_owned()),
        ("columns", columns.join(", ")),
        ("rows", count(shown.rows)),
        ("examples", count(shown.examples)),
        (
            "tokens of an example",
            format!("{shortest} to {longest}, median {median}, mean {mean:.1}"),
        ),
        (
            "over the maximum length",
            format!(
                "{} of more than {} tokens; {} tokens are lost",
                count(shown.truncated),
                count(shown.max_length),
                count(shown.removed_tokens)
            ),
        ),
        (
            "left out",
            format!("{}, without a token to predict", count(shown.dropped)),
        ),
    ])?;
    output::print("")?;
    let most = shown
        .lengths
        .histogram
        .iter()
        .map(|(_, count)| *count)
        .max();
    let most = most.unwrap_or(1).max(1);
    let mut rows = vec![["tokens up to", "examples", ""].map(str::to_owned).to_vec()];
    rows.extend(shown.lengths.histogram.iter().map(|&(bound, examples)| {
        let bar = "#".repeat((examples * 40).div_ceil(most));
        vec![count(bound), count(examples), bar]
    }));
    output::table(&rows, &[Align::Right, Align::Right, Align::Left])?;
    let in_color = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    for (number, example) in (1..).zip(&shown.preview) {
        let label = match &example.label {
            Json::Null => String::new(),
            Json::String(label) => format!(", label `{label}`"),
            label => format!(", label {label}"),
        };
        output::print(&format!(
            "\nexample {number}: {} tokens, {} with a loss{label}",
            example.tokens, example.loss_tokens
        ))?;
        let parts = example.parts.iter().map(|part| marked(part, in_color));
        output::stream(format!("{}\n", parts.collect::<String>()).as_bytes())?;
    }
    Ok(())
}

/// A part's text, in green where it has a loss, or without a terminal between `[[` and `]]`.
fn marked(part: &Part, in_color: bool) -> String {
    let text = output::visible(&part.text);
    match (part.has_loss, in_color) {
        (false, _) => text.into_owned(),
        (true, true) => format!("\x1b[32m{text}\x1b[0m"),
        (true, false) => format!("[[{text}]]"),
    }
}

/// The data sets, with what they stand for.
fn sets(global: &Global) -> Result<()> {
    if global.json {
        let all = PRESETS.iter().map(|preset| {
            let mut settings = preset.settings();
            settings.insert("name".to_owned(), preset.name.into());
            settings.insert("metric_for_best_model".to_owned(), preset.metric.into());
            Json::Object(settings)
        });
        return output::json(&json!({ "data_sets": all.collect::<Vec<_>>() }));
    }
    let header = [
        "--task", "task", "text", "label", "classes", "metric", "files",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(PRESETS.iter().map(|preset| {
        vec![
            preset.name.to_owned(),
            preset.task.to_owned(),
            preset.text_columns.join(", "),
            preset.label_column.to_owned(),
            preset.labels.join(", "),
            preset.metric.to_owned(),
            [preset.train, preset.eval].concat().join(", "),
        ]
    }));
    output::table(&rows, &[Align::Left; 7])
}
