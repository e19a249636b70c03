//! A text file's text: standard input, gzip, UTF-16 and the byte order mark.

use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::error::DataError;

/// The path that stands for standard input.
pub(super) const STDIN: &str = "-";

/// The most bytes that a compressed file of `size` bytes may become: 1 GiB, or 64 times its size if
/// that is more. Ordinary text becomes three to ten times its size; a file of a few megabytes that
/// asks for more is damaged or hostile.
pub(super) fn expansion_limit(size: u64) -> u64 {
    size.saturating_mul(64).max(1 << 30)
}

/// The text, without its byte order mark.
///
/// # Errors
/// [`DataError::Io`]; [`DataError::Expansion`]; [`DataError::NotText`]; [`DataError::InvalidUtf8`].
pub(super) fn read_text(path: &Path) -> Result<String, DataError> {
    let bytes = read(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })?;
    let bytes = match bytes.as_slice() {
        [0x1f, 0x8b, ..] => decompress(path, &bytes, expansion_limit(bytes.len() as u64))?,
        _ => bytes,
    };
    if let Some((found, advice)) = other_format(&bytes) {
        return Err(DataError::NotText {
            path: path.to_owned(),
            found,
            advice,
        });
    }
    match bytes.as_slice() {
        [0xff, 0xfe, units @ ..] => decode_utf16(path, units, u16::from_le_bytes),
        [0xfe, 0xff, units @ ..] => decode_utf16(path, units, u16::from_be_bytes),
        _ => decode_utf8(path, bytes),
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if path == Path::new(STDIN) {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(path)
}

fn decompress(path: &Path, bytes: &[u8], limit: u64) -> Result<Vec<u8>, DataError> {
    let mut text = Vec::new();
    let decoder = MultiGzDecoder::new(bytes);
    let read = decoder.take(limit + 1).read_to_end(&mut text);
    read.map_err(|error| DataError::NotText {
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

fn decode_utf16(path: &Path, bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, DataError> {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let units = pairs.iter().map(|&pair| unit(pair));
    let text: Result<String, _> = char::decode_utf16(units).collect();
    match text {
        Ok(text) if rest.is_empty() => Ok(text),
        _ => Err(DataError::NotText {
            path: path.to_owned(),
            found: "damaged UTF-16".to_owned(),
            advice: "save the file again, as UTF-8",
        }),
    }
}

fn decode_utf8(path: &Path, bytes: Vec<u8>) -> Result<String, DataError> {
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..offset];
        DataError::InvalidUtf8 {
            path: path.to_owned(),
            line: 1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            offset,
        }
    })?;
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
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
        assert_eq!(decompress(path, &bytes, 100_000).unwrap().len(), 100_000);
        let error = decompress(path, &bytes, 99_999).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        assert_eq!(
            (expansion_limit(1), expansion_limit(1 << 30)),
            (1 << 30, 1 << 36)
        );
    }
}
