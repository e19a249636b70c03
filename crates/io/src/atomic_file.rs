//! Files that appear whole or not at all.
//!
//! A run that is killed while saving must leave the previous file as it was. So the bytes go to a
//! temporary file in the same directory, are forced to the disk, and one rename puts them in place;
//! POSIX rename is atomic, so a reader sees the old file or the new one. The temporary name is
//! always the same: what a killed process leaves behind is overwritten by the next save.
//!
//! Inside a directory of ours a link is replaced by the file, so that nothing is written through
//! it; a file that the user names is written where its path leads ([`write_output`]).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::Builder;

use crate::FileError;
use crate::paths::{parent, resolve};

/// Prefix of the names of unfinished files and directories.
pub const TEMPORARY: &str = ".epiphyte-tmp-";

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
    PendingFile::write(path, write)?.put_in_place()
}

/// A file that is written and on the disk, but does not have its name yet.
///
/// Files that belong together are all written first and then put in place one after the other, so
/// that only a kill between two renames leaves one old and one new. Dropped, it is removed.
#[derive(Debug)]
pub struct PendingFile {
    path: PathBuf,
    temporary: Option<PathBuf>,
}

impl PendingFile {
    /// Writes the file that is to stand at `path` through `write`.
    ///
    /// # Errors
    /// As [`write_atomically`].
    pub fn write(
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Self, FileError> {
        let temporary = temporary_path(path).map_err(FileError::at("write", path))?;
        let pending = Self {
            path: path.to_owned(),
            temporary: Some(temporary.clone()),
        };
        let attempt = || {
            // What a killed process left behind may be a link by now: it is not followed.
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = BufWriter::with_capacity(1 << 20, File::create_new(&temporary)?);
            write(&mut file)?;
            file.into_inner()?.sync_all()
        };
        attempt().map_err(FileError::at("write", path))?;
        Ok(pending)
    }

    /// Gives the file its name, in place of what has it now.
    ///
    /// # Errors
    /// [`FileError`], naming the path; the old file is then untouched.
    pub fn put_in_place(mut self) -> Result<(), FileError> {
        let attempt = || {
            if let Some(temporary) = &self.temporary {
                fs::rename(temporary, &self.path)?;
            }
            sync_directory(parent(&self.path))
        };
        attempt().map_err(FileError::at("write", &self.path))?;
        self.temporary = None;
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Best effort: the first error is the one worth reporting.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// [`write_atomically`] for contents that are in memory.
///
/// # Errors
/// [`FileError`], naming `path`; the old file is then unchanged and nothing temporary is left.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), FileError> {
    write_atomically(path, |file| file.write_all(contents))
}

/// Writes the file that a user named as an output: what the path leads to is written, never the
/// name alone.
///
/// A regular file is replaced as by [`write()`]; where the path is a link, the file that it leads
/// to is replaced and the link stays. Pipes and character devices such as `/dev/null` are written
/// to as they are.
///
/// # Errors
/// [`FileError`], naming `path`; also if it is a directory, a disk or a socket, or if a file is
/// there and `overwrite` is false.
pub fn write_output(path: &Path, contents: &[u8], overwrite: bool) -> Result<(), FileError> {
    let attempt = || match output_kind(path)? {
        OutputKind::File => Ok(Some(resolve(path)?)),
        OutputKind::Stream => {
            let mut stream = File::options().append(true).open(path)?;
            stream.write_all(contents).map(|()| None)
        }
    };
    match attempt().map_err(FileError::at("write", path))? {
        Some(file) => put_output(&file, contents, overwrite).map_err(FileError::at("write", path)),
        None => Ok(()),
    }
}

/// Writes a regular file whole, under a temporary name of its own, so that several processes may do
/// so at once.
fn put_output(path: &Path, contents: &[u8], overwrite: bool) -> io::Result<()> {
    let directory = parent(path);
    let mut file = temporary(TEMPORARY, 0o666).tempfile_in(directory)?;
    file.write_all(contents)?;
    file.as_file().sync_all()?;
    match overwrite {
        true => file.persist(path),
        false => file.persist_noclobber(path),
    }
    .map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Makes temporary files and directories whose names begin so, with the permissions, on Unix, that
/// any other would get, where `tempfile` alone would keep them to their owner.
pub(crate) fn temporary(prefix: &str, mode: u32) -> Builder<'_, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// How an output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// A regular file, which is replaced, or nothing yet.
    File,
    /// A pipe or a device, which takes the bytes in order.
    Stream,
}

/// How [`write_output`] writes to `path`.
///
/// # Errors
/// If it is a directory, a disk or a socket, or cannot be looked at.
pub fn output_kind(path: &Path) -> io::Result<OutputKind> {
    let file_type = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(OutputKind::File),
        Err(error) => return Err(error),
    };
    if file_type.is_file() {
        // An open file of the process, such as `/dev/stdout`, is written on, not replaced.
        return Ok(match is_descriptor(path) {
            true => OutputKind::Stream,
            false => OutputKind::File,
        });
    }
    match is_stream(file_type) {
        true => Ok(OutputKind::Stream),
        false if file_type.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a pipe",
        )),
    }
}

/// Whether a path is that of an open file of this process.
fn is_descriptor(path: &Path) -> bool {
    let named = ["/dev/stdout", "/dev/stderr"].map(Path::new);
    let directories = ["/dev/fd", "/proc/self/fd"].map(Path::new);
    let is_in = |directory: &&Path| path.parent() == Some(directory);
    named.contains(&path) || directories.iter().any(is_in)
}

#[cfg(unix)]
fn is_stream(file_type: fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    file_type.is_fifo() || file_type.is_char_device()
}

#[cfg(not(unix))]
fn is_stream(_: fs::FileType) -> bool {
    false
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
    fn files_that_belong_together_are_put_in_place_once_all_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["tensors", "config"].map(|name| dir.path().join(name));
        for path in &paths {
            write(path, b"old").unwrap();
        }
        let both = |text: &'static [u8], whole: bool| {
            let first = PendingFile::write(&paths[0], |file| file.write_all(text))?;
            let second = PendingFile::write(&paths[1], |file| match whole {
                true => file.write_all(text),
                false => Err(io::Error::from(io::ErrorKind::StorageFull)),
            })?;
            first.put_in_place()?;
            second.put_in_place()
        };
        assert!(both(b"new", false).is_err());
        let read = || paths.each_ref().map(|path| fs::read(path).unwrap());
        assert_eq!(read(), [b"old", b"old"]);
        both(b"new", true).unwrap();
        assert_eq!(read(), [b"new", b"new"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
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

    #[cfg(unix)]
    #[test]
    fn links_are_replaced_inside_a_directory_and_followed_for_an_output() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), b"old").unwrap();
        symlink("file", at("link")).unwrap();
        symlink("absent", at("dangling")).unwrap();

        let error = write_output(&at("link"), b"new", false).unwrap_err();
        assert!(error.to_string().contains("link"), "{error}");
        write_output(&at("link"), b"new", true).unwrap();
        write_output(&at("dangling"), b"made", false).unwrap();
        assert!(at("link").is_symlink() && at("dangling").is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        assert_eq!(fs::read(at("absent")).unwrap(), b"made");

        write(&at("link"), b"own").unwrap();
        assert!(!at("link").is_symlink());
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
        // A link in the temporary file's place is not followed.
        symlink("file", at(".epiphyte-tmp-link")).unwrap();
        write(&at("link"), b"again").unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"new");
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_directories_refused() {
        use std::os::unix::fs::FileTypeExt;
        let null = Path::new("/dev/null");
        assert_eq!(output_kind(null).unwrap(), OutputKind::Stream);
        write_output(null, b"gone", false).unwrap();
        assert!(fs::metadata(null).unwrap().file_type().is_char_device());
        let dir = tempfile::tempdir().unwrap();
        assert!(write_output(dir.path(), b"", true).is_err());
        assert!(dir.path().is_dir());
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
