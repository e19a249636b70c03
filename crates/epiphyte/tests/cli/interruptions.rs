//! Runs that are stopped, killed and resumed end as if nothing had happened.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::workplace::{CLASSIFY, Workplace};

/// A run of many short steps, with everything on that a resume has to bring back.
const LONG: &str = "--max-steps 600 --eval-steps 100 --save-steps 20 --gradient-accumulation-steps 2 \
    --logging-steps 3 --dropout 0.1 --rank 4 --load-best-model-at-end --seed 3";

pub(crate) fn start(here: &Workplace, arguments: &str) -> Child {
    here.command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub(crate) fn assert_same(here: &Workplace, one: &str, other: &str) {
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let [one, other] = [one, other].map(|dir| fs::read(here.path(dir).join(file)).unwrap());
        assert!(one == other, "{file} differs");
    }
}

/// Waits until a run has logged more than two records.
#[cfg(unix)]
fn wait_for_steps(here: &Workplace, output: &str) {
    let log = here.path(output).join("log.jsonl");
    while !fs::read_to_string(&log).is_ok_and(|log| log.lines().count() > 2) {
        sleep(Duration::from_millis(2));
    }
}

#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    let id = child.id().to_string();
    Command::new("kill").args([signal, &id]).status().unwrap();
}

#[test]
#[cfg(unix)]
fn signals_save_and_the_run_says_how_to_go_on() {
    let here = Workplace::new();
    here.json(&format!("{CLASSIFY} {LONG} --output whole"));
    for (signal, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let command = format!("{CLASSIFY} {LONG} --output stopped{signal}");
        let child = start(&here, &command);
        wait_for_steps(&here, &format!("stopped{signal}"));
        send(signal, &child);
        let ended = child.wait_with_output().unwrap();
        let errors = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{signal}: {errors}");
        assert!(
            errors.contains("go on with:") && errors.trim_end().ends_with("--resume"),
            "{signal}: {errors}"
        );
        here.json(&format!("{command} --resume"));
        assert_same(&here, "whole", &format!("stopped{signal}"));
    }
}

/// While data are read there is nothing to save. Here they never come.
#[test]
#[cfg(unix)]
fn a_run_that_has_not_begun_ends_at_once() {
    let here = Workplace::new();
    let pipe = here.path("waiting.jsonl");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    // Held open, so that the reader waits for more.
    let writer = fs::OpenOptions::new().read(true).write(true).open(&pipe);
    let _writer = writer.unwrap();
    let whole = "train --model bert --train-data waiting.jsonl --text-columns text --output early";
    let child = start(&here, whole);
    while !here.path("early").exists() {
        sleep(Duration::from_millis(2));
    }
    send("-TERM", &child);
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(143), "{errors}");
    assert!(errors.contains("nothing to save"), "{errors}");
    assert!(!here.path("early/adapter_config.json").exists());
}

/// A command under a shell that first runs `before`.
#[cfg(unix)]
fn under_shell(here: &Workplace, before: &str, arguments: &str) -> Command {
    let command = here.command(arguments);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(here.path(""));
    shell.stdout(Stdio::null()).stderr(Stdio::piped());
    shell
}

/// As `nohup` starts a process.
#[test]
#[cfg(target_os = "linux")]
fn a_signal_that_was_ignored_stays_ignored() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} {LONG} --output whole");
    let child = under_shell(&here, "trap '' HUP", &command).spawn().unwrap();
    wait_for_steps(&here, "whole");
    send("-HUP", &child);
    let ended = child.wait_with_output().unwrap();
    let errors = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{errors}");
}

#[test]
#[cfg(unix)]
fn a_file_over_the_systems_limit_is_an_error() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} --max-steps 2 --output adapter");
    // Blocks of 512 bytes.
    let limited = under_shell(&here, "ulimit -f 4", &command)
        .output()
        .unwrap();
    let errors = String::from_utf8(limited.stderr).unwrap();
    assert_eq!(limited.status.code(), Some(1), "{errors}");
    assert!(errors.contains("File too large"), "{errors}");
    here.json(&command);
}

/// An adapter that was to be trained longer says so, until it was.
#[test]
#[cfg(unix)]
fn an_adapter_of_an_interrupted_run_says_so() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} {LONG} --output adapter");
    let child = start(&here, &command);
    wait_for_steps(&here, "adapter");
    send("-TERM", &child);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(143));
    let record = here.record("adapter")["training"].clone();
    let steps = record["steps"].as_u64().unwrap();
    assert!((1..600).contains(&steps), "{record}");
    assert_eq!(record["total_steps"], 600);
    let extent = format!("{steps} of 600 steps");
    let card = here.read("adapter/README.md");
    assert!(card.contains(&format!("interrupted, {extent}")), "{card}");
    let base = "--model bert --adapter adapter";
    let used = [
        format!("eval {base} --data dev.jsonl"),
        format!("predict {base} --data dev.jsonl --output p.jsonl --overwrite"),
        format!("merge {base} --output merged --overwrite"),
    ];
    for command in &used {
        let output = here.run(command);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        assert!(
            errors.contains(&format!("not finished, {extent}, interrupted")),
            "{errors}"
        );
    }
    assert!(
        here.succeed("inspect adapter")
            .contains(&format!("{extent}, interrupted"))
    );

    here.json(&format!("{command} --resume"));
    assert_eq!(here.record("adapter")["training"]["interrupted"], false);
    assert!(!here.read("adapter/README.md").contains("interrupted"));
    for command in &used {
        let output = here.run(command);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!errors.contains("not finished"), "{errors}");
    }
}

/// The adapter of a run that was complete, in the place of which another was killed.
#[test]
#[cfg(unix)]
fn an_adapter_that_a_killed_run_did_not_replace_says_so() {
    let here = Workplace::new();
    here.json(&format!("{CLASSIFY} --max-steps 2 --output adapter"));
    let eval = || {
        let output = here.run("eval --model bert --adapter adapter --data dev.jsonl");
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(!eval().contains("another run"));
    let command = format!("{CLASSIFY} {LONG} --max-steps 5000 --output adapter --overwrite");
    let mut child = start(&here, &command);
    let is_of_other_run = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("checkpoint-") && name != "checkpoint-2"
    };
    let entries = || fs::read_dir(here.path("adapter")).unwrap();
    while !entries().flatten().any(is_of_other_run) {
        assert!(child.try_wait().unwrap().is_none(), "the run ended");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let errors = eval();
    assert!(
        errors.contains("was trained 2 of 2 steps, and another run in its directory stopped after"),
        "{errors}"
    );
}

#[test]
fn a_run_that_was_complete_says_how_to_train_longer() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} --max-steps 2 --output adapter");
    here.json(&command);
    let resumed = |flags: &str| {
        let output = here.run(&format!("{command} {flags} --resume"));
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let errors = resumed("");
    assert!(
        errors.contains("was complete, with 2 steps: nothing is trained")
            && errors.contains("raise --max-steps (now 2)"),
        "{errors}"
    );
    let errors = resumed("--max-steps 3");
    assert!(!errors.contains("was complete"), "{errors}");
}

#[test]
fn a_taken_directory_is_left_alone() {
    let here = Workplace::new();
    let command = format!("{CLASSIFY} --max-steps 2 --output adapter");
    here.json(&command);
    let errors = here.fail(1, &command);
    assert!(
        errors.contains("`adapter` already holds a run; pass --resume"),
        "{errors}"
    );
    here.json(&format!("{command} --overwrite"));
    // A default that is named is the same setting.
    here.succeed(&format!(
        "{command} --resume --eval-batch-size 16 --labels negative,positive --label-column label \
         --micro-batch-tokens 512 --metric-for-best-model loss --eval-steps 6 --quoting true"
    ));
    let errors = here.fail(1, &format!("{command} --seed 1 --resume"));
    assert!(
        errors.contains("belongs to another run: `seed` was 0 and is 1"),
        "{errors}"
    );
    let errors = here.fail(1, &format!("{command} --rank 2 --resume"));
    assert!(errors.contains("`rank` was 8 and is 2"), "{errors}");
}
