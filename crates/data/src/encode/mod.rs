//! Encoding: rows of a table to examples.

mod choices;
mod cloze;
mod language;
mod questions;
mod separate_texts;
mod source_target;
mod texts;
mod words;

pub use self::questions::windows_of_row;
use crate::error::DataError;
use crate::examples::Examples;
use crate::fields::Fields;
use crate::table::Table;
use crate::tokenizer::{Tokenizer, Windows};

/// How texts become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The longest example, in tokens; of [`Fields::SourceTarget`], the longest source. Check it
    /// with [`crate::check_max_length`] first.
    pub max_length: usize,
    /// [`Fields::SourceTarget`]: the longest target, in tokens; `max_length` if not given.
    pub max_target_length: Option<usize>,
    /// [`Fields::Questions`]: how many tokens neighboring windows of a text share; 128 if not
    /// given, or half of a window's text if that is less.
    pub doc_stride: Option<usize>,
    /// [`Fields::PlainText`]: join all rows, with `eos_token` between them, and cut the result into
    /// examples of `max_length`. If false, each row is an example of its own.
    pub packing: bool,
}

impl EncodeOptions {
    /// Options for examples of at most `max_length` tokens, without packing.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            max_target_length: None,
            doc_stride: None,
            packing: false,
        }
    }
}

impl Examples {
    /// Tokenizes every row of a table, on all cores.
    ///
    /// # Errors
    /// Those of the columns, the labels, the tokenizer and the chat template, with the row if
    /// there is one; [`DataError::EmptyText`] for a text without any token;
    /// [`DataError::NothingToLearn`].
    pub fn encode(
        table: &Table,
        fields: &Fields,
        tokenizer: &Tokenizer,
        options: &EncodeOptions,
    ) -> Result<Self, DataError> {
        let max_length = options.max_length;
        let examples = match fields {
            Fields::Texts { text, pair, label } => {
                texts::encode(table, text, pair.as_deref(), label, tokenizer, max_length)?
            }
            Fields::Words { words, tags } => {
                words::encode(table, words, tags.as_ref(), tokenizer, max_length)?
            }
            Fields::Choices {
                text,
                second,
                choices,
                label,
            } => {
                let columns = choices::ChoiceColumns {
                    text,
                    second: second.as_deref(),
                    choices,
                    label: label.as_deref(),
                };
                choices::encode(table, &columns, tokenizer, max_length)?
            }
            Fields::Questions {
                question,
                context,
                answers,
            } => {
                let columns = questions::QuestionColumns {
                    question,
                    context,
                    answers: answers.as_deref(),
                };
                let windows = Windows::new(tokenizer, max_length, options.doc_stride);
                questions::encode(table, &columns, &windows)?
            }
            Fields::SeparateTexts { texts, score } => {
                separate_texts::encode(table, texts, score.as_deref(), tokenizer, max_length)?
            }
            Fields::Cloze {
                template,
                place,
                label,
            } => cloze::encode(table, (template, *place), label, tokenizer, max_length)?,
            Fields::PlainText { text } if options.packing => {
                language::packed(table, text, tokenizer, max_length)?
            }
            Fields::PlainText { text } => language::texts(table, text, tokenizer, max_length)?,
            Fields::PromptCompletion { prompt, completion } => {
                language::completions(table, prompt, completion, tokenizer, max_length)?
            }
            Fields::Messages { messages } => {
                language::conversations(table, messages, tokenizer, max_length)?
            }
            Fields::SourceTarget { source, target } => {
                let limits = (max_length, options.max_target_length.unwrap_or(max_length));
                source_target::encode(table, source, target, tokenizer, limits)?
            }
        };
        if examples.is_empty() {
            return Err(DataError::NothingToLearn {
                path: table.path().to_owned(),
                max_length,
            });
        }
        if examples.truncated > 0 {
            let removed = examples.removed_tokens;
            let share = 100.0 * removed as f64 / (removed + examples.tokens()) as f64;
            let remedy = match fields {
                Fields::PlainText { .. } => "packing keeps all of them",
                _ => "a larger max_length keeps more",
            };
            tracing::warn!(
                file = %table.path().display(),
                examples = examples.truncated,
                max_length,
                "texts that were too long lost their end, {share:.1} % of all tokens: {remedy}"
            );
        }
        if examples.dropped > 0 {
            tracing::warn!(
                file = %table.path().display(),
                rows = examples.dropped,
                "rows left out: no token to predict remains in them"
            );
        }
        Ok(examples)
    }
}
