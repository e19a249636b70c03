//! Rows to examples: which tokens, which targets, what is cut, dropped and refused.

use epiphyte_data::{
    DataError, EncodeOptions, Example, Examples, Fields, IGNORED, LabelSet, Labels, Table, Target,
};
use serde_json::json;

use crate::support::{
    character_tokenizer, conversations, language_tokenizer, table, word_tokenizer,
};

fn options(max_length: usize) -> EncodeOptions {
    EncodeOptions {
        max_length,
        packing: false,
    }
}

fn encode(table: &Table, fields: &Fields, max_length: usize) -> Result<Examples, DataError> {
    Examples::encode(
        table,
        fields,
        Labels::Absent,
        &language_tokenizer(),
        &options(max_length),
    )
}

fn completion() -> Fields {
    Fields::Completion {
        prompt: "prompt".into(),
        completion: "completion".into(),
    }
}

/// The text of the tokens that count, with `·` for each that does not.
fn learned(example: &Example) -> String {
    let Target::Tokens(labels) = &example.target else {
        panic!("not language modelling")
    };
    assert_eq!(labels.len(), example.ids.len());
    assert_eq!(example.type_ids, vec![0; example.ids.len()]);
    let tokenizer = language_tokenizer();
    let token = |(&label, &id): (&i64, &u32)| {
        assert!(
            label == IGNORED || label == i64::from(id),
            "a label is the token that stands there"
        );
        if label == IGNORED {
            "·".to_owned()
        } else {
            tokenizer.decode(&[id], false).unwrap()
        }
    };
    labels.iter().zip(&example.ids).map(token).collect()
}

#[test]
fn classification_of_pairs() {
    let table = table(&[
        ("a", &["w1 w2", "w3"]),
        ("b", &["w4", "w5 w6 w7"]),
        ("label", &["yes", "no"]),
    ]);
    let labels = LabelSet::from_column(&table, "label").unwrap();
    let fields = Fields::Sequence {
        text: "a".into(),
        pair: Some("b".into()),
        label: "label".into(),
    };
    let tokenizer = word_tokenizer();
    let examples = Examples::encode(
        &table,
        &fields,
        Labels::Classes(&labels),
        &tokenizer,
        &options(6),
    )
    .unwrap();
    assert_eq!(
        examples.examples[0],
        Example {
            ids: vec![2, 21, 22, 3, 24, 3],
            type_ids: vec![0, 0, 0, 0, 1, 1],
            target: Target::Class(1)
        }
    );
    assert_eq!(examples.examples[1].ids, [2, 23, 3, 25, 26, 3]);
    assert_eq!(
        (examples.truncated, examples.dropped, examples.tokens()),
        (1, 0, 12)
    );

    let unlabelled =
        Examples::encode(&table, &fields, Labels::Absent, &tokenizer, &options(6)).unwrap();
    assert_eq!(unlabelled.examples[0].target, Target::Absent);
    let error =
        Examples::encode(&table, &fields, Labels::Numbers, &tokenizer, &options(6)).unwrap_err();
    assert!(
        matches!(error, DataError::WrongType { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn regression_parses_numbers() {
    let table = table(&[("a", &["w1"]), ("score", &["3.800"])]);
    let fields = Fields::Sequence {
        text: "a".into(),
        pair: None,
        label: "score".into(),
    };
    let examples = Examples::encode(
        &table,
        &fields,
        Labels::Numbers,
        &word_tokenizer(),
        &options(6),
    )
    .unwrap();
    assert_eq!(examples.examples[0].target, Target::Value(3.8));
}

#[test]
fn plain_text_counts_wholly() {
    let fields = Fields::Text {
        text: "text".into(),
    };
    let examples = encode(&table(&[("text", &["ab", "", "cde"])]), &fields, 4).unwrap();
    let texts: Vec<String> = examples.examples.iter().map(learned).collect();
    assert_eq!(texts, ["<s>ab</s>", "<s></s>", "<s>cde"]);
    assert_eq!((examples.truncated, examples.dropped), (1, 0));
}

#[test]
fn packing_loses_nothing_but_a_lone_last_token() {
    let fields = Fields::Text {
        text: "text".into(),
    };
    let pack = |max_length| {
        let table = table(&[("text", &["abc", "de"])]);
        let options = EncodeOptions {
            max_length,
            packing: true,
        };
        Examples::encode(
            &table,
            &fields,
            Labels::Absent,
            &language_tokenizer(),
            &options,
        )
        .unwrap()
    };
    let texts = |examples: &Examples| examples.examples.iter().map(learned).collect::<Vec<_>>();
    assert_eq!(
        texts(&pack(4)),
        ["<s>abc", "</s><s>de"],
        "nine tokens: the last, </s>, has no room to be learned"
    );
    assert_eq!(texts(&pack(7)), ["<s>abc</s><s>d", "e</s>"]);
    assert_eq!(texts(&pack(100)), ["<s>abc</s><s>de</s>"]);
}

#[test]
fn completions_count_without_their_prompt() {
    let table = table(&[
        ("prompt", &["Q: 2", "Q: ", "long prompt"]),
        ("completion", &[" A: 4", "x</s>", "y"]),
    ]);
    let examples = encode(&table, &completion(), 12).unwrap();
    let texts: Vec<String> = examples.examples.iter().map(learned).collect();
    assert_eq!(
        texts,
        ["····· A: 4</s>", "····x</s>"],
        "an end that the text brings along is not doubled"
    );
    assert_eq!(
        (examples.truncated, examples.dropped),
        (1, 1),
        "the third row's completion is cut off"
    );
    let error = encode(&table, &completion(), 3).unwrap_err();
    assert!(
        matches!(error, DataError::NothingToLearn { max_length: 3, .. }),
        "{error}"
    );
}

#[test]
fn conversations_count_the_assistant() {
    let table = conversations(&[json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "bc"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
    ])]);
    let fields = Fields::Messages {
        messages: "messages".into(),
    };
    let examples = encode(&table, &fields, 1000).unwrap();
    let text = learned(&examples.examples[0]);
    let counted: Vec<&str> = text.split('·').filter(|part| !part.is_empty()).collect();
    assert_eq!(counted, ["bc<|im_end|>\n", "e<|im_end|>\n"]);
    assert_eq!(
        examples.examples[0].ids[0], 200,
        "the template writes its own special tokens"
    );
}

#[test]
fn bad_conversations_name_their_row() {
    let fields = Fields::Messages {
        messages: "messages".into(),
    };
    let good = json!([{"role": "assistant", "content": "a"}]);
    let error = encode(
        &conversations(&[good.clone(), json!([{"role": "user", "content": "a"}])]),
        &fields,
        9,
    )
    .unwrap_err();
    assert!(
        matches!(error, DataError::Conversation { row: 2, .. }),
        "{error}"
    );
    let error = encode(&conversations(&[good, json!("text")]), &fields, 9).unwrap_err();
    assert!(
        matches!(error, DataError::WrongType { row: 2, .. }),
        "{error}"
    );
}

#[test]
fn texts_that_cannot_be_learned_from_are_refused() {
    let table = table(&[("text", &["ab", ""]), ("label", &["1", "0"])]);
    let fields = Fields::Sequence {
        text: "text".into(),
        pair: None,
        label: "label".into(),
    };
    let tokenizer = character_tokenizer(&json!({}));
    let error =
        Examples::encode(&table, &fields, Labels::Absent, &tokenizer, &options(6)).unwrap_err();
    assert!(
        matches!(error, DataError::EmptyText { row: 2, .. }),
        "{error}"
    );
    let fields = Fields::Text {
        text: "text".into(),
    };
    let error =
        Examples::encode(&table, &fields, Labels::Absent, &tokenizer, &options(6)).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::SpecialTokenMissing {
                token: "eos_token",
                ..
            }
        ),
        "{error}"
    );
}
