//! `eval`, `predict` and `inspect`, with and without an adapter.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::workplace::{CLASSIFY, Workplace};

/// Trains enough to be right nearly always.
fn trained() -> Workplace {
    let here = Workplace::new();
    let report = here.json(&format!(
        "{CLASSIFY} --epochs 15 --rank 4 --target-modules all-linear --output adapter"
    ));
    assert!(
        report["metrics"]["accuracy"].as_f64().unwrap() > 0.9,
        "{report}"
    );
    here
}

fn predictions(here: &Workplace, name: &str) -> Vec<Value> {
    here.read(name)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn predictions_agree_with_scores() {
    let here = trained();
    here.json("predict --model bert --adapter adapter --data dev.jsonl --output preds.jsonl");
    let scores = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    let (dev, found) = (here.read("dev.jsonl"), predictions(&here, "preds.jsonl"));
    let rows: Vec<Value> = dev
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), found.len());
    let right = rows
        .iter()
        .zip(&found)
        .filter(|(row, found)| row["label"] == found["label"])
        .count();
    assert_eq!(
        scores["accuracy"].as_f64().unwrap(),
        right as f64 / rows.len() as f64
    );
    for found in &found {
        let logits = found["logits"].as_array().unwrap();
        let positive = logits[1].as_f64() > logits[0].as_f64();
        assert_eq!(
            found["label"],
            if positive { "positive" } else { "negative" }
        );
    }

    here.write(
        "new.jsonl",
        "{\"text\": \"the film was great\"}\n{\"text\": \"a very poor play\"}\n",
    );
    here.succeed(
        "predict --model bert --adapter adapter --data new.jsonl --output new-preds.jsonl",
    );
    let labels: Vec<Value> = predictions(&here, "new-preds.jsonl")
        .iter()
        .map(|row| row["label"].clone())
        .collect();
    assert_eq!(labels, ["positive", "negative"]);
}

#[test]
fn an_adapter_of_peft_needs_only_its_columns() {
    let here = trained();
    let ours = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    here.as_of_peft("adapter");
    here.write(
        "other.jsonl",
        here.read("dev.jsonl").replace("text", "body"),
    );
    let errors = here.fail(1, "eval --model bert --adapter adapter --data other.jsonl");
    assert!(errors.contains("text_columns"), "{errors}");
    let theirs =
        here.json("eval --model bert --adapter adapter --data other.jsonl --text-columns body");
    let named =
        here.json("eval --model bert --adapter adapter --data dev.jsonl --text-columns text");
    assert_eq!(ours, named);
    assert_eq!(ours["metrics"], theirs["metrics"]);

    let inspected = here.json("inspect adapter");
    assert!(inspected["trainable_parameters"].as_u64().unwrap() > 0);
    fs::rename(here.path("bert"), here.path("moved")).unwrap();
    let alone = here.json("inspect adapter");
    assert_eq!(alone["trainable_parameters"], Value::Null);
    assert!(alone["stored_parameters"].as_u64().unwrap() > 0);
    assert_eq!(
        here.json("inspect adapter/adapter_config.json --model moved"),
        inspected
    );
}

#[test]
fn a_base_with_a_head_needs_no_adapter() {
    let here = Workplace::new();
    let flags = "--task sequence-classification --text-columns text --data dev.jsonl";
    let scores = here.json(&format!("eval --model bert-head {flags}"));
    assert!(
        scores["accuracy"].is_number()
            && scores["f1"].is_number()
            && scores["matthews"].is_number()
    );
    here.succeed(&format!(
        "predict --model bert-head {flags} --output preds.jsonl"
    ));
    assert_eq!(predictions(&here, "preds.jsonl").len(), 32);
    let errors = here.fail(2, &format!("eval --model bert {flags}"));
    assert!(
        errors.contains("has no head for sequence-classification"),
        "{errors}"
    );
    let errors = here.fail(
        2,
        "eval --model bert-head --text-columns text --data dev.jsonl",
    );
    assert!(errors.contains("--task"), "{errors}");
}

#[test]
fn numbers_are_predicted_as_numbers() {
    let here = Workplace::new();
    for name in ["train.jsonl", "dev.jsonl"] {
        let text = here
            .read(name)
            .replace("\"negative\"", "-0.5")
            .replace("\"positive\"", "1.5");
        here.write(name, text);
    }
    let report = here.json(&format!(
        "{CLASSIFY} --task regression --epochs 30 --target-modules all-linear --output adapter"
    ));
    assert!(
        report["metrics"]["pearson"].as_f64().unwrap() > 0.8,
        "{report}"
    );
    here.succeed("predict --model bert --adapter adapter --data dev.jsonl --output preds.jsonl");
    for row in predictions(&here, "preds.jsonl") {
        assert_eq!(row["label"], row["logits"][0]);
    }
}

#[test]
fn another_base_is_refused_unless_allowed() {
    let here = trained();
    let command = "eval --model bert-head --adapter adapter --data dev.jsonl";
    let errors = here.fail(1, command);
    assert!(errors.contains("was trained over another base"), "{errors}");
    here.json(&format!("{command} --allow-other-base"));
}

#[test]
fn a_base_shows_its_linear_maps() {
    let here = Workplace::new();
    let base = here.json("inspect bert");
    assert_eq!(base["layers"], 2);
    let maps = base["linear_maps"].as_array().unwrap();
    let query = maps
        .iter()
        .find(|maps| maps["path"] == "bert.encoder.layer.*.attention.self.query")
        .unwrap();
    assert_eq!(
        (&query["count"], &query["shape"]),
        (&2.into(), &serde_json::json!([16, 16]))
    );
}

/// The data, the base and the adapter stay as they are, whatever path the output is called by.
#[test]
fn predictions_never_replace_an_input() {
    let here = trained();
    let before = here.read("dev.jsonl");
    let weights = fs::read(here.path("bert/model.safetensors")).unwrap();
    let command = "predict --model bert --adapter adapter --data dev.jsonl --output";
    for output in [
        "dev.jsonl",
        "adapter/../dev.jsonl",
        "bert/model.safetensors",
        "adapter/adapter_config.json",
    ] {
        let errors = here.fail(2, &format!("{command} {output}"));
        assert!(errors.contains("is an input"), "{errors}");
    }
    assert_eq!(here.read("dev.jsonl"), before);
    assert_eq!(
        fs::read(here.path("bert/model.safetensors")).unwrap(),
        weights
    );
    // Predictions may be written again, also next to the adapter.
    for _ in 0..2 {
        here.succeed(&format!("{command} adapter/preds.jsonl --overwrite"));
    }
    let errors = here.fail(2, &format!("{command} adapter/log.jsonl --overwrite"));
    assert!(errors.contains("is an input"), "{errors}");
}

/// Neither the base nor the adapter is where a merged model goes.
#[test]
fn a_merge_never_replaces_what_it_reads() {
    let here = trained();
    for output in ["bert", "adapter", "adapter/../bert"] {
        let errors = here.fail(
            2,
            &format!("merge --model bert --adapter adapter --output {output} --overwrite"),
        );
        assert!(errors.contains("itself: choose another"), "{errors}");
    }
    here.succeed("eval --model bert --adapter adapter --data dev.jsonl");
}

/// A directory with anything of the user's in it is refused, and nothing in it changes.
#[test]
fn training_goes_to_an_empty_directory_or_its_own() {
    let here = Workplace::new();
    for (name, file) in [
        ("hub/checkpoint-500", "config.json"),
        ("hub/checkpoint-1000", "model.safetensors"),
        ("hub", "README.md"),
        ("peft", "adapter_config.json"),
    ] {
        fs::create_dir_all(here.path(name)).unwrap();
        here.write(&format!("{name}/{file}"), "{}");
    }
    for flags in ["", "--overwrite", "--resume"] {
        for output in ["hub", "peft"] {
            let run = format!("{CLASSIFY} --max-steps 2 --save-total-limit 1 --output {output}");
            let errors = here.fail(1, &format!("{run} {flags}"));
            assert!(errors.contains("which is not a run's"), "{errors}");
        }
    }
    for file in [
        "checkpoint-500/config.json",
        "checkpoint-1000/model.safetensors",
        "README.md",
    ] {
        assert_eq!(here.read(&format!("hub/{file}")), "{}");
    }
    fs::create_dir(here.path("empty")).unwrap();
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output empty"));
    here.succeed(&format!(
        "{CLASSIFY} --max-steps 2 --output empty --overwrite"
    ));
}

/// Before anything is trained, and only where it is not measured: F1 weighted by classes needs
/// three.
#[test]
fn a_metric_that_data_do_not_have_is_refused() {
    let here = Workplace::new();
    let run = format!("{CLASSIFY} --metric-for-best-model f1_weighted --max-steps 2");
    let errors = here.fail(2, &format!("{run} --output two"));
    assert!(errors.contains("`f1_weighted` is not measured"), "{errors}");
    assert!(!here.path("two").join("log.jsonl").exists());
    for name in ["train.jsonl", "dev.jsonl"] {
        let third = "{\"text\": \"so so\", \"label\": \"neither\"}\n";
        here.write(name, &(here.read(name) + third));
    }
    here.succeed(&format!("{run} --output three"));
}

/// No table and no head of any base of the golden files is listed, whatever its name.
#[test]
fn only_linear_layers_in_front_of_the_head_are_listed() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden");
    let here = Workplace::new();
    let mut bases = 0;
    for entry in std::fs::read_dir(&golden).unwrap() {
        let base = entry.unwrap().path().join("base");
        if !base.is_dir() {
            continue;
        }
        bases += 1;
        let shown = here.json(&format!("inspect {}", base.display()));
        let maps = shown["linear_maps"].as_array().unwrap();
        assert!(maps.len() >= 4, "{shown}");
        for map in maps {
            assert_ne!(map["shape"][0], shown["vocabulary"], "{base:?}: {map}");
        }
    }
    assert!(bases > 10);
    let gpt2 = here.json(&format!("inspect {}", golden.join("gpt2/base").display()));
    let maps = gpt2["linear_maps"].as_array().unwrap().iter();
    let paths: Vec<&str> = maps.map(|map| map["path"].as_str().unwrap()).collect();
    let names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"];
    assert_eq!(paths, names.map(|name| format!("transformer.h.*.{name}")));
}

#[test]
fn progress_is_told_where_there_is_no_terminal() {
    let here = Workplace::new();
    let flags = "--model bert-head --task sequence-classification --text-columns text --data dev.jsonl \
        --batch-size 16";
    for command in [
        format!("eval {flags}"),
        format!("predict {flags} --output preds.jsonl --overwrite"),
    ] {
        let errors = |more: &str| {
            let output = here.run(&format!("{command} {more}"));
            assert!(output.status.success());
            String::from_utf8(output.stderr).unwrap()
        };
        for telling in ["", "-v"] {
            let told = errors(telling);
            assert!(told.contains("example 32 of 32: "), "{told}");
            assert!(told.contains("tokens/s  00:00:00 left"), "{told}");
        }
        for silent in ["--json", "--quiet"] {
            assert_eq!(errors(silent), "", "{command} {silent}");
        }
    }
}

/// Texts that say nothing of their classes.
#[test]
fn a_classifier_that_learned_nothing_says_so() {
    let here = Workplace::new();
    let row = |label: &str| format!("{{\"text\": \"a film\", \"label\": \"{label}\"}}\n");
    here.write("same.jsonl", row("positive").repeat(3) + &row("negative"));
    let train = |flags: &str| {
        let output = here.run(&format!("{CLASSIFY} {flags} --output adapter --overwrite"));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let notes = train("--max-steps 1 --eval-data same.jsonl");
    assert!(
        notes.contains(
            "no better than always answering the most frequent class, `positive` (0.7500)"
        ) && notes.contains("--epochs, now 3")
            && notes.contains("--learning-rate (now 1e-2"),
        "{notes}"
    );
    let notes = train("--epochs 10");
    assert!(!notes.contains("no better than"), "{notes}");
}
