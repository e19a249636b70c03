//! Which files of a base's directory belong into a merged model's: those that describe the model
//! and its tokenizer, and nothing else that happens to lie there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use epiphyte_data::tokenizer_files;
use epiphyte_io::FileError;

use super::is_gguf;
use crate::TrainError;

/// Files that are copied. `config.json` is not among them: it is written anew.
const FILES: &[&str] = &[
    // Generation.
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    // sentence-transformers.
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    // What the base's license asks to be passed on.
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
];

/// Files of the tokenizer, which are copied too.
const TOKENIZER_FILES: &[&str] = &[
    "added_tokens.json",
    "bpe.codes",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Whether a folder belongs to the model: `1_Pooling`, `2_Normalize`, … of sentence-transformers,
/// and further chat templates.
fn is_folder_of_model(name: &str) -> bool {
    let module = name.split_once('_').is_some_and(|(number, module)| {
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number && !module.is_empty() && module.bytes().all(|byte| byte.is_ascii_alphanumeric())
    });
    module || name == "additional_chat_templates"
}

/// Whether a file in such a folder is copied: a module's configuration and weights, a template.
fn is_file_of_folder(name: &str) -> bool {
    [".json", ".safetensors", ".jinja"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// The files to copy, as paths below `base`, sorted.
///
/// # Errors
/// If a directory cannot be read; [`TrainError::NotCopied`] if one of the files is no regular file
/// of the base's: a link to elsewhere, a pipe, a device.
pub(crate) fn files_of(base: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let mut files = Vec::new();
    if is_gguf(base)? {
        let made = tokenizer_files(base)?.into_iter();
        return Ok(made.map(|(name, _)| PathBuf::from(name)).collect());
    }
    for name in names_in(base)? {
        let path = base.join(&name);
        if FILES.contains(&name.as_str()) || TOKENIZER_FILES.contains(&name.as_str()) {
            check(base, &path)?;
            files.push(PathBuf::from(name));
        } else if is_folder_of_model(&name) && path.is_dir() {
            check_inside(base, &path)?;
            for inner in names_in(&path)? {
                if is_file_of_folder(&inner) {
                    check(base, &path.join(&inner))?;
                    files.push(Path::new(&name).join(inner));
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Copies the tokenizer of the model in `base`.
///
/// # Errors
/// As [`files_of`]; if a file cannot be written.
pub(crate) fn copy_tokenizer(base: &Path, to: &Path) -> Result<(), TrainError> {
    if is_gguf(base)? {
        for (name, content) in tokenizer_files(base)? {
            epiphyte_io::write(&to.join(name), &content)?;
        }
        return Ok(());
    }
    for name in names_in(base)? {
        if TOKENIZER_FILES.contains(&name.as_str()) {
            copy(base, Path::new(&name), to)?;
        }
    }
    Ok(())
}

/// Copies a file of the model in `base`, or writes what a GGUF file has in its place.
///
/// # Errors
/// [`TrainError::NotCopied`] if it is no regular file of the model's; if it cannot be written.
pub(crate) fn copy(base: &Path, file: &Path, to: &Path) -> Result<(), TrainError> {
    let made = tokenizer_files(base)?;
    if let Some((_, content)) = made.iter().find(|(name, _)| file == Path::new(name)) {
        return Ok(epiphyte_io::write(&to.join(file), content)?);
    }
    check(base, &base.join(file))?;
    let target = to.join(file);
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(FileError::at("create", parent))?;
    }
    let from = base.join(file);
    let mut source = fs::File::open(&from).map_err(FileError::at("read", &from))?;
    epiphyte_io::write_atomically(&target, |file| io::copy(&mut source, file).map(|_| ()))?;
    Ok(())
}

/// The names in a directory that are UTF-8.
pub(super) fn names_in(directory: &Path) -> Result<Vec<String>, TrainError> {
    let failed = || FileError::at("read", directory);
    let entries = fs::read_dir(directory).map_err(failed())?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed())?.file_name().into_string());
    }
    Ok(names)
}

fn check(base: &Path, path: &Path) -> Result<(), TrainError> {
    check_inside(base, path)?;
    let kind = fs::metadata(path).map_err(FileError::at("read", path))?;
    match kind.is_file() {
        true => Ok(()),
        false => Err(not_copied(path, "is no regular file")),
    }
}

/// Checks that links do not lead out of the base's directory; in the hub's cache, where every file
/// is a link, not out of the model's own folder.
fn check_inside(base: &Path, path: &Path) -> Result<(), TrainError> {
    let resolve = |path: &Path| path.canonicalize().map_err(FileError::at("read", path));
    let (target, base) = (resolve(path)?, resolve(base)?);
    let snapshots = base.parent().filter(|parent| parent.ends_with("snapshots"));
    let blobs = snapshots
        .and_then(Path::parent)
        .map(|model| model.join("blobs"));
    let inside = target.starts_with(&base) || blobs.is_some_and(|blobs| target.starts_with(blobs));
    match inside {
        true => Ok(()),
        false => Err(not_copied(
            path,
            "is a link to a file outside of the model's directory",
        )),
    }
}

fn not_copied(path: &Path, reason: &'static str) -> TrainError {
    TrainError::NotCopied {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::files_of;

    #[test]
    fn only_files_of_the_model_are_listed() {
        let base = tempfile::tempdir().unwrap();
        for name in [
            "config.json",
            "tokenizer.json",
            "modules.json",
            "1_Pooling/config.json",
            "1_Pooling/notes.txt",
            "onnx/model.onnx",
            "README.md",
            "adapter_config.json",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.safetensors",
            "pytorch_model.bin",
            ".git/config",
            "train.jsonl",
        ] {
            let path = base.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"{}").unwrap();
        }
        let files = files_of(base.path()).unwrap();
        let names: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["1_Pooling/config.json", "modules.json", "tokenizer.json"]
        );
    }

    #[cfg(unix)]
    #[test]
    fn links_out_of_the_directory_and_pipes_are_refused() {
        use std::os::unix::fs::symlink;
        let (base, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| base.path().join(name);
        let secret = elsewhere.path().join("secret");
        fs::write(&secret, b"secret").unwrap();
        fs::write(at("kept.json"), b"{}").unwrap();
        symlink("kept.json", at("tokenizer.json")).unwrap();
        assert_eq!(files_of(base.path()).unwrap().len(), 1);
        symlink(&secret, at("vocab.txt")).unwrap();
        let error = files_of(base.path()).unwrap_err().to_string();
        assert!(
            error.contains("vocab.txt") && error.contains("outside"),
            "{error}"
        );
        fs::remove_file(at("vocab.txt")).unwrap();
        fs::create_dir(at("merges.txt")).unwrap();
        let error = files_of(base.path()).unwrap_err().to_string();
        assert!(error.contains("merges.txt` is no regular file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn files_of_the_hubs_cache_are_links_to_its_blobs() {
        use std::os::unix::fs::symlink;
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(cache.path().join("blobs")).unwrap();
        fs::write(cache.path().join("blobs/123"), b"{}").unwrap();
        symlink("../../blobs/123", snapshot.join("tokenizer.json")).unwrap();
        assert_eq!(files_of(&snapshot).unwrap().len(), 1);
    }
}
