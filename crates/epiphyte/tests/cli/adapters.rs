//! Adapter files that were edited or say no task, and merged models' directories.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;

use epiphyte::models::Checkpoint;
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
            "starts from what quantization changes",
        ),
    ] {
        let errors = here.fail_any(&format!("{train} {flags}"));
        assert!(errors.contains(words), "{flags}: {errors}");
    }
    here.succeed(&format!(
        "{train} --target-modules ^(?!.*pooler).*(query|value)$"
    ));
}

/// What a merged model's patch restores has the base's tensors and files, byte for byte: of dense
/// changes, of a few entries, of weights in another type, and of a base with its own head.
#[test]
fn a_merge_is_taken_back_to_the_bit() {
    let here = Workplace::new();
    here.write("bert/LICENSE", "of the base");
    let hash = |model: &str| {
        let tensors = Checkpoint::open(&here.path(model)).unwrap();
        tensors.content_hash().to_owned()
    };
    for (number, (base, method, flags)) in [
        ("bert", "lora", ""),
        ("bert", "bitfit", ""),
        ("bert", "fish-mask --keep-ratio 0.05", ""),
        ("bert-head", "full", ""),
        ("bert", "lora", "--dtype bf16"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = |what: &str| format!("{what}-{number}");
        let train = CLASSIFY.replace("--model bert", &format!("--model {base} --method {method}"));
        let adapter = name("adapter");
        here.succeed(&format!("{train} --max-steps 2 --output {adapter}"));
        let (merged, patch, restored) = (name("merged"), name("patch"), name("restored"));
        let made = here.json(&format!(
            "merge --model {base} --adapter {adapter} --output {merged} --patch {patch} {flags}"
        ));
        assert_ne!(hash(base), hash(&merged), "{method}");
        let unmerge = format!("unmerge {merged} --patch {patch} --output {restored}");
        let report = here.json(&unmerge);
        assert_eq!(report["restored_tensors"], made["patch"]["changed_tensors"]);
        assert_eq!(hash(base), hash(&restored), "{method}");
        assert_eq!(report["sha256"], hash(base));
        let files = fs::read_dir(here.path(base)).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(
            fs::read_dir(here.path(&restored)).unwrap().count(),
            files.len()
        );
        for file in &files {
            let read = |model: &str| fs::read(here.path(model).join(file)).unwrap();
            assert_eq!(read(base), read(&restored), "{method}: {file:?}");
        }
        let errors = here.fail(1, &unmerge);
        assert!(errors.contains("--overwrite"), "{errors}");
        here.succeed(&format!("{unmerge} --overwrite"));
    }
    // Few entries changed: the patch is small, because it has no whole matrix for them.
    let sparse = Checkpoint::open_file(&here.path("patch-2")).unwrap();
    assert!(sparse.names().any(|name| name.starts_with("indices.")));
    let size = Checkpoint::open(&here.path("bert")).unwrap().total_bytes();
    let entries = sparse.names().filter(|name| !name.starts_with("file."));
    let entries = entries.map(|name| sparse.tensor(name).unwrap().stored_bytes());
    assert!(entries.sum::<usize>() * 2 < size);
}

#[test]
fn a_patch_restores_nothing_but_its_own_base() {
    let here = classifier();
    let merge = "merge --model bert --adapter adapter --output";
    here.succeed(&format!("{merge} merged --patch patch"));
    let errors = here.fail(2, &format!("{merge} other --patch patch"));
    assert!(errors.contains("exists already"), "{errors}");
    for patch in ["other", "./other", "other/patch"] {
        let errors = here.fail(2, &format!("{merge} other --patch {patch}"));
        assert!(
            errors.contains("--patch `") || errors.contains("no directory"),
            "{errors}"
        );
        assert!(!here.path("other").exists());
    }
    let errors = here.fail(2, &format!("{merge} other --patch bert/patch"));
    assert!(errors.contains("file of an input"), "{errors}");
    here.succeed(&format!("{merge} other --dtype f16"));
    let errors = here.fail(1, "unmerge other --patch patch --output base");
    assert!(
        errors.contains("is not the model that the patch"),
        "{errors}"
    );
    let errors = here.fail(
        1,
        "unmerge merged --patch bert/model.safetensors --output base",
    );
    assert!(errors.contains("is no patch"), "{errors}");
    // Files are the base's too, and a model of a stranger leads to nothing of the user's.
    let tokenizer = here.read("merged/tokenizer.json");
    here.write("merged/tokenizer.json", tokenizer.replace("film", "fin"));
    let errors = here.fail(1, "unmerge merged --patch patch --output base");
    assert!(errors.contains("of `tokenizer.json` is not"), "{errors}");
    #[cfg(unix)]
    {
        here.write("secret", &tokenizer);
        fs::remove_file(here.path("merged/tokenizer.json")).unwrap();
        std::os::unix::fs::symlink("../secret", here.path("merged/tokenizer.json")).unwrap();
        let errors = here.fail(1, "unmerge merged --patch patch --output base");
        assert!(
            errors.contains("outside of the model's directory"),
            "{errors}"
        );
        fs::remove_file(here.path("merged/tokenizer.json")).unwrap();
    }
    here.write("merged/tokenizer.json", tokenizer);
    assert!(!here.path("base/model.safetensors").exists());
    let errors = here.fail(2, "unmerge merged --patch patch --output merged");
    assert!(
        errors.contains("--output is the merged model itself"),
        "{errors}"
    );
    // A name in the patch that leads out of the directory, and a hash that does not come out.
    let whole = fs::read(here.path("patch")).unwrap();
    let edited = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|it| it == from.as_bytes());
        let mut bytes = whole.clone();
        bytes[at.unwrap()..][..to.len()].copy_from_slice(to.as_bytes());
        here.write("edited", bytes);
        here.fail(1, "unmerge merged --patch edited --output base")
    };
    let errors = edited("tokenizer.json", "../../new.json");
    assert!(
        errors.contains("`../../new.json` is no name of a file"),
        "{errors}"
    );
    let sha256 = here.record("adapter")["base_sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let errors = edited(&sha256, &"0".repeat(64));
    assert!(errors.contains("does not restore the base"), "{errors}");
    assert!(!here.path("base").exists());
}

/// The values of all tensors of a model, by name.
fn values(here: &Workplace, model: &str) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open(&here.path(model)).unwrap();
    let names = checkpoint.names();
    let values = |name: &str| checkpoint.tensor(name).unwrap().to_f32().unwrap();
    names.map(|name| (name.to_owned(), values(name))).collect()
}

/// LT-SFT's masks, such as those of a language and of a task, compose by addition, in either
/// order; a weight of -1 is the negation; a classifier is the first model's.
#[test]
fn changes_of_models_are_added() {
    let here = Workplace::new();
    let train = "train --method lt-sft --train-data train.jsonl --eval-data dev.jsonl \
        --text-columns text --batch-size 16 --max-length 16 --learning-rate 1e-2 --max-steps 4";
    let task = "--task sequence-classification --label-column label";
    here.succeed(&format!("{train} {task} --model bert --output task"));
    here.succeed(&format!(
        "{train} {task} --seed 1 --model bert --output language"
    ));
    for name in ["task", "language"] {
        here.succeed(&format!(
            "merge --model bert --adapter {name} --output merged-{name}"
        ));
    }
    let merge = "merge --model bert --models";
    let report = here.json(&format!(
        "{merge} merged-task,merged-language --output both"
    ));
    // The same classes in another order would be mixed up, and so would other computations.
    let config = here.read("merged-language/config.json");
    for (key, value, words) in [
        (
            "id2label",
            json!({"0": "positive", "1": "negative"}),
            "its classes are",
        ),
        ("hidden_act", json!("relu"), "its `hidden_act` is"),
    ] {
        here.edit("merged-language/config.json", |config| config[key] = value);
        let errors = here.fail(
            1,
            &format!("{merge} merged-task,merged-language --output no"),
        );
        assert!(errors.contains(words), "{errors}");
        here.write("merged-language/config.json", &config);
    }
    let classifier = ["classifier.bias", "classifier.weight"];
    assert_eq!(report["new_tensors"], json!(classifier));
    let [base, task, language, both] =
        ["bert", "merged-task", "merged-language", "both"].map(|it| values(&here, it));
    let mut changed = [0, 0];
    for (name, both) in &both {
        if classifier.contains(&name.as_str()) {
            assert_eq!(both, &task[name]);
            continue;
        }
        let [base, task, language] = [&base, &task, &language].map(|it| &it[name]);
        for at in 0..both.len() {
            let (task, language) = (task[at] - base[at], language[at] - base[at]);
            assert!(
                (both[at] - base[at] - task - language).abs() < 1e-6,
                "{name}"
            );
            changed[0] += usize::from(task != 0.0);
            changed[1] += usize::from(language != 0.0);
        }
    }
    assert!(changed.iter().all(|count| *count > 0), "{changed:?}");
    here.succeed("eval --model both --text-columns text --data dev.jsonl");
    // Added to the negation of one, the other is left.
    here.succeed(&format!(
        "{merge} both,merged-language --weights 1,-1 --output taken-back"
    ));
    for (name, found) in values(&here, "taken-back") {
        let differences = found.iter().zip(&task[&name]).map(|(a, b)| (a - b).abs());
        assert!(differences.fold(0.0, f32::max) < 1e-6, "{name}");
    }
    let norms = &report["norms"];
    let expected = base
        .iter()
        .flat_map(|(name, base)| base.iter().zip(&task[name]));
    let expected: f64 = expected.map(|(a, b)| f64::from(b - a).powi(2)).sum();
    assert!((norms[0].as_f64().unwrap() - expected.sqrt()).abs() < 1e-6);
    assert!((report["cosines"][1][1].as_f64().unwrap() - 1.0).abs() < 1e-9);
    // Half of the values are drawn, and doubled.
    here.succeed(&format!(
        "{merge} merged-task --combination dare_linear --output drawn"
    ));
    let drawn = values(&here, "drawn");
    let (mut kept, mut changed) = (0, 0);
    for (name, base) in &base {
        for at in 0..base.len() {
            let (whole, drawn) = (task[name][at] - base[at], drawn[name][at] - base[at]);
            changed += usize::from(whole.abs() > 1e-4);
            kept += usize::from(whole.abs() > 1e-4 && drawn != 0.0);
            assert!(drawn == 0.0 || (drawn - 2.0 * whole).abs() < 1e-5);
        }
    }
    assert!(
        kept * 3 > changed && kept * 3 < changed * 2,
        "{kept} of {changed}"
    );
}

#[test]
fn models_that_do_not_fit_are_not_added() {
    let here = Workplace::new();
    let merge = "merge --model bert --output sum --models";
    for (code, flags, words) in [
        (1, "llama", "it is a llama, and the base a bert"),
        (
            2,
            "bert-head --weights 1,2",
            "--weights has 2 numbers, but --models names 1",
        ),
        (
            1,
            "bert-head --combination cat",
            "of models it must be one of linear, ties",
        ),
        (2, "bert-head --adapters one", "cannot be used with"),
    ] {
        let errors = here.fail(code, &format!("{merge} {flags}"));
        assert!(errors.contains(words), "{errors}");
    }
    assert!(!here.path("sum").exists());
}

/// The adapter names its base; another place is said with --model.
#[test]
fn a_base_that_the_adapter_names_need_not_be_named() {
    let here = classifier();
    let task = "--adapter adapter --data dev.jsonl";
    let named = here.succeed(&format!("predict --model bert {task} --output -"));
    let output = here.run(&format!("predict {task} --output -"));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("note: the base model is `bert`, which the adapter names"),
        "{errors}"
    );
    assert_eq!(errors.matches("the base model is").count(), 1, "{errors}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), named);
    here.succeed(&format!("eval {task}"));
    here.succeed("merge --adapter adapter --output merged");
    here.succeed(&format!("data preview {task}"));
    here.succeed(&format!("{SPEAK} --max-steps 1 --output speaker"));
    here.succeed("generate --adapter speaker --prompt good --max-new-tokens 1");
    fs::rename(here.path("bert"), here.path("moved")).unwrap();
    let errors = here.fail_any(&format!("eval {task}"));
    assert!(
        errors.contains("the base model `bert`") && errors.contains("pass --model"),
        "{errors}"
    );
    here.succeed(&format!("eval --model moved {task}"));
    let errors = here.fail(2, "eval --data dev.jsonl");
    assert!(errors.contains("--model"), "{errors}");
}

/// What the metadata says is as much part of an adapter as its tensors.
#[test]
fn labels_that_were_edited_in_the_metadata_are_noticed() {
    let here = classifier();
    let path = here.path("adapter/adapter_model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let eval = "eval --model bert --adapter adapter --data dev.jsonl";
    here.succeed(eval);
    let labels = br#"\"labels\":[\"negative\",\"positive\"]"#;
    let edited = br#"\"labels\":[\"positive\",\"negative\"]"#;
    let at = bytes
        .windows(labels.len())
        .position(|it| it == labels)
        .unwrap();
    bytes[at..][..edited.len()].copy_from_slice(edited);
    fs::write(&path, &bytes).unwrap();
    let errors = here.fail(1, eval);
    assert!(
        errors.contains("metadata") && errors.contains("--allow-edited-adapter"),
        "{errors}"
    );
    here.succeed(&format!(
        "{eval} --allow-edited-adapter --labels positive,negative"
    ));
}

/// A base of several files comes back as these files.
#[test]
fn a_merge_of_a_base_in_parts_is_taken_back_to_the_bit() {
    let here = classifier();
    let whole = Checkpoint::open(&here.path("bert")).unwrap();
    let mut weight_map = serde_json::Map::new();
    for (number, name) in [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    .into_iter()
    .enumerate()
    {
        let names = whole.names().enumerate().filter(|(at, _)| at % 2 == number);
        let tensors = names.map(|(_, tensor)| {
            weight_map.insert(tensor.to_owned(), name.into());
            let view = whole.tensor(tensor).unwrap();
            (tensor, view.shape.to_vec(), move || view.to_f32().unwrap())
        });
        let tensors: Vec<_> = tensors.collect();
        epiphyte::io::safetensors_file::write_f32(&here.path(&format!("bert/{name}")), tensors)
            .unwrap();
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    here.write("bert/model.safetensors.index.json", index.to_string());
    fs::remove_file(here.path("bert/model.safetensors")).unwrap();
    here.succeed("merge --model bert --adapter adapter --output merged --patch patch");
    here.succeed("unmerge merged --patch patch --output restored");
    for entry in fs::read_dir(here.path("bert")).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |model: &str| fs::read(here.path(model).join(&name)).unwrap();
        assert!(read("bert") == read("restored"), "{name:?}");
    }
}
