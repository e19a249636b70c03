//! A full disk, a failing disk, missing rights, interrupted and short writes, and a kill, at each
//! call of a run that changes a file: `--resume` then ends with the same bytes, no saved checkpoint
//! is lost, and nothing else is touched.
//!
//! A library between the process and the system counts the calls and lets one fail; `faults.c` has
//! it. A part of the calls is tried; all of them, each with each fault, with
//!
//! ```sh
//! EPIPHYTE_LONG_TESTS=1 cargo test --workspace --test cli -- faults
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::workplace::{CLASSIFY, Workplace, long_tests};

/// What may happen at a call.
const FAULTS: [&str; 6] = ["ENOSPC", "EIO", "EACCES", "EINTR", "short", "kill"];

/// The calls of which one is tried, if not all are: together with the number of faults it has no
/// divisor, so that each fault meets each part of a run.
const STRIDE: usize = 11;

/// A run with everything that writes files: checkpoints, the best of them, a log, event files.
const RUN: &str = "--max-steps 4 --save-steps 1 --eval-steps 2 --logging-steps 1 --rank 2 \
    --load-best-model-at-end --seed 5 --threads 1";

/// Commands whose calls on files are counted and may fail.
struct Faulty {
    here: Workplace,
    library: PathBuf,
}

impl Faulty {
    fn new() -> Self {
        let here = Workplace::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/faults.c");
        let library = here.path("faults.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .args([&library, &source])
            .args(["-ldl"])
            .output()
            .expect("cc, which the build of the program needs, too");
        let errors = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{errors}");
        here.write("outputs/notes.txt", "the user's");
        Self { here, library }
    }

    /// Runs a command with a fault at the call `at` below `outputs`.
    fn run(&self, arguments: &str, kind: &str, at: usize) -> Output {
        let mut command = self.here.command(arguments);
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAULT_BELOW", self.here.path("outputs"))
            .env("FAULT_KIND", kind)
            .env("FAULT_AT", at.to_string())
            .env("FAULT_LOG", self.here.path("calls"));
        command.output().unwrap()
    }

    /// The calls of a command that succeeds: what is done, and to which file.
    fn calls(&self, arguments: &str) -> Vec<String> {
        let output = self.run(arguments, "EIO", 0);
        assert!(output.status.success(), "{}", errors(&output));
        let calls = self.here.read("calls");
        fs::remove_file(self.here.path("calls")).unwrap();
        calls.lines().map(str::to_owned).collect()
    }

    /// The contents of the files in a directory of `outputs`, by their names.
    fn files(&self, directory: &str) -> BTreeMap<String, Vec<u8>> {
        let path = self.here.path("outputs").join(directory);
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(path).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
        files
    }
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks that a command with a fault succeeded, was killed, or says what failed.
fn check_end(output: &Output, kind: &str, call: &str) {
    let errors = errors(output);
    assert!(!errors.contains("panicked"), "{kind} at {call}\n{errors}");
    match (output.status.code(), output.status.signal()) {
        (Some(0), _) => {}
        (Some(1), _) => assert!(errors.contains("error: "), "{kind} at {call}\n{errors}"),
        (None, Some(9)) => assert_eq!(kind, "kill", "{call}"),
        other => panic!("{kind} at {call}: {other:?}\n{errors}"),
    }
}

/// The calls to try, each with its fault.
fn chosen(calls: &[String]) -> Vec<(usize, &'static str)> {
    let all = (1..=calls.len()).flat_map(|at| FAULTS.map(|kind| (at, kind)));
    let step = if long_tests() {
        1
    } else {
        STRIDE * FAULTS.len() + 1
    };
    all.step_by(step).collect()
}

#[test]
fn training_goes_on_after_any_fault() {
    let faulty = Faulty::new();
    let command = |output: &str| format!("{CLASSIFY} {RUN} --output outputs/{output}");
    let calls = faulty.calls(&command("whole"));
    let whole = faulty.files("whole");
    let is_saved = |call: &String| call.contains("rename") && call.ends_with("/checkpoint-1");
    let saved = calls
        .iter()
        .position(is_saved)
        .expect("checkpoint-1 is saved")
        + 1;
    for (at, kind) in chosen(&calls) {
        let call = &calls[at - 1];
        let output = faulty.run(&command("faulty"), kind, at);
        check_end(&output, kind, call);
        let directory = faulty.here.path("outputs/faulty");
        if at > saved {
            let entries = fs::read_dir(&directory).unwrap();
            let names = entries.map(|it| it.unwrap().file_name().into_string().unwrap());
            let mut kept = names.filter(|name| name.contains("checkpoint-"));
            assert!(
                kept.next().is_some(),
                "{kind} at {call}: no checkpoint is left"
            );
        }
        if !output.status.success() {
            let resume = faulty.here.run(&format!("{} --resume", command("faulty")));
            assert!(
                resume.status.success(),
                "{kind} at {call}\n{}",
                errors(&resume)
            );
        }
        let files = faulty.files("faulty");
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(
                files[name] == whole[name],
                "{kind} at {call}: {name} differs"
            );
        }
        let left: Vec<_> = files
            .keys()
            .filter(|it| it.starts_with(".epiphyte-tmp"))
            .collect();
        assert!(left.is_empty(), "{kind} at {call}: {left:?}");
        assert_eq!(faulty.here.read("outputs/notes.txt"), "the user's");
        fs::remove_dir_all(directory).unwrap();
    }
}

#[test]
fn a_merge_works_after_any_fault() {
    let faulty = Faulty::new();
    faulty
        .here
        .json(&format!("{CLASSIFY} --max-steps 2 --output adapter"));
    let command =
        |output: &str| format!("merge --model bert --adapter adapter --output outputs/{output}");
    let calls = faulty.calls(&command("whole"));
    let whole = faulty.files("whole");
    for (at, kind) in chosen(&calls) {
        let call = &calls[at - 1];
        let output = faulty.run(&command("faulty"), kind, at);
        check_end(&output, kind, call);
        if !output.status.success() {
            // What fails after the model is in its place leaves it there, whole.
            let is_there = faulty.files("faulty") == whole;
            let again = faulty.here.run(&command("faulty"));
            let says_so = errors(&again).contains("holds a merged model");
            assert!(
                again.status.success() || is_there && says_so,
                "{kind} at {call}\n{}",
                errors(&again)
            );
        }
        assert!(faulty.files("faulty") == whole, "{kind} at {call}");
        assert_eq!(faulty.here.read("outputs/notes.txt"), "the user's");
        fs::remove_dir_all(faulty.here.path("outputs/faulty")).unwrap();
    }
}

/// A file that is larger than what lies in memory of it, in rows that are those of `train.jsonl`:
/// the first has a long cell that no task reads.
fn write_large(here: &Workplace) {
    let notes = format!("{{\"notes\": \"{}\", ", "n".repeat(70 << 20));
    here.write(
        "large.jsonl",
        here.read("train.jsonl").replacen('{', &notes, 1),
    );
}

#[test]
fn data_in_a_scratch_file_gives_the_same_bytes_and_leaves_nothing() {
    let faulty = Faulty::new();
    let here = &faulty.here;
    write_large(here);
    let scratch = here.path("outputs/scratch");
    fs::create_dir(&scratch).unwrap();
    let run = |output: &str, kind: &str, at: usize| {
        let command = CLASSIFY.replace("train.jsonl", "large.jsonl");
        let mut command = here.command(&format!("{command} --max-steps 4 --output {output}"));
        command
            .env("LD_PRELOAD", &faulty.library)
            .env("FAULT_BELOW", &scratch)
            .env("FAULT_KIND", kind)
            .env("FAULT_AT", at.to_string())
            .env("FAULT_LOG", here.path("calls"))
            .env("TMPDIR", &scratch);
        let output = command.output().unwrap();
        assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0, "{kind} at {at}");
        output
    };
    here.json(&format!("{CLASSIFY} --max-steps 4 --output small"));
    let adapter = |output: &str| fs::read(here.path(output).join("adapter_model.safetensors"));
    let small = adapter("small").unwrap();

    let output = run("large", "EIO", 0);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(adapter("large").unwrap() == small);
    let calls = here.read("calls");
    let writes = calls.lines().filter(|call| call.contains(" write "));
    assert!(writes.count() > 0, "{calls}");

    // The first call makes the file, and where that fails, all stays in memory.
    let output = run("no-file", "EACCES", 1);
    assert!(output.status.success(), "{}", errors(&output));
    assert!(
        errors(&output).contains("stays in memory"),
        "{}",
        errors(&output)
    );
    assert!(adapter("no-file").unwrap() == small);

    let output = run("full", "ENOSPC", 3);
    let errors = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("outputs/scratch") && errors.contains("TMPDIR"),
        "{errors}"
    );
    assert!(adapter("full").is_err());
    // The same command works once there is room, and after a kill.
    assert_eq!(run("killed", "kill", 3).status.signal(), Some(9));
    for output in ["full", "killed"] {
        assert!(run(output, "EIO", 0).status.success());
        assert!(adapter(output).unwrap() == small);
    }
}
