//! One example as the model sees it, and a whole file of them.

use crate::error::DataError;
use crate::labels::LabelSet;
use crate::table::Table;
use crate::task::Fields;
use crate::tokenizer::Tokenizer;
use crate::{language, sequence};

/// The label of a token that does not count for the loss, as PyTorch's `ignore_index` has it.
pub const IGNORED: i64 = -100;

/// What is to be predicted for an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A class id.
    Class(usize),
    /// A number.
    Value(f32),
    /// One label a position, as long as the ids and aligned with them, after Hugging Face's convention: the
    /// label of a position is the token that stands there, [`IGNORED`] where it does not count, and the model
    /// shifts, so that position `t` is judged by the label at `t + 1`.
    Tokens(Vec<i64>),
    /// Nothing is known: the example is to be predicted, not learned.
    Absent,
}

/// A tokenised example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, special tokens included, never padded. At least one.
    pub ids: Vec<u32>,
    /// Segment ids, as long as `ids`.
    pub type_ids: Vec<u32>,
    /// What is to be predicted.
    pub target: Target,
}

/// Where the targets of [`Fields::Sequence`] come from; language modelling carries its own.
#[derive(Debug, Clone, Copy)]
pub enum Labels<'a> {
    /// Class ids from the label column.
    Classes(&'a LabelSet),
    /// Numbers from the label column.
    Numbers,
    /// The label column is not read.
    Absent,
}

/// How texts become examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// The longest example, in tokens. Check it with [`crate::check_max_length`] first.
    pub max_length: usize,
    /// Plain text: join all rows, with `eos_token` between them, and cut the result into examples of
    /// `max_length`. Off, each row is an example of its own.
    pub packing: bool,
}

/// The examples of a file, in the file's order, and what was lost on the way.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// The examples, at least one.
    pub examples: Vec<Example>,
    /// How many were longer than `max_length` and lost their end.
    pub truncated: usize,
    /// How many rows gave no example, because no token to predict was left in them. Language modelling only.
    pub dropped: usize,
}

impl Examples {
    /// Tokenises every row of a table, on all cores.
    ///
    /// # Errors
    /// Those of the columns, the labels, the tokenizer and the chat template, with the row where there is one;
    /// [`DataError::EmptyText`] for a text without any token; [`DataError::NothingToLearn`].
    pub fn encode(
        table: &Table,
        fields: &Fields,
        labels: Labels<'_>,
        tokenizer: &Tokenizer,
        options: &EncodeOptions,
    ) -> Result<Self, DataError> {
        let max_length = options.max_length;
        let examples = match fields {
            Fields::Sequence { text, pair, label } => {
                let targets = sequence::targets(table, label, labels)?;
                sequence::encode(table, text, pair.as_deref(), targets, tokenizer, max_length)?
            }
            Fields::Text { text } if options.packing => {
                language::packed(table, text, tokenizer, max_length)?
            }
            Fields::Text { text } => language::texts(table, text, tokenizer, max_length)?,
            Fields::Completion { prompt, completion } => {
                language::completions(table, prompt, completion, tokenizer, max_length)?
            }
            Fields::Messages { messages } => {
                language::conversations(table, messages, tokenizer, max_length)?
            }
        };
        if examples.truncated > 0 {
            tracing::warn!(
                file = %table.path().display(),
                examples = examples.truncated,
                max_length,
                "examples longer than max_length lost their end"
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

    /// The number of tokens in all examples.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(|example| example.ids.len()).sum()
    }
}
