//! A model by its name, from a local server that answers the requests of hf-hub.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use epiphyte_hub::{Hub, HubError};
use serde_json::json;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Files of a repository by their path in it.
type Files = BTreeMap<&'static str, Vec<u8>>;

/// A local hub with one model, `org/tiny`, on a free port.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (log, stopped) = (requests.clone(), stop.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                // A client may close the connection early.
                let _ = answer(stream.unwrap(), &files, &log);
            }
        });
        Self {
            address,
            requests,
            stop,
            thread: Some(thread),
        }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            endpoint: Some(format!("http://{}", self.address)),
            cache: cache.to_owned(),
        }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
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
fn answer(stream: TcpStream, files: &Files, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let path = target.split('?').next().unwrap_or("");
    log.lock().unwrap().push(format!("{method} {path}"));

    let resolve = format!("/org/tiny/resolve/{COMMIT}/");
    let reply = if path == "/api/models/org/tiny/revision/main" {
        Some((json!({ "sha": COMMIT }).to_string().into_bytes(), 0))
    } else if path == format!("/api/models/org/tiny/tree/{COMMIT}") {
        let entries: Vec<_> = files
            .iter()
            .map(|(path, bytes)| {
                json!({ "type": "file", "oid": "0", "size": bytes.len(), "path": path })
            })
            .collect();
        Some((json!(entries).to_string().into_bytes(), 0))
    } else {
        let name = path.strip_prefix(&resolve);
        let at = name.and_then(|name| files.keys().position(|key| *key == name));
        at.map(|at| (files.values().nth(at).unwrap().clone(), at))
    };
    let (status, body, at) = match reply {
        Some((body, at)) => ("200 OK", body, at),
        None => ("404 Not Found", b"{}".to_vec(), 0),
    };
    let mut stream = &stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"etag{at}\"\r\n\
         X-Repo-Commit: {COMMIT}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    if method != "HEAD" {
        stream.write_all(&body)?;
    }
    stream.flush()
}

fn model() -> Files {
    let weights: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    Files::from([
        ("config.json", b"{\"model_type\": \"bert\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("tokenizer_config.json", b"{\"a\": 1}".to_vec()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", b"not wanted".to_vec()),
    ])
}

#[test]
fn a_model_is_downloaded_once_and_then_found_in_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let hub = server.hub(cache.path());
    let name = Path::new("org/tiny");
    let directory = hub.resolve(name).unwrap();
    assert!(directory.starts_with(cache.path().join("models--org--tiny")));
    for (file, bytes) in model() {
        match file {
            "pytorch_model.bin" => assert!(!directory.join(file).exists()),
            _ => assert!(fs::read(directory.join(file)).unwrap() == bytes, "{file}"),
        }
    }
    let requests = server.requests();
    let weights = format!("GET /org/tiny/resolve/{COMMIT}/model.safetensors");
    assert_eq!(requests.iter().filter(|line| **line == weights).count(), 1);

    assert_eq!(hub.resolve(name).unwrap(), directory);
    assert_eq!(server.requests(), requests, "the cache is enough");
    drop(server);
    assert_eq!(hub.resolve(name).unwrap(), directory);
}

#[test]
fn a_file_missing_on_the_hub_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.remove("tokenizer.json");
    let server = Server::start(files);
    let error = server
        .hub(cache.path())
        .resolve(Path::new("org/tiny"))
        .unwrap_err();
    assert!(
        matches!(&error, HubError::Incomplete { missing, .. } if *missing == ["tokenizer.json"]),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "`org/tiny` on the hub has no tokenizer.json"
    );
    assert!(error.hint().contains("tokenizer.json"), "{}", error.hint());
}

/// Checks the error of a model that cannot be downloaded: its name, the cache, what to do and why.
fn refused(hub: &Hub, name: &str, why: &str) {
    let error = hub.resolve(Path::new(name)).unwrap_err();
    assert!(matches!(error, HubError::Download { .. }), "{error:?}");
    let (text, hint) = (error.to_string(), error.hint());
    for words in [name, "could not be downloaded"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(text.contains(&hub.cache.display().to_string()), "{text}");
    for words in [
        "config.json, model.safetensors and tokenizer.json",
        "pass its path",
    ] {
        assert!(hint.contains(words), "{hint}");
    }
    let mut causes = String::new();
    let mut cause: Option<&dyn Error> = error.source();
    while let Some(error) = cause {
        causes += &format!("{error}\n");
        cause = error.source();
    }
    assert!(causes.contains(why), "{causes}");
    assert!(!hub.cache.join("models--org--tiny/refs/main").exists());
}

#[test]
fn an_unknown_model_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    refused(&server.hub(cache.path()), "org/other", "org/other");
}

#[test]
fn an_unreachable_hub_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Server::start(model()).hub(cache.path());
    refused(&hub, "org/tiny", "onnection refused");
}
