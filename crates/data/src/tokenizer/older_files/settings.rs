//! The keys of `tokenizer_config.json` that change how texts become tokens.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::invalid;
use crate::error::DataError;

/// The keys, with the file in which they stand.
pub(super) struct Settings<'a> {
    path: PathBuf,
    keys: &'a Map<String, Json>,
}

impl<'a> Settings<'a> {
    /// The settings of a directory.
    pub(super) fn new(directory: &Path, keys: &'a Map<String, Json>) -> Self {
        Self {
            path: directory.join("tokenizer_config.json"),
            keys,
        }
    }

    /// A key that is true or false; `default` where it is absent or null.
    ///
    /// # Errors
    /// [`DataError::TokenizerInvalid`] for another type.
    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, DataError> {
        Ok(self.optional_flag(key)?.unwrap_or(default))
    }

    /// A key that is true, false, or absent. Errors as for [`Settings::flag`].
    pub(super) fn optional_flag(&self, key: &str) -> Result<Option<bool>, DataError> {
        match self.keys.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(Json::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A number of things; `default` where the key is absent or null. Errors as for
    /// [`Settings::flag`].
    pub(super) fn count(&self, key: &str, default: usize) -> Result<usize, DataError> {
        match self.keys.get(key) {
            None | Some(Json::Null) => Ok(default),
            Some(value) => {
                let count = value.as_u64().filter(|&count| count <= 100_000);
                let count = count.and_then(|count| usize::try_from(count).ok());
                count.ok_or_else(|| self.wrong(key, "a number up to 100000", value))
            }
        }
    }

    /// A key that is a text; `default` where it is absent or null. Errors as for
    /// [`Settings::flag`].
    pub(super) fn text(&self, key: &str, default: &'a str) -> Result<&'a str, DataError> {
        match self.keys.get(key) {
            None | Some(Json::Null) => Ok(default),
            Some(Json::String(text)) => Ok(text),
            Some(other) => Err(self.wrong(key, "a text", other)),
        }
    }

    /// The error that a key has a value of the wrong type.
    fn wrong(&self, key: &str, expected: &str, value: &Json) -> DataError {
        invalid(&self.path, format!("`{key}` is {value} and not {expected}"))
    }

    /// The error that a key has a value for which the vocabulary has no token.
    pub(super) fn unknown(&self, key: &str, token: &str) -> DataError {
        let reason = format!("`{key}` is `{token}`, which is not in the vocabulary");
        invalid(&self.path, reason)
    }
}
