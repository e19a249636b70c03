//! Sequences of unequal length, laid end to end without padding.

use std::ops::Range;
use std::sync::Arc;

/// Where each sequence of a `[tokens, width]` matrix begins and ends, and the key from which its
/// random numbers are drawn.
///
/// Linear maps then are plain products, no work is spent on padding, and only attention looks at
/// the boundaries. The keys belong to the sequences, not to the batch: what a sequence draws does
/// not depend on which others stand beside it, so runs that share a batch stay what they are alone.
///
/// ```
/// use epiphyte_ops::Sequences;
/// let sequences = Sequences::new(vec![0, 3, 5]);
/// assert_eq!(sequences.lengths().collect::<Vec<_>>(), [3, 2]);
/// assert_eq!(sequences.prepended(4).boundaries(), [0, 7, 13]);
/// assert_eq!(sequences.select_rows(&[1, 3, 4]).boundaries(), [0, 1, 3]);
/// assert_eq!(sequences.part(1..2).boundaries(), [0, 2]);
/// let twice = Sequences::concat([&sequences, &sequences].into_iter());
/// assert_eq!(twice.boundaries(), [0, 3, 5, 8, 10]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    boundaries: Arc<[usize]>,
    keys: Option<Arc<[u64]>>,
}

impl Sequences {
    /// Sequences from cumulative token offsets, `0` first: one more offset than sequences.
    ///
    /// # Panics
    /// If the offsets do not start at 0 or decrease.
    pub fn new(boundaries: Vec<usize>) -> Self {
        assert!(
            boundaries.first() == Some(&0) && boundaries.is_sorted(),
            "boundaries start at 0 and never decrease"
        );
        Self {
            boundaries: boundaries.into(),
            keys: None,
        }
    }

    /// The same sequences with a key each, which turns dropout on.
    ///
    /// # Panics
    /// If there are not as many keys as sequences.
    pub fn with_keys(self, keys: Vec<u64>) -> Self {
        assert_eq!(keys.len(), self.count(), "one key a sequence");
        Self {
            keys: Some(keys.into()),
            ..self
        }
    }

    /// Cumulative token offsets, one more than sequences.
    pub fn boundaries(&self) -> &[usize] {
        &self.boundaries
    }

    /// The sequences' keys while training; without them nothing is dropped.
    pub fn keys(&self) -> Option<&[u64]> {
        self.keys.as_deref()
    }

    /// How many sequences there are.
    pub fn count(&self) -> usize {
        self.boundaries.len() - 1
    }

    /// How many tokens there are in all.
    pub fn tokens(&self) -> usize {
        self.boundaries[self.count()]
    }

    /// Each sequence's length in tokens.
    pub fn lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.boundaries.windows(2).map(|pair| pair[1] - pair[0])
    }

    /// The longest sequence's length, 0 without sequences.
    pub fn longest(&self) -> usize {
        self.lengths().max().unwrap_or(0)
    }

    /// Each token's place in its own sequence, from 0.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.lengths().flat_map(|length| 0..length)
    }

    /// Row of each sequence's first token.
    pub fn firsts(&self) -> &[usize] {
        &self.boundaries[..self.count()]
    }

    /// Row of each sequence's last token.
    pub fn lasts(&self) -> impl Iterator<Item = usize> + '_ {
        self.boundaries[1..].iter().map(|end| end.saturating_sub(1))
    }

    /// As many sequences of one token each, with the same keys: what is left after picking one token
    /// of each.
    pub fn each_alone(&self) -> Self {
        Self {
            boundaries: (0..=self.count()).collect(),
            keys: self.keys.clone(),
        }
    }

    /// What is left of these sequences when only the given rows stay, in ascending order.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let boundaries = self
            .boundaries
            .iter()
            .map(|&end| rows.partition_point(|&row| row < end));
        Self {
            boundaries: boundaries.collect(),
            keys: self.keys.clone(),
        }
    }

    /// The rows that some of these sequences take.
    pub fn range(&self, sequences: &Range<usize>) -> Range<usize> {
        self.boundaries[sequences.start]..self.boundaries[sequences.end]
    }

    /// Some of these sequences, as sequences of their own.
    pub fn part(&self, sequences: Range<usize>) -> Self {
        let start = self.boundaries[sequences.start];
        let boundaries = &self.boundaries[sequences.start..=sequences.end];
        Self {
            boundaries: boundaries.iter().map(|at| at - start).collect(),
            keys: self.keys.as_ref().map(|keys| keys[sequences].into()),
        }
    }

    /// The sequences of several, one after another; with keys if all have keys.
    pub fn concat<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let (mut boundaries, mut keys) = (vec![0], Some(Vec::new()));
        for part in parts {
            let start = boundaries[boundaries.len() - 1];
            boundaries.extend(part.boundaries[1..].iter().map(|at| start + at));
            keys = keys.zip(part.keys()).map(|(mut keys, more)| {
                keys.extend(more);
                keys
            });
        }
        Self {
            boundaries: boundaries.into(),
            keys: keys.map(Into::into),
        }
    }

    /// These sequences with `count` tokens put before each.
    pub fn prepended(&self, count: usize) -> Self {
        let boundaries = self
            .boundaries
            .iter()
            .enumerate()
            .map(|(index, at)| at + index * count);
        Self {
            boundaries: boundaries.collect(),
            keys: self.keys.clone(),
        }
    }
}
