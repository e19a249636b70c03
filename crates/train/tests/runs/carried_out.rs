//! How a run is executed is not part of its result: the size of its micro-batches, gradient
//! checkpointing, the activation cache, other runs in the same process. Over the registries of
//! methods, families and tasks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use epiphyte_methods::by_name;
use epiphyte_methods::file::TENSORS_FILE;
use epiphyte_models::Checkpoint;
use epiphyte_train::observer::Silent;
use epiphyte_train::{ActivationCacheKind, Interrupt, RunConfig, RunOptions, train_several};
use serde_json::json;

use crate::world::World;

/// The adapters' tensors after training the runs side by side.
pub(crate) fn trained(runs: &[RunConfig]) -> Vec<Vec<u8>> {
    let options = RunOptions::default();
    let reports = train_several(runs, &options, &Interrupt::default(), &mut Silent);
    let reports = reports.unwrap_or_else(|error| panic!("{error}"));
    let read =
        |report: &epiphyte_train::Report| fs::read(report.output.join(TENSORS_FILE)).unwrap();
    reports.iter().map(read).collect()
}

pub(crate) fn alone(run: &RunConfig) -> Vec<u8> {
    trained(std::slice::from_ref(run)).remove(0)
}

/// AdamW divides a gradient by its size: what is zero but for rounding, as that of a key's bias,
/// must not move.
pub(crate) fn calm(run: RunConfig) -> RunConfig {
    RunConfig {
        adam_epsilon: 1e-2,
        ..run
    }
}

#[test]
fn micro_batches_of_any_size() {
    let world = World::new();
    let run = |name: &str, tokens| {
        world.matrix(name).into_iter().map(move |run| RunConfig {
            micro_batch_tokens: Some(tokens),
            ..calm(run)
        })
    };
    for (whole, parts) in run("whole", 1000).zip(run("parts", 8)) {
        alone(&whole);
        alone(&parts);
        assert_same(&whole, &parts);
    }
}

#[test]
fn gradient_checkpointing() {
    let world = World::new();
    let plain: Vec<RunConfig> = world.matrix("plain").into_iter().map(calm).collect();
    let again = world.matrix("again").into_iter().map(calm);
    for (plain, again) in plain.iter().zip(again) {
        let again = RunConfig {
            gradient_checkpointing: true,
            ..again
        };
        alone(plain);
        alone(&again);
        assert_same(plain, &again);
    }
}

#[test]
fn activation_cache() {
    let world = World::new();
    let cases = [
        ("freeze", json!({ "freeze_trainable_layers": 1 })),
        (
            "lora",
            json!({ "r": 2, "lora_dropout": 0.2, "layers_to_transform": [1] }),
        ),
    ];
    for (method, settings) in cases {
        let run = |name: &str, activation_cache, activation_cache_budget| RunConfig {
            base_dropout: Some(0.0),
            activation_cache,
            activation_cache_budget,
            ..world.run(&format!("{method}/{name}"), method, &settings)
        };
        let off = alone(&run("off", ActivationCacheKind::Off, 4.0));
        let others = [
            ("auto", ActivationCacheKind::Auto, 4.0),
            ("memory", ActivationCacheKind::Memory, 4.0),
            ("disk", ActivationCacheKind::Disk, 4.0),
            // Room for about half of the examples.
            ("some-in-memory", ActivationCacheKind::Memory, 6e-6),
            ("some-on-disk", ActivationCacheKind::Disk, 6e-6),
            ("no-room", ActivationCacheKind::Auto, 6e-6),
        ];
        for (name, kind, budget) in others {
            let run = run(name, kind, budget);
            assert!(alone(&run) == off, "{method}, {name}");
        }
    }
}

#[test]
fn several_runs_over_one_base() {
    let world = World::new();
    // Batch sizes, seeds and rates differ, so that runs have other batches, other lengths and other
    // ends. Batches have more tokens than kernels add up at once.
    let mut runs = world.matrix("together");
    runs.retain(|run| !by_name(&run.method).expect("a method").trains_alone);
    let runs = runs.into_iter().enumerate().map(|(index, run)| RunConfig {
        seed: index as u64,
        batch_size: 12 + index % 3,
        gradient_accumulation_steps: 1 + index % 2,
        micro_batch_tokens: (index % 4 == 1).then_some(10),
        learning_rate: Some(1e-2 * (1 + index % 4) as f64),
        max_steps: Some(2 + index as u64 % 3),
        ..run
    });
    let mut by_model: BTreeMap<PathBuf, Vec<RunConfig>> = BTreeMap::new();
    for run in runs {
        by_model.entry(run.model.clone()).or_default().push(run);
    }
    let mut different = Vec::new();
    for runs in by_model.into_values() {
        for (run, together) in runs.iter().zip(trained(&runs)) {
            let apart = RunConfig {
                output: run.output.with_extension("apart"),
                ..run.clone()
            };
            if alone(&apart) != together {
                different.push(format!("{} {}", run.output.display(), run.method));
            }
        }
    }
    assert!(different.is_empty(), "{different:#?}");
}

/// A classifier of tokens over T5 has its encoder alone, and a pass over both stacks is another.
#[test]
fn runs_that_read_other_layers_of_a_base_are_trained_apart() {
    let world = World::new();
    let both_stacks = world.seq2seq_run("both", "lora", &json!({}));
    let row = json!({ "tokens": ["good", "bad"], "tags": ["A", "B"] });
    let encoder_alone = RunConfig {
        model: both_stacks.model.clone(),
        task: "token-classification".parse().unwrap(),
        train_data: world.write_data("tags.jsonl", &vec![row; 8]),
        text_columns: vec!["tokens".to_owned()],
        label_column: Some("tags".to_owned()),
        output: both_stacks.output.with_extension("encoder"),
        max_length: Some(8),
        ..RunConfig::default()
    };
    let runs = [both_stacks, encoder_alone];
    let options = RunOptions::default();
    let error = train_several(&runs, &options, &Interrupt::default(), &mut Silent);
    let error = error.expect_err("two kinds of passes").to_string();
    assert!(error.contains("read other layers of this base"), "{error}");
}

/// Stopped after each number of steps and resumed, with the method's state.
#[test]
fn resumed_after_every_step() {
    let world = World::new();
    for run in world.matrix("straight") {
        let straight = alone(&run);
        let pieces = RunConfig {
            output: run.output.with_extension("pieces"),
            ..run.clone()
        };
        let options = RunOptions {
            resume: true,
            ..RunOptions::default()
        };
        let asked = Interrupt::default();
        asked.request();
        for _ in 0..4 {
            let runs = std::slice::from_ref(&pieces);
            train_several(runs, &options, &asked, &mut Silent)
                .unwrap_or_else(|error| panic!("{}: {error}", run.output.display()));
        }
        let resumed = fs::read(pieces.output.join(TENSORS_FILE)).unwrap();
        assert!(resumed == straight, "{}", run.output.display());
    }
}

/// Asserts that two runs' tensors agree as far as f32 sums in another order do.
pub(crate) fn assert_same(one: &RunConfig, other: &RunConfig) {
    let open = |run: &RunConfig| Checkpoint::open_file(&run.output.join(TENSORS_FILE)).unwrap();
    let (one_file, other_file) = (open(one), open(other));
    for key in one_file.names() {
        let indices = |file: &Checkpoint| file.tensor(key).and_then(|tensor| tensor.to_i32());
        if let Some(indices_of_one) = indices(&one_file) {
            let output = other.output.display();
            assert_eq!(
                indices(&other_file),
                Some(indices_of_one),
                "{output}: {key}"
            );
            continue;
        }
        if !one_file.tensor(key).is_some_and(|tensor| tensor.is_float()) {
            // Integers of other types are constants of the method.
            let shape = |file: &Checkpoint| file.tensor(key).map(|tensor| tensor.shape.to_vec());
            assert_eq!(shape(&one_file), shape(&other_file), "{key}");
            continue;
        }
        let read = |file: &Checkpoint| file.tensor(key).and_then(|tensor| tensor.to_f32()).unwrap();
        for (one_value, other_value) in read(&one_file).iter().zip(read(&other_file)) {
            let error = (one_value - other_value).abs();
            assert!(
                error <= 1e-5 * one_value.abs().max(1.0),
                "{}: {key} is {other_value}, not {one_value}",
                other.output.display()
            );
        }
    }
}
