//! Masked language models, in which hidden tokens are learned, and classes that are told by words
//! of a template.

use epiphyte_models::HeadKind;
use epiphyte_train::observer::Silent;
use epiphyte_train::{Interrupt, Report, RunConfig, RunOptions, TrainError, train};
use serde_json::{Value, json};

use crate::world::{World, bert};

fn trained(run: &RunConfig) -> Result<Report, TrainError> {
    train(
        run,
        &RunOptions::default(),
        &Interrupt::default(),
        &mut Silent,
    )
}

/// A message with the errors that it is due to.
fn message(error: &TrainError) -> String {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        message += &error.to_string();
        source = error.source();
    }
    message
}

fn run(world: &World, name: &str, task: &str) -> RunConfig {
    let model = world.write_model(&format!("{name}-model"), &bert(), HeadKind::MaskedLm);
    RunConfig {
        model,
        task: task.parse().unwrap(),
        gradient_accumulation_steps: 1,
        base_dropout: Some(0.0),
        ..world.run(name, "full", &json!({}))
    }
}

/// The held-out losses of a model that has hardly moved, and of the trained one.
fn losses_before_and_after(run: &RunConfig) -> (f64, f64) {
    let first = RunConfig {
        max_steps: Some(1),
        learning_rate: Some(1e-9),
        output: run.output.with_extension("first"),
        ..run.clone()
    };
    let loss = |run: &RunConfig| trained(run).unwrap().metrics.unwrap().get("loss").unwrap();
    (loss(&first), loss(run))
}

#[test]
fn hidden_tokens_are_learned() {
    let world = World::new();
    let run = RunConfig {
        text_columns: vec!["text".to_owned()],
        epochs: 20.0,
        ..run(&world, "masked", "masked-lm")
    };
    let (before, after) = losses_before_and_after(&run);
    assert!(after < before - 0.3, "{before}, {after}");
}

/// The words of a label's half of the vocabulary stand for it.
fn cloze(world: &World, name: &str, words: &Value) -> RunConfig {
    let verbalizer = world.write_data(&format!("{name}.json"), std::slice::from_ref(words));
    RunConfig {
        text_columns: Vec::new(),
        prompt_template: Some("{text} {mask}".to_owned()),
        verbalizer: Some(verbalizer),
        ..run(world, name, "cloze")
    }
}

#[test]
fn classes_are_told_by_their_words() {
    let world = World::new();
    let words = json!({ "good": ["w0", "w1"], "bad": "w6" });
    let run = RunConfig {
        epochs: 8.0,
        ..cloze(&world, "words", &words)
    };
    let metrics = trained(&run).unwrap().metrics.unwrap();
    assert!(metrics.get("accuracy").unwrap() > 0.9, "{metrics:?}");
}

/// A decoder says the word behind the text; the decoder of an encoder-decoder as its first.
#[test]
fn models_that_write_tell_classes_by_their_words() {
    let world = World::new();
    let words = json!({ "good": ["w0", "w1"], "bad": "w6" });
    let base = RunConfig {
        epochs: 10.0,
        ..cloze(&world, "writing", &words)
    };
    let named = |run: RunConfig, name: &str| RunConfig {
        model: run.model,
        output: base.output.with_extension(name),
        ..base.clone()
    };
    let runs = [
        named(
            world.language_run("of-decoder", "full", &json!({})),
            "decoder",
        ),
        named(world.seq2seq_run("of-both", "full", &json!({})), "both"),
    ];
    for run in runs {
        let metrics = trained(&run).unwrap().metrics.unwrap();
        let model = run.model.display();
        assert!(
            metrics.get("accuracy").unwrap() > 0.9,
            "{model}: {metrics:?}"
        );
    }
    // What stands behind the word is not read.
    let behind = RunConfig {
        prompt_template: Some("{mask} {text}".to_owned()),
        ..named(world.language_run("behind", "full", &json!({})), "behind")
    };
    let error = message(&trained(&behind).unwrap_err());
    assert!(error.contains("end it with `{mask}`"), "{error}");
}

/// P-tuning as its paper has it: vectors between the words of a template.
#[test]
fn soft_tokens_of_a_template_are_learned() {
    let world = World::new();
    let words = json!({ "good": ["w0", "w1"], "bad": "w6" });
    let learned = |name: &str, method: &str, settings: &Value| {
        let base = cloze(&world, name, &words);
        let method = world.run(name, method, settings);
        RunConfig {
            prompt_template: Some("{soft} {text} {soft:2} {mask}".to_owned()),
            epochs: 20.0,
            learning_rate: Some(5e-2),
            method: method.method,
            method_settings: method.method_settings,
            output: method.output,
            ..base
        }
    };
    for method in ["prompt-tuning", "p-tuning"] {
        let run = learned(method, method, &json!({ "num_virtual_tokens": 3 }));
        let (before, after) = losses_before_and_after(&run);
        assert!(after < before - 0.05, "{method}: {before}, {after}");
    }
    for (name, method, settings) in [
        ("fewer", "prompt-tuning", json!({ "num_virtual_tokens": 2 })),
        ("none", "lora", json!({ "r": 2 })),
    ] {
        let error = message(&trained(&learned(name, method, &settings)).unwrap_err());
        assert!(error.contains("has 3 soft tokens"), "{error}");
    }
}

#[test]
fn templates_and_words_that_do_not_fit_are_refused() {
    let world = World::new();
    let words = json!({ "good": "w0", "bad": "w6" });
    let template = |template: &str| Some(template.to_owned());
    let base = cloze(&world, "refused", &words);
    let other = |name: &str, words: Value| cloze(&world, name, &words).verbalizer;
    let cases = [
        (
            RunConfig {
                prompt_template: template("{text}"),
                ..base.clone()
            },
            "no `{mask}`",
        ),
        (
            RunConfig {
                prompt_template: template("{mask} {text} {mask}"),
                ..base.clone()
            },
            "several",
        ),
        (
            RunConfig {
                prompt_template: None,
                ..base.clone()
            },
            "`prompt_template` with `{mask}`",
        ),
        (
            RunConfig {
                verbalizer: None,
                ..base.clone()
            },
            "words of each class",
        ),
        (
            RunConfig {
                max_length: Some(2),
                ..base.clone()
            },
            "the prompt template alone is",
        ),
        (
            RunConfig {
                verbalizer: other("unknown", json!({ "good": "x", "bad": "w6" })),
                ..base.clone()
            },
            "the word `x`",
        ),
        (
            RunConfig {
                verbalizer: other("label", json!({ "good": "w0", "poor": "w6" })),
                ..base.clone()
            },
            "no words for the label `bad`",
        ),
        (
            RunConfig {
                verbalizer: other("empty", json!({ "good": [], "bad": "w6" })),
                ..base.clone()
            },
            "no words for the class `good`",
        ),
    ];
    for (run, words) in cases {
        let error = message(&trained(&run).unwrap_err());
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// A checkpoint without such a head gets one that is trained.
#[test]
fn a_head_that_is_not_there_is_trained() {
    let world = World::new();
    let run = RunConfig {
        text_columns: vec!["text".to_owned()],
        task: "masked-lm".parse().unwrap(),
        max_steps: Some(2),
        ..world.run("new-head", "lora", &json!({ "r": 2 }))
    };
    let report = trained(&run).unwrap();
    // 16 · 16 + 16 for the dense layer, 2 · 16 for the norm, 16 biases of words.
    assert_eq!(report.account.head_parameters, 256 + 16 + 32 + 16);
}
