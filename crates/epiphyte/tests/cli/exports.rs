//! `export`: files of other programs. What is in them is compared with PyPI's `gguf` in
//! `tests/parity/gguf_live.py`.

use std::fs;

use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// A tokenizer of byte-pair encoding over the words of the workplace's own.
fn byte_pairs(here: &Workplace) {
    here.edit("llama/tokenizer.json", |tokenizer| {
        let vocabulary = tokenizer["model"]["vocab"].take();
        tokenizer["model"] = json!({
            "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "[UNK]",
            "byte_fallback": true, "fuse_unk": true,
        });
    });
}

#[test]
fn a_model_and_an_adapter_are_written_for_llama_cpp() {
    let here = Workplace::new();
    byte_pairs(&here);
    here.succeed(&format!("{SPEAK} --max-steps 1 --output adapter"));
    here.succeed("merge --model llama --adapter adapter --output merged");
    let model = here.json("export --model merged --to gguf --output model.gguf");
    assert_eq!(model["architecture"], "llama");
    // Two layers of nine tensors, the table and the last norm; the head is the table.
    assert_eq!(model["tensors"], 20);
    let bytes = fs::read(here.path("model.gguf")).unwrap();
    assert_eq!(&bytes[..8], b"GGUF\x03\0\0\0");
    let f16 = "export --model merged --to gguf --dtype f16 --output half.gguf";
    here.succeed(f16);
    let half = fs::metadata(here.path("half.gguf")).unwrap().len();
    assert!(half < bytes.len() as u64);
    let errors = here.fail(2, f16);
    assert!(errors.contains("--overwrite"), "{errors}");
    let lock = fs::File::create(here.path(".epiphyte-lock-half.gguf")).unwrap();
    lock.lock().unwrap();
    let errors = here.fail_any(&format!("{f16} --overwrite"));
    assert!(
        errors.contains("another process writes to `half.gguf`"),
        "{errors}"
    );
    drop(lock);
    here.succeed(&format!("{f16} --overwrite"));
    let adapter =
        here.json("export --model llama --adapter adapter --to gguf --output adapter.gguf");
    // A and B of two targets in two layers.
    assert_eq!(adapter["tensors"], 8);
    let named = "export --adapter adapter --to gguf --output named.gguf";
    assert_eq!(
        here.json(named)["tensors"],
        8,
        "over the base that the adapter names"
    );
    let errors = here.fail(2, "export --to gguf --output none.gguf");
    assert!(errors.contains("--model"), "{errors}");
}

#[test]
fn what_llama_cpp_does_not_have_is_refused() {
    let here = Workplace::new();
    let export = "export --to gguf --output out.gguf --model";
    let errors = here.fail(1, &format!("{export} llama"));
    assert!(errors.contains("byte-pair encoding"), "{errors}");
    let errors = here.fail(1, &format!("{export} bert"));
    assert!(
        errors.contains("none of the Llama, Qwen and Gemma families"),
        "{errors}"
    );
    byte_pairs(&here);
    let config = here.read("llama/config.json");
    let with = |key: &str, value: Value| {
        here.write("llama/config.json", &config);
        here.edit("llama/config.json", |config| config[key] = value);
        here.fail(1, &format!("{export} llama"))
    };
    let errors = with("hidden_act", json!("relu"));
    assert!(errors.contains("`hidden_act` relu"), "{errors}");
    let scaling = json!({ "rope_type": "dynamic", "factor": 2.0 });
    let errors = with("rope_scaling", scaling);
    assert!(errors.contains("scaling of rotary positions"), "{errors}");
    // What config.json says of sizes is what the tensors have, and values stay finite.
    let errors = with("num_key_value_heads", json!(1));
    assert!(errors.contains("by config.json"), "{errors}");
    let errors = with("head_dim", json!(6));
    assert!(errors.contains("by config.json"), "{errors}");
    here.write("llama/config.json", &config);
    here.succeed(&format!("{CLASSIFY} --max-steps 1 --output classifier"));
    here.succeed(&format!("{SPEAK} --method ia3 --max-steps 1 --output ia3"));
    let errors = here.fail(1, &format!("{export} llama --adapter ia3"));
    assert!(errors.contains("this one is of ia3"), "{errors}");
    let errors = here.fail(2, "export --to gguf --model llama --output llama/out.gguf");
    assert!(errors.contains("file of an input"), "{errors}");
    assert!(!here.path("out.gguf").exists());
}
