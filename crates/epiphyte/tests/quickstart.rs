//! The quickstart, with fewer steps: every method makes the log more likely, and its files are
//! there.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_method_learns_and_leaves_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let quickstart = Command::new(env!("CARGO_BIN_EXE_epiphyte"))
        .current_dir(&dir)
        .args(["quickstart", "--steps", "20", "--json"])
        .output()
        .unwrap();
    let notes = String::from_utf8_lossy(&quickstart.stderr);
    assert!(quickstart.status.success(), "{notes}");
    assert!(notes.contains("Training lora"), "{notes}");
    let summary: Value = serde_json::from_slice(&quickstart.stdout).unwrap();
    assert_eq!(summary["output"], "epiphyte-quickstart");
    assert!(
        summary["text"]
            .as_str()
            .unwrap()
            .starts_with("Monday. The wind"),
        "{summary}"
    );

    let runs = summary["runs"].as_array().unwrap();
    let methods: Vec<&str> = runs
        .iter()
        .filter_map(|run| run["method"].as_str())
        .collect();
    assert_eq!(methods, ["lora", "prefix-tuning", "bitfit"]);
    for run in runs {
        let number = |key: &str| run[key].as_f64().unwrap();
        assert!(number("loss_after") < number("loss_before") - 0.2, "{run}");
        assert!(number("trainable_parameters") > 0.0, "{run}");
        assert!(
            run["text"]
                .as_str()
                .unwrap()
                .starts_with("Monday. The wind"),
            "{run}"
        );

        let adapter = dir.path().join(run["adapter"].as_str().unwrap());
        let tensors = adapter
            .join("adapter_model.safetensors")
            .metadata()
            .unwrap();
        assert_eq!(number("bytes"), tensors.len() as f64);
        for name in ["adapter_config.json", "README.md", "log.jsonl"] {
            assert!(
                adapter.join(name).is_file(),
                "`{}` lacks {name}",
                adapter.display()
            );
        }
    }
    the_saved_configuration_trains(dir.path());
    the_commands_of_the_readme_run(dir.path());
    nothing_of_the_users_is_replaced(dir.path());
}

/// README.md's first commands, as they stand there, after the quickstart.
fn the_commands_of_the_readme_run(dir: &Path) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, block) = readme.split_once("<!-- commands -->\n\n```sh\n").unwrap();
    let (block, _) = block.split_once("```\n\n<!-- /commands -->").unwrap();
    let commands = block.replace("\\\n", " ");
    let mut outputs = Vec::new();
    for command in commands.lines() {
        let arguments = command.strip_prefix("epiphyte ").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_epiphyte"))
            .current_dir(dir)
            .args(arguments.split_whitespace())
            .arg("--json")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}\n{errors}");
        outputs.push(serde_json::from_slice::<Value>(&output.stdout).unwrap());
    }
    let accuracy = outputs[1]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    let predictions = std::fs::read_to_string(dir.join("predictions.jsonl")).unwrap();
    assert_eq!(predictions.lines().count(), 48);
    assert!(dir.join("messages-merged/model.safetensors").is_file());
}

/// A second quickstart needs to be told, and leaves what the user changed.
fn nothing_of_the_users_is_replaced(dir: &Path) {
    let refused = |flags: &[&str], words: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_epiphyte"))
            .current_dir(dir)
            .args(["quickstart", "--steps", "1"])
            .args(flags)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(words), "{errors}");
    };
    refused(&[], "holds a quickstart already: pass --overwrite");
    let file = dir.join("epiphyte-quickstart/lora.toml");
    let edited = std::fs::read_to_string(&file).unwrap() + "rank = 2\n";
    std::fs::write(&file, &edited).unwrap();
    // What is missing is not written before everything was looked at.
    let missing = dir.join("epiphyte-quickstart/train.jsonl");
    std::fs::remove_file(&missing).unwrap();
    refused(&["--overwrite"], "lora.toml` was changed");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), edited);
    assert!(!missing.exists());

    let other = dir.join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("train.jsonl"), "mine").unwrap();
    for flags in [
        &["--output", "other"][..],
        &["--output", "other", "--overwrite"],
    ] {
        refused(flags, "`other` is not empty");
    }
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    assert_eq!(std::fs::read(other.join("train.jsonl")).unwrap(), b"mine");
}

/// What the quickstart leaves is what `epiphyte train` reads.
fn the_saved_configuration_trains(dir: &Path) {
    let train = Command::new(env!("CARGO_BIN_EXE_epiphyte"))
        .current_dir(dir)
        .args([
            "train",
            "--config",
            "epiphyte-quickstart/bitfit.toml",
            "--max-steps",
            "1",
        ])
        .args(["--output", "again", "--json"])
        .output()
        .unwrap();
    assert!(
        train.status.success(),
        "{}",
        String::from_utf8_lossy(&train.stderr)
    );
    let report: Value = serde_json::from_slice(&train.stdout).unwrap();
    assert_eq!(report["steps"], 1);
}
