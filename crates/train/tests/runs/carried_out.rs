//! How a run is carried out is not part of its result: the size of its passes, gradient checkpointing, a trunk cache,
//! other runs beside it.

use std::fs;

use epiphyte_methods::METHODS;
use epiphyte_methods::file::TENSORS_FILE;
use epiphyte_models::Checkpoint;
use epiphyte_train::observer::Silent;
use epiphyte_train::{ActivationCacheKind, Interrupt, RunConfig, RunOptions, train_several};
use serde_json::{Value, json};

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

/// Every method, with settings that fit the small models and with dropout where it has any.
pub(crate) fn methods() -> Vec<(&'static str, Value)> {
    let settings = |method: &str| match method {
        "lora" => json!({ "r": 2, "lora_dropout": 0.2 }),
        "pfeiffer" | "houlsby" => json!({ "bottleneck_dim": 4 }),
        "prompt-tuning" => json!({ "num_virtual_tokens": 3 }),
        "prefix-tuning" | "p-tuning-v2" => json!({
            "num_virtual_tokens": 3, "prefix_projection": true, "encoder_hidden_size": 4,
            "prefix_dropout": 0.2,
        }),
        "freeze" => json!({ "freeze_trainable_layers": 1 }),
        _ => json!({}),
    };
    METHODS
        .iter()
        .map(|method| (method.name, settings(method.name)))
        .collect()
}

/// Every method on both families.
fn everywhere(world: &World, name: &str) -> Vec<RunConfig> {
    let both = |(method, settings): (&'static str, Value)| {
        [
            world.run(&format!("{name}/bert/{method}"), method, &settings),
            world.language_run(&format!("{name}/qwen/{method}"), method, &settings),
        ]
    };
    methods().into_iter().flat_map(both).collect()
}

/// AdamW divides a gradient by its size: what is zero but for rounding, as that of a key's bias, must not move.
pub(crate) fn calm(run: RunConfig) -> RunConfig {
    RunConfig {
        adam_epsilon: 1e-2,
        ..run
    }
}

#[test]
fn passes_of_any_size() {
    let world = World::new();
    let run = |name: &str, tokens| {
        let runs = everywhere(&world, name).into_iter().map(calm);
        runs.map(move |mut run| {
            // The passes of a batch draw a prefix's dropout apart.
            if run.method_settings.contains_key("prefix_dropout") {
                run.method_settings["prefix_dropout"] = json!(0.0);
            }
            RunConfig {
                micro_batch_tokens: Some(tokens),
                ..run
            }
        })
    };
    let whole = run("whole", 1000);
    for (whole, (parts, single)) in whole.zip(run("parts", 12).zip(run("single", 1))) {
        for run in [&whole, &parts, &single] {
            alone(run);
        }
        assert_same(&whole, &parts);
        assert_same(&whole, &single);
    }
}

#[test]
fn gradient_checkpointing() {
    let world = World::new();
    let plain: Vec<RunConfig> = everywhere(&world, "plain").into_iter().map(calm).collect();
    let again = everywhere(&world, "again").into_iter().map(calm);
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
            assert!(
                !run.output.join("activation_cache.bin").exists(),
                "{method}, {name}"
            );
        }
    }
}

#[test]
fn side_by_side() {
    let world = World::new();
    // Data, batch sizes, seeds and rates differ, so that runs have other batches, other lengths and other ends.
    let vary = |runs: Vec<RunConfig>| -> Vec<RunConfig> {
        let varied = runs.into_iter().enumerate().map(|(index, run)| RunConfig {
            seed: index as u64,
            batch_size: 3 + index % 3,
            gradient_accumulation_steps: 1 + index % 2,
            micro_batch_tokens: (index % 4 == 1).then_some(10),
            learning_rate: 1e-2 * (1 + index % 4) as f64,
            train_data: if index % 3 == 2 {
                world.opposite()
            } else {
                run.train_data.clone()
            },
            ..run
        });
        varied.collect()
    };
    let (bert, qwen): (Vec<_>, Vec<_>) = vary(everywhere(&world, "together"))
        .into_iter()
        .partition(|run| run.model.ends_with("model"));
    let together = [trained(&bert), trained(&qwen)].concat();
    let runs = [bert, qwen].concat();
    for (run, together) in runs.iter().zip(together) {
        let apart = RunConfig {
            output: run.output.with_extension("apart"),
            ..run.clone()
        };
        assert!(alone(&apart) == together, "{}", run.output.display());
    }
}

/// Asserts that two runs' tensors agree as far as f32 sums in another order do.
pub(crate) fn assert_same(one: &RunConfig, other: &RunConfig) {
    let open = |run: &RunConfig| Checkpoint::open_file(&run.output.join(TENSORS_FILE)).unwrap();
    let (one_file, other_file) = (open(one), open(other));
    for key in one_file.names() {
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
