//! A table while it is read.

use std::path::Path;

use indexmap::IndexMap;

use super::{GrowingColumn, Origins, Stored, Table};
use crate::error::DataError;
use crate::readers::ReadOptions;

/// A table may have this many cells, whatever the size of its file.
const CELLS: usize = 1_000_000;

/// Columns that were not asked for are kept by name, for messages, up to this number.
const NAMES: usize = 1000;

/// A table to which rows are appended.
pub(crate) struct TableBuilder<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
    columns: IndexMap<String, Stored<GrowingColumn>>,
    read: usize,
    rows: usize,
    cells: usize,
}

impl<'a> TableBuilder<'a> {
    /// A table of the columns that are to be read. It may have a cell for each byte of its file, of
    /// `size` bytes: more can only be absent ones, where rows have keys of their own.
    pub(crate) fn new(path: &'a Path, options: &'a ReadOptions, size: usize) -> Self {
        Self {
            path,
            options,
            columns: IndexMap::new(),
            read: 0,
            rows: 0,
            cells: size.max(CELLS),
        }
    }

    /// The number of rows so far.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the caller asked for a column of this name.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let wanted = self.options.columns.as_ref();
        wanted.is_none_or(|wanted| wanted.iter().any(|wanted| wanted == name))
    }

    /// A new column; its index if it is to be read. A name that is there already stands for several
    /// columns from now on.
    ///
    /// # Errors
    /// [`DataError::TooManyCells`].
    pub(crate) fn declare(&mut self, name: String) -> Result<Option<usize>, DataError> {
        match self.columns.get_mut(&name) {
            Some(stored) => {
                *stored = Stored::Duplicate;
                Ok(None)
            }
            None => self.named(&name),
        }
    }

    /// A column of a type that cannot be read.
    pub(crate) fn declare_unreadable(&mut self, name: String, kind: String) {
        let stored = match self.columns.contains_key(&name) {
            true => Stored::Duplicate,
            false => Stored::Unreadable(kind),
        };
        self.columns.insert(name, stored);
    }

    /// The index of the column of this name, a new one if need be; none if it is not to be read.
    ///
    /// # Errors
    /// [`DataError::TooManyCells`].
    pub(crate) fn named(&mut self, name: &str) -> Result<Option<usize>, DataError> {
        if let Some((index, _, stored)) = self.columns.get_full(name) {
            return Ok(matches!(stored, Stored::Read(_)).then_some(index));
        }
        if !self.wants(name) {
            if self.columns.len() < NAMES {
                self.columns.insert(name.to_owned(), Stored::Skipped);
            }
            return Ok(None);
        }
        let column = Stored::Read(GrowingColumn::new(self.options.in_memory));
        let (index, _) = self.columns.insert_full(name.to_owned(), column);
        self.read += 1;
        self.check_cells()?;
        Ok(Some(index))
    }

    /// The column at `index`, ready for its cell of the row that is being read: cells that it
    /// lacks are null, and one that it has already (a key that a row has twice) is replaced.
    pub(crate) fn column(&mut self, index: usize) -> Option<&mut GrowingColumn> {
        match self.columns.get_index_mut(index) {
            Some((_, Stored::Read(column))) => {
                if column.len() > self.rows {
                    column.truncate(self.rows);
                } else {
                    column.fill(self.rows);
                }
                Some(column)
            }
            _ => None,
        }
    }

    /// Ends `rows` rows.
    ///
    /// # Errors
    /// [`DataError::TooManyCells`]; [`DataError::Scratch`].
    pub(crate) fn end_rows(&mut self, rows: usize) -> Result<(), DataError> {
        self.rows += rows;
        self.check_cells()?;
        for stored in self.columns.values_mut() {
            if let Stored::Read(column) = stored {
                column.settle()?;
            }
        }
        Ok(())
    }

    /// Bytes of all cells.
    pub(crate) fn bytes(&self) -> u64 {
        let columns = self.columns.values();
        let bytes = columns.map(|stored| match stored {
            Stored::Read(column) => column.bytes(),
            _ => 0,
        });
        bytes.sum()
    }

    /// The table.
    ///
    /// # Errors
    /// [`DataError::EmptyFile`] if it has no row; [`DataError::Scratch`].
    pub(crate) fn finish(self) -> Result<Table, DataError> {
        if self.rows == 0 {
            return Err(DataError::EmptyFile {
                path: self.path.to_owned(),
            });
        }
        let columns = self.columns.into_iter().map(|(name, stored)| {
            let stored = match stored {
                Stored::Read(mut column) => {
                    column.fill(self.rows);
                    Stored::Read(column.finish()?)
                }
                Stored::Skipped => Stored::Skipped,
                Stored::Duplicate => Stored::Duplicate,
                Stored::Unreadable(kind) => Stored::Unreadable(kind),
            };
            Ok((name, stored))
        });
        Ok(Table {
            path: self.path.to_owned(),
            columns: columns.collect::<Result<_, DataError>>()?,
            rows: self.rows,
            in_memory: self.options.in_memory,
            is_plain_text: false,
            origins: Origins::default(),
        })
    }

    fn check_cells(&self) -> Result<(), DataError> {
        if self.read.saturating_mul(self.rows) > self.cells {
            return Err(DataError::TooManyCells {
                path: self.path.to_owned(),
                rows: self.rows,
                columns: self.read,
                limit: self.cells,
            });
        }
        Ok(())
    }
}
