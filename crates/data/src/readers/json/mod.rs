//! JSON: one object a line (JSONL), objects one after another, one array of objects, or one object
//! that holds the rows in one of the layouts of [`layouts`].
//!
//! The content decides which, not the extension: files called `.json` exist in all kinds.

mod layouts;
mod rows;

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value as Json};

use self::rows::Rows;
use super::read::ReadOptions;
use super::source::Source;
use crate::error::DataError;
use crate::table::{Table, TableBuilder};

/// Reads the rows. Blank lines between objects are skipped; keys missing from a row are null, and
/// so is Python's `NaN`.
pub(super) fn read(
    path: &Path,
    source: &Source<'_>,
    options: &ReadOptions,
) -> Result<Table, DataError> {
    let (text, reader) = (source.text()?, Reader { path, options });
    if text.trim_start().starts_with('[') {
        return with_nan(text, |text| reader.array(text));
    }
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let has_lines = lines.nth(1).is_some();
    let of_lines = match has_lines {
        true => match reader.lines(source, text) {
            Ok(table) => return Ok(table),
            Err(error) => Some(error),
        },
        false => None,
    };
    let object = with_nan(text, |text| serde_json::from_str::<Map<String, Json>>(text));
    if let Ok(object) = object {
        return layouts::read(path, text.len(), options, object);
    }
    match (with_nan(text, |text| reader.stream(text)), of_lines) {
        (Ok(table), _) => Ok(table),
        // The first object goes on after its first line, and there is an error further below.
        (Err(error), None) | (Err(error), Some(DataError::InvalidJson { cut: true, .. })) => {
            Err(error)
        }
        (Err(_), Some(of_lines)) => Err(of_lines),
    }
}

/// What a file is read with.
struct Reader<'a> {
    path: &'a Path,
    options: &'a ReadOptions,
}

impl Reader<'_> {
    fn rows(&self, text: &str) -> Rows<'_> {
        Rows::new(TableBuilder::new(self.path, self.options, text.len()))
    }

    fn limit(&self) -> usize {
        self.options.limit.unwrap_or(usize::MAX)
    }

    /// One object a line.
    fn lines(&self, source: &Source<'_>, text: &str) -> Result<Table, DataError> {
        let mut rows = self.rows(text);
        let lines = source.lines(text);
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        for (number, line) in lines.take(self.limit()) {
            let row = with_nan(line, |line| {
                let mut json = serde_json::Deserializer::from_str(line);
                rows.read_row(&mut json)?;
                json.end()
            });
            row.map_err(|error| rows.error(|| self.invalid(line, number, &error)))?;
        }
        rows.finish()
    }

    /// Objects one after another, whatever the lines.
    fn stream(&self, text: &str) -> Result<Table, DataError> {
        let mut rows = self.rows(text);
        let mut json = serde_json::Deserializer::from_str(text);
        while rows.len() < self.limit() && json.end().is_err() {
            let row = rows.read_row(&mut json);
            row.map_err(|error| rows.error(|| self.invalid(text, 0, &error)))?;
        }
        rows.finish()
    }

    /// One array of objects.
    fn array(&self, text: &str) -> Result<Table, DataError> {
        let mut rows = self.rows(text);
        let mut json = serde_json::Deserializer::from_str(text);
        let read = rows.read_array(&mut json, self.limit());
        let read = read.and_then(|()| json.end());
        read.map_err(|error| rows.error(|| self.invalid(text, 0, &error)))?;
        rows.finish()
    }

    /// An error in `text`, of which the first line is number `line` of the file, from 0.
    fn invalid(&self, text: &str, line: usize, error: &serde_json::Error) -> DataError {
        let row = text.lines().nth(error.line().saturating_sub(1));
        let row = row.unwrap_or("").trim_start();
        let at = row.get(error.column().saturating_sub(1)..).unwrap_or("");
        let goes_on = error.to_string().starts_with("trailing characters");
        let advice = if row.starts_with("{'") || at.starts_with('\'') {
            "this is a dictionary as Python prints it: write it with `json.dumps`"
        } else if goes_on && at.starts_with(',') {
            "remove the commas between the objects, or put [ and ] around all of them"
        } else if goes_on && row.starts_with('[') {
            "each line is a list: write one object a line, or one list of objects"
        } else {
            "each row must be one JSON object"
        };
        DataError::InvalidJson {
            path: self.path.to_owned(),
            line: line + error.line(),
            // serde_json counts the lines of what it was given, which the file's line replaces.
            reason: match error.to_string().rsplit_once(" at line ") {
                Some((reason, _)) => format!("{reason} at column {}", error.column()),
                None => error.to_string(),
            },
            advice,
            cut: error.is_eof(),
        }
    }
}

/// What `parse` makes of `text`, with quotes around whole numbers that no number here holds; where
/// it fails, of the text with `null` for the numbers that Python writes and JSON does not have.
fn with_nan<T, E>(text: &str, mut parse: impl FnMut(&str) -> Result<T, E>) -> Result<T, E> {
    let text = &*with_quoted_numbers(text);
    parse(text).or_else(|error| match without_nan(text) {
        Cow::Owned(text) => parse(&text),
        Cow::Borrowed(_) => Err(error),
    })
}

/// Whole numbers with fewer digits have at most 64 bits.
const DIGITS_OF_64_BITS: usize = 19;

/// The text with quotes around the whole numbers outside of strings that have more than 64 bits and
/// would be rounded.
fn with_quoted_numbers(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    // Any such number has a digit at one of these places.
    let may_have = || {
        let places = (0..bytes.len()).step_by(DIGITS_OF_64_BITS);
        places.into_iter().any(|at| {
            let is_digit = |at: &usize| bytes[*at].is_ascii_digit();
            let before = (0..at).rev().take_while(is_digit).count();
            let from = (at..bytes.len()).take_while(is_digit).count();
            from > 0 && before + from >= DIGITS_OF_64_BITS
        })
    };
    if !may_have() {
        return Cow::Borrowed(text);
    }
    replaced_outside_strings(text, |rest| {
        if !rest.starts_with(|first: char| first == '-' || first.is_ascii_digit()) {
            return None;
        }
        let is_of_number = |byte: &u8| b"+-.eE0123456789".contains(byte);
        let length = rest.bytes().take_while(is_of_number).count();
        let number = &rest[..length];
        let digits = number.strip_prefix('-').unwrap_or(number);
        let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
        let fits = number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
        let is_larger = is_whole && !digits.is_empty() && !fits;
        // Of a number, no part is another number.
        let quoted = is_larger.then(|| format!("\"{number}\"").into());
        Some((length, quoted))
    })
}

/// The text with `null` in place of `NaN`, `Infinity` and `-Infinity` outside of strings.
fn without_nan(text: &str) -> Cow<'_, str> {
    replaced_outside_strings(text, |rest| {
        let names = ["NaN", "Infinity", "-Infinity"];
        let name = names.iter().find(|name| rest.starts_with(**name))?;
        Some((name.len(), Some("null".into())))
    })
}

/// The text with other words in some places outside of JSON's strings: `find` says of the rest of
/// the text how many bytes it begins with that belong together, and what takes their place, if
/// anything does.
fn replaced_outside_strings(
    text: &str,
    find: impl Fn(&str) -> Option<(usize, Option<Cow<'static, str>>)>,
) -> Cow<'_, str> {
    let mut replaced = String::new();
    let (mut kept, mut at, mut in_string) = (0, 0, false);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            byte if !in_string && byte.is_ascii() => {
                if let Some((length, other)) = find(&text[at..]) {
                    if let Some(other) = other {
                        replaced += &text[kept..at];
                        replaced += &other;
                        kept = at + length;
                    }
                    at += length;
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
    match kept {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(replaced + &text[kept..]),
    }
}
