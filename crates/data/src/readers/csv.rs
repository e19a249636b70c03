//! CSV and TSV.
//!
//! With quoting, fields follow RFC 4180: `"…"` may hold separators, newlines and doubled quotes.
//! Without it every `"` is an ordinary character. GLUE's TSV files are written that way: with
//! quoting, one of MRPC's many unpaired quotes would make a single field of several lines.
//!
//! A blank line is a row with an empty field where the file has one column, and nothing where it
//! has several.

use std::path::Path;

use super::read::ReadOptions;
use super::source::Source;
use crate::error::DataError;
use crate::table::{Table, TableBuilder};

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
/// the record goes on past the end of the text.
const GUARD: &str = "\nend";

/// Reads the rows, every cell a text.
pub(super) fn read(
    path: &Path,
    (source, text): (&Source<'_>, &str),
    dialect: Dialect,
    options: &ReadOptions,
) -> Result<Table, DataError> {
    let guarded = std::io::Read::chain(text.as_bytes(), GUARD.as_bytes());
    let mut reader = ::csv::ReaderBuilder::new()
        .delimiter(dialect.delimiter)
        .quoting(dialect.quoting)
        .has_headers(false)
        .flexible(true)
        .from_reader(guarded);

    let limit = options.limit.unwrap_or(usize::MAX);
    let mut table = TableBuilder::new(path, options, text.len());
    // For each field of a record, the column that it belongs to, if that is to be read.
    let mut columns: Vec<Option<usize>> = Vec::new();
    let mut record = ::csv::StringRecord::new();
    let mut first = true;
    loop {
        let read = reader.position().byte() as usize;
        source.passed(read.min(text.len()));
        let blank = blank_lines(text, read);
        let line = || 1 + text[..blank.end].matches('\n').count();
        if columns.len() == 1 {
            let rows = blank.lines.min(limit - table.rows());
            append_blank(&mut table, columns[0], rows)?;
        }
        if blank.end == text.len() || table.rows() == limit {
            break;
        }
        let more = reader
            .read_record(&mut record)
            .map_err(|error| DataError::Io {
                path: path.to_owned(),
                source: std::io::Error::other(error),
            })?;
        // Past the newline that the guard starts with.
        if !more || reader.position().byte() as usize > text.len() + 1 {
            return Err(DataError::UnclosedQuote {
                path: path.to_owned(),
                line: line(),
            });
        }
        if first {
            first = false;
            for (number, name) in record.iter().enumerate() {
                let name = match dialect.header {
                    true => name.to_owned(),
                    false => number.to_string(),
                };
                columns.push(table.declare(name)?);
            }
            if dialect.header {
                continue;
            }
            if columns.len() == 1 {
                append_blank(&mut table, columns[0], blank.lines.min(limit))?;
            }
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
        for (index, field) in columns.iter().zip(&record) {
            if let Some(column) = index.and_then(|index| table.column(index)) {
                column.push_text(field);
            }
        }
        table.end_rows(1)?;
    }
    table.finish()
}

/// Appends rows whose one field is empty.
fn append_blank(
    table: &mut TableBuilder<'_>,
    index: Option<usize>,
    rows: usize,
) -> Result<(), DataError> {
    for _ in 0..rows {
        if let Some(column) = index.and_then(|index| table.column(index)) {
            column.push_text("");
        }
        table.end_rows(1)?;
    }
    Ok(())
}

/// Blank lines between two records.
struct Blank {
    /// How many there are.
    lines: usize,
    /// Where the next record starts, in bytes.
    end: usize,
}

/// The blank lines at `start`, which the `csv` crate passes over. A line ends with a line feed, a
/// carriage return or both.
fn blank_lines(text: &str, start: usize) -> Blank {
    let bytes = text.as_bytes();
    let mut end = start.min(bytes.len());
    // The crate reads a record to its carriage return and leaves the line feed after it.
    if end > 0 && bytes[end - 1] == b'\r' && bytes.get(end) == Some(&b'\n') {
        end += 1;
    }
    let mut lines = 0;
    loop {
        end += match &bytes[end..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => return Blank { lines, end },
        };
        lines += 1;
    }
}
