//! [`Table::read`]: format, options, and the checks that all text formats share.

use std::path::Path;
use std::str::FromStr;

use super::{csv, json, parquet};
use crate::error::DataError;
use crate::table::{Table, Value};

/// A file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON objects, one a line or all in one array (`.jsonl`, `.ndjson`, `.json`).
    Json,
    /// Comma-separated values after RFC 4180 (`.csv`).
    Csv,
    /// Tab-separated values; quotes are literal by default, as in GLUE (`.tsv`).
    Tsv,
    /// Apache Parquet (`.parquet`).
    Parquet,
    /// Plain text: the whole file is one row with one column `text` (`.txt`).
    Text,
}

impl Format {
    /// The format that the file's extension names.
    ///
    /// # Errors
    /// [`DataError::UnknownExtension`].
    pub fn of(path: &Path) -> Result<Self, DataError> {
        let extension = path
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or("");
        match extension.to_ascii_lowercase().as_str() {
            "jsonl" | "ndjson" | "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            "txt" => Ok(Self::Text),
            _ => Err(DataError::UnknownExtension {
                path: path.to_owned(),
            }),
        }
    }
}

impl FromStr for Format {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "json" | "jsonl" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            "text" => Ok(Self::Text),
            _ => Err(DataError::UnknownFormat {
                name: name.to_owned(),
            }),
        }
    }
}

/// How to read a file; the default follows the file's extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOptions {
    /// The format; by the file's extension if not given.
    pub format: Option<Format>,
    /// CSV and TSV: whether the first record names the columns. Without a header they are called
    /// `0`, `1`, …
    pub header: bool,
    /// CSV and TSV: whether `"` quotes a field; if not given, yes for CSV and no for TSV.
    pub quoting: Option<bool>,
    /// Read at most this many rows.
    pub limit: Option<usize>,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            header: true,
            quoting: None,
            limit: None,
        }
    }
}

impl Table {
    /// Reads a file.
    ///
    /// # Errors
    /// Those of [`DataError`] about files: not readable, of unknown format, empty, not UTF-8, a
    /// ragged row, an unclosed quote, invalid JSON or Parquet.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, DataError> {
        let path = path.as_ref();
        let format = options.format.map_or_else(|| Format::of(path), Ok)?;
        let limit = options.limit.unwrap_or(usize::MAX);
        match format {
            Format::Json => json::read(path, &read_text(path)?, limit),
            Format::Csv | Format::Tsv => {
                let dialect = csv::Dialect {
                    delimiter: if format == Format::Csv { b',' } else { b'\t' },
                    quoting: options.quoting.unwrap_or(format == Format::Csv),
                    header: options.header,
                };
                csv::read(path, &read_text(path)?, dialect, limit)
            }
            Format::Parquet => parquet::read(path, limit),
            Format::Text => {
                let text = read_text(path)?;
                let rows = if text.trim().is_empty() {
                    vec![]
                } else {
                    vec![Value::Text(text)]
                };
                Self::from_columns(path, [("text".to_owned(), rows)])
            }
        }
    }
}

/// The file's text without its byte order mark.
fn read_text(path: &Path) -> Result<String, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..offset]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        DataError::InvalidUtf8 {
            path: path.to_owned(),
            line,
            offset,
        }
    })?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(text)
}
