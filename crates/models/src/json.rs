//! Reading the JSON files of a Hugging Face directory with errors that name file, line and key.
//!
//! Unknown keys are never refused: these files are Hugging Face's, and every release adds some.

use std::path::{Path, PathBuf};

use epiphyte_io::mistaken_file;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ModelError;

/// A JSON object and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct JsonObject {
    path: PathBuf,
    /// Dotted path of this object inside the file, empty for the file itself.
    prefix: String,
    entries: Map<String, Value>,
    /// Keys that are read under another name: (this name, that of the file).
    aliases: Vec<(&'static str, &'static str)>,
}

impl JsonObject {
    /// Reads a file; `advice` says how to obtain it should it be missing.
    pub(crate) fn read(path: &Path, advice: &'static str) -> Result<Self, ModelError> {
        let bytes = epiphyte_io::read_regular(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ModelError::MissingFile {
                path: path.to_owned(),
                advice,
            },
            _ => ModelError::Io {
                action: "read",
                path: path.to_owned(),
                source,
            },
        })?;
        Self::parse(path, &bytes)
    }

    /// Parses the bytes of the file at `path`.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let other = |error: ModelError| match mistaken_file(bytes) {
            Some(kind) => ModelError::OtherKind {
                path: path.to_owned(),
                kind,
            },
            None => error,
        };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            other(ModelError::NotUtf8 {
                path: path.to_owned(),
                offset: error.valid_up_to(),
            })
        })?;
        let entries = serde_json::from_str(text).map_err(|error| {
            other(ModelError::Json {
                path: path.to_owned(),
                line: error.line(),
                column: error.column(),
                problem: error.to_string(),
            })
        })?;
        Ok(Self::new(path, entries))
    }

    /// An object that was made of the file at `path`.
    pub(crate) fn new(path: &Path, entries: Map<String, Value>) -> Self {
        Self {
            path: path.to_owned(),
            prefix: String::new(),
            entries,
            aliases: Vec::new(),
        }
    }

    /// The entries.
    pub(crate) fn into_entries(self) -> Map<String, Value> {
        self.entries
    }

    /// The same with keys of a family's own under the names that other families have for them, the
    /// first of each pair under the second. Errors name the file's key.
    pub(crate) fn with_aliases(&self, aliases: &[(&'static str, &'static str)]) -> Self {
        let mut renamed = self.clone();
        for &(own, common) in aliases {
            if let Some(value) = renamed.entries.remove(own) {
                renamed.entries.insert(common.to_owned(), value);
                renamed.aliases.push((common, own));
            }
        }
        renamed
    }

    /// The object without some keys.
    pub(crate) fn without(&self, keys: &[&str]) -> Self {
        let mut rest = self.clone();
        rest.entries.retain(|key, _| !keys.contains(&key.as_str()));
        rest
    }

    /// The keys of both objects; this one's values where both have a key.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let mut entries = other.entries.clone();
        entries.extend(self.entries.clone());
        Self {
            entries,
            ..self.clone()
        }
    }

    /// A key with its path, as the file has it.
    fn full_key(&self, key: &str) -> String {
        let own = self.aliases.iter().find(|(common, _)| *common == key);
        format!("{}{}", self.prefix, own.map_or(key, |(_, own)| own))
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the key is there, `null` included.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// The value of a key, or `default` where the key is absent. For an optional `T`, `null` is
    /// `None`.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str, default: T) -> Result<T, ModelError> {
        match self.entries.get(key) {
            None => Ok(default),
            Some(value) => serde_json::from_value(value.clone())
                .map_err(|error| self.invalid(key, error.to_string())),
        }
    }

    /// A key that is true or false; `usual` where it is absent or `null`.
    pub(crate) fn flag(&self, key: &str, usual: bool) -> Result<bool, ModelError> {
        Ok(self.get(key, None)?.unwrap_or(usual))
    }

    /// The value of a key that has to be there and not `null`.
    pub(crate) fn require<T: DeserializeOwned>(&self, key: &str) -> Result<T, ModelError> {
        self.get(key, None)?
            .ok_or_else(|| self.invalid(key, "is missing".to_owned()))
    }

    /// The object under a key; `None` where it is absent, `null` or empty, which Python reads
    /// alike.
    pub(crate) fn object(&self, key: &str) -> Result<Option<Self>, ModelError> {
        let entries: Option<Map<String, Value>> = self.get(key, None)?;
        Ok(entries
            .filter(|entries| !entries.is_empty())
            .map(|entries| Self {
                path: self.path.clone(),
                prefix: format!("{}{key}.", self.prefix),
                entries,
                aliases: Vec::new(),
            }))
    }

    /// The token ids under a key that holds one, a list of them, or `null`; `default` where the key
    /// is absent. Negative ids, which some published files have for "none", are left out.
    pub(crate) fn token_ids(
        &self,
        key: &str,
        default: Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Ids {
            One(i64),
            Many(Vec<i64>),
        }
        let ids = match self.get(key, default.map(|id| Ids::One(id.into())))? {
            None => Vec::new(),
            Some(Ids::One(id)) => vec![id],
            Some(Ids::Many(ids)) => ids,
        };
        ids.into_iter()
            .filter(|&id| id >= 0)
            .map(|id| {
                u32::try_from(id).map_err(|_| self.invalid(key, format!("{id} is not a token id")))
            })
            .collect()
    }

    /// The error for a key whose value is wrong.
    pub(crate) fn invalid(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::InvalidConfig {
            path: self.path.clone(),
            key: self.full_key(key),
            problem: problem.into(),
        }
    }

    /// The error for a key whose value is not implemented.
    pub(crate) fn unsupported(
        &self,
        key: &str,
        found: impl Into<String>,
        supported: &'static str,
    ) -> ModelError {
        ModelError::UnsupportedConfig {
            path: self.path.clone(),
            key: self.full_key(key),
            found: found.into(),
            supported,
        }
    }
}
