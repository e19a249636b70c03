//! Downloading a repository's files into the cache.
//!
//! What is downloaded follows from our own list of names and the hub's list of files, which has the
//! size and the hash of each. Nothing else that the hub says becomes a path.

mod blob;
mod client;
mod hash;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use serde::Deserialize;

use self::blob::{Listed, Store, Watch, failed, is_passing};
use self::client::{Client, Method};
use self::hash::Hash;
use crate::name::{Name, is_plain};
use crate::snapshot::{INDEX, Kind, Snapshot, TOKENIZER, WEIGHTS, has_tokenizer, shards};
use crate::{DownloadError, Event, Hub};

/// The pages of the hub's list of files that are read.
const MAX_PAGES: usize = 100;
/// The tries for an answer of the hub's interface.
const TRIES: u32 = 3;
/// The time between two tries, as a part of the time-out.
const PAUSE_DIVISOR: u32 = 10;

/// The files of one commit that a model or an adapter needs, as the hub lists them.
pub(crate) struct Listing<'a> {
    hub: &'a Hub,
    name: Name<'a>,
    client: Client<'a>,
    /// The snapshot that the files belong to.
    pub(crate) snapshot: Snapshot,
    /// All plain files of the commit.
    files: BTreeMap<String, Listed>,
    /// The names of those to download.
    wanted: Vec<String>,
}

impl<'a> Listing<'a> {
    /// Asks the hub for its list of the files of a commit, the newest of the main branch if none is
    /// given.
    pub(crate) fn ask(
        hub: &'a Hub,
        name: Name<'a>,
        kind: Kind,
        commit: Option<&str>,
    ) -> Result<Self, DownloadError> {
        let client = Client::new(hub)?;
        let ask = || match commit {
            Some(commit) => Ok(commit.to_owned()),
            None => newest_commit(&client, name),
        };
        let commit = retry(hub, ask)?;
        let files = retry(hub, || list(&client, name, &commit))?;
        let wanted = kind.small_files().filter(|&it| files.contains_key(it));
        let wanted = wanted.map(str::to_owned).collect();
        let mut listing = Self {
            snapshot: Snapshot::new(&hub.cache, name, &commit, kind),
            hub,
            name,
            client,
            files,
            wanted,
        };
        if kind == Kind::Model {
            listing.want_weights()?;
        }
        Ok(listing)
    }

    /// Adds the file of the weights, or else the shards with their index, which is downloaded now.
    fn want_weights(&mut self) -> Result<(), DownloadError> {
        let index = match self.files.get(INDEX) {
            Some(index) if !self.files.contains_key(WEIGHTS) => index,
            _ => {
                self.wanted.push(WEIGHTS.to_owned());
                return Ok(());
            }
        };
        let mut watch = Watch {
            report: &mut |_| (),
            name: "",
            before: 0,
            bytes: index.size,
        };
        self.place(index, &mut watch)?;
        let path = self.snapshot.directory().join(INDEX);
        let index = fs::read(&path).map_err(failed("read", &path))?;
        self.wanted.push(INDEX.to_owned());
        self.wanted.extend(shards(&index));
        Ok(())
    }

    /// The files without which nothing works and that the hub does not have.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self.wanted.clone();
        missing.extend(self.snapshot.missing());
        missing.retain(|name| !self.files.contains_key(name));
        if has_tokenizer(|name| self.files.contains_key(name)) {
            missing.retain(|name| name != TOKENIZER);
        }
        missing.sort_unstable();
        missing.dedup();
        // The index of a stranger's model may name anything.
        let shown = missing.iter().map(|name| name.escape_debug().to_string());
        shown.collect()
    }

    /// Downloads what is not in the cache, and makes the snapshot the main branch's.
    pub(crate) fn download(&self, report: &mut dyn FnMut(&Event<'_>)) -> Result<(), DownloadError> {
        let name = self.name.to_string();
        let wanted = self.wanted.iter().filter_map(|name| self.files.get(name));
        let wanted: Vec<&Listed> = wanted.collect();
        let bytes = wanted.iter().map(|file| file.size).sum();
        if !wanted.iter().all(|file| self.has(file)) {
            report(&Event::Started {
                name: &name,
                files: wanted.len(),
                bytes,
            });
            let mut watch = Watch {
                report,
                name: &name,
                before: 0,
                bytes,
            };
            for file in wanted {
                self.place(file, &mut watch)?;
                watch.before += file.size;
            }
            report(&Event::Finished { name: &name });
        }
        self.snapshot.decide(|name| self.files.contains_key(name));
        self.write_branch()
    }

    /// Whether the snapshot has a file of the right size.
    fn has(&self, file: &Listed) -> bool {
        let metadata = fs::metadata(self.snapshot.directory().join(&file.name));
        metadata.is_ok_and(|it| it.len() == file.size)
    }

    /// Makes sure that the snapshot has a file.
    fn place(&self, file: &Listed, watch: &mut Watch<'_>) -> Result<(), DownloadError> {
        if self.has(file) {
            watch.there(file.size);
            return Ok(());
        }
        let mut file = file.clone();
        if file.hash.is_none() {
            file.hash = hash_of_headers(&self.client, &file)?;
        }
        if file.hash.is_none() {
            tracing::warn!(
                "the hub gives no hash for {}: only its size is checked",
                file.name
            );
        }
        let store = Store {
            blobs: self.snapshot.repository.join("blobs"),
            locks: self.hub.cache.join(".locks").join(self.name.folder()),
            client: &self.client,
            pause: self.hub.timeout / PAUSE_DIVISOR,
        };
        let blob = store.get(&file, watch)?;
        let directory = self.snapshot.directory();
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let path = directory.join(&file.name);
        link(&store.blobs.join(&blob), &path).map_err(failed("write", &path))
    }

    /// Notes the commit as the main branch's, unless an older one was asked for that is there.
    fn write_branch(&self) -> Result<(), DownloadError> {
        let path = self.snapshot.repository.join("refs/main");
        let directory = self.snapshot.repository.join("refs");
        let commit = &self.snapshot.commit;
        if fs::read_to_string(&path).is_ok_and(|it| it.trim() == commit) {
            return Ok(());
        }
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        replace(&path, |temporary| fs::write(temporary, commit)).map_err(failed("write", &path))
    }
}

/// An answer to `GET /api/models/NAME/revision/main`.
#[derive(Deserialize)]
struct Revision {
    sha: String,
}

/// An entry of the hub's list of files.
#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    oid: Option<String>,
    lfs: Option<LargeFile>,
}

/// What the list says about a file that is not in git itself.
#[derive(Deserialize)]
struct LargeFile {
    oid: Option<String>,
    size: Option<u64>,
}

/// The newest commit of the main branch.
fn newest_commit(client: &Client<'_>, name: Name<'_>) -> Result<String, DownloadError> {
    let url = client.url(&format!("api/models/{name}/revision/main"));
    let (revision, _) = client.json::<Revision>(&url)?;
    match Hash::parse(&revision.sha) {
        Some(_) => Ok(revision.sha),
        None => Err(DownloadError::Malformed {
            url,
            problem: format!("`{}` is no commit", revision.sha.escape_debug()),
        }),
    }
}

/// The plain files of a commit; those in folders are not needed.
fn list(
    client: &Client<'_>,
    name: Name<'_>,
    commit: &str,
) -> Result<BTreeMap<String, Listed>, DownloadError> {
    let mut files = BTreeMap::new();
    let mut next = Some(client.url(&format!("api/models/{name}/tree/{commit}")));
    for _ in 0..MAX_PAGES {
        let Some(url) = next else {
            return Ok(files);
        };
        let (entries, following) = client.json::<Vec<Entry>>(&url)?;
        for entry in entries {
            if entry.kind != "file" || !is_plain(&entry.path) {
                continue;
            }
            let large = entry.lfs.as_ref();
            let size = large.and_then(|it| it.size).or(entry.size);
            let size = size.ok_or_else(|| DownloadError::Malformed {
                url: url.clone(),
                problem: format!("{} has no size", entry.path),
            })?;
            // The git hash of a large file is that of its pointer.
            let oid = large.map_or(entry.oid, |it| it.oid.clone());
            let file = Listed {
                url: client.url(&format!("{name}/resolve/{commit}/{}", entry.path)),
                name: entry.path,
                size,
                hash: oid.and_then(|it| Hash::parse(&it)),
            };
            files.insert(file.name.clone(), file);
        }
        next = following;
    }
    Err(DownloadError::Malformed {
        url: client.url(&format!("api/models/{name}/tree/{commit}")),
        problem: format!("more than {MAX_PAGES} pages"),
    })
}

/// The hash in the headers that the hub sends with a file: `X-Linked-Etag` for large files, `ETag`
/// for small ones.
fn hash_of_headers(client: &Client<'_>, file: &Listed) -> Result<Option<Hash>, DownloadError> {
    let response = client.request(Method::Head, &file.url, None)?;
    let tags = ["x-linked-etag", "etag"].map(|name| response.headers().get(name));
    let tags = tags.into_iter().flatten();
    let mut hashes = tags.filter_map(|tag| {
        let tag = tag.to_str().ok()?;
        Hash::parse(tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"'))
    });
    Ok(hashes.next())
}

/// Repeats what the hub has no time for now. An unreachable hub is not asked again.
fn retry<T>(hub: &Hub, ask: impl Fn() -> Result<T, DownloadError>) -> Result<T, DownloadError> {
    for time in 1..TRIES {
        match ask() {
            Err(error) if error.status().is_some() && is_passing(&error) => {
                thread::sleep(hub.timeout / PAUSE_DIVISOR * time);
            }
            answer => return answer,
        }
    }
    ask()
}

/// Puts a link to contents into a snapshot, as Python's `huggingface_hub` does; a copy where the
/// system allows no links.
fn link(blob: &Path, path: &Path) -> io::Result<()> {
    replace(path, |temporary| {
        let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(target, temporary);
        #[cfg(windows)]
        let linked = std::os::windows::fs::symlink_file(target, temporary);
        linked.or_else(|_| fs::copy(blob, temporary).map(drop))
    })
}

/// Makes a file under a temporary name and moves it into place.
fn replace(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    /// Threads of one process may make the same file.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}.tmp", process::id()));
    let temporary = path.with_file_name(name);
    let _ = fs::remove_file(&temporary);
    make(&temporary)?;
    fs::rename(&temporary, path).inspect_err(|_| drop(fs::remove_file(&temporary)))
}
