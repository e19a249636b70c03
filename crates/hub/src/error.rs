//! Errors in finding a model's directory.

use std::error::Error;
use std::path::PathBuf;

/// A model's directory was not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A path that is not a directory and not a name on the hub either.
    #[error("there is no model directory at `{}`", path.display())]
    NoDirectory {
        /// The requested path.
        path: PathBuf,
    },
    /// A name that is not in the cache, in a build without the feature `download`.
    #[error(
        "`{name}` is neither a directory nor in the hub's cache `{}`; this build does not download",
        cache.display()
    )]
    NotCached {
        /// The model's name.
        name: String,
        /// The cache directory.
        cache: PathBuf,
    },
    /// A name that is not in the cache, and the download failed.
    #[error(
        "`{name}` is neither a directory nor in the hub's cache `{}`; it could not be downloaded",
        cache.display()
    )]
    Download {
        /// The model's name.
        name: String,
        /// The cache directory.
        cache: PathBuf,
        /// The error of the hub's client.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A model on the hub without one of the files that are needed.
    #[error("`{name}` on the hub has no {}", missing.join(", "))]
    Incomplete {
        /// The model's name.
        name: String,
        /// The missing files.
        missing: Vec<String>,
    },
}

impl HubError {
    /// What to do, with the files that are needed.
    pub fn hint(&self) -> String {
        let files = "config.json, model.safetensors and tokenizer.json";
        match self {
            Self::NoDirectory { .. } => {
                format!("give the path of a directory that holds {files}")
            }
            Self::NotCached { name, .. } => format!(
                "place {files} from https://huggingface.co/{name} in a directory and pass its \
                 path; a build with `--features hub` downloads by itself"
            ),
            Self::Download { name, .. } => format!(
                "place {files} from https://huggingface.co/{name} in a directory and pass its path"
            ),
            Self::Incomplete { missing, .. } => format!(
                "make {} (`save_pretrained` of transformers writes all three of {files}), place \
                 them in a directory and pass its path",
                missing.join(", ")
            ),
        }
    }
}
