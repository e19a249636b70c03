//! Checkpoints that AutoGPTQ and AutoAWQ packed: `make_packed_golden.py` made them.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_models::{Checkpoint, HeadKind, LoadOptions, Loaded, ModelError, load};
use epiphyte_ops::Quantization;
use serde_json::{Value, json};
use tempfile::TempDir;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/packed")
        .join(case)
}

fn open(directory: &Path) -> Result<Loaded, ModelError> {
    let options = LoadOptions::default();
    load(
        directory,
        HeadKind::LanguageModel,
        &Device::default(),
        &options,
    )
}

/// A copy of a case whose configuration `edit` changed.
fn edited(case: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let directory = TempDir::new().unwrap();
    let from = golden(case);
    std::fs::copy(
        from.join("model.safetensors"),
        directory.path().join("model.safetensors"),
    )
    .unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    edit(&mut config["quantization_config"]);
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    directory
}

/// Every value is the one that the program that packed it unpacks, to the bit; codes stay in 4 bits
/// where the zero points are in the middle, in 8 where they are not.
#[test]
fn values_are_those_of_autogptq_and_autoawq() {
    for (case, kept) in [
        ("gptq-4", Some(Quantization::Int4)),
        ("gptq-4-zeros", Some(Quantization::Int8)),
        ("gptq-4-rows", Some(Quantization::Int4)),
        ("gptq-4-act-order", None),
        ("gptq-8", Some(Quantization::Int8)),
        ("gptq-8-zeros", None),
        ("gptq-2", Some(Quantization::Int8)),
        ("awq-4", Some(Quantization::Int8)),
    ] {
        let loaded = open(&golden(case)).unwrap();
        let dense = safetensors_of(&golden(case).join("dense.safetensors"));
        assert_eq!(dense.len(), 7, "{case}");
        for (name, expected) in dense {
            let tensor = loaded.model.base().tensor(&name).unwrap();
            assert_eq!(tensor.quantization(), kept, "{case}: {name}");
            // Without the sign of zeros.
            let found = tensor.to_vec().into_iter().map(|value| value + 0.0);
            let expected = expected.into_iter().map(|value| value + 0.0);
            assert!(found.eq(expected), "{case}: {name}");
        }
    }
}

fn safetensors_of(path: &Path) -> Vec<(String, Vec<f32>)> {
    let directory = TempDir::new().unwrap();
    std::fs::copy(path, directory.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
    let values = names.into_iter().map(|name| {
        let values = checkpoint.tensor(&name).unwrap().to_f32().unwrap();
        (name, values)
    });
    values.collect()
}

#[test]
fn what_is_not_supported_or_does_not_fit_is_refused() {
    let refused = |case: &str, edit: fn(&mut Value), words: &[&str]| {
        let directory = edited(case, edit);
        let error = open(directory.path()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(
        "gptq-4",
        |it| it["bits"] = json!(3),
        &["bits", "3", "2, 4, 8"],
    );
    refused("awq-4", |it| it["bits"] = json!(8), &["bits", "8"]);
    refused(
        "awq-4",
        |it| it["version"] = json!("gemv"),
        &["version", "gemv"],
    );
    refused(
        "gptq-4",
        |it| it["checkpoint_format"] = json!("marlin"),
        &["checkpoint_format", "marlin"],
    );
    refused(
        "gptq-4",
        |it| it["quant_method"] = json!("hqq"),
        &["hqq", "gptq, awq"],
    );
    // Other groups than the file has, other codes in a word.
    refused(
        "gptq-4",
        |it| it["group_size"] = json!(8),
        &["scales", "shape"],
    );
    refused("gptq-4", |it| it["bits"] = json!(8), &["shape"]);
    // The first group that a file names and does not have.
    refused(
        "gptq-4-act-order",
        |it| it["group_size"] = json!(-1),
        &["g_idx", "names group"],
    );
    // `gptq_v2` has the zero points as they are: other values, of which each is 7 now.
    let directory = edited("gptq-4", |it| it["checkpoint_format"] = json!("gptq_v2"));
    let loaded = open(directory.path()).unwrap();
    assert_eq!(loaded.model.base().quantization(), Some(Quantization::Int8));
}
