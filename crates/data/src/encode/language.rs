//! Documents with a label per token: plain text, prompt and completion, conversations.
//!
//! A prompt and its completion are tokenized as one text, because the model reads them as one text
//! when it generates; a token counts for the loss if any of its bytes lies in the part to learn.
//! Plain text and completions end with `eos_token`, so that the model learns to stop; the end of a
//! conversation is the chat template's matter.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, Examples, IGNORED, Target};
use crate::table::{Table, Value};
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

    /// The example, truncated to `max_length`; `None` if no token that counts is left. The first
    /// token is never predicted.
    fn example(mut self, max_length: usize) -> Option<Example> {
        self.ids.truncate(max_length);
        self.labels.truncate(max_length);
        self.labels
            .iter()
            .skip(1)
            .any(|&label| label != IGNORED)
            .then(|| Example {
                type_ids: vec![0; self.ids.len()],
                ids: self.ids,
                target: Target::Tokens(self.labels),
            })
    }
}

/// Plain text, one example per row.
pub(super) fn texts(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    collect(table, documents(table, column, tokenizer)?, max_length)
}

/// Plain text, all rows joined and cut into blocks of `max_length`. The last block may be shorter.
pub(super) fn packed(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let stream: Vec<u32> = documents(table, column, tokenizer)?
        .into_iter()
        .flat_map(|document| document.ids)
        .collect();
    let mut blocks = Vec::new();
    for block in stream.chunks(max_length.max(1)) {
        // A last block of one token has no preceding token to predict it from.
        if block.len() > 1 {
            blocks.push(Labeled::whole(block.to_vec()));
        }
    }
    collect(table, blocks, max_length)
}

/// The tokens of each row's text, with the token that ends it.
fn documents(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
) -> Result<Vec<Labeled>, DataError> {
    let texts = table.texts(column)?;
    let eos = tokenizer.end_of_text()?;
    texts
        .par_iter()
        .map(|text| Ok(Labeled::whole(tokenizer.align(text, true)?.ids).ended(eos)))
        .collect()
}

/// A prompt and its completion; the completion's tokens count.
pub(super) fn completions(
    table: &Table,
    prompt: &str,
    completion: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let prompts = table.texts(prompt)?;
    let completions = table.texts(completion)?;
    let eos = tokenizer.end_of_text()?;
    let rows = prompts
        .par_iter()
        .zip(&completions)
        .map(|(prompt, completion)| {
            let text = format!("{prompt}{completion}");
            let counted = prompt.len()..text.len();
            Ok(Labeled::within(tokenizer.align(&text, true)?, &[counted]).ended(eos))
        })
        .collect::<Result<_, DataError>>()?;
    collect(table, rows, max_length)
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
    let rows = table
        .column(column)?
        .par_iter()
        .enumerate()
        .map(|(row, value)| {
            let Value::Json(serde_json::Value::Array(messages)) = value else {
                return Err(table.wrong_type(row, column, "a list of messages"));
            };
            let (text, spans) = template.render_for_training(messages).map_err(|error| {
                DataError::Conversation {
                    path: table.path().to_owned(),
                    row: row + 1,
                    column: column.to_owned(),
                    reason: error.to_string(),
                }
            })?;
            let labeled = Labeled::within(tokenizer.align(&text, false)?, &spans);
            Ok((labeled, loses_system_message(messages, &text)))
        })
        .collect::<Result<Vec<(Labeled, bool)>, DataError>>()?;
    let lost = rows.iter().filter(|(_, lost)| *lost).count();
    if lost > 0 {
        tracing::warn!(
            file = %table.path().display(),
            rows = lost,
            "the chat template leaves the system message out of a finished conversation"
        );
    }
    collect(
        table,
        rows.into_iter().map(|(row, _)| row).collect(),
        max_length,
    )
}

/// Whether a conversation has a system message that its text does not have.
fn loses_system_message(messages: &[serde_json::Value], text: &str) -> bool {
    let system = messages
        .iter()
        .filter(|message| message["role"] == "system");
    let mut contents = system.filter_map(|message| message["content"].as_str());
    contents.any(|content| !text.contains(content.trim()))
}

/// Truncates the documents, drops those without a token that counts, and counts both.
fn collect(table: &Table, rows: Vec<Labeled>, max_length: usize) -> Result<Examples, DataError> {
    let count = rows.len();
    let removed = rows
        .iter()
        .map(|row| row.ids.len().saturating_sub(max_length));
    let truncated = removed.clone().filter(|&removed| removed > 0).count();
    let removed_tokens = removed.sum();
    let examples: Vec<Example> = rows
        .into_iter()
        .filter_map(|row| row.example(max_length))
        .collect();
    if examples.is_empty() {
        return Err(DataError::NothingToLearn {
            path: table.path().to_owned(),
            max_length,
        });
    }
    Ok(Examples {
        truncated,
        removed_tokens,
        dropped: count - examples.len(),
        examples,
    })
}
