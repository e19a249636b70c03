//! The two logs of a run.

use std::path::Path;

use crate::TrainError;
use crate::report::journal::Journal;
use crate::report::tensorboard::EventWriter;

/// The file of the log as JSON Lines, in the output directory.
pub(crate) const LOG_FILE: &str = "log.jsonl";
/// The directory of TensorBoard's event files, in the output directory.
pub(crate) const EVENTS_DIRECTORY: &str = "runs";

/// Where a run writes what happens.
#[derive(Debug)]
pub(crate) struct RunLog {
    /// The log as JSON Lines.
    pub(crate) journal: Journal,
    /// The log for TensorBoard.
    pub(crate) events: EventWriter,
}

impl RunLog {
    /// The logs in `output`, as they were after optimizer step `step`; new ones at step 0.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(crate) fn open(output: &Path, step: u64) -> Result<Self, TrainError> {
        let (journal, events) = (output.join(LOG_FILE), output.join(EVENTS_DIRECTORY));
        Ok(match step {
            0 => Self {
                journal: Journal::create(&journal)?,
                events: EventWriter::create(&events)?,
            },
            _ => Self {
                journal: Journal::resume(&journal, step)?,
                events: EventWriter::resume(&events, step)?,
            },
        })
    }
}
