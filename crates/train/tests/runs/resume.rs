//! A run is a function of its configuration: stopped and resumed, it ends with the same bytes.

use std::collections::BTreeMap;

use epiphyte_methods::file::TENSORS_FILE;
use epiphyte_models::Checkpoint;
use epiphyte_train::observer::Silent;
use epiphyte_train::report::journal::{Record, read};
use epiphyte_train::{Interrupt, Report, RunConfig, RunOptions, TrainError, train};
use serde_json::{Value, json};

use crate::world::World;

/// Trains to the end in one go.
fn whole(run: &RunConfig) -> Report {
    let options = RunOptions::default();
    train(run, &options, &Interrupt::default(), &mut Silent)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Goes on with a run, in one go.
fn resumed(run: &RunConfig) -> Report {
    let options = RunOptions {
        resume: true,
        ..RunOptions::default()
    };
    train(run, &options, &Interrupt::default(), &mut Silent)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Goes on with a run under a request to stop, which it grants after one step.
fn one_step(run: &RunConfig) -> Report {
    let options = RunOptions {
        resume: true,
        ..RunOptions::default()
    };
    let asked = Interrupt::default();
    asked.request();
    train(run, &options, &asked, &mut Silent).unwrap_or_else(|error| panic!("{error}"))
}

/// What is not a matter of time in the evaluations of a run's log.
fn evaluations(run: &RunConfig) -> Vec<(u64, bool, Value)> {
    let records = read(&run.output.join("log.jsonl")).expect("a log");
    let evaluations = records.into_iter().filter_map(|record| match record {
        Record::Evaluation(record) => Some((record.step, record.is_best, json!(record.metrics))),
        Record::Step(_) => None,
    });
    evaluations.collect()
}

fn bytes(run: &RunConfig) -> Vec<u8> {
    std::fs::read(run.output.join(TENSORS_FILE)).expect("an adapter")
}

/// Methods whose resume differs: plain tensors, a network that the adapter does not have, the
/// base's own, and what a method keeps beside its parameters: a mask, ranks.
fn methods() -> Vec<(&'static str, Value)> {
    vec![
        ("lora", json!({ "r": 2, "lora_dropout": 0.2 })),
        (
            "prefix-tuning",
            json!({ "num_virtual_tokens": 3, "prefix_projection": true, "encoder_hidden_size": 4, "prefix_dropout": 0.2 }),
        ),
        ("full", json!({})),
        ("fish-mask", json!({ "keep_ratio": 0.2, "num_samples": 8 })),
        ("lt-sft", json!({ "ft_params_num": 50 })),
        (
            "adalora",
            json!({ "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 3, "lora_dropout": 0.2 }),
        ),
    ]
}

#[test]
fn stopped_after_every_step_it_ends_with_the_same_bytes() {
    let world = World::new();
    for (method, settings) in methods() {
        let straight = world.run("straight", method, &settings);
        assert_eq!(whole(&straight).status, "finished");
        let pieces = world.run("pieces", method, &settings);
        let steps = whole_steps(&straight);
        for step in 1..=steps {
            let report = one_step(&pieces);
            let status = if step == steps {
                "finished"
            } else {
                "interrupted"
            };
            assert_eq!((report.steps, report.status), (step, status), "{method}");
        }
        assert!(bytes(&pieces) == bytes(&straight), "{method}");
        assert_eq!(evaluations(&pieces), evaluations(&straight), "{method}");
        world.clear();
    }
}

#[test]
fn stopped_once_it_ends_with_the_same_bytes() {
    let world = World::new();
    let settings = json!({ "r": 2, "lora_dropout": 0.2 });
    let straight = world.run("straight", "lora", &settings);
    whole(&straight);
    // In an epoch, between two, right after an evaluation, before the last step.
    for stop in [1, 4, 6, whole_steps(&straight) - 1] {
        let run = world.run(&format!("stopped-{stop}"), "lora", &settings);
        for _ in 0..stop {
            one_step(&run);
        }
        assert_eq!(resumed(&run).status, "finished");
        assert!(bytes(&run) == bytes(&straight), "after step {stop}");
        assert_eq!(
            evaluations(&run),
            evaluations(&straight),
            "after step {stop}"
        );
    }
}

/// The optimizer steps of the run: 30 examples in 8 batches, two batches a step, 3 epochs.
fn whole_steps(run: &RunConfig) -> u64 {
    let last = evaluations(run).last().expect("evaluations").0;
    assert_eq!(last, 12);
    last
}

#[test]
fn a_finished_run_stays_as_it_is() {
    let world = World::new();
    let run = world.run("run", "lora", &json!({ "r": 2 }));
    assert!(whole(&run).tokens_per_second.is_some());
    let before = bytes(&run);
    let report = resumed(&run);
    assert_eq!((report.steps, report.tokens_per_second), (12, None));
    assert!(bytes(&run) == before);
}

#[test]
fn the_seed_and_nothing_else_decides() {
    let world = World::new();
    let settings = json!({ "r": 2, "lora_dropout": 0.2 });
    let run = |name: &str, seed: u64| {
        let run = RunConfig {
            seed,
            ..world.run(name, "lora", &settings)
        };
        whole(&run);
        bytes(&run)
    };
    let first = run("first", 0);
    assert!(run("again", 0) == first);
    assert!(run("other", 1) != first);
}

#[test]
fn another_configuration_is_not_continued() {
    let world = World::new();
    let run = world.run("run", "lora", &json!({ "r": 2 }));
    one_step(&run);
    let options = RunOptions {
        resume: true,
        ..RunOptions::default()
    };
    for other in [
        RunConfig {
            learning_rate: Some(1e-4),
            ..run.clone()
        },
        RunConfig {
            seed: 1,
            ..run.clone()
        },
        world.run("run", "lora", &json!({ "r": 2, "lora_dropout": 0.5 })),
    ] {
        let error =
            train(&other, &options, &Interrupt::default(), &mut Silent).expect_err("another run");
        assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
    }
    let afresh = RunOptions::default();
    let error = train(&run, &afresh, &Interrupt::default(), &mut Silent)
        .expect_err("a directory that holds a run");
    assert!(matches!(error, TrainError::OutputTaken { .. }), "{error}");
    assert_eq!(resumed(&run).status, "finished");
}

/// No evaluation after the first improves by so much, and patience is two evaluations.
#[test]
fn early_stopping_ends_a_run_and_a_resumed_one_alike() {
    let world = World::new();
    let run = |name: &str| RunConfig {
        eval_steps: Some(2),
        early_stopping_patience: Some(2),
        early_stopping_threshold: 1e9,
        ..world.run(name, "lora", &json!({ "r": 2 }))
    };
    let straight = run("straight");
    let report = whole(&straight);
    assert_eq!((report.steps, report.status), (6, "stopped_early"));
    assert_eq!(evaluations(&straight).len(), 3);

    let pieces = run("pieces");
    for step in 1..=6 {
        let report = one_step(&pieces);
        let status = if step == 6 {
            "stopped_early"
        } else {
            "interrupted"
        };
        assert_eq!((report.steps, report.status), (step, status));
    }
    assert!(bytes(&pieces) == bytes(&straight));
    let report = resumed(&pieces);
    assert_eq!((report.steps, report.status), (6, "stopped_early"));
    assert!(bytes(&pieces) == bytes(&straight));
}

/// The evaluation data says the opposite of the training data, so the first evaluation is the best.
#[test]
fn the_best_evaluation_is_put_back_at_the_end() {
    let world = World::new();
    let run = |name: &str, load_best_model_at_end: bool| RunConfig {
        eval_data: Some(world.opposite()),
        load_best_model_at_end,
        ..world.run(name, "lora", &json!({ "r": 2 }))
    };
    let (best, last) = (run("best", true), run("last", false));
    let (best_report, last_report) = (whole(&best), whole(&last));
    let evaluations = evaluations(&best);
    let (step, _, metrics) = evaluations
        .iter()
        .rfind(|(_, is_best, _)| *is_best)
        .expect("a best one");
    assert!(*step < 12, "{evaluations:?}");
    assert_eq!(&json!(best_report.metrics), metrics);
    assert_ne!(json!(last_report.metrics), *metrics);

    let checkpoint = best.output.join(format!("checkpoint-{step}"));
    let kept = values(
        &Checkpoint::open_file(&checkpoint.join("training_state.safetensors")).unwrap(),
        |name| name.strip_prefix("value/"),
    );
    let saved = values(
        &Checkpoint::open_file(&best.output.join(TENSORS_FILE)).unwrap(),
        |name| name.strip_prefix("base_model.model."),
    );
    assert_eq!(kept, saved);
    assert!(bytes(&best) != bytes(&last));
}

/// The tensors whose names have a key, by key.
fn values(tensors: &Checkpoint, key: impl Fn(&str) -> Option<&str>) -> BTreeMap<String, Vec<f32>> {
    let named = tensors.names().filter_map(|name| Some((key(name)?, name)));
    named
        .map(|(key, name)| {
            (
                key.to_owned(),
                tensors.tensor(name).unwrap().to_f32().unwrap(),
            )
        })
        .collect()
}
