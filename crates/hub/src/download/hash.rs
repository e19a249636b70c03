//! The hashes by which the hub names the contents of files.

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A hash that the hub gives for a file, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    /// Of large files.
    Sha256(String),
    /// Of small files: the hash of git's object, which begins with the length.
    Git(String),
}

impl Hash {
    /// Parses hexadecimal digits, whose number says which hash it is; none for anything else.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_hash = text
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        match text.len() {
            40 if is_hash => Some(Self::Git(text.to_owned())),
            64 if is_hash => Some(Self::Sha256(text.to_owned())),
            _ => None,
        }
    }

    /// The hexadecimal digits, by which the cache names the file's contents.
    pub(crate) fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }

    /// The name of the kind of hash.
    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Git(_) => "git SHA-1",
        }
    }
}

/// Computes the hash of a file from its parts.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Git(Sha1),
}

impl Hasher {
    /// A hasher of the same kind as `hash`, git's if there is none, for a file of `size` bytes.
    pub(crate) fn new(hash: Option<&Hash>, size: u64) -> Self {
        match hash {
            Some(Hash::Sha256(_)) => Self::Sha256(Sha256::new()),
            Some(Hash::Git(_)) | None => Self::Git(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Git(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Hash {
        match self {
            Self::Sha256(hasher) => Hash::Sha256(digits(&hasher.finalize())),
            Self::Git(hasher) => Hash::Git(digits(&hasher.finalize())),
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(given: &Hash, bytes: &[u8]) -> Hash {
        let mut hasher = Hasher::new(Some(given), bytes.len() as u64);
        bytes.chunks(3).for_each(|part| hasher.update(part));
        hasher.finish()
    }

    #[test]
    fn hashes_are_those_of_git_and_sha256sum() {
        // `git hash-object` and `sha256sum` of "hello\n".
        for digits in [
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        ] {
            let expected = Hash::parse(digits).unwrap();
            assert_eq!(hash(&expected, b"hello\n"), expected);
        }
    }

    #[test]
    fn anything_else_is_not_a_hash() {
        for text in [
            "",
            "etag0",
            "../../../../x",
            &"g".repeat(40),
            &"A".repeat(64),
            &"a".repeat(41),
        ] {
            assert_eq!(Hash::parse(text), None, "{text}");
        }
    }
}
