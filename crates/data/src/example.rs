//! One example as the model reads it.

/// The label of a token that does not count for the loss, as PyTorch's `ignore_index` has it.
pub const IGNORED: i64 = -100;

/// The label of a token that counts and whose class is not known: the first piece of a word, in
/// examples for prediction.
pub const UNKNOWN: i64 = -1;

/// The id of a soft token: one that stands for no word of the vocabulary, and whose embedding is a
/// method's trained vector.
pub const SOFT: u32 = u32::MAX;

/// What is to be predicted for an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A class id.
    Class(usize),
    /// A number.
    Number(f32),
    /// Whether each class is right, of which any number may be.
    ClassSet(Vec<bool>),
    /// One class per token, as long as the ids and aligned with them, not shifted: [`IGNORED`] for
    /// special tokens and for all pieces of a word but the first; [`UNKNOWN`] for these in examples
    /// for prediction.
    TokenClasses(Vec<i64>),
    /// The first and the last token of an answer, as positions in the ids.
    Span([usize; 2]),
    /// One of several sequences, the choices, whose ids follow one another in the example's.
    Choice {
        /// The number of tokens of each sequence.
        lengths: Vec<usize>,
        /// The right one, from 0; none in examples for prediction.
        chosen: Option<usize>,
    },
    /// Several sequences that are compared, whose ids follow one another in the example's.
    Texts {
        /// The number of tokens of each sequence.
        lengths: Vec<usize>,
        /// How similar the first two are; none where the second is the first one's positive, and
        /// the others its negatives, or in examples for prediction.
        score: Option<f32>,
    },
    /// One label per token, as long as the ids and aligned with them, in Hugging Face's convention:
    /// the label of a position is the token at that position, or [`IGNORED`]. The model shifts:
    /// the logits of position `t` are compared with the label at `t + 1`.
    Tokens(Vec<i64>),
    /// The labels of an encoder-decoder's decoder: the ids of the target text with its special
    /// tokens. At least one. The model makes the decoder's input of them by shifting right.
    Sequence(Vec<i64>),
    /// Unknown: the example is for prediction, not for training.
    Absent,
}

/// A tokenized example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, special tokens included, without padding. At least one. Of several sequences, one
    /// after the other.
    pub ids: Vec<u32>,
    /// Segment ids, as long as `ids`.
    pub type_ids: Vec<u32>,
    /// What is to be predicted.
    pub target: Target,
}

impl Example {
    /// The number of tokens that go through the model, those of a target sequence included.
    pub fn tokens(&self) -> usize {
        let target = match &self.target {
            Target::Sequence(labels) => labels.len(),
            _ => 0,
        };
        self.ids.len() + target
    }
}
