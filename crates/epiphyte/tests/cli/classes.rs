//! Which class is which output: from the adapter, the base, or `--labels`; never a guess.

use epiphyte::io::safetensors_file::write_f32;
use epiphyte::models::Checkpoint;
use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, Workplace};

const HEAD: &str = "--model bert-head --task sequence-classification --text-columns text";

/// The base's classes in the order that sorting does not give.
fn reversed(here: &Workplace, model: &str) {
    here.edit(&format!("{model}/config.json"), |config| {
        config["id2label"] = json!({ "0": "positive", "1": "negative" });
    });
}

fn unnamed(here: &Workplace, model: &str) {
    here.edit(&format!("{model}/config.json"), |config| {
        config.as_object_mut().unwrap().remove("id2label");
    });
}

fn labels(here: &Workplace, adapter: &str) -> Value {
    here.record(adapter)["task"]["labels"].clone()
}

/// Rewrites the weights of a model; a tensor of which `change` gives none is left out.
fn rewrite(
    here: &Workplace,
    model: &str,
    change: impl Fn(&str, Vec<usize>, Vec<f32>) -> Option<(Vec<usize>, Vec<f32>)>,
) {
    let file = here.path(&format!("{model}/model.safetensors"));
    let checkpoint = Checkpoint::open_file(&file).unwrap();
    let changed = checkpoint.names().filter_map(|name| {
        let tensor = checkpoint.tensor(name)?;
        let (shape, values) = change(name, tensor.shape.to_vec(), tensor.to_f32()?)?;
        Some((name.to_owned(), shape, || values))
    });
    let changed: Vec<_> = changed.collect();
    drop(checkpoint);
    write_f32(&file, changed).unwrap();
}

/// Rewrites the labels of `dev.jsonl` into `name`.
fn relabel(here: &Workplace, name: &str, label: impl Fn(&str) -> Value) {
    let rows: Vec<String> = here
        .read("dev.jsonl")
        .lines()
        .map(|line| {
            let mut row: Value = serde_json::from_str(line).unwrap();
            row["label"] = label(row["label"].as_str().unwrap());
            row.to_string()
        })
        .collect();
    here.write(name, rows.join("\n"));
}

#[test]
fn fine_tuning_a_classifier_keeps_the_bases_ids() {
    let here = Workplace::new();
    reversed(&here, "bert-head");
    let before = here.json(&format!("eval {HEAD} --data dev.jsonl"));
    let train = CLASSIFY.replace("--model bert ", "--model bert-head ");
    let flags = "--max-steps 1 --learning-rate 1e-9";
    here.succeed(&format!("{train} {flags} --output kept"));
    assert_eq!(labels(&here, "kept"), json!(["positive", "negative"]));
    let after = here.json("eval --model bert-head --adapter kept --data dev.jsonl");
    assert_eq!(after["accuracy"], before["accuracy"]);

    // Turned around, the head would be wrong.
    let error = here.fail(
        2,
        &format!("{train} --labels negative,positive --output turned"),
    );
    assert!(error.contains("`negative` at id 0"), "{error}");
    here.succeed(&format!(
        "{train} {flags} --labels positive,negative --output given"
    ));
    assert_eq!(labels(&here, "given"), json!(["positive", "negative"]));

    // Other names: a new head, and a note.
    relabel(&here, "other.jsonl", |label| json!(format!("very {label}")));
    let train = train
        .replace("train.jsonl", "other.jsonl")
        .replace("dev.jsonl", "other.jsonl");
    let output = here.run(&format!("{train} {flags} --output new"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("start from the seed"), "{errors}");
    assert_eq!(
        labels(&here, "new"),
        json!(["very negative", "very positive"])
    );
}

#[test]
fn an_adapter_without_names_is_refused_for_named_data() {
    let here = Workplace::new();
    unnamed(&here, "bert");
    let train = CLASSIFY.replace("--learning-rate 1e-2", "--learning-rate 1e-2 --epochs 15");
    here.succeed(&format!(
        "{train} --labels positive,negative --output adapter"
    ));
    let right = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    here.as_of_peft("adapter");

    let command = "--model bert --adapter adapter --text-columns text --data dev.jsonl";
    for command in [
        format!("eval {command}"),
        format!("predict {command} --output out.jsonl"),
    ] {
        let error = here.fail(2, &command);
        assert!(error.contains("pass --labels"), "{error}");
    }
    let scores = here.json(&format!("eval {command} --labels positive,negative"));
    assert_eq!(scores["accuracy"], right["accuracy"]);
    // Ids are the outputs, whatever their names.
    relabel(&here, "ids.jsonl", |label| {
        json!(i32::from(label == "negative"))
    });
    let command = "--model bert --adapter adapter --text-columns text --data ids.jsonl";
    let scores = here.json(&format!("eval {command}"));
    assert_eq!(scores["accuracy"], right["accuracy"]);
    here.succeed(&format!("predict {command} --output out.jsonl"));
    let line: Value = serde_json::from_str(here.read("out.jsonl").lines().next().unwrap()).unwrap();
    assert!(
        line["label"].as_str().unwrap().starts_with("LABEL_"),
        "{line}"
    );
}

#[test]
fn ids_are_not_mapped_through_an_order_of_sorting() {
    let here = Workplace::new();
    unnamed(&here, "bert");
    here.succeed(&format!("{CLASSIFY} --epochs 15 --output adapter"));
    let right = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    // In this data, 0 is positive.
    relabel(&here, "ids.jsonl", |label| {
        json!(i32::from(label == "negative"))
    });
    let command = "eval --model bert --adapter adapter --data ids.jsonl";
    let error = here.fail(1, command);
    assert!(
        error.contains("order of their ids with --labels"),
        "{error}"
    );
    let error = here.fail(2, &format!("{command} --labels positive,negative"));
    assert!(error.contains("negative,positive"), "{error}");
    let scores = here.json(&format!("{command} --labels negative,positive"));
    let (wrong, right) = (scores["accuracy"].as_f64(), right["accuracy"].as_f64());
    assert!((wrong.unwrap() + right.unwrap() - 1.0).abs() < 1e-9);
}

#[test]
fn a_base_that_says_its_task_needs_no_flag() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --epochs 2 --output adapter"));
    here.succeed("merge --model bert --adapter adapter --output merged");
    let scores = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    let merged = here.json("eval --model merged --text-columns text --data dev.jsonl");
    assert_eq!(merged["accuracy"], scores["accuracy"]);
    let scores = here.json("eval --model llama --text-columns text --data dev.jsonl");
    assert!(scores["perplexity"].is_number(), "{scores}");
}

#[test]
fn a_base_for_several_classes_a_text_is_refused_and_noted() {
    let here = Workplace::new();
    here.edit("bert-head/config.json", |config| {
        config["problem_type"] = json!("multi_label_classification");
    });
    for command in ["eval", "predict --output out.jsonl"] {
        let error = here.fail(2, &format!("{command} {HEAD} --data dev.jsonl"));
        assert!(error.contains("multi_label_classification"), "{error}");
    }
    let train = CLASSIFY.replace("--model bert ", "--model bert-head ");
    let output = here.run(&format!("{train} --max-steps 1 --output adapter"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && errors.contains("multi_label"),
        "{errors}"
    );
    here.succeed("eval --model bert-head --adapter adapter --data dev.jsonl");
}

#[test]
fn a_pooler_that_the_base_lacks_travels_with_the_adapter() {
    let here = Workplace::new();
    rewrite(&here, "bert", |name, shape, values| {
        (!name.contains("pooler")).then_some((shape, values))
    });
    let output = here.run(&format!(
        "{CLASSIFY} --epochs 8 --seed 3 --output adapter --json"
    ));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("`bert.pooler`"), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let scores = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    assert_eq!(scores["loss"], report["metrics"]["loss"]);
    assert_eq!(scores["accuracy"], report["metrics"]["accuracy"]);
    let config: Value = serde_json::from_str(&here.read("adapter/adapter_config.json")).unwrap();
    assert_eq!(
        config["modules_to_save"],
        json!(["pooler", "classifier", "score"])
    );
    // Merged, it is a whole model.
    here.succeed("merge --model bert --adapter adapter --output merged");
    let merged = here.json("eval --model merged --text-columns text --data dev.jsonl");
    assert_eq!(merged["accuracy"], scores["accuracy"]);
}

#[test]
fn a_head_of_another_kind_is_replaced() {
    let here = Workplace::new();
    rewrite(&here, "bert-head", |name, shape, values| {
        Some(match name {
            "classifier.weight" => (vec![4, 8], values),
            _ => (shape, values),
        })
    });
    let train = CLASSIFY.replace("--model bert ", "--model bert-head ");
    let output = here.run(&format!("{train} --max-steps 1 --output adapter"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("`classifier.weight` start from the seed"),
        "{errors}"
    );
}

#[test]
fn a_base_with_another_configuration_is_named() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    let command = "eval --model bert --adapter adapter --data dev.jsonl";
    // A rewrite with nothing changed.
    here.edit("bert/config.json", |config| {
        let entries = config.as_object().unwrap().clone();
        *config = entries.into_iter().rev().collect();
        config["transformers_version"] = json!("9.9.9");
        config["hidden_act"] = json!("gelu");
    });
    here.succeed(command);
    for (key, value) in [
        ("hidden_act", json!("relu")),
        ("num_attention_heads", json!(4)),
        ("layer_norm_eps", json!(1e-3)),
    ] {
        let before = here.read("bert/config.json");
        here.edit("bert/config.json", |config| config[key] = value.clone());
        let error = here.fail(1, command);
        assert!(
            error.contains(key) && error.contains("--allow-other-base"),
            "{error}"
        );
        here.succeed(&format!("{command} --allow-other-base"));
        here.write("bert/config.json", before);
    }
}

/// A head whose classes nothing names, and data that count from 1.
#[test]
fn labels_that_may_count_from_1_are_asked_about() {
    let here = Workplace::new();
    here.edit("bert-head/config.json", |config| {
        config.as_object_mut().unwrap().remove("id2label");
        config["num_labels"] = 3.into();
    });
    rewrite(&here, "bert-head", |name, mut shape, values| {
        let is_head = name.starts_with("classifier");
        let row = if is_head {
            values[..values.len() / 2].to_vec()
        } else {
            Vec::new()
        };
        shape[0] += usize::from(is_head);
        Some((shape, [values, row].concat()))
    });
    relabel(&here, "numbers.jsonl", |label| {
        if label == "negative" { 1 } else { 2 }.into()
    });
    let command = format!("eval {HEAD} --data numbers.jsonl");
    let errors = here.fail(2, &command);
    assert!(errors.contains("ids from 0 or count from 1"), "{errors}");
    let of_ids = here.json(&format!("{command} --labels 0,1,2"));
    let from_1 = here.json(&format!("{command} --labels 1,2,3"));
    let support = |scores: &Value| {
        let classes = scores["classes"].as_array().unwrap().clone();
        classes
            .iter()
            .map(|it| it["support"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    let (of_ids, from_1) = (support(&of_ids), support(&from_1));
    assert_eq!((of_ids[0], from_1[2], &of_ids[1..]), (0, 0, &from_1[..2]));

    // An adapter says its classes: its scores depend on the data's labels, its predictions not.
    here.json(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    relabel(&here, "ones.jsonl", |_| 1.into());
    let of_adapter = "--model bert --adapter adapter --data ones.jsonl";
    let errors = here.fail(2, &format!("eval {of_adapter}"));
    assert!(
        errors.contains("--labels negative,positive if they are ids"),
        "{errors}"
    );
    here.json(&format!("eval {of_adapter} --labels negative,positive"));
    here.succeed(&format!("predict {of_adapter} --output preds.jsonl"));
}

#[test]
fn merging_takes_the_names_that_an_adapter_does_not_record() {
    let here = Workplace::new();
    here.json(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    let merge = "merge --model bert --adapter adapter --overwrite --output merged --labels";
    let errors = here.fail(2, &format!("{merge} bad,good"));
    assert!(
        errors.contains("was trained with the classes negative,positive"),
        "{errors}"
    );
    here.as_of_peft("adapter");
    let errors = here.fail(2, &format!("{merge} bad,good,fair"));
    assert!(errors.contains("the head has 2 outputs"), "{errors}");
    here.succeed(&format!("{merge} bad,good"));
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    assert_eq!(config["id2label"], json!({ "0": "bad", "1": "good" }));
    here.json(&format!(
        "{} --max-steps 1 --output speaks",
        crate::workplace::SPEAK
    ));
    let command = "merge --model llama --adapter speaks --output other --labels a,b";
    let errors = here.fail(2, command);
    assert!(errors.contains("the adapter is for causal-lm"), "{errors}");
}

/// A label that data sets write where there is none.
#[test]
fn a_label_of_signs_is_trained_with_a_warning() {
    let here = Workplace::new();
    let rows = "{\"text\": \"a film\", \"label\": \"-\"}\n".repeat(2);
    here.write("marked.jsonl", here.read("train.jsonl") + &rows);
    let train = |data: &str| {
        let output = here.run(&format!(
            "{CLASSIFY} --max-steps 1 --overwrite --output adapter --train-data {data}"
        ));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let errors = train("marked.jsonl");
    assert!(
        errors.contains("the label `-` is trained as a class") && errors.contains("first_row=97"),
        "{errors}"
    );
    assert!(!train("train.jsonl").contains("trained as a class"));
}

#[test]
fn a_head_is_trained_alone() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --method freeze --freeze-trainable-layers 0");
    let report = here.json(&format!("{train} --epochs 8 --seed 3 --output adapter"));
    assert_eq!(report["trainable_parameters"], 0);
    let scores = here.json("eval --model bert --adapter adapter --data dev.jsonl");
    assert_eq!(scores["loss"], report["metrics"]["loss"]);
    here.succeed("merge --model bert --adapter adapter --output merged");
    let merged = here.json("eval --model merged --text-columns text --data dev.jsonl");
    assert_eq!(merged["accuracy"], scores["accuracy"]);
}

/// One list of names is read alike by all commands.
#[test]
fn names_of_classes_are_read_alike_everywhere() {
    let here = Workplace::new();
    here.edit("bert-head/config.json", |config| {
        config.as_object_mut().unwrap().remove("id2label");
        config["num_labels"] = json!(2);
    });
    let data = "--task sequence-classification --text-columns text --data dev.jsonl --labels";
    let run = |command: &str, labels: &str| here.command(command).arg(labels).output().unwrap();
    let commands = [
        format!("eval --model bert-head {data}"),
        format!("predict --model bert-head --output - {data}"),
        format!("data preview --model bert {data}"),
        format!("{CLASSIFY} --max-steps 1 --overwrite --output adapter --labels"),
    ];
    for command in &commands {
        let output = run(command, " negative, positive ");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{command}: {errors}");
        for (labels, problem) in [
            (
                "negative,positive,negative",
                "`negative` twice, the second time for id 2",
            ),
            ("negative, negative", "`negative` twice"),
            ("negative,", "no name for id 1"),
            ("negative, ,positive", "no name for id 1"),
        ] {
            let output = run(command, labels);
            let errors = String::from_utf8(output.stderr).unwrap();
            assert_eq!(
                output.status.code(),
                Some(2),
                "{command} {labels}: {errors}"
            );
            assert!(errors.contains(problem), "{command} {labels}: {errors}");
        }
    }
}

#[test]
fn labels_that_are_read_as_ids_of_a_base_are_told() {
    let here = Workplace::new();
    let ids = here
        .read("dev.jsonl")
        .replace("negative", "0")
        .replace("positive", "1");
    here.write("ids.jsonl", &ids);
    let told = "the labels 0, 1 of the data are read as the class ids of the base model: \
                0 = negative, 1 = positive";
    let train = CLASSIFY.replace("--model bert", "--model bert-head");
    let train = train
        .replace("train.jsonl", "ids.jsonl")
        .replace("dev.jsonl", "ids.jsonl");
    for command in [
        format!("{train} --max-steps 1 --output adapter"),
        "eval --model bert-head --task sequence-classification --text-columns text --data ids.jsonl"
            .to_owned(),
    ] {
        let output = here.run(&command);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && errors.contains(told), "{command}: {errors}");
    }
}
