//! From a file to batches, on a few rows written for this test in the shape of public data sets.

use std::path::{Path, PathBuf};

use epiphyte_data::{
    Batches, EncodeOptions, Examples, Fields, Format, LabelField, LabelSet, Order, ReadOptions,
    Table, Targets, Value,
};

use crate::support::word_tokenizer;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// MRPC: unpaired quotes, and tab-separated values in a file called `.txt`.
#[test]
fn unpaired_quotes_swallow_no_rows() {
    let options = ReadOptions {
        format: Some(Format::Tsv),
        ..ReadOptions::default()
    };
    let table = Table::read(fixture("paraphrases.txt"), &options).unwrap();
    assert_eq!(table.len(), 3);
    let first = table.texts("#1 String").unwrap();
    assert!(first[1].starts_with("\" Nothing leaves"), "{}", first[1]);
    let second = table.texts("#2 String").unwrap();
    assert!(second[2].ends_with("by \" rain ."), "{}", second[2]);
}

/// CoLA: no header, and an empty column.
#[test]
fn a_file_without_header_has_numbered_columns() {
    let options = ReadOptions {
        header: false,
        ..ReadOptions::default()
    };
    let table = Table::read(fixture("acceptability.tsv"), &options).unwrap();
    assert_eq!(
        table.column_names().collect::<Vec<_>>(),
        ["0", "1", "2", "3"]
    );
    assert_eq!(table.texts("2").unwrap(), ["", "*", ""]);
    let labels = LabelSet::from_column(&table, "1").unwrap();
    assert_eq!(labels.ids(&table, "1").unwrap(), [1, 0, 1]);
}

/// E2E: quoted separators, doubled quotes and newlines.
#[test]
fn quoted_fields_span_lines() {
    let table = Table::read(fixture("restaurants.csv"), &ReadOptions::default()).unwrap();
    assert_eq!(
        table.texts("ref").unwrap(),
        [
            "The Blue Oar serves fish.",
            "Kiln, \"the\" bakery,\nis near the old mill."
        ]
    );
}

/// BoolQ: booleans as labels. Counts and order are those of the file.
#[test]
fn questions_become_batches() {
    let table = Table::read(fixture("questions.jsonl"), &ReadOptions::default()).unwrap();
    assert_eq!(table.column("label").unwrap()[0], Value::Bool(true));
    let labels = LabelSet::from_column(&table, "label").unwrap();
    assert_eq!(labels.names(), ["false", "true"]);
    let fields = Fields::Texts {
        text: "question".into(),
        pair: Some("passage".into()),
        label: LabelField::Class {
            column: "label".into(),
            labels,
        },
    };
    let options = EncodeOptions::new(16);
    let examples = Examples::encode(&table, &fields, &word_tokenizer(), &options).unwrap();
    assert_eq!((examples.truncated, examples.dropped), (0, 0));
    let batches = Batches::of(examples, 2, Order::Sequential).unwrap();
    let epoch = batches.epoch(0);
    let [first, second] = [0, 1].map(|index| epoch.batch(index).unwrap());
    // Words of question and passage, and three special tokens.
    assert_eq!(first.boundaries, [0, 4 + 5 + 3, 12 + 4 + 5 + 3]);
    assert_eq!(first.targets, Targets::Classes(vec![1, 0]));
    assert_eq!(second.targets, Targets::Classes(vec![1]));
    assert_eq!(second.positions, [2]);
}
