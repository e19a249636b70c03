//! The cells of one column, in memory close to their size in the file.
//!
//! A cell is kept as its spelling: one text holds the spellings of all cells, one after another,
//! and eight bytes a cell say where it ends and what it is. Numbers and nested JSON are parsed when
//! they are read, so that a column of a million short texts has two allocations, not a million.
//! Both are [`Values`], so that a column may be larger than memory.

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::Value as Json;

use super::Value;
use crate::error::DataError;
use crate::values::{Growing, Values};

/// The cells of a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Column {
    spellings: Values<u8>,
    /// A [`Mark`] for each cell.
    cells: Values<u64>,
}

/// A column to which cells are appended.
#[derive(Debug)]
pub(crate) struct GrowingColumn {
    spellings: Growing<u8>,
    cells: Growing<u64>,
    /// Where the spelling ends of the last cell that is settled.
    settled: usize,
}

/// What a cell is, in the lowest three bits, and above them where its spelling ends.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark(u64);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Null,
    Bool,
    Integer,
    Float,
    Text,
    Json,
}

const KINDS: [Kind; 6] = [
    Kind::Null,
    Kind::Bool,
    Kind::Integer,
    Kind::Float,
    Kind::Text,
    Kind::Json,
];

impl Mark {
    fn new(kind: Kind, end: usize) -> Self {
        Self((end as u64) << 3 | kind as u64)
    }

    fn kind(self) -> Kind {
        KINDS[(self.0 & 7) as usize]
    }

    fn end(self) -> usize {
        (self.0 >> 3) as usize
    }
}

/// A cell as it is read: a [`Value`] that borrows its text. Nested JSON is not parsed yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cell<'a> {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(&'a str),
    Json(&'a str),
}

impl Cell<'_> {
    /// The cell with its text, and JSON parsed.
    pub(crate) fn to_value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Integer(number) => Value::Integer(number),
            Self::Float(number) => Value::Float(number),
            Self::Text(text) => Value::Text(text.to_owned()),
            Self::Json(text) => Value::Json(parse_json(text)),
        }
    }

    /// What the cell holds, as error messages give it.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Text(text) => {
                let start: String = text.chars().take(40).collect();
                format!("the text `{start}`")
            }
            Self::Float(number) => format!("the number {number}"),
            cell => cell.to_value().type_name().to_owned(),
        }
    }
}

/// Nested JSON of a [`Column`].
fn parse_json(spelling: &str) -> Json {
    serde_json::from_str(spelling).expect("a column spells JSON that was parsed before")
}

impl Column {
    /// The number of cells.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    /// The cell of a row, from 0; null past the end.
    pub(crate) fn cell(&self, row: usize) -> Cell<'_> {
        let Some(&mark) = self.cells.get(row) else {
            return Cell::Null;
        };
        let spelling = std::str::from_utf8(self.spelling(row)).expect("spellings are texts");
        // Whatever was pushed is spelled so that it is read back.
        match Mark(mark).kind() {
            Kind::Null => Cell::Null,
            Kind::Bool => Cell::Bool(spelling == "true"),
            Kind::Integer => spelling.parse().map_or(Cell::Null, Cell::Integer),
            Kind::Float => spelling.parse().map_or(Cell::Null, Cell::Float),
            Kind::Text => Cell::Text(spelling),
            Kind::Json => Cell::Json(spelling),
        }
    }

    /// All cells in order.
    pub(crate) fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        (0..self.len()).map(|row| self.cell(row))
    }

    /// The first row whose cell is no text.
    pub(crate) fn first_other_than_text(&self) -> Option<usize> {
        let mut marks = self.cells.iter();
        marks.position(|&mark| !matches!(Mark(mark).kind(), Kind::Text))
    }

    /// The cells of some rows, in their order, of which `in_memory` bytes lie in memory.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn select(&self, rows: &[usize], in_memory: usize) -> Result<Self, DataError> {
        let mut selected = GrowingColumn::new(in_memory);
        for &row in rows {
            selected.push_cell(self, row);
            selected.settle()?;
        }
        selected.finish()
    }

    /// The length of a cell's spelling, in bytes.
    pub(crate) fn bytes(&self, row: usize) -> usize {
        self.spelling(row).len()
    }

    /// Says that the cells of some rows will not be read soon.
    pub(crate) fn forget(&self, rows: Range<usize>) {
        self.spellings
            .forget(self.end(rows.start)..self.end(rows.end));
        self.cells.forget(rows);
    }

    fn spelling(&self, row: usize) -> &[u8] {
        &self.spellings[self.end(row)..self.end(row + 1)]
    }

    /// Where the spellings of the first `rows` cells end.
    fn end(&self, rows: usize) -> usize {
        rows.checked_sub(1)
            .map_or(0, |last| Mark(self.cells[last]).end())
    }
}

impl GrowingColumn {
    /// A column without cells, of which `in_memory` bytes are to lie in memory.
    pub(crate) fn new(in_memory: usize) -> Self {
        Self {
            spellings: Growing::new(in_memory),
            cells: Growing::new(in_memory),
            settled: 0,
        }
    }

    /// The number of cells.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn push(&mut self, value: Value) {
        match value {
            Value::Null => self.push_null(),
            Value::Bool(value) => self.spell(Kind::Bool, &value),
            Value::Integer(number) => self.spell(Kind::Integer, &number),
            // `{:e}` is the shortest spelling that is read back as the same number.
            Value::Float(number) => self.spell(Kind::Float, &format_args!("{number:e}")),
            Value::Text(text) => self.push_text(&text),
            Value::Json(json) => self.spell(Kind::Json, &json),
        }
    }

    /// Appends a cell of another column.
    pub(crate) fn push_cell(&mut self, column: &Column, row: usize) {
        self.spellings
            .last()
            .extend_from_slice(column.spelling(row));
        self.end(Mark(column.cells[row]).kind());
    }

    pub(crate) fn push_null(&mut self) {
        self.end(Kind::Null);
    }

    pub(crate) fn push_text(&mut self, text: &str) {
        self.spellings.last().extend_from_slice(text.as_bytes());
        self.end(Kind::Text);
    }

    /// Keeps the first `rows` cells, among them all that are settled.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.cells.truncate(rows);
        let last = self.cells.last().last();
        let end = last.map_or(self.settled, |&mark| Mark(mark).end());
        self.spellings.truncate(end);
    }

    /// Makes the column `rows` long, with nulls at its end.
    pub(crate) fn fill(&mut self, rows: usize) {
        let null = Mark::new(Kind::Null, self.spellings.len());
        self.cells.resize(rows, null.0);
    }

    /// Moves cells that are too many for memory to a scratch file. From then on they stay: to be
    /// called between rows.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn settle(&mut self) -> Result<(), DataError> {
        if self.cells.settle()? {
            self.settled = self.spellings.len();
        }
        self.spellings.settle().map(drop)
    }

    /// The column.
    ///
    /// # Errors
    /// [`DataError::Scratch`].
    pub(crate) fn finish(self) -> Result<Column, DataError> {
        Ok(Column {
            spellings: self.spellings.finish()?,
            cells: self.cells.finish()?,
        })
    }

    /// Bytes of the cells, without what is reserved for more.
    pub(crate) fn bytes(&self) -> u64 {
        (self.spellings.len() + size_of::<Mark>() * self.cells.len()) as u64
    }

    fn spell(&mut self, kind: Kind, spelling: &dyn std::fmt::Display) {
        write!(self.spellings, "{spelling}").expect("a text can always be written to");
        self.end(kind);
    }

    fn end(&mut self, kind: Kind) {
        let mark = Mark::new(kind, self.spellings.len());
        self.cells.last().push(mark.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_back_from_memory_and_from_a_file() {
        let values = [
            Value::Text("é".into()),
            Value::Null,
            Value::Bool(true),
            Value::Bool(false),
            Value::Integer(i128::from(u64::MAX)),
            Value::Float(1.0),
            Value::Float(1e300),
            Value::Float(0.1),
            Value::Float(-2.5e-7),
            Value::Float(f64::INFINITY),
            Value::Text(String::new()),
            Value::Json(serde_json::json!([{"b": 0.1, "a": null}])),
        ];
        for in_memory in [usize::MAX, 20, 0] {
            let mut growing = GrowingColumn::new(in_memory);
            for (row, value) in values.iter().enumerate() {
                // A cell that its row has twice.
                growing.push_text("another");
                growing.truncate(row);
                growing.push(value.clone());
                growing.settle().unwrap();
            }
            growing.fill(14);
            let column = growing.finish().unwrap();
            let read: Vec<Value> = column.cells().map(Cell::to_value).collect();
            assert_eq!(read[..12], values);
            assert_eq!(read[12..], [Value::Null, Value::Null]);
            assert_eq!(column.first_other_than_text(), Some(1));
            let selected = column.select(&[0, 11, 4], in_memory).unwrap();
            let selected: Vec<Value> = selected.cells().map(Cell::to_value).collect();
            let expected = [&values[0], &values[11], &values[4]];
            assert!(selected.iter().eq(expected));
        }
    }
}
