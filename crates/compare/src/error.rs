//! What can go wrong with a comparison.

use std::path::PathBuf;

use epiphyte_io::FileError;
use epiphyte_train::TrainError;
use thiserror::Error;

/// A comparison cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CompareError {
    /// The suite's file is wrong.
    #[error("suite `{name}`: {problem}")]
    Suite {
        /// The suite.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// The output directory has a run of other settings.
    #[error(
        "`{}` holds a run with other settings: {difference}; pass --overwrite to run it again, or choose another \
         --output",
        path.display()
    )]
    OtherSettings {
        /// The run's directory.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// A result cannot be read.
    #[error("`{}` is damaged: {reason}; remove it, and the run is made again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Runs of one model and task did not read the same.
    #[error(
        "the runs of `{}` and `{}` are of one model and task, but read other data or another base: merge \
         the shards of one comparison",
        one.display(),
        other.display()
    )]
    OtherInputs {
        /// A result.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// Directories whose results are to be merged hold different ones for a run.
    #[error(
        "`{}` and `{}` have different results of one run: merge the shards of one comparison",
        one.display(),
        other.display()
    )]
    Conflict {
        /// A result.
        one: PathBuf,
        /// The other.
        other: PathBuf,
    },
    /// A directory that is to be merged has results of something else.
    #[error(
        "`{}` holds {found}, and nothing of the suite `{suite}`: give the output directories of its shards",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// A result that it has.
        found: String,
        /// The suite.
        suite: String,
    },
    /// What was merged has no results of some runs.
    #[error(
        "the directories that were merged have no results of {}: merge those of the missing shards too, or run the \
         same command without --merge, which makes the runs that are missing",
        methods.join(", ")
    )]
    Missing {
        /// The methods, with the tasks where not all are missing.
        methods: Vec<String>,
    },
    /// The data of a task are not as its runs need them.
    #[error("task `{task}` on model `{model}`: {problem}")]
    Task {
        /// The task.
        task: String,
        /// The model.
        model: String,
        /// What is wrong.
        problem: String,
    },
    /// A file is no published result.
    #[error(
        "`{}` is no result of HF PEFT's method_comparison: {reason}; give one of its `results/*.json`",
        path.display()
    )]
    Published {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A directory has no results.
    #[error("`{}` holds no {what}: give {give}", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What to give instead.
        give: &'static str,
    },
    /// A run cannot begin for a reason that concerns all of them.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}
