//! What commands write: never over the user's files, whole or not at all, and nothing that a
//! terminal would obey.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
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

/// Files of a base, an adapter or a run, whether they are there already or not, and whether the
/// command reads that directory or not.
#[test]
fn predictions_are_no_file_of_a_model_an_adapter_or_a_run() {
    let here = Workplace::new();
    here.json(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    here.write("bert-head/README.md", "the base's card");
    let of_peft = |name: &str| {
        let file = fs::read(here.path("adapter").join(name)).unwrap();
        here.write(&format!("of-peft/{name}"), file);
    };
    of_peft("adapter_config.json");
    of_peft("adapter_model.safetensors");
    // A run that has begun and has written nothing yet.
    here.write("begun/.epiphyte-lock", "");
    let trees = || ["bert-head", "bert", "adapter", "of-peft", "begun"].map(|it| tree(&here, it));
    let before = trees();
    for output in [
        "bert-head/README.md",
        "bert-head/new.md",
        "bert-head/vocab.txt",
        "bert/README.md",
        "bert/generation_config.json",
        "adapter/README.md",
        "adapter/log.jsonl",
        "adapter/predictions.txt",
        "adapter/checkpoint-1/predictions.jsonl",
        "adapter/.epiphyte-tmp-x.jsonl",
        "of-peft/README.md",
        "begun/README.md",
        "begun/adapter_config.json",
        "begun/log.jsonl",
    ] {
        let command = format!("predict {HEAD} --output {output} --output-format jsonl --overwrite");
        let errors = here.fail(2, &command);
        assert!(errors.contains("choose another file"), "{output}: {errors}");
        assert!(trees() == before, "{output}");
    }
    // Predictions may lie next to what made them, and be written anew.
    for output in [
        "adapter/predictions.jsonl",
        "begun/predictions.csv",
        "bert-head/p.tsv",
    ] {
        here.succeed(&format!("predict {HEAD} --output {output}"));
        here.succeed(&format!("predict {HEAD} --output {output} --overwrite"));
    }
}

/// Each file of a directory with its contents.
fn tree(here: &Workplace, directory: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![here.path(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            match entry.unwrap().path() {
                path if path.is_dir() => directories.push(path),
                path => files.push((path.clone(), fs::read(path).unwrap())),
            }
        }
    }
    files.sort();
    files
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
    here.json(&format!("{CLASSIFY} --max-steps 1 --output trained"));
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
        "merge --model bert --adapter trained --output merged --overwrite".to_owned(),
        format!("{CLASSIFY} --dry-run --output adapter"),
        format!("{CLASSIFY} --max-steps 1 --output adapter --overwrite"),
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = here.command(&command).stdout(full).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}\n{errors}");
        assert!(errors.contains("standard output"), "{command}\n{errors}");
    }
}

/// As in `epiphyte methods >&-`.
#[cfg(any(target_os = "linux", target_os = "macos"))]
#[test]
fn a_closed_standard_output_is_an_error() {
    let here = Workplace::new();
    here.json(&format!("{CLASSIFY} --max-steps 1 --output trained"));
    for command in [
        "--version".to_owned(),
        "train --help".to_owned(),
        "methods".to_owned(),
        "methods --json".to_owned(),
        "doctor".to_owned(),
        "completions bash".to_owned(),
        "man".to_owned(),
        "inspect bert".to_owned(),
        format!("eval {HEAD}"),
        format!("predict {HEAD} --output preds.jsonl --overwrite"),
        format!("predict {HEAD} --output -"),
        "generate --model llama --prompt good --max-new-tokens 2".to_owned(),
        "merge --model bert --adapter trained --output merged".to_owned(),
        format!("{CLASSIFY} --dry-run --output adapter"),
        format!("{CLASSIFY} --max-steps 1 --output adapter --overwrite"),
    ] {
        let output = redirected(&here, &command, ">&-");
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}\n{errors}");
        let problem = "standard output: it is closed";
        assert!(errors.contains(problem), "{command}\n{errors}");
    }
    let for_reading = redirected(&here, "methods", "1< dev.jsonl");
    assert_eq!(for_reading.status.code(), Some(1));
    // What is thrown away on purpose is no error.
    for sink in ["> /dev/null", "1<> /dev/null"] {
        assert!(
            redirected(&here, "methods", sink).status.success(),
            "{sink}"
        );
    }
}

/// A command with its standard output as a shell says it.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn redirected(here: &Workplace, command: &str, redirection: &str) -> std::process::Output {
    let command = here.command(command);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &format!("exec \"$0\" \"$@\" {redirection}")]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(here.path("")).output().unwrap()
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

/// Reports, comparisons, searches and conversions, which have names of their own for what they
/// write.
#[test]
fn no_command_writes_over_what_another_wrote() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output run"));
    let before = fs::read(here.path("run/adapter_model.safetensors")).unwrap();
    for output in [
        "run/log.jsonl",
        "run/adapter_model.safetensors",
        "bert/config.json",
    ] {
        let errors = here.fail(2, &format!("report run --output {output} --overwrite"));
        assert!(errors.contains("choose another file"), "{errors}");
    }
    here.write("mine/results.json", "mine");
    for directory in ["mine", "bert", "run"] {
        let errors = here.fail(2, &format!("compare smoke --output {directory}"));
        assert!(errors.contains("is not a comparison's"), "{errors}");
        let search = CLASSIFY.replace("train --model", "intrinsic-dimension --model");
        let search = search.replace("--method lora", "");
        let errors = here.fail(
            2,
            &format!(
                "{search} --method said --metric-for-best-model accuracy --output {directory}"
            ),
        );
        assert!(errors.contains("choose an empty directory"), "{errors}");
        assert!(!here.path(directory).join("full").exists());
    }
    assert_eq!(here.read("mine/results.json"), "mine");
    let errors = here.fail(
        2,
        "convert --model bert --adapter run --to lora --rank 2 --output run --overwrite",
    );
    assert!(errors.contains("--output is"), "{errors}");
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output other"));
    let errors = here.fail(
        2,
        "convert --model bert --adapter run --to lora --rank 2 --output other --overwrite",
    );
    assert!(errors.contains("is the directory of a run"), "{errors}");
    assert!(fs::read(here.path("run/adapter_model.safetensors")).unwrap() == before);
}

/// Nothing is trained where a real run would be refused.
#[test]
fn a_dry_run_looks_at_its_directory() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --max-steps 2 --output run");
    here.succeed(&format!("{train} --dry-run"));
    here.succeed(&train);
    let errors = here.fail_any(&format!("{train} --dry-run"));
    assert!(errors.contains("already holds a run"), "{errors}");
}

#[cfg(unix)]
#[test]
fn arguments_need_not_be_unicode() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let here = Workplace::new();
    let mut command = here.command("inspect");
    let output = command.arg(OsStr::from_bytes(b"\xff")).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("panicked"), "{errors}");
    assert!(matches!(output.status.code(), Some(1 | 2)), "{errors}");
}

/// A process that is killed or goes on elsewhere never meets half of another's files.
#[test]
fn an_output_that_another_process_writes_is_refused() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 3 --output adapter"));
    here.succeed("merge --model bert --adapter adapter --output merged");
    let adapter = "--model bert --adapter adapter";
    for (output, command) in [
        (
            "lora",
            format!("convert {adapter} --to lora --rank 2 --output lora"),
        ),
        (
            "theirs",
            format!("convert {adapter} --to adapterhub --output theirs"),
        ),
        (
            "patch",
            format!("merge {adapter} --output other --patch patch"),
        ),
        (
            "both",
            "merge --model bert --adapters adapter,adapter --output both".to_owned(),
        ),
        ("quick", "quickstart --steps 1 --output quick".to_owned()),
    ] {
        let path = here.path(&format!(".epiphyte-lock-{output}"));
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        let errors = here.fail_any(&command);
        let expected = format!("another process writes to `{output}`");
        assert!(errors.contains(&expected), "{command}: {errors}");
        assert!(!here.path(output).exists(), "{command}");
        drop(lock);
        fs::remove_file(path).unwrap();
        if output == "lora" {
            // What a killed process left there is no file of the user's.
            here.write("lora/.epiphyte-tmp-adapter_model.safetensors", "half");
            here.succeed(&command);
            assert_eq!(fs::read_dir(here.path("lora")).unwrap().count(), 2);
        }
    }
}

#[test]
fn a_file_and_a_link_to_nothing_are_no_directories() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    here.write("file", "mine");
    let commands = [
        format!("{CLASSIFY} --max-steps 1 --output"),
        format!("{CLASSIFY} --dry-run --output"),
        "merge --model bert --adapter adapter --output".to_owned(),
        "convert --model bert --adapter adapter --to lora --rank 1 --output".to_owned(),
        "quantize bert --to nf4 --output".to_owned(),
        "quickstart --output".to_owned(),
        "man --output".to_owned(),
    ];
    for command in &commands {
        let errors = here.fail_any(&format!("{command} file"));
        assert!(
            errors.contains("`file` is a file: choose"),
            "{command}: {errors}"
        );
    }
    assert_eq!(here.read("file"), "mine");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", here.path("link")).unwrap();
        for command in &commands {
            let errors = here.fail_any(&format!("{command} link"));
            assert!(
                errors.contains("`link` is a link to nothing"),
                "{command}: {errors}"
            );
        }
        assert!(!here.path("nowhere").exists());
    }
}

/// A row of a result that says nothing is left out.
#[test]
fn a_merge_without_a_patch_has_no_line_for_it() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    let merge = "merge --model bert --adapter adapter --output";
    assert!(!here.succeed(&format!("{merge} merged")).contains("patch"));
    let with = here.succeed(&format!("{merge} other --patch patch"));
    assert!(with.contains("patch"), "{with}");
}
