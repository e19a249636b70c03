//! The same strings through `transformers` and through this crate; `make_golden.py` wrote the
//! expected values.

use std::path::Path;

use epiphyte_data::{ChatTemplate, EncodeOptions, Examples, Fields, IGNORED, Target, Tokenizer};
use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::support::{conversations, minilm, shared_data};

#[derive(Deserialize)]
struct TokenizerGolden {
    encodings: Vec<EncodingGolden>,
    masks: Vec<MaskGolden>,
}

#[derive(Deserialize)]
struct EncodingGolden {
    text: String,
    pair: Option<String>,
    max_length: Option<usize>,
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    decoded: String,
}

#[derive(Deserialize)]
struct MaskGolden {
    messages: Json,
    ids: Vec<u32>,
    mask: Vec<u8>,
}

#[derive(Deserialize)]
struct ChatGolden {
    special_tokens: IndexMap<String, String>,
    conversations: Vec<ConversationGolden>,
}

#[derive(Deserialize)]
struct ConversationGolden {
    template: String,
    conversation: String,
    messages: Vec<Json>,
    text: String,
    prompt: String,
    spans: Option<Vec<(usize, usize)>>,
}

fn check_tokenizer(directory: &Path, golden: &str) {
    let golden: TokenizerGolden = serde_json::from_str(golden).unwrap();
    let tokenizer = Tokenizer::load(directory).unwrap();
    assert!(golden.encodings.len() > 100);
    for row in &golden.encodings {
        let encoding = tokenizer
            .encode(&row.text, row.pair.as_deref(), row.max_length)
            .unwrap();
        let what = (&row.text, &row.pair, row.max_length);
        assert_eq!(encoding.ids, row.ids, "{what:?}");
        assert_eq!(encoding.type_ids, row.type_ids, "{what:?}");
        assert_eq!(
            tokenizer.decode(&row.ids, true).unwrap(),
            row.decoded,
            "{what:?}"
        );
    }
    check_masks(directory, &golden.masks);
}

/// Tokens that count for the loss against `return_assistant_tokens_mask`.
fn check_masks(directory: &Path, masks: &[MaskGolden]) {
    let with_template = tempfile::tempdir().unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        // Some models are read-only; copy the content, not the permissions.
        std::fs::write(
            with_template.path().join(file),
            std::fs::read(directory.join(file)).unwrap(),
        )
        .unwrap();
    }
    let template = include_str!("../templates/generation.jinja");
    std::fs::write(with_template.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::load(with_template.path()).unwrap();
    let fields = Fields::Messages {
        messages: "messages".into(),
    };
    let options = EncodeOptions::new(10_000);
    for row in masks {
        let table = conversations(std::slice::from_ref(&row.messages));
        let examples = Examples::encode(&table, &fields, &tokenizer, &options).unwrap();
        assert_eq!(examples.len(), 1);
        let example = examples.get(0).unwrap();
        assert_eq!(example.ids, row.ids);
        let Target::Tokens(labels) = &example.target else {
            panic!("no label per token")
        };
        let mask: Vec<u8> = labels
            .iter()
            .map(|&label| u8::from(label != IGNORED))
            .collect();
        assert_eq!(mask, row.mask, "{}", row.messages);
    }
    assert_eq!(masks.len(), 3);
}

#[test]
#[ignore = "needs EPIPHYTE_MINILM"]
fn minilm_tokens_are_those_of_transformers() {
    check_tokenizer(&minilm(), include_str!("../golden/minilm.json"));
}

#[test]
#[ignore = "needs ../shared/data"]
fn stories260k_tokens_are_those_of_transformers() {
    let directory = shared_data("checkpoints/stories260K/hf");
    check_tokenizer(&directory, include_str!("../golden/stories260k.json"));
}

#[test]
fn chat_templates_render_as_in_transformers() {
    let golden: ChatGolden = serde_json::from_str(include_str!("../golden/chat.json")).unwrap();
    let templates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates");
    let mut with_spans = 0;
    for row in &golden.conversations {
        let what = format!("{} / {}", row.template, row.conversation);
        let source = std::fs::read_to_string(templates.join(&row.template)).unwrap();
        let template = ChatTemplate::new(&source, &golden.special_tokens).unwrap();
        assert_eq!(
            template.render(&row.messages, false).unwrap(),
            row.text,
            "{what}"
        );
        assert_eq!(
            template.render(&row.messages, true).unwrap(),
            row.prompt,
            "{what} with prompt"
        );
        let Some(spans) = &row.spans else { continue };
        let (text, bytes) = template.render_for_training(&row.messages).unwrap();
        assert_eq!(text, row.text, "{what}");
        let characters = |end: usize| text[..end].chars().count();
        let found: Vec<(usize, usize)> = bytes
            .iter()
            .map(|span| (characters(span.start), characters(span.end)))
            .collect();
        assert_eq!(&found, spans, "{what}");
        with_spans += 1;
    }
    assert!(with_spans >= 20, "{with_spans}");
}
