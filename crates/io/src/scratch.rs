//! Scratch files: what a process works on and does not fit into its memory.
//!
//! A scratch file has no name. So no other process reads, changes or truncates it, which makes it
//! safe to map, and the system removes it however the process ends.

use std::fs::File;
use std::io::{self, Write};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::forget;

/// A file without a name, to which bytes are appended.
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    length: u64,
}

/// The bytes of a scratch file, mapped: the system keeps in memory what of them is in use.
#[derive(Debug)]
pub struct ScratchMap {
    map: Mmap,
    /// Windows removes the file when this is closed.
    _file: File,
}

impl ScratchFile {
    /// The directory for large scratch files: `TMPDIR`, or else on Unix `/var/tmp`, since `/tmp` is
    /// often in memory, or else the system's temporary directory.
    ///
    /// ```
    /// assert!(epiphyte_io::ScratchFile::directory().is_absolute());
    /// ```
    pub fn directory() -> PathBuf {
        let persistent = Path::new("/var/tmp");
        match std::env::var_os("TMPDIR").is_none_or(|it| it.is_empty()) {
            true if cfg!(unix) && persistent.is_dir() => persistent.to_owned(),
            _ => std::env::temp_dir(),
        }
    }

    /// An empty file on the disk of `directory`.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            file: tempfile::tempfile_in(directory)?,
            length: 0,
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// Maps the file, to which at least one byte was appended.
    ///
    /// # Errors
    /// If it cannot be mapped, or is not as long as what was appended.
    ///
    /// ```
    /// let directory = tempfile::tempdir()?;
    /// let mut file = epiphyte_io::ScratchFile::new(directory.path())?;
    /// file.append(b"many ")?;
    /// file.append(b"bytes")?;
    /// assert_eq!(&*file.map()?, b"many bytes");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[expect(unsafe_code, reason = "a map of a file cannot be made without")]
    pub fn map(self) -> io::Result<ScratchMap> {
        if self.file.metadata()?.len() != self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: the file has no name and its one handle goes with the map, to which nothing is
        // written any more, so its bytes do not change while it is mapped.
        let map = unsafe { Mmap::map(&self.file) }?;
        Ok(ScratchMap {
            map,
            _file: self.file,
        })
    }
}

impl ScratchMap {
    /// As [`forget`].
    ///
    /// # Panics
    /// If the range ends behind the map.
    pub fn forget(&self, range: Range<usize>) {
        forget(&self.map, range);
    }
}

impl Deref for ScratchMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let entries = || std::fs::read_dir(directory.path()).unwrap().count();
        let mut file = ScratchFile::new(directory.path()).unwrap();
        file.append(&[7; 100_000]).unwrap();
        assert_eq!(entries(), 0);
        let map = file.map().unwrap();
        assert_eq!(entries(), 0);
        assert!(map.len() == 100_000 && map.iter().all(|&byte| byte == 7));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_an_error_and_a_shorter_file_is_not_mapped() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = ScratchFile {
            file: full,
            length: 0,
        };
        let error = file.append(b"bytes").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let mut file = ScratchFile::new(&std::env::temp_dir()).unwrap();
        file.append(b"bytes").unwrap();
        file.file.set_len(3).unwrap();
        assert!(file.map().is_err());
    }
}
