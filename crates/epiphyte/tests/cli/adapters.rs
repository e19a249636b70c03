//! Adapter files that were edited or say no task, and merged models' directories.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

fn classifier() -> Workplace {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output adapter"));
    here
}

#[test]
fn an_edited_adapter_is_refused_until_it_is_allowed() {
    let here = classifier();
    let eval = "eval --model bert --adapter adapter --data dev.jsonl";
    here.succeed(eval);
    here.edit("adapter/adapter_config.json", |config| {
        config["base_model_name_or_path"] = json!("moved/elsewhere");
    });
    here.succeed(eval);
    here.edit("adapter/adapter_config.json", |config| {
        config["lora_alpha"] = json!(64)
    });
    let errors = here.fail(1, eval);
    assert!(
        errors.contains("adapter_config.json") && errors.contains("--allow-edited-adapter"),
        "{errors}"
    );
    here.succeed(&format!("{eval} --allow-edited-adapter"));
    let output = here.run("inspect adapter");
    assert!(output.status.success());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("warning: `adapter/adapter_config.json`"),
        "{errors}"
    );
}

#[test]
fn an_adapter_without_a_task_generates_and_merges() {
    let here = Workplace::new();
    here.succeed(&format!("{SPEAK} --max-steps 2 --output adapter"));
    here.as_of_peft("adapter");
    here.edit("adapter/adapter_config.json", |config| {
        config["task_type"] = Value::Null
    });
    let mut generate = here.command("generate --model llama --adapter adapter --prompt");
    assert!(generate.arg("the film").status().unwrap().success());
    let merged = here.json("merge --model llama --adapter adapter --output merged");
    assert!(
        merged["largest_difference"].as_f64().unwrap() < 1e-4,
        "{merged}"
    );
    here.succeed("eval --model merged --task causal-lm --text-columns text --data dev.jsonl");
    here.json("inspect adapter --model llama");
}

/// An adapter of sentence embeddings: the base keeps its files' names and its configuration.
#[test]
fn an_adapter_without_a_head_merges_into_an_encoder() {
    let here = classifier();
    here.as_of_peft("adapter");
    here.without_head("adapter");
    here.edit("adapter/adapter_config.json", |config| {
        config["task_type"] = json!("FEATURE_EXTRACTION");
        config["modules_to_save"] = Value::Null;
    });
    fs::create_dir(here.path("bert/1_Pooling")).unwrap();
    for name in [
        "bert/1_Pooling/config.json",
        "bert/README.md",
        "bert/adapter_config.json",
    ] {
        here.write(name, "{}");
    }
    let merged = here.json("merge --model bert --adapter adapter --output merged");
    assert!(
        merged["largest_difference"].as_f64().unwrap() < 1e-4,
        "{merged}"
    );
    assert_eq!(merged["changed_tensors"], 4);
    let parsed = |name: &str| -> Value { serde_json::from_str(&here.read(name)).unwrap() };
    assert_eq!(parsed("merged/config.json"), parsed("bert/config.json"));
    let mut names: Vec<String> = fs::read_dir(here.path("merged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let expected = [
        "1_Pooling",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, expected);
    here.json("inspect adapter --model bert");
    // The base's own layout is not complete, so the mean of all tokens is an embedding.
    let predict = "predict --text-columns text --data dev.jsonl --output";
    here.succeed(&format!(
        "{predict} vectors.jsonl --model bert --adapter adapter"
    ));
    here.succeed(&format!(
        "{predict} merged.csv --model merged --task sentence-embedding"
    ));
    let vectors = here.read("vectors.jsonl");
    let first: Value = serde_json::from_str(vectors.lines().next().unwrap()).unwrap();
    let vector = first["embedding"].as_array().unwrap();
    let table = here.read("merged.csv");
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!(header.len(), vector.len());
    assert_eq!(header[1], "embedding_1");
    let merged = lines.next().unwrap().split(',');
    for (value, merged) in vector.iter().zip(merged) {
        let merged: f64 = merged.parse().unwrap();
        assert!((value.as_f64().unwrap() - merged).abs() < 1e-5);
    }
    let errors = here.fail(
        1,
        "predict --model bert --adapter adapter --data dev.jsonl --output p",
    );
    assert!(errors.contains("one or more text columns"), "{errors}");
}

#[test]
fn a_merge_replaces_nothing_but_a_merged_model() {
    let here = classifier();
    let merge = "merge --model bert --adapter adapter --output merged";
    here.succeed(merge);
    let before = here.read("merged/config.json");
    let errors = here.fail(1, merge);
    assert!(errors.contains("--overwrite"), "{errors}");
    here.succeed(&format!("{merge} --overwrite --dtype bf16"));
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    assert_ne!(here.read("merged/config.json"), before);
    here.write("merged/notes.md", "mine");
    let errors = here.fail(1, &format!("{merge} --overwrite"));
    assert!(errors.contains("`notes.md`"), "{errors}");
    fs::remove_file(here.path("merged/notes.md")).unwrap();
    // A model that no merge wrote is not replaced, and an empty directory is filled.
    let errors = here.fail(1, &merge.replace("merged", "llama --overwrite"));
    assert!(errors.contains("which is not a merged model's"), "{errors}");
    fs::create_dir(here.path("empty")).unwrap();
    here.succeed(&merge.replace("merged", "empty"));
    assert!(!here.path("empty/.epiphyte-tmp-merged").exists());
}

/// Whoever comes second is refused, whole models are left, and no temporary directory of a killed
/// merge.
#[test]
fn one_merge_writes_a_directory_at_a_time() {
    let here = classifier();
    let merge = "merge --model bert --adapter adapter --output merged";
    fs::create_dir(here.path(".epiphyte-tmp-merged-a1B2c3")).unwrap();
    for round in 0..6 {
        let flags = if round == 0 { "" } else { " --overwrite" };
        let command = format!("{merge}{flags} --json");
        let mut both = [0, 1].map(|_| {
            let mut command = here.command(&command);
            command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        let ends = both.each_mut().map(|child| child.wait().unwrap().code());
        assert!(ends.contains(&Some(0)), "{ends:?}");
        here.succeed("eval --model merged --text-columns text --data dev.jsonl");
        let hidden = fs::read_dir(here.path("")).unwrap().flatten();
        let hidden = hidden.filter(|entry| entry.file_name().to_string_lossy().starts_with('.'));
        assert_eq!(hidden.count(), 0);
        if round == 0 {
            assert!(ends.contains(&Some(1)), "{ends:?}");
        }
    }
}

#[test]
fn names_that_match_nothing_stop_training() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --max-steps 1 --output adapter");
    for (flags, words) in [
        (
            "--target-modules query,valeu",
            "did you mean `value` in place of `valeu`?",
        ),
        (
            "--layers-to-transform 0,9",
            "the target modules are in layers 0, 1",
        ),
        (
            "--layers-to-transform 9",
            "the target modules are in layers 0, 1",
        ),
        (
            "--exclude-modules query,value",
            "leaves none of the target modules",
        ),
        ("--rank-pattern qeury=4", "no path of a target ends so"),
        (
            "--init-lora-weights loftq",
            "starts from a base that it quantizes itself",
        ),
    ] {
        let errors = here.fail_any(&format!("{train} {flags}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
    here.succeed(&format!(
        "{train} --target-modules ^(?!.*pooler).*(query|value)$"
    ));
}
