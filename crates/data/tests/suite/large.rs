//! Data that lies in files because it is too large for memory is the same data.

use std::io::Write as _;
use std::path::Path;

use epiphyte_data::{
    Batches, DataError, EncodeOptions, Examples, Fields, LabelField, LabelSet, Order, OutputFormat,
    ReadOptions, Table, Value,
};

use crate::support::{ending_tokenizer, language_tokenizer, word_tokenizer};

/// Options under which everything lies in files.
fn nothing_in_memory() -> ReadOptions {
    ReadOptions {
        in_memory: 0,
        ..ReadOptions::default()
    }
}

/// A file as it is read into memory, and as it is read into files.
fn both(path: &Path) -> [Table; 2] {
    [ReadOptions::default(), nothing_in_memory()].map(|it| Table::read(path, &it).unwrap())
}

/// More rows than are encoded at once.
const ROWS: usize = 8400;

fn text(row: usize) -> String {
    let words = 1 + row % 7;
    let words: Vec<String> = (0..words)
        .map(|it| format!("w{}", (row + it) % 100))
        .collect();
    words.join(" ")
}

#[test]
fn every_format_is_the_same_in_files() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let mut jsonl = String::new();
    let mut csv = "text,label\n".to_owned();
    for row in 0..ROWS {
        // A key that a row has twice, a cell that it lacks, other types, and nested values.
        jsonl += &match row % 4 {
            0 => format!(
                r#"{{"text": "no", "text": "é{}", "label": {row}}}"#,
                text(row)
            ),
            1 => format!(r#"{{"text": "{}", "label": null}}"#, text(row)),
            2 => format!(r#"{{"label": [{row}, {{"a": 0.1}}]}}"#),
            _ => format!(r#"{{"label": 0.{row}, "text": "", "other": true}}"#),
        };
        jsonl += "\n";
        csv += &format!("\"{}\nline\",{row}\n", text(row));
    }
    std::fs::write(at("a.jsonl"), &jsonl).unwrap();
    let array = format!("[{}]", jsonl.trim().replace('\n', ","));
    std::fs::write(at("a.json"), array).unwrap();
    std::fs::write(at("a.csv"), &csv).unwrap();
    std::fs::write(at("a.txt"), &csv).unwrap();
    let utf16 = "\u{feff}".encode_utf16().chain(csv.encode_utf16());
    let utf16: Vec<u8> = utf16.flat_map(u16::to_le_bytes).collect();
    std::fs::write(at("b.csv"), utf16).unwrap();
    let file = std::fs::File::create(at("a.jsonl.gz")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    gzip.write_all(jsonl.as_bytes()).unwrap();
    gzip.finish().unwrap();
    let texts = (0..ROWS).map(|row| Value::Text(text(row)));
    let columns = [("text".to_owned(), texts.collect())];
    let parquet = OutputFormat::Parquet.encode(&columns).unwrap();
    std::fs::write(at("a.parquet"), parquet).unwrap();

    let names = [
        "a.jsonl",
        "a.json",
        "a.csv",
        "a.txt",
        "b.csv",
        "a.jsonl.gz",
        "a.parquet",
    ];
    for name in names {
        let [memory, files] = both(&at(name));
        assert_eq!(memory.len(), files.len(), "{name}");
        assert!(memory.column_names().eq(files.column_names()), "{name}");
        for column in memory.column_names() {
            assert_eq!(
                memory.column(column).unwrap(),
                files.column(column).unwrap(),
                "{name}"
            );
        }
        if name != "a.txt" {
            let samples = [memory, files].map(|it| it.sample(100, 5).unwrap());
            let [memory, files] = samples.map(|it| it.column("text").unwrap());
            assert_eq!(memory, files, "{name}");
        }
    }
}

#[test]
fn examples_and_batches_are_the_same_in_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.jsonl");
    let mut file = std::fs::File::create(&path).unwrap();
    for row in 0..ROWS {
        // Only later rows have two segments with tokens.
        let pair = if row < 1500 {
            String::new()
        } else {
            text(row + 3)
        };
        let row = serde_json::json!({
            "text": text(row), "pair": pair, "label": row % 3, "messages": [
                {"role": "user", "content": text(row)}, {"role": "assistant", "content": pair},
            ],
        });
        writeln!(file, "{row}").unwrap();
    }
    let tables = both(&path);
    let labels = LabelSet::from_column(&tables[0], "label").unwrap();
    let [text, pair, label] = ["text", "pair", "label"].map(str::to_owned);
    let texts = |pair: Option<&str>, label| Fields::Texts {
        text: text.clone(),
        pair: pair.map(str::to_owned),
        label,
    };
    let class = LabelField::Class {
        column: label.clone(),
        labels,
    };
    let plain = Fields::PlainText { text: text.clone() };
    let completion = Fields::PromptCompletion {
        prompt: "text".into(),
        completion: pair.clone(),
    };
    let messages = Fields::Messages {
        messages: "messages".to_owned(),
    };
    let source_target = Fields::SourceTarget {
        source: text.clone(),
        target: pair.clone(),
    };
    let (words, speaks, ends) = (word_tokenizer(), language_tokenizer(), ending_tokenizer());
    let cases = [
        (texts(None, class), &words, false),
        (
            texts(
                Some("pair"),
                LabelField::Number {
                    column: label.clone(),
                },
            ),
            &words,
            false,
        ),
        (texts(None, LabelField::Absent), &words, false),
        (plain.clone(), &speaks, false),
        (plain, &speaks, true),
        (completion, &speaks, false),
        (messages, &speaks, false),
        (source_target, &ends, false),
    ];
    for (fields, tokenizer, packing) in cases {
        let options = EncodeOptions {
            packing,
            ..EncodeOptions::new(24)
        };
        let encode = |table| Examples::encode(table, &fields, tokenizer, &options).unwrap();
        let [memory, files] = tables.each_ref().map(encode);
        assert_eq!(memory, files, "{fields:?}");
        assert_eq!(memory.content_hash(), files.content_hash());
        assert_eq!(memory.longest(), files.longest());
        assert_eq!(memory.largest_id(), files.largest_id());
        assert_eq!(memory.largest_type_id(), files.largest_type_id());
        for order in [
            Order::Shuffled { seed: 3 },
            Order::LengthGrouped { seed: 3 },
        ] {
            let batches = |examples: &Examples| Batches::of(examples.clone(), 16, order).unwrap();
            let [memory, files] = [&memory, &files].map(batches);
            assert_eq!(memory.epoch(1).positions(), files.epoch(1).positions());
            let batch = |batches: &Batches| batches.epoch(1).batch(7).unwrap();
            assert_eq!(batch(&memory), batch(&files));
        }
    }
}

/// Rows are encoded on all cores; which of several bad ones is named must not depend on that.
#[test]
fn of_several_bad_rows_the_first_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.jsonl");
    let bad = [900, 1030, 1031, 8250, 8300];
    let row = |row: usize| match bad.contains(&row) {
        true => "{\"messages\": 7}\n".to_owned(),
        false => "{\"messages\": [{\"role\": \"assistant\", \"content\": \"w1\"}]}\n".to_owned(),
    };
    let rows = |first: usize| (first..ROWS).map(row).collect::<String>();
    let messages = Fields::Messages {
        messages: "messages".to_owned(),
    };
    for (first, named) in [(0, 901), (1000, 31), (8240, 11)] {
        std::fs::write(&path, rows(first)).unwrap();
        let table = Table::read(&path, &ReadOptions::default()).unwrap();
        let options = EncodeOptions::new(24);
        let encoded = Examples::encode(&table, &messages, &language_tokenizer(), &options);
        let error = encoded.unwrap_err();
        assert!(
            matches!(error, DataError::WrongType { row, .. } if row == named),
            "{error}"
        );
    }
}

#[test]
fn plain_text_has_no_rows_to_choose_from() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("book.txt");
    std::fs::write(&path, "One line.\nAnother.\n").unwrap();
    let table = Table::read(&path, &ReadOptions::default()).unwrap();
    assert_eq!(table.texts("text").unwrap(), ["One line.\nAnother.\n"]);
    let error = table.sample(1, 0).unwrap_err();
    assert!(matches!(error, DataError::OneRow { .. }), "{error}");
    assert!(error.to_string().contains("book.txt"), "{error}");
}
