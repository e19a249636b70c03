//! The rows of several files as one table.

use std::path::PathBuf;

use indexmap::{IndexMap, IndexSet};

use super::{Column, GrowingColumn, Stored, Table};
use crate::error::DataError;
use crate::order;

/// A file's rows: its table, and how often each row counts.
pub(crate) type Weighted = (Table, f64);

/// Where the rows of a table come from that has those of several files.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Origins {
    files: Vec<File>,
    /// For each row its file, and its number there from 0.
    rows: Vec<(u32, u32)>,
}

/// A file with the names of its columns.
#[derive(Debug, Clone, PartialEq)]
struct File {
    path: PathBuf,
    columns: Vec<String>,
}

impl Origins {
    /// The path and the columns of a row's file, if the file has no column `name`, which another
    /// one has.
    pub(super) fn without(&self, row: usize, name: &str) -> Option<(&PathBuf, &[String])> {
        let &(file, _) = self.rows.get(row)?;
        let File { path, columns } = &self.files[file as usize];
        let has = columns.iter().any(|column| column == name);
        (!has).then_some((path, columns.as_slice()))
    }

    /// The file of a row and its number there, both from 0; none if there is only one file.
    pub(super) fn of(&self, row: usize) -> Option<(&PathBuf, usize)> {
        let &(file, row) = self.rows.get(row)?;
        Some((&self.files[file as usize].path, row as usize))
    }

    /// The origins of some rows.
    pub(super) fn select(&mut self, rows: &[usize]) {
        if !self.rows.is_empty() {
            self.rows = rows.iter().map(|&row| self.rows[row]).collect();
        }
    }
}

impl Table {
    /// The rows of files, one file after another, each row as often as its file's weight says; of a
    /// fraction a random choice, always the same. A column that a file lacks is empty there.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn joined(path: PathBuf, parts: Vec<Weighted>) -> Result<Self, DataError> {
        let in_memory = parts
            .iter()
            .map(|(table, _)| table.in_memory)
            .min()
            .unwrap_or(0);
        let chosen: Vec<Vec<usize>> = parts
            .iter()
            .map(|(table, weight)| {
                let mut rows: Vec<usize> = Vec::new();
                for _ in 0..weight.floor() as usize {
                    rows.extend(0..table.len());
                }
                let rest = (table.len() as f64 * weight.fract()).round() as usize;
                if rest > 0 {
                    rows.extend(order::sample(table.len(), rest, 0));
                }
                rows
            })
            .collect();
        let names: IndexSet<&String> = parts
            .iter()
            .flat_map(|(table, _)| table.columns.keys())
            .collect();
        let mut columns = IndexMap::new();
        for name in names {
            let stored = |(table, _): &'_ Weighted| table.columns.get(name).cloned();
            let read: Vec<Option<Stored<Column>>> = parts.iter().map(stored).collect();
            // What is wrong with the column in one file is an error for those who ask for it.
            let unusable = read
                .iter()
                .flatten()
                .find(|it| !matches!(it, Stored::Read(_)));
            if let Some(unusable) = unusable {
                columns.insert(name.clone(), unusable.clone());
                continue;
            }
            let mut growing = GrowingColumn::new(in_memory);
            for (column, rows) in read.iter().zip(&chosen) {
                for &row in rows {
                    match column {
                        Some(Stored::Read(column)) => growing.push_cell(column, row),
                        _ => growing.push_null(),
                    }
                    growing.settle()?;
                }
            }
            columns.insert(name.clone(), Stored::Read(growing.finish()?));
        }
        let file = |(table, _): &Weighted| File {
            path: table.path.clone(),
            columns: table.columns.keys().cloned().collect(),
        };
        let files = parts.iter().map(file).collect();
        let numbered = (0..).zip(&chosen);
        let rows =
            numbered.flat_map(|(file, rows)| rows.iter().map(move |&row| (file, row as u32)));
        let rows: Vec<(u32, u32)> = rows.collect();
        Ok(Self {
            path,
            columns,
            rows: rows.len(),
            in_memory,
            is_plain_text: false,
            origins: Origins { files, rows },
        })
    }
}
