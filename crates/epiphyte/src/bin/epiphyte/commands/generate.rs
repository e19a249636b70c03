//! `epiphyte generate`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::{Columns, TaskKind};
use epiphyte::models::ModelConfig;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::{Generation, TaskSpec, generate};
use serde_json::json;

use crate::arguments::Global;
use crate::data_arguments::{ModelArguments, spec_of_adapter};
use crate::failure::UsageError;
use crate::{hub, output};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte generate --model llama --prompt \"Once upon a time\" --max-new-tokens 50
  epiphyte generate --model llama --adapter adapter --prompt-file prompt.txt \\
      --temperature 0.8 --seed 1";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The text to continue
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompt_file",
        conflicts_with = "prompt_file"
    )]
    prompt: Option<String>,
    /// A file with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// At most so many new tokens
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_new_tokens: usize,
    /// 0 takes the most likely token; higher values draw, the more evenly the higher
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temperature: f64,
    /// What draws follow from
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Whether the model's end-of-text token ends the text
    #[arg(long, value_name = "true|false", default_value_t = true, hide_possible_values = true,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stop_at_eos: bool,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let prompt = match (&arguments.prompt, &arguments.prompt_file) {
        (_, Some(path)) => {
            fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?
        }
        (prompt, None) => prompt.clone().unwrap_or_default(),
    };
    let model = hub::resolve(&arguments.model.model)?;
    let config = ModelConfig::open(&model)?;
    let max_length = config.max_position_embeddings();
    let spec = match arguments.model.adapter_file()? {
        Some(file) => spec_of_adapter(&file, &model)?,
        None => TaskSpec {
            task: TaskKind::CausalLanguageModelling,
            columns: Columns::default(),
            labels: Vec::new(),
            max_length,
            packing: false,
            no_header: false,
            quoting: None,
        },
    };
    if spec.task != TaskKind::CausalLanguageModelling {
        let problem = format!(
            "the adapter is for {}, so it cannot generate: use `epiphyte predict`",
            spec.task
        );
        return Err(UsageError::Other(problem).into());
    }
    let tuning = arguments.model.open(spec, global)?;
    let tokenizer = &tuning.bench.tokenizer;
    let mut ids = tokenizer.encode(&prompt, None, None)?.ids;
    if ids.is_empty() {
        return Err(UsageError::Other(
            "the prompt is empty and the tokenizer adds no token".to_owned(),
        )
        .into());
    }
    let stop = match arguments.stop_at_eos {
        true => GenerationConfig::open(&model, &config)?.eos_token_ids,
        false => Vec::new(),
    };
    let how = Generation {
        max_new_tokens: arguments.max_new_tokens,
        temperature: arguments.temperature,
        seed: arguments.seed,
        stop,
        max_length,
    };
    let started = Instant::now();
    let new = generate(&*tuning.bench.loaded.model, tuning.adapter(), &ids, &how)?;
    let seconds = started.elapsed().as_secs_f64();
    let new_tokens = new.len();
    ids.extend(new);
    let text = tokenizer.decode(&ids, true)?;
    let speed = new_tokens as f64 / seconds.max(1e-9);
    if global.json {
        output::json(&json!({
            "prompt": prompt,
            "text": text,
            "new_tokens": new_tokens,
            "tokens_per_second": speed,
        }));
    } else {
        output::print(&text);
    }
    Ok(ExitCode::SUCCESS)
}
