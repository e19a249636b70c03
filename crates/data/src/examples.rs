//! The examples of a file, in a few large arrays: a million of them are then not millions of small
//! allocations, and their ids take little more memory than the ids themselves, or none where they
//! are many and lie in a mapped file.

use std::ops::Range;

use bytemuck::Pod;
use epiphyte_io::Sha256Hasher;
use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, SOFT, Target, UNKNOWN};
use crate::table::Table;
use crate::values::{Growing, IN_MEMORY, Values};

/// Rows that are encoded at once, each as an example of its own, before they are joined: this many
/// at most, so that cores rarely wait for each other.
const CHUNK_ROWS: usize = 8192;
/// Fewer, if they have more bytes in the table.
const CHUNK_BYTES: usize = 4 << 20;

/// The examples of a file, in the file's order, and what was lost in encoding them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Examples {
    /// Token ids of all examples.
    ids: Values<u32>,
    /// Where each example's ids end.
    ends: Values<usize>,
    /// Segment ids of all tokens; empty if every one is 0.
    type_ids: Values<u8>,
    targets: Targets,
    /// How many had a text longer than its limit, which lost its end.
    pub truncated: usize,
    /// How many tokens these had beyond their limits.
    pub removed_tokens: usize,
    /// How many rows gave no example because no token to predict was left in them. Always 0 unless
    /// the targets are [`Target::Tokens`].
    pub dropped: usize,
}

/// The targets of all examples, of one kind.
#[derive(Debug, Clone, PartialEq, Default)]
enum Targets {
    #[default]
    Absent,
    Classes(Values<u32>),
    Numbers(Values<f32>),
    /// 0 or 1 for each of `classes`, example by example.
    ClassSets {
        sets: Values<u8>,
        classes: usize,
    },
    /// As many as ids.
    TokenClasses(Values<i32>),
    /// First and last.
    Spans(Values<u32>),
    /// `choices` lengths for each example.
    Choices {
        lengths: Values<u32>,
        chosen: Values<i32>,
        choices: usize,
    },
    /// `texts` lengths for each example; as many scores as examples, or none.
    Texts {
        lengths: Values<u32>,
        scores: Values<f32>,
        texts: usize,
    },
    /// As many as ids.
    Tokens(Values<i32>),
    Sequences {
        labels: Values<i32>,
        ends: Values<usize>,
    },
}

/// Examples to which others are appended.
#[derive(Debug)]
pub(crate) struct GrowingExamples {
    in_memory: usize,
    ids: Growing<u32>,
    ends: Growing<usize>,
    /// Segment ids of all tokens so far; none if every one is 0.
    type_ids: Growing<u8>,
    targets: GrowingTargets,
    truncated: usize,
    removed_tokens: usize,
    dropped: usize,
}

#[derive(Debug)]
enum GrowingTargets {
    Absent,
    Classes(Growing<u32>),
    Numbers(Growing<f32>),
    ClassSets {
        sets: Growing<u8>,
        classes: usize,
    },
    TokenClasses(Growing<i32>),
    Spans(Growing<u32>),
    Choices {
        lengths: Growing<u32>,
        chosen: Growing<i32>,
        choices: usize,
    },
    Texts {
        lengths: Growing<u32>,
        scores: Growing<f32>,
        texts: usize,
    },
    Tokens(Growing<i32>),
    Sequences {
        labels: Growing<i32>,
        ends: Growing<usize>,
    },
}

impl GrowingExamples {
    /// No examples yet; of each array of them, `in_memory` bytes are to lie in memory.
    pub(crate) fn new(in_memory: usize) -> Self {
        Self {
            in_memory,
            ids: Growing::new(in_memory),
            ends: Growing::new(in_memory),
            type_ids: Growing::new(in_memory),
            targets: GrowingTargets::Absent,
            truncated: 0,
            removed_tokens: 0,
            dropped: 0,
        }
    }

    /// Appends an example.
    ///
    /// # Errors
    /// [`DataError::MixedTargets`] if its target is of another kind than those before it;
    /// [`DataError::Scratch`].
    pub(crate) fn push(&mut self, example: Example) -> Result<(), DataError> {
        let index = self.ends.len();
        if index == 0 {
            self.targets = GrowingTargets::like(&example.target, self.in_memory);
        }
        self.targets.push(example.target, index)?;
        if self.type_ids.len() > 0 || example.type_ids.iter().any(|&id| id > 0) {
            while self.type_ids.len() < self.ids.len() {
                let zeros = self.ids.len().min(self.type_ids.len() + ZEROS);
                self.type_ids.resize(zeros, 0);
                self.type_ids.settle()?;
            }
            // No model has 255 segments, so the last stands for all that are beyond.
            let short = |&id: &u32| u8::try_from(id).unwrap_or(u8::MAX);
            let type_ids = example.type_ids.iter().map(short);
            self.type_ids.last().extend(type_ids);
            self.type_ids.settle()?;
        }
        self.ids.last().extend(&example.ids);
        self.ids.settle()?;
        let end = self.ids.len();
        self.ends.last().push(end);
        self.ends.settle().map(drop)
    }

    /// The examples.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn finish(self) -> Result<Examples, DataError> {
        Ok(Examples {
            ids: self.ids.finish()?,
            ends: self.ends.finish()?,
            type_ids: self.type_ids.finish()?,
            targets: match self.targets {
                GrowingTargets::Absent => Targets::Absent,
                GrowingTargets::Classes(classes) => Targets::Classes(classes.finish()?),
                GrowingTargets::Numbers(numbers) => Targets::Numbers(numbers.finish()?),
                GrowingTargets::ClassSets { sets, classes } => Targets::ClassSets {
                    sets: sets.finish()?,
                    classes,
                },
                GrowingTargets::TokenClasses(labels) => Targets::TokenClasses(labels.finish()?),
                GrowingTargets::Spans(spans) => Targets::Spans(spans.finish()?),
                GrowingTargets::Choices {
                    lengths,
                    chosen,
                    choices,
                } => Targets::Choices {
                    lengths: lengths.finish()?,
                    chosen: chosen.finish()?,
                    choices,
                },
                GrowingTargets::Texts {
                    lengths,
                    scores,
                    texts,
                } => Targets::Texts {
                    lengths: lengths.finish()?,
                    scores: scores.finish()?,
                    texts,
                },
                GrowingTargets::Tokens(labels) => Targets::Tokens(labels.finish()?),
                GrowingTargets::Sequences { labels, ends } => Targets::Sequences {
                    labels: labels.finish()?,
                    ends: ends.finish()?,
                },
            },
            truncated: self.truncated,
            removed_tokens: self.removed_tokens,
            dropped: self.dropped,
        })
    }
}

/// Segments of examples before the first that has several are filled in by this many.
const ZEROS: usize = 1 << 20;

impl GrowingTargets {
    /// None yet, of the kind of `target`.
    fn like(target: &Target, in_memory: usize) -> Self {
        match target {
            Target::Class(_) => Self::Classes(Growing::new(in_memory)),
            Target::Number(_) => Self::Numbers(Growing::new(in_memory)),
            Target::ClassSet(set) => Self::ClassSets {
                sets: Growing::new(in_memory),
                classes: set.len(),
            },
            Target::TokenClasses(_) => Self::TokenClasses(Growing::new(in_memory)),
            Target::Span(_) => Self::Spans(Growing::new(in_memory)),
            Target::Choice { lengths, .. } => Self::Choices {
                lengths: Growing::new(in_memory),
                chosen: Growing::new(in_memory),
                choices: lengths.len(),
            },
            Target::Texts { lengths, .. } => Self::Texts {
                lengths: Growing::new(in_memory),
                scores: Growing::new(in_memory),
                texts: lengths.len(),
            },
            Target::Tokens(_) => Self::Tokens(Growing::new(in_memory)),
            Target::Sequence(_) => Self::Sequences {
                labels: Growing::new(in_memory),
                ends: Growing::new(in_memory),
            },
            Target::Absent => Self::Absent,
        }
    }

    /// Appends the target of example `index`.
    fn push(&mut self, target: Target, index: usize) -> Result<(), DataError> {
        // Ids are below the size of a vocabulary, which is an i32 in every model.
        let short = |label: i64| label as i32;
        match (self, target) {
            (Self::Classes(classes), Target::Class(class)) => {
                classes.last().push(class as u32);
                classes.settle()?;
            }
            (Self::Numbers(numbers), Target::Number(number)) => {
                numbers.last().push(number);
                numbers.settle()?;
            }
            (Self::ClassSets { sets, classes }, Target::ClassSet(set)) if set.len() == *classes => {
                sets.last().extend(set.into_iter().map(u8::from));
                sets.settle()?;
            }
            (Self::Spans(spans), Target::Span(ends)) => {
                spans.last().extend(ends.map(|end| end as u32));
                spans.settle()?;
            }
            (
                Self::Choices {
                    lengths: all,
                    chosen,
                    choices,
                },
                Target::Choice {
                    lengths,
                    chosen: one,
                },
            ) if lengths.len() == *choices => {
                all.last()
                    .extend(lengths.into_iter().map(|length| length as u32));
                all.settle()?;
                chosen
                    .last()
                    .push(one.map_or(UNKNOWN as i32, |one| one as i32));
                chosen.settle()?;
            }
            (
                Self::Texts {
                    lengths: all,
                    scores,
                    texts,
                },
                Target::Texts { lengths, score },
            ) if lengths.len() == *texts
                && scores.len() == if score.is_some() { index } else { 0 } =>
            {
                all.last()
                    .extend(lengths.into_iter().map(|length| length as u32));
                all.settle()?;
                scores.last().extend(score);
                scores.settle()?;
            }
            (Self::TokenClasses(all), Target::TokenClasses(labels))
            | (Self::Tokens(all), Target::Tokens(labels)) => {
                all.last().extend(labels.into_iter().map(short));
                all.settle()?;
            }
            (Self::Sequences { labels: all, ends }, Target::Sequence(labels)) => {
                all.last().extend(labels.into_iter().map(short));
                let end = all.len();
                all.settle()?;
                ends.last().push(end);
                ends.settle()?;
            }
            (Self::Absent, Target::Absent) => {}
            _ => return Err(DataError::MixedTargets { index }),
        }
        Ok(())
    }
}

/// The rows of a table, in ranges that are encoded at once.
pub(crate) fn chunks(table: &Table) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let (mut end, mut bytes) = (start, 0);
        while end < table.len().min(start + CHUNK_ROWS) && bytes < CHUNK_BYTES {
            bytes += table.row_bytes(end);
            end += 1;
        }
        let chunk = start..end;
        start = end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl Examples {
    /// The examples of a table's rows, encoded on all cores: each row's, none if no token to
    /// predict is left in it, with the number of tokens that were removed. Of several errors it is
    /// that of the first row.
    pub(crate) fn of_rows<E: IntoIterator<Item = Example> + Send>(
        table: &Table,
        encode: impl Fn(usize) -> Result<(E, usize), DataError> + Sync,
    ) -> Result<Self, DataError> {
        let mut all = GrowingExamples::new(table.in_memory);
        for chunk in chunks(table) {
            let encoded: Vec<_> = chunk.clone().into_par_iter().map(&encode).collect();
            table.forget(chunk);
            for encoded in encoded {
                let (examples, removed) = encoded?;
                all.truncated += usize::from(removed > 0);
                all.removed_tokens += removed;
                let before = all.ends.len();
                for example in examples {
                    all.push(example)?;
                }
                all.dropped += usize::from(all.ends.len() == before);
            }
        }
        all.finish()
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no example.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The example at `position`, from 0; none past the last.
    pub fn get(&self, position: usize) -> Option<Example> {
        let range = range(&self.ends, position)?;
        let type_ids = match self.type_ids.is_empty() {
            true => vec![0; range.len()],
            false => self.type_ids[range.clone()]
                .iter()
                .map(|&id| id.into())
                .collect(),
        };
        let long = |labels: &[i32]| labels.iter().map(|&label| label.into()).collect();
        let target = match &self.targets {
            Targets::Absent => Target::Absent,
            Targets::Classes(classes) => Target::Class(classes[position] as usize),
            Targets::Numbers(numbers) => Target::Number(numbers[position]),
            Targets::ClassSets { sets, classes } => {
                let own = &sets[position * classes..(position + 1) * classes];
                Target::ClassSet(own.iter().map(|&it| it == 1).collect())
            }
            Targets::TokenClasses(labels) => Target::TokenClasses(long(&labels[range.clone()])),
            Targets::Spans(spans) => {
                Target::Span([0, 1].map(|end| spans[2 * position + end] as usize))
            }
            Targets::Choices {
                lengths,
                chosen,
                choices,
            } => {
                let own = &lengths[position * choices..(position + 1) * choices];
                Target::Choice {
                    lengths: own.iter().map(|&length| length as usize).collect(),
                    chosen: usize::try_from(chosen[position]).ok(),
                }
            }
            Targets::Texts {
                lengths,
                scores,
                texts,
            } => {
                let own = &lengths[position * texts..(position + 1) * texts];
                Target::Texts {
                    lengths: own.iter().map(|&length| length as usize).collect(),
                    score: scores.get(position).copied(),
                }
            }
            Targets::Tokens(labels) => Target::Tokens(long(&labels[range.clone()])),
            Targets::Sequences { labels, ends } => {
                Target::Sequence(long(&labels[self::range(ends, position)?]))
            }
        };
        Some(Example {
            ids: self.ids[range].to_vec(),
            type_ids,
            target,
        })
    }

    /// The token ids of the example at `position`, from 0; none past the last.
    pub fn ids(&self, position: usize) -> Option<&[u32]> {
        Some(&self.ids[range(&self.ends, position)?])
    }

    /// The number of tokens of the longest sequence: an example, one of its choices, or a target
    /// sequence. A model needs as many positions.
    pub fn longest(&self) -> usize {
        let longest = |ends: &[usize]| {
            let lengths = (0..ends.len()).filter_map(|position| range(ends, position));
            lengths.map(|range| range.len()).max().unwrap_or(0)
        };
        match &self.targets {
            Targets::Sequences { ends, .. } => longest(&self.ends).max(longest(ends)),
            Targets::Choices { lengths, .. } | Targets::Texts { lengths, .. } => {
                lengths.iter().max().copied().unwrap_or(0) as usize
            }
            _ => longest(&self.ends),
        }
    }

    /// The largest token id, those of target sequences included and soft tokens left out.
    pub fn largest_id(&self) -> Option<u32> {
        let target = match &self.targets {
            Targets::Sequences { labels, .. } => labels.pieces().flatten().max().copied(),
            _ => None,
        };
        let target = target.and_then(|label| u32::try_from(label).ok());
        let ids = self.ids.pieces().flatten().copied();
        let of_words = ids.filter(|&id| id != SOFT);
        of_words.max().max(target)
    }

    /// The largest segment id.
    pub fn largest_type_id(&self) -> u32 {
        let ids = self.type_ids.pieces().flatten();
        ids.max().copied().unwrap_or(0).into()
    }

    /// The examples in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Example> + '_ {
        (0..self.len()).map(|position| self.get(position).expect("the position is of an example"))
    }

    /// The number of tokens of the example at `position` that go through the model, those of a
    /// target sequence included; 0 past the last.
    pub fn length(&self, position: usize) -> usize {
        let length = |ends: &[usize]| range(ends, position).map_or(0, |range| range.len());
        let target = match &self.targets {
            Targets::Sequences { ends, .. } => length(ends),
            _ => 0,
        };
        length(&self.ends) + target
    }

    /// SHA-256 of all examples and their order, in hexadecimal: of their token ids, segment ids and
    /// targets.
    pub fn content_hash(&self) -> String {
        let mut hash = Sha256Hasher::default();
        let end = |end: usize| (end as u64).to_le_bytes();
        add(&mut hash, &self.ends, end);
        add(&mut hash, &self.ids, u32::to_le_bytes);
        add(&mut hash, &self.type_ids, u8::to_le_bytes);
        match &self.targets {
            Targets::Absent => hash.update(&[0]),
            Targets::Classes(classes) => {
                hash.update(&[1]);
                add(&mut hash, classes, u32::to_le_bytes);
            }
            Targets::Numbers(numbers) => {
                hash.update(&[2]);
                add(&mut hash, numbers, f32::to_le_bytes);
            }
            Targets::Tokens(labels) => {
                hash.update(&[3]);
                add(&mut hash, labels, i32::to_le_bytes);
            }
            Targets::ClassSets { sets, .. } => {
                hash.update(&[5]);
                add(&mut hash, sets, u8::to_le_bytes);
            }
            Targets::TokenClasses(labels) => {
                hash.update(&[6]);
                add(&mut hash, labels, i32::to_le_bytes);
            }
            Targets::Spans(spans) => {
                hash.update(&[7]);
                add(&mut hash, spans, u32::to_le_bytes);
            }
            Targets::Choices {
                lengths, chosen, ..
            } => {
                hash.update(&[8]);
                add(&mut hash, lengths, u32::to_le_bytes);
                add(&mut hash, chosen, i32::to_le_bytes);
            }
            Targets::Texts {
                lengths, scores, ..
            } => {
                hash.update(&[9]);
                add(&mut hash, lengths, u32::to_le_bytes);
                add(&mut hash, scores, f32::to_le_bytes);
            }
            Targets::Sequences { labels, ends: of } => {
                hash.update(&[4]);
                add(&mut hash, of, end);
                add(&mut hash, labels, i32::to_le_bytes);
            }
        }
        hash.finish()
    }

    /// The number of tokens in all examples, those of target sequences included.
    pub fn tokens(&self) -> usize {
        let target = match &self.targets {
            Targets::Sequences { labels, .. } => labels.len(),
            _ => 0,
        };
        self.ids.len() + target
    }
}

/// Hashes how many values there are, and the values.
fn add<T: Pod, const N: usize>(
    hash: &mut Sha256Hasher,
    values: &Values<T>,
    bytes: fn(T) -> [u8; N],
) {
    hash.update(&(values.len() as u64).to_le_bytes());
    for piece in values.pieces() {
        for values in piece.chunks(1 << 12) {
            let values: Vec<u8> = values.iter().flat_map(|&value| bytes(value)).collect();
            hash.update(&values);
        }
    }
}

/// What lies between the end before `position` and its own.
fn range(ends: &[usize], position: usize) -> Option<Range<usize>> {
    let end = *ends.get(position)?;
    let start = position.checked_sub(1).map_or(0, |before| ends[before]);
    Some(start..end)
}

impl<'a> IntoIterator for &'a Examples {
    type Item = Example;
    type IntoIter = Box<dyn ExactSizeIterator<Item = Example> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl TryFrom<Vec<Example>> for Examples {
    type Error = DataError;

    fn try_from(examples: Vec<Example>) -> Result<Self, DataError> {
        let mut all = GrowingExamples::new(IN_MEMORY);
        for example in examples {
            all.push(example)?;
        }
        all.finish()
    }
}
