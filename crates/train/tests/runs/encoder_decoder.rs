//! Runs over an encoder-decoder: how one is carried out is not part of its result.

use epiphyte_train::observer::Silent;
use epiphyte_train::{Interrupt, RunConfig, RunOptions, train};
use serde_json::json;

use crate::world::World;

/// The first words of a text can be learned, and the loss says so.
#[test]
fn a_target_text_is_learned() {
    let world = World::new();
    let run = RunConfig {
        epochs: 40.0,
        eval_steps: None,
        learning_rate: Some(1e-2),
        base_dropout: Some(0.0),
        ..world.seq2seq_run("learned", "full", &json!({}))
    };
    let options = RunOptions::default();
    let report = train(&run, &options, &Interrupt::default(), &mut Silent).unwrap();
    let metrics = report.metrics.unwrap();
    let (loss, perplexity) = (metrics.get("loss"), metrics.get("perplexity"));
    // A uniform guess among 16 tokens costs ln 16 = 2.77.
    let loss = loss.unwrap();
    assert!(loss < 0.7, "{loss}");
    assert!((perplexity.unwrap() - loss.exp()).abs() < 1e-9);
}

/// What a model with one stack cannot learn, and the other way around.
#[test]
fn tasks_that_do_not_fit_the_stacks_are_errors() {
    let world = World::new();
    let lora = json!({ "r": 2 });
    let decoder = RunConfig {
        model: world.language_run("", "lora", &lora).model,
        ..world.seq2seq_run("decoder", "lora", &lora)
    };
    let encoder_decoder = RunConfig {
        model: world.seq2seq_run("", "lora", &lora).model,
        ..world.language_run("encoder_decoder", "lora", &lora)
    };
    for (run, task) in [(decoder, "causal-lm"), (encoder_decoder, "seq2seq")] {
        let options = RunOptions::default();
        let error = train(&run, &options, &Interrupt::default(), &mut Silent).unwrap_err();
        assert!(error.to_string().contains(task), "{error}");
    }
}
