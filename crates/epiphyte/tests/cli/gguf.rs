//! GGUF files in the place of a model's directory: the shipped base, exported and used by every
//! command. Files that others wrote are in `tests/parity/gguf_live.py`.

use std::fs;
use std::path::Path;

use epiphyte::models::Checkpoint;
use serde_json::Value;

use crate::workplace::Workplace;

/// A place with the quickstart's base as `base` and as `base.gguf`, and its texts.
fn with_base() -> Workplace {
    let here = Workplace::new();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart");
    for entry in fs::read_dir(assets.join("base")).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("base/{}", path.file_name().unwrap().to_string_lossy());
        here.write(&name, fs::read(&path).unwrap());
    }
    for name in ["train.jsonl", "eval.jsonl"] {
        here.write(
            &format!("texts/{name}"),
            fs::read(assets.join(name)).unwrap(),
        );
    }
    here.succeed("export --model base --to gguf --output base.gguf");
    here.write("prompt.txt", "Monday. Fog until");
    here
}

const TRAIN: &str = "train --task causal-lm --train-data texts/train.jsonl \
    --eval-data texts/eval.jsonl --text-columns text --max-length 64 --batch-size 8 --method lora \
    --rank 4 --learning-rate 5e-3 --max-steps 12 --logging-steps 1 --model";

fn losses(here: &Workplace, run: &str) -> Vec<f64> {
    let log = here.read(&format!("{run}/log.jsonl"));
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| line["loss"].as_f64()).collect()
}

fn text(here: &Workplace, flags: &str) -> String {
    let flags = format!("generate --prompt-file prompt.txt --max-new-tokens 12 {flags}");
    here.json(&flags)["text"].as_str().unwrap().to_owned()
}

/// A file in full precision is the base that it was made of, to the last digit of a run.
#[test]
fn a_run_over_a_file_is_that_over_its_directory() {
    let here = with_base();
    let hash = |name: &str| {
        let checkpoint = Checkpoint::open(&here.path(name)).unwrap();
        checkpoint.content_hash().to_owned()
    };
    assert_eq!(hash("base"), hash("base.gguf"));
    here.succeed(&format!("{TRAIN} base --output of-directory"));
    here.succeed(&format!("{TRAIN} base.gguf --output of-file"));
    let [expected, found] = ["of-directory", "of-file"].map(|run| losses(&here, run));
    assert_eq!(found, expected);
    assert!(found.len() >= 12);
    assert!(found[found.len() - 1] < found[0] - 0.1, "{found:?}");
    // The adapter names the file, and is found over it again.
    let config = here.read("of-file/adapter_config.json");
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "base.gguf");
    let of_file = text(&here, "--adapter of-file");
    assert_eq!(of_file, text(&here, "--model base --adapter of-directory"));
    assert_ne!(of_file, text(&here, "--model base.gguf"));
    assert_eq!(
        text(&here, "--model base"),
        text(&here, "--model base.gguf")
    );
    let loss = |flags: &str| {
        let score = here.json(&format!("eval --data texts/eval.jsonl {flags}"));
        score["loss"].as_f64().unwrap()
    };
    let expected = loss("--model base --adapter of-directory");
    assert_eq!(loss("--adapter of-file"), expected);
    // A run goes on over the same file, and not over another.
    here.succeed(&format!(
        "{TRAIN} base.gguf --max-steps 14 --output of-file --resume"
    ));
    here.succeed("export --model base --to gguf --dtype f16 --output base.gguf --overwrite");
    let errors = here.fail_any(&format!(
        "{TRAIN} base.gguf --max-steps 15 --output of-file --resume"
    ));
    assert!(errors.contains("base"), "{errors}");
    let errors = here.fail_any("generate --adapter of-file --prompt-file prompt.txt");
    assert!(errors.contains("base"), "{errors}");
}

/// Merging writes a directory with all that the file has.
#[test]
fn an_adapter_is_merged_into_a_directory() {
    let here = with_base();
    here.succeed("export --model base --to gguf --dtype f16 --output half.gguf");
    here.succeed(&format!("{TRAIN} half.gguf --output run"));
    let merged = here.json("merge --adapter run --output merged");
    assert!(merged["largest_difference"].as_f64().unwrap() < 0.1);
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    assert_eq!(config["model_type"], "llama");
    assert_eq!(config["dtype"], "float16");
    let merged = Checkpoint::open(&here.path("merged")).unwrap();
    let kept = merged.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!(kept.dtype.to_string(), "F16");
    assert_eq!(text(&here, "--model merged"), text(&here, "--adapter run"));
    assert!(here.path("merged/tokenizer.json").exists());
    // A patch would have to restore the file.
    let errors = here.fail_any("merge --adapter run --output other --patch patch.safetensors");
    assert!(errors.contains("is a GGUF file"), "{errors}");
    // What is written for llama.cpp from a file is the file's.
    here.succeed("export --model half.gguf --to gguf --output again.gguf");
    let values = |name: &str| {
        let checkpoint = Checkpoint::open(&here.path(name)).unwrap();
        checkpoint.content_hash().to_owned()
    };
    assert_eq!(values("again.gguf"), values("half.gguf"));
}

#[test]
fn a_file_is_shown_and_quantized_and_refused_where_it_is_damaged() {
    let here = with_base();
    let shown = here.json("inspect base.gguf");
    assert_eq!(shown["architectures"][0], "LlamaForCausalLM");
    assert_eq!(shown["layers"], 4);
    let expected = here.json("inspect base");
    assert_eq!(shown["parameters"], expected["parameters"]);
    here.succeed("quantize base.gguf --to nf4 --output quantized");
    let quantized = text(&here, "--model quantized");
    assert_eq!(
        quantized,
        text(&here, "--model base.gguf --quantization nf4")
    );
    here.succeed(&format!("{TRAIN} base.gguf --output planned --dry-run"));
    let bytes = fs::read(here.path("base.gguf")).unwrap();
    here.write("base.gguf", &bytes[..bytes.len() / 2]);
    let errors = here.fail_any("generate --model base.gguf --prompt-file prompt.txt");
    assert!(
        errors.contains("base.gguf") && errors.contains("cut-off download"),
        "{errors}"
    );
}
