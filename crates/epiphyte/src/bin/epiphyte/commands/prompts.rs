//! `epiphyte prompts`: what trained prompts mean, and which of them are alike.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use epiphyte::Device;
use epiphyte::data::Tokenizer;
use epiphyte::methods::parts::prompt_library::{Similarity, TrainedPrompt};
use epiphyte::models::{HeadKind, LoadOptions, ModelConfig, load};
use serde::Serialize;

use crate::global::Global;
use crate::hub;
use crate::output::{self, Align};

const NEAREST_EXAMPLES: &str = "\
Examples:
  epiphyte prompts nearest adapter --model bert-base-uncased
  epiphyte prompts nearest adapter --model gpt2 --top-k 3 --json";

const SIMILARITY_EXAMPLES: &str = "\
Examples:
  epiphyte prompts similarity target source-1 source-2 source-3
  epiphyte prompts similarity target source-* --per-token --json";

/// What is told of prompts.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the words whose embeddings are nearest to each vector of a prompt, by cosine
    #[command(after_help = NEAREST_EXAMPLES)]
    Nearest(Nearest),
    /// Sort prompts by how alike they are to one, as SPoT compares tasks
    #[command(after_help = SIMILARITY_EXAMPLES)]
    Similarity(Alike),
}

#[derive(Args, Debug)]
pub(crate) struct Nearest {
    /// Directory of the adapter of a prompt
    adapter: PathBuf,
    /// Directory of its base model, or the base model's name on the hub
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
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

pub(crate) fn run(command: Command, global: &Global) -> Result<ExitCode> {
    match command {
        Command::Nearest(arguments) => nearest(&arguments, global)?,
        Command::Similarity(arguments) => similarity(&arguments, global)?,
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
    let model = hub::resolve(&arguments.model)?;
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
