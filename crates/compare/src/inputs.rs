//! What runs read: a result is that of a base and of data as they were, by their hashes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use epiphyte_io::gguf::model_file;
use epiphyte_io::{FileError, sha256, sha256_of_file};
use epiphyte_train::RunConfig;
use serde_json::{Map, Value};

/// The setting of a result that holds the hashes, each under the name of the setting that names the
/// files.
pub(crate) const INPUTS: &str = "inputs";

/// The hashes of files that were read already.
#[derive(Default)]
pub(crate) struct Inputs {
    known: HashMap<PathBuf, String>,
}

impl Inputs {
    /// The hashes of what a run reads: its data, and a base that is here.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(crate) fn of(&mut self, run: &RunConfig) -> Result<Map<String, Value>, FileError> {
        let mut inputs = Map::new();
        let data = [
            ("train_data", Some(&run.train_data)),
            ("eval_data", run.eval_data.as_ref()),
            ("forgetting_data", run.forgetting_data.as_ref()),
        ];
        for (name, path) in data {
            if let Some(path) = path {
                inputs.insert(name.to_owned(), self.hash(path, files_of)?.into());
            }
        }
        let model = Path::new(&run.model);
        if model.exists() {
            inputs.insert("model".to_owned(), self.hash(model, files_of_model)?.into());
        }
        Ok(inputs)
    }

    /// The hash of the files that a path stands for.
    fn hash(
        &mut self,
        path: &Path,
        files: fn(&Path) -> Result<Vec<PathBuf>, FileError>,
    ) -> Result<String, FileError> {
        if let Some(hash) = self.known.get(path) {
            return Ok(hash.clone());
        }
        let mut hashes = String::new();
        for file in files(path)? {
            hashes.push_str(&sha256_of_file(&file)?);
        }
        let hash = sha256(hashes.as_bytes());
        self.known.insert(path.to_owned(), hash.clone());
        Ok(hash)
    }
}

/// The files that a path of data may stand for: itself, those in a directory or beside a pattern,
/// or those of several paths with their weights.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    if path.is_dir() {
        return files_in(path);
    }
    let text = path.to_string_lossy();
    let mut files = Vec::new();
    for part in text.split(',') {
        let unweighted = part.rsplit_once(':').map_or(part, |(path, _)| path);
        for path in [part, unweighted].map(Path::new) {
            let parent = path.parent().filter(|it| !it.as_os_str().is_empty());
            match (path.is_file(), part.contains(['*', '?'])) {
                (true, _) => files.push(path.to_owned()),
                (_, true) => files.extend(files_in(parent.unwrap_or(Path::new(".")))?),
                _ => {}
            }
        }
    }
    files.dedup();
    Ok(files)
}

/// The files in a directory, by name.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = || FileError::at("read", directory);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The files of a model's directory that decide what it computes; a GGUF file alone.
fn files_of_model(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let file = model_file(directory).map_err(FileError::at("read", directory))?;
    if let Some(file) = file {
        return Ok(vec![file]);
    }
    let mut files = files_in(directory)?;
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name == "config.json" || name.contains("tokenizer") || name.ends_with(".safetensors")
    });
    Ok(files)
}
