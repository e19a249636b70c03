//! Batches without padding, with random access.
//!
//! The sequences of a batch are concatenated; `boundaries` are their cumulative lengths. Linear
//! layers then work on a `[tokens, hidden]` matrix without padding; only attention reads the
//! boundaries.

use std::borrow::Borrow;
use std::ops::Range;

use crate::error::DataError;
use crate::example::{Example, Target, UNKNOWN};
use crate::examples::Examples;
use crate::masking::Masking;
use crate::order::Order;

/// The targets of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// One class id per sequence: `[sequences]`.
    Classes(Vec<i64>),
    /// One number per sequence: `[sequences]`.
    Numbers(Vec<f32>),
    /// 0 or 1 for each class, row by row: `[sequences, classes]`.
    ClassSets(Vec<f32>),
    /// One class per token, aligned with the ids and not shifted: `[tokens]`; [`crate::IGNORED`]
    /// for tokens that do not count, [`crate::UNKNOWN`] where the class is not known.
    TokenClasses(Vec<i64>),
    /// The first and the last token of each sequence's answer, counted from its own first:
    /// `[sequences]` each.
    Spans {
        /// The first tokens.
        starts: Vec<i64>,
        /// The last tokens.
        ends: Vec<i64>,
    },
    /// The right choice of each example, whose choices are sequences in a row: `[examples]`.
    Choices {
        /// The right ones, from 0; [`crate::UNKNOWN`] where it is not known.
        chosen: Vec<i64>,
        /// The choices of an example.
        choices: usize,
    },
    /// Texts that are compared, each example's in a row.
    Texts {
        /// The texts of an example.
        texts: usize,
        /// How similar the first two are: `[examples]`; none where there are no scores.
        scores: Option<Vec<f32>>,
    },
    /// One label per token, aligned with the ids: `[tokens]`; [`crate::IGNORED`] for tokens that do
    /// not count. The first label of a sequence is never predicted, since the model shifts within
    /// each sequence.
    Tokens(Vec<i64>),
    /// One sequence of decoder labels per sequence of the batch.
    Sequences(TargetSequences),
    /// Unknown.
    Absent,
}

/// The labels of an encoder-decoder's decoder, concatenated like the ids of the batch.
///
/// The decoder's input is not stored: it is each sequence of labels shifted right by one, with the
/// model's own decoder start token in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSequences {
    /// Token ids of all target sequences, special tokens included: `[target tokens]`. Every one
    /// counts for the loss, at its own position.
    pub labels: Vec<i64>,
    /// Cumulative lengths, from 0 to `target tokens`, as [`Batch::boundaries`].
    pub boundaries: Vec<usize>,
}

/// Several sequences, concatenated.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Token ids of all sequences: `[tokens]`.
    pub ids: Vec<u32>,
    /// Segment ids: `[tokens]`.
    pub type_ids: Vec<u32>,
    /// Cumulative lengths, from 0 to `tokens`: sequence `i` is `boundaries[i]..boundaries[i + 1]`.
    pub boundaries: Vec<usize>,
    /// What is to be predicted.
    pub targets: Targets,
    /// The position of each example in the data set, from 0: `[examples]`.
    pub positions: Vec<usize>,
}

impl Batch {
    /// Joins examples, each given with its position in the data set.
    ///
    /// # Errors
    /// [`DataError::MixedTargets`] if the examples' targets are of different kinds.
    pub fn join<E: Borrow<Example>>(
        examples: impl IntoIterator<Item = (usize, E)>,
    ) -> Result<Self, DataError> {
        let mut batch = Self {
            ids: Vec::new(),
            type_ids: Vec::new(),
            boundaries: vec![0],
            targets: Targets::Absent,
            positions: Vec::new(),
        };
        for (index, (position, example)) in examples.into_iter().enumerate() {
            let example = example.borrow();
            match &example.target {
                Target::Choice { lengths, .. } | Target::Texts { lengths, .. } => {
                    for length in lengths {
                        let start = batch.boundaries[batch.boundaries.len() - 1];
                        batch.boundaries.push(start + length);
                    }
                }
                _ => batch.boundaries.push(batch.ids.len() + example.ids.len()),
            }
            batch.ids.extend(&example.ids);
            batch.type_ids.extend(&example.type_ids);
            batch.positions.push(position);
            if index == 0 {
                batch.targets = match example.target {
                    Target::Class(_) => Targets::Classes(Vec::new()),
                    Target::Number(_) => Targets::Numbers(Vec::new()),
                    Target::ClassSet(_) => Targets::ClassSets(Vec::new()),
                    Target::TokenClasses(_) => Targets::TokenClasses(Vec::new()),
                    Target::Span(_) => Targets::Spans {
                        starts: Vec::new(),
                        ends: Vec::new(),
                    },
                    Target::Choice { ref lengths, .. } => Targets::Choices {
                        chosen: Vec::new(),
                        choices: lengths.len(),
                    },
                    Target::Texts { ref lengths, score } => Targets::Texts {
                        texts: lengths.len(),
                        scores: score.map(|_| Vec::new()),
                    },
                    Target::Tokens(_) => Targets::Tokens(Vec::new()),
                    Target::Sequence(_) => Targets::Sequences(TargetSequences {
                        labels: Vec::new(),
                        boundaries: vec![0],
                    }),
                    Target::Absent => Targets::Absent,
                };
            }
            match (&mut batch.targets, &example.target) {
                (Targets::Classes(classes), Target::Class(class)) => classes.push(*class as i64),
                (Targets::Numbers(numbers), Target::Number(number)) => numbers.push(*number),
                (Targets::ClassSets(sets), Target::ClassSet(set)) => {
                    sets.extend(set.iter().map(|&it| f32::from(u8::from(it))));
                }
                (Targets::TokenClasses(labels), Target::TokenClasses(more)) => labels.extend(more),
                (Targets::Spans { starts, ends }, Target::Span([start, end])) => {
                    starts.push(*start as i64);
                    ends.push(*end as i64);
                }
                (
                    Targets::Choices { chosen, choices },
                    Target::Choice {
                        lengths,
                        chosen: one,
                    },
                ) if lengths.len() == *choices => {
                    chosen.push(one.map_or(UNKNOWN, |one| one as i64));
                }
                (Targets::Texts { texts, scores }, Target::Texts { lengths, score })
                    if lengths.len() == *texts && scores.is_some() == score.is_some() =>
                {
                    scores.iter_mut().for_each(|scores| scores.extend(*score));
                }
                (Targets::Tokens(labels), Target::Tokens(more)) => labels.extend(more),
                (Targets::Sequences(targets), Target::Sequence(labels)) => {
                    targets.labels.extend(labels);
                    targets.boundaries.push(targets.labels.len());
                }
                (Targets::Absent, Target::Absent) => {}
                _ => return Err(DataError::MixedTargets { index }),
            }
        }
        Ok(batch)
    }

    /// The number of examples.
    pub fn examples(&self) -> usize {
        self.positions.len()
    }

    /// The number of sequences of an example: several if they are choices or texts to compare.
    pub fn sequences_per_example(&self) -> usize {
        match self.targets {
            Targets::Choices { choices, .. } => choices,
            Targets::Texts { texts, .. } => texts,
            _ => 1,
        }
    }

    /// The number of tokens that go through the model, those of target sequences included.
    pub fn tokens(&self) -> usize {
        let target = match &self.targets {
            Targets::Sequences(targets) => targets.labels.len(),
            _ => 0,
        };
        self.ids.len() + target
    }

    /// The same sequences in the same order, as micro-batches of about `tokens` tokens and about
    /// equal size; an example is never split.
    ///
    /// ```
    /// use epiphyte_data::{Batch, Example, Target};
    ///
    /// let example = Example { ids: vec![7; 40], type_ids: vec![0; 40], target: Target::Class(1) };
    /// let batch = Batch::join((0..5).map(|position| (position, &example)))?;
    /// let micro_batches = batch.micro_batches(100);
    /// assert_eq!(micro_batches.iter().map(Batch::tokens).collect::<Vec<_>>(), [80, 120]);
    /// assert_eq!(micro_batches[1].positions, [2, 3, 4]);
    /// # Ok::<(), epiphyte_data::DataError>(())
    /// ```
    pub fn micro_batches(&self, tokens: usize) -> Vec<Self> {
        let total = self.tokens();
        let count = total.div_ceil(tokens.max(1)).max(1);
        // An example belongs to the micro-batch in which its center lies.
        let ends = self.cumulative_tokens();
        let place = |ends: &[usize]| (ends[0] + ends[1]) * count / (2 * total.max(1));
        let places: Vec<usize> = ends.windows(2).map(place).collect();
        let mut first = 0;
        places
            .chunk_by(|one, next| one == next)
            .map(|run| {
                let examples = first..first + run.len();
                first = examples.end;
                self.select(examples)
            })
            .collect()
    }

    /// Cumulative [`Batch::tokens`] of the examples, from 0.
    fn cumulative_tokens(&self) -> Vec<usize> {
        match &self.targets {
            Targets::Sequences(targets) => {
                let both = self.boundaries.iter().zip(&targets.boundaries);
                both.map(|(source, target)| source + target).collect()
            }
            _ => {
                let ends = self.boundaries.iter().step_by(self.sequences_per_example());
                ends.copied().collect()
            }
        }
    }

    /// A range of the examples.
    fn select(&self, examples: Range<usize>) -> Self {
        let each = self.sequences_per_example();
        let sequences = examples.start * each..examples.end * each;
        let (tokens, boundaries) = slice_boundaries(&self.boundaries, &sequences);
        Self {
            ids: self.ids[tokens.clone()].to_vec(),
            type_ids: self.type_ids[tokens.clone()].to_vec(),
            boundaries,
            targets: match &self.targets {
                Targets::Classes(classes) => Targets::Classes(classes[sequences.clone()].to_vec()),
                Targets::Numbers(numbers) => Targets::Numbers(numbers[sequences.clone()].to_vec()),
                Targets::ClassSets(sets) => {
                    let classes = sets.len() / self.examples().max(1);
                    let own = examples.start * classes..examples.end * classes;
                    Targets::ClassSets(sets[own].to_vec())
                }
                Targets::TokenClasses(labels) => Targets::TokenClasses(labels[tokens].to_vec()),
                Targets::Spans { starts, ends } => Targets::Spans {
                    starts: starts[examples.clone()].to_vec(),
                    ends: ends[examples.clone()].to_vec(),
                },
                Targets::Choices { chosen, choices } => Targets::Choices {
                    chosen: chosen[examples.clone()].to_vec(),
                    choices: *choices,
                },
                Targets::Texts { texts, scores } => Targets::Texts {
                    texts: *texts,
                    scores: scores
                        .as_ref()
                        .map(|scores| scores[examples.clone()].to_vec()),
                },
                Targets::Tokens(labels) => Targets::Tokens(labels[tokens].to_vec()),
                Targets::Sequences(targets) => {
                    let (tokens, boundaries) = slice_boundaries(&targets.boundaries, &sequences);
                    Targets::Sequences(TargetSequences {
                        labels: targets.labels[tokens].to_vec(),
                        boundaries,
                    })
                }
                Targets::Absent => Targets::Absent,
            },
            positions: self.positions[examples].to_vec(),
        }
    }
}

/// The tokens of a range of sequences, and the boundaries of these sequences counted from 0.
fn slice_boundaries(boundaries: &[usize], sequences: &Range<usize>) -> (Range<usize>, Vec<usize>) {
    let ends = &boundaries[sequences.start..=sequences.end];
    let tokens = ends[0]..ends[sequences.len()];
    let from_zero = ends.iter().map(|end| end - tokens.start).collect();
    (tokens, from_zero)
}

/// A data set in batches, with an order for each epoch.
///
/// ```
/// use epiphyte_data::{Batches, Example, Order, Target, Targets};
///
/// let example = |length: u32, class| Example {
///     ids: (0..length).collect(),
///     type_ids: vec![0; length as usize],
///     target: Target::Class(class),
/// };
/// let examples = vec![example(3, 0), example(5, 1), example(2, 0)];
/// let batches = Batches::new(examples, 2, Order::Sequential)?;
/// assert_eq!(batches.per_epoch(), 2);
///
/// let batch = batches.epoch(0).batch(0)?;
/// assert_eq!(batch.boundaries, [0, 3, 8]);
/// assert_eq!(batch.targets, Targets::Classes(vec![0, 1]));
/// # Ok::<(), epiphyte_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    examples: Examples,
    batch_size: usize,
    order: Order,
    masking: Option<Masking>,
}

impl Batches {
    /// Examples with a batch size, in sequences, and an order.
    ///
    /// # Errors
    /// [`DataError::ZeroBatchSize`]; [`DataError::MixedTargets`] if the examples' targets are of
    /// different kinds.
    pub fn new(examples: Vec<Example>, batch_size: usize, order: Order) -> Result<Self, DataError> {
        Self::of(examples.try_into()?, batch_size, order)
    }

    /// The examples of a file with a batch size, in sequences, and an order.
    ///
    /// # Errors
    /// [`DataError::ZeroBatchSize`].
    pub fn of(examples: Examples, batch_size: usize, order: Order) -> Result<Self, DataError> {
        if batch_size == 0 {
            return Err(DataError::ZeroBatchSize);
        }
        Ok(Self {
            examples,
            batch_size,
            order,
            masking: None,
        })
    }

    /// Hides tokens of each batch, which are to be predicted, instead of what the examples have as
    /// targets.
    #[must_use]
    pub fn masked(self, masking: Masking) -> Self {
        Self {
            masking: Some(masking),
            ..self
        }
    }

    /// Whether batches have other tokens in each epoch.
    pub fn is_masked(&self) -> bool {
        self.masking.is_some()
    }

    /// The number of examples of a batch.
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// SHA-256 of all examples and their order, in hexadecimal: of their token ids, segment ids and
    /// targets.
    pub fn content_hash(&self) -> String {
        self.examples.content_hash()
    }

    /// The examples in the order of the file.
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Batches in an epoch. The last may be smaller than the others; none is dropped.
    pub fn per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.batch_size)
    }

    /// One epoch, counted from 0. Computes its order, which takes time in proportion to the number
    /// of examples; to take batches one at a time, keep [`Batches::epochs`] instead.
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        let length = |position| self.examples.length(position);
        let (count, size) = (self.examples.len(), self.batch_size);
        Epoch {
            batches: self,
            number: epoch,
            positions: self.order.positions(count, length, size, epoch),
        }
    }

    /// The epochs of this data set, for a caller that takes one batch at a time.
    pub fn epochs(&self) -> Epochs<'_> {
        Epochs {
            batches: self,
            last: None,
        }
    }
}

/// The epochs of a data set. Keeps the order of the epoch last asked for, so that taking a batch
/// costs the same whatever the number of examples.
///
/// ```
/// use epiphyte_data::{Batches, Example, Order, Target};
///
/// let example = Example { ids: vec![7, 8], type_ids: vec![0; 2], target: Target::Absent };
/// let batches = Batches::new(vec![example; 10], 4, Order::Shuffled { seed: 1 })?;
/// let mut epochs = batches.epochs();
/// for step in 0..6 {
///     let (epoch, index) = (step / batches.per_epoch(), step % batches.per_epoch());
///     let batch = epochs.get(epoch as u64).batch(index)?;
///     assert!(batch.examples() <= 4);
/// }
/// # Ok::<(), epiphyte_data::DataError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Epochs<'a> {
    batches: &'a Batches,
    last: Option<Epoch<'a>>,
}

impl<'a> Epochs<'a> {
    /// An epoch, counted from 0. Computes its order only if another epoch was asked for before.
    pub fn get(&mut self, epoch: u64) -> &Epoch<'a> {
        let last = self.last.take().filter(|last| last.number == epoch);
        self.last
            .insert(last.unwrap_or_else(|| self.batches.epoch(epoch)))
    }
}

/// One epoch of a data set.
#[derive(Debug, Clone)]
pub struct Epoch<'a> {
    batches: &'a Batches,
    number: u64,
    positions: Vec<usize>,
}

impl Epoch<'_> {
    /// The positions of the examples in the order of this epoch.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Batch `index`, from 0.
    ///
    /// # Errors
    /// [`DataError::NoSuchBatch`].
    pub fn batch(&self, index: usize) -> Result<Batch, DataError> {
        let positions = self
            .positions
            .chunks(self.batches.batch_size)
            .nth(index)
            .ok_or(DataError::NoSuchBatch {
                index,
                count: self.batches.per_epoch(),
            })?;
        let examples = &self.batches.examples;
        let batch = positions.iter().copied();
        let batch = batch.filter_map(|position| Some((position, examples.get(position)?)));
        let mut batch = Batch::join(batch)?;
        if let Some(masking) = &self.batches.masking {
            masking.apply(&mut batch, self.number);
        }
        Ok(batch)
    }

    /// The batches from `start` on, for a run that resumes.
    pub fn batches_from(
        &self,
        start: usize,
    ) -> impl Iterator<Item = Result<Batch, DataError>> + '_ {
        (start..self.batches.per_epoch()).map(|index| self.batch(index))
    }
}
