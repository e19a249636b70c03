//! Tokenizers of directories without `tokenizer.json`: `vocab.txt`, `vocab.json` with `merges.txt`,
//! and SentencePiece models, made into a `tokenizer.json`.
//!
//! What such files mean depends on the tokenizer's class, which `tokenizer_config.json` names or
//! which follows from the model's type. [`classes`] has the classes, each as `transformers` 5.23
//! builds it from these files; goldens in `tests/golden/tokenizers.json` compare the token ids.
//!
//! `transformers` 5 gives Llama's SentencePiece models other ids than SentencePiece where spaces
//! follow each other. Here they get those on which the models were trained, which are also those of
//! their `tokenizer.json` and of llama.cpp (`tests/suite/llama_cpp.rs`).

mod added_tokens;
pub(super) mod byte_pairs;
mod classes;
pub(super) mod pipeline;
mod sentence_piece;
mod settings;
mod word_pieces;

use std::path::{Path, PathBuf};

use epiphyte_io::mistaken_file;
use indexmap::IndexMap;
use serde_json::{Map, Value as Json, json};

use self::added_tokens::AddedTokens;
use self::classes::{CLASSES, Class};
use self::settings::Settings;
use super::{read_object, read_optional};
use crate::error::DataError;

/// A `tokenizer.json` that was made of older files.
pub(super) struct Made {
    /// The file with the vocabulary.
    pub(super) path: PathBuf,
    /// The content of the `tokenizer.json`.
    pub(super) bytes: Vec<u8>,
    /// The special tokens by their Hugging Face names.
    pub(super) special_tokens: IndexMap<String, String>,
}

/// A vocabulary as a model of `tokenizer.json`.
struct Vocabulary {
    /// The file from which it was read.
    path: PathBuf,
    /// The model.
    model: Json,
    /// The id of each piece, in the order of the file, on which the tokenizer's hash depends.
    ids: IndexMap<String, u32>,
    /// The number of pieces; the first added token gets this id.
    size: usize,
    /// Pieces that a text is split at: a SentencePiece model's control and user-defined symbols.
    symbols: Vec<tokenizers::AddedToken>,
    /// The Unicode replacements of a SentencePiece model; empty for none.
    replacements: Vec<u8>,
}

/// Makes a `tokenizer.json` of a directory's older files.
///
/// # Errors
/// [`DataError::TokenizerMissing`] if there are none; [`DataError::TokenizerClass`] if it is not
/// known what they mean; [`DataError::TokenizerInvalid`]; [`DataError::Io`].
pub(super) fn tokenizer_json(
    directory: &Path,
    config: &Map<String, Json>,
    map: &Map<String, Json>,
) -> Result<Made, DataError> {
    let class = class_of(directory, config)?;
    let settings = Settings::new(directory, config);
    let names = added_tokens::named(class, config, map);
    let vocabulary = (class.vocabulary)(directory, &names, &settings)?;
    let added = AddedTokens::new(directory, names, config, map, &vocabulary)?;
    let pipeline = (class.pipeline)(&vocabulary, &added, &settings)?;
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.to_json(),
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": pipeline.post_processor,
        "decoder": pipeline.decoder,
        "model": vocabulary.model,
    });
    Ok(Made {
        path: vocabulary.path,
        bytes: file.to_string().into_bytes(),
        special_tokens: added.names(),
    })
}

/// The class of a directory's tokenizer.
fn class_of(directory: &Path, config: &Map<String, Json>) -> Result<&'static Class, DataError> {
    /// Names of classes that say nothing about their files.
    const GENERAL: [&str; 3] = [
        "PreTrainedTokenizer",
        "PreTrainedTokenizerFast",
        "TokenizersBackend",
    ];
    let model = read_object(&directory.join("config.json"))?;
    let text = |object: &Map<String, Json>, key: &str| {
        let value = object.get(key).and_then(Json::as_str);
        value.map(str::to_owned)
    };
    let name = text(config, "tokenizer_class").or_else(|| text(&model, "tokenizer_class"));
    let name = name.filter(|name| !GENERAL.contains(&name.as_str()));
    let model_type = text(&model, "model_type");
    let found = match (&name, &model_type) {
        (Some(name), _) => {
            let name = name.strip_suffix("Fast").unwrap_or(name);
            CLASSES.iter().find(|class| class.names.contains(&name))
        }
        (None, Some(model_type)) => {
            let of = |class: &&Class| class.model_types.contains(&model_type.as_str());
            CLASSES.iter().find(of)
        }
        (None, None) => None,
    };
    let has_any = |files: &[&str]| files.iter().any(|file| directory.join(file).is_file());
    match found {
        Some(class) if has_any(class.files) => Ok(class),
        found if found.is_some() || !CLASSES.iter().any(|it| has_any(it.files)) => {
            Err(DataError::TokenizerMissing {
                directory: directory.to_owned(),
                file: "tokenizer.json",
            })
        }
        _ => Err(DataError::TokenizerClass {
            directory: directory.to_owned(),
            class: name,
            known: CLASSES
                .iter()
                .filter_map(|class| class.names.first().copied())
                .collect(),
        }),
    }
}

/// The bytes of one of a tokenizer's files.
///
/// # Errors
/// [`DataError::TokenizerMissing`]; [`DataError::Io`]; [`DataError::TokenizerInvalid`] if it is
/// something else, such as a web page.
fn read(directory: &Path, file: &'static str) -> Result<Vec<u8>, DataError> {
    let path = directory.join(file);
    let bytes = read_optional(&path)?.ok_or_else(|| DataError::TokenizerMissing {
        directory: directory.to_owned(),
        file,
    })?;
    match mistaken_file(&bytes) {
        Some(kind) => Err(invalid(&path, kind)),
        None => Ok(bytes),
    }
}

/// The text of one of a tokenizer's files. Errors as for [`read`].
fn read_text(directory: &Path, file: &'static str) -> Result<String, DataError> {
    let text = String::from_utf8(read(directory, file)?);
    text.map_err(|error| invalid(&directory.join(file), error))
}

/// The error of a file that cannot be used.
fn invalid(path: &Path, reason: impl ToString) -> DataError {
    DataError::TokenizerInvalid {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}
