//! Values in a row: in memory while they are few, and beyond that in a mapped scratch file, so that
//! data may be larger than memory.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytemuck::Pod;
use epiphyte_io::{ScratchFile, ScratchMap};

use crate::error::DataError;

/// The bytes of one row of values that lie in memory, if nothing else is said.
pub(crate) const IN_MEMORY: usize = 16 << 20;

/// Once there is a scratch file, it gets values in pieces of this many bytes.
const PIECE: usize = 1 << 20;

/// Values in a row.
#[derive(Clone)]
pub(crate) enum Values<T> {
    Memory(Vec<T>),
    Mapped(Arc<ScratchMap>, PhantomData<T>),
}

impl<T: Pod> Deref for Values<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Memory(values) => values,
            // A map begins at a page, and whole values were written to it.
            Self::Mapped(map, _) => bytemuck::cast_slice(map),
        }
    }
}

impl<T> Values<T> {
    /// Says that values will not be read soon. Those of a scratch file no longer count as memory.
    pub(crate) fn forget(&self, range: Range<usize>) {
        if let Self::Mapped(map, _) = self {
            map.forget(range.start * size_of::<T>()..range.end * size_of::<T>());
        }
    }
}

impl<T: Pod> Values<T> {
    /// All values in pieces, in order, for one who reads each once: those before a piece will not
    /// be read soon.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &[T]> {
        let size = PIECE / size_of::<T>();
        (0..self.len()).step_by(size).map(move |start| {
            self.forget(start.saturating_sub(size)..start);
            &self[start..self.len().min(start + size)]
        })
    }
}

impl<T> Default for Values<T> {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

impl<T: Pod + PartialEq> PartialEq for Values<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for Values<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&**self).finish()
    }
}

/// Values to which others are appended.
#[derive(Debug)]
pub(crate) struct Growing<T> {
    /// Bytes that lie in memory before there is a scratch file.
    in_memory: usize,
    file: Option<ScratchFile>,
    /// How many values are in the file.
    settled: usize,
    /// Those after them.
    last: Vec<T>,
}

impl<T: Pod> Growing<T> {
    /// No values yet; `in_memory` bytes of them are to lie in memory.
    pub(crate) fn new(in_memory: usize) -> Self {
        Self {
            in_memory,
            file: None,
            settled: 0,
            last: Vec::new(),
        }
    }

    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.settled + self.last.len()
    }

    /// Values after the last call of [`Growing::settle`], and before it if there is no file.
    pub(crate) fn last(&mut self) -> &mut Vec<T> {
        &mut self.last
    }

    /// Keeps the first `count` values. Those that are settled stay.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.last.truncate(count.saturating_sub(self.settled));
    }

    /// Makes the values `count`, with this one at the end.
    pub(crate) fn resize(&mut self, count: usize, value: T) {
        self.last.resize(count.saturating_sub(self.settled), value);
    }

    /// Moves the values to a scratch file if they are too many for memory; whether it did. To be
    /// called now and then.
    ///
    /// # Errors
    /// [`DataError::Scratch`] if the disk does not take them. Where no file can be made, they stay
    /// in memory.
    pub(crate) fn settle(&mut self) -> Result<bool, DataError> {
        let limit = match &self.file {
            Some(_) => self.in_memory.min(PIECE),
            None => self.in_memory,
        };
        match size_of_val(self.last.as_slice()) > limit {
            true => self.write(),
            false => Ok(false),
        }
    }

    fn write(&mut self) -> Result<bool, DataError> {
        let directory = ScratchFile::directory();
        if self.file.is_none() {
            match ScratchFile::new(&directory) {
                Ok(file) => self.file = Some(file),
                Err(error) => {
                    tracing::warn!(
                        "no file can be made in `{}` ({error}), so all data stays in memory: set \
                         TMPDIR to a directory on a disk with room",
                        directory.display()
                    );
                    self.in_memory = usize::MAX;
                }
            }
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let written = file.append(bytemuck::cast_slice(&self.last));
        written.map_err(|source| DataError::Scratch { directory, source })?;
        self.settled += self.last.len();
        self.last.clear();
        self.last.shrink_to(PIECE / size_of::<T>());
        Ok(true)
    }

    /// The values.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn finish(mut self) -> Result<Values<T>, DataError> {
        if self.file.is_some() {
            self.write()?;
        }
        Ok(match self.file {
            None => Values::Memory(self.last),
            Some(file) => {
                let map = file.map().map_err(|source| DataError::Scratch {
                    directory: ScratchFile::directory(),
                    source,
                })?;
                Values::Mapped(Arc::new(map), PhantomData)
            }
        })
    }
}

impl fmt::Write for Growing<u8> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.last.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_the_same_in_memory_and_in_a_file() {
        for (in_memory, is_mapped) in [(0, true), (100, true), (1 << 20, false)] {
            let mut growing = Growing::new(in_memory);
            for number in 0_u32..1000 {
                growing.last().push(number);
                growing.settle().unwrap();
            }
            growing.resize(1003, 7);
            growing.truncate(1002);
            assert_eq!(growing.len(), 1002);
            let values = growing.finish().unwrap();
            assert_eq!(matches!(values, Values::Mapped(..)), is_mapped);
            assert!(values[..1000].iter().copied().eq(0..1000));
            assert_eq!(values[1000..], [7, 7]);
            assert_eq!(values.pieces().collect::<Vec<_>>().concat(), *values);
        }
        assert!(Growing::<u32>::new(0).finish().unwrap().is_empty());
        let mut growing = Growing::new(0);
        growing.resize(3 * PIECE, 5_u8);
        growing.last().push(6);
        let values = growing.finish().unwrap();
        let pieces: Vec<usize> = values.pieces().map(<[u8]>::len).collect();
        assert_eq!(pieces, [PIECE, PIECE, PIECE, 1]);
        assert_eq!(
            values
                .pieces()
                .flatten()
                .map(|&it| usize::from(it))
                .sum::<usize>(),
            15 * PIECE + 6
        );
    }
}
