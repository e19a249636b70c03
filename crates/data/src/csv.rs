//! CSV and TSV.
//!
//! With quoting, fields follow RFC 4180: `"…"` may hold separators, newlines and doubled quotes. Without it every
//! `"` is a character like any other, which is how GLUE's TSV files are written: MRPC is full of lone quotes that
//! would otherwise swallow whole paragraphs.

use std::io::Read;
use std::path::Path;

use crate::error::DataError;
use crate::table::{Table, Value};

/// What distinguishes one CSV-like file from another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    /// The byte between fields.
    pub(crate) delimiter: u8,
    /// Whether `"` quotes a field.
    pub(crate) quoting: bool,
    /// Whether the first record names the columns.
    pub(crate) header: bool,
}

/// A record put after the file's text. The `csv` crate closes an open quote silently at the end of its input, so
/// that one forgotten quote makes one field of the whole rest of the file. This record then ends up inside that
/// field, and its absence tells.
const GUARD: &str = "\u{0}end";

/// Reads at most `limit` rows, every cell a text.
pub(crate) fn read(
    path: &Path,
    text: &str,
    dialect: Dialect,
    limit: usize,
) -> Result<Table, DataError> {
    let guarded = text
        .as_bytes()
        .chain(b"\n".as_slice())
        .chain(GUARD.as_bytes());
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(dialect.delimiter)
        .quoting(dialect.quoting)
        .has_headers(false)
        .flexible(true)
        .from_reader(guarded);

    let mut names: Vec<String> = Vec::new();
    let mut columns: Vec<Vec<Value>> = Vec::new();
    let mut record = ::csv::StringRecord::new();
    let mut first = true;
    loop {
        let more = reader
            .read_record(&mut record)
            .map_err(|error| DataError::Io {
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })?;
        let line = || line_of(text, record.position());
        if !more
            || record
                .iter()
                .any(|field| field.len() > GUARD.len() && field.ends_with(GUARD))
        {
            return Err(DataError::UnclosedQuote {
                path: path.to_owned(),
                line: line(),
            });
        }
        if record.len() == 1 && &record[0] == GUARD {
            break;
        }
        if first {
            first = false;
            columns.resize_with(record.len(), Vec::new);
            if dialect.header {
                names.extend(record.iter().map(str::to_owned));
                continue;
            }
            names.extend((0..record.len()).map(|number| number.to_string()));
        }
        if record.len() != columns.len() {
            return Err(DataError::RaggedRow {
                path: path.to_owned(),
                line: line(),
                expected: columns.len(),
                found: record.len(),
                quoting: dialect.quoting,
            });
        }
        if columns[0].len() == limit {
            break;
        }
        for (column, field) in columns.iter_mut().zip(&record) {
            column.push(Value::Text(field.to_owned()));
        }
    }
    Table::from_columns(path, names.into_iter().zip(columns))
}

/// The line on which a record starts, from 1. The `csv` crate's own count is that of the blank lines before it.
fn line_of(text: &str, position: Option<&::csv::Position>) -> usize {
    let before = position.map_or(text.len(), |position| {
        text.len().min(position.byte() as usize)
    });
    let (passed, rest) = text.as_bytes().split_at(before);
    let blank = rest
        .iter()
        .take_while(|&&byte| byte == b'\n' || byte == b'\r');
    1 + passed
        .iter()
        .chain(blank)
        .filter(|&&byte| byte == b'\n')
        .count()
}
