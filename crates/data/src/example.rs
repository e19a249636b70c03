//! One example as the model reads it, and those of a whole file.

/// The label of a token that does not count for the loss, as PyTorch's `ignore_index` has it.
pub const IGNORED: i64 = -100;

/// What is to be predicted for an example.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A class id.
    Class(usize),
    /// A number.
    Number(f32),
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
    /// Token ids, special tokens included, without padding. At least one.
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

    /// The largest token id, those of a target sequence included.
    pub fn largest_id(&self) -> Option<u32> {
        let target = match &self.target {
            Target::Sequence(labels) => labels.as_slice(),
            _ => &[],
        };
        let target = target.iter().filter_map(|&label| u32::try_from(label).ok());
        self.ids.iter().copied().chain(target).max()
    }
}

/// The examples of a file, in the file's order, and what was lost in encoding them.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// The examples, at least one.
    pub examples: Vec<Example>,
    /// How many had a text longer than its limit, which lost its end.
    pub truncated: usize,
    /// How many rows gave no example because no token to predict was left in them. Always 0 unless
    /// the targets are [`Target::Tokens`].
    pub dropped: usize,
}

impl Examples {
    /// The number of tokens in all examples, those of target sequences included.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(Example::tokens).sum()
    }
}
