//! The checkpoints of a run: directories `checkpoint-<step>` in its output directory, as
//! transformers names them.
//!
//! A directory of that name is complete: it got its name, by a rename, only after all of its files
//! were on the disk ([`write_directory`]). What a killed run left half-written has another name and
//! is removed by [`Checkpoints::open`].
//!
//! Other programs use such names too. A directory is one of ours if it holds our [`FILES`] and
//! nothing else; others are never listed, replaced or removed.
//!
//! ```
//! use std::num::NonZeroUsize;
//! use epiphyte_io::FileError;
//! use epiphyte_train::training::checkpoints::Checkpoints;
//!
//! let output = tempfile::tempdir()?;
//! let checkpoints = Checkpoints::open(output.path())?;
//! for step in [100, 200, 300] {
//!     checkpoints.save(step, |directory| -> Result<(), FileError> {
//!         epiphyte_io::write(&directory.join("trainer_state.json"), b"{}")
//!     })?;
//!     checkpoints.rotate(step, NonZeroUsize::MIN, Some(100))?;
//! }
//! // The newest one is kept, and the best one, here that of step 100.
//! let steps: Vec<u64> = checkpoints.list()?.iter().map(|checkpoint| checkpoint.step).collect();
//! assert_eq!(steps, [100, 300]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use epiphyte_io::{FileError, write_directory};

const PREFIX: &str = "checkpoint-";

/// Where a run stands.
pub const STATE_FILE: &str = "trainer_state.json";
/// The trained tensors and the optimizer's state.
pub const TENSORS_FILE: &str = "training_state.safetensors";
/// The files of a checkpoint of ours.
pub const FILES: [&str; 2] = [STATE_FILE, TENSORS_FILE];

/// The output directory of a run, seen as its checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    directory: PathBuf,
}

/// One complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The optimizer steps that were done when it was saved.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
}

impl Checkpoint {
    /// Whether this program wrote it: a directory, no link, with [`FILES`] and nothing else.
    fn is_ours(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return false;
        };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        let ours = |name: &std::ffi::OsString| FILES.iter().any(|file| name == file);
        !self.path.is_symlink() && !names.is_empty() && names.iter().all(ours)
    }
}

impl Checkpoints {
    /// Opens the output directory of a run, creating it where needed, and clears it of what a
    /// killed run left half-written. Only the process that trains there may open it; to look into
    /// the directory of a run that may be alive, use [`Checkpoints::inspect`].
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be created, read or cleared.
    pub fn open(directory: &Path) -> Result<Self, FileError> {
        fs::create_dir_all(directory).map_err(FileError::at("create", directory))?;
        epiphyte_io::clean_up(directory)?;
        Ok(Self::inspect(directory))
    }

    /// Looks at an output directory without changing it.
    #[must_use]
    pub fn inspect(directory: &Path) -> Self {
        Self {
            directory: directory.to_path_buf(),
        }
    }

    /// Where the checkpoint of `step` is, or would be.
    #[must_use]
    pub fn path(&self, step: u64) -> PathBuf {
        self.directory.join(format!("{PREFIX}{step}"))
    }

    /// The complete checkpoints, oldest step first.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Checkpoint>, FileError> {
        let (ours, _) = self.named()?;
        Ok(ours)
    }

    /// What has the name of a checkpoint and is none of ours, lowest step first.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read.
    pub fn foreign(&self) -> Result<Vec<Checkpoint>, FileError> {
        let (_, foreign) = self.named()?;
        Ok(foreign)
    }

    /// What has the name of a checkpoint: ours, and the rest.
    fn named(&self) -> Result<(Vec<Checkpoint>, Vec<Checkpoint>), FileError> {
        let unreadable = |error| FileError::new("read", &self.directory, error);
        let mut named = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            named.extend(step_of(&path).map(|step| Checkpoint { step, path }));
        }
        named.sort_by_key(|checkpoint| checkpoint.step);
        Ok(named.into_iter().partition(Checkpoint::is_ours))
    }

    /// The complete checkpoint with the highest step, from which a run is resumed.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read.
    pub fn latest(&self) -> Result<Option<Checkpoint>, FileError> {
        Ok(self.list()?.pop())
    }

    /// Saves the checkpoint of `step`: `fill` writes its files into an empty directory, which gets
    /// its name when all of them are on the disk. A checkpoint of the same step is replaced.
    ///
    /// # Errors
    /// What `fill` returns, or [`FileError`], also if what has the checkpoint's name is none of
    /// ours; the checkpoints there were are then unchanged.
    pub fn save<E: From<FileError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        let checkpoint = Checkpoint {
            step,
            path: self.path(step),
        };
        let path = &checkpoint.path;
        if path.symlink_metadata().is_ok() && !checkpoint.is_ours() {
            let taken = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(FileError::new("replace", path, taken).into());
        }
        write_directory(path, fill)?;
        Ok(checkpoint)
    }

    /// Removes every checkpoint.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read or a checkpoint not be removed.
    pub fn clear(&self) -> Result<(), FileError> {
        let mut all = self.list()?.into_iter();
        all.try_for_each(|checkpoint| epiphyte_io::remove_directory(&checkpoint.path))
    }

    /// Removes the checkpoints up to step `newest` but the newest `keep` of them
    /// (`save_total_limit` of transformers) and that of step `best`, which is kept in addition.
    /// Returns those removed, oldest first.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read or a checkpoint not be removed.
    pub fn rotate(
        &self,
        newest: u64,
        keep: NonZeroUsize,
        best: Option<u64>,
    ) -> Result<Vec<Checkpoint>, FileError> {
        let mut old = self.list()?;
        old.retain(|checkpoint| checkpoint.step <= newest);
        old.truncate(old.len().saturating_sub(keep.get()));
        old.retain(|checkpoint| Some(checkpoint.step) != best);
        for checkpoint in &old {
            epiphyte_io::remove_directory(&checkpoint.path)?;
        }
        Ok(old)
    }
}

/// The step in a name exactly as [`Checkpoints::path`] builds it: no sign, no leading zero.
fn step_of(path: &Path) -> Option<u64> {
    let digits = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let step: u64 = digits.parse().ok()?;
    (step.to_string() == digits).then_some(step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn steps(checkpoints: &[Checkpoint]) -> Vec<u64> {
        checkpoints
            .iter()
            .map(|checkpoint| checkpoint.step)
            .collect()
    }

    fn save(checkpoints: &Checkpoints, step: u64) {
        checkpoints
            .save(step, |directory| {
                epiphyte_io::write(&directory.join(STATE_FILE), step.to_string().as_bytes())
            })
            .unwrap();
    }

    #[test]
    fn only_complete_checkpoints_are_listed_in_the_order_of_their_steps() {
        let output = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(output.path()).unwrap();
        for step in [1000, 20, 3] {
            save(&checkpoints, step);
        }
        for name in [
            "checkpoint-04",
            "checkpoint-+5",
            "checkpoint-",
            "checkpoint-6.tmp",
            "runs",
        ] {
            fs::create_dir(output.path().join(name)).unwrap();
        }
        fs::write(output.path().join("checkpoint-7"), b"a file").unwrap();
        assert_eq!(steps(&checkpoints.list().unwrap()), [3, 20, 1000]);
        let latest = checkpoints.latest().unwrap().unwrap();
        assert_eq!(
            fs::read_to_string(latest.path.join(STATE_FILE)).unwrap(),
            "1000"
        );
    }

    #[test]
    fn a_save_that_fails_adds_nothing() {
        let output = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(output.path()).unwrap();
        save(&checkpoints, 1);
        let full =
            |path: &Path| FileError::new("write", path, std::io::ErrorKind::StorageFull.into());
        assert!(
            checkpoints
                .save(2, |directory| Err::<(), _>(full(directory)))
                .is_err()
        );
        assert_eq!(steps(&checkpoints.list().unwrap()), [1]);
        assert_eq!(fs::read_dir(output.path()).unwrap().count(), 1);
    }

    #[test]
    fn opening_creates_and_clears_and_inspecting_does_neither() {
        let parent = tempfile::tempdir().unwrap();
        let output = parent.path().join("a/b");
        assert!(Checkpoints::inspect(&output).list().is_err());
        Checkpoints::open(&output).unwrap();
        let left_over = output.join(".epiphyte-tmp-checkpoint-9-x");
        fs::create_dir(&left_over).unwrap();
        assert_eq!(Checkpoints::inspect(&output).latest().unwrap(), None);
        assert!(left_over.exists());
        assert_eq!(Checkpoints::open(&output).unwrap().latest().unwrap(), None);
        assert!(!left_over.exists());
    }

    #[test]
    fn what_others_named_like_a_checkpoint_is_left_alone() {
        let output = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(output.path()).unwrap();
        save(&checkpoints, 3);
        // One of transformers, an empty one, one of ours with a file of the user's, a link, a file.
        let at = |step: u64| checkpoints.path(step);
        for (step, name) in [(2, "optimizer.pt"), (2, STATE_FILE), (5, "notes.md")] {
            fs::create_dir_all(at(step)).unwrap();
            fs::write(at(step).join(name), b"the user's").unwrap();
        }
        fs::create_dir(at(4)).unwrap();
        fs::write(at(6), b"a file").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(at(3), at(7)).unwrap();
        #[cfg(not(unix))]
        fs::create_dir(at(7)).unwrap();

        assert_eq!(steps(&checkpoints.list().unwrap()), [3]);
        assert_eq!(steps(&checkpoints.foreign().unwrap()), [2, 4, 5, 6, 7]);
        for step in [2, 4, 5, 6, 7] {
            let fill = |directory: &Path| epiphyte_io::write(&directory.join(STATE_FILE), b"{}");
            let error = checkpoints.save(step, fill).unwrap_err();
            assert!(
                error.to_string().contains(&format!("checkpoint-{step}")),
                "{error}"
            );
        }
        save(&checkpoints, 9);
        checkpoints.rotate(9, NonZeroUsize::MIN, None).unwrap();
        assert_eq!(steps(&checkpoints.list().unwrap()), [9]);
        checkpoints.clear().unwrap();
        assert_eq!(steps(&checkpoints.list().unwrap()), [0; 0]);
        assert_eq!(steps(&checkpoints.foreign().unwrap()), [2, 4, 5, 6, 7]);
        assert_eq!(fs::read(at(2).join("optimizer.pt")).unwrap(), b"the user's");
    }

    /// A run that goes on from an earlier checkpoint, since a later one is damaged.
    #[test]
    fn a_checkpoint_that_was_just_saved_is_never_removed() {
        let output = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::open(output.path()).unwrap();
        for step in [10, 20, 12] {
            save(&checkpoints, step);
        }
        checkpoints.rotate(12, NonZeroUsize::MIN, None).unwrap();
        assert_eq!(steps(&checkpoints.list().unwrap()), [12, 20]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn rotation_keeps_the_newest_and_the_best(
            saved in prop::collection::btree_set(0_u64..1000, 0..8),
            keep in 1_usize..4,
            best in 0_usize..8,
        ) {
            let output = tempfile::tempdir().unwrap();
            let checkpoints = Checkpoints::open(output.path()).unwrap();
            saved.iter().for_each(|&step| save(&checkpoints, step));
            let best = saved.iter().nth(best).copied();
            let removed = checkpoints.rotate(1000, NonZeroUsize::new(keep).unwrap(), best).unwrap();
            let kept: BTreeSet<u64> = saved.iter().rev().take(keep).copied().chain(best).collect();
            prop_assert_eq!(steps(&checkpoints.list().unwrap()), Vec::from_iter(kept.iter().copied()));
            let gone: Vec<u64> = saved.difference(&kept).copied().collect();
            prop_assert_eq!(steps(&removed), gone);
        }
    }
}
