//! The contents of one file, checked, in the cache.
//!
//! The cache keeps contents under their hash. What arrives goes to a file of another name, which
//! stays if the connection breaks, so that the next try continues it, and which gets its place only
//! after its size and its hash have been checked. A lock of the operating system, the one that
//! Python's `huggingface_hub` takes, keeps two processes from downloading the same file.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ureq::http::{StatusCode, header};

use super::client::{Client, Method, expect, shown};
use super::hash::{Hash, Hasher};
use crate::{DownloadError, Event};

/// The tries in a row that bring no further byte.
const TRIES: u32 = 3;
/// The bytes that are read at once.
const CHUNK: usize = 1 << 18;

/// A file in the hub's list.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    /// Its name in the repository.
    pub(crate) name: String,
    /// Its address.
    pub(crate) url: String,
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The hash of its contents, if the hub gives one.
    pub(crate) hash: Option<Hash>,
}

/// Who is told how far a download is.
pub(crate) struct Watch<'a> {
    pub(crate) report: &'a mut dyn FnMut(&Event<'_>),
    /// The name of the model.
    pub(crate) name: &'a str,
    /// The bytes of the files before this one.
    pub(crate) before: u64,
    /// The bytes of all files.
    pub(crate) bytes: u64,
}

impl Watch<'_> {
    /// Tells how many bytes of the current file are there.
    pub(crate) fn there(&mut self, there: u64) {
        (self.report)(&Event::Progress {
            name: self.name,
            done: self.before + there,
            bytes: self.bytes,
        });
    }
}

/// Where contents are kept.
pub(crate) struct Store<'a> {
    /// The directory of the repository's contents.
    pub(crate) blobs: PathBuf,
    /// The directory of the locks.
    pub(crate) locks: PathBuf,
    pub(crate) client: &'a Client<'a>,
    /// The time between two tries.
    pub(crate) pause: Duration,
}

impl Store<'_> {
    /// The name of a file's contents in the directory of contents, downloaded if they are not
    /// there.
    ///
    /// # Errors
    /// [`DownloadError`]; then the contents are not there, and nothing wrong is left.
    pub(crate) fn get(
        &self,
        file: &Listed,
        watch: &mut Watch<'_>,
    ) -> Result<String, DownloadError> {
        create_directory(&self.blobs)?;
        create_directory(&self.locks)?;
        let key = match &file.hash {
            Some(hash) => hash.digits(),
            None => &file.name,
        };
        let _lock = self.lock(key, file, watch)?;
        if let Some(hash) = &file.hash {
            let blob = self.blobs.join(hash.digits());
            if has_contents(&blob, file)? {
                watch.there(file.size);
                return Ok(hash.digits().to_owned());
            }
        }
        let partial = self.blobs.join(format!("{key}.epiphyte.incomplete"));
        if file.hash.is_none() {
            // Without a hash it is not known whether a part belongs to this file.
            remove(&partial)?;
        }
        let hash = self.download(file, &partial, watch);
        let hash = hash.inspect_err(|error| {
            let is_empty = fs::metadata(&partial).is_ok_and(|it| it.len() == 0);
            if is_empty || !may_continue(error) || file.hash.is_none() {
                let _ = fs::remove_file(&partial);
            }
        })?;
        let blob = self.blobs.join(hash.digits());
        fs::rename(&partial, &blob).map_err(failed("write", &blob))?;
        Ok(hash.digits().to_owned())
    }

    /// Waits for the lock of contents.
    fn lock(&self, key: &str, file: &Listed, watch: &mut Watch<'_>) -> Result<File, DownloadError> {
        let path = self.locks.join(format!("{key}.lock"));
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let lock = options.open(&path).map_err(failed("write", &path))?;
        let taken = match lock.try_lock() {
            Ok(()) => Ok(()),
            Err(TryLockError::WouldBlock) => {
                (watch.report)(&Event::Waiting { file: &file.name });
                lock.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
        };
        match taken {
            // Some network file systems have no locks. Contents are checked anyway.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(lock),
            taken => taken.map(|()| lock).map_err(failed("lock", &path)),
        }
    }

    /// Downloads into `partial`, again and again as long as that brings anything.
    fn download(
        &self,
        file: &Listed,
        partial: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<Hash, DownloadError> {
        let mut reached = 0;
        let mut tries = 0;
        loop {
            let mut there = 0;
            let attempt = self.attempt(file, partial, &mut |done| {
                there = done;
                watch.there(done);
            });
            let error = match attempt {
                Ok(hash) => return check(file, hash),
                Err(error) if is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            tries = if there > reached { 1 } else { tries + 1 };
            reached = reached.max(there);
            if tries == TRIES {
                return Err(error);
            }
            (watch.report)(&Event::Retrying { problem: &error });
            thread::sleep(self.pause * tries);
        }
    }

    /// Continues `partial` with one request; returns the hash of the whole.
    fn attempt(
        &self,
        file: &Listed,
        partial: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Hash, DownloadError> {
        let failed_to = |action| failed(action, partial);
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true);
        let mut output = options.open(partial).map_err(failed_to("write"))?;
        let mut hasher = Hasher::new(file.hash.as_ref(), file.size);
        let mut there = 0;
        if output.metadata().map_err(failed_to("read"))?.len() <= file.size {
            there = hash_rest(&mut output, &mut hasher).map_err(failed_to("read"))?;
        }
        if there < file.size || file.size == 0 {
            let from = (there > 0).then_some(there);
            let mut response = self.client.request(Method::Get, &file.url, from)?;
            let continues = from.is_some() && response.status() == StatusCode::PARTIAL_CONTENT;
            if continues {
                let range = response.headers().get(header::CONTENT_RANGE);
                let range = range.and_then(|it| it.to_str().ok()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {there}-")) {
                    return Err(DownloadError::Malformed {
                        url: shown(&file.url),
                        problem: format!("the rest from byte {there} was asked for, not `{range}`"),
                    });
                }
            } else {
                expect(&response, &file.url, StatusCode::OK)?;
                there = 0;
                hasher = Hasher::new(file.hash.as_ref(), file.size);
            }
            if let Some(length) = response.body().content_length() {
                check_size(file, there + length)?;
            }
            output.set_len(there).map_err(failed_to("write"))?;
            let end = output.seek(SeekFrom::Start(there));
            end.map_err(failed_to("write"))?;
            let mut body = response.body_mut().as_reader();
            let mut chunk = vec![0; CHUNK];
            loop {
                progress(there);
                let read = body.read(&mut chunk);
                let read = read.map_err(|error| self.client.failed(&file.url, error.into()))?;
                if read == 0 {
                    break;
                }
                there += read as u64;
                if there > file.size {
                    check_size(file, there)?;
                }
                hasher.update(&chunk[..read]);
                output
                    .write_all(&chunk[..read])
                    .map_err(failed_to("write"))?;
            }
        }
        check_size(file, there)?;
        progress(there);
        output.sync_all().map_err(failed_to("write"))?;
        Ok(hasher.finish())
    }
}

/// Whether contents of the cache are those of the file; wrong ones are removed.
fn has_contents(blob: &Path, file: &Listed) -> Result<bool, DownloadError> {
    let Ok(mut input) = File::open(blob) else {
        return Ok(false);
    };
    let mut hasher = Hasher::new(file.hash.as_ref(), file.size);
    let length = input.metadata().map_err(failed("read", blob))?.len();
    if length == file.size {
        hash_rest(&mut input, &mut hasher).map_err(failed("read", blob))?;
        if file.hash == Some(hasher.finish()) {
            return Ok(true);
        }
    }
    tracing::warn!("`{}` is not what its name says: removed", blob.display());
    remove(blob)?;
    Ok(false)
}

/// Hashes a file from where it stands to its end; returns the number of bytes.
fn hash_rest(input: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK];
    let mut length = 0;
    loop {
        match input.read(&mut chunk)? {
            0 => return Ok(length),
            read => {
                hasher.update(&chunk[..read]);
                length += read as u64;
            }
        }
    }
}

fn check_size(file: &Listed, found: u64) -> Result<(), DownloadError> {
    if found == file.size {
        return Ok(());
    }
    Err(DownloadError::Size {
        url: shown(&file.url),
        expected: file.size,
        found,
    })
}

fn check(file: &Listed, found: Hash) -> Result<Hash, DownloadError> {
    match &file.hash {
        Some(expected) if *expected != found => Err(DownloadError::Hash {
            url: shown(&file.url),
            algorithm: expected.algorithm(),
            expected: expected.digits().to_owned(),
            found: found.digits().to_owned(),
        }),
        _ => Ok(found),
    }
}

/// Whether a new try may help.
pub(crate) fn is_passing(error: &DownloadError) -> bool {
    match error {
        DownloadError::Connection { .. } | DownloadError::Stalled { .. } => true,
        DownloadError::Status { status, .. } => matches!(status, 429 | 500..),
        _ => false,
    }
}

/// Whether what has arrived is worth keeping for the next try. A full disk is emptied again.
fn may_continue(error: &DownloadError) -> bool {
    match error {
        DownloadError::Cache { source, .. } => source.kind() != io::ErrorKind::StorageFull,
        error => is_passing(error),
    }
}

fn create_directory(path: &Path) -> Result<(), DownloadError> {
    fs::create_dir_all(path).map_err(failed("create", path))
}

fn remove(path: &Path) -> Result<(), DownloadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The adapter for `map_err` of what the file system reports.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DownloadError {
    move |source| DownloadError::Cache {
        action,
        path: path.to_owned(),
        source,
    }
}
