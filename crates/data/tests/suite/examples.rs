//! Rows to examples: tokens, targets, truncation, dropped rows and errors.

use epiphyte_data::{
    Batch, DataError, EncodeOptions, Example, Examples, Fields, IGNORED, LabelField, LabelSet,
    Table, Target, TargetSequences, Targets, Tokenizer,
};
use serde_json::json;

use crate::support::{
    character_file, character_tokenizer, conversations, directory, ending_tokenizer,
    language_tokenizer, table, word_tokenizer,
};

fn encode(table: &Table, fields: &Fields, max_length: usize) -> Result<Examples, DataError> {
    Examples::encode(
        table,
        fields,
        &language_tokenizer(),
        &EncodeOptions::new(max_length),
    )
}

fn completion() -> Fields {
    Fields::PromptCompletion {
        prompt: "prompt".into(),
        completion: "completion".into(),
    }
}

/// The text of the tokens that count, with `·` for each that does not.
fn counted(example: &Example) -> String {
    let Target::Tokens(labels) = &example.target else {
        panic!("no label per token")
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
fn pairs_with_a_class() {
    let table = table(&[
        ("a", &["w1 w2", "w3"]),
        ("b", &["w4", "w5 w6 w7"]),
        ("label", &["yes", "no"]),
    ]);
    let pairs = |label| Fields::Texts {
        text: "a".into(),
        pair: Some("b".into()),
        label,
    };
    let column = || "label".to_owned();
    let tokenizer = word_tokenizer();
    let encode =
        |label| Examples::encode(&table, &pairs(label), &tokenizer, &EncodeOptions::new(6));
    let examples = encode(LabelField::Class {
        column: column(),
        labels: LabelSet::from_column(&table, "label").unwrap(),
    })
    .unwrap();
    assert_eq!(
        examples.get(0).unwrap(),
        Example {
            ids: vec![2, 21, 22, 3, 24, 3],
            type_ids: vec![0, 0, 0, 0, 1, 1],
            target: Target::Class(1)
        }
    );
    assert_eq!(examples.get(1).unwrap().ids, [2, 23, 3, 25, 26, 3]);
    assert_eq!(
        (examples.truncated, examples.dropped, examples.tokens()),
        (1, 0, 12)
    );

    let unlabeled = encode(LabelField::Absent).unwrap();
    assert_eq!(unlabeled.get(0).unwrap().target, Target::Absent);
    let error = encode(LabelField::Number { column: column() }).unwrap_err();
    assert!(
        matches!(error, DataError::WrongType { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn numbers_are_parsed() {
    let table = table(&[("a", &["w1"]), ("score", &["3.800"])]);
    let fields = Fields::Texts {
        text: "a".into(),
        pair: None,
        label: LabelField::Number {
            column: "score".into(),
        },
    };
    let examples =
        Examples::encode(&table, &fields, &word_tokenizer(), &EncodeOptions::new(6)).unwrap();
    assert_eq!(examples.get(0).unwrap().target, Target::Number(3.8));
}

#[test]
fn plain_text_counts_wholly() {
    let fields = Fields::PlainText {
        text: "text".into(),
    };
    let examples = encode(&table(&[("text", &["ab", "", "cde"])]), &fields, 4).unwrap();
    let texts: Vec<String> = examples.iter().map(|example| counted(&example)).collect();
    assert_eq!(texts, ["<s>ab</s>", "<s></s>", "<s>cde"]);
    assert_eq!((examples.truncated, examples.dropped), (1, 0));
}

#[test]
fn packing_loses_nothing_but_a_lone_last_token() {
    let fields = Fields::PlainText {
        text: "text".into(),
    };
    let pack = |max_length| {
        let table = table(&[("text", &["abc", "de"])]);
        let options = EncodeOptions {
            packing: true,
            ..EncodeOptions::new(max_length)
        };
        Examples::encode(&table, &fields, &language_tokenizer(), &options).unwrap()
    };
    let texts = |examples: &Examples| {
        examples
            .iter()
            .map(|example| counted(&example))
            .collect::<Vec<_>>()
    };
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
    let texts: Vec<String> = examples.iter().map(|example| counted(&example)).collect();
    assert_eq!(
        texts,
        ["····· A: 4</s>", "··· x</s>"],
        "a blank at the end of a prompt counts, an end that the text brings along is not doubled"
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

/// GPT-2's tokenizer trims the spaces off a token's offsets; a token of spaces alone then covers no
/// byte.
#[test]
fn a_completion_is_found_if_offsets_are_trimmed() {
    let file = character_file(&json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    }));
    let config = json!({"eos_token": "</s>"});
    let directory = directory(&[
        ("tokenizer.json", &file),
        ("tokenizer_config.json", &config),
    ]);
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    let alignment = tokenizer.align("a b", false).unwrap();
    assert_eq!(alignment.offsets[1], (2, 2), "the space is trimmed");

    let table = table(&[("prompt", &[" a  \n "]), ("completion", &["  b \n c "])]);
    let options = EncodeOptions::new(100);
    let examples = Examples::encode(&table, &completion(), &tokenizer, &options).unwrap();
    assert_eq!(counted(&examples.get(0).unwrap()), "······  b \n c </s>");
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
    let text = counted(&examples.get(0).unwrap());
    let turns: Vec<&str> = text.split('·').filter(|part| !part.is_empty()).collect();
    assert_eq!(turns, ["bc<|im_end|>\n", "e<|im_end|>\n"]);
    assert_eq!(
        examples.get(0).unwrap().ids[0],
        200,
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
fn empty_texts_and_missing_special_tokens_are_errors() {
    let table = table(&[("text", &["ab", ""]), ("label", &["1", "0"])]);
    let fields = Fields::Texts {
        text: "text".into(),
        pair: None,
        label: LabelField::Absent,
    };
    let tokenizer = character_tokenizer(&json!({}));
    let error = Examples::encode(&table, &fields, &tokenizer, &EncodeOptions::new(6)).unwrap_err();
    assert!(
        matches!(error, DataError::EmptyText { row: 2, .. }),
        "{error}"
    );
    let fields = Fields::PlainText {
        text: "text".into(),
    };
    let error = Examples::encode(&table, &fields, &tokenizer, &EncodeOptions::new(6)).unwrap_err();
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

fn source_target() -> Fields {
    Fields::SourceTarget {
        source: "source".into(),
        target: "target".into(),
    }
}

/// The ids are those of the word tokenizer's vocabulary; `transformers` calls the tokenizer with
/// `text` and `text_target` alike, so that both get `[CLS] … [SEP]`.
#[test]
fn sources_and_targets_are_encoded_each_alone_with_special_tokens() {
    let table = table(&[
        ("source", &["w1 w2 w3 w4", "w5"]),
        ("target", &["w6", "w7 w8 w9"]),
    ]);
    let options = EncodeOptions {
        max_target_length: Some(4),
        ..EncodeOptions::new(5)
    };
    let examples = Examples::encode(&table, &source_target(), &word_tokenizer(), &options).unwrap();
    assert_eq!(
        examples.iter().collect::<Vec<_>>(),
        [
            Example {
                ids: vec![2, 21, 22, 23, 3],
                type_ids: vec![0; 5],
                target: Target::Sequence(vec![2, 26, 3]),
            },
            Example {
                ids: vec![2, 25, 3],
                type_ids: vec![0; 3],
                target: Target::Sequence(vec![2, 27, 28, 3]),
            },
        ],
        "both texts are truncated before their last special token"
    );
    assert_eq!((examples.truncated, examples.tokens()), (2, 15));
    assert_eq!(examples.largest_id(), Some(28), "a token of the target");
    assert_eq!(examples.longest(), 5);
}

/// T5's post-processor appends `</s>` and nothing else.
#[test]
fn a_target_ends_as_the_post_processor_ends_it() {
    let table = table(&[("source", &["ab"]), ("target", &[""])]);
    let tokenizer = ending_tokenizer();
    let options = EncodeOptions::new(8);
    let examples = Examples::encode(&table, &source_target(), &tokenizer, &options).unwrap();
    assert_eq!(examples.get(0).unwrap().ids, [97, 98, 203]);
    assert_eq!(examples.get(0).unwrap().target, Target::Sequence(vec![203]));

    // Without a post-processor an empty target has no label at all.
    let bare = character_tokenizer(&json!({}));
    let error = Examples::encode(&table, &source_target(), &bare, &options).unwrap_err();
    assert!(
        matches!(error, DataError::EmptyText { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn target_sequences_are_joined_and_split_with_their_sources() {
    let example = |source: usize, target: std::ops::Range<i64>| Example {
        ids: vec![9; source],
        type_ids: vec![0; source],
        target: Target::Sequence(target.collect()),
    };
    let examples = [
        example(2, 0..30),
        example(30, 30..32),
        example(16, 32..48),
        example(16, 48..64),
    ];
    let batch = Batch::join(examples.iter().enumerate()).unwrap();
    assert_eq!(batch.boundaries, [0, 2, 32, 48, 64]);
    let Targets::Sequences(targets) = &batch.targets else {
        panic!("{:?}", batch.targets)
    };
    assert_eq!(targets.boundaries, [0, 30, 32, 48, 64]);
    assert_eq!(targets.labels, (0..64).collect::<Vec<i64>>());

    // Sources alone are 34 and 30 tokens in the two halves, with their targets 64 and 64.
    let halves = batch.micro_batches(64);
    assert_eq!(
        halves.iter().map(Batch::tokens).collect::<Vec<_>>(),
        [64, 64]
    );
    assert_eq!(halves[1].boundaries, [0, 16, 32]);
    assert_eq!(
        halves[1].targets,
        Targets::Sequences(TargetSequences {
            labels: (32..64).collect(),
            boundaries: vec![0, 16, 32],
        })
    );
    assert_eq!(halves[1].positions, [2, 3]);

    let mut mixed = examples.to_vec();
    mixed[3].target = Target::Tokens(vec![0; 16]);
    assert!(matches!(
        Batch::join(mixed.iter().enumerate()),
        Err(DataError::MixedTargets { index: 3 })
    ));
}
