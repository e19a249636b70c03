//! Runs over an encoder-decoder: how one is carried out is not part of its result.

use epiphyte_train::observer::Silent;
use epiphyte_train::{Interrupt, RunConfig, RunOptions, train};
use serde_json::json;

use crate::carried_out::{alone, assert_same, calm, methods, trained};
use crate::world::World;

/// Every method that can train the model, as a classifier and from text to text.
fn everywhere(world: &World, name: &str) -> Vec<RunConfig> {
    let both = |(method, settings)| {
        let name = |task: &str| format!("{name}/{task}/{method}");
        [
            world.encoder_decoder_run(&name("classifier"), method, &settings),
            world.seq2seq_run(&name("seq2seq"), method, &settings),
        ]
    };
    let runs = methods().into_iter().flat_map(both);
    let runs: Vec<RunConfig> = runs.filter(|run| world.applies(run)).collect();
    assert!(runs.len() > 10, "{} runs", runs.len());
    runs
}

#[test]
fn micro_batches_of_any_size_and_gradient_checkpointing() {
    let world = World::new();
    let runs = |name: &str, tokens, gradient_checkpointing| {
        let runs = everywhere(&world, name).into_iter().map(calm);
        runs.map(move |run| RunConfig {
            micro_batch_tokens: Some(tokens),
            gradient_checkpointing,
            ..run
        })
    };
    let others = runs("parts", 12, false).zip(runs("single", 1, true));
    for (whole, (parts, single)) in runs("whole", 1000, false).zip(others) {
        for run in [&whole, &parts, &single] {
            alone(run);
        }
        assert_same(&whole, &parts);
        assert_same(&whole, &single);
    }
}

/// Classifiers and runs from text to text name the base's tensors differently and are mixed.
#[test]
fn side_by_side() {
    let world = World::new();
    let runs = everywhere(&world, "together").into_iter().enumerate();
    let runs: Vec<RunConfig> = runs
        .map(|(index, run)| RunConfig {
            seed: index as u64,
            batch_size: 3 + index % 3,
            gradient_accumulation_steps: 1 + index % 2,
            micro_batch_tokens: (index % 4 == 1).then_some(10),
            learning_rate: 1e-2 * (1 + index % 4) as f64,
            ..run
        })
        .collect();
    // In the order of the methods, and all runs of a task after each other.
    let (classifiers, others): (Vec<_>, Vec<_>) = runs
        .iter()
        .cloned()
        .partition(|run| run.source_column.is_none());
    let apart = |run: &RunConfig, extension| RunConfig {
        output: run.output.with_extension(extension),
        ..run.clone()
    };
    let sorted: Vec<RunConfig> = classifiers.iter().chain(&others).cloned().collect();
    let together: Vec<RunConfig> = sorted.iter().map(|run| apart(run, "sorted")).collect();
    let together = trained(&together);
    let mixed = trained(&runs);
    for (run, together) in sorted.iter().zip(&together) {
        assert!(
            alone(&apart(run, "apart")) == *together,
            "{}",
            run.output.display()
        );
    }
    for (run, mixed) in runs.iter().zip(&mixed) {
        let same = sorted.iter().position(|it| it.output == run.output);
        assert!(
            *mixed == together[same.expect("the same runs")],
            "{}",
            run.output.display()
        );
    }
}

/// The first words of a text can be learned, and the loss says so.
#[test]
fn a_target_text_is_learned() {
    let world = World::new();
    let run = RunConfig {
        epochs: 40.0,
        eval_steps: None,
        learning_rate: 1e-2,
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
