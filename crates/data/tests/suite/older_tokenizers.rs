//! Tokenizers without tokenizer.json against `transformers`; `make_tokenizers.py` wrote the
//! expected values.

use std::path::Path;

use epiphyte_data::{DataError, Tokenizer};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::support::shared_data;

#[derive(Deserialize)]
struct Golden {
    files: Vec<IndexMap<String, Content>>,
    cases: Vec<Case<usize>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    Text(String),
    Hex(String),
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Hex(digits) => (0..digits.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect(),
        }
    }
}

#[derive(Deserialize)]
struct Case<F> {
    name: String,
    files: F,
    settings: IndexMap<String, Json>,
    size: usize,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    pair: Option<String>,
    ids: Vec<u32>,
    type_ids: Option<Vec<u32>>,
    decoded: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/tokenizers.json")).unwrap()
}

/// A directory with files and settings.
fn directory(files: &[(&str, Vec<u8>)], settings: &IndexMap<String, Json>) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    for (name, value) in settings {
        std::fs::write(directory.path().join(name), value.to_string()).unwrap();
    }
    directory
}

fn check<F>(case: &Case<F>, directory: &Path) {
    let name = &case.name;
    let tokenizer = Tokenizer::load(directory).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(tokenizer.vocabulary_size(), case.size, "{name}");
    assert!(case.rows.len() > 20);
    for row in &case.rows {
        let encoding = tokenizer
            .encode(&row.text, row.pair.as_deref(), None)
            .unwrap();
        let what = format!("{name}: {:?} {:?}", row.text, row.pair);
        assert_eq!(encoding.ids, row.ids, "{what}");
        if let Some(type_ids) = &row.type_ids {
            assert_eq!(&encoding.type_ids, type_ids, "{what}");
        }
        let decoded = tokenizer.decode(&row.ids, true).unwrap();
        assert_eq!(decoded, row.decoded, "{what}");
    }
}

#[test]
fn every_class_gives_the_tokens_of_transformers() {
    let golden = golden();
    assert!(golden.cases.len() > 25);
    for case in &golden.cases {
        let files: Vec<_> = golden.files[case.files]
            .iter()
            .map(|(name, content)| (name.as_str(), content.bytes()))
            .collect();
        let directory = directory(&files, &case.settings);
        check(case, directory.path());
        // Adapters record the hash.
        let hash = || {
            Tokenizer::load(directory.path())
                .unwrap()
                .content_hash()
                .to_owned()
        };
        assert_eq!(hash(), hash(), "{}", case.name);
    }
}

/// Published vocabularies: four of BERT, GPT-2, RoBERTa, ALBERT, T5, and SentencePiece's own.
#[test]
#[ignore = "needs ../shared/data"]
fn published_vocabularies_give_the_tokens_of_transformers() {
    let cases: Vec<Case<IndexMap<String, String>>> =
        serde_json::from_str(include_str!("../golden/real_tokenizers.json")).unwrap();
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let read = |source: &String| std::fs::read(shared_data(&format!("tokenizers/{source}")));
        let files: Vec<_> = case
            .files
            .iter()
            .map(|(name, source)| (name.as_str(), read(source).unwrap()))
            .collect();
        check(case, directory(&files, &case.settings).path());
    }
}

/// The files, by name, of the golden case with this name, with its settings.
fn case(name: &str) -> (IndexMap<String, Vec<u8>>, IndexMap<String, Json>) {
    let golden = golden();
    let case = golden.cases.iter().find(|case| case.name == name).unwrap();
    let files = golden.files[case.files].iter();
    let files = files.map(|(name, content)| (name.clone(), content.bytes()));
    (files.collect(), case.settings.clone())
}

/// The error of a golden case with one file changed.
fn error(name: &str, file: &str, change: impl FnOnce(String) -> String) -> String {
    let (mut files, mut settings) = case(name);
    match files.get_mut(file) {
        Some(bytes) => *bytes = change(String::from_utf8(bytes.clone()).unwrap()).into_bytes(),
        None => {
            let value = settings.get(file).map_or_else(String::new, Json::to_string);
            let value = serde_json::from_str(&change(value)).unwrap();
            settings.insert(file.to_owned(), value);
        }
    }
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.clone()))
        .collect();
    let directory = directory(&files, &settings);
    let error = Tokenizer::load(directory.path()).unwrap_err();
    assert!(
        matches!(&error, DataError::TokenizerInvalid { path, .. } if path.ends_with(file)),
        "{error:?}"
    );
    error.to_string()
}

#[test]
fn malformed_files_are_named_with_the_line_or_the_token() {
    let has = |error: String, expected: &str| assert!(error.contains(expected), "{error}");
    has(
        error("bert", "vocab.txt", |text| text + "lamp\n"),
        "`lamp` is on line 101 and on line 141",
    );
    has(
        error("bert", "vocab.txt", |text| text.replace("[UNK]", "[unk]")),
        "no `[UNK]`",
    );
    has(
        error("gpt2", "vocab.json", |text| {
            text.replacen("\"!\": 1", "\"!\": 2", 1)
        }),
        "have the same id, 2",
    );
    has(
        error("gpt2", "vocab.json", |text| {
            text.replacen("{", "{\"!\": 9000,", 1)
        }),
        "`!` is there twice",
    );
    has(
        error("gpt2", "merges.txt", |text| text + "t zz\n"),
        "line 92: `t zz` needs `zz`, which is not in vocab.json",
    );
    has(
        error("gpt2", "merges.txt", |text| text + "t h e\n"),
        "`t h e` is not two pieces",
    );
    has(
        error("bert", "vocab.txt", |_| "<!DOCTYPE html>".into()),
        "a web page",
    );
    has(
        error("bert with added tokens", "added_tokens.json", |_| {
            r#"{"[NEW]": 7}"#.into()
        }),
        "`[NEW]` has the id 7, and after vocab.txt it has 140",
    );
    has(
        error("bert", "tokenizer_config.json", |_| {
            json!({"tokenizer_class": "BertTokenizer", "do_lower_case": "no"}).to_string()
        }),
        "`do_lower_case` is \"no\" and not true or false",
    );
    has(
        error("mbart", "tokenizer_config.json", |_| {
            json!({"tokenizer_class": "MBartTokenizer", "src_lang": "xx_XX"}).to_string()
        }),
        "`src_lang` is `xx_XX`, which is not in the vocabulary",
    );
}

#[test]
fn truncated_sentence_piece_models_are_errors() {
    let (files, settings) = case("t5");
    let model = &files["spiece.model"];
    for length in (0..model.len()).step_by(97).chain([model.len() - 1]) {
        let directory = directory(&[("spiece.model", model[..length].to_vec())], &settings);
        let error = Tokenizer::load(directory.path()).unwrap_err();
        assert!(
            matches!(&error, DataError::TokenizerInvalid { path, .. } if path.ends_with("spiece.model")),
            "{length}: {error:?}"
        );
    }
    let settings = IndexMap::from([(
        "tokenizer_config.json".to_owned(),
        json!({"tokenizer_class": "LlamaTokenizer"}),
    )]);
    let directory = directory(&[("tokenizer.model", model.clone())], &settings);
    let error = Tokenizer::load(directory.path()).unwrap_err().to_string();
    assert!(
        error.contains("of kind unigram, and the tokenizer's class reads kind byte pairs"),
        "{error}"
    );
}

#[test]
fn a_directory_says_which_class_its_files_belong_to() {
    let (files, _) = case("bert");
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.clone()))
        .collect();
    let load = |settings: &[(&str, Json)]| {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        Tokenizer::load(directory(&files, &settings.collect()).path())
    };
    let general = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let model = json!({"model_type": "bert"});
    load(&[
        ("tokenizer_config.json", general),
        ("config.json", model.clone()),
    ])
    .unwrap();
    let error = load(&[]).unwrap_err();
    assert!(
        matches!(&error, DataError::TokenizerClass { class: None, .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("BertTokenizer, MPNetTokenizer"),
        "{error}"
    );
    let unknown = json!({"tokenizer_class": "BertJapaneseTokenizer"});
    let error = load(&[("tokenizer_config.json", unknown), ("config.json", model)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("class is `BertJapaneseTokenizer`"),
        "{error}"
    );
    let error = load(&[("config.json", json!({"model_type": "gpt2"}))]).unwrap_err();
    assert!(
        matches!(
            &error,
            DataError::TokenizerMissing {
                file: "tokenizer.json",
                ..
            }
        ),
        "{error:?}"
    );
}
