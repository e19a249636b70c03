//! Fold an adapter into its base: the result is a plain model, for programs that know no adapters.
//!
//! ```sh
//! cargo run --release --example merge
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use epiphyte::Device;
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::{LoadOptions, ModelConfig};
use epiphyte::train::{MergeOptions, TaskSpec, merge, open_adapter};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = here.join("assets/quickstart/base");
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("merged");

    // An adapter of ours records its task, and `None` would do. HF PEFT's do not.
    let task: TaskSpec = serde_json::from_value(json!({
        "task": "sequence-classification",
        "labels": ["routine", "urgent"],
        "max_length": 128,
    }))?;
    let adapter = AdapterFile::open(&here.join("examples/peft_adapter"))?;
    let (device, options) = (Device::flex(), LoadOptions::default());
    let loaded = open_adapter(&base, Some(adapter), Some(task), false, &device, &options)?;

    // Merging loads what it has written and compares the logits of both on probe inputs.
    let merged = merge(&base, &loaded, &output, &MergeOptions::default())?;
    println!(
        "{} of {} tensors changed, logits differ by {:.1e}",
        merged.changed_tensors, merged.tensors, merged.largest_difference
    );
    // LoRA on two matrices of each of four layers, and the head.
    assert_eq!(merged.changed_tensors, 2 * 4 + 1);
    assert!(merged.largest_difference < 1e-4);

    // The configuration knows the classes now, as `transformers` expects them.
    let config = ModelConfig::open(&output)?;
    assert_eq!(config.facts().labels.names(), ["routine", "urgent"]);
    assert_eq!(
        config.facts().architectures,
        ["LlamaForSequenceClassification"]
    );
    Ok(())
}
