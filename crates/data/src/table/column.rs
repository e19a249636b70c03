//! The cells of one column, in memory close to their size in the file.
//!
//! A cell is kept as its spelling: one text holds the spellings of all cells, one after another,
//! and eight bytes a cell say where it ends and what it is. Numbers and nested JSON are parsed when
//! they are read, so that a column of a million short texts has two allocations, not a million.

use std::fmt::Write as _;

use serde_json::Value as Json;

use super::Value;

/// The cells of a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Column {
    spellings: String,
    cells: Vec<Mark>,
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
    Integer(i64),
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
        let spelling = &self.spellings[self.end_before(row)..mark.end()];
        // Whatever was pushed is spelled so that it is read back.
        match mark.kind() {
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

    pub(crate) fn push_null(&mut self) {
        self.end(Kind::Null);
    }

    pub(crate) fn push_text(&mut self, text: &str) {
        self.spellings.push_str(text);
        self.end(Kind::Text);
    }

    /// Keeps the first `rows` cells.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.cells.truncate(rows);
        self.spellings.truncate(self.end_before(self.len()));
    }

    /// Makes the column `rows` long, with nulls at its end.
    pub(crate) fn fill(&mut self, rows: usize) {
        self.cells
            .resize(rows, Mark::new(Kind::Null, self.spellings.len()));
    }

    /// The cells of some rows, in their order.
    pub(crate) fn select(&self, rows: &[usize]) -> Self {
        let mut selected = Self::default();
        for &row in rows {
            let mark = self.cells[row];
            let spelling = &self.spellings[self.end_before(row)..mark.end()];
            selected.spellings.push_str(spelling);
            selected.end(mark.kind());
        }
        selected
    }

    /// Bytes in memory, without what is reserved for more cells.
    pub(crate) fn bytes(&self) -> u64 {
        (self.spellings.len() + size_of::<Mark>() * self.cells.len()) as u64
    }

    fn end_before(&self, row: usize) -> usize {
        match row.checked_sub(1) {
            Some(before) => self.cells[before].end(),
            None => 0,
        }
    }

    fn spell(&mut self, kind: Kind, spelling: &dyn std::fmt::Display) {
        write!(self.spellings, "{spelling}").expect("a text can always be written to");
        self.end(kind);
    }

    fn end(&mut self, kind: Kind) {
        self.cells.push(Mark::new(kind, self.spellings.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read_back() {
        let values = [
            Value::Text("é".into()),
            Value::Null,
            Value::Bool(true),
            Value::Bool(false),
            Value::Integer(i64::MIN),
            Value::Float(1.0),
            Value::Float(1e300),
            Value::Float(0.1),
            Value::Float(-2.5e-7),
            Value::Float(f64::INFINITY),
            Value::Text(String::new()),
            Value::Json(serde_json::json!([{"b": 0.1, "a": null}])),
        ];
        let mut column = Column::default();
        for value in &values {
            column.push(value.clone());
        }
        let read: Vec<Value> = column.cells().map(Cell::to_value).collect();
        assert_eq!(read, values);
        assert_eq!(
            column
                .select(&[0, 11, 4])
                .cells()
                .map(Cell::to_value)
                .collect::<Vec<_>>(),
            [values[0].clone(), values[11].clone(), values[4].clone()]
        );
        column.truncate(11);
        column.fill(13);
        assert_eq!(column.cell(11), Cell::Null);
        assert_eq!(column.cell(10), Cell::Text(""));
    }
}
