//! `epiphyte prompts`: what trained prompts mean, which of them are alike, and which words suit a
//! template.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use epiphyte::Device;
use epiphyte::data::{Order, Tokenizer};
use epiphyte::methods::parts::prompt_library::{Similarity, TrainedPrompt};
use epiphyte::models::{HeadKind, LoadOptions, ModelConfig, load};
use epiphyte::train::{
    LabelWordSearch, LabelWords, TaskKind, TriggerSearch, TriggerStep, find_label_words,
    find_trigger_words,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::data_arguments::{DataArguments, Unencoded, base_dir};
use crate::failure::UsageError;
use crate::global::Global;
use crate::output::{self, Align};
use crate::outputs;
use crate::progress::Progress;

const NEAREST_EXAMPLES: &str = "\
Examples:
  epiphyte prompts nearest adapter
  epiphyte prompts nearest adapter --model gpt2 --top-k 3 --json";

const SIMILARITY_EXAMPLES: &str = "\
Examples:
  epiphyte prompts similarity target source-1 source-2 source-3
  epiphyte prompts similarity target source-* --per-token --json";

const WORDS_EXAMPLES: &str = "\
Examples:
  epiphyte prompts words --model bert-base-uncased --prompt-template '{sentence} It was {mask}.' \\
      --data train.tsv --label-column label --output verbalizer.json
  epiphyte train --model bert-base-uncased --task cloze --verbalizer verbalizer.json \\
      --prompt-template '{sentence} It was {mask}.' --train-data train.tsv --output adapter

  A decoder reads the template up to the word:
  epiphyte prompts words --model gpt2 --prompt-template '{sentence} It was {mask}' --data train.tsv";

const TRIGGERS_EXAMPLES: &str = "\
Examples:
  epiphyte prompts triggers --model bert-base-uncased --verbalizer verbalizer.json \\
      --prompt-template '{sentence} {trigger} {trigger} {mask}.' --data train.tsv --max-rows 500
  epiphyte prompts triggers --model gpt2 --verbalizer verbalizer.json \\
      --prompt-template '{trigger} {trigger} {sentence} It was {mask}' --data train.tsv --json";

/// What is told of prompts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the words whose embeddings are nearest to each vector of a prompt, by cosine
    #[command(after_help = NEAREST_EXAMPLES)]
    Nearest(Nearest),
    /// Sort prompts by how alike they are to one, as SPoT compares tasks
    #[command(after_help = SIMILARITY_EXAMPLES)]
    Similarity(Alike),
    /// Find words that stand for the classes of a cloze template, by what the model predicts for
    /// examples of each class (LM-BFF)
    #[command(after_help = WORDS_EXAMPLES)]
    Words(Box<Words>),
    /// Find words for the places of a cloze template that say {trigger}, by gradients (AutoPrompt)
    #[command(after_help = TRIGGERS_EXAMPLES)]
    Triggers(Box<Triggers>),
}

#[derive(Args, Debug)]
pub(crate) struct Nearest {
    /// Directory of the adapter of a prompt
    adapter: PathBuf,
    /// Directory or GGUF file of its base model, or the base model's name on the hub [default: the
    /// base that the adapter names]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Words for each vector
    #[arg(long, value_name = "K", default_value_t = 5)]
    top_k: usize,
}

#[derive(Args, Debug)]
pub(crate) struct Alike {
    /// Directory of the adapter that the others are compared with
    target: PathBuf,
    /// Directories of the others
    #[arg(required = true)]
    sources: Vec<PathBuf>,
    /// Compare all pairs of vectors instead of their means
    #[arg(long)]
    per_token: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Words {
    /// Words that are tried for each class, the most probable ones; fewer where there are many
    /// classes
    #[arg(long, value_name = "K", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    candidates: u16,
    /// Sets of words that are shown, the best ones
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    top_k: u16,
    /// File for the best set, as --verbalizer reads it
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    data: DataArguments,
}

#[derive(Args, Debug)]
pub(crate) struct Triggers {
    /// Steps, each of which may change one word
    #[arg(long, value_name = "N", default_value_t = 20)]
    steps: usize,
    /// Words that are tried in a step
    #[arg(long, value_name = "K", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    candidates: u16,
    /// Random seed for the batches
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    data: DataArguments,
}

pub(crate) fn run(command: Command, global: &Global) -> Result<ExitCode> {
    match command {
        Command::Nearest(arguments) => nearest(&arguments, global)?,
        Command::Similarity(arguments) => similarity(&arguments, global)?,
        Command::Words(arguments) => words(*arguments, global)?,
        Command::Triggers(arguments) => triggers(*arguments, global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The result of `nearest` with `--json`.
#[derive(Serialize)]
struct NearestListing {
    virtual_tokens: Vec<Vec<Word>>,
}

/// A word near to a vector.
#[derive(Serialize)]
struct Word {
    token: String,
    id: u32,
    cosine: f64,
}

fn nearest(arguments: &Nearest, global: &Global) -> Result<()> {
    let prompt = TrainedPrompt::read(&arguments.adapter)?;
    let model = base_dir(arguments.model.as_deref(), Some(&arguments.adapter), global)?;
    let tokenizer = Tokenizer::load(&model)?;
    let config = ModelConfig::open(&model)?;
    let language = HeadKind::LanguageModel;
    let head = match config.family().class_name(language) {
        Some(_) => language,
        None => HeadKind::Classification { labels: 2 },
    };
    let loaded = load(&model, head, &Device::flex(), &LoadOptions::default())?;
    let table = loaded.model.base().word_embedding_table();
    let found = prompt.nearest(table, arguments.top_k)?;
    let virtual_tokens = found.into_iter().map(|words| {
        let words = words.into_iter().map(|(id, cosine)| Word {
            token: tokenizer.token(id).unwrap_or_default(),
            id,
            cosine,
        });
        words.collect()
    });
    let listing = NearestListing {
        virtual_tokens: virtual_tokens.collect(),
    };
    if global.json {
        return output::json(&listing);
    }
    let rows = listing.virtual_tokens.iter().enumerate();
    let rows = rows.map(|(at, words)| {
        let words = words
            .iter()
            .map(|word| format!("{} {:.3}", word.token, word.cosine));
        std::iter::once((at + 1).to_string()).chain(words).collect()
    });
    output::table(&rows.collect::<Vec<Vec<String>>>(), &[Align::Right])
}

/// The result of `similarity` with `--json`.
#[derive(Serialize)]
struct SimilarityListing<'a> {
    target: &'a Path,
    sources: Vec<SourceListing<'a>>,
}

/// A prompt that was compared.
#[derive(Serialize)]
struct SourceListing<'a> {
    adapter: &'a Path,
    similarity: f64,
}

fn similarity(arguments: &Alike, global: &Global) -> Result<()> {
    let kind = match arguments.per_token {
        true => Similarity::PerToken,
        false => Similarity::AverageToken,
    };
    let target = TrainedPrompt::read(&arguments.target)?;
    let compared = arguments.sources.iter().map(|path| {
        let similarity = target.similarity(&TrainedPrompt::read(path)?, kind)?;
        Ok(SourceListing {
            adapter: path,
            similarity,
        })
    });
    let mut sources = compared.collect::<Result<Vec<_>>>()?;
    sources.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
    if global.json {
        return output::json(&SimilarityListing {
            target: &arguments.target,
            sources,
        });
    }
    let rows = sources.iter().map(|source| {
        vec![
            format!("{:.4}", source.similarity),
            source.adapter.display().to_string(),
        ]
    });
    output::table(&rows.collect::<Vec<_>>(), &[Align::Right])
}

/// The result of `words` with `--json`.
#[derive(Serialize)]
struct WordsListing<'a> {
    examples: usize,
    classes: &'a [String],
    /// Best first.
    sets: &'a [LabelWords],
}

fn words(mut arguments: Words, global: &Global) -> Result<()> {
    arguments.data.set_task(TaskKind::cloze());
    let destination = match &arguments.output {
        Some(output) => {
            let (model, files) = (arguments.data.model_dir()?, arguments.data.files()?);
            let inputs = arguments.data.inputs(&model, &files);
            Some(outputs::check_file(output, &inputs, arguments.overwrite)?)
        }
        None => None,
    };
    let Unencoded {
        mut loaded_adapter,
        table,
    } = arguments.data.open_unencoded(true, &[], global)?;
    let task = &mut loaded_adapter.task_model;
    task.spec.labels = task.spec.task.classes(&task.spec.columns, &table)?;
    task.spec.labels_by_id = true;
    if task.spec.labels.len() < 2 {
        let problem = "the data has fewer than two labels: words are searched for classes";
        return Err(UsageError::Other(problem.to_owned()).into());
    }
    let batch_size = arguments.data.batch_size();
    let batches = task.batches(&table, true, batch_size, Order::Sequential)?;
    let search = LabelWordSearch {
        candidates: arguments.candidates.into(),
        sets: arguments.top_k.into(),
    };
    let mut progress = Progress::new(global);
    let sets = find_label_words(&loaded_adapter, &batches, search, &mut progress)?;
    progress.finish();
    let classes = &loaded_adapter.task_model.spec.labels[..];
    let best = sets
        .first()
        .context("no two classes have words that differ")?;
    if let Some((destination, output)) = destination.zip(arguments.output.as_deref()) {
        let words = best.words.iter().cloned().map(Value::from);
        let words: Map<String, Value> = classes.iter().cloned().zip(words).collect();
        let json = serde_json::to_string_pretty(&words)? + "\n";
        outputs::write(destination, output, json.as_bytes(), arguments.overwrite)?;
    }
    let listing = WordsListing {
        examples: batches.examples().len(),
        classes,
        sets: &sets,
    };
    match global.json {
        true => output::json(&listing),
        false => print_words(&listing),
    }
}

fn print_words(listing: &WordsListing<'_>) -> Result<()> {
    let header = ["accuracy", "log probability"].map(str::to_owned);
    let header = header.into_iter().chain(listing.classes.iter().cloned());
    let mut rows: Vec<Vec<String>> = vec![header.collect()];
    rows.extend(listing.sets.iter().map(|set| {
        let numbers = [set.accuracy, set.log_probability].map(|value| format!("{value:.4}"));
        numbers
            .into_iter()
            .chain(set.words.iter().cloned())
            .collect()
    }));
    output::table(&rows, &[Align::Right, Align::Right])
}

fn triggers(mut arguments: Triggers, global: &Global) -> Result<()> {
    arguments.data.set_task(TaskKind::cloze());
    let opened = arguments.data.open_unencoded(true, &[], global)?;
    let Unencoded {
        loaded_adapter,
        table,
    } = opened;
    let task = &loaded_adapter.task_model;
    if task.spec.verbalizer.is_empty() {
        let problem = "--verbalizer is missing: the loss is that of the words of each class";
        return Err(UsageError::Other(problem.to_owned()).into());
    }
    if loaded_adapter.module.is_some() {
        let problem = "words are searched for a base: leave --adapter out";
        return Err(UsageError::Other(problem.to_owned()).into());
    }
    let search = TriggerSearch {
        steps: arguments.steps,
        candidates: arguments.candidates.into(),
        batch_size: arguments.data.batch_size(),
        seed: arguments.seed,
    };
    let mut step = 0;
    let found = find_trigger_words(task, &table, search, &mut |taken: &TriggerStep| {
        step += 1;
        if !global.hides_progress() {
            let TriggerStep {
                trigger,
                word,
                loss_before,
                loss,
            } = taken;
            output::note(&format!(
                "step {step} of {}: trigger {} is `{word}`, loss {loss_before:.4} -> {loss:.4}",
                search.steps,
                trigger + 1
            ));
        }
    })?;
    match global.json {
        true => output::json(&found),
        false => output::pairs(&[
            ("prompt template", found.prompt_template),
            ("loss before", format!("{:.4}", found.loss_before)),
            ("loss", format!("{:.4}", found.loss)),
        ]),
    }
}
