//! One example as the model reads it.

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

    /// Everything that makes it this example, as bytes: each part with its kind and its length, so
    /// that no two examples have the same bytes.
    pub(crate) fn bytes_into(&self, bytes: &mut Vec<u8>) {
        let mut add = |kind: u8, values: &mut dyn ExactSizeIterator<Item = i64>| {
            bytes.push(kind);
            bytes.extend((values.len() as u64).to_le_bytes());
            bytes.extend(values.flat_map(i64::to_le_bytes));
        };
        add(0, &mut self.ids.iter().map(|&id| id.into()));
        add(1, &mut self.type_ids.iter().map(|&id| id.into()));
        match &self.target {
            Target::Class(class) => add(2, &mut [*class as i64].into_iter()),
            Target::Number(number) => add(3, &mut [number.to_bits().into()].into_iter()),
            Target::Tokens(labels) => add(4, &mut labels.iter().copied()),
            Target::Sequence(labels) => add(5, &mut labels.iter().copied()),
            Target::Absent => add(6, &mut [].into_iter()),
        }
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
    /// How many tokens these had beyond their limits.
    pub removed_tokens: usize,
    /// How many rows gave no example because no token to predict was left in them. Always 0 unless
    /// the targets are [`Target::Tokens`].
    pub dropped: usize,
}

impl Examples {
    /// One example for each row, each with the number of tokens that were removed from it.
    pub(crate) fn whole(rows: Vec<(Example, usize)>) -> Self {
        Self {
            truncated: rows.iter().filter(|(_, removed)| *removed > 0).count(),
            removed_tokens: rows.iter().map(|(_, removed)| removed).sum(),
            dropped: 0,
            examples: rows.into_iter().map(|(example, _)| example).collect(),
        }
    }

    /// The number of tokens in all examples, those of target sequences included.
    pub fn tokens(&self) -> usize {
        self.examples.iter().map(Example::tokens).sum()
    }
}
