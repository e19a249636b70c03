//! A hub on a free port of this machine, whose answers a test may change.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use epiphyte_hub::Hub;
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The only commit.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files of a repository by their path in it.
pub(crate) type Files = BTreeMap<&'static str, Vec<u8>>;

/// A request: `GET /path`, without what follows a question mark, and its headers.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Request {
    /// Whether this asks for the contents of a file.
    pub(crate) fn gets(&self, file: &str) -> bool {
        let is_file = self.line.contains("/resolve/") && self.line.ends_with(&format!("/{file}"));
        self.line.starts_with("GET") && is_file
    }
}

/// How an answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The connection is closed.
    Close,
    /// Nothing more comes, until the client closes the connection.
    Stall,
}

/// An answer.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The value of `Content-Length`, if it is sent.
    pub(crate) length: Option<usize>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status,
            headers: Vec::new(),
            length: Some(body.len()),
            body,
            end: End::Close,
        }
    }

    pub(crate) fn json(value: &Value) -> Self {
        Self::new(200, value.to_string())
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self {
            headers: vec![("Location", to.to_owned())],
            ..Self::new(302, "")
        }
    }

    /// The JSON of the body, changed.
    pub(crate) fn edited(self, change: impl FnOnce(&mut Value)) -> Self {
        let mut value = serde_json::from_slice(&self.body).unwrap();
        change(&mut value);
        Self::json(&value)
    }
}

/// What a test makes of the right answer to a request.
type Change = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// A local hub with one model.
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// A hub that has `org/tiny` and is right.
    pub(crate) fn start(files: Files) -> Self {
        Self::changed(files, |_, reply| reply)
    }

    /// A hub that has `org/tiny` and changes its answers.
    pub(crate) fn changed(
        files: Files,
        change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::of("org/tiny", files, Box::new(change))
    }

    /// A hub that has one model of this name.
    pub(crate) fn of(name: &'static str, files: Files, change: Change) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (requests.clone(), stop.clone());
        let shared = Arc::new((files, change));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, log, shared) = (stream.unwrap(), log.clone(), shared.clone());
                thread::spawn(move || {
                    let (files, change) = &*shared;
                    // A client may close the connection early.
                    let _ = answer(&stream, name, files, change, &log);
                });
            }
        });
        Self {
            address,
            requests,
            stop,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client of this hub.
    pub(crate) fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: Some(self.url()),
            allow_http: true,
            timeout: Duration::from_secs(5),
            ..Hub::at(cache)
        }
    }

    /// A client of this hub which does not wait long.
    pub(crate) fn impatient(&self, cache: &Path, milliseconds: u64) -> Hub {
        Hub {
            timeout: Duration::from_millis(milliseconds),
            ..self.hub(cache)
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests for the contents of a file.
    pub(crate) fn gets(&self, file: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.gets(file));
        requests
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the thread, which then returns and closes the port.
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Answers the one request of a connection.
fn answer(
    mut stream: &TcpStream,
    name: &str,
    files: &Files,
    change: &Change,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((key, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(key.to_lowercase(), value.to_owned());
    }
    let line = first.trim_end_matches(" HTTP/1.1").split('?').next();
    let request = Request {
        line: line.unwrap_or_default().to_owned(),
        headers,
    };
    log.lock().unwrap().push(request.clone());
    let reply = change(&request, right_answer(name, files, &request));
    let mut head = format!("HTTP/1.1 {} Any\r\nConnection: close\r\n", reply.status);
    if let Some(length) = reply.length {
        head += &format!("Content-Length: {length}\r\n");
    }
    for (key, value) in &reply.headers {
        head += &format!("{key}: {value}\r\n");
    }
    write!(stream, "{head}\r\n")?;
    if !request.line.starts_with("HEAD") {
        stream.write_all(&reply.body)?;
    }
    stream.flush()?;
    if reply.end == End::Stall {
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn right_answer(name: &str, files: &Files, request: &Request) -> Reply {
    let path = request.line.split(' ').nth(1).unwrap_or_default();
    if path == format!("/api/models/{name}/revision/main") {
        return Reply::json(&json!({ "sha": COMMIT }));
    }
    if path == format!("/api/models/{name}/tree/{COMMIT}") {
        let entries: Vec<Value> = files.iter().map(entry).collect();
        return Reply::json(&entries.into());
    }
    let file = path.strip_prefix(&format!("/{name}/resolve/"));
    let file = file.and_then(|it| it.strip_prefix(COMMIT).or(it.strip_prefix("main")));
    let file = file.and_then(|it| it.strip_prefix('/'));
    let Some((file, bytes)) = file.and_then(|file| files.get_key_value(file)) else {
        return Reply::new(404, "{}");
    };
    let hash = match file.ends_with(".safetensors") {
        true => sha256(bytes),
        false => git_hash(bytes),
    };
    let headers = vec![
        ("ETag", format!("\"{hash}\"")),
        ("X-Repo-Commit", COMMIT.to_owned()),
        ("Content-Type", "application/octet-stream".to_owned()),
    ];
    let range = request.headers.get("range");
    let mut reply = match range.map(|it| it["bytes=".len()..].trim_end_matches('-').parse()) {
        Some(from) => {
            let from: usize = from.unwrap();
            let mut reply = Reply::new(206, &bytes[from..]);
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            reply.headers.push(("Content-Range", range));
            reply
        }
        None => Reply::new(200, bytes.clone()),
    };
    reply.headers.extend(headers);
    reply
}

/// An entry of the hub's list of files: weights are not in git itself.
fn entry((path, bytes): (&&'static str, &Vec<u8>)) -> Value {
    let mut entry = json!({
        "type": "file", "path": path, "size": bytes.len(), "oid": git_hash(bytes),
    });
    if path.ends_with(".safetensors") {
        entry["oid"] = git_hash(b"the pointer").into();
        entry["lfs"] = json!({ "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 11 });
    }
    entry
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

pub(crate) fn git_hash(bytes: &[u8]) -> String {
    let hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()));
    hexadecimal(&hash.chain_update(bytes).finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The contents of `model.safetensors` in [`model`].
pub(crate) fn weights() -> Vec<u8> {
    (0..900_000u32).map(|at| (at % 251) as u8).collect()
}

/// The files of a model.
pub(crate) fn model() -> Files {
    Files::from([
        ("config.json", b"{\"model_type\": \"bert\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", b"not wanted".to_vec()),
    ])
}

/// The files below a directory, which are relative to it, links not followed.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(entry.path()),
                false => files.push(entry.path().strip_prefix(directory).unwrap().to_owned()),
            }
        }
    }
    files.sort();
    files
}

/// Checks that a cache has nothing that is wrong: contents that are not what their name says, parts
/// of files, or a snapshot with anything but right files.
pub(crate) fn assert_right(cache: &Path, files: &Files) {
    for path in files_below(cache) {
        let text = path.to_str().unwrap();
        let bytes = fs::read(cache.join(&path)).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        match text {
            _ if text.ends_with(".lock") || text.contains(".no_exist/") => {
                assert!(bytes.is_empty(), "{text}");
            }
            _ if text.ends_with("refs/main") => assert_eq!(bytes, COMMIT.as_bytes()),
            _ if text.contains("/blobs/") => {
                assert!(name == sha256(&bytes) || name == git_hash(&bytes), "{text}");
            }
            _ if text.contains("/snapshots/") => assert!(files[name] == bytes, "{text}"),
            _ => panic!("unexpected file {text}"),
        }
    }
}
