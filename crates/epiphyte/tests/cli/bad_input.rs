//! Input that cannot be used: each is refused in words that name it.

use std::fs::{self, File};
use std::process::Command;

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// Breaks something in a fresh workplace; the run must then fail and say so.
fn refused(breaks: impl FnOnce(&Workplace), flags: &str, expected: &[&str]) {
    let here = Workplace::new();
    breaks(&here);
    let errors = here.fail(
        1,
        &format!("{CLASSIFY} --max-steps 2 --output adapter {flags}"),
    );
    for words in expected {
        assert!(errors.contains(words), "expected {words:?} in:\n{errors}");
    }
    assert!(
        !here.path("adapter/adapter_config.json").exists(),
        "a failed run leaves no adapter"
    );
}

#[test]
fn a_truncated_checkpoint() {
    let truncate = |length: u64| {
        move |here: &Workplace| {
            let file = File::options()
                .write(true)
                .open(here.path("bert/model.safetensors"))
                .unwrap();
            file.set_len(length).unwrap();
        }
    };
    refused(
        truncate(4),
        "",
        &[
            "bert/model.safetensors` is not a usable safetensors file",
            "4 bytes",
        ],
    );
    refused(
        truncate(100),
        "",
        &[
            "bert/model.safetensors` is not a usable safetensors file",
            "header",
        ],
    );
    refused(
        truncate(9000),
        "",
        &["bert/model.safetensors` is not a usable safetensors file"],
    );
}

#[test]
fn an_oversized_header() {
    let oversize = |here: &Workplace| {
        let path = here.path("bert/model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(path, bytes).unwrap();
    };
    refused(
        oversize,
        "",
        &[
            "bert/model.safetensors` is not a usable safetensors file",
            "over the limit",
        ],
    );
}

#[test]
fn a_missing_shard() {
    let index = |here: &Workplace| {
        fs::remove_file(here.path("bert/model.safetensors")).unwrap();
        let map =
            r#"{"weight_map": {"bert.pooler.dense.weight": "model-00001-of-00001.safetensors"}}"#;
        here.write("bert/model.safetensors.index.json", map);
    };
    refused(
        index,
        "",
        &[
            "bert/model-00001-of-00001.safetensors` is missing",
            "bert.pooler.dense.weight",
        ],
    );
}

#[test]
fn missing_model_files() {
    let remove =
        |name: &'static str| move |here: &Workplace| fs::remove_file(here.path(name)).unwrap();
    refused(
        remove("bert/config.json"),
        "",
        &["`bert/config.json` is missing"],
    );
    refused(
        remove("bert/model.safetensors"),
        "",
        &["`bert/model.safetensors` is missing"],
    );
    refused(
        remove("bert/tokenizer.json"),
        "",
        &["tokenizer.json", "bert"],
    );
    refused(
        |_| {},
        "--model bart",
        &[
            "`bart` is neither a directory nor in the hub's cache",
            "hint: place config.json",
        ],
    );
    refused(
        |_| {},
        "--model ./bart",
        &["there is no model directory at `./bart`"],
    );
}

#[test]
fn an_unknown_architecture() {
    let rename = |here: &Workplace| {
        here.edit("bert/config.json", |config| {
            config["model_type"] = "opus".into()
        })
    };
    refused(
        rename,
        "",
        &[
            "`bert/config.json`: model type `opus` is not supported",
            "bert, ",
        ],
    );
}

#[test]
fn a_wrong_tensor() {
    let widen = |here: &Workplace| {
        here.edit("bert/config.json", |config| {
            config["intermediate_size"] = 64.into()
        })
    };
    refused(widen, "", &["intermediate.dense.weight"]);
}

#[test]
fn unusable_data() {
    refused(
        |here| here.write("train.jsonl", ""),
        "",
        &["`train.jsonl` holds no rows"],
    );
    refused(
        |_| {},
        "--train-data none.jsonl",
        &["cannot read `none.jsonl`"],
    );
    refused(
        |here| {
            here.write(
                "train.jsonl",
                b"{\"text\": \"good\", \"label\": \"positive\"}\n{\"text\": \"\xff\"}\n",
            )
        },
        "",
        &["`train.jsonl` is not UTF-8 at line 2"],
    );
    refused(
        |_| {},
        "--text-columns sentence",
        &["sentence", "text", "hint: name the columns"],
    );
    refused(
        |here| here.write("dev.jsonl", "{\"text\": \"good\", \"label\": \"mixed\"}\n"),
        "",
        &["`dev.jsonl`", "`mixed`", "`negative`, `positive`"],
    );
    refused(
        |here| here.write("train.tsv", "text\tlabel\ngood\n"),
        "--train-data train.tsv",
        &["`train.tsv`, line 2"],
    );
}

#[test]
fn values_that_do_not_fit_the_model() {
    refused(|_| {}, "--max-length 33", &["33", "32"]);
    refused(
        |_| {},
        "--rank-pattern query=1000000000",
        &["`rank_pattern` is query=1000000000", "65536"],
    );
    refused(
        |here| {
            here.edit("bert/config.json", |config| {
                config["hidden_size"] = 1_000_000_000.into()
            })
        },
        "",
        &["hidden size of 1000000000", "config.json and weights"],
    );
    refused(
        |_| {},
        "--target-modules quary",
        &[
            "target modules `quary` match nothing in this bert model",
            "query",
        ],
    );
    refused(
        |_| {},
        "--method freeze --freeze-trainable-layers 3",
        &["freeze"],
    );
}

#[test]
fn nothing_to_train() {
    let here = Workplace::new();
    let errors = here.fail(
        1,
        &format!("{SPEAK} --method freeze --freeze-trainable-layers 0 --output nothing"),
    );
    assert!(errors.contains("freeze trains nothing"), "{errors}");
    assert!(!here.path("nothing").exists());
}

#[test]
fn a_loss_that_is_not_finite() {
    let here = Workplace::new();
    let errors = here.fail(
        1,
        &format!("{SPEAK} --method full --learning-rate 1e38 --max-steps 20 --output adapter"),
    );
    assert!(
        errors.contains("is not finite; begin anew (--overwrite) with a lower learning rate"),
        "{errors}"
    );
    assert!(errors.contains("error: step "), "{errors}");
}

/// A run into a file system with room for nothing; needs the right to mount one.
#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs the right to mount a file system"]
fn a_full_disk() {
    let here = Workplace::new();
    fs::create_dir(here.path("adapter")).unwrap();
    let mount = "mount -t tmpfs -o size=16k none adapter";
    let unshare = |script: &str| {
        Command::new("unshare")
            .args(["-rm", "sh", "-c", script])
            .current_dir(here.path(""))
            .output()
    };
    let mounted = unshare(mount).is_ok_and(|output| output.status.success());
    assert!(mounted, "this user may not mount a file system");
    // Then the user makes room and does what the message says.
    let train = format!(
        "'{}' {CLASSIFY} --max-steps 2 --output adapter",
        env!("CARGO_BIN_EXE_epiphyte")
    );
    let output = unshare(&format!(
        "{mount} && {train}; echo code $? >&2; mount -o remount,size=16m none adapter && {train} --resume"
    ))
    .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("code 1\n"), "{errors}");
    for words in [
        "/adapter/",
        "o space left",
        "what was saved before is still there",
        "go on with the same command and --resume",
    ] {
        assert!(errors.contains(words), "{errors}");
    }
    assert!(output.status.success(), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("finished"));
}

#[test]
fn paths_that_hold_no_model() {
    let here = Workplace::new();
    fs::create_dir(here.path("empty")).unwrap();
    let errors = here.fail(2, "inspect empty");
    assert!(
        errors.contains("`empty` is neither an adapter nor a model"),
        "{errors}"
    );
    let errors = here.fail(1, "eval --model bert --adapter empty --data dev.jsonl");
    assert!(errors.contains("empty/adapter_config.json"), "{errors}");
    let errors = here.fail(2, "merge --model bert --output merged");
    assert!(errors.contains("pass --adapter"), "{errors}");
}

#[test]
fn texts_that_leave_no_room_for_virtual_tokens() {
    let here = Workplace::new();
    let text = ["good"; 40].join(" ");
    here.write(
        "long.jsonl",
        format!("{{\"text\": \"{text}\", \"label\": \"positive\"}}\n"),
    );
    let train = "train --model bert --train-data train.jsonl --eval-data long.jsonl \
        --text-columns text --method prefix-tuning --num-virtual-tokens 4 --max-steps 1";
    let advice = "set max_length (--max-length) to 28 or less";
    let errors = here.fail(1, &format!("{train} --max-length 32 --output refused"));
    assert!(errors.contains(advice), "{errors}");
    here.succeed(&format!("{train} --output adapter"));

    let on_adapter = "--model bert --adapter adapter --data long.jsonl";
    for command in [
        format!("eval {on_adapter}"),
        format!("predict {on_adapter} --output preds.jsonl"),
    ] {
        let errors = here.fail(1, &format!("{command} --max-length 32"));
        assert!(errors.contains(advice), "{errors}");
        here.succeed(&command);
    }
    let speak = format!("{SPEAK} --method prompt-tuning --num-virtual-tokens 4 --max-steps 1");
    here.succeed(&format!("{speak} --output speaker"));
    here.write("prompt.txt", ["good"; 64].join(" "));
    let errors = here.fail(
        1,
        "generate --model llama --adapter speaker --prompt-file prompt.txt",
    );
    assert!(errors.contains("reads no more than 64"), "{errors}");
}

#[test]
fn class_names_that_are_not_distinct() {
    let here = Workplace::new();
    let flags = "--task sequence-classification --text-columns text --data dev.jsonl --labels a,a";
    let errors = here.fail(2, &format!("eval --model bert-head {flags}"));
    assert!(errors.contains("`a`"), "{errors}");
}

/// A number that no step can learn is named, and not the learning rate blamed.
#[test]
fn numbers_out_of_all_proportion() {
    let here = Workplace::new();
    let rows = "{\"text\": \"good film\", \"label\": 0.5}\n{\"text\": \"bad\", \"label\": 1e30}\n";
    here.write("numbers.jsonl", rows);
    let errors = here.fail(
        1,
        "train --model bert --task regression --train-data numbers.jsonl --text-columns text \
         --output adapter",
    );
    assert!(
        errors.contains("`numbers.jsonl`, row 2, column `label`") && errors.contains("1e15"),
        "{errors}"
    );
}

/// Hints name the flags of the command, for the format of the file.
#[test]
fn hints_for_columns() {
    let here = Workplace::new();
    let head = "--model bert-head --task sequence-classification";
    let predict = format!("predict {head} --text-columns text --data dev.jsonl --output p.jsonl");
    let errors = here.fail(1, &format!("{predict} --columns nope"));
    assert!(
        errors.contains("--columns: ") && errors.contains("`nope`"),
        "{errors}"
    );
    assert!(!errors.contains("--text-columns"), "{errors}");
    let errors = here.fail(
        1,
        &format!("eval {head} --text-columns nope --data dev.jsonl"),
    );
    assert!(
        errors.contains("--text-columns and --label-column"),
        "{errors}"
    );
    assert!(!errors.contains("--no-header"), "{errors}");
    here.write(
        "other.jsonl",
        here.read("dev.jsonl").replace("text", "body"),
    );
    let errors = here.fail_any(&format!("eval {head} --data other.jsonl"));
    assert!(errors.contains("or another task with --task"), "{errors}");
    assert!(
        errors.contains("name the columns with --text-columns and --label-column"),
        "{errors}"
    );
    here.write("dev.data", "x");
    let errors = here.fail_any(&format!("eval {head} --text-columns text --data dev.data"));
    assert!(errors.contains("--format json, jsonl"), "{errors}");
}

/// Opening a pipe would wait for somebody who writes.
#[test]
#[cfg(unix)]
fn a_pipe_among_a_models_files_is_refused() {
    let here = Workplace::new();
    for file in ["tokenizer.json", "config.json", "model.safetensors"] {
        let here = Workplace::new();
        let path = here.path("llama").join(file);
        fs::remove_file(&path).unwrap();
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        for command in [
            "eval --model llama --text-columns text --data dev.jsonl",
            "quantize llama --to nf4 --output quantized",
            "export --to gguf --model llama --output llama.gguf",
        ] {
            let errors = here.fail_any(command);
            let is_named = errors.contains(file) && errors.contains("regular file");
            assert!(is_named, "{file}, {command}: {errors}");
        }
    }
    let weights = "merge --model llama --models llama --weights nan --output merged";
    let errors = here.fail(2, weights);
    assert!(
        errors.contains("--weights") && errors.contains("use a number"),
        "{errors}"
    );
}
