//! From what `--model` says to a directory: a path, or a model's name on the Hugging Face hub.
//!
//! A name is looked up in the hub's cache, where Python's tools leave their downloads, too. Only with
//! the feature `hub` is what is not there fetched from the network.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use epiphyte::models::ModelError;

/// Nobody has the model.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{name}` is neither a directory nor in the hub's cache `{}`; {}", cache.display(),
    if cfg!(feature = "hub") { "it could not be downloaded" } else { "this build does not download" }
)]
pub(crate) struct NoModel {
    name: String,
    cache: PathBuf,
    #[cfg(feature = "hub")]
    source: hf_hub::HFError,
}

impl NoModel {
    /// What to do.
    pub(crate) fn hint(&self) -> String {
        let build = if cfg!(feature = "hub") {
            ""
        } else {
            "; a build with `--features hub` downloads by itself"
        };
        format!(
            "place config.json, model.safetensors and tokenizer.json from https://huggingface.co/{} in a \
             directory and pass its path{build}",
            self.name
        )
    }
}

/// The directory of a model.
pub(crate) fn resolve(model: &Path) -> Result<PathBuf> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    let Some((owner, name)) = model.to_str().and_then(split) else {
        return Err(ModelError::MissingDirectory {
            dir: model.to_owned(),
        }
        .into());
    };
    let cache = cache();
    if let Some(snapshot) = cached(&cache, owner, name) {
        return Ok(snapshot);
    }
    download(owner, name, cache)
}

/// Owner, which old models lack, and name: `bert-base-uncased`, `google-bert/bert-base-uncased`.
fn split(model: &str) -> Option<(&str, &str)> {
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (owner, name) = model.split_once('/').unwrap_or(("", model));
    ((owner.is_empty() || is_name(owner)) && is_name(name)).then_some((owner, name))
}

/// Where the hub's clients keep what they fetched.
fn cache() -> PathBuf {
    let path = |name: &str| env::var_os(name).map(PathBuf::from);
    let hub = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
    hub.unwrap_or_else(|| {
        let home = path("HF_HOME").or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")));
        let home = home.or_else(|| Some(env::home_dir()?.join(".cache/huggingface")));
        home.unwrap_or_default().join("hub")
    })
}

/// The main branch's snapshot, if it has everything that a model needs.
fn cached(cache: &Path, owner: &str, name: &str) -> Option<PathBuf> {
    let owner = if owner.is_empty() {
        String::new()
    } else {
        format!("{owner}--")
    };
    let repository = cache.join(format!("models--{owner}{name}"));
    let revision = fs::read_to_string(repository.join("refs/main")).ok()?;
    let snapshot = repository.join("snapshots").join(revision.trim());
    let has = |name: &str| snapshot.join(name).exists();
    let has_weights = has("model.safetensors") || has("model.safetensors.index.json");
    (has("config.json") && has("tokenizer.json") && has_weights).then_some(snapshot)
}

#[cfg(feature = "hub")]
fn download(owner: &str, name: &str, cache: PathBuf) -> Result<PathBuf> {
    let wanted = ["*.json", "*.jinja", "*.safetensors"]
        .map(str::to_owned)
        .to_vec();
    tracing::info!("downloading {owner}/{name}");
    let fetch = || {
        let repository = hf_hub::HFClientSync::new()?.model(owner, name);
        repository.snapshot_download().allow_patterns(wanted).send()
    };
    let name = if owner.is_empty() {
        name.to_owned()
    } else {
        format!("{owner}/{name}")
    };
    Ok(fetch().map_err(|source| NoModel {
        name,
        cache,
        source,
    })?)
}

#[cfg(not(feature = "hub"))]
fn download(owner: &str, name: &str, cache: PathBuf) -> Result<PathBuf> {
    let name = if owner.is_empty() {
        name.to_owned()
    } else {
        format!("{owner}/{name}")
    };
    Err(NoModel { name, cache }.into())
}

#[cfg(test)]
mod tests {
    use super::{cached, split};

    #[test]
    fn names_are_told_from_paths() {
        assert_eq!(
            split("google-bert/bert-base-uncased"),
            Some(("google-bert", "bert-base-uncased"))
        );
        assert_eq!(split("gpt2"), Some(("", "gpt2")));
        for path in [
            "./gpt2",
            "../a/b",
            "/models/bert",
            "a/b/c",
            "models/",
            "C:\\bert",
            "",
        ] {
            assert_eq!(split(path), None, "{path}");
        }
    }

    #[test]
    fn a_snapshot_counts_when_it_is_whole() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--org--name");
        let snapshot = repository.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "abc\n").unwrap();
        for name in ["config.json", "tokenizer.json"] {
            std::fs::write(snapshot.join(name), "{}").unwrap();
        }
        assert_eq!(cached(cache.path(), "org", "name"), None);
        std::fs::write(snapshot.join("model.safetensors"), "").unwrap();
        assert_eq!(cached(cache.path(), "org", "name"), Some(snapshot));
    }
}
