//! A lock of the operating system on an output, so that one process writes there at a time.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use epiphyte_io::{FileError, clean_up_next_to, parent};

use crate::TrainError;

/// A file that this process holds a lock on until this is dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// Keeps the lock.
    _file: File,
}

/// Checks that `output` is a directory, or nothing yet.
///
/// # Errors
/// [`TrainError::OutputNoDirectory`].
pub fn check_output_directory(output: &Path) -> Result<(), TrainError> {
    let is = match fs::metadata(output) {
        Ok(metadata) if metadata.is_dir() => return Ok(()),
        Ok(metadata) if metadata.is_file() => "is a file",
        Ok(_) => "is no directory",
        Err(_) if output.is_symlink() => "is a link to nothing",
        // Whatever else is wrong is said by who makes the directory.
        Err(_) => return Ok(()),
    };
    Err(TrainError::OutputNoDirectory {
        path: output.to_owned(),
        is,
    })
}

/// Holds `output`, a file or a directory that appears whole, for one process at a time, by a file
/// next to it, and removes what a killed process left there. The directory that it is in is made.
///
/// # Errors
/// [`TrainError::OutputInUse`] if another process writes there; [`TrainError::File`].
pub fn lock_output(output: &Path) -> Result<Lock, TrainError> {
    let parent = parent(output);
    fs::create_dir_all(parent).map_err(FileError::at("create", parent))?;
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let lock = Lock::take(&parent.join(format!(".epiphyte-lock-{name}")), output)?;
    clean_up_next_to(output)?;
    Ok(lock)
}

impl Lock {
    /// Takes the lock on the file `path`, which is created, for who writes to `output`.
    ///
    /// # Errors
    /// [`TrainError::OutputInUse`] if another process holds it; [`TrainError::File`].
    pub(crate) fn take(path: &Path, output: &Path) -> Result<Self, TrainError> {
        loop {
            let mut options = OpenOptions::new();
            let options = options.create(true).truncate(false).write(true);
            let file = options.open(path).map_err(FileError::at("create", path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(TrainError::OutputInUse {
                        path: output.to_owned(),
                    });
                }
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    tracing::warn!(
                        "the file system of `{}` has no locks: do not write there with two processes at once",
                        output.display()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    return Err(FileError::new("lock", path, error).into());
                }
            }
            // The process that held the lock before may have removed the file that we opened.
            if is_same_file(&file, path) {
                return Ok(Self {
                    path: path.to_owned(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Best effort: what remains is an empty file that the next one takes over. Elsewhere a file
        // cannot be removed while it is open.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_same_file(_file: &File, path: &Path) -> bool {
    path.exists()
}
