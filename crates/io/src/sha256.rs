//! SHA-256 in hexadecimal, by which files and what was read from them are recognized.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::FileError;

/// A SHA-256 in progress, over bytes that come in pieces.
///
/// ```
/// let mut hash = epiphyte_io::Sha256Hasher::default();
/// hash.update(b"ab");
/// hash.update(b"c");
/// assert_eq!(hash.finish(), epiphyte_io::sha256(b"abc"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sha256Hasher(Sha256);

impl Sha256Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all bytes in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        let digest = self.0.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The SHA-256 of bytes in hexadecimal.
///
/// ```
/// let hash = epiphyte_io::sha256(b"abc");
/// assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
/// ```
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let mut hash = Sha256Hasher::default();
    hash.update(bytes);
    hash.finish()
}

/// The SHA-256 of a file's contents in hexadecimal.
///
/// # Errors
/// [`FileError`] if the file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, FileError> {
    let read = || {
        let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut hash = Sha256Hasher::default();
        loop {
            let bytes = file.fill_buf()?;
            let count = bytes.len();
            if count == 0 {
                return Ok(hash.finish());
            }
            hash.update(bytes);
            file.consume(count);
        }
    };
    read().map_err(FileError::at("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1 and B.2.
    #[test]
    fn the_standards_examples_hold() {
        let two_blocks = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        let expected = "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1";
        assert_eq!(sha256(two_blocks), expected);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, two_blocks).unwrap();
        assert_eq!(sha256_of_file(&path).unwrap(), expected);
        let missing = sha256_of_file(&dir.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("missing"), "{missing}");
    }
}
