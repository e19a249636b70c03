//! A text file's text: standard input, gzip, UTF-16 and the byte order mark.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::read::ReadOptions;
use crate::error::DataError;
use crate::values::{Growing, Values};

/// The path that stands for standard input.
pub(super) const STDIN: &str = "-";

/// The most bytes that a compressed file of `size` bytes may become: 1 GiB, or 64 times its size if
/// that is more. Ordinary text becomes three to ten times its size; a file of a few megabytes that
/// asks for more is damaged or hostile.
pub(super) fn expansion_limit(size: u64) -> u64 {
    size.saturating_mul(64).max(1 << 30)
}

/// Bytes that are read at once.
const PIECE: usize = 1 << 20;

/// A text file's bytes, decompressed and in UTF-8.
pub(super) struct Source<'a> {
    path: &'a Path,
    bytes: Values<u8>,
    /// How many bytes will not be read soon.
    passed: Cell<usize>,
}

impl<'a> Source<'a> {
    /// Reads the file.
    ///
    /// # Errors
    /// [`DataError::Io`]; [`DataError::Expansion`]; [`DataError::NotText`]; [`DataError::Scratch`].
    pub(super) fn read(path: &'a Path, options: &ReadOptions) -> Result<Self, DataError> {
        let in_memory = options.in_memory;
        let io = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let bytes = match path == Path::new(STDIN) {
            true => collect(std::io::stdin().lock(), in_memory, io)?,
            false => collect(File::open(path).map_err(io)?, in_memory, io)?,
        };
        let bytes = match &*bytes {
            [0x1f, 0x8b, ..] => {
                let limit = expansion_limit(bytes.len() as u64);
                decompress(path, &bytes, limit, in_memory)?
            }
            _ => bytes,
        };
        if let Some((found, advice)) = other_format(&bytes) {
            return Err(DataError::NotText {
                path: path.to_owned(),
                found,
                advice,
            });
        }
        let bytes = match &*bytes {
            [0xff, 0xfe, units @ ..] => decode_utf16(path, units, u16::from_le_bytes, in_memory)?,
            [0xfe, 0xff, units @ ..] => decode_utf16(path, units, u16::from_be_bytes, in_memory)?,
            _ => bytes,
        };
        Ok(Self {
            path,
            bytes,
            passed: Cell::new(0),
        })
    }

    /// The text, without its byte order mark.
    ///
    /// # Errors
    /// [`DataError::InvalidUtf8`].
    pub(super) fn text(&self) -> Result<&str, DataError> {
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let offset = error.valid_up_to();
            let before = &self.bytes[..offset];
            DataError::InvalidUtf8 {
                path: self.path.to_owned(),
                line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
                offset,
            }
        })?;
        self.bytes.forget(0..self.bytes.len());
        Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
    }

    /// Lines of the text in order, with their numbers; those before will not be read soon.
    pub(super) fn lines<'t>(&'t self, text: &'t str) -> impl Iterator<Item = (usize, &'t str)> {
        let lines = text.lines().enumerate();
        lines.inspect(|(_, line)| {
            self.passed(line.as_ptr() as usize - self.bytes.as_ptr() as usize);
        })
    }

    /// Says that what lies before a byte will not be read soon.
    pub(super) fn passed(&self, at: usize) {
        let before = self.passed.get();
        if at.saturating_sub(before) >= PIECE {
            self.bytes.forget(before..at);
            self.passed.set(at);
        }
    }
}

/// All bytes of a reader.
fn collect(
    mut reader: impl Read,
    in_memory: usize,
    failed: impl Fn(std::io::Error) -> DataError,
) -> Result<Values<u8>, DataError> {
    let mut bytes = Growing::new(in_memory);
    loop {
        let piece = reader.by_ref().take(PIECE as u64).read_to_end(bytes.last());
        if piece.map_err(&failed)? == 0 {
            return bytes.finish();
        }
        bytes.settle()?;
    }
}

fn decompress(
    path: &Path,
    bytes: &[u8],
    limit: u64,
    in_memory: usize,
) -> Result<Values<u8>, DataError> {
    let decoder = MultiGzDecoder::new(bytes).take(limit + 1);
    let text = collect(decoder, in_memory, |error| DataError::NotText {
        path: path.to_owned(),
        found: format!("damaged gzip ({error})"),
        advice: "fetch or compress the file again",
    })?;
    if text.len() as u64 > limit {
        return Err(DataError::Expansion {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(text)
}

/// What a file that is no text is, by its first bytes, and what to do with it.
fn other_format(bytes: &[u8]) -> Option<(String, &'static str)> {
    let (found, advice) = match bytes {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => (
            "a ZIP archive or a spreadsheet (.xlsx)",
            "unpack it, or save the sheet as CSV",
        ),
        [0xd0, 0xcf, 0x11, 0xe0, ..] => ("a spreadsheet (.xls)", "save the sheet as CSV"),
        [b'P', b'A', b'R', b'1', ..] => ("a Parquet file", "name it .parquet, or its format"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("compressed with zstd", "decompress it: `zstd -d FILE`"),
        [b'B', b'Z', b'h', ..] => ("compressed with bzip2", "decompress it: `bunzip2 FILE`"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("compressed with xz", "decompress it: `xz -d FILE`"),
        // Text has no NUL; UTF-16's Latin letters have one in every second byte.
        [0, second, 0, fourth, ..] if *second != 0 && *fourth != 0 => (
            "UTF-16 without a byte order mark",
            "convert it: `iconv -f UTF-16BE -t UTF-8 FILE`",
        ),
        [first, 0, third, 0, ..] if *first != 0 && *third != 0 => (
            "UTF-16 without a byte order mark",
            "convert it: `iconv -f UTF-16LE -t UTF-8 FILE`",
        ),
        _ => return None,
    };
    Some((found.to_owned(), advice))
}

fn decode_utf16(
    path: &Path,
    bytes: &[u8],
    unit: fn([u8; 2]) -> u16,
    in_memory: usize,
) -> Result<Values<u8>, DataError> {
    let damaged = || DataError::NotText {
        path: path.to_owned(),
        found: "damaged UTF-16".to_owned(),
        advice: "save the file again, as UTF-8",
    };
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(damaged());
    }
    let mut text = Growing::new(in_memory);
    let mut buffer = [0; 4];
    for character in char::decode_utf16(pairs.iter().map(|&pair| unit(pair))) {
        let character = character.map_err(|_| damaged())?;
        let character = character.encode_utf8(&mut buffer).as_bytes();
        text.last().extend_from_slice(character);
        text.settle()?;
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_gzip_becomes_is_bounded() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&[b' '; 100_000]).unwrap();
        let bytes = encoder.finish().unwrap();
        let path = Path::new("a.jsonl.gz");
        assert_eq!(
            decompress(path, &bytes, 100_000, 10).unwrap().len(),
            100_000
        );
        let error = decompress(path, &bytes, 99_999, 10).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        assert_eq!(
            (expansion_limit(1), expansion_limit(1 << 30)),
            (1 << 30, 1 << 36)
        );
    }
}
