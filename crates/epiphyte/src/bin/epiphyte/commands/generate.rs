//! `epiphyte generate`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::Tokenizer;
use epiphyte::models::ModelConfig;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::{Generation, TaskKind, TaskSpec, generate};
use serde_json::json;

use crate::data_arguments::{ModelArguments, read_template, spec_of_adapter};
use crate::failure::UsageError;
use crate::global::Global;
use crate::output;

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte generate --model llama --prompt \"Once upon a time\" --max-new-tokens 50
  epiphyte generate --model llama --adapter adapter --prompt-file prompt.txt \\
      --temperature 0.8 --seed 1
  epiphyte generate --model llama-instruct --chat --prompt \"Why is the sky blue?\"";

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
    /// File with the text to continue
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Treat the prompt as a user message: apply the model's chat template and print the answer
    /// only
    #[arg(long)]
    chat: bool,
    /// With --chat: file with a chat template in place of the model's own [default: as in training]
    #[arg(long, value_name = "FILE", requires = "chat")]
    chat_template: Option<PathBuf>,
    /// With --chat: the system message
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Maximum number of new tokens
    #[arg(long, value_name = "N", default_value_t = 50)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "X", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,
    /// Random seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Stop at a token that ends a text or, with --chat, a turn
    #[arg(long, value_name = "true|false", default_value_t = true, hide_possible_values = true,
          action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stop_at_eos: bool,
    #[command(flatten)]
    model: ModelArguments,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("use a number, 0 or more".to_owned()),
    }
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let prompt = match (&arguments.prompt, &arguments.prompt_file) {
        (_, Some(path)) => {
            fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?
        }
        (prompt, None) => prompt.clone().unwrap_or_default(),
    };
    let located = arguments.model.locate()?;
    let model = located.model.clone();
    let config = ModelConfig::open(&model)?;
    let max_length = config.facts().max_position_embeddings;
    let max_length = max_length.unwrap_or(usize::MAX);
    let spec = match &located.adapter {
        Some(file) => spec_of_adapter(file, &model)?,
        None => None,
    };
    // An adapter that says no task is one of the only task that this command has.
    let mut spec = spec.unwrap_or_else(|| TaskSpec::new(TaskKind::text(), max_length));
    if let Some(path) = &arguments.chat_template {
        spec.chat_template = Some(read_template(path)?);
    }
    if !spec.task.predicts_text() {
        let problem = format!(
            "the adapter is for {}, so it cannot generate: use `epiphyte predict`",
            spec.task
        );
        return Err(UsageError::Other(problem).into());
    }
    let loaded_adapter = located.load(spec, global)?;
    let tokenizer = &loaded_adapter.task_model.tokenizer;
    let ids = match arguments.chat {
        true => {
            let system = arguments.system.as_deref();
            tokenizer
                .align(&conversation(tokenizer, system, &prompt)?, false)?
                .ids
        }
        false => tokenizer.encode(&prompt, None, None)?.ids,
    };
    if ids.is_empty() {
        return Err(UsageError::Other(
            "the prompt is empty and the tokenizer adds no token".to_owned(),
        )
        .into());
    }
    let stop = match arguments.stop_at_eos {
        true => stop_tokens(&model, &config, tokenizer, arguments.chat)?,
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
    // An answer is printed without the conversation before it, a continued text with its prompt.
    let shown = if arguments.chat { &[] } else { &ids[..] };
    let mut text = Text::new(tokenizer, shown, !global.json);
    let mut failed = None;
    let model = &loaded_adapter.task_model.loaded.model;
    let new = generate(model, loaded_adapter.adapter(), &ids, &how, |id| {
        text.ids.push(id);
        if let Err(error) = text.show(false) {
            failed = Some(error);
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let seconds = started.elapsed().as_secs_f64();
    let text = text.show(true)?;
    if global.json {
        output::json(&json!({
            "prompt": prompt,
            "text": text,
            "new_tokens": new.len(),
            "tokens_per_second": new.len() as f64 / seconds.max(1e-9),
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The tokens that end a text: all that the model's files and its tokenizer name, since training
/// appends the tokenizer's; in a chat, also the one that ends the assistant's turn.
fn stop_tokens(
    model: &Path,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    chat: bool,
) -> Result<Vec<u32>> {
    let mut stop = GenerationConfig::open(model, config)?.eos_token_ids;
    stop.extend(&config.facts().eos_token_ids);
    stop.extend(tokenizer.end_of_text().ok());
    if chat {
        stop.extend(tokenizer.end_of_turn()?);
    }
    Ok(stop)
}

/// A conversation rendered by the chat template, up to where the assistant's answer begins.
fn conversation(tokenizer: &Tokenizer, system: Option<&str>, prompt: &str) -> Result<String> {
    let system = system.map(|text| json!({ "role": "system", "content": text }));
    let user = json!({ "role": "user", "content": prompt });
    let messages: Vec<_> = system.into_iter().chain([user]).collect();
    Ok(tokenizer.chat_template()?.render(&messages, true)?)
}

/// Generated text that is printed to standard output as it grows.
struct Text<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Number of bytes printed so far.
    shown: usize,
    visible: bool,
}

impl<'a> Text<'a> {
    fn new(tokenizer: &'a Tokenizer, ids: &[u32], visible: bool) -> Self {
        Self {
            tokenizer,
            ids: ids.to_vec(),
            shown: 0,
            visible,
        }
    }

    /// Prints the new part of the text, with a line break if `all`, and returns the whole text.
    /// Characters that are still incomplete are held back.
    fn show(&mut self, all: bool) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        let ready = if all {
            &text
        } else {
            text.trim_end_matches(char::REPLACEMENT_CHARACTER)
        };
        if self.visible {
            output::write(ready.get(self.shown..).unwrap_or(""))?;
            self.shown = self.shown.max(ready.len());
            if all {
                output::print("")?;
            }
        }
        Ok(text)
    }
}
