//! CoNLL: one word a line with its labels in columns, an empty line after each sentence.
//!
//! Columns are separated by tabs, or by blanks in a file without tabs. The first is the word and
//! the last its tag; a file of words alone has one. A row of the table is a sentence: the lists
//! `tokens` and `tags`, and for each column between the two a list called by its number, `1` and so
//! on. `-DOCSTART-` lines, which part documents, are left out.

use std::path::Path;

use serde_json::Value as Json;

use super::read::ReadOptions;
use crate::error::DataError;
use crate::table::{Table, TableBuilder, Value};

/// What a line between documents begins with.
const DOCUMENT: &str = "-DOCSTART-";

/// Reads the sentences.
///
/// # Errors
/// [`DataError::InvalidConll`] for a line with more or fewer columns than the first, or without a
/// word; as [`Table::read`].
pub(super) fn read(path: &Path, text: &str, options: &ReadOptions) -> Result<Table, DataError> {
    let separator = if text.contains('\t') { '\t' } else { ' ' };
    let mut table = TableBuilder::new(path, options, text.len());
    let limit = options.limit.unwrap_or(usize::MAX);
    let mut sentence: Vec<Vec<Json>> = Vec::new();
    let mut columns = 0;
    // The empty line ends a last sentence.
    for (number, line) in text.lines().chain([""]).enumerate() {
        if line.trim().is_empty() || line.starts_with(DOCUMENT) {
            if !sentence.is_empty() && table.rows() < limit {
                push(&mut table, std::mem::take(&mut sentence))?;
            }
            continue;
        }
        let fields = line
            .split(separator)
            .filter(|it| separator == '\t' || !it.is_empty());
        let fields: Vec<Json> = fields.map(|field| field.trim().into()).collect();
        columns = if columns == 0 { fields.len() } else { columns };
        let invalid = |reason: String| DataError::InvalidConll {
            path: path.to_owned(),
            line: number + 1,
            reason,
        };
        if fields.len() != columns {
            let found = fields.len();
            return Err(invalid(format!(
                "it has {found} columns, the first line {columns}"
            )));
        }
        if fields.iter().any(|field| field == "") {
            return Err(invalid("a column is empty".to_owned()));
        }
        sentence.resize(columns, Vec::new());
        for (column, field) in sentence.iter_mut().zip(fields) {
            column.push(field);
        }
    }
    table.finish()
}

/// Appends a sentence, given by columns.
fn push(table: &mut TableBuilder<'_>, sentence: Vec<Vec<Json>>) -> Result<(), DataError> {
    let last = sentence.len() - 1;
    for (number, values) in sentence.into_iter().enumerate() {
        let name = match number {
            0 => "tokens".to_owned(),
            number if number == last => "tags".to_owned(),
            number => number.to_string(),
        };
        if let Some(index) = table.named(&name)?
            && let Some(column) = table.column(index)
        {
            column.push(Value::Json(values.into()));
        }
    }
    table.end_rows(1)
}
