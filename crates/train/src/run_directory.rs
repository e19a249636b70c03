//! The output directory of a run, held by one process at a time.
//!
//! Nothing of the user's is replaced: a directory that holds anything but a run of ours is refused,
//! and so is a link where the run writes a file. What a run replaces, it replaces when all that it
//! reads is read and checked; until then the directory is as it was.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use epiphyte_io::FileError;
use epiphyte_methods::file;

use crate::TrainError;
use crate::lock::{Lock, check_output_directory};
use crate::report::account::ACCOUNT_FILE;
use crate::report::run_log::{EVENTS_DIRECTORY, LOG_FILE};
use crate::training::checkpoints::Checkpoints;

/// The file that the process which trains holds a lock on.
const LOCK_FILE: &str = ".epiphyte-lock";
/// The model card.
pub(crate) const CARD_FILE: &str = "README.md";

/// What to do with a directory that holds a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Refuse it.
    New,
    /// Go on with its newest checkpoint, if there is one.
    Resume,
    /// Begin anew and replace it.
    Overwrite,
}

/// An output directory that no other process trains in.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    /// Directories that were made for it, the innermost first; they go again if no run begins.
    made: Vec<PathBuf>,
    /// Held until the end.
    lock: Option<Lock>,
}

impl RunDirectory {
    /// Takes the directory `output` for a run, creating it where needed.
    ///
    /// # Errors
    /// [`TrainError::OutputNoDirectory`]; [`TrainError::OutputInUse`] if another process trains
    /// there; [`TrainError::OutputForeign`], [`TrainError::OutputLink`],
    /// [`TrainError::OutputTaken`] or [`TrainError::NothingToResume`] by what it holds.
    pub(crate) fn claim(output: &Path, start: Start) -> Result<Self, TrainError> {
        let (made, lock) = lock(output)?;
        let claimed = Self {
            made,
            lock: Some(lock),
        };
        Contents::of(output)?.check(output, start)?;
        Ok(claimed)
    }

    /// Keeps the directory from here on: a run has begun to write there.
    pub(crate) fn keep(&mut self) {
        self.made.clear();
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        self.lock.take();
        for directory in &self.made {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Makes the directory and locks it; returns which directories were made.
fn lock(output: &Path) -> Result<(Vec<PathBuf>, Lock), TrainError> {
    check_output_directory(output)?;
    loop {
        let missing = output.ancestors().filter(|it| !it.as_os_str().is_empty());
        let made: Vec<PathBuf> = missing
            .take_while(|directory| !directory.exists())
            .map(Path::to_owned)
            .collect();
        fs::create_dir_all(output).map_err(FileError::at("create", output))?;
        match Lock::take(&output.join(LOCK_FILE), output) {
            // Another process gave up and removed the directory that it had made.
            Err(TrainError::File(_)) if !output.exists() => {}
            taken => return Ok((made, taken?)),
        }
    }
}

/// Checks that a run could take the directory `output`, without making or taking it.
///
/// # Errors
/// As [`RunDirectory::claim`], but for another process that trains there.
pub(crate) fn check(output: &Path, start: Start) -> Result<(), TrainError> {
    check_output_directory(output)?;
    match output.exists() {
        true => Contents::of(output)?.check(output, start),
        false => Ok(()),
    }
}

/// Whether a directory is that of a run: a process trains in it, or it has the log, the adapter or
/// a checkpoint of one.
#[must_use]
pub fn holds_run(directory: &Path) -> bool {
    let contents = || Contents::of(directory).ok();
    directory.join(LOCK_FILE).exists() || contents().is_some_and(|it| it.is_run())
}

/// What an output directory holds.
struct Contents {
    /// The first visible entry by name.
    entry: Option<String>,
    /// A log that we wrote.
    log: bool,
    /// An adapter that we wrote.
    adapter: bool,
    /// Checkpoints that we wrote.
    checkpoints: bool,
    /// A link where a run has a file or a directory of its own.
    link: Option<&'static str>,
}

impl Contents {
    fn of(output: &Path) -> Result<Self, FileError> {
        let names = [
            LOG_FILE,
            EVENTS_DIRECTORY,
            CARD_FILE,
            ACCOUNT_FILE,
            file::CONFIG_FILE,
            file::TENSORS_FILE,
        ];
        Ok(Self {
            entry: first_entry(output)?,
            log: is_log(&output.join(LOG_FILE)),
            adapter: file::is_own(output),
            checkpoints: !Checkpoints::inspect(output).list()?.is_empty(),
            link: names
                .into_iter()
                .find(|name| output.join(name).is_symlink()),
        })
    }

    fn is_run(&self) -> bool {
        self.log || self.adapter || self.checkpoints
    }

    fn check(&self, output: &Path, start: Start) -> Result<(), TrainError> {
        let path = output.to_owned();
        match (&self.entry, self.link) {
            (None, _) => return Ok(()),
            (Some(entry), _) if !self.is_run() => {
                let entry = entry.clone();
                return Err(TrainError::OutputForeign { path, entry });
            }
            (_, Some(link)) => {
                let path = path.join(link);
                return Err(TrainError::OutputLink { path });
            }
            _ => {}
        }
        match start {
            // A run that ended before its first checkpoint left nothing but its log.
            Start::New if self.adapter || self.checkpoints => Err(TrainError::OutputTaken { path }),
            Start::New => Ok(()),
            Start::Resume if self.adapter && !self.checkpoints => {
                Err(TrainError::NothingToResume { path })
            }
            Start::Resume | Start::Overwrite => Ok(()),
        }
    }
}

/// The first visible entry of a directory by name.
fn first_entry(directory: &Path) -> Result<Option<String>, FileError> {
    let unreadable = |error| FileError::new("read", directory, error);
    let mut first: Option<String> = None;
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy().into_owned();
        if !name.starts_with('.') && first.as_ref().is_none_or(|first| name < *first) {
            first = Some(name);
        }
    }
    Ok(first)
}

/// Whether a log is ours: it is empty, as a run leaves it before the first record, or begins with a
/// record or a part of one.
fn is_log(path: &Path) -> bool {
    const RECORD: &[u8] = b"{\"event\":\"";
    let mut begins = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(RECORD.len() as u64).read_to_end(&mut begins));
    read.is_ok() && RECORD.starts_with(&begins)
}
