//! Documents with a label per token: plain text, prompt and completion, conversations.
//!
//! A prompt and its completion are tokenized as one text, because the model reads them as one text
//! when it generates; a token counts for the loss if any of its bytes lies in the part to learn. A
//! blank at the end of a prompt belongs to the part to learn, as for [`before_blank`].
//! Plain text and completions end with `eos_token`, so that the model learns to stop; the end of a
//! conversation is the chat template's matter.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, IGNORED, Target};
use crate::examples::{Examples, GrowingExamples, chunks};
use crate::messages::messages;
use crate::prompt::{Prompt, before_blank};
use crate::table::Table;
use crate::tokenizer::{Alignment, Tokenizer};

/// Token ids and their labels.
struct Labeled {
    ids: Vec<u32>,
    labels: Vec<i64>,
}

impl Labeled {
    /// A document whose every token counts.
    fn whole(ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        Self { ids, labels }
    }

    /// A document of which only the tokens that overlap one of the byte ranges count.
    fn within(alignment: Alignment, spans: &[Range<usize>]) -> Self {
        let counts = |&(start, end): &(usize, usize)| {
            spans.iter().any(|span| {
                // Byte-level tokenizers may trim the offsets of a token of spaces to an empty range
                // at its end.
                if start < end {
                    start < span.end && span.start < end
                } else {
                    span.start < end && end <= span.end
                }
            })
        };
        let labels = alignment
            .ids
            .iter()
            .zip(&alignment.offsets)
            .map(|(&id, offsets)| {
                if counts(offsets) {
                    i64::from(id)
                } else {
                    IGNORED
                }
            })
            .collect();
        Self {
            ids: alignment.ids,
            labels,
        }
    }

    /// Ends with `eos`, which counts; appends it unless the tokenizer or the text already has.
    fn ended(mut self, eos: u32) -> Self {
        if self.ids.last() == Some(&eos) {
            self.labels.pop();
        } else {
            self.ids.push(eos);
        }
        self.labels.push(i64::from(eos));
        self
    }

    /// The example, truncated to `max_length`, with the number of tokens that this removes; `None`
    /// if no token that counts is left. The first token is never predicted.
    fn example(mut self, max_length: usize) -> (Option<Example>, usize) {
        let removed = self.ids.len().saturating_sub(max_length);
        self.ids.truncate(max_length);
        self.labels.truncate(max_length);
        let counts = self.labels.iter().skip(1).any(|&label| label != IGNORED);
        let example = counts.then(|| Example {
            type_ids: vec![0; self.ids.len()],
            ids: self.ids,
            target: Target::Tokens(self.labels),
        });
        (example, removed)
    }
}

/// Plain text, one example per row.
pub(super) fn texts(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.all_texts(column)?;
    let eos = tokenizer.end_of_text()?;
    Examples::of_rows(table, |row| {
        Ok(document(texts.get(row), tokenizer, eos)?.example(max_length))
    })
}

/// Plain text, all rows joined and cut into blocks of `max_length`. The last block may be shorter.
pub(super) fn packed(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let max_length = max_length.max(1);
    let texts = table.all_texts(column)?;
    let eos = tokenizer.end_of_text()?;
    let mut examples = GrowingExamples::new(table.in_memory);
    let mut stream = Vec::new();
    let mut append = |block: &[u32]| match Labeled::whole(block.to_vec()).example(max_length) {
        (Some(example), _) => examples.push(example),
        // A block of one token has no preceding token to predict it from.
        (None, _) => Ok(()),
    };
    for chunk in chunks(table) {
        let documents = chunk
            .clone()
            .into_par_iter()
            .map(|row| document(texts.get(row), tokenizer, eos));
        let documents: Vec<_> = documents.collect();
        table.forget(chunk);
        for document in documents {
            stream.extend(document?.ids);
        }
        let whole = stream.len() / max_length * max_length;
        stream[..whole]
            .chunks(max_length)
            .try_for_each(&mut append)?;
        stream.drain(..whole);
    }
    append(&stream)?;
    examples.finish()
}

/// The tokens of a text, with the token that ends it.
fn document(text: &str, tokenizer: &Tokenizer, eos: u32) -> Result<Labeled, DataError> {
    Ok(Labeled::whole(tokenizer.encode(text, None, None)?.ids).ended(eos))
}

/// A prompt and its completion; the completion's tokens count.
pub(super) fn completions(
    table: &Table,
    prompt: &Prompt,
    completion: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let prompts = prompt.of_rows(table)?;
    let completions = table.all_texts(completion)?;
    let eos = tokenizer.end_of_text()?;
    Examples::of_rows(table, |row| {
        let (prompt, completion) = (prompts(row)?, completions.get(row));
        let text = format!("{prompt}{completion}");
        let counted = before_blank(&prompt).len()..text.len();
        let labeled = Labeled::within(tokenizer.align(&text, true)?, &[counted]).ended(eos);
        Ok(labeled.example(max_length))
    })
}

/// Conversations through the model's chat template; the tokens of the assistant's turns count. The
/// template writes its own special tokens, so the tokenizer adds none.
pub(super) fn conversations(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let template = tokenizer.chat_template()?;
    let lost = AtomicUsize::new(0);
    let examples = Examples::of_rows(table, |row| {
        let messages = messages(table, column, row)?;
        let rendered = template.render_for_training(&messages);
        let (text, spans) =
            rendered.map_err(|error| table.conversation(row, column, error.to_string()))?;
        if loses_system_message(&messages, &text) {
            lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Labeled::within(tokenizer.align(&text, false)?, &spans).example(max_length))
    })?;
    let rows = lost.into_inner();
    if rows > 0 {
        tracing::warn!(
            file = %table.path().display(),
            rows,
            "the chat template leaves the system message out of a finished conversation"
        );
    }
    Ok(examples)
}

/// Whether a conversation has a system message that its text does not have.
fn loses_system_message(messages: &[serde_json::Value], text: &str) -> bool {
    let system = messages
        .iter()
        .filter(|message| message["role"] == "system");
    let mut contents = system.filter_map(|message| message["content"].as_str());
    contents.any(|content| !text.contains(content.trim()))
}
