//! Sequences of unequal length, concatenated without padding.

use std::ops::Range;
use std::sync::Arc;

/// Where each sequence of a `[tokens, hidden]` matrix begins and ends, the position of each row in
/// its sequence, and the random key of each sequence.
///
/// Linear layers are then plain products, no work is spent on padding, and only attention reads the
/// boundaries. The random keys belong to the sequences, not to the batch: what a sequence draws
/// does not depend on the other sequences of its batch, so runs that share a batch give the same
/// results as alone. Rows keep their positions when only some of them are selected.
///
/// ```
/// use epiphyte_ops::Sequences;
/// let sequences = Sequences::new(vec![0, 3, 5]);
/// assert_eq!(sequences.lengths().collect::<Vec<_>>(), [3, 2]);
/// assert_eq!(sequences.prepended(4).boundaries(), [0, 7, 13]);
/// let selected = sequences.select_rows(&[1, 3, 4]);
/// assert_eq!(selected.boundaries(), [0, 1, 3]);
/// assert_eq!(selected.positions().collect::<Vec<_>>(), [1, 0, 1]);
/// assert_eq!(sequences.part(1..2).boundaries(), [0, 2]);
/// let twice = Sequences::concat([&sequences, &sequences].into_iter());
/// assert_eq!(twice.boundaries(), [0, 3, 5, 8, 10]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    boundaries: Arc<[usize]>,
    keys: Option<Arc<[u64]>>,
    /// Each row's position in its sequence; absent if each sequence's positions are `0..length`.
    positions: Option<Arc<[u32]>>,
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
            positions: None,
        }
    }

    /// The same sequences with a random key each, which turns dropout on.
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

    /// The same sequences with the position of each row in its sequence, for rows that do not count
    /// from 0, such as those that follow a KV cache.
    ///
    /// ```
    /// use epiphyte_ops::Sequences;
    /// let next = Sequences::new(vec![0, 1, 2]).with_positions(vec![7, 3]);
    /// assert_eq!(next.positions().collect::<Vec<_>>(), [7, 3]);
    /// ```
    ///
    /// # Panics
    /// If there are not as many positions as tokens.
    pub fn with_positions(self, positions: Vec<u32>) -> Self {
        assert_eq!(positions.len(), self.tokens(), "one position a token");
        let counted = self.lengths().flat_map(|length| 0..length as u32);
        let stored = !counted.eq(positions.iter().copied());
        Self {
            positions: stored.then(|| positions.into()),
            ..self
        }
    }

    /// Cumulative token offsets, one more than sequences.
    pub fn boundaries(&self) -> &[usize] {
        &self.boundaries
    }

    /// The sequences' random keys while training; without them dropout is off.
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

    /// Each row's position in its own sequence, from 0.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.boundaries.windows(2).flat_map(move |pair| {
            (pair[0]..pair[1]).map(move |row| match &self.positions {
                Some(positions) => positions[row] as usize,
                None => row - pair[0],
            })
        })
    }

    /// Row of each sequence's first token.
    pub fn firsts(&self) -> &[usize] {
        &self.boundaries[..self.count()]
    }

    /// Row of each sequence's last token.
    pub fn lasts(&self) -> impl Iterator<Item = usize> + '_ {
        self.boundaries[1..].iter().map(|end| end.saturating_sub(1))
    }

    /// These sequences with only the given rows, in ascending order. The rows keep their positions.
    ///
    /// # Panics
    /// If a row is not one of [`Sequences::tokens`].
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let boundaries = self
            .boundaries
            .iter()
            .map(|&end| rows.partition_point(|&row| row < end));
        let positions: Vec<usize> = self.positions().collect();
        let selected = Self {
            boundaries: boundaries.collect(),
            keys: self.keys.clone(),
            positions: None,
        };
        selected.with_positions(rows.iter().map(|&row| positions[row] as u32).collect())
    }

    /// The rows that some of these sequences take.
    pub fn range(&self, sequences: &Range<usize>) -> Range<usize> {
        self.boundaries[sequences.start]..self.boundaries[sequences.end]
    }

    /// A range of these sequences.
    pub fn part(&self, sequences: Range<usize>) -> Self {
        let start = self.boundaries[sequences.start];
        let boundaries = &self.boundaries[sequences.start..=sequences.end];
        let rows = start..self.boundaries[sequences.end];
        let part = Self {
            boundaries: boundaries.iter().map(|at| at - start).collect(),
            keys: self.keys.as_ref().map(|keys| keys[sequences].into()),
            positions: None,
        };
        match &self.positions {
            Some(positions) => part.with_positions(positions[rows].to_vec()),
            None => part,
        }
    }

    /// The sequences of several, concatenated; with random keys if all have them.
    pub fn concat<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        let (mut boundaries, mut keys) = (vec![0], Some(Vec::new()));
        let mut positions = Vec::new();
        for part in parts {
            positions.extend(part.positions().map(|position| position as u32));
            let start = boundaries[boundaries.len() - 1];
            boundaries.extend(part.boundaries[1..].iter().map(|at| start + at));
            keys = keys.zip(part.keys()).map(|(mut keys, more)| {
                keys.extend(more);
                keys
            });
        }
        let all = Self {
            boundaries: boundaries.into(),
            keys: keys.map(Into::into),
            positions: None,
        };
        all.with_positions(positions)
    }

    /// These sequences with `count` tokens put before each; positions count from the first of them.
    pub fn prepended(&self, count: usize) -> Self {
        let boundaries = self
            .boundaries
            .iter()
            .enumerate()
            .map(|(index, at)| at + index * count);
        Self {
            boundaries: boundaries.collect(),
            keys: self.keys.clone(),
            positions: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sequences;

    fn positions(sequences: &Sequences) -> Vec<usize> {
        sequences.positions().collect()
    }

    #[test]
    fn rows_keep_their_positions() {
        let sequences = Sequences::new(vec![0, 3, 3, 7]).with_keys(vec![1, 2, 3]);
        let selected = sequences.select_rows(&[2, 4, 6]);
        assert_eq!(selected.boundaries(), [0, 1, 1, 3]);
        assert_eq!(positions(&selected), [2, 1, 3]);
        assert_eq!(positions(&selected.select_rows(&[0, 2])), [2, 3]);
        let last = selected.part(2..3);
        assert_eq!(
            (last.boundaries(), positions(&last)),
            (&[0, 2][..], vec![1, 3])
        );
        assert_eq!(last.keys(), Some(&[3][..]));
        let both = Sequences::concat([&last, &sequences].into_iter());
        assert_eq!(positions(&both), [1, 3, 0, 1, 2, 0, 1, 2, 3]);
        assert_eq!(positions(&both.part(1..4)), positions(&sequences));
    }

    #[test]
    fn prepended_tokens_move_the_others() {
        let rest = Sequences::new(vec![0, 3, 5]).select_rows(&[1, 2, 4]);
        assert_eq!(positions(&rest.prepended(2)), [0, 1, 2, 3, 0, 1, 2]);
    }

    /// Positions that count from 0 are not stored, so equal sequences compare equal.
    #[test]
    fn selecting_all_rows_changes_nothing() {
        let sequences = Sequences::new(vec![0, 3, 5]);
        assert_eq!(sequences.select_rows(&[0, 1, 2, 3, 4]), sequences);
        let parts = [sequences.part(0..1), sequences.part(1..2)];
        assert_eq!(Sequences::concat(parts.iter()), sequences);
    }
}
