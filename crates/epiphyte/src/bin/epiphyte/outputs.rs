//! What a command writes, compared with what it reads: by the files that the paths lead to, not by
//! their spelling. Every command that writes checks its output here, before it computes anything.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use epiphyte::io::{
    FileError, OutputKind, TEMPORARY, clean_up, is_in_directory, is_same_file, output_kind,
};
use epiphyte::methods::file::CONFIG_FILE as ADAPTER_CONFIG;
use epiphyte::train::training::checkpoints::Checkpoints;
use epiphyte::train::{Lock, check_output_directory, holds_run, lock_output};

use crate::failure::UsageError;
use crate::output;

/// Something that a command reads.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    /// For messages: `the base model`.
    pub(crate) what: &'static str,
    /// A file or a directory.
    pub(crate) path: &'a Path,
}

impl<'a> Input<'a> {
    pub(crate) fn new(what: &'static str, path: &'a Path) -> Self {
        Self { what, path }
    }
}

/// Where an output file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Standard output: `-`, `/dev/stdout`.
    StandardOutput,
    /// A pipe or a device.
    Stream,
    /// A file.
    File,
}

/// Extensions of what a user may keep in the directory of a model or an adapter; every other file
/// there belongs to it.
const KEPT_THERE: [&str; 4] = ["jsonl", "csv", "tsv", "parquet"];
/// A file with such an extension that belongs to an adapter nevertheless.
const LOG: &str = "log.jsonl";

/// Checks the file that `--output` names.
///
/// # Errors
/// If it is one of the inputs, or among the files of a model, an adapter or a run; if it exists and
/// `overwrite` is false; if it cannot be a file.
pub(crate) fn check_file(
    output: &Path,
    inputs: &[Input<'_>],
    overwrite: bool,
) -> Result<Destination> {
    if is_standard_output(output) {
        return Ok(Destination::StandardOutput);
    }
    let unusable = || format!("--output `{}` cannot be written", output.display());
    if output_kind(output).with_context(unusable)? == OutputKind::Stream {
        return Ok(Destination::Stream);
    }
    let resolved = epiphyte::io::resolve(output).with_context(unusable)?;
    let directory = resolved.parent().unwrap_or(&resolved);
    if !directory.is_dir() {
        let problem = format!(
            "--output `{}`: there is no directory `{}`",
            output.display(),
            directory.display()
        );
        return Err(UsageError::Other(problem).into());
    }
    let refuse = |problem: String| {
        let problem = format!(
            "--output `{}` {problem}: choose another file",
            output.display()
        );
        Err(UsageError::Other(problem).into())
    };
    let names = Names::of(&resolved, inputs)?;
    for Input { what, path } in inputs {
        if is_same_file(output, path) || names.are_of_input(path) {
            let would_be = match resolved.exists() {
                true => "is an input",
                false => "would be a file of an input",
            };
            return refuse(format!("{would_be}, {what} `{}`", path.display()));
        }
    }
    if let Some(owner) = names.owner() {
        let directory = directory.display();
        return refuse(format!(
            "is in `{directory}`, the directory of {owner}; predictions may lie beside the files of a \
             model, an adapter or a run as .jsonl, .csv, .tsv or .parquet, and not in a checkpoint"
        ));
    }
    if resolved.exists() && !overwrite {
        return Err(exists_already(output));
    }
    Ok(Destination::File)
}

/// The error for a file that is there and is not to be replaced.
fn exists_already(output: &Path) -> anyhow::Error {
    let problem = format!(
        "--output `{}` exists already: pass --overwrite to replace it, or choose another file",
        output.display()
    );
    UsageError::Other(problem).into()
}

/// As [`check_file`], for what cannot go to standard output or a stream; `flag` names it. The file
/// is this process's until the lock is dropped.
///
/// # Errors
/// As [`check_file`]; if it is no file, or another process writes it.
pub(crate) fn claim_plain_file(
    flag: &str,
    output: &Path,
    inputs: &[Input<'_>],
    overwrite: bool,
) -> Result<Lock> {
    let check = || match check_file(output, inputs, overwrite)? {
        Destination::File => Ok(()),
        Destination::StandardOutput | Destination::Stream => {
            let problem = format!("{flag} `{}` is no file", output.display());
            Err(anyhow::Error::from(UsageError::Other(problem)))
        }
    };
    check()?;
    let lock = lock_output(output)?;
    // The process that held the lock before may have written it.
    check()?;
    Ok(lock)
}

/// The path of an output file, and its other names in the directories of the inputs, such as a hard
/// link of a weight file.
struct Names {
    paths: Vec<PathBuf>,
}

impl Names {
    fn of(file: &Path, inputs: &[Input<'_>]) -> Result<Self> {
        let mut paths = vec![file.to_owned()];
        for directory in inputs.iter().map(|it| it.path).filter(|it| it.is_dir()) {
            let cannot_read = || format!("cannot read `{}`", directory.display());
            for entry in directory.read_dir().with_context(cannot_read)? {
                let path = entry.with_context(cannot_read)?.path();
                if file.exists() && is_same_file(&path, file) {
                    paths.push(path);
                }
            }
        }
        Ok(Self { paths })
    }

    /// Whether one of them is a file of an input's directory.
    fn are_of_input(&self, directory: &Path) -> bool {
        let is_of = |path: &PathBuf| !is_kept_there(path) && is_in_directory(path, directory);
        directory.is_dir() && self.paths.iter().any(is_of)
    }

    /// What owns the directory of one of them, whose other files are not to be replaced.
    fn owner(&self) -> Option<&'static str> {
        self.paths.iter().find_map(|path| {
            let directory = path.parent()?;
            match directory_of(directory)? {
                CHECKPOINT => Some(CHECKPOINT),
                owner => (!is_kept_there(path)).then_some(owner),
            }
        })
    }
}

/// Whether a user may keep a file of this name in the directory of a model, an adapter or a run.
fn is_kept_there(path: &Path) -> bool {
    let extension = path.extension().and_then(|it| it.to_str());
    let name = path.file_name().unwrap_or_default();
    name != LOG
        && !name.to_string_lossy().starts_with(TEMPORARY)
        && extension.is_some_and(|it| KEPT_THERE.contains(&it))
}

/// A checkpoint of a run, which anything else in its directory would spoil.
const CHECKPOINT: &str = "a checkpoint";

/// What a directory is, if a program would miss its files.
fn directory_of(directory: &Path) -> Option<&'static str> {
    let checkpoints = directory.parent().map(Checkpoints::inspect);
    let checkpoints = checkpoints
        .and_then(|it| it.list().ok())
        .unwrap_or_default();
    if checkpoints
        .iter()
        .any(|it| is_same_file(&it.path, directory))
    {
        return Some(CHECKPOINT);
    }
    if holds_run(directory) {
        return Some("a run");
    }
    let has = |name: &str| directory.join(name).exists();
    if has(ADAPTER_CONFIG) {
        return Some("an adapter");
    }
    let config = epiphyte::io::read_regular(&directory.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap_or_default();
    let is_model = config.get("model_type").is_some() || has("model.safetensors");
    is_model.then_some("a model")
}

/// Checks the directory that `--output` names.
///
/// # Errors
/// If it is no directory, or one of the inputs, or holds one.
pub(crate) fn check_directory(output: &Path, inputs: &[Input<'_>]) -> Result<()> {
    check_output_directory(output)?;
    for Input { what, path } in inputs {
        let problem = if is_same_file(output, path) {
            format!("--output is {what} itself: choose another directory")
        } else if path.exists() && is_in_directory(path, output) {
            format!(
                "--output `{}` holds {what}, `{}`: choose another directory",
                output.display(),
                path.display()
            )
        } else {
            continue;
        };
        return Err(UsageError::Other(problem).into());
    }
    Ok(())
}

/// Checks that a directory for what a command writes under several names has nothing else in it;
/// `is_own` knows these names, `what` says whose they are.
///
/// # Errors
/// If there is something else, named by the error.
pub(crate) fn check_own_directory(
    output: &Path,
    what: &str,
    is_own: impl Fn(&str) -> bool,
) -> Result<()> {
    check_output_directory(output)?;
    if !output.exists() {
        return Ok(());
    }
    let cannot_read = || format!("--output `{}` cannot be read", output.display());
    for entry in output.read_dir().with_context(cannot_read)? {
        let name = entry.with_context(cannot_read)?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !is_own(&name) {
            let problem = format!(
                "--output `{}` holds `{name}`, which is not {what}'s: choose an empty directory, so \
                 that nothing of yours is replaced",
                output.display()
            );
            return Err(UsageError::Other(problem).into());
        }
    }
    Ok(())
}

/// Takes the directory of an adapter that is made without training: empty, or with an adapter that
/// `overwrite` allows to replace, but not with a run. It is this process's until the lock is
/// dropped.
///
/// # Errors
/// As [`check_directory`]; if there is anything else, or another process writes there.
pub(crate) fn claim_adapter_directory(
    output: &Path,
    inputs: &[Input<'_>],
    overwrite: bool,
) -> Result<Lock> {
    check_directory(output, inputs)?;
    let lock = lock_output(output)?;
    let problem = |problem: &str| {
        let problem = format!("`{}` {problem}", output.display());
        Err(UsageError::Other(problem).into())
    };
    let entries = match output.is_dir() {
        true => output.read_dir()?.collect::<io::Result<Vec<_>>>()?,
        false => Vec::new(),
    };
    // What a killed process left behind is removed below.
    let is_left = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(TEMPORARY);
    let occupied = entries.iter().any(|entry| !is_left(&entry.file_name()));
    if occupied && !(overwrite && output.join(ADAPTER_CONFIG).exists()) {
        return problem(
            "is not empty: choose another directory, or pass --overwrite to replace an adapter",
        );
    }
    let checkpoints = Checkpoints::inspect(output).list().unwrap_or_default();
    if output.join(LOG).exists() || !checkpoints.is_empty() {
        return problem("is the directory of a run: choose another directory");
    }
    if !entries.is_empty() {
        clean_up(output)?;
    }
    Ok(lock)
}

/// Whether a path means standard output.
fn is_standard_output(path: &Path) -> bool {
    let named = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
    named.iter().any(|name| path == Path::new(name))
}

/// Writes an output file that was checked.
///
/// # Errors
/// If it cannot be written. A reader that closes a pipe early is no error.
pub(crate) fn write(
    destination: Destination,
    path: &Path,
    contents: &[u8],
    overwrite: bool,
) -> Result<()> {
    if destination == Destination::StandardOutput {
        return output::stream(contents);
    }
    match epiphyte::io::write_output(path, contents, overwrite) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        // Another process wrote it meanwhile.
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(exists_already(path))
        }
        written => Ok(written?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another process may write the file between the check and the end of the computation.
    #[test]
    fn a_file_that_appeared_meanwhile_is_refused_as_one_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        assert_eq!(check_file(&path, &[], false).unwrap(), Destination::File);
        std::fs::write(&path, b"theirs").unwrap();
        let error = write(Destination::File, &path, b"ours", false).unwrap_err();
        assert!(error.is::<UsageError>(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("exists already: pass --overwrite"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        write(Destination::File, &path, b"ours", true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"ours");
    }
}
