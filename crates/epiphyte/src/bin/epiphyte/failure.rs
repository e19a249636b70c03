//! What a failed command prints: the error with its causes, a hint, and the exit code.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use epiphyte::data::{DataError, Format, nearest_name};
use epiphyte::hub::HubError;
use epiphyte::methods::file::CONFIG_FILE;
use epiphyte::methods::{METHODS, MethodError};
use epiphyte::train::TrainError;
use epiphyte::train::error::MetricError;
use epiphyte::train::training::optimizer::OptimizerKind;
use epiphyte_compare::CompareError;

use crate::output::note;

/// A usage error: the command line or the configuration file asks for something invalid.
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
    /// A flag or key that belongs to another method.
    #[error("{place} is of {owners}; the method is {method}")]
    OtherMethod {
        /// Flag or key.
        place: String,
        /// The methods that it belongs to.
        owners: String,
        /// The method of this run.
        method: String,
        /// What to do instead, if another program calls one of its settings so.
        advice: Option<String>,
    },
    /// A key that no table of settings has.
    #[error("{place}: there is no such key; {advice}")]
    UnknownKey {
        /// The file and the key.
        place: String,
        /// What to write instead.
        advice: String,
    },
    /// A flag that a program of the same kind has and this one has not.
    #[error("there is no flag `{flag}`; {advice}")]
    ForeignFlag {
        /// The flag.
        flag: String,
        /// What to do instead.
        advice: String,
    },
    /// A device name that does not exist.
    #[error("no device is called `{name}`; this build has {available}")]
    Device {
        /// The name given.
        name: String,
        /// The devices of this build.
        available: String,
    },
    /// A GPU backend that this build does not include.
    #[error("--device {name}: this build has {available}; build it with `--features {feature}`")]
    NoBackend {
        /// The name given.
        name: String,
        /// The devices of this build.
        available: String,
        /// The cargo feature that includes it.
        feature: String,
    },
    /// A GPU that was not found on this machine.
    #[error(
        "--device {name}: {backend} finds {count} devices on this machine; install the GPU's driver, or pass \
         --device cpu"
    )]
    NoDevice {
        /// The name given.
        name: String,
        /// The backend that was asked.
        backend: &'static str,
        /// How many it found.
        count: usize,
    },
    /// Any other usage error.
    #[error("{0}")]
    Other(String),
}

/// Prints the error and returns the exit code. `resumable` says whether the command has `--resume`.
pub(crate) fn report(error: &anyhow::Error, resumable: bool) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        // Some errors already include the message of their source.
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
        Some(
            TrainError::Config(_)
                | TrainError::Setting { .. }
                | TrainError::ClassOrder(_)
                | TrainError::WritesNoText { .. }
                | TrainError::NoReference { .. }
                | TrainError::Metric(MetricError::NoMeteorTables | MetricError::UnusedMeteorTables)
        )
    );
    let is_suite = matches!(
        error.downcast_ref(),
        Some(
            CompareError::Suite { .. }
                | CompareError::OtherSettings { .. }
                | CompareError::Empty { .. }
                | CompareError::Conflict { .. }
                | CompareError::OtherInputs { .. }
        )
    );
    let is_method = matches!(method(error), Some(MethodError::UnknownMethod { .. }));
    error.is::<UsageError>() || is_setting || is_suite || is_method
}

/// The error as one of a method or adapter, if it is one.
fn method(error: &anyhow::Error) -> Option<&MethodError> {
    match error.downcast_ref() {
        Some(TrainError::Method(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// The error as one of the data, if it is one.
fn data(error: &anyhow::Error) -> Option<&DataError> {
    match error.downcast_ref() {
        Some(TrainError::Data(error) | TrainError::Columns { source: error, .. }) => Some(error),
        _ => error.downcast_ref(),
    }
}

/// The error as one of finding the model, if it is one.
fn hub(error: &anyhow::Error) -> Option<&HubError> {
    match error.downcast_ref() {
        Some(TrainError::Hub(error)) => Some(error),
        _ => error.downcast_ref(),
    }
}

fn hint(error: &anyhow::Error, resumable: bool) -> Option<String> {
    if let Some(error) = hub(error) {
        return Some(error.hint());
    }
    if let Some(MethodError::Unmatched {
        unmatched,
        available,
        ..
    }) = method(error)
    {
        let near = unmatched.iter().filter_map(|name| {
            let near = nearest_name(name, available.iter().map(String::as_str))?;
            Some(format!("`{near}` in place of `{name}`"))
        });
        let near: Vec<String> = near.collect();
        return (!near.is_empty()).then(|| format!("did you mean {}?", near.join(", ")));
    }
    if let Some(UsageError::OtherMethod { advice, .. }) = error.downcast_ref() {
        let advice = advice.as_ref()?;
        return Some(format!("if another program's setting is meant: {advice}"));
    }
    let hint = match (method(error), data(error)) {
        (Some(MethodError::NoTarget { .. }), _) => {
            "`epiphyte inspect MODEL` lists the linear layers; --target-modules all-linear selects every one"
        }
        (Some(MethodError::UnknownMethod { name, .. }), _) if is_optimizer(name) => {
            return Some(format!(
                "`{name}` is an optimizer: pass --optimizer {name}, for example with --method full"
            ));
        }
        (Some(MethodError::UnknownMethod { name, .. }), _) => {
            let near = nearest_name(name, METHODS.iter().map(|method| method.name));
            let near = near.map(|near| format!("did you mean `{near}`? "));
            return Some(format!(
                "{}`epiphyte methods` describes them",
                near.unwrap_or_default()
            ));
        }
        (Some(MethodError::File { path, .. }), _)
            if path.ends_with(CONFIG_FILE) && path.with_file_name("config.json").exists() =>
        {
            "this directory holds a model, not an adapter: pass it as --model"
        }
        (
            _,
            Some(DataError::MissingColumn {
                path, available, ..
            }),
        ) => {
            return Some(missing_column(error, path, available));
        }
        (_, Some(DataError::UnknownExtension { .. } | DataError::UnnamedFormat)) => {
            "--format json, jsonl, csv, tsv, parquet or text says what the data are"
        }
        (_, Some(DataError::Columns { .. })) => {
            return Some(format!(
                "name the columns with {}, or another task with --task",
                column_flags(error)
            ));
        }
        (_, Some(DataError::RaggedRow { .. } | DataError::UnclosedQuote { .. })) => {
            "--quoting true or false says whether \" quotes fields, --delimiter what is between them"
        }
        // It says itself what to do; nothing of a run is there yet.
        (_, Some(DataError::Scratch { .. })) => return None,
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

/// Whether an optimizer has this name.
fn is_optimizer(name: &str) -> bool {
    serde_json::from_value::<OptimizerKind>(name.into()).is_ok()
}

/// What to do about a column that a file does not have.
fn missing_column(error: &anyhow::Error, path: &Path, available: &[String]) -> String {
    let is_text = path
        .extension()
        .is_some_and(|it| it.eq_ignore_ascii_case("txt"));
    if let [only] = available {
        if is_text {
            return "a .txt file has one column, of texts; --format tsv or csv says that it has more"
                .to_owned();
        }
        if only.contains([',', ';', '\t', '|']) {
            return "the first line has one name; --delimiter says what is between the columns"
                .to_owned();
        }
    }
    let flags = column_flags(error);
    match Format::of(path) {
        Ok(Format::Json | Format::Parquet) => {
            format!("name the columns with {flags}, or another task with --task")
        }
        _ => format!(
            "name the columns with {flags}, or another task with --task; --no-header for files \
             without names"
        ),
    }
}

/// The flags that name the columns of the task that an error is about.
fn column_flags(error: &anyhow::Error) -> &'static str {
    match error.downcast_ref() {
        Some(TrainError::Columns { task, .. }) => task.column_flags(),
        _ => "--text-columns and --label-column",
    }
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
