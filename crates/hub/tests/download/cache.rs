//! A right hub: what is downloaded, what is found, and what the cache looks like.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use epiphyte_hub::{Event, HubError};
use serde_json::json;

use crate::server::{COMMIT, Files, Reply, Server, assert_right, model, sha256, weights};

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
    assert_eq!(server.gets("model.safetensors").len(), 1);
    assert_right(cache.path(), &model());

    let requests = server.requests().len();
    assert_eq!(hub.resolve(name).unwrap(), directory);
    assert_eq!(server.requests().len(), requests, "the cache is enough");
    drop(server);
    assert_eq!(hub.resolve(name).unwrap(), directory);
}

#[test]
fn only_files_of_our_own_list_are_downloaded() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    for other in [
        "onnx/model.onnx",
        "onnx/config.json",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "README.md",
        "modeling_custom.py",
        "training_args.bin",
        "other.json",
    ] {
        files.insert(other, b"not wanted".to_vec());
    }
    for small in [
        "generation_config.json",
        "chat_template.jinja",
        "vocab.txt",
        "modules.json",
    ] {
        files.insert(small, b"small".to_vec());
    }
    let server = Server::start(files.clone());
    let directory = server
        .hub(cache.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "modules.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.txt",
        ]
    );
}

#[test]
fn shards_are_those_of_the_index() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.remove("model.safetensors");
    let index = json!({ "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
    }});
    files.insert("model.safetensors.index.json", index.to_string().into());
    files.insert("model-00001-of-00002.safetensors", b"one".to_vec());
    files.insert("model-00002-of-00002.safetensors", b"two".to_vec());
    files.insert("other.safetensors", b"not wanted".to_vec());
    let server = Server::start(files.clone());
    let hub = server.hub(cache.path());
    let directory = hub.resolve(Path::new("org/tiny")).unwrap();
    let second = directory.join("model-00002-of-00002.safetensors");
    assert_eq!(fs::read(second).unwrap(), b"two");
    assert!(!directory.join("other.safetensors").exists());
    assert_right(cache.path(), &files);
}

#[test]
fn an_adapter_is_two_files() {
    let cache = tempfile::tempdir().unwrap();
    let files = Files::from([
        ("adapter_config.json", b"{}".to_vec()),
        ("adapter_model.safetensors", b"weights".to_vec()),
        ("README.md", b"not wanted".to_vec()),
        ("tokenizer.json", b"not wanted".to_vec()),
    ]);
    let server = Server::start(files);
    let hub = server.hub(cache.path());
    let name = Path::new("org/tiny");
    let directory = hub.resolve_adapter_with(name, &mut |_| ()).unwrap();
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
    let again = hub.resolve_adapter_with(name, &mut |_| ()).unwrap();
    assert_eq!(again, directory);

    let error = hub.resolve(name).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("has no config.json, model.safetensors"),
        "{text}"
    );
}

#[test]
fn a_file_missing_on_the_hub_is_named() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.remove("tokenizer.json");
    let server = Server::start(files);
    let error = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    let error = error.unwrap_err();
    assert!(
        matches!(&error, HubError::Incomplete { missing, .. } if *missing == ["tokenizer.json"]),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "`org/tiny` on the hub has no tokenizer.json"
    );
    assert!(error.hint().contains("tokenizer.json"), "{}", error.hint());
    assert!(server.gets("model.safetensors").is_empty());
}

#[test]
fn a_name_of_sentence_transformers_is_found_without_owner() {
    let cache = tempfile::tempdir().unwrap();
    let right = Box::new(|_: &_, reply| reply);
    let server = Server::of("sentence-transformers/tiny", model(), right);
    let mut events = Vec::new();
    let directory = server
        .hub(cache.path())
        .resolve_with(Path::new("tiny"), &mut |event| {
            events.push(event.to_string())
        });
    assert!(
        directory
            .unwrap()
            .starts_with(cache.path().join("models--sentence-transformers--tiny"))
    );
    assert_eq!(
        events[0],
        "`tiny` is `sentence-transformers/tiny` on the hub"
    );

    let error = server.hub(cache.path()).resolve(Path::new("other"));
    let error = error.unwrap_err();
    assert!(
        error.to_string().starts_with("`other` is neither"),
        "{error}"
    );
    assert!(
        error.hint().contains("check the spelling"),
        "{}",
        error.hint()
    );
}

#[test]
fn a_long_list_of_files_has_pages() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |request, reply| {
        if !request.line.contains("/tree/") {
            return reply;
        }
        let host = &request.headers["host"];
        let is_second = request.line.ends_with("/second");
        let mut page = match is_second {
            true => Reply::json(&json!([])),
            false => reply.edited(|files| *files = json!([files[0]])),
        };
        let next =
            format!("<http://{host}/api/models/org/tiny/tree/{COMMIT}/second>; rel=\"next\"");
        if !is_second {
            page.headers.push(("Link", next));
        }
        page
    });
    let error = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    let text = error.unwrap_err().to_string();
    assert_eq!(
        text,
        "`org/tiny` on the hub has no model.safetensors, tokenizer.json"
    );
    assert!(
        server
            .requests()
            .iter()
            .any(|it| it.line.ends_with("/second"))
    );
}

#[test]
fn a_download_reports_its_size_and_what_is_there() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let total: usize = model().values().map(Vec::len).sum();
    let total = (total - "not wanted".len()) as u64;
    let mut started = None;
    let mut reached = 0;
    let mut finished = false;
    let mut report = |event: &Event<'_>| match *event {
        Event::Started { files, bytes, .. } => started = Some((files, bytes)),
        Event::Progress { done, bytes, .. } => {
            assert!(done >= reached && bytes == total);
            reached = done;
        }
        Event::Finished { .. } => finished = true,
        _ => {}
    };
    let hub = server.hub(cache.path());
    hub.resolve_with(Path::new("org/tiny"), &mut report)
        .unwrap();
    assert_eq!(started, Some((4, total)));
    assert_eq!(reached, total);
    assert!(finished);
}

#[test]
fn a_snapshot_without_files_that_change_results_is_completed() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.insert("generation_config.json", b"{}".to_vec());
    let server = Server::start(files);
    let hub = server.hub(cache.path());
    let name = Path::new("org/tiny");
    let directory = hub.resolve(name).unwrap();
    // A Python program may have asked for some of the files only.
    fs::remove_file(directory.join("generation_config.json")).unwrap();
    fs::remove_dir_all(cache.path().join("models--org--tiny/.no_exist")).unwrap();
    assert_eq!(hub.resolve(name).unwrap(), directory);
    assert!(directory.join("generation_config.json").exists());
    assert_eq!(server.gets("model.safetensors").len(), 1);

    // That the hub has no chat template is known now.
    let requests = server.requests().len();
    hub.resolve(name).unwrap();
    assert_eq!(server.requests().len(), requests);

    // Without the hub it is not known whether the snapshot is whole.
    fs::remove_file(directory.join("generation_config.json")).unwrap();
    drop(server);
    let mut events = Vec::new();
    let found = hub.resolve_with(name, &mut |event| events.push(event.to_string()));
    assert_eq!(found.unwrap(), directory);
    assert!(
        events[0].contains("has no generation_config.json, and whether the hub has is not known"),
        "{events:?}"
    );
}

#[test]
fn a_file_that_the_hub_has_but_does_not_send_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let name = Path::new("org/tiny");
    let directory = server.hub(cache.path()).resolve(name).unwrap();
    fs::remove_file(directory.join("tokenizer_config.json")).unwrap();
    fs::remove_dir_all(cache.path().join("models--org--tiny/blobs")).unwrap();
    let denied = Server::changed(model(), |request, reply| {
        match request.gets("tokenizer_config.json") {
            true => Reply::new(403, "denied"),
            false => reply,
        }
    });
    // Only the links to the removed contents are left, so nothing is there.
    let error = denied.hub(cache.path()).resolve(name).unwrap_err();
    assert!(matches!(error, HubError::Download { .. }), "{error:?}");
}

#[test]
fn two_downloads_at_once_share_the_work() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let hub = server.hub(cache.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| hub.resolve(Path::new("org/tiny")).unwrap());
        }
    });
    assert_eq!(server.gets("model.safetensors").len(), 1);
    assert_right(cache.path(), &model());
}

#[test]
fn wrong_contents_of_an_earlier_client_are_replaced() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let repository = cache.path().join("models--org--tiny");
    let blobs = repository.join("blobs");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::write(repository.join("refs/main"), COMMIT).unwrap();
    // An error page as weights, as some clients store it.
    let blob = blobs.join(sha256(&weights()));
    fs::write(&blob, "<html>Too many requests</html>").unwrap();
    for (name, bytes) in model() {
        match name {
            "model.safetensors" => fs::copy(&blob, snapshot.join(name)).map(drop).unwrap(),
            _ => fs::write(snapshot.join(name), bytes).unwrap(),
        }
    }
    let directory = server
        .hub(cache.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
    assert!(fs::read(directory.join("model.safetensors")).unwrap() == weights());
    assert_right(cache.path(), &model());
}

/// Python's `huggingface_hub` finds what was downloaded here, and downloads nothing again.
#[test]
#[ignore = "needs EPIPHYTE_PYTHON with huggingface_hub"]
fn python_reads_this_cache_and_writes_one_that_is_read_here() {
    let python = std::env::var("EPIPHYTE_PYTHON").expect("EPIPHYTE_PYTHON names the interpreter");
    let program = "
import os, sys
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache
from huggingface_hub import _CACHED_NO_EXIST
cache = sys.argv[1]
files = ['config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors']
paths = [hf_hub_download('org/tiny', file) for file in files]
assert all(os.path.realpath(path).startswith(os.path.realpath(cache)) for path in paths), paths
assert snapshot_download('org/tiny', local_files_only=True) == os.path.dirname(paths[0])
scan = scan_cache_dir(cache)
assert not scan.warnings, scan.warnings
(repository,) = scan.repos
assert repository.repo_id == 'org/tiny', repository
(revision,) = repository.revisions
assert {file.file_name for file in revision.files} == set(files), revision
if len(sys.argv) > 2:
    assert try_to_load_from_cache('org/tiny', 'chat_template.jinja') is _CACHED_NO_EXIST
";
    let run = |server: &Server, cache: &Path, more: &[&str]| {
        let output = Command::new(&python)
            .args(["-c", program])
            .arg(cache)
            .args(more)
            .env("HF_ENDPOINT", server.url())
            .env("HF_HUB_CACHE", cache)
            .env("HF_HUB_DISABLE_XET", "1")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
    };
    let server = Server::start(model());
    let ours = tempfile::tempdir().unwrap();
    let directory = server
        .hub(ours.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
    run(&server, ours.path(), &["absences"]);
    assert_eq!(server.gets("model.safetensors").len(), 1, "one is ours");
    assert!(directory.join("model.safetensors").exists());

    let theirs = tempfile::tempdir().unwrap();
    run(&server, theirs.path(), &[]);
    let gets = server.gets("model.safetensors").len();
    assert_eq!(gets, 2, "the second is Python's");
    let found = server
        .hub(theirs.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
    assert!(fs::read(found.join("model.safetensors")).unwrap() == weights());
    assert_eq!(server.gets("model.safetensors").len(), gets);
}
