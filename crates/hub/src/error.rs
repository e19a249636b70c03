//! Errors in finding a model's directory.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The environment variable that allows a hub without encryption.
pub(crate) const ALLOW_HTTP: &str = "EPIPHYTE_HUB_ALLOW_HTTP";

/// A model's or an adapter's directory was not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A path that is not a directory and not a name on the hub either.
    #[error("there is no {kind} directory at `{}`", path.display())]
    NoDirectory {
        /// The requested path.
        path: PathBuf,
        /// What was looked for: "model" or "adapter".
        kind: &'static str,
    },
    /// A file where a directory is needed.
    #[error("`{}` is {kind}, and a model is a directory or a GGUF file", path.display())]
    File {
        /// The requested path.
        path: PathBuf,
        /// What kind of file it is.
        kind: &'static str,
    },
    /// A name that is not in the cache, in a build without the feature `download` or offline.
    #[error("`{name}` is neither a directory nor in the hub's cache `{}`; {reason}", cache.display())]
    NotCached {
        /// The model's name.
        name: String,
        /// The cache directory.
        cache: PathBuf,
        /// Why it is not downloaded.
        reason: &'static str,
        /// Models of this name with another owner, or the directory that the name's owner is.
        similar: Similar,
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
        /// What went wrong.
        #[source]
        source: Box<DownloadError>,
        /// Models of this name with another owner, or the directory that the name's owner is.
        similar: Similar,
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

/// What a name may have meant that was not found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Similar {
    /// Models of the cache with this name and another owner.
    pub cached: Vec<String>,
    /// The directory on this machine that has the name of the owner.
    pub directory: Option<PathBuf>,
}

impl Similar {
    /// The sentence that precedes a hint; empty if there is nothing similar.
    fn sentence(&self) -> String {
        let mut text = String::new();
        if let Some(directory) = &self.directory {
            text += &format!(
                "if a path was meant: the directory `{}` has nothing of that name; ",
                directory.display()
            );
        }
        if !self.cached.is_empty() {
            text += &format!("the cache has {}; ", self.cached.join(", "));
        }
        text
    }
}

/// A file could not be taken from the hub. Nothing that is wrong stays in the cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The hub's address cannot be used.
    #[error("the hub's address `{endpoint}` {problem}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The hub answers with an error.
    #[error("{url}: the hub answers {status}{}", status_text(*status))]
    Status {
        /// The address that was asked.
        url: String,
        /// The status of HTTP.
        status: u16,
    },
    /// The hub cannot be reached, or the connection broke.
    #[error("{url}: {problem}")]
    Connection {
        /// The address that was asked.
        url: String,
        /// What the system or the HTTP library reports.
        problem: String,
    },
    /// Nothing arrived for too long.
    #[error("{url}: no answer for {} s", seconds.as_secs_f64())]
    Stalled {
        /// The address that was asked.
        url: String,
        /// The time-out.
        seconds: Duration,
    },
    /// An answer that no hub gives, or that cannot be trusted.
    #[error("{url}: {problem}")]
    Malformed {
        /// The address that was asked.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A file that is shorter or longer than the hub's list says.
    #[error("{url} sends {found} bytes, the hub's list of files says {expected}")]
    Size {
        /// The address of the file.
        url: String,
        /// Its size in the list.
        expected: u64,
        /// The size announced or received.
        found: u64,
    },
    /// A file with other contents than the hub's list says.
    #[error("{url} has the {algorithm} {found}, the hub's list of files says {expected}")]
    Hash {
        /// The address of the file.
        url: String,
        /// The kind of hash.
        algorithm: &'static str,
        /// The hash in the list.
        expected: String,
        /// The hash of what was received.
        found: String,
    },
    /// The cache could not be read or written.
    #[error("could not {action} `{}`", path.display())]
    Cache {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's report.
        source: io::Error,
    },
}

impl DownloadError {
    /// The status of HTTP, if the hub answered with an error.
    #[cfg(feature = "download")]
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// What to do, if that is more than to place the files oneself.
    fn advice(&self, name: &str) -> Option<String> {
        Some(match self {
            Self::Status {
                status: 401 | 403, ..
            } => format!(
                "if https://huggingface.co/{name} exists and asks for terms, accept them there; \
                 then set HF_TOKEN to a token that may read it; or "
            ),
            Self::Status { status: 404, .. } => {
                "check the spelling, with the owner; or ".to_owned()
            }
            Self::Status { .. } => "try again later; or ".to_owned(),
            Self::Stalled { .. } | Self::Connection { .. } => {
                "run the same command again: what has arrived is kept; or ".to_owned()
            }
            Self::Endpoint { endpoint, .. } if endpoint.starts_with("http:") => {
                format!("{ALLOW_HTTP}=1 allows it, for a hub that you run yourself; or ")
            }
            _ => return None,
        })
    }
}

/// What the less known among the hub's answers mean.
fn status_text(status: u16) -> &'static str {
    match status {
        401 => " (no such model, or one that needs a token)",
        403 => " (access is not granted)",
        404 => " (not found)",
        429 => " (too many requests)",
        500.. => " (a fault of the hub)",
        _ => "",
    }
}

impl HubError {
    /// What to do, with the files that are needed.
    pub fn hint(&self) -> String {
        let files = "config.json, model.safetensors and tokenizer.json";
        match self {
            Self::NoDirectory {
                kind: "adapter", ..
            } => "give the path of a directory that holds adapter_config.json and \
                  adapter_model.safetensors, or a name on the hub with its owner"
                .to_owned(),
            Self::NoDirectory { .. } => {
                format!("give the path of a directory that holds {files}, or of a GGUF file")
            }
            Self::File { path, .. } => match path.extension().and_then(|it| it.to_str()) {
                Some("bin" | "pt" | "pth" | "ckpt" | "onnx" | "h5") => format!(
                    "this format is not read: pass the directory of the model in Hugging Face's \
                     format, with {files} (`save_pretrained` of transformers writes all three)"
                ),
                _ => format!("pass the directory that holds {files}"),
            },
            Self::NotCached {
                name,
                reason,
                similar,
                ..
            } => {
                let similar = similar.sentence();
                let download = match *reason {
                    OFFLINE => "without HF_HUB_OFFLINE, it is downloaded",
                    _ => "a build with `--features hub` downloads by itself",
                };
                format!(
                    "{similar}place {files} from https://huggingface.co/{name} in a directory and \
                     pass its path; {download}"
                )
            }
            Self::Download {
                name,
                source,
                similar,
                ..
            } => {
                let similar = similar.sentence();
                let advice = source.advice(name).unwrap_or_default();
                format!(
                    "{similar}{advice}place {files} from https://huggingface.co/{name} in a \
                     directory and pass its path"
                )
            }
            Self::Incomplete { name, missing }
                if missing.iter().any(|it| it.starts_with("adapter_")) =>
            {
                format!(
                    "an adapter is adapter_config.json with adapter_model.safetensors: check that \
                     `{name}` is one"
                )
            }
            Self::Incomplete { missing, .. } => format!(
                "make {} (`save_pretrained` of transformers writes all three of {files}), place \
                 them in a directory and pass its path",
                missing.join(", ")
            ),
        }
    }
}

/// Why nothing is downloaded in a build without the feature.
#[cfg(not(feature = "download"))]
pub(crate) const NO_DOWNLOAD: &str = "this build does not download";
/// Why nothing is downloaded offline.
pub(crate) const OFFLINE: &str = "HF_HUB_OFFLINE is set";
