//! What runs read: a result is that of a base and of data as they were, by their hashes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use epiphyte_io::gguf::model_file;
use epiphyte_io::{FileError, sha256, sha256_of_file};
use epiphyte_train::RunConfig;
use serde_json::{Map, Value};

use crate::CompareError;

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
    /// If a file cannot be found or read.
    pub(crate) fn of(&mut self, run: &RunConfig) -> Result<Map<String, Value>, CompareError> {
        let mut inputs = Map::new();
        for (setting, files) in run.data_files()? {
            inputs.insert(setting.to_owned(), self.hash(files)?.into());
        }
        if run.model.exists() {
            let hash = self.hash(files_of_model(&run.model)?)?;
            inputs.insert("model".to_owned(), hash.into());
        }
        Ok(inputs)
    }

    /// The hash of these files together.
    fn hash(&mut self, files: Vec<PathBuf>) -> Result<String, FileError> {
        let mut hashes = String::new();
        for file in files {
            let hash = match self.known.get(&file) {
                Some(hash) => hash.clone(),
                None => sha256_of_file(&file)?,
            };
            hashes.push_str(&hash);
            self.known.insert(file, hash);
        }
        Ok(sha256(hashes.as_bytes()))
    }
}

/// The files of a model's directory that decide what it computes, by name; a GGUF file alone.
fn files_of_model(directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let failed = || FileError::at("read", directory);
    if let Some(file) = model_file(directory).map_err(failed())? {
        return Ok(vec![file]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let decides =
            name == "config.json" || name.contains("tokenizer") || name.ends_with(".safetensors");
        if decides && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_train_reads_is_hashed_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let write = |name: &str, text: &str| std::fs::write(data.join(name), text).unwrap();
        write("a.jsonl", "1");
        let of = |train_data: &str| {
            let run = RunConfig {
                train_data: data.join(train_data),
                ..RunConfig::default()
            };
            Inputs::default()
                .of(&run)
                .map(|it| it["train_data"].clone())
        };
        let one = of("").unwrap();
        assert_eq!(of("a.jsonl").unwrap(), one);
        assert_eq!(of("*.jsonl").unwrap(), one);
        write("README.md", "of the data");
        assert_eq!(of("").unwrap(), one);
        write("b.jsonl", "2");
        let two = of("").unwrap();
        assert_ne!(two, one);
        let weighted = format!("a.jsonl,{}:2", data.join("b.jsonl").display());
        assert_eq!(of(&weighted).unwrap(), two);
        let error = of("c.jsonl").unwrap_err().to_string();
        assert!(error.contains("c.jsonl"), "{error}");
    }
}
