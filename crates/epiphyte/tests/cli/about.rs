//! What the program says about itself: version, machine, completions, manual.

use std::fs;
use std::process::Command;

use epiphyte::methods::METHODS;

use crate::workplace::Workplace;

#[test]
fn doctor_says_what_a_bug_report_needs() {
    let here = Workplace::new();
    let found = here.json("doctor --threads 3");
    assert!(
        found["version"]
            .as_str()
            .unwrap()
            .starts_with(env!("CARGO_PKG_VERSION"))
    );
    assert!(found["compiler"].as_str().unwrap().starts_with("rustc "));
    assert!(found["target"].as_str().unwrap().contains('-'));
    assert_eq!(found["threads"], 3);
    assert_eq!(found["devices"][0]["name"], "cpu");
    assert_eq!(found["instruction_sets"][0], "portable");
    let cache = here.path("hub/hub").display().to_string();
    assert_eq!(found["hub_cache"], cache);
    assert_eq!(found["hub_cache_exists"], false);
    let text = here.succeed("doctor");
    for name in [
        "version",
        "target",
        "instruction sets",
        "memory",
        "devices",
        "hub cache",
    ] {
        assert!(
            text.lines().any(|line| line.starts_with(name)),
            "{name}\n{text}"
        );
    }

    // Secrets are not for a bug report.
    let mut command = here.command("doctor");
    let output = command.env("HF_TOKEN", "hf_secret").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("HF_TOKEN") && !text.contains("hf_secret"),
        "{text}"
    );
}

#[test]
fn the_version_names_the_commit_if_it_is_known() {
    let here = Workplace::new();
    let version = here.succeed("--version");
    let number = concat!("epiphyte ", env!("CARGO_PKG_VERSION"));
    let rest = version.trim_end().strip_prefix(number).unwrap();
    let is_commit = |text: &str| text.len() == 12 && text.bytes().all(|it| it.is_ascii_hexdigit());
    let commit = rest
        .strip_prefix(" (")
        .and_then(|rest| rest.strip_suffix(')'));
    assert!(
        rest.is_empty() || commit.is_some_and(is_commit),
        "{version}"
    );
}

#[test]
fn every_shell_gets_completions() {
    let here = Workplace::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = here.succeed(&format!("completions {shell}"));
        for word in ["quickstart", "learning-rate", "num-virtual-tokens"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let errors = here.fail(2, "completions tcsh");
    assert!(
        errors.contains("tcsh") && errors.contains("bash"),
        "{errors}"
    );
    // The script of the shell that is everywhere is one that it reads.
    #[cfg(unix)]
    {
        here.write("script", here.succeed("completions bash"));
        if let Ok(read) = Command::new("bash")
            .arg("-n")
            .arg(here.path("script"))
            .status()
        {
            assert!(read.success());
        }
    }
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let here = Workplace::new();
    let page = here.succeed("man");
    assert!(
        page.contains(".TH epiphyte 1") && page.contains("quickstart"),
        "{page}"
    );
    here.succeed("man --output man1");
    for command in ["train", "eval", "predict", "merge", "doctor"] {
        let page = here.read(&format!("man1/epiphyte-{command}.1"));
        assert!(
            page.contains(&format!(".TH epiphyte-{command} 1")),
            "{page}"
        );
    }
    assert!(
        here.read("man1/epiphyte-train.1")
            .contains("learning\\-rate")
    );
    assert!(!here.path("man1/epiphyte-help.1").exists());
    for (words, name) in [("train", "train"), ("prompts words", "prompts-words")] {
        let page = here.read(&format!("man1/epiphyte-{name}.1"));
        assert_eq!(here.succeed(&format!("man {words}")), page);
    }
    let errors = here.fail(2, "man trian");
    assert!(errors.contains("there is no command `trian`"), "{errors}");
    let errors = here.fail(2, "man train --output man1");
    assert!(errors.contains("cannot be used with"), "{errors}");
    // Pages are written again, but nothing else is replaced.
    here.succeed("man --output man1");
    here.write("man1/epiphyte.1", "mine");
    let errors = here.fail(2, "man --output man1");
    assert!(errors.contains("epiphyte.1"), "{errors}");
    assert_eq!(fs::read(here.path("man1/epiphyte.1")).unwrap(), b"mine");
    // Nor is anything written before the last page was looked at.
    here.write("other/epiphyte-train.1", "mine");
    let errors = here.fail(2, "man --output other");
    assert!(
        errors.contains("epiphyte-train.1") && errors.contains("rename it"),
        "{errors}"
    );
    assert_eq!(fs::read_dir(here.path("other")).unwrap().count(), 1);
}

#[test]
fn doctor_says_that_a_device_is_not_there() {
    let here = Workplace::new();
    let output = here.run("doctor --device rocm");
    let [printed, errors] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    assert!(printed.contains("devices"), "{printed}");
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("--device rocm: this build has cpu"),
        "{errors}"
    );
}

/// Counts of the literature, from shapes alone.
#[test]
fn shapes_say_what_methods_would_train() {
    let here = Workplace::new();
    let all = here.json("inspect --shape llama-7b");
    assert_eq!(all["base_parameters"], 6_738_415_616_u64);
    assert_eq!(all["methods"].as_array().unwrap().len(), METHODS.len());
    for (shape, flags, trainable, stored) in [
        ("bert-base-uncased", "lora --rank 8", 294_912, Some(294_912)),
        (
            "bert-base-uncased",
            "houlsby --train-layer-norms false",
            2_379_264,
            Some(2_379_264),
        ),
        (
            "bert-base-uncased",
            "prefix-tuning --num-virtual-tokens 10",
            184_320,
            Some(184_320),
        ),
        ("bert-base-uncased", "mam", 22_493_984, Some(7_644_672)),
        (
            "roberta-large",
            "ia3 --target-modules key,value,output.dense",
            147_456 + 24 * 1024,
            None,
        ),
        (
            "llama-7b",
            "houlsby --train-layer-norms false",
            33_820_672,
            None,
        ),
        ("llama-7b", "ia3", 614_400, None),
        ("llama-3-8b", "prefix-tuning", 1_310_720, None),
    ] {
        let one = here.json(&format!("inspect --shape {shape} --method {flags}"));
        let method = &one["methods"][0];
        assert_eq!(method["trainable_parameters"], trainable, "{shape} {flags}");
        if let Some(stored) = stored {
            assert_eq!(method["stored_parameters"], stored, "{shape} {flags}");
        }
    }
    let unknown = here.fail(2, "inspect --shape llama-9000b");
    assert!(unknown.contains("bert-base-uncased"), "{unknown}");
    let without = here.fail(2, "inspect adapter --rank 8");
    assert!(without.contains("--shape"), "{without}");
}
