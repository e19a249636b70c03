//! Tokenizers in GGUF files; `make_gguf_vocabularies.py` wrote the files and the expected ids.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use epiphyte_data::gguf::{VocabularyOfModel, metadata};
use epiphyte_data::{DataError, Tokenizer, tokenizer_files};
use epiphyte_io::gguf::{GgufFile, keys, prepare_gguf};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

#[derive(Deserialize)]
struct Case {
    size: usize,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
    folder.join(format!("{name}.gguf"))
}

fn golden() -> BTreeMap<String, Case> {
    serde_json::from_str(include_str!("../golden/gguf/texts.json")).unwrap()
}

fn check(tokenizer: &Tokenizer, name: &str, case: &Case) {
    assert_eq!(tokenizer.vocabulary_size(), case.size, "{name}");
    assert!(case.rows.len() > 15, "{name}");
    for Row { text, ids, decoded } in &case.rows {
        let found = tokenizer.encode(text, None, None).unwrap().ids;
        assert_eq!(&found, ids, "{name}: {text:?}");
        let found = tokenizer.decode(ids, true).unwrap();
        assert_eq!(&found, decoded, "{name}: {text:?}");
    }
}

#[test]
fn ids_are_those_of_transformers_and_sentencepiece() {
    let golden = golden();
    assert_eq!(golden.len(), 6);
    for (name, case) in &golden {
        let tokenizer = Tokenizer::load(path(name)).unwrap();
        check(&tokenizer, name, case);
    }
}

#[test]
fn special_tokens_and_the_template_are_read() {
    let tokenizer = Tokenizer::load(path("qwen2")).unwrap();
    let token = |name: &str| tokenizer.special_tokens().get(name).map(String::as_str);
    assert_eq!(token("eos_token"), Some("<|im_end|>"));
    assert_eq!(token("pad_token"), Some("<|endoftext|>"));
    assert_eq!(token("unk_token"), None);
    let end = tokenizer.end_of_text().unwrap();
    assert_eq!(tokenizer.token(end).unwrap(), "<|im_end|>");
    let messages = [json!({ "role": "user", "content": "hi" })];
    let text = tokenizer.chat_template().unwrap();
    let text = text.render(&messages, false).unwrap();
    assert_eq!(text, "<|endoftext|>hi");
    let pieces = Tokenizer::load(path("sentence-pieces")).unwrap();
    assert_eq!(pieces.special_id("unk_token").unwrap(), 0);
    assert!(pieces.chat_template().is_err());
}

/// A directory with the files that are made of a vocabulary has the same tokenizer, and so has a
/// file that is written with it.
#[test]
fn what_is_made_and_written_is_the_same_tokenizer() {
    for (name, case) in &golden() {
        let tokenizer = Tokenizer::load(path(name)).unwrap();
        let directory = TempDir::new().unwrap();
        for (file, content) in tokenizer_files(&path(name)).unwrap() {
            fs::write(directory.path().join(file), content).unwrap();
        }
        let made = Tokenizer::load(directory.path()).unwrap();
        check(&made, name, case);
        assert_eq!(made.content_hash(), tokenizer.content_hash());
        assert_eq!(made.special_tokens(), tokenizer.special_tokens());
        assert_eq!(
            made.chat_template_source(),
            tokenizer.chat_template_source()
        );
        let model = VocabularyOfModel {
            size: case.size + 3,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
        };
        let metadata = metadata(&tokenizer, &model).unwrap();
        let copy = directory.path().join("copy.gguf");
        prepare_gguf(&copy, &metadata, Vec::new())
            .unwrap()
            .put_in_place()
            .unwrap();
        check(&Tokenizer::load(&copy).unwrap(), name, case);
        // The rule keeps its name.
        let name_of = |path: &Path| {
            let file = GgufFile::open(path).unwrap();
            file.text(keys::TOKENIZER_PRE).unwrap().unwrap().to_owned()
        };
        assert_eq!(name_of(&copy), name_of(&path(name)));
    }
    // A directory has files of its own.
    let directory = TempDir::new().unwrap();
    assert!(tokenizer_files(directory.path()).unwrap().is_empty());
}

/// A file with `new` in the place of the first `old`, which is as long.
fn changed(name: &str, old: &[u8], new: &[u8]) -> String {
    assert_eq!(old.len(), new.len());
    let directory = TempDir::new().unwrap();
    let mut bytes = fs::read(path(name)).unwrap();
    let at = bytes.windows(old.len()).position(|it| it == old).unwrap();
    bytes[at..at + old.len()].copy_from_slice(new);
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    let error = Tokenizer::load(&path).unwrap_err();
    let DataError::Gguf { path: named, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*named, path);
    error.source().unwrap().to_string()
}

#[test]
fn what_cannot_be_read_is_named() {
    let model = b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0gpt2";
    let other = b"tokenizer.ggml.model\x08\0\0\0\x04\0\0\0\0\0\0\0bert";
    for (name, old, new, words) in [
        (
            "gpt-2",
            &model[..],
            &other[..],
            "of kind `bert` are not read",
        ),
        (
            "gpt-2",
            b"ggml.pre",
            b"ggml.prx",
            "`tokenizer.ggml.pre` is missing",
        ),
        ("gpt-2", b"\0\0gpt-2", b"\0\0gpt-9", "the rule `gpt-9`"),
        (
            "gpt-2",
            b"ggml.merges",
            b"ggml.mergex",
            "`tokenizer.ggml.merges` is missing",
        ),
        (
            "gpt-2",
            b"ggml.tokens",
            b"ggml.tokenx",
            "`tokenizer.ggml.tokens` is missing",
        ),
        (
            "gpt-2",
            b"eos_token_id\x04\0\0\0\x7e\x01\0\0",
            b"eos_token_id\x04\0\0\0\x7e\x0f\0\0",
            "is no token of",
        ),
        (
            "gpt-2",
            b"\x01\0\0\0\0\0\0\0A",
            b"\x01\0\0\0\0\0\0\0B",
            "`B`, is there twice",
        ),
        (
            "sentence-pieces",
            b"ggml.scores",
            b"ggml.scorex",
            "`tokenizer.ggml.scores` is missing",
        ),
    ] {
        let error = changed(name, old, new);
        assert!(error.contains(words), "{error}");
    }
}
