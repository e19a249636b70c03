//! The checkpoints of a run: directories `checkpoint-<step>` in its output directory, as
//! transformers names them.
//!
//! A directory of that name is complete: it got its name, by a rename, only after all of its files
//! were on the disk ([`write_directory`]). What a killed run left half-written has another name and
//! is removed by [`Checkpoints::open`].
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
//!     checkpoints.rotate(NonZeroUsize::MIN, Some(100))?;
//! }
//! // The newest one is kept, and the best one, here that of step 100.
//! let steps: Vec<u64> = checkpoints.list()?.iter().map(|checkpoint| checkpoint.step).collect();
//! assert_eq!(steps, [100, 300]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use epiphyte_io::{FileError, write_directory};

const PREFIX: &str = "checkpoint-";

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
        let unreadable = |error| FileError::new("read", &self.directory, error);
        let mut checkpoints = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if let Some(step) = step_of(&path).filter(|_| path.is_dir()) {
                checkpoints.push(Checkpoint { step, path });
            }
        }
        checkpoints.sort_by_key(|checkpoint| checkpoint.step);
        Ok(checkpoints)
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
    /// What `fill` returns, or [`FileError`]; the checkpoints there were are then unchanged.
    pub fn save<E: From<FileError>>(
        &self,
        step: u64,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Checkpoint, E> {
        let path = self.path(step);
        write_directory(&path, fill)?;
        Ok(Checkpoint { step, path })
    }

    /// Removes all checkpoints but the newest `keep` (`save_total_limit` of transformers) and that
    /// of step `best`, which is kept in addition. Returns those removed, oldest first.
    ///
    /// # Errors
    /// [`FileError`] if the directory cannot be read or a checkpoint not be removed.
    pub fn rotate(
        &self,
        keep: NonZeroUsize,
        best: Option<u64>,
    ) -> Result<Vec<Checkpoint>, FileError> {
        let mut old = self.list()?;
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
                epiphyte_io::write(&directory.join("step"), step.to_string().as_bytes())
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
            fs::read_to_string(latest.path.join("step")).unwrap(),
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
            let removed = checkpoints.rotate(NonZeroUsize::new(keep).unwrap(), best).unwrap();
            let kept: BTreeSet<u64> = saved.iter().rev().take(keep).copied().chain(best).collect();
            prop_assert_eq!(steps(&checkpoints.list().unwrap()), Vec::from_iter(kept.iter().copied()));
            let gone: Vec<u64> = saved.difference(&kept).copied().collect();
            prop_assert_eq!(steps(&removed), gone);
        }
    }
}
