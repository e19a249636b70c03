//! What a command writes, compared with what it reads: by the files that the paths lead to, not by
//! their spelling. Every command that writes checks its output here, before it computes anything.

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use epiphyte::io::{OutputKind, is_in_directory, is_same_file, output_kind};

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
/// If it is one of the inputs, or a file of an input's directory; if it exists and `overwrite` is
/// false; if it cannot be a file.
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
    for input in inputs {
        if is_same_file(output, input.path) || is_file_of(&resolved, input.path)? {
            let problem = format!(
                "--output `{}` is an input, {} `{}`: choose another file",
                output.display(),
                input.what,
                input.path.display()
            );
            return Err(UsageError::Other(problem).into());
        }
    }
    if resolved.exists() && !overwrite {
        let problem = format!(
            "--output `{}` exists already: pass --overwrite to replace it, or choose another file",
            output.display()
        );
        return Err(UsageError::Other(problem).into());
    }
    Ok(Destination::File)
}

/// Whether a file belongs to what is in `directory`; false if that is no directory.
fn is_file_of(file: &Path, directory: &Path) -> Result<bool> {
    if !directory.is_dir() || !file.exists() {
        return Ok(false);
    }
    let cannot_read = || format!("cannot read `{}`", directory.display());
    let mut paths = vec![file.to_owned()];
    for entry in directory.read_dir().with_context(cannot_read)? {
        // By another name, such as a hard link of a weight file.
        let path = entry.with_context(cannot_read)?.path();
        if is_same_file(&path, file) {
            paths.push(path);
        }
    }
    let is_kept_there = |path: &Path| {
        let extension = path.extension().and_then(|it| it.to_str());
        path.file_name() != Some(LOG.as_ref())
            && extension.is_some_and(|it| KEPT_THERE.contains(&it))
    };
    let is_inside = paths.len() > 1 || is_in_directory(file, directory);
    Ok(is_inside && !paths.iter().all(|path| is_kept_there(path)))
}

/// Checks the directory that `--output` names.
///
/// # Errors
/// If it is one of the inputs or holds one.
pub(crate) fn check_directory(output: &Path, inputs: &[Input<'_>]) -> Result<()> {
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
        Err(epiphyte::io::FileError::Io { source, .. })
            if source.kind() == io::ErrorKind::BrokenPipe =>
        {
            Ok(())
        }
        written => Ok(written?),
    }
}
