//! How a failed command ends: the error with its causes, what may help, and an exit code.

use std::io;
use std::process::ExitCode;

use epiphyte::train::TrainError;

use crate::hub::NoModel;
use crate::output::note;

/// The exit code of a process that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// The command line or the configuration file asks for something that there is not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// A value does not fit its flag or key.
    #[error("{place}: {problem}")]
    Value {
        /// Flag or key.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// A flag or key of another method.
    #[error("{place} is of {owners}; the method is {method}")]
    OtherMethod {
        /// Flag or key.
        place: String,
        /// The methods that have it.
        owners: String,
        /// The method of this run.
        method: String,
    },
    /// A key that nobody knows.
    #[error("{place}: there is no such key; `epiphyte train --help` lists all of them as flags")]
    UnknownKey {
        /// The key with its file.
        place: String,
    },
    /// A device that there is not.
    #[error("no device is called `{name}`; this build has {available}")]
    Device {
        /// As asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// A GPU backend that was left out when the program was built.
    #[error("--device {name}: this build has {available}; build it with `--features {feature}`")]
    NoBackend {
        /// As asked for.
        name: String,
        /// What there is.
        available: String,
        /// The feature that brings it.
        feature: String,
    },
    /// A GPU that this machine does not have.
    #[error(
        "--device {name}: {backend} finds {count} devices on this machine; install the GPU's driver, or pass \
         --device cpu"
    )]
    NoDevice {
        /// As asked for.
        name: String,
        /// The backend that looked.
        backend: &'static str,
        /// How many it found.
        count: usize,
    },
    /// Anything else that the user has to say differently.
    #[error("{0}")]
    Other(String),
}

/// Prints the error and returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors repeat their source's words within their own.
        if text.contains(&cause) {
            continue;
        }
        text += if text.is_empty() { "" } else { ": " };
        text += &cause;
    }
    note(&format!("error: {text}"));
    if let Some(hint) = hint(error) {
        note(&format!("hint: {hint}"));
    }
    ExitCode::from(if is_usage(error) { 2 } else { 1 })
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<UsageError>() || matches!(error.downcast_ref(), Some(TrainError::Config(_)))
}

fn hint(error: &anyhow::Error) -> Option<String> {
    use epiphyte::data::DataError;
    use epiphyte::methods::MethodError;
    if let Some(error) = error.downcast_ref::<NoModel>() {
        return Some(error.hint());
    }
    let is_full = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    if error
        .chain()
        .filter_map(|cause| cause.downcast_ref())
        .any(is_full)
    {
        return Some("free some space, then go on with the same command and --resume".to_owned());
    }
    let hint = match error.downcast_ref::<TrainError>()? {
        TrainError::Data(DataError::MissingColumn { .. }) => {
            "name the columns with --text-columns and --label-column; --no-header for files without names"
        }
        TrainError::Data(DataError::RaggedRow { .. } | DataError::UnclosedQuote { .. }) => {
            "--quoting true or false says whether \" quotes fields"
        }
        TrainError::Method(MethodError::NoTarget { .. }) => {
            "`epiphyte inspect MODEL` lists the linear maps; --target-modules all-linear takes every one"
        }
        TrainError::Method(MethodError::UnknownMethod { .. }) => {
            "`epiphyte methods` describes them"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}
