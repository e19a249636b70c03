//! The tokenizer on small files written here; `golden.rs` compares real ones with `transformers`.

use std::sync::LazyLock;

use epiphyte_data::{DataError, Tokenizer, check_max_length};
use proptest::prelude::*;
use serde_json::json;

use crate::support::{
    character_file, character_tokenizer, directory, ending_tokenizer, language_tokenizer,
    word_tokenizer,
};

#[test]
fn pairs_truncate_longest_first_and_keep_special_tokens() {
    let tokenizer = word_tokenizer();
    let encoding = tokenizer.encode("W0 w1 nothing", None, None).unwrap();
    assert_eq!(encoding.ids, [2, 20, 21, 1, 3]);
    assert_eq!(encoding.removed, 0);
    let encoding = tokenizer
        .encode("w0 w1 w2 w3 w4", Some("w9 w8"), Some(7))
        .unwrap();
    assert_eq!(encoding.ids, [2, 20, 21, 3, 29, 28, 3]);
    assert_eq!(encoding.type_ids, [0, 0, 0, 0, 1, 1, 1]);
    assert_eq!(encoding.removed, 3);
    assert!(matches!(
        tokenizer.encode("w0", Some("w1"), Some(3)),
        Err(DataError::MaxLengthTooShort {
            max_length: 3,
            least: 4
        })
    ));
    assert!(matches!(
        tokenizer.encode("w0", None, Some(0)),
        Err(DataError::MaxLengthTooShort { .. })
    ));
}

#[test]
fn special_tokens_and_limits_come_from_the_configuration() {
    let tokenizer = word_tokenizer();
    assert_eq!(tokenizer.special_id("cls_token").unwrap(), 2);
    assert_eq!(tokenizer.model_max_length(), None);
    assert_eq!(tokenizer.vocabulary_size(), 104);
    let error = tokenizer.special_id("eos_token").unwrap_err();
    assert!(matches!(
        error,
        DataError::SpecialTokenMissing {
            token: "eos_token",
            ..
        }
    ));

    let map = json!({"eos_token": {"content": "</s>", "lstrip": false}, "bos_token": "<s>"});
    let config = json!({"bos_token": "<|im_start|>", "model_max_length": 512});
    let directory = directory(&[
        ("tokenizer.json", &character_file(&json!(null))),
        ("tokenizer_config.json", &config),
        ("special_tokens_map.json", &map),
    ]);
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    assert_eq!(
        tokenizer.special_id("bos_token").unwrap(),
        200,
        "tokenizer_config.json takes precedence"
    );
    assert_eq!(tokenizer.special_id("eos_token").unwrap(), 203);
    assert_eq!(tokenizer.model_max_length(), Some(512));
}

/// As in `transformers` 5.
#[test]
fn tokenizer_json_alone_decides_which_special_tokens_are_added() {
    let tokenizer = character_tokenizer(&json!({"bos_token": "<s>", "add_bos_token": true}));
    assert_eq!(tokenizer.encode("ab", None, None).unwrap().ids, [97, 98]);
    let pair = tokenizer.encode("ab", Some("c"), None).unwrap();
    assert_eq!((pair.ids, pair.type_ids), (vec![97, 98, 99], vec![0, 0, 1]));
    assert_eq!(
        language_tokenizer().encode("ab", None, None).unwrap().ids,
        [202, 97, 98]
    );
}

#[test]
fn a_prompt_ends_where_the_model_goes_on() {
    for (tokenizer, text, ids) in [
        (ending_tokenizer(), "ab ", &[97, 98][..]),
        (ending_tokenizer(), "", &[203]),
        (language_tokenizer(), "ab", &[202, 97, 98]),
        (language_tokenizer(), "ab</s>", &[202, 97, 98, 203]),
    ] {
        assert_eq!(tokenizer.encode_prompt(text).unwrap(), ids, "{text}");
    }
}

#[test]
fn truncation_is_on_the_configured_side() {
    let tokenizer = character_tokenizer(&json!({"truncation_side": "left"}));
    assert_eq!(
        tokenizer.encode("abcd", None, Some(2)).unwrap().ids,
        [99, 100]
    );
}

#[test]
fn ids_decode_to_the_text() {
    let tokenizer = character_tokenizer(&json!({}));
    let text = "<s>Two words,\na line</s>";
    let ids = tokenizer.align(text, false).unwrap().ids;
    assert_eq!((ids[0], ids[1]), (202, u32::from(b'T')));
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "Two words,\na line");
    assert_eq!(tokenizer.id("<s>"), Some(202));
    assert_eq!(tokenizer.token(202).as_deref(), Some("<s>"));
    assert_eq!(tokenizer.id("absent"), None);
}

/// The hash of these exact bytes as `sha256sum` gives it.
#[test]
fn the_hash_is_that_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
    std::fs::write(directory.path().join("tokenizer.json"), bytes).unwrap();
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    assert_eq!(
        tokenizer.content_hash(),
        "9ac3871b9881b026833cf12cd5cf9c8ccf66df4755653c723dadc24949a945e7"
    );
}

#[test]
fn absent_and_broken_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(empty.path()).unwrap_err();
    assert!(matches!(
        error,
        DataError::TokenizerMissing {
            file: "tokenizer.json",
            ..
        }
    ));
    assert!(error.to_string().contains("SentencePiece"), "{error}");

    std::fs::write(empty.path().join("tokenizer.json"), "{\"version\"").unwrap();
    let error = Tokenizer::load(empty.path()).unwrap_err();
    assert!(matches!(
        &error,
        DataError::TokenizerInvalid { path, .. } if path.ends_with("tokenizer.json")
    ));

    let directory = directory(&[
        ("tokenizer.json", &character_file(&json!(null))),
        ("tokenizer_config.json", &json!([])),
    ]);
    let error = Tokenizer::load(directory.path()).unwrap_err();
    assert!(matches!(
        &error,
        DataError::TokenizerInvalid { path, .. } if path.ends_with("tokenizer_config.json")
    ));
}

#[test]
fn max_length_is_checked_where_it_is_set() {
    assert!(check_max_length(512, 512).is_ok());
    let error = check_max_length(513, 512).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::MaxLengthOverLimit {
                max_length: 513,
                limit: 512
            }
        ),
        "{error}"
    );
    assert!(matches!(
        check_max_length(0, 512),
        Err(DataError::MaxLengthTooShort { .. })
    ));
}

/// Each of these ended the program, the last ones with an allocation of gigabytes.
#[test]
fn a_damaged_tokenizer_is_an_error() {
    let sound = character_file(&json!(null));
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut file = sound.clone();
        change(&mut file);
        file
    };
    let special = |single: serde_json::Value, pair: serde_json::Value| {
        json!({
            "type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [202], "tokens": ["<s>"]}},
        })
    };
    let a = json!({"Sequence": {"id": "A", "type_id": 0}});
    let b = json!({"Sequence": {"id": "B", "type_id": 0}});
    let unknown = json!({"SpecialToken": {"id": "<none>", "type_id": 0}});
    let files = [
        change(&|file| file["post_processor"] = special(json!([b]), json!([a]))),
        change(&|file| file["post_processor"] = special(json!([a, unknown]), json!([a, b]))),
        change(&|file| file["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0})),
        change(&|file| file["decoder"] = json!({"type": "Sequence", "decoders": []})),
        change(&|file| {
            file["decoder"] = json!({"type": "Strip", "content": "a", "start": 9, "stop": 9});
        }),
        change(&|file| {
            file["model"]["continuing_subword_prefix"] = json!("##########");
            file["model"]["merges"] = json!([["a", "b"]]);
            file["model"]["vocab"]["ab"] = json!(150);
        }),
        change(&|file| {
            file["pre_tokenizer"] = json!({
                "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                "invert": false,
            });
        }),
        change(&|file| {
            file["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="});
        }),
        change(&|file| {
            file["normalizer"] = json!({"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
            ]});
        }),
        change(&|file| {
            let replace =
                json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaa"});
            file["normalizer"] = json!({"type": "Sequence", "normalizers": vec![replace; 20]});
        }),
    ];
    let mut broken = 0;
    for file in &files {
        let directory = directory(&[("tokenizer.json", file)]);
        let text = format!("{}b", "a".repeat(40));
        let result = Tokenizer::load(directory.path()).and_then(|tokenizer| {
            tokenizer.encode(&text, None, None)?;
            tokenizer.encode(&text, Some("b"), Some(3))?;
            tokenizer.align(&text, true)?;
            tokenizer.decode(&[97, 200], false)
        });
        match result {
            Ok(_) => {}
            Err(DataError::TokenizerDamaged { path, reason }) => {
                assert!(path.ends_with("tokenizer.json") && !reason.is_empty());
                broken += 1;
            }
            Err(DataError::TokenizerInvalid { .. } | DataError::Tokenize { .. }) => broken += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(broken >= 7, "{broken} of {} files are refused", files.len());
}

#[test]
fn tokens_do_not_depend_on_chance() {
    let mut file = character_file(&json!(null));
    file["model"]["vocab"]["ab"] = json!(150);
    file["model"]["merges"] = json!([["a", "b"]]);
    file["model"]["dropout"] = json!(0.5);
    let directory = directory(&[("tokenizer.json", &file)]);
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    let ids = tokenizer.encode(&"ab".repeat(50), None, None).unwrap().ids;
    assert_eq!(ids, [150; 50]);
}

#[test]
fn the_models_configuration_names_the_end_where_the_tokenizer_does_not() {
    let file = character_file(&json!(null));
    let model = json!({"eos_token_id": [203, 201]});
    let load = |config: &serde_json::Value| {
        let directory = directory(&[
            ("tokenizer.json", &file),
            ("tokenizer_config.json", config),
            ("config.json", &model),
        ]);
        Tokenizer::load(directory.path()).unwrap().end_of_text()
    };
    assert_eq!(load(&json!({})).unwrap(), 203);
    assert_eq!(load(&json!({"eos_token": "<|im_end|>"})).unwrap(), 201);
    let error = load(&json!({"eos_token": "<none>"})).unwrap_err();
    assert!(error.to_string().contains("eos_token"), "{error}");
}

/// BERT's normalizer, pre-tokenizer and model, over letters.
static WORD_PIECES: LazyLock<Tokenizer> = LazyLock::new(|| {
    let mut file: serde_json::Value = character_file(&json!({
        "type": "BertProcessing", "sep": ["</s>", 203], "cls": ["<s>", 202],
    }));
    let pieces = ('a'..='z').flat_map(|letter| [letter.to_string(), format!("##{letter}")]);
    let others = ["[UNK]", "the", "##ing", ".", "'", "\u{4e2d}", "<s>", "</s>"];
    let pieces = others.map(str::to_owned).into_iter().chain(pieces);
    let vocabulary: serde_json::Map<String, serde_json::Value> = pieces
        .enumerate()
        .map(|(id, piece)| (piece, id.into()))
        .collect();
    file["normalizer"] = json!({
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
        "strip_accents": null, "lowercase": true,
    });
    file["pre_tokenizer"] = json!({"type": "BertPreTokenizer"});
    file["decoder"] = json!(null);
    file["model"] = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 20, "vocab": vocabulary,
    });
    Tokenizer::load(directory(&[("tokenizer.json", &file)]).path()).unwrap()
});

proptest! {
    /// The ids of words that were seen before are looked up; `align` never does that.
    #[test]
    fn a_text_has_the_ids_of_its_words(
        texts in prop::collection::vec(
            prop::collection::vec("[a-cA-C]{1,3}|the|doing|<s>|</s>|[ \t\n\u{a0}\u{3000}]|\\PC{1,3}|\
                [.'\u{301}\u{130}\u{df}\u{4e2d}\u{ad}\u{0}]", 0..12),
            1..6,
        ),
    ) {
        for words in texts {
            for separator in [" ", ""] {
                let text = words.join(separator);
                let encoding = WORD_PIECES.encode(&text, None, None).unwrap();
                let aligned = WORD_PIECES.align(&text, true).unwrap();
                prop_assert_eq!(encoding.ids, aligned.ids, "{:?}", text);
                let short = WORD_PIECES.encode(&text, Some("the end"), Some(8)).unwrap();
                prop_assert!(short.ids.len() <= 8);
                let both = WORD_PIECES.encode(&text, Some("the end"), None).unwrap();
                prop_assert_eq!(short.removed, both.ids.len() - short.ids.len());
                prop_assert_eq!(both.type_ids.len(), both.ids.len());
            }
        }
    }
}
