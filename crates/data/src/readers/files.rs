//! The files that a path of data names: itself, those in a directory, those that match a pattern,
//! or several of these separated by commas, each with how often its rows count.
//!
//! | given | read |
//! | --- | --- |
//! | `a.jsonl` | the file |
//! | `data` | the data files in the directory, by name |
//! | `data/*.jsonl` | the files that match; `*` stands for any text, `?` for one character |
//! | `a.jsonl,b.jsonl:3` | both, each row of `b.jsonl` three times |
//! | `a.jsonl,b.jsonl:0.5` | both, of `b.jsonl` a random half, always the same |

use std::fs;
use std::path::{Path, PathBuf};

use super::read::{Format, ReadOptions};
use super::source::STDIN;
use crate::error::DataError;

/// A file of data.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Its path.
    pub path: PathBuf,
    /// How often each of its rows counts.
    pub weight: f64,
}

/// The largest weight of a file.
const LARGEST_WEIGHT: f64 = 1000.0;

impl DataFile {
    /// The files that a path of data names.
    ///
    /// # Errors
    /// [`DataError::DataFiles`] if there are none, or a directory has files of several formats or
    /// of several splits, such as training and test data; [`DataError::Io`].
    pub fn all(given: &Path, options: &ReadOptions) -> Result<Vec<Self>, DataError> {
        let whole = |path: &Path| Self {
            path: path.to_owned(),
            weight: 1.0,
        };
        if given == Path::new(STDIN) || given.is_file() {
            return Ok(vec![whole(given)]);
        }
        let text = given.to_str().filter(|text| {
            given.is_dir() || text.contains([',', '*', '?']) || weight_of(text).is_some()
        });
        // What does not exist is an error of the reader.
        let Some(text) = text else {
            return Ok(vec![whole(given)]);
        };
        let parts: Vec<&str> = match given.is_dir() {
            true => vec![text],
            false => text.split(',').collect(),
        };
        let mut files = Vec::new();
        for part in parts {
            let (path, weight) = match weight_of(part) {
                Some((path, weight)) if !Path::new(part).exists() => (path, weight),
                _ => (part, 1.0),
            };
            if !(weight > 0.0 && weight <= LARGEST_WEIGHT) {
                let reason = format!("the weight {weight} is not above 0, up to {LARGEST_WEIGHT}");
                return Err(unusable(given, reason));
            }
            let paths = paths(Path::new(path), given, options)?;
            files.extend(paths.into_iter().map(|path| Self { path, weight }));
        }
        Ok(files)
    }
}

/// A path and a weight behind it.
fn weight_of(text: &str) -> Option<(&str, f64)> {
    let (path, weight) = text.rsplit_once(':')?;
    Some((path, weight.parse().ok()?))
}

/// The files of one path.
fn paths(path: &Path, given: &Path, options: &ReadOptions) -> Result<Vec<PathBuf>, DataError> {
    if path.is_dir() {
        return in_directory(path, given, options);
    }
    let pattern = path.to_string_lossy();
    if path.is_file() || !pattern.contains(['*', '?']) {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = vec![PathBuf::new()];
    for component in path.components() {
        let component = component.as_os_str().to_string_lossy();
        let mut next = Vec::new();
        for directory in found {
            if !component.contains(['*', '?']) {
                next.push(directory.join(&*component));
                continue;
            }
            let names = names(&directory, true)?;
            let matching = names.into_iter().filter(|name| matches(&component, name));
            next.extend(matching.map(|name| directory.join(name)));
        }
        found = next;
    }
    found.retain(|path| path.is_file());
    match found.is_empty() {
        true => Err(unusable(given, format!("no file matches `{pattern}`"))),
        false => Ok(found),
    }
}

/// The data files of a directory.
fn in_directory(
    directory: &Path,
    given: &Path,
    options: &ReadOptions,
) -> Result<Vec<PathBuf>, DataError> {
    let named = names(directory, false)?
        .into_iter()
        .map(|name| directory.join(name));
    let files: Vec<PathBuf> = named
        .filter(|path| path.is_file() && (options.format.is_some() || Format::of(path).is_ok()))
        .collect();
    let shown = match directory == given {
        true => "the directory".to_owned(),
        false => format!("`{}`", directory.display()),
    };
    let names = |paths: &[&PathBuf]| {
        let names = paths.iter().filter_map(|path| path.file_name());
        let names = names.map(|name| format!("`{}`", name.display()));
        names.collect::<Vec<_>>().join(", ")
    };
    let Some(first) = files.first() else {
        let reason =
            format!("{shown} has no file of data (.jsonl, .json, .csv, .tsv, .parquet or .txt)");
        return Err(unusable(given, reason));
    };
    let other = |path: &&PathBuf| {
        options.format.is_none() && Format::of(path).ok() != Format::of(first).ok()
    };
    if let Some(other) = files.iter().find(other) {
        let reason = format!(
            "{shown} has files of several formats, such as {}: name the files, or give a pattern \
             such as `{}/*.jsonl`",
            names(&[first, other]),
            directory.display()
        );
        return Err(unusable(given, reason));
    }
    let split = |path: &PathBuf| {
        let stem = path.file_stem()?.to_str()?.to_ascii_lowercase();
        let starts = |(name, _): &&(&str, &str)| stem.starts_with(name);
        SPLITS.iter().find(starts).map(|(_, split)| *split)
    };
    let with_split = |path: &PathBuf| Some((path.clone(), split(path)?));
    let splits: Vec<(PathBuf, &str)> = files.iter().filter_map(with_split).collect();
    if let Some((one, split)) = splits.first()
        && let Some((other, _)) = splits.iter().find(|(_, other)| other != split)
    {
        let reason = format!(
            "{shown} has data for several purposes, such as {}: name the file",
            names(&[one, other])
        );
        return Err(unusable(given, reason));
    }
    Ok(files)
}

/// How names of files begin that are for training, for choosing or for the last score.
const SPLITS: [(&str, &str); 6] = [
    ("train", "train"),
    ("dev", "validation"),
    ("val", "validation"),
    ("eval", "validation"),
    ("test", "test"),
    ("heldout", "test"),
];

/// The names in a directory, sorted, without hidden ones.
fn names(directory: &Path, with_directories: bool) -> Result<Vec<String>, DataError> {
    let read = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let io = |source| DataError::Io {
        path: read.to_owned(),
        source,
    };
    let mut names = Vec::new();
    if read.is_dir() {
        for entry in fs::read_dir(read).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && (with_directories || !entry.path().is_dir()) {
                names.push(name);
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a name is of a pattern with `*` and `?`.
fn matches(pattern: &str, name: &str) -> bool {
    let mut characters = pattern.chars();
    match characters.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = characters.as_str();
            let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.any(|at| matches(rest, &name[at..]))
        }
        Some(first) => {
            let mut others = name.chars();
            let fits = others
                .next()
                .is_some_and(|other| first == '?' || first == other);
            fits && matches(characters.as_str(), others.as_str())
        }
    }
}

fn unusable(given: &Path, reason: String) -> DataError {
    DataError::DataFiles {
        given: given.to_owned(),
        reason,
    }
}
