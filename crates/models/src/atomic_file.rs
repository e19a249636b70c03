//! Files that appear whole or not at all.
//!
//! A run that is killed while saving must leave the previous file as it was. So the bytes go to a
//! neighbouring file, and one rename puts it in place. The neighbour's name is always the same: what
//! a killed process leaves behind is overwritten by the next save.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ModelError;

/// Writes the file at `path` through `write`, replacing what was there only once everything is on disk.
///
/// # Errors
/// [`ModelError::Io`] where the file system refuses, for example because the disk is full. The old
/// file is then untouched and no part of the new one remains.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("adapter_config.json");
/// use epiphyte_models::atomic_file::write_atomically;
/// write_atomically(&path, |file| file.write_all(b"{}"))?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"{}");
/// # Ok::<(), epiphyte_models::ModelError>(())
/// ```
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ModelError> {
    let partial = partial_path(path);
    let result = File::create(&partial)
        .and_then(|file| {
            let mut file = BufWriter::with_capacity(1 << 20, file);
            write(&mut file)?;
            file.into_inner()?.sync_all()
        })
        .and_then(|()| fs::rename(&partial, path));
    result.map_err(|source| {
        // Best effort: the first error is the one worth reporting.
        let _ = fs::remove_file(&partial);
        ModelError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        }
    })
}

/// `dir/.name.partial` for `dir/name`.
fn partial_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".partial");
    path.with_file_name(name)
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
            file.write_all(b"half of the new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(
            matches!(&error, ModelError::Io { action: "write", path: p, source }
                if *p == path && source.kind() == io::ErrorKind::StorageFull),
            "{error:?}"
        );
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        fs::write(partial_path(&path), b"left by a killed process, longer").unwrap();
        write_atomically(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!partial_path(&path).exists());
    }

    #[test]
    fn missing_directory_is_an_error_with_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("absent").join("file");
        let error = write_atomically(&path, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
