//! Train LoRA on a text classification, watch it learn, and classify sentences with the result.
//!
//! ```sh
//! cargo run --release --example train_lora
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use epiphyte::train::observer::{Observer, TrainingProgress};
use epiphyte::train::{Interrupt, RunConfig, RunOptions, train};
use epiphyte::{Classifier, Device};
use serde_json::json;

/// A library draws nothing. What happens during training goes to an observer, here one that keeps
/// the loss of every step.
#[derive(Default)]
struct Losses(Vec<f64>);

impl Observer for Losses {
    fn step(&mut self, progress: &TrainingProgress) {
        self.0.push(progress.loss);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The base is the one that ships with the program; a name on the hub, such as
    // `google-bert/bert-base-uncased`, is as good. The data are messages to a lighthouse.
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart");
    let directory = tempfile::tempdir()?;
    let adapter = directory.path().join("messages");

    // A run has the same settings here, on the command line and in a TOML file. Those of the
    // method are apart, because each method has its own.
    let lora = json!({ "rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"] });
    let run = RunConfig {
        model: quickstart.join("base"),
        train_data: quickstart.join("messages-train.csv"),
        eval_data: Some(quickstart.join("messages-dev.csv")),
        text_columns: vec!["text".to_owned()],
        method: "lora".to_owned(),
        method_settings: lora.as_object().cloned().unwrap_or_default(),
        epochs: 2.0,
        batch_size: 10,
        learning_rate: Some(1e-2),
        output: adapter.clone(),
        ..RunConfig::default()
    };
    let options = RunOptions {
        device: Device::flex(),
        ..RunOptions::default()
    };
    let mut losses = Losses::default();
    let report = train(&run, &options, &Interrupt::default(), &mut losses)?;

    let accuracy = report.metrics.and_then(|scores| scores.get("accuracy"));
    println!(
        "{} steps, loss {:.3} to {:.3}, accuracy {accuracy:?}, {} parameters trained",
        report.steps, losses.0[0], losses.0[39], report.account.trainable_parameters
    );
    assert_eq!(losses.0.len(), 40);
    assert!(losses.0[39] < losses.0[0] / 2.0);
    assert!(accuracy.is_some_and(|accuracy| accuracy > 0.9));

    // The adapter is a directory. With its base it classifies strings.
    let classifier = Classifier::open(&run.model, &adapter)?;
    let texts = [
        "Fire on the Heron near Gull Rock.",
        "The mail comes on Monday.",
    ];
    let predictions = classifier.predict(&texts)?;
    for (text, prediction) in texts.iter().zip(&predictions) {
        println!(
            "{:8} {:.3}  {text}",
            prediction.label, prediction.probability
        );
    }
    assert_eq!(predictions[0].label, "urgent");
    assert_eq!(predictions[1].label, "routine");
    Ok(())
}
