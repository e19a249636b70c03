//! Examples for causal language modelling: plain text, prompt and completion, conversations.
//!
//! A prompt and its completion are tokenised as one text, because that is what the model reads when it generates;
//! a token counts for the loss when any byte of it lies in the part to be learned. Every document ends with
//! `eos_token`, so that the model learns to stop.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, Examples, IGNORED, Target};
use crate::table::{Table, Value};
use crate::tokenizer::{Alignment, Tokenizer};

/// Token ids and their labels.
struct Labelled {
    ids: Vec<u32>,
    labels: Vec<i64>,
}

impl Labelled {
    /// All of a document counts.
    fn whole(ids: Vec<u32>) -> Self {
        let labels = ids.iter().map(|&id| i64::from(id)).collect();
        Self { ids, labels }
    }

    /// Only tokens that touch one of the byte ranges count.
    fn within(alignment: Alignment, spans: &[Range<usize>]) -> Self {
        let counts = |&(start, end): &(usize, usize)| {
            spans.iter().any(|span| {
                // Byte-level tokenizers may trim a token of spaces to nothing, placed at its end.
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

    /// Appends `eos`, to be learned, unless the tokenizer or the text has put it there.
    fn ended(mut self, eos: u32) -> Self {
        if self.ids.last() == Some(&eos) {
            self.labels.pop();
        } else {
            self.ids.push(eos);
        }
        self.labels.push(i64::from(eos));
        self
    }

    /// The example, cut to `max_length`; `None` where nothing in it can be predicted. The first token never can.
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

/// Plain text, one example a row.
pub(crate) fn texts(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.texts(column)?;
    let eos = tokenizer.special_id("eos_token")?;
    let rows = texts
        .par_iter()
        .map(|text| Ok(Labelled::whole(tokenizer.align(text, true)?.ids).ended(eos)))
        .collect::<Result<_, _>>()?;
    collect(table, rows, max_length)
}

/// Plain text, all rows joined and cut into blocks of `max_length`. The last block is shorter rather than lost.
pub(crate) fn packed(
    table: &Table,
    column: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.texts(column)?;
    let eos = tokenizer.special_id("eos_token")?;
    let documents: Vec<Labelled> = texts
        .par_iter()
        .map(|text| Ok(Labelled::whole(tokenizer.align(text, true)?.ids).ended(eos)))
        .collect::<Result<_, DataError>>()?;
    let stream: Vec<u32> = documents
        .into_iter()
        .flat_map(|document| document.ids)
        .collect();
    let mut blocks = Vec::new();
    for block in stream.chunks(max_length.max(1)) {
        // A last block of one token has nothing to predict it from.
        if block.len() > 1 {
            blocks.push(Labelled::whole(block.to_vec()));
        }
    }
    collect(table, blocks, max_length)
}

/// A prompt and its completion; loss on the completion.
pub(crate) fn completions(
    table: &Table,
    prompt: &str,
    completion: &str,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let prompts = table.texts(prompt)?;
    let completions = table.texts(completion)?;
    let eos = tokenizer.special_id("eos_token")?;
    let rows = prompts
        .par_iter()
        .zip(&completions)
        .map(|(prompt, completion)| {
            let text = format!("{prompt}{completion}");
            let learned = prompt.len()..text.len();
            Ok(Labelled::within(tokenizer.align(&text, true)?, &[learned]).ended(eos))
        })
        .collect::<Result<_, DataError>>()?;
    collect(table, rows, max_length)
}

/// Conversations through the model's chat template; loss on the assistant's turns. The template writes its own
/// special tokens, so the tokenizer adds none.
pub(crate) fn conversations(
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
            Ok(Labelled::within(tokenizer.align(&text, false)?, &spans))
        })
        .collect::<Result<_, DataError>>()?;
    collect(table, rows, max_length)
}

/// Cuts, drops and counts.
fn collect(table: &Table, rows: Vec<Labelled>, max_length: usize) -> Result<Examples, DataError> {
    let count = rows.len();
    let truncated = rows.iter().filter(|row| row.ids.len() > max_length).count();
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
        dropped: count - examples.len(),
        examples,
    })
}
