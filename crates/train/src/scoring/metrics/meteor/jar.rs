//! Files in a jar, which is a ZIP archive (PKWARE, APPNOTE 6.3, without ZIP64).

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use flate2::Crc;
use flate2::read::DeflateDecoder;

/// The largest archive, and the largest file in it, in bytes.
const LARGEST: u64 = 64 << 20;
/// Begins the record at the end of an archive, which is followed by a comment.
const END: u32 = 0x0605_4b50;
const END_LENGTH: usize = 22;
/// Begins an entry of the list of files.
const LISTED: u32 = 0x0201_4b50;
const LISTED_LENGTH: usize = 46;
/// Begins a file.
const FILE: u32 = 0x0403_4b50;
const FILE_LENGTH: usize = 30;

/// An archive in memory.
pub(super) struct Jar {
    bytes: Vec<u8>,
}

impl Jar {
    /// Reads an archive.
    ///
    /// # Errors
    /// What the system says, or that the file is too large.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
        if length > LARGEST {
            return Err(format!("has {length} bytes, which is too much for it"));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| error.to_string())?;
        let read = file.take(LARGEST).read_to_end(&mut bytes);
        read.map_err(|error| error.to_string())?;
        Ok(Self { bytes })
    }

    /// A file of text.
    ///
    /// # Errors
    /// If there is no such file, or the archive is damaged.
    pub(super) fn text(&self, name: &str) -> Result<String, String> {
        let listed = self.find(name)?;
        let damaged = || format!("is damaged at `{name}`");
        let packed = listed.packed(&self.bytes).ok_or_else(damaged)?;
        if u64::from(listed.length) > LARGEST {
            return Err(format!("has too large a `{name}`"));
        }
        let mut content = Vec::with_capacity(listed.length as usize);
        let read = match listed.compression {
            0 => packed.take(LARGEST).read_to_end(&mut content),
            8 => DeflateDecoder::new(packed)
                .take(LARGEST)
                .read_to_end(&mut content),
            _ => return Err(format!("packs `{name}` in a way that is not deflate")),
        };
        read.map_err(|_| damaged())?;
        let mut crc = Crc::new();
        crc.update(&content);
        if content.len() != listed.length as usize || crc.sum() != listed.crc {
            return Err(damaged());
        }
        String::from_utf8(content).map_err(|_| format!("has a `{name}` that is not UTF-8"))
    }

    /// The lines of a file of text, two by two.
    ///
    /// # Errors
    /// As [`Self::text`], and if the second line of a pair is missing.
    pub(super) fn pairs_of_lines(&self, name: &str) -> Result<Vec<(String, String)>, String> {
        let text = self.text(name)?;
        let lines: Vec<&str> = text.lines().collect();
        match lines.as_chunks() {
            (pairs, []) => Ok(pairs
                .iter()
                .map(|[first, second]| ((*first).to_owned(), (*second).to_owned()))
                .collect()),
            _ => Err(format!("has a `{name}` with an odd number of lines")),
        }
    }

    /// The entry of a file in the list at the archive's end.
    fn find(&self, name: &str) -> Result<Listed, String> {
        let mut list = self
            .list()
            .ok_or("is no jar, or a part of one is missing")?;
        while u32_at(list, 0) == Some(LISTED) {
            let lengths = [28, 30, 32].map(|at| u16_at(list, at).unwrap_or(0) as usize);
            let rest = list.get(LISTED_LENGTH + lengths.iter().sum::<usize>()..);
            if list.get(LISTED_LENGTH..LISTED_LENGTH + lengths[0]) == Some(name.as_bytes())
                && let Some(listed) = Listed::of(list)
            {
                return Ok(listed);
            }
            list = rest.unwrap_or_default();
        }
        Err(format!("has no `{name}`"))
    }

    /// The list of files.
    fn list(&self) -> Option<&[u8]> {
        let last = self.bytes.len().checked_sub(END_LENGTH)?;
        let first = last.saturating_sub(usize::from(u16::MAX));
        let end = (first..=last)
            .rev()
            .find(|&at| u32_at(&self.bytes, at) == Some(END))?;
        let start = u32_at(&self.bytes, end + 16)? as usize;
        self.bytes.get(start..end)
    }
}

/// What the list of files says of one.
struct Listed {
    compression: u16,
    crc: u32,
    packed_length: u32,
    length: u32,
    start: u32,
}

impl Listed {
    fn of(entry: &[u8]) -> Option<Self> {
        Some(Self {
            compression: u16_at(entry, 10)?,
            crc: u32_at(entry, 16)?,
            packed_length: u32_at(entry, 20)?,
            length: u32_at(entry, 24)?,
            start: u32_at(entry, 42)?,
        })
    }

    /// The file as it is packed.
    fn packed<'a>(&self, archive: &'a [u8]) -> Option<&'a [u8]> {
        let file = archive.get(self.start as usize..)?;
        let lengths = [u16_at(file, 26)?, u16_at(file, 28)?].map(usize::from);
        let content = file.get(FILE_LENGTH + lengths[0] + lengths[1]..)?;
        let is_file = u32_at(file, 0)? == FILE;
        content
            .get(..self.packed_length as usize)
            .filter(|_| is_file)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
