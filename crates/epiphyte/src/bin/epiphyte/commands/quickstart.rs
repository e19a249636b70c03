//! `epiphyte quickstart`: trains three adapters on a base model that is part of the binary.
//!
//! The base model (`assets/quickstart/base`, made by `xtask/src/quickstart_base.rs`) was trained on
//! Shakespeare; the data is a lighthouse keeper's log in modern English. Each run is that of
//! `epiphyte train --config` with a file in the output directory, which can be edited and run
//! again.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use burn::tensor::Device;
use clap::Args;
use epiphyte::data::{Order, Table};
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::LoadOptions;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::display::shell_command;
use epiphyte::train::observer::Silent;
use epiphyte::train::{
    Generation, Interrupt, LoadedAdapter, RunConfig, RunOptions, check_output_directory, generate,
    lock_output, open_adapter, train,
};
use serde::Serialize;

use crate::failure::UsageError;
use crate::global::Global;
use crate::interrupt::{interrupted, on_signals};
use crate::output::{self, Align};
use crate::progress::Progress;
use crate::settings::{GivenFlags, run_configs};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte quickstart
  epiphyte quickstart --output first --json";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// Directory for the base model, the data and the adapters
    #[arg(long, value_name = "DIR", default_value = "epiphyte-quickstart")]
    output: PathBuf,
    /// Run the quickstart again in a directory that already holds one
    #[arg(long)]
    overwrite: bool,
    /// Number of steps for every method
    #[arg(long, value_name = "N", hide = true)]
    steps: Option<u64>,
}

macro_rules! asset {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../../../assets/quickstart/", $name)),
        )
    };
}

/// Embedded files and their paths in the output directory.
const ASSETS: [(&str, &[u8]); 9] = [
    asset!("base/config.json"),
    asset!("base/generation_config.json"),
    asset!("base/model.safetensors"),
    asset!("base/tokenizer.json"),
    asset!("base/tokenizer_config.json"),
    asset!("train.jsonl"),
    asset!("eval.jsonl"),
    asset!("messages-train.csv"),
    asset!("messages-dev.csv"),
];

/// Methods and the settings of their configuration files, in addition to the common ones.
const RUNS: [(&str, &str); 3] = [
    (
        "lora",
        "rank = 8\nalpha = 16\ntarget_modules = \"all-linear\"\nlearning_rate = 5e-3\nmax_steps = 90\n",
    ),
    (
        "prefix-tuning",
        "num_virtual_tokens = 16\nlearning_rate = 1e-1\nmax_steps = 150\n",
    ),
    ("bitfit", "learning_rate = 4e-2\nmax_steps = 200\n"),
];

/// The prompt of every generated text.
const PROMPT: &str = "Monday. The wind";
const NEW_TOKENS: usize = 70;
const TEMPERATURE: f64 = 0.3;

/// The result with `--json`.
#[derive(Serialize)]
struct Summary {
    output: PathBuf,
    prompt: &'static str,
    loss: f64,
    text: String,
    runs: Vec<Row>,
}

/// One row of the result: a method.
#[derive(Serialize)]
struct Row {
    method: &'static str,
    adapter: PathBuf,
    trainable_parameters: usize,
    bytes: u64,
    loss_before: f64,
    loss_after: f64,
    seconds: f64,
    text: String,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let dir = &arguments.output;
    let device = global.device()?;
    let interrupt = on_signals(global.quiet)?;
    let note = |text: &str| {
        if !global.quiet {
            output::note(text);
        }
    };
    check_output_directory(dir)?;
    let _lock = lock_output(dir)?;
    check_output(dir, arguments.overwrite)?;
    unpack(dir)?;
    let configs = RUNS.map(|(method, _)| configure(dir, method));
    let configs = configs.into_iter().collect::<Result<Vec<RunConfig>>>()?;

    let base = open(&configs[0], None, &device)?;
    let (loss, text) = (loss(&base, &configs[0])?, sample(&base, &configs[0].model)?);
    let parameters = output::count(base.task_model.loaded.model.base().count() as u64);
    note(&format!(
        "The base model, {parameters} parameters, was trained on Shakespeare only.\n\
         Its loss on a lighthouse keeper's log is {loss:.3}. It continues `{PROMPT}` with:\n\n{}\n",
        indented(&text)
    ));

    let mut summary = Summary {
        output: dir.clone(),
        prompt: PROMPT,
        loss,
        text,
        runs: Vec::new(),
    };
    for ((method, _), mut config) in RUNS.into_iter().zip(configs) {
        config.max_steps = arguments.steps.or(config.max_steps);
        note(&format!("Training {method} on the log:"));
        let Some(row) = tune(method, &config, loss, global, &device, &interrupt)? else {
            let command = shell_command(&train_command(&config));
            output::note(&format!("stopped; go on with:\n  {command} --resume"));
            return Ok(interrupted());
        };
        note(&format!(
            "Loss {:.3}. The continuation is now:\n\n{}\n",
            row.loss_after,
            indented(&row.text)
        ));
        summary.runs.push(row);
    }
    if global.json {
        output::json(&summary)?;
    } else {
        print(&summary)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a directory with anything in it but a quickstart of ours that may be run again.
fn check_output(dir: &Path, overwrite: bool) -> Result<()> {
    let cannot_read = || format!("cannot read `{}`", dir.display());
    let is_empty = match dir.read_dir() {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(cannot_read),
    };
    let (marker, marker_bytes) = ASSETS[0];
    let is_ours = || std::fs::read(dir.join(marker)).is_ok_and(|bytes| bytes == marker_bytes);
    let problem = match (is_empty, is_ours(), overwrite) {
        (true, ..) | (false, true, true) => return Ok(()),
        (false, true, false) => {
            "holds a quickstart already: pass --overwrite to run it again, or choose another --output"
        }
        (false, false, _) => "is not empty: choose another --output",
    };
    let problem = format!("`{}` {problem}", dir.display());
    Err(UsageError::Other(problem).into())
}

/// The files of a quickstart in `dir` that are there before anything is trained.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let assets = ASSETS.map(|(name, bytes)| (dir.join(name), bytes.to_vec()));
    let configurations = RUNS.map(|(method, settings)| {
        let text = configuration(dir, method, settings);
        (configuration_file(dir, method), text.into_bytes())
    });
    assets.into_iter().chain(configurations).collect()
}

/// Writes the base model, the data and the configurations into the output directory, unless one of
/// them is there with other contents: then nothing.
fn unpack(dir: &Path) -> Result<()> {
    let files = files(dir);
    let mut missing = Vec::new();
    for (path, contents) in &files {
        match std::fs::read(path) {
            Ok(present) if present == *contents => {}
            Err(error) if error.kind() == ErrorKind::NotFound => missing.push((path, contents)),
            Ok(_) => {
                let problem = format!(
                    "`{}` was changed, and the quickstart would write it anew: rename it, or \
                     choose another --output",
                    path.display()
                );
                return Err(UsageError::Other(problem).into());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read `{}`", path.display()));
            }
        }
    }
    std::fs::create_dir_all(dir.join("base"))
        .with_context(|| format!("cannot create `{}`", dir.display()))?;
    let write = |(path, contents): (&PathBuf, &Vec<u8>)| epiphyte::io::write(path, contents);
    Ok(missing.into_iter().try_for_each(write)?)
}

/// Writes the base model and the data into a directory, for other commands.
pub(crate) fn unpack_assets(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir.join("base"))
        .with_context(|| format!("cannot create `{}`", dir.display()))?;
    for (name, contents) in ASSETS {
        epiphyte::io::write(&dir.join(name), contents)?;
    }
    Ok(())
}

/// Where a method's configuration is.
fn configuration_file(dir: &Path, method: &str) -> PathBuf {
    dir.join(format!("{method}.toml"))
}

/// A method's configuration.
fn configuration(dir: &Path, method: &str, settings: &str) -> String {
    let path = |name: &str| toml::Value::from(dir.join(name).display().to_string());
    format!(
        "model = {base}\n\
         train_data = {train}\n\
         eval_data = {eval}\n\
         output = {output}\n\
         task = \"causal-lm\"\n\
         text_columns = [\"text\"]\n\
         max_length = 128\n\
         batch_size = 16\n\
         eval_steps = 30\n\
         method = \"{method}\"\n\
         {settings}",
        base = path("base"),
        train = path("train.jsonl"),
        eval = path("eval.jsonl"),
        output = path(method),
    )
}

/// Reads a method's configuration file as `epiphyte train` does.
fn configure(dir: &Path, method: &str) -> Result<RunConfig> {
    let file = configuration_file(dir, method);
    let mut runs = run_configs(Some(&file), &GivenFlags::default())?;
    Ok(runs.remove(0).config)
}

/// Loads the base model, with an adapter if one is given.
fn open(config: &RunConfig, adapter: Option<&Path>, device: &Device) -> Result<LoadedAdapter> {
    let train = Table::read(&config.train_data, &config.reading()?)?;
    let (spec, _) = config.task_spec(&train, &config.model)?;
    Ok(open_adapter(
        &config.model,
        adapter.map(AdapterFile::open).transpose()?,
        Some(spec),
        false,
        device,
        &LoadOptions::default(),
    )?)
}

/// The loss on the evaluation data.
fn loss(loaded_adapter: &LoadedAdapter, config: &RunConfig) -> Result<f64> {
    let path = config
        .eval_data
        .as_ref()
        .context("the configuration names evaluation data")?;
    let table = Table::read(path, &config.reading()?)?;
    let task_model = &loaded_adapter.task_model;
    let batches = task_model.batches(&table, true, config.batch_size, Order::Sequential)?;
    let (evaluation, rows) = (loaded_adapter.evaluation(&batches), task_model.rows(&table));
    let scores = (config.task).evaluate(&evaluation, &rows, &mut Silent)?;
    scores
        .metrics
        .get("loss")
        .context("language models are scored by their loss")
}

/// The prompt with the model's continuation.
fn sample(loaded_adapter: &LoadedAdapter, base: &Path) -> Result<String> {
    let task_model = &loaded_adapter.task_model;
    let mut ids = task_model.tokenizer.encode(PROMPT, None, None)?.ids;
    let stop = GenerationConfig::open(base, &task_model.loaded.config)?.eos_token_ids;
    let limit = task_model.loaded.config.facts().max_position_embeddings;
    let mut how = Generation::greedy(NEW_TOKENS, stop, limit.unwrap_or(usize::MAX));
    how.sampling.temperature = TEMPERATURE;
    let model = &task_model.loaded.model;
    let each = |_| ControlFlow::Continue(());
    ids.extend(generate(model, loaded_adapter.adapter(), &ids, &how, each)?.ids);
    Ok(task_model.tokenizer.decode(&ids, true)?)
}

/// Trains one method; `None` if it was interrupted.
fn tune(
    method: &'static str,
    config: &RunConfig,
    loss_before: f64,
    global: &Global,
    device: &Device,
    interrupt: &Interrupt,
) -> Result<Option<Row>> {
    let options = RunOptions {
        overwrite: true,
        command: train_command(config),
        device: device.clone(),
        ..RunOptions::default()
    };
    let mut progress = Progress::new(global);
    let report = train(config, &options, interrupt, &mut progress)?;
    progress.finish();
    if report.status == "interrupted" {
        return Ok(None);
    }
    let loaded_adapter = open(config, Some(&config.output), device)?;
    Ok(Some(Row {
        method,
        adapter: report.output,
        trainable_parameters: report.account.trainable_parameters,
        bytes: report.bytes,
        loss_before,
        loss_after: loss(&loaded_adapter, config)?,
        seconds: report.seconds,
        text: sample(&loaded_adapter, &config.model)?,
    }))
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn print(summary: &Summary) -> Result<()> {
    let header = [
        "method",
        "trainable parameters",
        "on disk",
        "loss before",
        "loss after",
        "seconds",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(summary.runs.iter().map(|row| {
        vec![
            row.method.to_owned(),
            output::count(row.trainable_parameters as u64),
            output::bytes(row.bytes),
            format!("{:.3}", row.loss_before),
            format!("{:.3}", row.loss_after),
            format!("{:.1}", row.seconds),
        ]
    }));
    let right = Align::Right;
    output::table(&rows, &[Align::Left, right, right, right, right, right])?;
    output::print("\nWhat next:")?;
    for command in what_next(&summary.output) {
        output::print(&format!("  {}", shell_command(&command)))?;
    }
    Ok(())
}

/// Commands to try next; the last one is about the user's own model and data.
fn what_next(dir: &Path) -> [Vec<String>; 5] {
    let path = |name: &str| dir.join(name).display().to_string();
    let command = |words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned());
        std::iter::once(program()).chain(words).collect()
    };
    let (base, lora, temperature) = (path("base"), path("lora"), TEMPERATURE.to_string());
    [
        command(&[
            "generate",
            "--model",
            &base,
            "--adapter",
            &lora,
            "--prompt",
            PROMPT,
            "--temperature",
            &temperature,
            "--seed",
            "1",
        ]),
        command(&[
            "eval",
            "--model",
            &base,
            "--adapter",
            &lora,
            "--data",
            &path("eval.jsonl"),
        ]),
        command(&[
            "train",
            "--config",
            &path("lora.toml"),
            "--rank",
            "2",
            "--output",
            &path("lora-2"),
        ]),
        command(&["inspect", &path("prefix-tuning")]),
        command(&["train", "--help"]),
    ]
}

/// The command that starts the run from its configuration file.
fn train_command(config: &RunConfig) -> Vec<String> {
    let file = config.output.with_extension("toml").display().to_string();
    vec![program(), "train".to_owned(), "--config".to_owned(), file]
}

/// The path by which the user called this program: after `cargo run` it is not on the search path.
fn program() -> String {
    crate::arguments::words()
        .next()
        .unwrap_or_else(|| "epiphyte".to_owned())
}
