//! Load an adapter that HF PEFT trained, and classify sentences with it.
//!
//! ```sh
//! cargo run --release --example peft_adapter
//! ```
//!
//! `peft_adapter/make.py` trained it, and printed the logits that this program compares with.

#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use epiphyte::Classifier;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let base = here.join("assets/quickstart/base");
    let adapter = here.join("examples/peft_adapter");

    // PEFT's files do not record what the classes are called, so we say it. Without names,
    // `Classifier::open` takes those of the base's `config.json`.
    let classifier = Classifier::open_with_labels(base, adapter, ["routine", "urgent"])?;

    let texts = [
        "The Swallow is on fire near Gull Rock.",
        "Potatoes arrive on Friday.",
    ];
    let of_peft = [[-0.6437, 1.1632], [2.4706, -1.9104]];
    let predictions = classifier.predict(&texts)?;
    for ((text, prediction), of_peft) in texts.iter().zip(&predictions).zip(of_peft) {
        println!(
            "{:8} {:.3}  {text}",
            prediction.label, prediction.probability
        );
        for (logit, expected) in prediction.logits.iter().zip(of_peft) {
            assert!(
                (logit - expected).abs() < 1e-3,
                "{logit} and PEFT's {expected}"
            );
        }
    }
    assert_eq!(predictions[0].label, "urgent");
    assert_eq!(predictions[1].label, "routine");
    Ok(())
}
