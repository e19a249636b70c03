//! Downloading a model, with its progress in the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hf_hub::HFClient;
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};

use crate::{Hub, HubError, Name};

/// The time between two log lines about a download.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// The files of a repository that a model may need.
const WANTED: [&str; 3] = ["*.json", "*.jinja", "*.safetensors"];

/// Downloads the main branch into the cache; returns its snapshot's directory.
pub(crate) fn snapshot(hub: &Hub, name: Name<'_>) -> Result<PathBuf, HubError> {
    let mut client = HFClient::builder().cache_dir(&hub.cache);
    if let Some(endpoint) = &hub.endpoint {
        client = client.endpoint(endpoint);
    }
    let fetch = || {
        let repository = client.build_sync()?.model(name.owner, name.name);
        repository
            .snapshot_download()
            .allow_patterns(WANTED.map(str::to_owned).to_vec())
            .progress(Report::new(name))
            .send()
    };
    fetch().map_err(|source| HubError::Download {
        name: name.to_string(),
        cache: hub.cache.clone(),
        source: Box::new(source),
    })
}

/// Logs the size of a download, and every ten seconds how much is complete.
struct Report {
    name: String,
    state: Mutex<State>,
}

struct State {
    total: u64,
    files: BTreeMap<String, u64>,
    last_line: Instant,
}

impl Report {
    fn new(name: Name<'_>) -> Self {
        let state = State {
            total: 0,
            files: BTreeMap::new(),
            last_line: Instant::now(),
        };
        Self {
            name: name.to_string(),
            state: Mutex::new(state),
        }
    }
}

impl ProgressHandler for Report {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else {
            return;
        };
        let name = &self.name;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            DownloadEvent::Start {
                total_files,
                total_bytes,
            } => {
                state.total = *total_bytes;
                let size = megabytes(*total_bytes);
                tracing::info!("downloading {name}: {total_files} files, {size:.1} MB");
            }
            DownloadEvent::Progress { files } => {
                for file in files {
                    let name = file.filename.clone();
                    state.files.insert(name, file.bytes_completed);
                }
            }
            // Files that are transferred together are reported as one.
            DownloadEvent::AggregateProgress {
                bytes_completed, ..
            } => {
                state.files.insert(String::new(), *bytes_completed);
            }
            DownloadEvent::Complete => tracing::info!("downloaded {name}"),
        }
        if state.last_line.elapsed() >= LINE_INTERVAL {
            state.last_line = Instant::now();
            let done = megabytes(state.files.values().sum());
            let total = megabytes(state.total);
            tracing::info!("downloading {name}: {done:.1} of {total:.1} MB");
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
