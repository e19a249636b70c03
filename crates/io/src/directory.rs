//! Directories that appear whole or not at all, as single files do with [`write`](crate::write()),
//! so that a kill, a crash or a full disk never leaves half a checkpoint.
//!
//! New content goes to a temporary directory with the same parent, is forced to the disk, and is
//! then renamed. A directory cannot be renamed over a directory that has content, so
//! [`write_directory`] first moves the old one aside; [`clean_up`] undoes or finishes that if the
//! process dies between the two renames.
//!
//! Everything temporary has a name that begins with `.epiphyte-`, so cleaning up never touches a
//! file of the user's.
//!
//! ```
//! use epiphyte_io::{write, write_directory};
//!
//! let output = tempfile::tempdir()?;
//! let path = output.path().join("checkpoint-1");
//! write_directory(&path, |directory| {
//!     write(&directory.join("trainer_state.json"), b"{}")
//! })?;
//! assert_eq!(std::fs::read(path.join("trainer_state.json"))?, b"{}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::FileError;
use crate::atomic_file::{TEMPORARY, sync_directory, temporary};
use crate::paths::parent;

/// Begins the name of a directory that is being replaced: [`clean_up`] restores it if its successor
/// is not in place.
const REPLACED: &str = ".epiphyte-old-";

/// Replaces the directory `path` by one that `fill` writes its files into.
///
/// `fill` gets an empty temporary directory next to `path`, whose parent must exist. The old
/// directory stays until the new one is complete and on the disk. If the process dies between
/// moving the old one aside and the new one in, [`clean_up`] puts the old one back.
///
/// # Errors
/// What `fill` returns, or a [`FileError`] naming `path`; the old directory is then in its place
/// and nothing temporary is left.
pub fn write_directory<E: From<FileError>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |error: io::Error| FileError::new("write", path, error);
    let (parent, name) = parent_and_name(path).map_err(failed)?;
    let temporary = temporary_directory(parent, name).map_err(failed)?;
    fill(temporary.path())?;
    sync_contents(temporary.path()).map_err(failed)?;
    let replaced = parent.join(format!("{REPLACED}{name}"));
    move_into_place(temporary, path, &replaced).map_err(failed)?;
    if replaced.exists() {
        remove_directory(&replaced)?;
    }
    Ok(())
}

/// Deletes the directory `path` in a way that never leaves a part of it under its name.
///
/// # Errors
/// [`FileError`], naming `path`.
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    let attempt = || {
        let (parent, name) = parent_and_name(path)?;
        let doomed = temporary_directory(parent, name)?;
        fs::rename(path, doomed.path().join(name))?;
        sync_directory(parent)?;
        doomed.close()
    };
    attempt().map_err(FileError::at("remove", path))
}

/// Clears `directory` of what a killed run left behind: half-written files and directories go, and
/// a directory whose replacement never arrived is put back. Call it before a run begins to write
/// there, and never while another process does.
///
/// # Errors
/// [`FileError`], naming what could not be read, removed or put back.
pub fn clean_up(directory: &Path) -> Result<(), FileError> {
    let unreadable = |error| FileError::new("read", directory, error);
    let entries = fs::read_dir(directory).map_err(unreadable)?;
    // All names first, since the loop changes the directory.
    let entries: io::Result<Vec<_>> = entries.collect();
    for entry in entries.map_err(unreadable)? {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        if let Some(original) = name.strip_prefix(REPLACED) {
            let original = directory.join(original);
            if original.exists() {
                remove_directory(&path)?;
            } else {
                fs::rename(&path, &original).map_err(FileError::at("restore", &original))?;
            }
        } else if name.starts_with(TEMPORARY) {
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(FileError::at("remove", &path))?;
        }
    }
    sync_directory(directory).map_err(FileError::at("write", directory))
}

/// Removes what a killed [`write_directory`] of `path` left next to it. Call it never while another
/// process writes `path`.
///
/// # Errors
/// [`FileError`], naming what could not be read or removed.
pub fn clean_up_next_to(path: &Path) -> Result<(), FileError> {
    let Ok((parent, name)) = parent_and_name(path) else {
        // No directory of this name was ever begun.
        return Ok(());
    };
    let begins = left_behind(name);
    for entry in fs::read_dir(parent).map_err(FileError::at("read", parent))? {
        let path = entry.map_err(FileError::at("read", parent))?.path();
        let entry = path.file_name().unwrap_or_default().to_string_lossy();
        // `tempfile` ends a name with six characters of chance.
        let chance = entry.strip_prefix(begins.as_str());
        if chance.is_some_and(|chance| chance.len() == 6) && path.is_dir() {
            fs::remove_dir_all(&path).map_err(FileError::at("remove", &path))?;
        }
    }
    Ok(())
}

/// Moves `temporary` to `path`; a directory that stands there is moved to `replaced` first.
fn move_into_place(temporary: TempDir, path: &Path, replaced: &Path) -> io::Result<()> {
    let replaces = path.exists();
    if replaces {
        fs::rename(path, replaced)?;
    }
    if let Err(error) = fs::rename(temporary.path(), path) {
        if replaces {
            fs::rename(replaced, path)?;
        }
        return Err(error);
    }
    // The name that dropping `temporary` would remove is gone.
    let _ = temporary.keep();
    let (parent, _) = parent_and_name(path)?;
    sync_directory(parent)
}

/// A temporary directory for what will be called `name`.
fn temporary_directory(parent: &Path, name: &str) -> io::Result<TempDir> {
    temporary(&left_behind(name), 0o777).tempdir_in(parent)
}

/// Begins the names of temporary directories for what will be called `name`.
fn left_behind(name: &str) -> String {
    format!("{TEMPORARY}{name}-")
}

/// The directory that holds `path` and the name in it.
fn parent_and_name(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidFilename,
            "the path does not end in a name of valid UTF-8",
        )
    })?;
    Ok((parent(path), name))
}

/// Forces every file and directory below and including `directory` to the disk.
fn sync_contents(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            sync_contents(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    sync_directory(directory)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::write;

    /// Names in `directory`, hidden ones included, sorted.
    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn fill_with(contents: &str) -> impl FnOnce(&Path) -> Result<(), FileError> {
        move |directory| write(&directory.join("state.json"), contents.as_bytes())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_systems_own_report_of_a_full_disk_is_recognised() {
        let error = fs::write("/dev/full", b"anything").unwrap_err();
        let error = FileError::new("write", Path::new("adapter_model.safetensors"), error);
        assert!(matches!(error, FileError::StorageFull { .. }), "{error:?}");
        assert!(error.to_string().contains("adapter_model.safetensors"));
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing/state.json");
        let error = write(&path, b"new").unwrap_err();
        assert!(
            matches!(&error, FileError::Io { action: "write", path: named, .. } if *named == path)
        );
        assert!(matches!(
            write(Path::new("/"), b""),
            Err(FileError::Io { .. })
        ));
    }

    #[cfg(unix)]
    #[test]
    fn files_and_directories_get_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("plain"), b"").unwrap();
        write(&at("atomic"), b"").unwrap();
        assert_eq!(mode(&at("atomic")), mode(&at("plain")));
        fs::create_dir(at("plain-directory")).unwrap();
        write_directory(&at("atomic-directory"), |_| Ok::<(), FileError>(())).unwrap();
        assert_eq!(mode(&at("atomic-directory")), mode(&at("plain-directory")));
    }

    #[test]
    fn a_directory_appears_whole_replaces_and_survives_a_failure() {
        let output = tempfile::tempdir().unwrap();
        let path = output.path().join("checkpoint-1");
        let state = || fs::read_to_string(path.join("state.json")).unwrap();
        write_directory(&path, fill_with("first")).unwrap();
        assert_eq!(state(), "first");
        write_directory(&path, fill_with("second")).unwrap();
        assert_eq!(state(), "second");
        let error = write_directory(&path, |directory| {
            fill_with("third")(directory)?;
            Err(FileError::new(
                "write",
                &directory.join("optimizer"),
                io::ErrorKind::StorageFull.into(),
            ))
        });
        assert!(matches!(error, Err(FileError::StorageFull { .. })));
        assert_eq!(state(), "second");
        assert_eq!(names(output.path()), ["checkpoint-1"]);
    }

    #[test]
    fn a_kill_at_any_moment_leaves_the_old_directory_or_the_new_one() {
        // The states on the disk between two steps of `write_directory`, replacing "old" by "new".
        let temporary = format!("{TEMPORARY}checkpoint-1-abc");
        let replaced = format!("{REPLACED}checkpoint-1");
        for (before, expected) in [
            (vec![("checkpoint-1", "old"), (&temporary, "ne")], "old"),
            (vec![(&replaced, "old"), (&temporary, "new")], "old"),
            (vec![(&replaced, "old"), ("checkpoint-1", "new")], "new"),
            (vec![("checkpoint-1", "new")], "new"),
        ] {
            let output = tempfile::tempdir().unwrap();
            for (name, contents) in before {
                fs::create_dir(output.path().join(name)).unwrap();
                fill_with(contents)(&output.path().join(name)).unwrap();
            }
            clean_up(output.path()).unwrap();
            assert_eq!(names(output.path()), ["checkpoint-1"]);
            let state = fs::read_to_string(output.path().join("checkpoint-1/state.json")).unwrap();
            assert_eq!(state, expected);
        }
    }

    #[test]
    fn cleaning_up_leaves_the_users_files_alone() {
        let output = tempfile::tempdir().unwrap();
        for name in ["notes.tmp", ".hidden", "checkpoint-1.tmp"] {
            fs::write(output.path().join(name), b"").unwrap();
        }
        fs::write(
            output.path().join(format!("{TEMPORARY}state.json-x1")),
            b"half",
        )
        .unwrap();
        clean_up(output.path()).unwrap();
        assert_eq!(
            names(output.path()),
            [".hidden", "checkpoint-1.tmp", "notes.tmp"]
        );
    }

    #[test]
    fn a_removed_directory_is_gone_and_a_missing_one_is_named() {
        let output = tempfile::tempdir().unwrap();
        let path = output.path().join("checkpoint-1");
        write_directory(&path, fill_with("state")).unwrap();
        remove_directory(&path).unwrap();
        assert!(names(output.path()).is_empty());
        assert!(matches!(
            remove_directory(&path),
            Err(FileError::Io { action: "remove", path: named, .. }) if named == path
        ));
        assert!(names(output.path()).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_written_is_read(contents in prop::collection::vec(any::<Vec<u8>>(), 1..4)) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            for contents in contents {
                write(&path, &contents).unwrap();
                prop_assert_eq!(fs::read(&path).unwrap(), contents);
            }
            prop_assert_eq!(names(directory.path()), ["file"]);
        }
    }
}
