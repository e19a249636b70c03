//! How a failed command ends: the error with its causes, what may help, and an exit code.

use std::io;
use std::process::ExitCode;

use epiphyte::data::DataError;
use epiphyte::hub::HubError;
use epiphyte::methods::MethodError;
use epiphyte::train::TrainError;

use crate::output::note;

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
    #[error(
        "{place}: there is no such key; {}",
        similar.as_ref().map_or_else(
            || "`epiphyte train --help` lists all of them as flags".to_owned(),
            |similar| format!("did you mean `{similar}`?"),
        )
    )]
    UnknownKey {
        /// The key with its file.
        place: String,
        /// The one that may be meant.
        similar: Option<String>,
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

/// Prints the error and returns the exit code; `resumable` if the command takes `--resume`.
pub(crate) fn report(error: &anyhow::Error, resumable: bool) -> ExitCode {
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
    if let Some(hint) = hint(error, resumable) {
        note(&format!("hint: {hint}"));
    }
    ExitCode::from(if is_usage(error) { 2 } else { 1 })
}

fn is_usage(error: &anyhow::Error) -> bool {
    let is_setting = matches!(
        error.downcast_ref(),
        Some(TrainError::Config(_) | TrainError::Setting { .. })
    );
    let is_method = matches!(method(error), Some(MethodError::UnknownMethod { .. }));
    error.is::<UsageError>() || is_setting || is_method
}

/// What is wrong with the method or an adapter, if it is that.
fn method(error: &anyhow::Error) -> Option<&MethodError> {
    match error.downcast_ref() {
        Some(TrainError::Method(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// What is wrong with data, if it is that.
fn data(error: &anyhow::Error) -> Option<&DataError> {
    match error.downcast_ref() {
        Some(TrainError::Data(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

fn hint(error: &anyhow::Error, resumable: bool) -> Option<String> {
    if let Some(error) = error.downcast_ref::<HubError>() {
        return Some(error.hint());
    }
    let hint = match (method(error), data(error)) {
        (Some(MethodError::NoTarget { .. }), _) => {
            "`epiphyte inspect MODEL` lists the linear maps; --target-modules all-linear takes every one"
        }
        (Some(MethodError::UnknownMethod { .. }), _) => "`epiphyte methods` describes them",
        (_, Some(DataError::MissingColumn { .. })) => {
            "name the columns with --text-columns and --label-column; --no-header for files without names"
        }
        (_, Some(DataError::RaggedRow { .. } | DataError::UnclosedQuote { .. })) => {
            "--quoting true or false says whether \" quotes fields"
        }
        _ if is_full(error) && resumable => {
            "what was saved before is still there, whole; free some space, then go on with the same \
             command and --resume"
        }
        _ if is_full(error) => {
            "what was saved before is still there, whole; free some space and run the same command again"
        }
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Whether the disk, or the user's quota, is full.
fn is_full(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    })
}
