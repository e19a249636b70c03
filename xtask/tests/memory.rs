//! What a step of training allocates, by `xtask bench-step` on the shape of MiniLM.

use std::process::Command;

use serde_json::Value;

/// Peak bytes of a step of 2,048 tokens in micro-batches of this many.
fn peak(work: &str, micro_batch_tokens: usize, more: &[&str]) -> f64 {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args([
            "bench-step",
            "--work",
            work,
            "--steps",
            "1",
            "--warmup",
            "1",
        ])
        .args(["--micro-batch-tokens", &micro_batch_tokens.to_string()])
        .args(more)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{work}: {errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["peak_live_bytes"].as_f64().unwrap()
}

/// What 1,536 more tokens in a micro-batch add.
fn activations(work: &str, more: &[&str]) -> f64 {
    peak(work, 2048, more) - peak(work, 512, more)
}

/// Six layers' activations shrink to their inputs and one layer's activations.
#[test]
fn gradient_checkpointing_keeps_less_than_half_of_the_activations() {
    let kept = activations("minilm-lora", &[]);
    let recomputed = activations("minilm-lora", &["--gradient-checkpointing"]);
    assert!(recomputed < 0.5 * kept, "{recomputed} of {kept}");
}

/// No gradient passes through the base.
#[test]
fn a_side_network_keeps_less_than_half_of_the_activations_of_lora() {
    let lora = activations("minilm-lora", &[]);
    let side = activations("minilm-lst", &[]);
    assert!(side < 0.5 * lora, "{side} of {lora}");
}
