//! Batches without padding, reachable at random.
//!
//! The sequences of a batch stand one behind the other; `boundaries` says where each begins and ends. Linear maps
//! then work on a plain `[tokens, width]` matrix and no time goes into padding; only attention looks at the
//! boundaries.

use std::ops::Range;

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::order::Order;

/// The targets of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// One class id a sequence.
    Classes(Vec<usize>),
    /// One number a sequence.
    Values(Vec<f32>),
    /// One label a token, aligned with the ids; [`crate::IGNORED`] where it does not count. The first label of a
    /// sequence is never predicted, since the model shifts within each sequence.
    Tokens(Vec<i64>),
    /// Nothing is known.
    Absent,
}

/// Some sequences, joined.
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
    /// Where each sequence stands in the data set, from 0.
    pub positions: Vec<usize>,
}

impl Batch {
    /// Joins examples, each given with its position in the data set.
    ///
    /// # Errors
    /// [`DataError::MixedTargets`] where examples of different tasks meet.
    pub fn join<'a>(
        examples: impl IntoIterator<Item = (usize, &'a Example)>,
    ) -> Result<Self, DataError> {
        let mut batch = Self {
            ids: Vec::new(),
            type_ids: Vec::new(),
            boundaries: vec![0],
            targets: Targets::Absent,
            positions: Vec::new(),
        };
        for (index, (position, example)) in examples.into_iter().enumerate() {
            batch.ids.extend(&example.ids);
            batch.type_ids.extend(&example.type_ids);
            batch.boundaries.push(batch.ids.len());
            batch.positions.push(position);
            if index == 0 {
                batch.targets = match example.target {
                    Target::Class(_) => Targets::Classes(Vec::new()),
                    Target::Value(_) => Targets::Values(Vec::new()),
                    Target::Tokens(_) => Targets::Tokens(Vec::new()),
                    Target::Absent => Targets::Absent,
                };
            }
            match (&mut batch.targets, &example.target) {
                (Targets::Classes(classes), Target::Class(class)) => classes.push(*class),
                (Targets::Values(values), Target::Value(value)) => values.push(*value),
                (Targets::Tokens(labels), Target::Tokens(more)) => labels.extend(more),
                (Targets::Absent, Target::Absent) => {}
                _ => return Err(DataError::MixedTargets { index }),
            }
        }
        Ok(batch)
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.positions.len()
    }

    /// The number of tokens in all sequences.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The same sequences in the same order, as batches of about `tokens` tokens and about equal size; a sequence is
    /// never cut.
    ///
    /// ```
    /// use epiphyte_data::{Batch, Example, Target};
    ///
    /// let example = Example { ids: vec![7; 40], type_ids: vec![0; 40], target: Target::Class(1) };
    /// let batch = Batch::join((0..5).map(|position| (position, &example)))?;
    /// let parts = batch.parts(100);
    /// assert_eq!(parts.iter().map(Batch::tokens).collect::<Vec<_>>(), [80, 120]);
    /// assert_eq!(parts[1].positions, [2, 3, 4]);
    /// # Ok::<(), epiphyte_data::DataError>(())
    /// ```
    pub fn parts(&self, tokens: usize) -> Vec<Self> {
        let count = self.tokens().div_ceil(tokens.max(1)).max(1);
        // A sequence belongs to the part in which its middle lies.
        let part_of = |ends: &[usize]| (ends[0] + ends[1]) * count / (2 * self.tokens().max(1));
        let parts: Vec<usize> = self.boundaries.windows(2).map(part_of).collect();
        let mut first = 0;
        parts
            .chunk_by(|one, next| one == next)
            .map(|part| {
                let range = first..first + part.len();
                first = range.end;
                self.part(range)
            })
            .collect()
    }

    /// Some of the sequences.
    fn part(&self, sequences: Range<usize>) -> Self {
        let ends = &self.boundaries[sequences.start..=sequences.end];
        let tokens = ends[0]..ends[sequences.len()];
        Self {
            ids: self.ids[tokens.clone()].to_vec(),
            type_ids: self.type_ids[tokens.clone()].to_vec(),
            boundaries: ends.iter().map(|end| end - tokens.start).collect(),
            targets: match &self.targets {
                Targets::Classes(classes) => Targets::Classes(classes[sequences.clone()].to_vec()),
                Targets::Values(values) => Targets::Values(values[sequences.clone()].to_vec()),
                Targets::Tokens(labels) => Targets::Tokens(labels[tokens].to_vec()),
                Targets::Absent => Targets::Absent,
            },
            positions: self.positions[sequences].to_vec(),
        }
    }

    /// The length of the longest sequence, in tokens; 0 for a batch without sequences.
    pub fn longest(&self) -> usize {
        self.boundaries
            .windows(2)
            .map(|ends| ends[1] - ends[0])
            .max()
            .unwrap_or(0)
    }
}

/// A data set cut into batches, epoch after epoch.
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
    examples: Vec<Example>,
    lengths: Vec<usize>,
    batch_size: usize,
    order: Order,
}

impl Batches {
    /// A data set with its batch size (in sequences) and order.
    ///
    /// # Errors
    /// [`DataError::ZeroBatchSize`]; [`DataError::MixedTargets`] where examples belong to different tasks.
    pub fn new(examples: Vec<Example>, batch_size: usize, order: Order) -> Result<Self, DataError> {
        if batch_size == 0 {
            return Err(DataError::ZeroBatchSize);
        }
        let kind = |example: &Example| std::mem::discriminant(&example.target);
        if let Some(index) = examples
            .iter()
            .position(|example| kind(example) != kind(&examples[0]))
        {
            return Err(DataError::MixedTargets { index });
        }
        let lengths = examples.iter().map(|example| example.ids.len()).collect();
        Ok(Self {
            examples,
            lengths,
            batch_size,
            order,
        })
    }

    /// The examples in the order of the file.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Batches in an epoch; the last may be smaller than the others, none is dropped.
    pub fn per_epoch(&self) -> usize {
        self.examples.len().div_ceil(self.batch_size)
    }

    /// One epoch, counted from 0. Computes its order, which takes time in proportion to the number
    /// of examples; to take batches one at a time, keep [`Batches::epochs`] instead.
    pub fn epoch(&self, epoch: u64) -> Epoch<'_> {
        Epoch {
            batches: self,
            number: epoch,
            positions: self.order.positions(&self.lengths, self.batch_size, epoch),
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
///     assert!(batch.sequences() <= 4);
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
        Batch::join(
            positions
                .iter()
                .map(|&position| (position, &self.batches.examples[position])),
        )
    }

    /// The batches from `start` on, which is how a run goes on where it stopped.
    pub fn batches_from(
        &self,
        start: usize,
    ) -> impl Iterator<Item = Result<Batch, DataError>> + '_ {
        (start..self.batches.per_epoch()).map(|index| self.batch(index))
    }
}
