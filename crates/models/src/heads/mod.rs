//! Heads: from the last hidden states to logits.

mod classification;
mod language_model;

use std::fmt;

use epiphyte_ops::{Activation, Sequences};

pub use self::classification::ClassificationHead;
pub use self::language_model::LanguageModelHead;
use crate::adapter::Role;
use crate::blocks::Matrix;
use crate::builder::Builder;
use crate::tokens::Tokens;

/// Which head a model gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadKind {
    /// Logits for each sequence; a regression has one.
    Classification {
        /// The number of logits.
        labels: usize,
    },
    /// Logits over the vocabulary for each token.
    LanguageModel,
}

impl HeadKind {
    /// The number of logits of a classification head.
    pub fn labels(self) -> Option<usize> {
        match self {
            Self::Classification { labels } => Some(labels),
            Self::LanguageModel => None,
        }
    }
}

impl fmt::Display for HeadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classification { .. } => "a classification head",
            Self::LanguageModel => "a language-model head",
        })
    }
}

/// A model's head.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has one head")]
pub enum Head {
    /// Logits for each sequence.
    Classification(ClassificationHead),
    /// Logits over the vocabulary for each token.
    LanguageModel(LanguageModelHead),
}

impl Head {
    /// The head of a decoder: `score` on the last token that is not `padding`, or the language
    /// model's at `path`, which may be tied to the word embeddings.
    pub(crate) fn of_decoder(
        b: &mut Builder<'_>,
        kind: HeadKind,
        path: &str,
        words: &Matrix,
        tied: bool,
        padding: Option<u32>,
    ) -> Self {
        let [_, size] = words.shape();
        match kind {
            HeadKind::Classification { labels } => Self::Classification(ClassificationHead {
                pooling: Pooling::Last { padding },
                input_dropout: 0.0,
                dense: None,
                activation: Activation::Tanh,
                norm: None,
                dropout: 0.0,
                output: b.linear("score", Role::Head, [labels, size], false),
            }),
            HeadKind::LanguageModel => {
                Self::LanguageModel(LanguageModelHead::build(b, path, words, tied, None))
            }
        }
    }
}

/// What a classification head reads of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token: BERT's `[CLS]`.
    First,
    /// The mean of all tokens, virtual ones included.
    Mean,
    /// The last token: decoders.
    Last {
        /// The padding token. transformers reads the last token that is another one, so that an
        /// end-of-text token that serves as padding is not read either. Virtual tokens hide the ids
        /// from it.
        padding: Option<u32>,
    },
}

impl Pooling {
    /// The rows that are read, in ascending order; `rows` are the sequences of the states, virtual
    /// tokens included.
    pub fn rows(self, tokens: &Tokens<'_>, rows: &Sequences) -> Vec<usize> {
        match self {
            Self::First => rows.firsts().to_vec(),
            Self::Mean => (0..rows.tokens()).collect(),
            Self::Last {
                padding: Some(padding),
            } if rows.boundaries() == tokens.sequences.boundaries() => rows
                .boundaries()
                .windows(2)
                .map(|ends| {
                    let ids = &tokens.ids[ends[0]..ends[1]];
                    ends[0] + ids.iter().rposition(|&id| id != padding).unwrap_or(0)
                })
                .collect(),
            Self::Last { .. } => rows.lasts().collect(),
        }
    }
}
