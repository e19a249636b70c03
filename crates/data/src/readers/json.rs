//! JSON: one object a line (JSONL), or one array of objects.
//!
//! The first character decides which, not the extension: files called `.json` exist in both kinds.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::error::DataError;
use crate::table::Table;

/// Reads at most `limit` rows. Blank lines between objects are skipped; keys missing from a row are
/// null.
pub(super) fn read(path: &Path, text: &str, limit: usize) -> Result<Table, DataError> {
    let invalid = |line, reason: String| DataError::InvalidJson {
        path: path.to_owned(),
        line,
        reason,
    };
    if text.trim_start().starts_with('[') {
        let rows: Vec<Map<String, Json>> =
            serde_json::from_str(text).map_err(|error| invalid(error.line(), error.to_string()))?;
        return Table::from_rows(path, rows.into_iter().take(limit).map(Ok));
    }
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let rows = lines.take(limit).map(|(number, line)| {
        serde_json::from_str(line).map_err(|error| {
            // serde_json counts its own line 1 here, which would contradict the line of the file.
            let reason = error.to_string().replace(" at line 1 column", " at column");
            invalid(number + 1, reason)
        })
    });
    Table::from_rows(path, rows)
}
