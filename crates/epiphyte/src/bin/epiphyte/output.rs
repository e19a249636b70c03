//! Results go to standard output, notes to standard error.
//!
//! A reader that closes the pipe early (`| head`) is not an error; a full disk is. Control
//! characters and characters that reorder text are shown by their numbers: names from files that
//! somebody else wrote must not move the cursor or hide what they say.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
pub(crate) use epiphyte::train::display::count;
use serde::Serialize;

use crate::standard_output;

/// Prints one JSON object on one line.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).expect("results are plain values");
    // What JSON leaves as it is stands inside a string, where this is the same character.
    let text = replace(&text, |character| match is_visible(character) {
        true => None,
        false => Some(format!("\\u{:04x}", u32::from(character))),
    });
    finish(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints one or more lines.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    finish(writeln!(io::stdout().lock(), "{}", visible(text)))
}

/// Prints generated text without a line break and flushes; into a file or a pipe it goes as it is.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn write(text: &str) -> Result<()> {
    let text = match io::stdout().is_terminal() {
        true => visible(text),
        false => Cow::Borrowed(text),
    };
    stream(text.as_bytes())
}

/// Writes bytes as they are and flushes.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn stream(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    finish(out.write_all(bytes).and_then(|()| out.flush()))
}

/// The result of writing to standard output.
pub(crate) fn finish(written: io::Result<()>) -> Result<()> {
    let written = match standard_output::is_writable() {
        true => written,
        false => Err(io::Error::other("it is closed, or open for reading alone")),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Prints one or more lines on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", visible(text));
}

/// Prints names and values as two columns.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn pairs(rows: &[(&str, String)]) -> Result<()> {
    let rows = rows.iter();
    let rows = rows.map(|(name, value)| vec![(*name).to_owned(), value.clone()]);
    table(&rows.collect::<Vec<_>>(), &[])
}

/// On which side of its column a cell stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Prints rows of cells as aligned columns, to the left where `align` says nothing.
///
/// # Errors
/// If standard output cannot be written.
pub(crate) fn table(rows: &[Vec<String>], align: &[Align]) -> Result<()> {
    let rows = rows.iter().map(|row| row.iter().map(|it| on_one_line(it)));
    let rows: Vec<Vec<Cow<'_, str>>> = rows.map(Iterator::collect).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, &width))| match align.get(column) {
            Some(Align::Right) => format!("{cell:>width$}"),
            Some(Align::Left) | None => format!("{cell:width$}"),
        });
        let line = cells.collect::<Vec<String>>().join("  ");
        print(line.trim_end())?;
    }
    Ok(())
}

/// Text in which what a terminal obeys is shown by number; line ends and tabs stay.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    replace(text, |character| match character {
        '\n' | '\t' => None,
        character if is_visible(character) => None,
        character => Some(character.escape_unicode().to_string()),
    })
}

/// [`visible`] text without line ends.
pub(crate) fn on_one_line(text: &str) -> Cow<'_, str> {
    replace(text, |character| match is_visible(character) {
        true => None,
        false => Some(character.escape_default().to_string()),
    })
}

/// Whether a character is neither a control character nor one that breaks or reorders lines.
fn is_visible(character: char) -> bool {
    !character.is_control()
        && !matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Text with some characters replaced.
fn replace(text: &str, by: impl Fn(char) -> Option<String>) -> Cow<'_, str> {
    if text.chars().all(|character| by(character).is_none()) {
        return Cow::Borrowed(text);
    }
    let mut replaced = String::with_capacity(text.len());
    for character in text.chars() {
        match by(character) {
            Some(other) => replaced += &other,
            None => replaced.push(character),
        }
    }
    Cow::Owned(replaced)
}

/// A number of bytes with the largest binary unit that fits: `1.5 KiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = number as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if size < 1024.0 {
            break;
        }
        size /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" {
        format!("{number} bytes")
    } else {
        format!("{size:.1} {unit}")
    }
}

/// Whether standard error is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }

    #[test]
    fn what_a_terminal_obeys_is_shown_by_number() {
        let name = "a\u{1b}[2J\u{9b}31m\u{202e}\r\tb\nc";
        assert_eq!(visible(name), "a\\u{1b}[2J\\u{9b}31m\\u{202e}\\u{d}\tb\nc");
        assert_eq!(
            on_one_line(name),
            "a\\u{1b}[2J\\u{9b}31m\\u{202e}\\r\\tb\\nc"
        );
        assert_eq!(visible("größer 你好 שלום"), "größer 你好 שלום");
    }
}
