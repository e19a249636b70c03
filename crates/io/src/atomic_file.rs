//! Files that appear whole or not at all.
//!
//! A run that is killed while saving must leave the previous file as it was. So the bytes go to a
//! temporary file in the same directory, are forced to the disk, and one rename puts them in place;
//! POSIX rename is atomic, so a reader sees the old file or the new one. The temporary name is
//! always the same: what a killed process leaves behind is overwritten by the next save.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::FileError;

/// Prefix of the names of unfinished files and directories.
pub(crate) const TEMPORARY: &str = ".epiphyte-tmp-";

/// Writes the file at `path` through `write`, replacing what was there only once everything is on
/// disk.
///
/// # Errors
/// [`FileError`], naming `path`, with what `write` or the file system reports. The old file is then
/// untouched and no part of the new one remains.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("adapter_config.json");
/// use epiphyte_io::write_atomically;
/// write_atomically(&path, |file| file.write_all(b"{}"))?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"{}");
/// # Ok::<(), epiphyte_io::FileError>(())
/// ```
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), FileError> {
    replace_file(path, write).map_err(FileError::at("write", path))
}

/// [`write_atomically`] for contents that are in memory.
///
/// # Errors
/// [`FileError`], naming `path`; the old file is then unchanged and nothing temporary is left.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_atomically(path, |file| file.write_all(contents))
}

fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = temporary_path(path)?;
    let attempt = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
        write(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().inspect_err(|_| {
        // Best effort: the first error is the one worth reporting.
        let _ = fs::remove_file(&temporary);
    })?;
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    sync_directory(directory.unwrap_or(Path::new(".")))
}

/// Forces a directory's entries to the disk, without which a rename may be lost when the power
/// fails. Only Unix can open a directory for that.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(directory)?.sync_all()
    } else {
        Ok(())
    }
}

/// `dir/.epiphyte-tmp-name` for `dir/name`.
fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut temporary = OsString::from(TEMPORARY);
    temporary.push(name);
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let error = write_atomically(&path, |file| {
            // More than the buffer holds, so that a part of it is on the disk.
            file.write_all(&vec![7; 3 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(
            matches!(&error, FileError::StorageFull { path: p, .. } if *p == path),
            "{error:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let temporary = temporary_path(&path).unwrap();
        fs::write(&temporary, b"left by a killed process, longer").unwrap();
        write_atomically(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!temporary.exists());
    }

    #[test]
    fn missing_directory_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent").join("file");
        let error = write_atomically(&path, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
        assert!(write_atomically(Path::new("/"), |_| Ok(())).is_err());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_disk_refuses_when_the_buffer_empties_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut file = BufWriter::new(full);
        file.write_all(b"fits into the buffer").unwrap();
        let error = io::Error::from(file.into_inner().unwrap_err());
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[cfg(unix)]
    #[test]
    fn who_has_the_old_file_open_keeps_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_model.safetensors");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let reader = File::open(&path).unwrap();
        write_atomically(&path, |file| file.write_all(b"newer")).unwrap();
        assert_eq!(io::read_to_string(reader).unwrap(), "old");
        assert_eq!(fs::read(&path).unwrap(), b"newer");
    }
}
