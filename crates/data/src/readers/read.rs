//! [`Table::read`]: format, options, and the checks that all text formats share.

use std::path::Path;
use std::str::FromStr;

use super::files::DataFile;
use super::source::{STDIN, Source};
use super::{conll, csv, json, parquet};
use crate::error::DataError;
use crate::table::{Table, TableBuilder};
use crate::values::IN_MEMORY;

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
    /// One word a line with its tag, sentences separated by empty lines (`.conll`, `.conll.txt`,
    /// `.bio`, `.iob`, `.iob2`).
    Conll,
    /// Plain text: the whole file is one row with one column, or each line is (`.txt`).
    Text,
}

impl Format {
    /// The format that the file's extension names, before a last `.gz`.
    ///
    /// # Errors
    /// [`DataError::UnknownExtension`]; [`DataError::UnnamedFormat`] for standard input.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        if path == Path::new(STDIN) {
            return Err(DataError::UnnamedFormat);
        }
        let extension = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.unwrap_or("").to_ascii_lowercase()
        };
        let named = match extension(path).as_str() {
            "gz" => extension(&path.with_extension("")),
            named => named.to_owned(),
        };
        match named.as_str() {
            "jsonl" | "ndjson" | "json" => Ok(Self::Json),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            "conll" | "bio" | "iob" | "iob2" => Ok(Self::Conll),
            "txt" if extension(&path.with_extension("")) == "conll" => Ok(Self::Conll),
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
            "conll" => Ok(Self::Conll),
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
    /// CSV and TSV: the ASCII character between fields. If not given, a comma or a tab; a CSV file
    /// whose header has no comma, but semicolons or tabs, is read with those.
    pub delimiter: Option<char>,
    /// Plain text: whether each line that is not blank is a row, in place of the whole file.
    pub lines: bool,
    /// Plain text: the name of the column.
    pub text_column: String,
    /// Read only these columns, those of them that the file has; all if not given.
    pub columns: Option<Vec<String>>,
    /// Read at most this many rows.
    pub limit: Option<usize>,
    /// How many bytes of the file, of each column, and of each array of token ids that are made of
    /// them, lie in memory; 64 MiB by default. What is longer is written to a file without a name
    /// in `TMPDIR` or else in `/var/tmp`, which is mapped into memory and gone when the process
    /// ends. Results are the same.
    pub in_memory: usize,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            format: None,
            header: true,
            quoting: None,
            delimiter: None,
            lines: false,
            text_column: "text".to_owned(),
            columns: None,
            limit: None,
            in_memory: IN_MEMORY,
        }
    }
}

impl Table {
    /// Reads a file, or several, as [`DataFile::all`] has them: those in a directory, those that
    /// match a pattern, or a list. `-` is standard input. Files of the text formats may be
    /// compressed with gzip, and be UTF-8 or, with a byte order mark, UTF-16.
    ///
    /// What a compressed or a Parquet file becomes is at most 64 times its size, or 1 GiB.
    ///
    /// # Errors
    /// Those of [`DataError`] about files: not readable, of unknown format, empty, no text, too
    /// large, a ragged row, an unclosed quote, invalid JSON or Parquet.
    pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, DataError> {
        let path = path.as_ref();
        let files = DataFile::all(path, options)?;
        if let [file] = files.as_slice()
            && file.weight == 1.0
        {
            return Self::read_file(&file.path, options);
        }
        let read = |file: &DataFile| Ok((Self::read_file(&file.path, options)?, file.weight));
        let parts = files
            .iter()
            .map(read)
            .collect::<Result<Vec<_>, DataError>>()?;
        let table = Self::joined(path.to_owned(), parts)?;
        tracing::info!(data = %path.display(), files = files.len(), rows = table.len(), "read");
        table.first(options.limit.unwrap_or(usize::MAX))
    }

    /// Reads one file.
    fn read_file(path: &Path, options: &ReadOptions) -> Result<Self, DataError> {
        let format = options.format.map_or_else(|| Format::of(path), Ok)?;
        match format {
            Format::Json => {
                let source = Source::read(path, options)?;
                json::read(path, &source, options)
            }
            Format::Csv | Format::Tsv => {
                let source = Source::read(path, options)?;
                let text = source.text()?;
                let dialect = csv::Dialect {
                    delimiter: delimiter(path, text, format, options)?,
                    quoting: options.quoting.unwrap_or(format == Format::Csv),
                    header: options.header,
                };
                csv::read(path, (&source, text), dialect, options)
            }
            Format::Conll => {
                let source = Source::read(path, options)?;
                conll::read(path, source.text()?, options)
            }
            Format::Parquet => parquet::read(path, options),
            Format::Text => {
                let source = Source::read(path, options)?;
                let text = source.text()?;
                let mut table = TableBuilder::new(path, options, text.len());
                let whole = [text].into_iter().filter(|_| !options.lines);
                let lines = source.lines(text).map(|(_, line)| line);
                let lines = lines.filter(|_| options.lines);
                let rows = whole.chain(lines).filter(|row| !row.trim().is_empty());
                for row in rows.take(options.limit.unwrap_or(usize::MAX)) {
                    let index = table.named(&options.text_column)?;
                    if let Some(column) = index.and_then(|index| table.column(index)) {
                        column.push_text(row);
                    }
                    table.end_rows(1)?;
                }
                let mut table = table.finish()?;
                table.is_plain_text = !options.lines;
                Ok(table)
            }
        }
    }
}

/// A delimiter as users write it: one character, or `tab`.
///
/// # Errors
/// [`DataError::Delimiter`] if it cannot be one.
pub fn parse_delimiter(given: &str) -> Result<char, DataError> {
    let mut characters = match given {
        "tab" | r"\t" => "\t".chars(),
        given => given.chars(),
    };
    match (characters.next(), characters.next()) {
        (Some(delimiter), None) if is_delimiter(delimiter) => Ok(delimiter),
        _ => Err(DataError::Delimiter {
            given: given.to_owned(),
        }),
    }
}

fn is_delimiter(character: char) -> bool {
    character.is_ascii() && !matches!(character, '"' | '\r' | '\n')
}

/// The byte between the fields of a CSV or TSV file.
fn delimiter(
    path: &Path,
    text: &str,
    format: Format,
    options: &ReadOptions,
) -> Result<u8, DataError> {
    match options.delimiter {
        Some(given) if is_delimiter(given) => return Ok(given as u8),
        Some(given) => {
            return Err(DataError::Delimiter {
                given: given.to_string(),
            });
        }
        None if format == Format::Tsv => return Ok(b'\t'),
        None if !options.header => return Ok(b','),
        None => {}
    }
    // A name of a column with a semicolon or a tab in it is less likely than a spreadsheet that
    // writes these between the columns.
    let header = text.trim_start().lines().next().unwrap_or("");
    let found = [';', '\t'].into_iter().find(|&it| header.contains(it));
    match found.filter(|_| !header.contains(',')) {
        Some(found) => {
            tracing::info!(
                file = %path.display(),
                delimiter = ?found,
                "the header has no comma; another delimiter is read"
            );
            Ok(found as u8)
        }
        None => Ok(b','),
    }
}
