//! Hubs that fail, lie or attack: an error each time, and nothing wrong in the cache.

use std::fs;
use std::path::Path;

use epiphyte_hub::{DownloadError, Hub, HubError, Token};
use serde_json::json;

use crate::server::{
    End, Files, Reply, Request, Server, assert_right, files_below, model, sha256, weights,
};

/// The error of a download, after checking that it names the model, the cache and what to do, and
/// that the cache has nothing wrong.
pub(crate) fn refused(hub: &Hub, name: &str) -> DownloadError {
    let error = hub.resolve(Path::new(name)).unwrap_err();
    let (text, hint) = (error.to_string(), error.hint());
    for words in [
        name,
        "could not be downloaded",
        &hub.cache.display().to_string(),
    ] {
        assert!(text.contains(words), "{text}");
    }
    for words in [
        "config.json, model.safetensors and tokenizer.json",
        "pass its path",
    ] {
        assert!(hint.contains(words), "{hint}");
    }
    assert!(!hub.cache.join("models--org--tiny/refs/main").exists());
    let HubError::Download { source, .. } = error else {
        panic!("{error:?}");
    };
    *source
}

/// The error of a hub that answers requests for the weights otherwise, after checking that nothing
/// wrong is left and that a right hub is believed afterwards.
fn refused_weights(wrong: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> DownloadError {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), move |request, reply| {
        match request.gets("model.safetensors") {
            true => wrong(reply),
            false => reply,
        }
    });
    let error = refused(&server.hub(cache.path()), "org/tiny");
    assert_right(cache.path(), &model());
    let right = Server::start(model());
    let directory = right.hub(cache.path()).resolve(Path::new("org/tiny"));
    assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights());
    assert_right(cache.path(), &model());
    error
}

#[test]
fn an_unknown_model_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let error = refused(&server.hub(cache.path()), "org/other");
    assert!(error.to_string().contains("org/other"), "{error}");
    assert!(matches!(error, DownloadError::Status { status: 404, .. }));
}

#[test]
fn an_unreachable_hub_is_an_error() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Server::start(model()).hub(cache.path());
    let error = refused(&hub, "org/tiny");
    assert!(error.to_string().contains("onnection refused"), "{error}");
}

#[test]
fn an_error_page_is_not_stored_as_weights() {
    for status in [401, 403, 404, 410, 429, 500, 503] {
        let error = refused_weights(move |_| Reply::new(status, "<html>sorry</html>"));
        assert!(
            matches!(error, DownloadError::Status { status: it, .. } if it == status),
            "{error:?}"
        );
        assert!(
            error.to_string().contains(&format!("answers {status}")),
            "{error}"
        );
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn an_error_of_the_interface_is_an_error() {
    for (part, status) in [("/revision/", 403), ("/revision/", 503), ("/tree/", 500)] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::changed(model(), move |request, reply| {
            match request.line.contains(part) {
                true => Reply::new(status, "sorry"),
                false => reply,
            }
        });
        let error = refused(&server.hub(cache.path()), "org/tiny");
        assert!(
            error.to_string().contains(&format!("answers {status}")),
            "{error}"
        );
    }
}

#[test]
fn a_model_that_asks_for_terms_says_so() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |_, _| Reply::new(403, "gated"));
    let error = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    let hint = error.unwrap_err().hint();
    assert!(hint.contains("https://huggingface.co/org/tiny"), "{hint}");
    assert!(hint.contains("HF_TOKEN"), "{hint}");
}

#[test]
fn an_answer_of_another_size_is_refused() {
    let sizes = |error| match error {
        DownloadError::Size {
            expected, found, ..
        } => (expected, found),
        error => panic!("{error:?}"),
    };
    let size = weights().len() as u64;
    // Short and long, as announced.
    let error = refused_weights(|_| Reply::new(200, "an error page with status 200"));
    assert_eq!(sizes(error), (size, 29));
    let error = refused_weights(|reply| Reply::new(200, [&*reply.body, b"more"].concat()));
    assert_eq!(sizes(error), (size, size + 4));
    // Short and long, not announced.
    let unannounced = |body: Vec<u8>| Reply {
        length: None,
        ..Reply::new(200, body)
    };
    let error = refused_weights(move |reply| unannounced(reply.body[..100].to_vec()));
    assert_eq!(sizes(error), (size, 100));
    let error = refused_weights(move |reply| unannounced([&*reply.body, b"more"].concat()));
    assert_eq!(sizes(error).0, size);
}

#[test]
fn other_contents_than_the_hash_says_are_refused() {
    let error = refused_weights(|mut reply| {
        reply.body[1000] ^= 1;
        reply
    });
    let text = error.to_string();
    assert!(text.contains("SHA-256"), "{text}");
    assert!(text.contains(&sha256(&weights())), "{text}");

    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |request, mut reply| {
        if request.gets("config.json") {
            reply.body[0] = b'[';
        }
        reply
    });
    let error = refused(&server.hub(cache.path()), "org/tiny");
    assert!(error.to_string().contains("git SHA-1"), "{error}");
    assert_right(cache.path(), &model());
}

/// A hub whose list of files has no hashes, as older ones have it, with these `ETag`s.
fn without_hashes(etag: &'static str, body: Option<&'static [u8]>) -> Server {
    Server::changed(model(), move |request, reply| {
        if request.line.contains("/tree/") {
            return reply.edited(|files| {
                for file in files.as_array_mut().unwrap() {
                    file["oid"] = "0".into();
                    file.as_object_mut().unwrap().remove("lfs");
                }
            });
        }
        let mut reply = match body {
            Some(body) if request.gets("tokenizer.json") => Reply {
                headers: reply.headers,
                ..Reply::new(200, body)
            },
            _ => reply,
        };
        if !etag.is_empty() {
            reply.headers.retain(|(name, _)| *name != "ETag");
            reply.headers.push(("ETag", etag.to_owned()));
        }
        reply
    })
}

#[test]
fn the_hash_of_the_headers_counts_where_the_list_has_none() {
    let cache = tempfile::tempdir().unwrap();
    let name = Path::new("org/tiny");
    let server = without_hashes("", Some(b"[]"));
    let error = refused(&server.hub(cache.path()), "org/tiny");
    assert!(matches!(error, DownloadError::Hash { .. }), "{error:?}");
    assert_right(cache.path(), &model());
    without_hashes("", None)
        .hub(cache.path())
        .resolve(name)
        .unwrap();
    assert_right(cache.path(), &model());
}

#[test]
fn no_header_becomes_a_path() {
    let parent = tempfile::tempdir().unwrap();
    let cache = parent.path().join("a/b/c/cache");
    for etag in ["\"../../../../x\"", "\"/tmp/x\"", "\"etag0\"", "W/\"..\""] {
        let server = without_hashes(etag, None);
        server.hub(&cache).resolve(Path::new("org/tiny")).unwrap();
        assert_right(&cache, &model());
        let is_inside = |path: &std::path::PathBuf| path.starts_with("a/b/c/cache");
        assert!(files_below(parent.path()).iter().all(is_inside));
        fs::remove_dir_all(&cache).unwrap();
    }
}

#[test]
fn no_name_of_the_hub_becomes_a_path() {
    let parent = tempfile::tempdir().unwrap();
    let cache = parent.path().join("a/b/c/cache");
    let precious = parent.path().join("a/x.json");
    fs::create_dir_all(precious.parent().unwrap()).unwrap();
    fs::write(&precious, "precious").unwrap();
    let server = Server::changed(model(), |request, reply| {
        if !request.line.contains("/tree/") {
            return reply;
        }
        reply.edited(|files| {
            for path in [
                "../../../x.json",
                "/etc/x.json",
                "..",
                "a/../../config.json",
                ".x.json",
            ] {
                let entry = json!({ "type": "file", "path": path, "size": 0, "oid": "0" });
                files.as_array_mut().unwrap().push(entry);
            }
        })
    });
    server.hub(&cache).resolve(Path::new("org/tiny")).unwrap();
    assert_right(&cache, &model());
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
}

#[test]
fn a_commit_is_a_hash() {
    for sha in ["../../../../x", "main", "", "\u{1b}[2J"] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::changed(model(), move |request, reply| {
            match request.line.contains("/revision/") {
                true => Reply::json(&json!({ "sha": sha })),
                false => reply,
            }
        });
        let error = refused(&server.hub(cache.path()), "org/tiny");
        let text = error.to_string();
        assert!(text.contains("is no commit"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(files_below(cache.path()).is_empty());
    }
}

#[test]
fn a_shard_is_a_file_of_the_hubs_list() {
    let cache = tempfile::tempdir().unwrap();
    let mut files = model();
    files.remove("model.safetensors");
    let index = json!({ "weight_map": { "a": "../../x.safetensors", "b": "absent.safetensors" } });
    files.insert("model.safetensors.index.json", index.to_string().into());
    let server = Server::start(files.clone());
    let error = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    assert_eq!(
        error.unwrap_err().to_string(),
        "`org/tiny` on the hub has no ../../x.safetensors, absent.safetensors"
    );
    assert_right(cache.path(), &files);
}

#[test]
fn an_answer_that_is_not_of_a_hub_is_an_error() {
    for (part, body) in [
        ("/revision/", "<html>"),
        ("/revision/", "{}"),
        ("/tree/", "{}"),
        ("/tree/", r#"[{"type": "file", "path": "config.json"}]"#),
    ] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::changed(model(), move |request, reply| {
            match request.line.contains(part) {
                true => Reply::new(200, body),
                false => reply,
            }
        });
        let error = refused(&server.hub(cache.path()), "org/tiny");
        assert!(
            matches!(error, DownloadError::Malformed { .. }),
            "{error:?}"
        );
    }
    let cache = tempfile::tempdir().unwrap();
    let endless = vec![b' '; 17 << 20];
    let server = Server::changed(Files::new(), move |_, _| Reply::new(200, endless.clone()));
    let error = refused(&server.hub(cache.path()), "org/tiny");
    assert!(
        error.to_string().contains("more than 16777216 bytes"),
        "{error}"
    );
}

#[test]
fn a_redirect_leads_to_the_same_contents_and_ends() {
    // As on the hub, large files come from another host.
    let cache = tempfile::tempdir().unwrap();
    let other = Server::start(model());
    let url = other.url();
    let redirect = move |request: &Request, reply| match request.gets("model.safetensors") {
        true => Reply::redirect(&format!("{url}{}?signature", &request.line["GET ".len()..])),
        false => reply,
    };
    let server = Server::changed(model(), redirect);
    let directory = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights());
    assert_eq!(other.gets("model.safetensors").len(), 1);

    let error = refused_weights(|_| Reply::redirect("/org/tiny/resolve/loop"));
    assert!(
        matches!(error, DownloadError::Status { status: 404, .. }),
        "{error:?}"
    );
    for (to, why) in [
        ("", "which is no address"),
        ("ftp://other/x", "which is not https"),
        ("//other/x", "which is not https"),
    ] {
        let error = refused_weights(move |_| Reply::redirect(to));
        assert!(error.to_string().contains(why), "{error}");
    }
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |_, _| Reply::redirect("/again"));
    let error = refused(&server.hub(cache.path()), "org/tiny");
    assert!(
        error.to_string().contains("more than 10 redirects"),
        "{error}"
    );
}

#[test]
fn a_hub_without_encryption_gets_no_request_and_never_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start(model());
    let hub = Hub {
        token: Token::new("hf_secret"),
        allow_http: false,
        ..server.hub(cache.path())
    };
    let error = hub.resolve(Path::new("org/tiny")).unwrap_err();
    assert!(
        error.hint().contains("EPIPHYTE_HUB_ALLOW_HTTP=1"),
        "{}",
        error.hint()
    );
    assert!(matches!(
        refused(&hub, "org/tiny"),
        DownloadError::Endpoint { .. }
    ));
    assert!(server.requests().is_empty());

    let hub = Hub {
        allow_http: true,
        ..hub
    };
    hub.resolve(Path::new("org/tiny")).unwrap();
    for request in server.requests() {
        assert!(
            !request.headers.contains_key("authorization"),
            "{request:?}"
        );
    }
    assert!(!format!("{hub:?}").contains("secret"));
}

#[test]
fn a_hub_that_says_nothing_is_given_up() {
    for part in ["/revision/", "/tree/", "/config.json", "/model.safetensors"] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::changed(model(), move |request, reply| {
            match request.line.ends_with(part) || request.line.contains(part) {
                // Not even the headers are complete.
                true => Reply {
                    headers: vec![("X", "a".repeat(10))],
                    length: Some(reply.body.len()),
                    body: Vec::new(),
                    end: End::Stall,
                    ..reply
                },
                false => reply,
            }
        });
        let error = refused(&server.impatient(cache.path(), 400), "org/tiny");
        assert!(matches!(error, DownloadError::Stalled { .. }), "{error:?}");
        assert!(error.to_string().contains("no answer for 0.4 s"), "{error}");
    }
}
