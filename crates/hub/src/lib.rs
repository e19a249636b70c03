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
mod name;
mod progress;
mod snapshot;
mod token;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use error::{DownloadError, HubError, Similar};
pub use progress::{Event, LogLines};
pub use token::Token;

use crate::error::ALLOW_HTTP;
use crate::name::Name;
use crate::snapshot::{Kind, Snapshot};
use crate::token::is_on;

/// The time-out of Python's `huggingface_hub`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A hub and its cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// The hub's address; if not given, huggingface.co.
    pub endpoint: Option<String>,
    /// The directory of downloaded models.
    pub cache: PathBuf,
    /// The user's token. It is sent to the hub itself over https only.
    pub token: Option<Token>,
    /// Whether the hub's address may be http, without encryption.
    pub allow_http: bool,
    /// Whether only the cache is used.
    pub offline: bool,
    /// The longest time without an answer or without a further byte.
    pub timeout: Duration,
}

impl Hub {
    /// huggingface.co without a token, and a cache directory.
    pub fn at(cache: &Path) -> Self {
        Self {
            endpoint: None,
            cache: cache.to_owned(),
            token: None,
            allow_http: false,
            offline: false,
            timeout: TIMEOUT,
        }
    }

    /// The hub and the cache that the environment names, as for Python's `huggingface_hub`:
    /// - address: `HF_ENDPOINT`, which must be https unless `EPIPHYTE_HUB_ALLOW_HTTP=1`
    /// - cache: `HF_HUB_CACHE`, or else `hub` in `HF_HOME`, or else `~/.cache/huggingface/hub`
    /// - token: `HF_TOKEN`, or else the file that `hf auth login` writes
    /// - `HF_HUB_OFFLINE=1`: only the cache
    /// - `HF_HUB_DOWNLOAD_TIMEOUT`: the time-out in seconds, 10 if not given.
    pub fn from_env() -> Self {
        let path = |name: &str| env::var_os(name).map(PathBuf::from);
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")));
        let home = home.or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
        let home = home.unwrap_or_default();
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let seconds = env::var("HF_HUB_DOWNLOAD_TIMEOUT").ok();
        let seconds = seconds.and_then(|it| it.parse().ok()).filter(|&it| it > 0);
        Self {
            endpoint: env::var("HF_ENDPOINT").ok().filter(|it| !it.is_empty()),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token: Token::from_env(&home),
            allow_http: is_on(ALLOW_HTTP),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            timeout: seconds.map_or(TIMEOUT, Duration::from_secs),
        }
    }

    /// The directory or the GGUF file of a model, given by its path or by the model's name, such as
    /// `google-bert/bert-base-uncased`. A name without owner may also be one of
    /// `sentence-transformers`. Events are logged.
    ///
    /// # Errors
    /// [`HubError`], if there is no such directory and the model is neither in the cache nor can be
    /// downloaded; [`HubError::hint`] names the files that are needed.
    pub fn resolve(&self, model: &Path) -> Result<PathBuf, HubError> {
        let mut lines = LogLines::default();
        self.resolve_with(model, &mut |event| lines.event(event))
    }

    /// [`Hub::resolve`], which reports what happens.
    ///
    /// # Errors
    /// Those of [`Hub::resolve`].
    pub fn resolve_with(
        &self,
        model: &Path,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        self.find(model, Kind::Model, report)
    }

    /// The directory of an adapter, given as that directory, by a file in it, or by its name on the
    /// hub, which has an owner.
    ///
    /// # Errors
    /// Those of [`Hub::resolve`].
    pub fn resolve_adapter_with(
        &self,
        adapter: &Path,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        self.find(adapter, Kind::Adapter, report)
    }

    fn find(
        &self,
        path: &Path,
        kind: Kind,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        // An adapter may be given by its configuration's path, which its reader understands; a GGUF
        // file is a model.
        let may_be_file = kind == Kind::Adapter || is_gguf(path);
        if path.is_dir() || (may_be_file && path.exists()) {
            return Ok(path.to_owned());
        }
        if path.exists() {
            return Err(HubError::File {
                path: path.to_owned(),
                kind: kind_of_file(path),
            });
        }
        let name = path.to_str().and_then(Name::parse);
        // Only the hub's oldest models have no owner.
        let name = name.filter(|name| kind == Kind::Model || !name.owner.is_empty());
        let given = name.ok_or_else(|| HubError::NoDirectory {
            path: path.to_owned(),
            kind: kind.noun(),
        })?;
        let meanings = given.meanings();
        for &name in &meanings {
            if let Some(snapshot) = Snapshot::of_main(&self.cache, name, kind)
                && snapshot.missing().is_empty()
            {
                found(given, name, report);
                self.complete(name, kind, &snapshot, report)?;
                return Ok(snapshot.directory());
            }
        }
        self.fetch(&meanings, kind, report)
    }

    /// Downloads the files of a snapshot that its repository has and that change results: Python's
    /// `huggingface_hub` downloads only the files that a program asks for.
    #[cfg(feature = "download")]
    fn complete(
        &self,
        name: Name<'_>,
        kind: Kind,
        snapshot: &Snapshot,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), HubError> {
        let undecided = snapshot.undecided();
        if undecided.is_empty() {
            return Ok(());
        }
        let ask = || match self.offline {
            true => Err(error::OFFLINE.to_owned()),
            false => download::Listing::ask(self, name, kind, Some(&snapshot.commit))
                .map_err(|error| error.to_string()),
        };
        match ask() {
            Ok(listing) => listing
                .download(report)
                .map_err(|error| self.not_downloaded(name, error)),
            Err(reason) => {
                report(&Event::Undecided {
                    name: &name.to_string(),
                    files: &undecided,
                    reason: &reason,
                });
                Ok(())
            }
        }
    }

    #[cfg(not(feature = "download"))]
    fn complete(
        &self,
        name: Name<'_>,
        _kind: Kind,
        snapshot: &Snapshot,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<(), HubError> {
        let undecided = snapshot.undecided();
        if !undecided.is_empty() {
            report(&Event::Undecided {
                name: &name.to_string(),
                files: &undecided,
                reason: error::NO_DOWNLOAD,
            });
        }
        Ok(())
    }

    /// Downloads the first of the models that the hub has.
    #[cfg(feature = "download")]
    fn fetch(
        &self,
        meanings: &[Name<'_>],
        kind: Kind,
        report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        let given = meanings[0];
        if self.offline {
            return Err(self.not_cached(given, error::OFFLINE));
        }
        let mut unknown = None;
        for &name in meanings {
            let failed = |error| self.not_downloaded(name, error);
            match download::Listing::ask(self, name, kind, None) {
                // The hub says 401 for names that it does not know, so that private ones stay so.
                Err(error) if matches!(error.status(), Some(401 | 404)) => {
                    unknown.get_or_insert(error);
                }
                Err(error) => return Err(failed(error)),
                Ok(listing) => {
                    found(given, name, report);
                    let missing = listing.missing();
                    if !missing.is_empty() {
                        let name = name.to_string();
                        return Err(HubError::Incomplete { name, missing });
                    }
                    listing.download(report).map_err(failed)?;
                    return Ok(listing.snapshot.directory());
                }
            }
        }
        let error = unknown.expect("a name has at least one meaning");
        Err(self.not_downloaded(given, error))
    }

    #[cfg(not(feature = "download"))]
    fn fetch(
        &self,
        meanings: &[Name<'_>],
        _kind: Kind,
        _report: &mut dyn FnMut(&Event<'_>),
    ) -> Result<PathBuf, HubError> {
        Err(self.not_cached(meanings[0], error::NO_DOWNLOAD))
    }

    fn not_cached(&self, name: Name<'_>, reason: &'static str) -> HubError {
        HubError::NotCached {
            name: name.to_string(),
            cache: self.cache.clone(),
            reason,
            similar: self.similar(name),
        }
    }

    #[cfg(feature = "download")]
    fn not_downloaded(&self, name: Name<'_>, error: DownloadError) -> HubError {
        HubError::Download {
            name: name.to_string(),
            cache: self.cache.clone(),
            source: Box::new(error),
            similar: self.similar(name),
        }
    }

    /// What a name may have meant: a model of the cache with another owner, or a path.
    fn similar(&self, name: Name<'_>) -> Similar {
        let entries = fs::read_dir(&self.cache).into_iter().flatten().flatten();
        let folders = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let names = folders.filter_map(|it| Some(it.strip_prefix("models--")?.replace("--", "/")));
        let is_similar = |it: &String| {
            let last = it.rsplit('/').next().unwrap_or(it);
            last.eq_ignore_ascii_case(name.name) && *it != name.to_string()
        };
        let mut cached: Vec<String> = names.filter(is_similar).collect();
        cached.sort_unstable();
        let directory = Some(PathBuf::from(name.owner)).filter(|it| it.is_dir());
        Similar { cached, directory }
    }
}

/// Reports that a name without owner was found under another one.
fn found(given: Name<'_>, name: Name<'_>, report: &mut dyn FnMut(&Event<'_>)) {
    if given != name {
        report(&Event::Found {
            given: &given.to_string(),
            name: &name.to_string(),
        });
    }
}

/// Whether a path is named as GGUF files are.
fn is_gguf(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// What kind of file stands where a model's directory was expected.
fn kind_of_file(path: &Path) -> &'static str {
    match path.extension().and_then(|it| it.to_str()) {
        Some("bin" | "pt" | "pth" | "ckpt") => "a file of PyTorch",
        Some("onnx") => "an ONNX file",
        Some("safetensors") => "a file of weights",
        _ => "a file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache with a snapshot of a model that lacks nothing.
    fn cache(name: &str) -> (tempfile::TempDir, Hub, PathBuf) {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join(Name::parse(name).unwrap().folder());
        let snapshot = repository.join("snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc\n").unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs::write(snapshot.join(file), "{}").unwrap();
        }
        let hub = Hub {
            offline: true,
            ..Hub::at(cache.path())
        };
        (cache, hub, snapshot)
    }

    #[test]
    fn a_whole_snapshot_is_used_and_an_incomplete_one_is_not() {
        let (_cache, hub, snapshot) = cache("org/name");
        let name = Path::new("org/name");
        assert_eq!(hub.resolve(name).unwrap(), snapshot);
        fs::remove_file(snapshot.join("tokenizer.json")).unwrap();
        let error = hub.resolve(name).unwrap_err();
        assert!(matches!(error, HubError::NotCached { .. }), "{error:?}");
    }

    #[test]
    fn what_a_snapshot_may_lack_is_reported() {
        let (_cache, hub, snapshot) = cache("org/name");
        fs::write(snapshot.join("tokenizer_config.json"), "{}").unwrap();
        let mut events = Vec::new();
        let found = hub.resolve_with(Path::new("org/name"), &mut |event| {
            events.push(event.to_string());
        });
        assert_eq!(found.unwrap(), snapshot);
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(
            events[0].starts_with(
                "`org/name` in the hub's cache has no generation_config.json, \
                 special_tokens_map.json, chat_template.jinja, and whether the hub has is not known"
            ),
            "{events:?}"
        );
    }

    #[test]
    fn a_name_of_sentence_transformers_needs_no_owner() {
        let (_cache, hub, snapshot) = cache("sentence-transformers/all-MiniLM-L6-v2");
        let found = hub.resolve(Path::new("all-MiniLM-L6-v2")).unwrap();
        assert_eq!(found, snapshot);
    }

    #[test]
    fn a_model_of_another_owner_is_suggested() {
        let (_cache, hub, _) = cache("google-bert/bert-base-uncased");
        let error = hub.resolve(Path::new("bert-base-uncased")).unwrap_err();
        let hint = error.hint();
        assert!(
            hint.contains("the cache has google-bert/bert-base-uncased"),
            "{hint}"
        );
    }

    #[test]
    fn a_path_that_is_not_a_directory_is_named() {
        let (cache, hub, _) = cache("org/name");
        let error = hub.resolve(Path::new("./absent")).unwrap_err();
        assert!(error.to_string().contains("`./absent`"), "{error}");
        assert!(error.hint().contains("config.json"), "{}", error.hint());

        let model = cache.path().join("model.gguf");
        fs::write(&model, "").unwrap();
        assert_eq!(hub.resolve(&model).unwrap(), model);
        let file = cache.path().join("model.onnx");
        fs::write(&file, "").unwrap();
        let error = hub.resolve(&file).unwrap_err();
        assert!(error.to_string().contains("is an ONNX file"), "{error}");
        assert!(
            error.hint().contains("this format is not read"),
            "{}",
            error.hint()
        );
    }

    #[test]
    fn an_owner_that_is_a_directory_here_is_mentioned() {
        let (_cache, hub, _) = cache("org/name");
        // Tests run in the directory of their crate.
        let error = hub.resolve(Path::new("src/none")).unwrap_err();
        let hint = error.hint();
        assert!(
            hint.contains("the directory `src` has nothing of that name"),
            "{hint}"
        );
    }

    #[test]
    #[cfg(not(feature = "download"))]
    fn without_the_feature_only_the_cache_is_used() {
        let (_cache, hub, _) = cache("org/name");
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
