//! CSV and TSV.
//!
//! With quoting, fields follow RFC 4180: `"…"` may hold separators, newlines and doubled quotes.
//! Without it every `"` is an ordinary character. GLUE's TSV files are written that way: with
//! quoting, one of MRPC's many unpaired quotes would make a single field of several lines.

use std::io::Read;
use std::path::Path;

use crate::error::DataError;
use crate::table::{Table, Value};

/// Settings of a file of separated values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    /// The byte between fields.
    pub(super) delimiter: u8,
    /// Whether `"` quotes a field.
    pub(super) quoting: bool,
    /// Whether the first record names the columns.
    pub(super) header: bool,
}

/// A record appended to the file's text. The `csv` crate closes an open quote silently at the end
/// of its input, so that one forgotten quote makes one field of the whole rest of the file. Then
/// this record becomes part of that field, and its absence shows the error.
const GUARD: &str = "\u{0}end";

/// Reads at most `limit` rows, every cell a text.
pub(super) fn read(
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

/// The line on which a record starts, from 1. The `csv` crate counts from the blank lines before
/// the record instead.
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
