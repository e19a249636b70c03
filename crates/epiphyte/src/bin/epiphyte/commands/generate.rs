//! `epiphyte generate`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use epiphyte::data::{Columns, Prompt, Tokenizer};
use epiphyte::models::ModelConfig;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::{Generation, GenerationEnd, TaskKind, TaskSpec, generate};
use serde_json::json;

use crate::data_arguments::{ModelArguments, read_template, spec_of_adapter};
use crate::decoding_arguments::DecodingArguments;
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
    /// The text to continue; for an encoder-decoder, the text to read
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompt_file",
        conflicts_with = "prompt_file"
    )]
    prompt: Option<String>,
    /// File with this text; - is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// A text with {column} where the prompt goes, or alpaca; an empty text takes the prompt as it
    /// is [default: as in training]
    #[arg(long, value_name = "TEXT", conflicts_with = "chat")]
    prompt_template: Option<String>,
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
    #[command(flatten)]
    decoding: DecodingArguments,
    #[command(flatten)]
    model: ModelArguments,
}

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let prompt = arguments.prompt()?;
    let located = arguments.model.locate(global)?;
    let model = located.model.clone();
    let config = ModelConfig::open(&model)?;
    let max_length = config.facts().max_position_embeddings;
    let max_length = max_length.unwrap_or(usize::MAX);
    let spec = match &located.adapter {
        Some(file) => spec_of_adapter(file, &model, &[])?,
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
    let template = arguments.template(&spec.columns)?;
    if !global.quiet {
        arguments.say_layout(&spec.columns);
    }
    let prompt = match template {
        Some(template) => in_template(&prompt, &template)?,
        None => prompt,
    };
    let special = GenerationConfig::open(&model, &config)?;
    let loaded_adapter = located.load(spec, global)?;
    let tokenizer = &loaded_adapter.task_model.tokenizer;
    let model = &loaded_adapter.task_model.loaded.model;
    let is_encoder_decoder = model.base().dimensions.encoder_layers > 0;
    let ids = match arguments.chat {
        true => {
            let system = arguments.system.as_deref();
            tokenizer
                .align(&conversation(tokenizer, system, &prompt)?, false)?
                .ids
        }
        false if is_encoder_decoder => tokenizer.encode(&prompt, None, None)?.ids,
        false => tokenizer.encode_prompt(&prompt)?,
    };
    if ids.is_empty() {
        return Err(UsageError::Other(
            "the prompt is empty and the tokenizer adds no token".to_owned(),
        )
        .into());
    }
    let own = Generation::of_model(&special, &config, tokenizer, arguments.chat)?;
    let how = arguments.decoding.how(&special, own)?;
    if !global.quiet {
        arguments.decoding.say_defaults(&special);
    }
    let started = Instant::now();
    // An answer is printed without the conversation before it, and so is what an encoder-decoder
    // writes, a continued text with its prompt.
    let shown = match arguments.chat || is_encoder_decoder {
        true => &[],
        false => &ids[..],
    };
    let mut text = Text::new(tokenizer, shown, &arguments.decoding.stop, !global.json)?;
    let mut failed = None;
    let generated = generate(model, loaded_adapter.adapter(), &ids, &how, |id| {
        text.ids.push(id);
        match text.show(false) {
            Ok(_) if text.stopped => ControlFlow::Break(()),
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let seconds = started.elapsed().as_secs_f64();
    let text = text.show(true)?;
    let count = generated.ids.len();
    let end = match generated.end {
        GenerationEnd::Stop => "stop",
        GenerationEnd::MaxNewTokens => "max_new_tokens",
        GenerationEnd::ContextLength { .. } => "context_length",
    };
    if let GenerationEnd::ContextLength {
        limit,
        virtual_tokens,
    } = generated.end
        && !global.quiet
    {
        let taken = match (is_encoder_decoder, virtual_tokens) {
            (true, _) => "one of which begins the text".to_owned(),
            (false, 0) => format!("{} of them the prompt", ids.len()),
            (false, count) => {
                format!(
                    "{} of them the prompt and {count} virtual tokens",
                    ids.len()
                )
            }
        };
        output::note(&format!(
            "note: the text ends after {count} of {} new tokens, because the model reads at most \
             {limit} tokens (max_position_embeddings), {taken}",
            how.max_new_tokens
        ));
    }
    if global.json {
        output::json(&json!({
            "prompt": prompt,
            "text": text,
            "new_tokens": count,
            "end": end,
            "tokens_per_second": count as f64 / seconds.max(1e-9),
        }))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Arguments {
    /// The prompt as the user gave it.
    fn prompt(&self) -> Result<String> {
        let Some(path) = &self.prompt_file else {
            return Ok(self.prompt.clone().unwrap_or_default());
        };
        let text = match path == Path::new("-") {
            true => std::io::read_to_string(std::io::stdin().lock()),
            false => epiphyte::io::read_text(path),
        };
        text.with_context(|| format!("cannot read `{}`", path.display()))
    }

    /// What the prompt is put into: the template that is given, or that of the training data.
    fn template(&self, trained: &Columns) -> Result<Option<Prompt>> {
        let template = match &self.prompt_template {
            Some(given) => Some(given).filter(|it| !it.is_empty()),
            None => trained.prompt_template.as_ref().filter(|_| !self.chat),
        };
        Ok(template.map(|it| Prompt::template(it)).transpose()?)
    }

    /// Says how the training data differ from a prompt that is taken as it is.
    fn say_layout(&self, trained: &Columns) {
        let note = match (&self.prompt_template, &trained.prompt_template) {
            (None, Some(template)) if !self.chat => format!(
                "the prompt is put into the template of the training data, `{template}`; \
                 --prompt-template '' takes it as it is"
            ),
            _ if trained.messages_column.is_some() && !self.chat => {
                "the adapter was trained on conversations: --chat puts the prompt into the chat \
                 template"
                    .to_owned()
            }
            _ => return,
        };
        output::note(&format!("note: {note}"));
    }
}

/// A prompt in a template.
fn in_template(prompt: &str, template: &Prompt) -> Result<String> {
    template.of_text(prompt).ok_or_else(|| {
        let problem = format!(
            "the prompt template has several columns ({}), and there is one prompt: write the \
             prompt as the template would and pass --prompt-template ''",
            template.columns().join(", ")
        );
        UsageError::Other(problem).into()
    })
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
    /// Where new text begins.
    new: usize,
    /// Texts before which the new text ends.
    stop: &'a [String],
    /// Whether one of them has come.
    stopped: bool,
    /// Number of bytes printed so far.
    shown: usize,
    visible: bool,
}

impl<'a> Text<'a> {
    fn new(
        tokenizer: &'a Tokenizer,
        ids: &[u32],
        stop: &'a [String],
        visible: bool,
    ) -> Result<Self> {
        Ok(Self {
            tokenizer,
            ids: ids.to_vec(),
            new: tokenizer.decode(ids, true)?.len(),
            stop,
            stopped: false,
            shown: 0,
            visible,
        })
    }

    /// Prints the new part of the text, with a line break if `all`, and returns the whole text.
    /// Characters that are still incomplete are held back, and what may begin a text to stop at.
    fn show(&mut self, all: bool) -> Result<String> {
        let mut text = self.tokenizer.decode(&self.ids, true)?;
        let new = text.get(self.new..).unwrap_or("");
        if let Some(end) = self.stop.iter().filter_map(|stop| new.find(stop)).min() {
            text.truncate(self.new + end);
            self.stopped = true;
        }
        let ready = match all || self.stopped {
            true => text.len(),
            false => {
                let ready = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
                self.before_beginning_of_stop(ready)
            }
        };
        if self.visible {
            output::write(text.get(self.shown..ready).unwrap_or(""))?;
            self.shown = self.shown.max(ready);
            if all {
                output::print("")?;
            }
        }
        Ok(text)
    }

    /// The length of `text` without what may be the beginning of a text to stop at.
    fn before_beginning_of_stop(&self, text: &str) -> usize {
        let begins = |at: usize| self.stop.iter().any(|stop| stop.starts_with(&text[at..]));
        let ends = text.char_indices().map(|(at, _)| at);
        ends.filter(|&at| at >= self.new)
            .find(|&at| begins(at))
            .unwrap_or(text.len())
    }
}
