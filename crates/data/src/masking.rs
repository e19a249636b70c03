//! Dynamic masking for masked language models (Devlin et al. 2019, section 3.1; drawn anew in each
//! epoch as in Liu et al. 2019).
//!
//! Of the tokens that are no special ones, each is predicted with a probability of 15 %. Of these
//! 80 % are hidden by the mask token, 10 % are replaced by a random token and 10 % stay, as
//! transformers' `DataCollatorForLanguageModeling` has it; of a text of which none would be
//! predicted, one is, as in BERT's own code. What is drawn for a sequence follows
//! from the seed, the epoch and the sequence's position in the data, so that a run can be resumed
//! at any step and any batch can be made at any time.

use std::collections::BTreeSet;

use crate::batch::{Batch, Targets};
use crate::error::DataError;
use crate::example::IGNORED;
use crate::order::SplitMix64;
use crate::tokenizer::Tokenizer;

/// How likely a token is to be predicted; and of a predicted one, to be hidden, or hidden or
/// replaced.
const PREDICTED: f64 = 0.15;
const HIDDEN: f64 = 0.8;
const HIDDEN_OR_REPLACED: f64 = 0.9;

/// What hides tokens from a masked language model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masking {
    mask: u32,
    special: BTreeSet<u32>,
    vocabulary: usize,
    seed: u64,
}

impl Masking {
    /// Masking with the mask token and the vocabulary of `tokenizer`.
    ///
    /// # Errors
    /// [`DataError::SpecialTokenMissing`] if it has no mask token.
    pub fn new(tokenizer: &Tokenizer, seed: u64) -> Result<Self, DataError> {
        Ok(Self {
            mask: tokenizer.special_id("mask_token")?,
            special: tokenizer.special_ids(),
            vocabulary: tokenizer.vocabulary_size(),
            seed,
        })
    }

    /// Hides tokens of a batch, which become its targets.
    pub(crate) fn apply(&self, batch: &mut Batch, epoch: u64) {
        let mut labels = vec![IGNORED; batch.ids.len()];
        for (ends, &position) in batch.boundaries.windows(2).zip(&batch.positions) {
            let mut random = self.of_sequence(epoch, position);
            let is_text = |&at: &usize| !self.special.contains(&batch.ids[at]);
            let text: Vec<usize> = (ends[0]..ends[1]).filter(is_text).collect();
            let mut predicted = text.clone();
            predicted.retain(|_| random.unit() < PREDICTED);
            if predicted.is_empty() && !text.is_empty() {
                predicted.push(text[random.below(text.len())]);
            }
            for at in predicted {
                let id = &mut batch.ids[at];
                labels[at] = i64::from(*id);
                let change = random.unit();
                if change < HIDDEN {
                    *id = self.mask;
                } else if change < HIDDEN_OR_REPLACED {
                    *id = random.below(self.vocabulary) as u32;
                }
            }
        }
        batch.targets = Targets::TokenClasses(labels);
    }

    /// The random numbers of a sequence.
    fn of_sequence(&self, epoch: u64, position: usize) -> SplitMix64 {
        let mut key = self.seed;
        for part in [epoch, position as u64] {
            key = SplitMix64::new(key).next().wrapping_add(part);
        }
        SplitMix64::new(SplitMix64::new(key).next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{Example, Target};

    fn masking(seed: u64) -> Masking {
        Masking {
            mask: 4,
            special: BTreeSet::from([0, 1, 2, 3, 4]),
            vocabulary: 1000,
            seed,
        }
    }

    fn batch(positions: std::ops::Range<usize>) -> Batch {
        let example = |position: usize| Example {
            ids: [vec![2], vec![500 + position as u32; 400], vec![3]].concat(),
            type_ids: vec![0; 402],
            target: Target::Absent,
        };
        Batch::join(positions.map(|it| (it, example(it)))).unwrap()
    }

    fn masked(seed: u64, epoch: u64, positions: std::ops::Range<usize>) -> Batch {
        let mut batch = batch(positions);
        masking(seed).apply(&mut batch, epoch);
        batch
    }

    #[test]
    fn fifteen_percent_are_predicted_and_of_these_four_in_five_hidden() {
        let (before, after) = (batch(0..100), masked(7, 0, 0..100));
        let Targets::TokenClasses(labels) = &after.targets else {
            panic!("masked labels");
        };
        let (mut predicted, mut hidden, mut kept) = (0, 0, 0);
        for ((&old, &new), &label) in before.ids.iter().zip(&after.ids).zip(labels) {
            if label == IGNORED {
                assert_eq!(old, new);
                continue;
            }
            assert!(label == i64::from(old) && old > 4);
            predicted += 1;
            hidden += usize::from(new == 4);
            kept += usize::from(new == old);
        }
        // 40 000 tokens; four standard deviations.
        assert!((5714..=6286).contains(&predicted), "{predicted}");
        let share = |count: usize| count as f64 / predicted as f64;
        assert!((share(hidden) - 0.8).abs() < 0.021, "{hidden}");
        assert!((share(kept) - 0.1).abs() < 0.016, "{kept}");
    }

    #[test]
    fn seed_epoch_and_position_decide_and_nothing_else() {
        let whole = masked(7, 3, 0..6);
        let part = masked(7, 3, 2..4);
        assert_eq!(part.ids, whole.ids[2 * 402..4 * 402]);
        assert_ne!(masked(8, 3, 0..6).targets, whole.targets);
        assert_ne!(masked(7, 4, 0..6).targets, whole.targets);
        let Targets::TokenClasses(labels) = &whole.targets else {
            panic!("masked labels");
        };
        let is_hidden = |row: usize| labels[row * 402..][..402].iter().map(|it| *it == IGNORED);
        assert!(!is_hidden(0).eq(is_hidden(1)));
    }
}
