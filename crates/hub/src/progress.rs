//! What a download reports while it runs, and log lines that show it.

use std::fmt;
use std::time::{Duration, Instant};

use crate::DownloadError;

/// The time between two log lines about a download.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Something that happened while a model was looked up or downloaded.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A model without owner was found under another name.
    Found {
        /// The given name.
        given: &'a str,
        /// The model's name.
        name: &'a str,
    },
    /// A download begins.
    Started {
        /// The model's name.
        name: &'a str,
        /// The number of files.
        files: usize,
        /// Their size in bytes.
        bytes: u64,
    },
    /// Some bytes are there.
    Progress {
        /// The model's name.
        name: &'a str,
        /// The bytes that are there, with those of earlier downloads.
        done: u64,
        /// The size of all files in bytes.
        bytes: u64,
    },
    /// Another process downloads the same file; this one waits for it.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// A connection failed and is tried again.
    Retrying {
        /// What went wrong.
        problem: &'a DownloadError,
    },
    /// The download is complete.
    Finished {
        /// The model's name.
        name: &'a str,
    },
    /// A model of the cache lacks files that its repository may have, and the hub cannot be asked.
    Undecided {
        /// The model's name.
        name: &'a str,
        /// The files.
        files: &'a [&'static str],
        /// Why the hub cannot be asked.
        reason: &'a str,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { given, name } => write!(f, "`{given}` is `{name}` on the hub"),
            Self::Started { name, files, bytes } => {
                let size = megabytes(*bytes);
                write!(f, "downloading {name}: {files} files, {size:.1} MB")
            }
            Self::Progress { name, done, bytes } => {
                let (done, total) = (megabytes(*done), megabytes(*bytes));
                write!(f, "downloading {name}: {done:.1} of {total:.1} MB")
            }
            Self::Waiting { file } => {
                write!(f, "another process downloads {file}: waiting for it")
            }
            Self::Retrying { problem } => write!(f, "{problem}: trying again"),
            Self::Finished { name } => write!(f, "downloaded {name}"),
            Self::Undecided {
                name,
                files,
                reason,
            } => write!(
                f,
                "`{name}` in the hub's cache has no {}, and whether the hub has is not known: \
                 {reason}",
                files.join(", ")
            ),
        }
    }
}

/// Logs events with `tracing`: the size of a download, and every ten seconds how much is complete.
#[derive(Debug, Default)]
pub struct LogLines {
    last: Option<Instant>,
}

impl LogLines {
    /// Logs an event.
    pub fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Progress { .. } => {
                let now = Instant::now();
                let last = *self.last.get_or_insert(now);
                if now.duration_since(last) >= LINE_INTERVAL {
                    self.last = Some(now);
                    tracing::info!("{event}");
                }
            }
            Event::Retrying { .. } | Event::Undecided { .. } => tracing::warn!("{event}"),
            _ => tracing::info!("{event}"),
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
