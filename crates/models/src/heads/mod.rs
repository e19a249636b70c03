//! Heads: from the last hidden states to logits.

mod classification;
mod embedding;
mod language_model;
mod masked_lm;
mod verbalizer;

use std::fmt;

use epiphyte_ops::{Activation, Sequences};

pub use self::classification::ClassificationHead;
pub use self::embedding::{EmbeddingHead, EmbeddingLoss, EmbeddingPooling};
pub use self::language_model::LanguageModelHead;
pub(crate) use self::masked_lm::MaskedLmShape;
pub use self::masked_lm::{MaskedLmHead, MaskedLmNames};
pub use self::verbalizer::{Verbalizer, WordPosition};
use crate::ModelError;
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
    /// Logits for each token.
    TokenClassification {
        /// The number of logits.
        labels: usize,
    },
    /// Two logits for each token: that an answer starts there, and that it ends there.
    QuestionAnswering,
    /// One logit for each sequence; several sequences are the choices of one example.
    MultipleChoice,
    /// Logits over the vocabulary for each token.
    LanguageModel,
    /// Logits over the vocabulary for each hidden token.
    MaskedLm,
    /// An embedding for each sequence.
    Embedding(EmbeddingHead),
}

/// How transformers ends the names of classes whose heads tasks train.
const CLASS_ENDINGS: [&str; 4] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
];

impl HeadKind {
    /// The number of logits of a head that a task trains, for what it reads: a sequence or a token;
    /// none of a language model's head.
    pub fn outputs(self) -> Option<usize> {
        match self {
            Self::Classification { labels } | Self::TokenClassification { labels } => Some(labels),
            Self::QuestionAnswering => Some(2),
            Self::MultipleChoice => Some(1),
            Self::LanguageModel | Self::MaskedLm | Self::Embedding(_) => None,
        }
    }

    /// How transformers ends the name of a class with such a head; none of language models, whose
    /// endings differ from family to family.
    pub fn class_ending(self) -> Option<&'static str> {
        let [sequences, tokens, answers, choices] = CLASS_ENDINGS;
        match self {
            Self::Classification { .. } => Some(sequences),
            Self::TokenClassification { .. } => Some(tokens),
            Self::QuestionAnswering => Some(answers),
            Self::MultipleChoice => Some(choices),
            Self::MaskedLm => Some("ForMaskedLM"),
            Self::Embedding(_) => Some("Model"),
            Self::LanguageModel => None,
        }
    }

    /// The class of transformers with such a head, of an encoder whose classes begin with `stem`.
    pub(crate) fn class_of(self, stem: &str) -> Option<String> {
        self.class_ending().map(|ending| format!("{stem}{ending}"))
    }

    /// The class of transformers with such a head, of an encoder-decoder whose classes begin with
    /// `stem` and whose head that classifies tokens is called `tokens`.
    pub(crate) fn class_of_encoder_decoder(
        self,
        stem: &str,
        tokens: Option<&'static str>,
    ) -> Option<String> {
        match self {
            Self::LanguageModel => Some(format!("{stem}ForConditionalGeneration")),
            _ => {
                self.path_in_encoder_decoder(tokens)?;
                self.class_of(stem)
            }
        }
    }

    /// The path of the head in an encoder; none of a language model's.
    pub(crate) fn path(self) -> Option<&'static str> {
        match self {
            Self::LanguageModel | Self::MaskedLm | Self::Embedding(_) => None,
            Self::QuestionAnswering => Some("qa_outputs"),
            Self::Classification { .. }
            | Self::TokenClassification { .. }
            | Self::MultipleChoice => Some("classifier"),
        }
    }

    /// The path of the head in an encoder-decoder whose head that classifies tokens is called
    /// `tokens`; none of a language model's, and of one that it does not have.
    pub(crate) fn path_in_encoder_decoder(
        self,
        tokens: Option<&'static str>,
    ) -> Option<&'static str> {
        match self {
            Self::Classification { .. } => Some("classification_head"),
            Self::TokenClassification { .. } => tokens,
            Self::QuestionAnswering => Some("qa_outputs"),
            Self::MultipleChoice | Self::LanguageModel | Self::MaskedLm | Self::Embedding(_) => {
                None
            }
        }
    }

    /// The path of the head in a decoder whose heads over tokens are called so; none of a language
    /// model's, and of one that the decoder does not have.
    pub(crate) fn path_in_decoder(self, [tokens, answers]: TokenHeads) -> Option<&'static str> {
        match self {
            Self::Classification { .. } => Some("score"),
            Self::TokenClassification { .. } => tokens,
            Self::QuestionAnswering => answers,
            Self::MultipleChoice | Self::LanguageModel | Self::MaskedLm | Self::Embedding(_) => {
                None
            }
        }
    }

    /// Whether a class of transformers has a head that a task trains, and not this one.
    pub(crate) fn is_another_than_of(self, class: &str) -> bool {
        let own = self.class_ending();
        let mut others = CLASS_ENDINGS.iter().filter(|&&ending| Some(ending) != own);
        own.is_some() && others.any(|ending| class.ends_with(ending))
    }
}

impl fmt::Display for HeadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Classification { .. } => "a classification head",
            Self::TokenClassification { .. } => "a head that classifies tokens",
            Self::QuestionAnswering => "a question-answering head",
            Self::MultipleChoice => "a multiple-choice head",
            Self::LanguageModel => "a language-model head",
            Self::MaskedLm => "a masked language model's head",
            Self::Embedding(_) => "embeddings of texts",
        })
    }
}

/// A model's head.
#[derive(Clone, Debug)]
pub enum Head {
    /// Logits for each sequence or each token.
    Classification(ClassificationHead),
    /// Logits over the vocabulary for each token.
    LanguageModel(LanguageModelHead),
    /// Logits over the vocabulary for each hidden token, or of classes for each sequence.
    MaskedLm(MaskedLmHead),
    /// An embedding for each sequence.
    Embedding(EmbeddingHead),
}

impl Head {
    /// The head of a decoder: a classifier of the last token that is no padding or of every token,
    /// or the language model's, which may be tied to the word embeddings `words`.
    ///
    /// # Errors
    /// [`ModelError::NoHead`] for other heads.
    pub(crate) fn of_decoder(
        b: &mut Builder<'_>,
        kind: HeadKind,
        names: &DecoderHeads,
        words: &Matrix,
        tied: bool,
    ) -> Result<Self, ModelError> {
        let [_, size] = words.shape();
        let refused = || ModelError::no_head(names.model_type, kind);
        let task = || names.task.ok_or_else(refused);
        let of_tokens = |b: &mut Builder<'_>, outputs, dropout| {
            let path = task()?;
            let head = ClassificationHead::of_tokens(b, path, [outputs, size], dropout);
            Ok::<Self, ModelError>(Self::Classification(head))
        };
        Ok(match kind {
            HeadKind::Classification { labels } => Self::Classification(ClassificationHead {
                pooling: Pooling::Last {
                    padding: names.padding,
                },
                input_dropout: 0.0,
                dense: None,
                activation: Activation::Tanh,
                norm: None,
                dropout: 0.0,
                output: b.linear(task()?, Role::Head, [labels, size], false),
            }),
            HeadKind::TokenClassification { labels } => of_tokens(b, labels, names.dropout)?,
            HeadKind::QuestionAnswering => of_tokens(b, 2, 0.0)?,
            HeadKind::LanguageModel => {
                let path = names.language_model;
                Self::LanguageModel(LanguageModelHead::build(b, path, words, tied, None))
            }
            HeadKind::Embedding(head) => Self::Embedding(head),
            HeadKind::MultipleChoice | HeadKind::MaskedLm => return Err(refused()),
        })
    }

    /// The head of an encoder-decoder: a classifier of the decoder's last token, one that finds
    /// answers by each of its tokens, one of each token of an encoder alone, or the language
    /// model's, which `language_model` builds.
    ///
    /// # Errors
    /// [`ModelError::NoHead`] for other heads.
    pub(crate) fn of_encoder_decoder(
        b: &mut Builder<'_>,
        kind: HeadKind,
        names: &EncoderDecoderHeads<'_>,
        language_model: impl FnOnce(&mut Builder<'_>) -> LanguageModelHead,
    ) -> Result<Self, ModelError> {
        let (size, dropout) = (names.hidden_size, names.dropout);
        let refused = || ModelError::no_head(names.model_type, kind);
        let task = || names.task.ok_or_else(refused);
        Ok(Self::Classification(match kind {
            HeadKind::Classification { labels } => {
                ClassificationHead::of_encoder_decoder(b, task()?, [labels, size], dropout)
            }
            HeadKind::TokenClassification { labels } => {
                ClassificationHead::of_tokens(b, task()?, [labels, size], dropout)
            }
            HeadKind::QuestionAnswering => {
                ClassificationHead::of_tokens(b, task()?, [2, size], 0.0)
            }
            HeadKind::LanguageModel => return Ok(Self::LanguageModel(language_model(b))),
            HeadKind::MultipleChoice | HeadKind::MaskedLm | HeadKind::Embedding(_) => {
                return Err(refused());
            }
        }))
    }
}

/// The head of a decoder that classifies tokens, and the one that finds answers.
pub(crate) type TokenHeads = [Option<&'static str>; 2];

/// What a decoder's heads are called and read.
pub(crate) struct DecoderHeads {
    /// For errors.
    pub(crate) model_type: &'static str,
    /// The path of the language model's head.
    pub(crate) language_model: &'static str,
    /// The path of the head that a task trains, if the family has one for it.
    pub(crate) task: Option<&'static str>,
    /// The token that pads texts, which a classifier of texts passes over.
    pub(crate) padding: Option<u32>,
    /// Dropout before the head that classifies tokens.
    pub(crate) dropout: f64,
}

/// What an encoder-decoder's heads are called and read.
pub(crate) struct EncoderDecoderHeads<'a> {
    /// For errors.
    pub(crate) model_type: &'a str,
    /// The path of the head that a task trains, if the family has one for it.
    pub(crate) task: Option<&'static str>,
    /// Size of the hidden states.
    pub(crate) hidden_size: usize,
    /// Dropout in a classification head, and before one that classifies tokens.
    pub(crate) dropout: f64,
}

/// A head with the modules of it that the checkpoint lacks, which start at random.
pub(crate) type NewHead = (Head, Vec<&'static str>);

impl HeadKind {
    /// The head of an encoder, if it is one that tasks do not train: embeddings, or a masked
    /// language model's over the word embeddings.
    pub(crate) fn untrained(
        self,
        b: &mut Builder<'_>,
        (names, shape): (&MaskedLmNames, MaskedLmShape),
        words: &Matrix,
        tied: bool,
    ) -> Option<NewHead> {
        match self {
            Self::Embedding(head) => Some((Head::Embedding(head), Vec::new())),
            Self::MaskedLm => {
                let is_new = !b.has(&format!("{}.weight", names.dense));
                let head = MaskedLmHead::build(b, names, words, tied, shape);
                let modules = names.modules.iter().copied();
                Some((Head::MaskedLm(head), modules.filter(|_| is_new).collect()))
            }
            _ => None,
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
    /// Each token for itself, virtual ones left out.
    EachToken,
    /// The last token: decoders.
    Last {
        /// The padding token. transformers reads the last token that is another one, so that an
        /// end-of-text token that serves as padding is not read either. Virtual tokens hide the ids
        /// from it.
        padding: Option<u32>,
    },
}

impl Pooling {
    /// The first row of each text, behind the virtual tokens.
    pub fn first_of_text(tokens: &Tokens<'_>, rows: &Sequences) -> Vec<usize> {
        let ends = rows.boundaries()[1..].iter();
        let own = ends.zip(tokens.sequences.lengths());
        own.map(|(&end, length)| end - length).collect()
    }

    /// The rows that are read, in ascending order; `rows` are the sequences of the states, virtual
    /// tokens included.
    pub fn rows(self, tokens: &Tokens<'_>, rows: &Sequences) -> Vec<usize> {
        match self {
            Self::First => rows.firsts().to_vec(),
            Self::Mean => (0..rows.tokens()).collect(),
            Self::EachToken => Self::first_of_text(tokens, rows)
                .into_iter()
                .zip(&rows.boundaries()[1..])
                .flat_map(|(first, &end)| first..end)
                .collect(),
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
