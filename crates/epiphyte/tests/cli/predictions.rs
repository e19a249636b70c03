//! What `predict` writes in each format, and what `eval` says of each class.

use epiphyte::data::{ReadOptions, Table, Value as Cell};
use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, Workplace};

const HEAD: &str =
    "--model bert-head --task sequence-classification --text-columns text --data dev.jsonl";

fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A number, also one that CSV has as text.
fn number(cell: &Cell) -> f64 {
    match cell {
        Cell::Text(text) => text.parse().unwrap(),
        Cell::Float(number) => *number,
        Cell::Integer(number) => *number as f64,
        other => panic!("{other:?} is no number"),
    }
}

#[test]
fn every_format_says_the_same() {
    let here = Workplace::new();
    here.succeed(&format!(
        "predict {HEAD} --columns text --output preds.jsonl"
    ));
    let rows = lines(&here.read("preds.jsonl"));
    assert_eq!(rows.len(), 32);
    for row in &rows {
        let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["text", "label", "probability", "probabilities", "logits"]
        );
        let logits = [0, 1].map(|class| row["logits"][class].as_f64().unwrap());
        let probability =
            ["negative", "positive"].map(|it| row["probabilities"][it].as_f64().unwrap());
        let expected = 1.0 / (1.0 + (logits[0] - logits[1]).exp());
        assert!((probability[1] - expected).abs() < 1e-6, "{row}");
        assert!(
            (probability[0] + probability[1] - 1.0).abs() < 1e-6,
            "{row}"
        );
        let label = row["label"].as_str().unwrap();
        assert_eq!(row["probability"], row["probabilities"][label]);
        assert!(row["probability"].as_f64().unwrap() >= 0.5);
    }
    for (name, flags) in [
        ("preds.csv", ""),
        ("preds.tsv", ""),
        ("preds.parquet", ""),
        ("named.txt", "--output-format csv"),
    ] {
        here.succeed(&format!(
            "predict {HEAD} --columns text --output {name} {flags}"
        ));
        let options = ReadOptions {
            format: name.ends_with("txt").then_some(epiphyte::data::Format::Csv),
            ..ReadOptions::default()
        };
        let table = Table::read(here.path(name), &options).unwrap();
        let columns: Vec<&str> = table.column_names().collect();
        let expected = [
            "text",
            "label",
            "probability",
            "probability_negative",
            "probability_positive",
        ];
        assert_eq!(columns, expected, "{name}");
        let texts = table.texts("text").unwrap();
        let labels = table.texts("label").unwrap();
        let positive = table.column("probability_positive").unwrap();
        for (at, row) in rows.iter().enumerate() {
            assert_eq!(
                (row["text"].as_str(), row["label"].as_str()),
                (Some(texts[at]), Some(labels[at]))
            );
            assert_eq!(
                number(&positive[at]),
                row["probabilities"]["positive"].as_f64().unwrap()
            );
        }
    }
}

#[test]
fn columns_of_the_data_are_carried_along() {
    let here = Workplace::new();
    let rows = [
        json!({ "id": 7, "text": "a good, \"fine\" film", "label": "positive" }),
        json!({ "id": 8, "text": "a bad\nplay", "label": "negative" }),
    ];
    here.write(
        "new.jsonl",
        rows.each_ref().map(|row| format!("{row}\n")).concat(),
    );
    let predict = format!(
        "predict {} --columns id,text,label",
        HEAD.replace("dev", "new")
    );
    here.succeed(&format!("{predict} --output preds.jsonl"));
    let found = lines(&here.read("preds.jsonl"));
    for (row, found) in rows.iter().zip(&found) {
        assert_eq!(
            (&row["id"], &row["text"], &row["label"]),
            (&found["id"], &found["text"], &found["data_label"])
        );
        assert!(found["label"].is_string());
    }
    here.succeed(&format!("{predict} --output preds.csv"));
    let table = Table::read(here.path("preds.csv"), &ReadOptions::default()).unwrap();
    assert_eq!(table.texts("id").unwrap(), ["7", "8"]);
    assert_eq!(
        table.texts("text").unwrap(),
        ["a good, \"fine\" film", "a bad\nplay"]
    );

    let errors = here.fail(
        1,
        &format!("predict {HEAD} --columns idd --output none.jsonl"),
    );
    assert!(errors.contains("has no column `idd`"), "{errors}");
    assert!(!here.path("none.jsonl").exists());
}

#[test]
fn numbers_have_no_probabilities() {
    let here = Workplace::new();
    for name in ["train.jsonl", "dev.jsonl"] {
        let text = here.read(name).replace("\"negative\"", "-0.5");
        here.write(name, text.replace("\"positive\"", "1.5"));
    }
    here.json(&format!(
        "{CLASSIFY} --task regression --max-steps 2 --output adapter"
    ));
    let predict = "predict --model bert --adapter adapter --data dev.jsonl --output";
    here.succeed(&format!("{predict} preds.jsonl"));
    here.succeed(&format!("{predict} preds.csv"));
    let table = Table::read(here.path("preds.csv"), &ReadOptions::default()).unwrap();
    assert_eq!(table.column_names().collect::<Vec<_>>(), ["label"]);
    let labels = table.column("label").unwrap();
    for (row, label) in lines(&here.read("preds.jsonl")).iter().zip(&labels) {
        assert_eq!(row["label"].as_f64().unwrap(), number(label));
        assert_eq!(row["label"], row["logits"][0]);
    }
}

/// The counts are those of the predictions, and the scores those of the counts.
#[test]
fn an_evaluation_says_how_each_class_is_found() {
    let here = Workplace::new();
    let scores = here.json(&format!("eval {HEAD}"));
    here.succeed(&format!(
        "predict {HEAD} --columns label --output preds.jsonl"
    ));
    let mut counts = [[0_u64; 2]; 2];
    let id = |label: &Value| usize::from(label == "positive");
    for row in lines(&here.read("preds.jsonl")) {
        counts[id(&row["data_label"])][id(&row["label"])] += 1;
    }
    assert_eq!(scores["confusion_matrix"], json!(counts));
    assert_eq!(scores["positive_class"], "positive");
    for (class, label) in ["negative", "positive"].into_iter().enumerate() {
        let found = &scores["classes"][class];
        assert_eq!(found["label"], label);
        assert_eq!(found["support"], counts[class].iter().sum::<u64>());
        let predicted = counts[0][class] + counts[1][class];
        let recall = counts[class][class] as f64 / counts[class].iter().sum::<u64>() as f64;
        let precision = match predicted {
            0 => 0.0,
            predicted => counts[class][class] as f64 / predicted as f64,
        };
        assert_eq!(found["recall"].as_f64().unwrap(), recall);
        assert_eq!(found["precision"].as_f64().unwrap(), precision);
    }
    for score in ["f1", "precision", "recall"] {
        assert_eq!(scores[score], scores["classes"][1][score], "{score}");
    }
    let text = here.succeed(&format!("eval {HEAD} --quiet"));
    assert!(
        text.contains("f1, precision and recall are of `positive`"),
        "{text}"
    );
    assert!(text.contains("confusion matrix"), "{text}");
}

/// The digits of a column that is copied.
#[test]
fn whole_numbers_are_copied_to_the_digit() {
    let here = Workplace::new();
    let ids = ["12345678901234567890", "9007199254740993", "-7"];
    let rows = ids.map(|id| format!("{{\"id\": {id}, \"text\": \"good film\"}}\n"));
    here.write("ids.jsonl", rows.concat());
    let command = HEAD.replace("dev.jsonl", "ids.jsonl");
    for output in ["out.jsonl", "out.csv"] {
        here.succeed(&format!("predict {command} --columns id --output {output}"));
        let written = here.read(output);
        for (id, line) in ids
            .iter()
            .zip(written.lines().skip(usize::from(output == "out.csv")))
        {
            let begins = [format!("{{\"id\":{id},"), format!("{id},")];
            assert!(begins.iter().any(|it| line.starts_with(it)), "{line}");
        }
    }
    here.succeed(&format!(
        "predict {command} --columns id --output out.parquet"
    ));
    let table = Table::read(here.path("out.parquet"), &ReadOptions::default()).unwrap();
    assert_eq!(table.texts("id").unwrap(), ids);
}

/// A text on the command line, a line of standard input and a line of a file are the same row,
/// whatever the column of the training data was called.
#[test]
fn a_few_texts_need_no_table() {
    use std::io::Write as _;
    use std::process::Stdio;
    let here = Workplace::new();
    let renamed = here.read("train.jsonl").replace("\"text\"", "\"sentence\"");
    here.write("renamed.jsonl", renamed);
    here.succeed(
        "train --model bert --train-data renamed.jsonl --text-columns sentence --max-steps 1 \
         --max-length 16 --output adapter",
    );
    here.write("lines.txt", "a good film\n\n--bad play\n");
    let predict = "predict --model bert --adapter adapter --output -";
    let of_file = here.succeed(&format!("{predict} --data lines.txt"));
    assert_eq!(of_file.lines().count(), 2);
    let texts = ["--text", "a good film", "--text", "--bad play"];
    let output = here.command(predict).args(texts).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(String::from_utf8(output.stdout).unwrap(), of_file);
    let mut piped = here.command(&format!("{predict} --data - --format text"));
    let mut piped = piped
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    piped
        .stdin
        .take()
        .unwrap()
        .write_all(b"a good film\n--bad play\n")
        .unwrap();
    let output = piped.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), of_file);
    let errors = here.fail(2, predict);
    assert!(errors.contains("--data"), "{errors}");
    let errors = here.fail(2, &format!("{predict} --data lines.txt --text a"));
    assert!(errors.contains("cannot be used with"), "{errors}");
}
