//! Words with tags, and windows of texts with questions: against transformers, and bad rows.

use epiphyte_data::{
    DataError, EncodeOptions, Examples, Fields, IGNORED, LabelSet, ReadOptions, Table, Target,
    Tokenizer, UNKNOWN, Value, Windows,
};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::support::{directory, word_tokenizer};

#[derive(Deserialize)]
struct Golden {
    tokenizer: Json,
    words: Vec<WordsGolden>,
    windows: Vec<WindowsGolden>,
}

#[derive(Deserialize)]
struct WordsGolden {
    words: Vec<String>,
    max_length: usize,
    ids: Vec<u32>,
    word_ids: Vec<Option<usize>>,
}

#[derive(Deserialize)]
struct WindowsGolden {
    question: String,
    context: String,
    max_length: usize,
    stride: usize,
    windows: Vec<WindowGolden>,
    answers: Vec<AnswerGolden>,
}

#[derive(Deserialize)]
struct WindowGolden {
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    offsets: Vec<Option<(usize, usize)>>,
}

#[derive(Deserialize)]
struct AnswerGolden {
    text: String,
    start: usize,
    spans: Vec<[usize; 2]>,
}

/// Whether an error is the one that a row should give.
type Expected = fn(&DataError) -> bool;

fn golden() -> Vec<(Tokenizer, Golden)> {
    let golden: Vec<Golden> = serde_json::from_str(include_str!("../golden/words.json")).unwrap();
    assert_eq!(golden.len(), 2);
    let opened = golden.into_iter().map(|golden| {
        let directory = directory(&[("tokenizer.json", &golden.tokenizer)]);
        (Tokenizer::load(directory.path()).unwrap(), golden)
    });
    opened.collect()
}

#[test]
fn words_become_the_pieces_of_transformers() {
    for (tokenizer, golden) in golden() {
        let tokenizer = tokenizer.of_words();
        for case in golden.words {
            let (encoding, words) = tokenizer
                .encode_words(&case.words, case.max_length)
                .unwrap();
            let what = (&case.words, case.max_length);
            assert_eq!((encoding.ids, words), (case.ids, case.word_ids), "{what:?}");
        }
    }
}

#[test]
fn windows_and_spans_are_those_of_transformers() {
    for (tokenizer, golden) in golden() {
        for case in golden.windows {
            let (question, max_length) = (&case.question, case.max_length);
            let windows = Windows::new(&tokenizer, max_length, Some(case.stride));
            let found = windows.of(question, &case.context).unwrap().unwrap();
            let what = (question, max_length, case.stride);
            assert_eq!(found.len(), case.windows.len(), "{what:?}");
            for (found, expected) in found.iter().zip(&case.windows) {
                assert_eq!(found.ids, expected.ids, "{what:?}");
                assert_eq!(found.type_ids, expected.type_ids, "{what:?}");
                assert_eq!(found.offsets, expected.offsets, "{what:?}");
            }
            for answer in &case.answers {
                let table = Table::from_columns(
                    "q.jsonl",
                    [
                        ("question", Value::Text(question.clone())),
                        ("context", Value::Text(case.context.clone())),
                        (
                            "answers",
                            Value::Json(
                                json!([{ "text": answer.text, "answer_start": answer.start }]),
                            ),
                        ),
                    ]
                    .map(|(name, cell)| (name.to_owned(), vec![cell])),
                );
                let options = EncodeOptions {
                    doc_stride: Some(case.stride),
                    ..EncodeOptions::new(max_length)
                };
                let examples =
                    Examples::encode(&table.unwrap(), &questions(), &tokenizer, &options).unwrap();
                let spans: Vec<Target> = examples.iter().map(|example| example.target).collect();
                let expected = answer.spans.iter().map(|&span| Target::Span(span));
                let expected: Vec<Target> = expected.collect();
                assert_eq!(spans, expected, "{what:?} {}", answer.text);
            }
        }
    }
}

fn questions() -> Fields {
    Fields::Questions {
        question: "question".to_owned(),
        context: "context".to_owned(),
        answers: Some("answers".to_owned()),
    }
}

/// A table of a file's text.
fn read(name: &str, text: &str) -> Result<Table, DataError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    Table::read(&path, &ReadOptions::default())
}

#[test]
fn conll_files_are_read_as_they_come() {
    let tabs = "-DOCSTART-\t-X-\tO\tO\n\nEU\tNNP\tB-NP\tB-ORG\nrejects\tVBZ\tB-VP\tO\n\t\n\nPeter\tNNP\tB-NP\tB-PER";
    for (name, text) in [
        ("a.conll", tabs.to_owned()),
        ("a.conll.txt", tabs.replace('\t', " ")),
        ("a.iob2", tabs.replace('\t', "  ").replace('\n', "\r\n")),
    ] {
        let table = read(name, &text).unwrap();
        assert_eq!(table.len(), 2, "{name}");
        let columns: Vec<&str> = table.column_names().collect();
        assert_eq!(columns, ["tokens", "1", "2", "tags"], "{name}");
        assert_eq!(table.items("tokens", 0).unwrap(), ["EU", "rejects"]);
        assert_eq!(table.items("tags", 0).unwrap(), ["B-ORG", "O"]);
        assert_eq!(table.items("tags", 1).unwrap(), ["B-PER"]);
        assert_eq!(table.items("1", 0).unwrap(), ["NNP", "VBZ"]);
    }
    let words = read("a.conll", "one\ntwo\n\nthree\n").unwrap();
    assert_eq!(words.column_names().collect::<Vec<_>>(), ["tokens"]);
    assert_eq!(words.items("tokens", 0).unwrap(), ["one", "two"]);
}

#[test]
fn bad_conll_lines_are_named() {
    for (text, line, words) in [
        ("a O\nb\n", 2, "it has 1 columns, the first line 2"),
        ("a\tO\n\nb\tO\tO\n", 3, "it has 3 columns"),
        ("a\tO\n\tO\n", 2, "a column is empty"),
    ] {
        let error = read("a.conll", text).unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(error, DataError::InvalidConll { line: found, .. } if found == line),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
    }
    let error = read("a.conll", "\n\n").unwrap_err();
    assert!(matches!(error, DataError::EmptyFile { .. }), "{error}");
}

fn words(tags: bool) -> Fields {
    let labels = LabelSet::from_names(["B-A", "O"].map(str::to_owned)).unwrap();
    Fields::Words {
        words: "tokens".to_owned(),
        tags: tags.then(|| ("tags".to_owned(), labels)),
    }
}

#[test]
fn the_first_piece_of_a_word_has_its_tag() {
    let table = read(
        "a.jsonl",
        "{\"tokens\": [\"w1\", \"w2\", \"w3\"], \"tags\": [\"O\", \"B-A\", \"O\"]}\n\
         {\"tokens\": \"w4 w5\", \"tags\": \"B-A O\"}\n",
    );
    let (table, tokenizer) = (table.unwrap(), word_tokenizer());
    let options = EncodeOptions::new(4);
    let examples = Examples::encode(&table, &words(true), &tokenizer, &options).unwrap();
    let targets: Vec<Target> = examples.iter().map(|example| example.target).collect();
    // Of the first row one word is beyond four tokens.
    let expected = [vec![IGNORED, 1, 0, IGNORED], vec![IGNORED, 0, 1, IGNORED]];
    assert_eq!(targets, expected.map(Target::TokenClasses));
    assert_eq!((examples.truncated, examples.removed_tokens), (1, 1));
    let examples = Examples::encode(&table, &words(false), &tokenizer, &options).unwrap();
    let unknown = vec![IGNORED, UNKNOWN, UNKNOWN, IGNORED];
    assert_eq!(
        examples.get(1).unwrap().target,
        Target::TokenClasses(unknown)
    );
}

#[test]
fn bad_rows_of_words_are_named() {
    let good = r#"{"tokens": ["w1"], "tags": ["O"]}"#;
    let cases: [(&str, Expected); 5] = [
        (r#"{"tokens": ["w1", "w2"], "tags": ["O"]}"#, |error| {
            matches!(
                error,
                DataError::TagCount {
                    row: 2,
                    tags: 1,
                    words: 2,
                    ..
                }
            )
        }),
        (r#"{"tokens": ["w1"], "tags": ["B-B"]}"#, |error| {
            matches!(error, DataError::UnknownLabel { row: 2, .. })
        }),
        (r#"{"tokens": [], "tags": []}"#, |error| {
            matches!(error, DataError::EmptyText { row: 2, .. })
        }),
        (r#"{"tokens": [["w1"]], "tags": ["O"]}"#, |error| {
            matches!(error, DataError::WrongType { row: 2, .. })
        }),
        (r#"{"tokens": ["w1"], "tags": null}"#, |error| {
            matches!(error, DataError::WrongType { row: 2, .. })
        }),
    ];
    for (row, is_expected) in cases {
        let table = read("a.jsonl", &format!("{good}\n{row}\n")).unwrap();
        let options = EncodeOptions::new(8);
        let examples = Examples::encode(&table, &words(true), &word_tokenizer(), &options);
        let error = examples.unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert!(error.to_string().contains("row 2"), "{error}");
    }
}

const SQUAD: &str = r#"{"version": "1.1", "data": [
    {"title": "T", "paragraphs": [
        {"context": "w1 w2 w3 w4", "qas": [
            {"id": "a", "question": "w5", "answers": [{"text": "w2 w3", "answer_start": 3}]},
            {"id": "b", "question": "w6", "answers": [], "is_impossible": true}]},
        {"context": "w7 w8", "qas": [
            {"id": "c", "question": "w9", "answers": [{"text": "w8", "answer_start": 0}]}]}]}]}"#;

#[test]
fn squad_files_are_read_as_they_come() {
    let table = read("dev.json", SQUAD).unwrap();
    assert_eq!(table.len(), 3);
    assert_eq!(table.texts("id").unwrap(), ["a", "b", "c"]);
    assert_eq!(table.texts("title").unwrap(), ["T", "T", "T"]);
    assert_eq!(
        table.texts("context").unwrap()[1..],
        ["w1 w2 w3 w4", "w7 w8"]
    );
    assert_eq!(table.answers("answers", 0).unwrap()[0].start, Some(3));
    assert!(table.answers("answers", 1).unwrap().is_empty());
    let options = EncodeOptions::new(16);
    let examples = Examples::encode(&table, &questions(), &word_tokenizer(), &options).unwrap();
    let targets: Vec<Target> = examples.iter().map(|example| example.target).collect();
    // `[CLS] w5 [SEP] w1 w2 w3 w4 [SEP]`; the last answer is not where it is said to be.
    assert_eq!(targets, [[4, 5], [0, 0], [4, 4]].map(Target::Span));
    // Windows of two tokens that share one; the answer is whole in the second only.
    let options = EncodeOptions {
        doc_stride: Some(1),
        ..EncodeOptions::new(6)
    };
    let examples = Examples::encode(&table, &questions(), &word_tokenizer(), &options).unwrap();
    let targets: Vec<Target> = examples
        .iter()
        .map(|example| example.target)
        .take(3)
        .collect();
    assert_eq!(targets, [[0, 0], [3, 4], [0, 0]].map(Target::Span));
}

#[test]
fn answers_are_read_in_every_layout() {
    let rows = [
        r#"{"answers": {"text": ["w2"], "answer_start": [3]}}"#,
        r#"{"answers": ["w2", "w1"]}"#,
        r#"{"answers": "w2"}"#,
        r#"{"answers": null}"#,
        r#"{"answers": [{"text": "w2", "answer_start": -1}]}"#,
    ];
    let table = read("a.jsonl", &rows.join("\n")).unwrap();
    let answers = |row| table.answers("answers", row).unwrap();
    assert_eq!((&*answers(0)[0].text, answers(0)[0].start), ("w2", Some(3)));
    assert_eq!((answers(1).len(), answers(1)[0].start), (2, None));
    assert_eq!((answers(2).len(), &*answers(2)[0].text), (1, "w2"));
    assert!(answers(3).is_empty());
    assert_eq!(answers(4)[0].start, None);
    let table = read(
        "a.jsonl",
        r#"{"answers": {"text": ["w2"], "answer_start": []}}"#,
    )
    .unwrap();
    let error = table.answers("answers", 0).unwrap_err();
    assert!(
        matches!(error, DataError::WrongType { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn bad_questions_are_named() {
    let row = |question: &str, context: &str, answer: &str| {
        json!({
            "question": question, "context": context,
            "answers": [{ "text": answer, "answer_start": 0 }],
        })
        .to_string()
    };
    let good = row("w1", "w2 w3", "w2");
    let cases: [(String, Expected); 3] = [
        (row("w1", "w2 w3", "w9"), |error| {
            matches!(error, DataError::SpanMismatch { row: 2, .. })
        }),
        (row("w1 w2 w3 w4 w5", "w2", "w2"), |error| {
            matches!(
                error,
                DataError::QuestionTooLong {
                    row: 2,
                    tokens: 5,
                    ..
                }
            )
        }),
        (row("w1", "", "w2"), |error| {
            matches!(error, DataError::EmptyText { row: 2, .. })
        }),
    ];
    for (bad, is_expected) in cases {
        let table = read("a.jsonl", &format!("{good}\n{bad}\n")).unwrap();
        let options = EncodeOptions::new(8);
        let examples = Examples::encode(&table, &questions(), &word_tokenizer(), &options);
        let error = examples.unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert!(error.to_string().contains("row 2"), "{error}");
    }
    let table = read("a.jsonl", &row("w1 w2", "w2 w3 w4 w5", "w2")).unwrap();
    let options = EncodeOptions {
        doc_stride: Some(3),
        ..EncodeOptions::new(8)
    };
    let examples = Examples::encode(&table, &questions(), &word_tokenizer(), &options);
    let error = examples.unwrap_err().to_string();
    assert!(error.contains("doc_stride 3"), "{error}");
}

#[test]
fn choices_are_sequences_of_one_example() {
    let fields = Fields::Choices {
        text: "premise".to_owned(),
        second: Some("question".to_owned()),
        choices: ["choice1", "choice2"].map(str::to_owned).into(),
        label: Some("label".to_owned()),
    };
    let row = json!({
        "premise": "w1", "question": "w2", "choice1": "w3", "choice2": "w4 w5", "label": 1,
    });
    let table = read("a.jsonl", &row.to_string()).unwrap();
    let options = EncodeOptions::new(8);
    let examples = Examples::encode(&table, &fields, &word_tokenizer(), &options).unwrap();
    let example = examples.get(0).unwrap();
    let lengths = vec![6, 7];
    assert_eq!(example.ids.len(), 13);
    assert_eq!(
        example.target,
        Target::Choice {
            lengths,
            chosen: Some(1)
        }
    );
    assert_eq!((examples.longest(), examples.length(0)), (7, 13));
    let bad = row.to_string().replace("\"label\":1", "\"label\":2");
    let table = read("a.jsonl", &bad).unwrap();
    let examples = Examples::encode(&table, &fields, &word_tokenizer(), &options);
    let error = examples.unwrap_err();
    assert!(
        matches!(error, DataError::UnknownLabel { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn sets_of_classes_are_lists_of_names_or_of_flags_or_columns() {
    let rows = [
        r#"{"names": ["b", "a"], "flags": [1, 1, 0], "a": 1, "b": "1", "c": false}"#,
        r#"{"names": [], "flags": [0, 0.0, false], "a": 0, "b": 0, "c": 0}"#,
        r#"{"names": ["c"], "flags": [0, 0, 1], "a": 0, "b": 0, "c": 1}"#,
    ];
    let table = read("a.jsonl", &rows.join("\n")).unwrap();
    let columns =
        |names: &[&str]| -> Vec<String> { names.iter().map(|&name| name.to_owned()).collect() };
    let expected = vec![
        vec![true, true, false],
        vec![false; 3],
        vec![false, false, true],
    ];
    for (columns, names) in [
        (columns(&["names"]), ["a", "b", "c"]),
        (columns(&["flags"]), ["0", "1", "2"]),
        (columns(&["a", "b", "c"]), ["a", "b", "c"]),
    ] {
        let labels = LabelSet::from_sets(&table, &columns).unwrap();
        assert_eq!(labels.names(), names);
        assert_eq!(
            labels.sets(&table, &columns).unwrap(),
            expected,
            "{columns:?}"
        );
    }
    let two = LabelSet::from_names(["a", "b"].map(str::to_owned)).unwrap();
    let error = two.sets(&table, &columns(&["flags"])).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::ClassCount {
                row: 1,
                found: 3,
                ..
            }
        ),
        "{error}"
    );
    let error = two.sets(&table, &columns(&["names"])).unwrap_err();
    assert!(
        matches!(error, DataError::UnknownLabel { row: 3, .. }),
        "{error}"
    );
    let error = two.sets(&table, &columns(&["a", "names"])).unwrap_err();
    assert!(
        matches!(error, DataError::WrongType { row: 1, .. }),
        "{error}"
    );
}
