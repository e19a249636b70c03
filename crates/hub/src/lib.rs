//! From a model's name on the Hugging Face hub to the model's directory.
//!
//! A name is looked up in the hub's cache first, which Python's `huggingface_hub` shares; a model
//! that is complete there needs no network. Other models are downloaded with the feature `download`
//! and are an error without it.
//!
//! ```
//! use epiphyte_hub::Hub;
//!
//! // A path to an existing directory is returned unchanged.
//! let directory = std::env::temp_dir();
//! assert_eq!(Hub::from_env().resolve(&directory)?, directory);
//! # Ok::<(), epiphyte_hub::HubError>(())
//! ```

#[cfg(feature = "download")]
mod download;
mod error;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

pub use error::HubError;

/// A hub and its cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// The hub's address; if not given, the value of `HF_ENDPOINT`, or else huggingface.co.
    pub endpoint: Option<String>,
    /// The directory of downloaded models.
    pub cache: PathBuf,
}

impl Hub {
    /// The hub and the cache that the environment names, as for Python's `huggingface_hub`:
    /// `HF_ENDPOINT`; `HF_HUB_CACHE`, or else `hub` in `HF_HOME`, or else
    /// `~/.cache/huggingface/hub`.
    pub fn from_env() -> Self {
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.unwrap_or_else(|| {
            let home =
                path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")));
            let home = home.or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
            home.unwrap_or_default().join("hub")
        });
        Self {
            endpoint: None,
            cache,
        }
    }

    /// The directory of a model, given as that directory or by its name, such as
    /// `google-bert/bert-base-uncased`.
    ///
    /// # Errors
    /// [`HubError`], if there is no such directory and the model is neither in the cache nor can be
    /// downloaded; [`HubError::hint`] names the files that are needed.
    pub fn resolve(&self, model: &Path) -> Result<PathBuf, HubError> {
        if model.is_dir() {
            return Ok(model.to_owned());
        }
        let name = model.to_str().and_then(Name::parse);
        let name = name.ok_or_else(|| HubError::NoDirectory {
            path: model.to_owned(),
        })?;
        match self.cached(name) {
            Some(snapshot) => Ok(snapshot),
            None => self.fetch(name),
        }
    }

    /// The main branch's snapshot, if it is complete.
    fn cached(&self, name: Name<'_>) -> Option<PathBuf> {
        let repository = self.cache.join(name.folder());
        let revision = fs::read_to_string(repository.join("refs/main")).ok()?;
        let snapshot = repository.join("snapshots").join(revision.trim());
        missing(&snapshot).is_empty().then_some(snapshot)
    }

    #[cfg(feature = "download")]
    fn fetch(&self, name: Name<'_>) -> Result<PathBuf, HubError> {
        let snapshot = download::snapshot(self, name)?;
        let missing = missing(&snapshot);
        if missing.is_empty() {
            return Ok(snapshot);
        }
        Err(HubError::Incomplete {
            name: name.to_string(),
            missing,
        })
    }

    #[cfg(not(feature = "download"))]
    fn fetch(&self, name: Name<'_>) -> Result<PathBuf, HubError> {
        Err(HubError::NotCached {
            name: name.to_string(),
            cache: self.cache.clone(),
        })
    }
}

/// The files missing from a model's directory: configuration, tokenizer, and weights with all their
/// shards.
fn missing(directory: &Path) -> Vec<String> {
    let is_missing = |name: &str| !directory.join(name).exists();
    let mut wanted = vec!["config.json".to_owned(), "tokenizer.json".to_owned()];
    match fs::read(directory.join("model.safetensors.index.json")) {
        Ok(index) if is_missing("model.safetensors") => wanted.extend(shards(&index)),
        _ => wanted.push("model.safetensors".to_owned()),
    }
    wanted.retain(|name| is_missing(name));
    wanted
}

/// The files that an index names; none if it is malformed, which is an error when the model is
/// loaded.
fn shards(index: &[u8]) -> Vec<String> {
    let index: serde_json::Value = serde_json::from_slice(index).unwrap_or_default();
    let files = index["weight_map"].as_object().into_iter().flatten();
    let mut shards: Vec<String> = files
        .filter_map(|(_, file)| file.as_str().map(str::to_owned))
        .collect();
    shards.sort_unstable();
    shards.dedup();
    shards
}

/// A model's name: an owner, empty for the hub's oldest models, and a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name<'a> {
    owner: &'a str,
    name: &'a str,
}

impl<'a> Name<'a> {
    /// Parses `bert-base-uncased` or `google-bert/bert-base-uncased`; none for anything else, such
    /// as a path.
    fn parse(model: &'a str) -> Option<Self> {
        let is_name = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let (owner, name) = model.split_once('/').unwrap_or(("", model));
        let fits = (owner.is_empty() || is_name(owner)) && is_name(name);
        (fits && !model.starts_with('/')).then_some(Self { owner, name })
    }

    /// The model's directory in the cache.
    fn folder(self) -> String {
        format!("models--{}", self.to_string().replace('/', "--"))
    }
}

impl std::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { owner, name } = self;
        if owner.is_empty() {
            f.write_str(name)
        } else {
            write!(f, "{owner}/{name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_not_names() {
        let name = |owner, name| Some(Name { owner, name });
        assert_eq!(
            Name::parse("google-bert/bert-base-uncased"),
            name("google-bert", "bert-base-uncased")
        );
        assert_eq!(Name::parse("gpt2"), name("", "gpt2"));
        for path in [
            "./gpt2",
            "../a/b",
            "/bert",
            "/models/bert",
            "a/b/c",
            "models/",
            "C:\\bert",
            "",
        ] {
            assert_eq!(Name::parse(path), None, "{path}");
        }
    }

    /// A cache with an empty snapshot of a model.
    fn cache() -> (tempfile::TempDir, Hub, PathBuf) {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc\n").unwrap();
        let hub = Hub {
            endpoint: None,
            cache: cache.path().to_owned(),
        };
        (cache, hub, snapshot)
    }

    #[test]
    fn an_incomplete_snapshot_is_not_used() {
        let (_cache, hub, snapshot) = cache();
        let name = Name::parse("org/name").unwrap();
        for file in ["config.json", "tokenizer.json"] {
            assert_eq!(hub.cached(name), None);
            fs::write(snapshot.join(file), "{}").unwrap();
        }
        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
        assert_eq!(missing(&snapshot), ["one.safetensors", "two.safetensors"]);
        fs::write(snapshot.join("one.safetensors"), "").unwrap();
        assert_eq!(hub.cached(name), None);
        fs::write(snapshot.join("two.safetensors"), "").unwrap();
        assert_eq!(hub.cached(name), Some(snapshot.clone()));
        assert_eq!(hub.resolve(Path::new("org/name")).unwrap(), snapshot);
    }

    #[test]
    fn a_path_that_is_not_a_directory_is_named() {
        let (_cache, hub, _) = cache();
        let error = hub.resolve(Path::new("./absent")).unwrap_err();
        assert!(error.to_string().contains("`./absent`"), "{error}");
        assert!(error.hint().contains("config.json"), "{}", error.hint());
    }

    #[test]
    #[cfg(not(feature = "download"))]
    fn without_the_feature_only_the_cache_is_used() {
        let (_cache, hub, _) = cache();
        let error = hub.resolve(Path::new("org/other")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("`org/other` is neither a directory"),
            "{text}"
        );
        assert!(text.contains("this build does not download"), "{text}");
        let hint = error.hint();
        assert!(hint.contains("https://huggingface.co/org/other"), "{hint}");
        assert!(hint.contains("--features hub"), "{hint}");
    }
}
