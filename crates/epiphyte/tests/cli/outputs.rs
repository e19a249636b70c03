//! What commands write: never over the user's files, whole or not at all, and nothing that a
//! terminal would obey.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::workplace::{CLASSIFY, Workplace};

/// Flags of commands that read the base with a head.
const HEAD: &str =
    "--model bert-head --task sequence-classification --text-columns text --data dev.jsonl";

#[test]
fn predictions_that_exist_are_replaced_only_if_told() {
    let here = Workplace::new();
    here.write("preds.jsonl", "mine");
    let command = format!("predict {HEAD} --output preds.jsonl");
    let errors = here.fail(2, &command);
    assert!(errors.contains("`preds.jsonl` exists already"), "{errors}");
    assert!(errors.contains("--overwrite"), "{errors}");
    assert_eq!(here.read("preds.jsonl"), "mine");
    here.succeed(&format!("{command} --overwrite"));
    assert_eq!(here.read("preds.jsonl").lines().count(), 32);

    let errors = here.fail(2, &format!("predict {HEAD} --output none/preds.jsonl"));
    assert!(errors.contains("there is no directory"), "{errors}");
    let errors = here.fail(2, &format!("predict {HEAD} --output preds.txt"));
    assert!(errors.contains("--output-format"), "{errors}");
}

/// By whatever name the output is called.
#[cfg(unix)]
#[test]
fn links_to_an_input_are_that_input() {
    use std::os::unix::fs::symlink;
    let here = Workplace::new();
    let before = here.read("dev.jsonl");
    let weights = fs::read(here.path("bert-head/model.safetensors")).unwrap();
    fs::hard_link(here.path("dev.jsonl"), here.path("hard.jsonl")).unwrap();
    symlink("dev.jsonl", here.path("soft.jsonl")).unwrap();
    let of_base = here.path("bert-head/model.safetensors");
    fs::hard_link(&of_base, here.path("weights.jsonl")).unwrap();
    symlink("bert-head", here.path("alias")).unwrap();
    for output in [
        "hard.jsonl",
        "soft.jsonl",
        "./dev.jsonl",
        "weights.jsonl",
        "alias/model.safetensors",
        "alias/config.json",
    ] {
        let command = format!("predict {HEAD} --output {output} --output-format jsonl --overwrite");
        let errors = here.fail(2, &command);
        assert!(errors.contains("is an input"), "{output}: {errors}");
    }
    assert_eq!(here.read("dev.jsonl"), before);
    assert!(fs::read(of_base).unwrap() == weights);
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_links_stay_what_they_are() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    use std::process::Command;
    let here = Workplace::new();
    let type_of = |path: &Path| fs::metadata(path).unwrap().file_type();
    here.succeed(&format!("predict {HEAD} --output /dev/null"));
    assert!(type_of(Path::new("/dev/null")).is_char_device());

    let fifo = here.path("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let reader = Command::new("cat")
        .arg(&fifo)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    here.succeed(&format!("predict {HEAD} --output fifo"));
    let read = reader.wait_with_output().unwrap().stdout;
    assert_eq!(String::from_utf8(read).unwrap().lines().count(), 32);
    assert!(type_of(&fifo).is_fifo());

    symlink("real.jsonl", here.path("link.jsonl")).unwrap();
    here.succeed(&format!("predict {HEAD} --output link.jsonl"));
    assert!(here.path("link.jsonl").is_symlink());
    assert_eq!(here.read("real.jsonl").lines().count(), 32);
}

#[test]
fn predictions_go_to_standard_output() {
    let here = Workplace::new();
    here.succeed(&format!("predict {HEAD} --output preds.jsonl"));
    let mut names = vec!["-"];
    if cfg!(target_os = "linux") {
        names.push("/dev/stdout");
    }
    for output in names {
        let printed = here.succeed(&format!("predict {HEAD} --output {output}"));
        assert_eq!(printed, here.read("preds.jsonl"), "{output}");
    }
    // Into a file, too, by either name.
    if cfg!(target_os = "linux") {
        let file = File::create(here.path("redirected")).unwrap();
        let mut command = here.command(&format!("predict {HEAD} --output /dev/stdout"));
        assert!(command.stdout(file).status().unwrap().success());
        assert_eq!(here.read("redirected"), here.read("preds.jsonl"));
    }
}

/// What each command prints to standard output is there, or the command fails.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_standard_output_is_an_error() {
    let here = Workplace::new();
    for command in [
        "--version".to_owned(),
        "--help".to_owned(),
        "train --help".to_owned(),
        "methods".to_owned(),
        "methods --json".to_owned(),
        "doctor".to_owned(),
        "completions bash".to_owned(),
        "man".to_owned(),
        "inspect bert".to_owned(),
        "inspect bert --json".to_owned(),
        format!("eval {HEAD}"),
        format!("eval {HEAD} --json"),
        format!("predict {HEAD} --output preds.jsonl --overwrite"),
        format!("predict {HEAD} --output -"),
        "generate --model llama --prompt good --max-new-tokens 2".to_owned(),
        "generate --model llama --prompt good --max-new-tokens 2 --json".to_owned(),
        format!("{CLASSIFY} --max-steps 1 --output adapter --overwrite"),
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = here.command(&command).stdout(full).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}\n{errors}");
        assert!(errors.contains("standard output"), "{command}\n{errors}");
    }
}

/// As in `epiphyte methods | head -1`.
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let here = Workplace::new();
    for command in ["methods", "train --help", "methods --json"] {
        let mut child = here
            .command(command)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), &*errors), (Some(0), ""), "{command}");
    }
}

/// Names come from files that somebody else wrote.
#[test]
fn nothing_that_a_terminal_obeys_is_printed() {
    let here = Workplace::new();
    let evil = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";
    here.json(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    here.edit("adapter/adapter_config.json", |config| {
        config["base_model_name_or_path"] = evil.into();
    });
    here.write("evil.jsonl", format!("{}\n", json!({ evil: "good" })));
    let labels = json!({ "0": evil, "1": "positive" });
    here.edit("bert-head/config.json", |config| {
        config["id2label"] = labels
    });
    let key: String = evil
        .chars()
        .map(|it| format!("\\U{:08x}", u32::from(it)))
        .collect();
    here.write("evil.toml", format!("\"{key}\" = 1\n"));
    for command in [
        "inspect adapter".to_owned(),
        "inspect adapter --json".to_owned(),
        "inspect bert-head".to_owned(),
        format!("{CLASSIFY} --train-data evil.jsonl --output other"),
        "train --config evil.toml".to_owned(),
        format!("eval {HEAD} --labels a,b"),
    ] {
        let output = here.run(&command);
        for printed in [output.stdout, output.stderr] {
            let printed = String::from_utf8(printed).unwrap();
            let obeyed = |it: &char| (it.is_control() && *it != '\n') || *it == '\u{202e}';
            let found = printed.chars().find(obeyed);
            assert_eq!(found, None, "{command}\n{printed:?}");
        }
    }
    let shown = here.json("inspect adapter");
    assert_eq!(shown["base_model"], evil);
}

#[test]
fn threads_have_bounds() {
    let here = Workplace::new();
    for threads in ["0", "100000", "-1", "two"] {
        let errors = here.fail(2, &format!("inspect bert --threads={threads}"));
        assert!(errors.contains("from 1 to 1024"), "{errors}");
    }
    let mut command = here.command("inspect bert");
    let output = command.env("RAYON_NUM_THREADS", "100000").output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("`RAYON_NUM_THREADS`"), "{errors}");
    here.succeed("inspect bert --threads 3");
}

/// A run's directory holds neither its base nor its data, and two runs have two directories.
#[test]
fn a_run_writes_beside_what_it_reads() {
    let here = Workplace::new();
    let errors = here.fail(2, &format!("{CLASSIFY} --output bert/../bert --overwrite"));
    assert!(
        errors.contains("--output is the base model itself"),
        "{errors}"
    );
    here.json(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    fs::copy(here.path("train.jsonl"), here.path("adapter/train.jsonl")).unwrap();
    let data = "--train-data adapter/train.jsonl";
    let errors = here.fail(
        2,
        &format!("{CLASSIFY} {data} --output adapter --overwrite"),
    );
    assert!(errors.contains("holds the training data"), "{errors}");

    let runs = "[[runs]]\noutput = \"o\"\n[[runs]]\noutput = \"./x/../o\"";
    here.write("runs.toml", runs);
    let errors = here.fail(2, &format!("{CLASSIFY} --config runs.toml"));
    assert!(
        errors.contains("two runs write to one directory, `o` and `./x/../o`"),
        "{errors}"
    );
    assert!(!here.path("o").exists());
}
