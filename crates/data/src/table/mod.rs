//! A file of examples: named columns of typed values.

mod answers;
mod builder;
mod column;
mod joined;

use std::ops::Range;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;

pub use self::answers::Answer;
pub(crate) use self::builder::TableBuilder;
pub(crate) use self::column::{Cell, Column, GrowingColumn};
pub(crate) use self::joined::Origins;
use crate::error::DataError;
use crate::order;
use crate::readers::ReadOptions;
use crate::spelling::nearest_name;

/// The largest number that can be learned, in size: sums of the squares of many such are finite in
/// single precision.
const LARGEST_NUMBER: f32 = 1e15;

/// One cell of a [`Table`].
///
/// CSV, TSV and plain text have no types, so every cell read from them is [`Value::Text`],
/// unchanged (`007` is not 7); labels and numbers are parsed when they are read as such. JSON and
/// Parquet keep their types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value: JSON `null` or Python's `NaN`, an absent key, a Parquet null.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number of up to 64 bits, with a sign or without; JSON's larger ones are texts, which
    /// keep each digit.
    Integer(i128),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// A text.
    Text(String),
    /// Anything nested; a list of chat messages is an array of objects.
    Json(Json),
}

impl Value {
    /// The name of the value's type as error messages give it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Json(Json::Array(_)) => "a list",
            Self::Json(_) => "an object",
        }
    }
}

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => match number.as_i128() {
                Some(integer) => Self::Integer(integer),
                None => number.as_f64().map_or(Self::Null, Self::Float),
            },
            Json::String(text) => Self::Text(text),
            nested => Self::Json(nested),
        }
    }
}

/// Named columns of equal length, and the file they were read from (which errors name).
///
/// A column that cannot be used, such as one of two with the same name, is an error only for those
/// who ask for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    path: PathBuf,
    columns: IndexMap<String, Stored<Column>>,
    rows: usize,
    /// [`ReadOptions::in_memory`], also for what is made of the table.
    pub(crate) in_memory: usize,
    /// Whether the one row is a whole file of plain text.
    pub(crate) is_plain_text: bool,
    /// Where rows come from, if they are of several files.
    pub(crate) origins: Origins,
}

/// A column of which each cell is a text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Texts<'t>(&'t Column);

impl<'t> Texts<'t> {
    /// The text of a row, from 0; an empty one past the last.
    pub(crate) fn get(self, row: usize) -> &'t str {
        match self.0.cell(row) {
            Cell::Text(text) => text,
            _ => "",
        }
    }
}

/// What is known of a column.
#[derive(Debug, Clone, PartialEq)]
enum Stored<C> {
    /// Its cells.
    Read(C),
    /// Its name; the reader was told not to read it.
    Skipped,
    /// The name stands for several columns.
    Duplicate,
    /// Cells of a type, named here, that no task can use.
    Unreadable(String),
}

impl Table {
    /// A table from columns; one shorter than the longest is filled with [`Value::Null`]. Errors
    /// name `path` as the file.
    ///
    /// # Errors
    /// [`DataError::EmptyFile`] if there is no row.
    pub fn from_columns(
        path: impl Into<PathBuf>,
        columns: impl IntoIterator<Item = (String, Vec<Value>)>,
    ) -> Result<Self, DataError> {
        let path = path.into();
        let columns: Vec<(String, Vec<Value>)> = columns.into_iter().collect();
        let rows = columns.iter().map(|(_, values)| values.len()).max();
        let options = ReadOptions::default();
        let mut builder = TableBuilder::new(&path, &options, usize::MAX);
        for (name, values) in columns {
            let index = builder.declare(name)?;
            if let Some(column) = index.and_then(|index| builder.column(index)) {
                values.into_iter().for_each(|value| column.push(value));
            }
        }
        builder.end_rows(rows.unwrap_or(0))?;
        builder.finish()
    }

    /// The number of rows, at least 1.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a table without rows cannot be constructed"
    )]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// The file that the table was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The columns' names in the order of the file, those included that were not read.
    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.keys().map(String::as_str)
    }

    /// Whether there is a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    /// The first of these names that a column has.
    pub fn first_of<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.has_column(name))
    }

    /// The values of a column, one per row.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`], which lists the table's columns and the most similar name;
    /// [`DataError::DuplicateColumn`]; [`DataError::UnreadableColumn`];
    /// [`DataError::SkippedColumn`].
    pub fn column(&self, name: &str) -> Result<Vec<Value>, DataError> {
        Ok(self.cells(name)?.cells().map(Cell::to_value).collect())
    }

    /// The cells of a column, one per row.
    ///
    /// # Errors
    /// As [`Table::column`].
    pub(crate) fn cells(&self, name: &str) -> Result<&Column, DataError> {
        let (path, column) = (self.path.clone(), name.to_owned());
        Err(match self.columns.get(name) {
            Some(Stored::Read(column)) => return Ok(column),
            Some(Stored::Skipped) => DataError::SkippedColumn { path, column },
            Some(Stored::Duplicate) => DataError::DuplicateColumn { path, column },
            Some(Stored::Unreadable(kind)) => DataError::UnreadableColumn {
                path,
                column,
                kind: kind.clone(),
            },
            None => missing_column(path, column, self.columns.keys().cloned().collect()),
        })
    }

    /// The error for a column that the file of a row (from 0) lacks and another file has; none if
    /// the file has it.
    pub(crate) fn missing_in_file(&self, row: usize, name: &str) -> Option<DataError> {
        let (path, columns) = self.origins.without(row, name)?;
        Some(missing_column(
            path.clone(),
            name.to_owned(),
            columns.to_vec(),
        ))
    }

    /// The texts of a column, one per row.
    ///
    /// # Errors
    /// As [`Table::column`]; [`DataError::WrongType`] for a cell that is not text.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, DataError> {
        let texts = self.all_texts(name)?;
        Ok((0..self.rows).map(|row| texts.get(row)).collect())
    }

    /// The texts of a column, to be read one by one.
    ///
    /// # Errors
    /// As [`Table::texts`].
    pub(crate) fn all_texts(&self, name: &str) -> Result<Texts<'_>, DataError> {
        let column = self.cells(name)?;
        match column.first_other_than_text() {
            Some(row) => Err(self.wrong_type(row, name, "a text")),
            None => Ok(Texts(column)),
        }
    }

    /// The items of a cell (`row` from 0): of a list, each text, whole number or truth value; of a
    /// text, its words between blanks.
    ///
    /// # Errors
    /// As [`Table::column`]; [`DataError::WrongType`] for another cell or item.
    pub fn items(&self, name: &str, row: usize) -> Result<Vec<String>, DataError> {
        let wrong = || self.wrong_type(row, name, "a list of texts");
        let items: Vec<Json> = match self.cells(name)?.cell(row) {
            Cell::Text(text) => return Ok(text.split_whitespace().map(str::to_owned).collect()),
            Cell::Json(text) => serde_json::from_str(text).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        let items = items.into_iter().map(|item| match item {
            Json::String(text) => Ok(text),
            Json::Bool(_) => Ok(item.to_string()),
            Json::Number(ref number) if !number.is_f64() => Ok(item.to_string()),
            _ => Err(wrong()),
        });
        items.collect()
    }

    /// The numbers of a column, one per row; a text is parsed.
    ///
    /// # Errors
    /// As [`Table::column`]; [`DataError::WrongType`] for a cell that is not a number, or one whose
    /// square loses all sense in single precision.
    pub fn numbers(&self, name: &str) -> Result<Vec<f32>, DataError> {
        let cells = self.cells(name)?.cells().enumerate();
        cells
            .map(|(row, cell)| {
                let number = match cell {
                    Cell::Integer(number) => Some(number as f32),
                    Cell::Float(number) => Some(number as f32),
                    Cell::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                number
                    .filter(|number: &f32| number.abs() <= LARGEST_NUMBER)
                    .ok_or_else(|| self.wrong_type(row, name, "a number from -1e15 to 1e15"))
            })
            .collect()
    }

    /// A random choice of `count` rows in the order of the file, each as likely as any other; the
    /// whole table if it has no more. The choice depends on the number of rows and `seed` only.
    ///
    /// # Errors
    /// [`DataError::OneRow`] of a file of plain text; [`DataError::Scratch`].
    pub fn sample(mut self, count: usize, seed: u64) -> Result<Self, DataError> {
        if self.is_plain_text {
            return Err(DataError::OneRow { path: self.path });
        }
        if count == 0 || count >= self.rows {
            return Ok(self);
        }
        let rows = order::sample(self.rows, count, seed);
        for stored in self.columns.values_mut() {
            if let Stored::Read(column) = stored {
                *column = column.select(&rows, self.in_memory)?;
            }
        }
        self.origins.select(&rows);
        self.rows = count;
        Ok(self)
    }

    /// Says that some rows will not be read soon: what of them lies in scratch files no longer
    /// counts as memory.
    pub(crate) fn forget(&self, rows: Range<usize>) {
        for stored in self.columns.values() {
            if let Stored::Read(column) = stored {
                column.forget(rows.clone());
            }
        }
    }

    /// The bytes of a row's cells, from 0.
    pub(crate) fn row_bytes(&self, row: usize) -> usize {
        let columns = self.columns.values();
        let bytes = columns.map(|stored| match stored {
            Stored::Read(column) => column.bytes(row),
            _ => 0,
        });
        bytes.sum()
    }

    /// The first rows, at most `count`.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn first(mut self, count: usize) -> Result<Self, DataError> {
        if count >= self.rows {
            return Ok(self);
        }
        let rows: Vec<usize> = (0..count).collect();
        for stored in self.columns.values_mut() {
            if let Stored::Read(column) = stored {
                *column = column.select(&rows, self.in_memory)?;
            }
        }
        self.origins.select(&rows);
        self.rows = count;
        Ok(self)
    }

    /// The file of a row (from 0), and the row's number there from 1, for messages.
    pub fn place(&self, row: usize) -> (PathBuf, usize) {
        match self.origins.of(row) {
            Some((file, row)) => (file.clone(), row + 1),
            None => (self.path.clone(), row + 1),
        }
    }

    /// The error for a text (`row` from 0) that becomes no token.
    pub(crate) fn empty_text(&self, row: usize) -> DataError {
        let (path, row) = self.place(row);
        DataError::EmptyText { path, row }
    }

    /// The error for a conversation (`row` from 0) that cannot be used.
    pub(crate) fn conversation(&self, row: usize, column: &str, reason: String) -> DataError {
        let (path, row) = self.place(row);
        DataError::Conversation {
            path,
            row,
            column: column.to_owned(),
            reason,
        }
    }

    /// The error for a cell (`row` from 0) of a type other than the `expected` one.
    pub(crate) fn wrong_type(&self, row: usize, column: &str, expected: &'static str) -> DataError {
        if let Some(error) = self.missing_in_file(row, column) {
            return error;
        }
        let found = match self.columns.get(column) {
            Some(Stored::Read(cells)) => cells.cell(row).describe(),
            _ => "nothing".to_owned(),
        };
        let (path, row) = self.place(row);
        DataError::WrongType {
            path,
            row,
            column: column.to_owned(),
            expected,
            found,
        }
    }
}

/// The error for a column that a file with others does not have.
fn missing_column(path: PathBuf, column: String, available: Vec<String>) -> DataError {
    let nearest = nearest_name(&column, available.iter().map(String::as_str));
    DataError::MissingColumn {
        nearest: nearest.map(str::to_owned),
        path,
        column,
        available,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_column_names_the_nearest() {
        let table = Table::from_columns(
            "train.csv",
            [
                ("sentence1".to_owned(), vec![Value::Text("a".into())]),
                ("Label".to_owned(), vec![Value::Integer(1)]),
            ],
        )
        .unwrap();
        let message = table.column("sentense1").unwrap_err().to_string();
        assert!(message.contains("did you mean `sentence1`?"), "{message}");
        let message = table.column("label").unwrap_err().to_string();
        assert!(message.contains("did you mean `Label`?"), "{message}");
        let message = table.column("premise").unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{message}");
        assert!(message.contains("`sentence1`, `Label`"), "{message}");
    }

    #[test]
    fn numbers_are_finite_or_refused_with_their_row() {
        let column = ["1", " 2.5 ", "nan"]
            .map(|text| Value::Text(text.into()))
            .to_vec();
        let table = Table::from_columns("d.csv", [("score".to_owned(), column)]).unwrap();
        let error = table.numbers("score").unwrap_err();
        assert!(
            matches!(error, DataError::WrongType { row: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn shorter_columns_end_with_nulls_and_names_are_asked_for_once() {
        let numbers = |numbers: &[i128]| numbers.iter().map(|&n| Value::Integer(n)).collect();
        let columns = [("a", vec![1]), ("b", vec![1, 2]), ("b", vec![3, 4])];
        let columns = columns.map(|(name, values)| (name.to_owned(), numbers(&values)));
        let table = Table::from_columns("d.jsonl", columns).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table.column("a").unwrap(), [Value::Integer(1), Value::Null]);
        let error = table.column("b").unwrap_err();
        assert!(
            matches!(error, DataError::DuplicateColumn { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_sample_keeps_the_order_and_depends_on_the_seed() {
        let column: Vec<Value> = (0..1000).map(Value::Integer).collect();
        let table = Table::from_columns("d.jsonl", [("n".to_owned(), column)]).unwrap();
        let numbers = |seed| {
            table
                .clone()
                .sample(100, seed)
                .unwrap()
                .numbers("n")
                .unwrap()
        };
        let first = numbers(0);
        assert_eq!(first.len(), 100);
        assert!(first.is_sorted_by(|a, b| a < b));
        // Of a uniform choice, 50 ± 20 come from each half (four standard deviations).
        let low = first.iter().filter(|&&number| number < 500.0).count();
        assert!((30..=70).contains(&low), "{low}");
        assert_eq!(first, numbers(0));
        assert_ne!(first, numbers(1));
        assert_eq!(table.clone().sample(1000, 0).unwrap(), table);
    }
}
