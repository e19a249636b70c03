//! Downloads that break off and go on where they were.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use epiphyte_hub::{DownloadError, Event};

use crate::hostile::refused;
use crate::server::{End, Reply, Server, assert_right, files_below, model, weights};

/// The part of the weights in a cache.
fn partial(cache: &Path) -> Option<PathBuf> {
    let files = files_below(cache).into_iter().map(|it| cache.join(it));
    let mut partial = files.filter(|it| it.extension().is_some_and(|it| it == "incomplete"));
    partial.next()
}

/// A hub that sends the first `part` bytes of each answer with weights.
fn breaking(part: usize, end: End) -> Server {
    Server::changed(model(), move |request, mut reply| {
        if request.gets("model.safetensors") && reply.body.len() > part {
            reply.body.truncate(part);
            reply.end = end;
        }
        reply
    })
}

#[test]
fn a_broken_connection_is_continued() {
    let cache = tempfile::tempdir().unwrap();
    let server = breaking(400_000, End::Close);
    let mut retries = 0;
    let directory = server
        .hub(cache.path())
        .resolve_with(Path::new("org/tiny"), &mut |event| {
            retries += usize::from(matches!(event, Event::Retrying { .. }));
        });
    assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights());
    assert_eq!(retries, 2);
    let ranges: Vec<_> = server
        .gets("model.safetensors")
        .iter()
        .map(|request| request.headers.get("range").cloned())
        .collect();
    let from = |text: &str| Some(text.to_owned());
    assert_eq!(ranges, [None, from("bytes=400000-"), from("bytes=800000-")]);
    assert_right(cache.path(), &model());
}

#[test]
fn a_download_that_stalls_is_continued_by_the_next_run() {
    let cache = tempfile::tempdir().unwrap();
    // Once 400,000 bytes are there, nothing more comes.
    let server = Server::changed(model(), |request, mut reply| {
        if request.gets("model.safetensors") {
            let is_first = !request.headers.contains_key("range");
            reply.body.truncate(if is_first { 400_000 } else { 0 });
            reply.end = End::Stall;
        }
        reply
    });
    let error = refused(&server.impatient(cache.path(), 2000), "org/tiny");
    assert!(matches!(error, DownloadError::Stalled { .. }), "{error:?}");
    assert_eq!(server.gets("model.safetensors").len(), 3);
    let part = partial(cache.path()).unwrap();
    assert!(fs::read(part).unwrap() == weights()[..400_000]);

    let right = Server::start(model());
    let mut first = None;
    let directory = right
        .hub(cache.path())
        .resolve_with(Path::new("org/tiny"), &mut |event| {
            if let Event::Progress { done, .. } = event
                && *done >= 400_000
            {
                first.get_or_insert(*done);
            }
        });
    assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights());
    let gets = right.gets("model.safetensors");
    assert_eq!(gets[0].headers["range"], "bytes=400000-");
    let before = model();
    let small = ["config.json", "tokenizer.json", "tokenizer_config.json"];
    let small: usize = small.iter().map(|name| before[name].len()).sum();
    assert_eq!(first, Some((small + 400_000) as u64));
    assert_right(cache.path(), &model());
}

#[test]
fn a_wrong_part_is_noticed_and_removed() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |request, mut reply| {
        if request.gets("model.safetensors") {
            reply.body = vec![7; 400_000 * usize::from(!request.headers.contains_key("range"))];
        }
        reply
    });
    refused(&server.hub(cache.path()), "org/tiny");
    assert!(partial(cache.path()).is_some());
    let right = Server::start(model());
    let error = refused(&right.hub(cache.path()), "org/tiny");
    assert!(matches!(error, DownloadError::Hash { .. }), "{error:?}");
    assert_right(cache.path(), &model());
    right
        .hub(cache.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
}

#[test]
fn a_hub_that_cannot_continue_begins_anew() {
    let cache = tempfile::tempdir().unwrap();
    let requests = AtomicUsize::new(0);
    let server = Server::changed(model(), move |request, mut reply| {
        if request.gets("model.safetensors") {
            reply = Reply::new(200, weights());
            if requests.fetch_add(1, Ordering::SeqCst) == 0 {
                reply.body.truncate(400_000);
            }
        }
        reply
    });
    let directory = server.hub(cache.path()).resolve(Path::new("org/tiny"));
    assert!(fs::read(directory.unwrap().join("model.safetensors")).unwrap() == weights());
    assert_right(cache.path(), &model());
}

#[test]
fn another_part_than_asked_for_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::changed(model(), |request, mut reply| {
        if request.gets("model.safetensors") {
            match request.headers.contains_key("range") {
                true => {
                    reply.headers.retain(|(name, _)| *name != "Content-Range");
                    reply
                        .headers
                        .push(("Content-Range", "bytes 5-9/900000".to_owned()));
                }
                false => reply.body.truncate(400_000),
            }
        }
        reply
    });
    let error = refused(&server.hub(cache.path()), "org/tiny");
    let text = error.to_string();
    assert!(
        text.contains("from byte 400000 was asked for, not `bytes 5-9"),
        "{text}"
    );
    assert_right(cache.path(), &model());
}

#[test]
fn a_hub_that_fails_for_a_moment_is_asked_again() {
    let cache = tempfile::tempdir().unwrap();
    let requests = AtomicUsize::new(0);
    let server = Server::changed(model(), move |_, reply| {
        match requests.fetch_add(1, Ordering::SeqCst) % 2 {
            0 => Reply::new(503, "busy"),
            _ => reply,
        }
    });
    server
        .hub(cache.path())
        .resolve(Path::new("org/tiny"))
        .unwrap();
    assert_right(cache.path(), &model());
}
