//! The output directory of a run: what it refuses, what it replaces, and what it goes on with.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use epiphyte_methods::file::{CONFIG_FILE, TENSORS_FILE};
use epiphyte_models::HeadKind;
use epiphyte_train::observer::{Silent, TrainingProgress};
use epiphyte_train::report::journal::read;
use epiphyte_train::{
    Interrupt, Observer, Report, RunConfig, RunOptions, TrainError, train, train_several,
};
use serde_json::{Value, json};

use crate::world::{World, bert};

fn new() -> RunOptions {
    RunOptions::default()
}

fn resume() -> RunOptions {
    RunOptions {
        resume: true,
        ..RunOptions::default()
    }
}

fn overwrite() -> RunOptions {
    RunOptions {
        overwrite: true,
        ..RunOptions::default()
    }
}

fn start(run: &RunConfig, options: &RunOptions) -> Result<Report, TrainError> {
    train(run, options, &Interrupt::default(), &mut Silent)
}

/// Trains until one more checkpoint is saved.
fn one_step(run: &RunConfig) {
    let asked = Interrupt::default();
    asked.request();
    train(run, &resume(), &asked, &mut Silent).unwrap_or_else(|error| panic!("{error}"));
}

/// A LoRA run of 12 steps.
fn lora(world: &World, name: &str) -> RunConfig {
    world.run(name, "lora", &json!({ "r": 2, "lora_dropout": 0.2 }))
}

/// Every file below a directory with its contents.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files.extend(contents(&path)),
            false => {
                files.insert(path.clone(), fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn adapter(run: &RunConfig) -> Vec<u8> {
    fs::read(run.output.join(TENSORS_FILE)).expect("an adapter")
}

fn steps(run: &RunConfig) -> Vec<String> {
    let entries = fs::read_dir(&run.output).expect("an output directory");
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<String> = names
        .filter(|name| name.starts_with("checkpoint-"))
        .collect();
    steps.sort();
    steps
}

#[test]
fn a_directory_with_files_of_others_is_refused_and_stays_as_it_is() {
    let world = World::new();
    for (name, file) in [
        ("readme", "README.md"),
        ("log", LOG),
        ("checkpoint", "checkpoint-100/optimizer.pt"),
        ("peft", CONFIG_FILE),
    ] {
        let run = lora(&world, name);
        let path = run.output.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"the user's").unwrap();
        let before = contents(&run.output);
        for options in [new(), resume(), overwrite()] {
            let error = start(&run, &options).expect_err("a directory of the user's");
            assert!(matches!(error, TrainError::OutputForeign { .. }), "{error}");
            let first = file.split('/').next().unwrap();
            assert!(error.to_string().contains(first), "{error}");
            assert_eq!(contents(&run.output), before, "{name}");
        }
    }
}

const LOG: &str = "log.jsonl";

#[test]
fn what_fails_before_the_first_step_leaves_nothing() {
    let world = World::new();
    let run = RunConfig {
        output: world.run("deep/er", "lora", &json!({})).output,
        ..world.run("deep", "lora", &json!({ "r": 2 }))
    };
    let runs = run.output.ancestors().nth(2).unwrap().to_owned();
    let wrong = [
        RunConfig {
            train_data: "absent.jsonl".into(),
            ..run.clone()
        },
        RunConfig {
            model: "absent".into(),
            ..run.clone()
        },
        RunConfig {
            warmup_ratio: 2.0,
            ..run.clone()
        },
        RunConfig {
            method_settings: serde_json::from_value(json!({ "target_modules": ["none"] })).unwrap(),
            ..run.clone()
        },
    ];
    for wrong in &wrong {
        start(wrong, &new()).expect_err("a mistake");
        assert!(!runs.exists(), "{:?}", contents(&runs));
    }
    start(&run, &new()).unwrap();
    // And with a run there, the run stays as it is.
    let before = contents(&run.output);
    for wrong in &wrong {
        for options in [resume(), overwrite()] {
            start(wrong, &options).expect_err("a mistake");
            assert_eq!(contents(&run.output), before);
        }
    }
}

#[test]
fn checkpoints_of_others_are_neither_removed_nor_replaced() {
    let world = World::new();
    let straight = lora(&world, "straight");
    start(&straight, &new()).unwrap();
    let run = lora(&world, "run");
    one_step(&run);
    let foreign = run.output.join("checkpoint-100/optimizer.pt");
    fs::create_dir_all(foreign.parent().unwrap()).unwrap();
    fs::write(&foreign, b"weights").unwrap();
    start(&run, &resume()).unwrap();
    assert!(adapter(&run) == adapter(&straight));
    assert_eq!(fs::read(&foreign).unwrap(), b"weights");
    assert_eq!(steps(&run), ["checkpoint-100", "checkpoint-12"]);
    start(&run, &overwrite()).unwrap();
    assert_eq!(fs::read(&foreign).unwrap(), b"weights");

    // One where the run would save its own.
    let other = lora(&world, "other");
    one_step(&other);
    fs::rename(foreign.parent().unwrap(), other.output.join("checkpoint-6")).unwrap();
    let error = start(&other, &resume()).expect_err("no place for a checkpoint");
    assert!(
        matches!(error, TrainError::CheckpointForeign { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("checkpoint-6"), "{error}");
    assert_eq!(steps(&other), ["checkpoint-1", "checkpoint-6"]);
}

#[test]
fn overwriting_removes_checkpoints_only_when_the_new_run_begins() {
    let world = World::new();
    let run = lora(&world, "run");
    start(&run, &new()).unwrap();
    let error = start(&run, &new()).expect_err("a run");
    assert!(matches!(error, TrainError::OutputTaken { .. }), "{error}");
    let before = contents(&run.output);
    let misspelt = RunConfig {
        eval_data: Some("absent.jsonl".into()),
        ..run.clone()
    };
    start(&misspelt, &overwrite()).expect_err("absent data");
    assert_eq!(contents(&run.output), before);
    let shorter = RunConfig {
        max_steps: Some(3),
        ..run.clone()
    };
    start(&shorter, &overwrite()).unwrap();
    assert_eq!(steps(&run), ["checkpoint-3"]);
    assert_eq!(read(&run.output.join(LOG)).unwrap().len(), 4);
}

#[test]
fn resuming_without_a_checkpoint_never_replaces_an_adapter() {
    let world = World::new();
    let run = lora(&world, "run");
    start(&run, &new()).unwrap();
    for step in steps(&run) {
        fs::remove_dir_all(run.output.join(step)).unwrap();
    }
    let before = contents(&run.output);
    let other = world.run("run", "ia3", &json!({}));
    for run in [&run, &other] {
        let error = start(run, &resume()).expect_err("nothing to go on with");
        assert!(
            matches!(error, TrainError::NothingToResume { .. }),
            "{error}"
        );
    }
    assert_eq!(contents(&run.output), before);
    // A run that was killed before its first checkpoint has only its log.
    let killed = lora(&world, "killed");
    fs::create_dir_all(&killed.output).unwrap();
    fs::write(killed.output.join(LOG), b"{\"event\":\"st").unwrap();
    start(&killed, &resume()).unwrap();
    assert!(adapter(&killed) == adapter(&run));
}

#[test]
fn a_readme_of_the_users_stays() {
    let world = World::new();
    let run = lora(&world, "run");
    one_step(&run);
    let card = run.output.join("README.md");
    assert!(fs::read_to_string(&card).unwrap().contains("epiphyte"));
    let edited = fs::read_to_string(&card).unwrap() + "my notes\n";
    for text in ["# My notes\nabout epiphyte\n", edited.as_str()] {
        fs::write(&card, text).unwrap();
        start(&run, &resume()).unwrap();
        assert_eq!(fs::read_to_string(&card).unwrap(), text);
    }
}

#[test]
#[cfg(unix)]
fn links_are_never_written_through() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let other = lora(&world, "other");
    start(&other, &new()).unwrap();
    for name in [LOG, "runs", "README.md", CONFIG_FILE, TENSORS_FILE] {
        let run = lora(&world, &format!("linked-{name}"));
        one_step(&run);
        let (path, target) = (run.output.join(name), other.output.join(name));
        match path.is_dir() {
            true => fs::remove_dir_all(&path).unwrap(),
            false => fs::remove_file(&path).unwrap(),
        }
        symlink(target, &path).unwrap();
        let before = contents(&other.output);
        for options in [resume(), overwrite()] {
            let error = start(&run, &options).expect_err("a link");
            assert!(matches!(error, TrainError::OutputLink { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(contents(&other.output), before);
    }
    // The directory itself may be one.
    let run = lora(&world, "link");
    let place = lora(&world, "place").output;
    fs::create_dir(&place).unwrap();
    symlink(&place, &run.output).unwrap();
    start(&run, &new()).unwrap();
    assert!(place.join(CONFIG_FILE).exists());
}

#[test]
fn one_directory_spelt_in_two_ways_is_taken_once() {
    let world = World::new();
    let first = lora(&world, "run");
    let parent = first.output.parent().unwrap();
    for output in [
        parent.join("./run"),
        parent.join("other/../run"),
        first.output.join(""),
    ] {
        fs::create_dir_all(parent.join("other")).unwrap();
        let second = RunConfig {
            output,
            ..first.clone()
        };
        let runs = [first.clone(), second];
        let error = train_several(&runs, &new(), &Interrupt::default(), &mut Silent);
        let error = error.expect_err("one directory").to_string();
        assert!(error.contains("two runs write to"), "{error}");
        assert!(!first.output.exists());
    }
}

/// Begins a second run in the same directory while the first one trains.
struct Second<'a> {
    run: &'a RunConfig,
    refused: usize,
}

impl Observer for Second<'_> {
    fn step(&mut self, _progress: &TrainingProgress) {
        for options in [new(), resume(), overwrite()] {
            let error = start(self.run, &options).expect_err("another trains there");
            assert!(matches!(error, TrainError::OutputInUse { .. }), "{error}");
            self.refused += 1;
        }
    }
}

#[test]
fn only_one_process_trains_in_a_directory() {
    let world = World::new();
    let straight = lora(&world, "straight");
    start(&straight, &new()).unwrap();
    let run = lora(&world, "run");
    let mut second = Second {
        run: &run,
        refused: 0,
    };
    train(&run, &new(), &Interrupt::default(), &mut second).unwrap();
    assert_eq!(second.refused, 3 * 12);
    assert!(adapter(&run) == adapter(&straight));
    assert!(!run.output.join(".epiphyte-lock").exists());
}

#[test]
fn a_run_goes_on_in_a_directory_that_was_moved_and_with_other_logging() {
    let world = World::new();
    let straight = lora(&world, "straight");
    start(&straight, &new()).unwrap();
    let run = lora(&world, "run");
    one_step(&run);
    let moved = RunConfig {
        output: run.output.with_file_name("moved"),
        train_data: run.train_data.with_file_name("copied.jsonl"),
        logging_steps: 5,
        save_total_limit: 2,
        save_steps: Some(4),
        gradient_checkpointing: true,
        ..run.clone()
    };
    fs::rename(&run.output, &moved.output).unwrap();
    fs::copy(&run.train_data, &moved.train_data).unwrap();
    let spelt_otherwise = RunConfig {
        output: moved.output.join("."),
        ..moved.clone()
    };
    start(&spelt_otherwise, &resume()).unwrap();
    assert!(adapter(&moved) == adapter(&straight));
}

#[test]
fn a_run_that_differs_is_not_continued_and_what_differs_is_named() {
    let world = World::new();
    let run = lora(&world, "run");
    for _ in 0..3 {
        one_step(&run);
    }
    let before = contents(&run.output);
    let text = fs::read_to_string(&run.train_data).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let data = |name: &str, text: String| {
        let path = run.train_data.with_file_name(format!("{name}.jsonl"));
        fs::write(&path, text).unwrap();
        RunConfig {
            train_data: path,
            ..run.clone()
        }
    };
    let swapped = |text: &str| {
        let text = text
            .replace("\"good\"", "\"-\"")
            .replace("\"bad\"", "\"good\"");
        text.replace("\"-\"", "\"bad\"")
    };
    let reversed: Vec<&str> = lines.iter().rev().copied().collect();
    let head = HeadKind::Classification { labels: 2 };
    let other_base = world.write_model("other-base", &bert_of_other_weights(), head);
    let mut config = bert();
    config["hidden_act"] = json!("relu");
    let other_config = world.write_model("other-config", &config, head);
    let mut config = bert();
    config["hidden_dropout_prob"] = json!(0.5);
    let other_dropout = world.write_model("other-dropout", &config, head);
    let cases = [
        (
            RunConfig {
                model: other_dropout,
                ..run.clone()
            },
            "`config.json: hidden_dropout_prob` was 0.1 and is 0.5",
        ),
        (
            data("a-word", text.replacen("w1", "w2", 1)),
            "other training examples",
        ),
        (data("labels", swapped(&text)), "other training examples"),
        (
            data("order", reversed.join("\n")),
            "other training examples",
        ),
        (
            data("fewer", lines[1..].join("\n")),
            "other training examples",
        ),
        (
            RunConfig {
                eval_data: None,
                eval_steps: None,
                ..data("renamed", text.replace("\"good\"", "\"worse\""))
            },
            "the classes were bad, good and are bad, worse",
        ),
        (
            RunConfig {
                model: other_base,
                ..run.clone()
            },
            "another base model",
        ),
        (
            RunConfig {
                model: other_config,
                ..run.clone()
            },
            "`config.json: hidden_act` was \"gelu\" and is \"relu\"",
        ),
        (
            RunConfig {
                eval_data: Some(world.opposite()),
                ..run.clone()
            },
            "other evaluation examples",
        ),
        (
            RunConfig {
                learning_rate: Some(1e-4),
                ..run.clone()
            },
            "`learning_rate` was 0.02 and is 0.0001",
        ),
        (
            world.run("run", "lora", &json!({ "r": 4, "lora_dropout": 0.2 })),
            "`rank` was 2 and is 4",
        ),
        (
            RunConfig {
                epochs: 4.0,
                ..run.clone()
            },
            "the run had 12 steps and has 16",
        ),
    ];
    for (other, difference) in cases {
        let error = start(&other, &resume()).expect_err("another run");
        assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
        assert!(error.to_string().contains(difference), "{error}");
        assert_eq!(contents(&run.output), before, "{difference}");
    }
    start(&run, &resume()).unwrap();
}

/// The small BERT with a head that is drawn from a wider distribution, so that all weights differ.
fn bert_of_other_weights() -> Value {
    let mut config = bert();
    config["initializer_range"] = json!(0.3);
    config
}

#[test]
fn a_run_gets_more_epochs_after_its_end() {
    let world = World::new();
    let run = lora(&world, "run");
    start(&run, &new()).unwrap();
    let short = adapter(&run);
    let longer = RunConfig {
        epochs: 5.0,
        ..run.clone()
    };
    let report = start(&longer, &resume()).unwrap();
    assert_eq!((report.steps, report.status), (20, "finished"));
    assert!(adapter(&longer) != short);
    // Once it is longer, it stays longer.
    let error = start(&run, &resume()).expect_err("fewer steps");
    assert!(
        error.to_string().contains("had 20 steps and has 12"),
        "{error}"
    );
    let report = start(&longer, &resume()).unwrap();
    assert_eq!(report.steps, 20);
    // A method of several stages shares its steps among them from the start.
    let staged = world.run("staged", "lt-sft", &json!({ "ft_params_num": 50 }));
    start(&staged, &new()).unwrap();
    let longer = RunConfig {
        epochs: 5.0,
        ..staged
    };
    let error = start(&longer, &resume()).expect_err("stages");
    assert!(matches!(error, TrainError::OtherRun { .. }), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_an_earlier_one() {
    let world = World::new();
    let straight = lora(&world, "straight");
    start(&straight, &new()).unwrap();
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("trainer_state.json", |_| Vec::new()),
        ("trainer_state.json", |text| {
            let text = String::from_utf8(text).unwrap();
            text.replace("\"step\": 4", "\"step\": 5").into_bytes()
        }),
        ("trainer_state.json", |text| {
            let text = String::from_utf8(text).unwrap();
            text.replace("\"steps\": 1", "\"steps\": 2").into_bytes()
        }),
        ("training_state.safetensors", |bytes| {
            bytes[..bytes.len() / 2].to_vec()
        }),
        ("training_state.safetensors", |mut bytes| {
            *bytes.last_mut().unwrap() ^= 1;
            bytes
        }),
    ];
    for (number, (file, damage)) in damages.into_iter().enumerate() {
        let run = RunConfig {
            save_total_limit: 2,
            logging_steps: 3,
            ..lora(&world, &format!("run-{number}"))
        };
        for _ in 0..4 {
            one_step(&run);
        }
        assert!(
            steps(&run).contains(&"checkpoint-4".to_owned()),
            "{:?}",
            steps(&run)
        );
        let path = run.output.join("checkpoint-4").join(file);
        let (before, damaged) = {
            let before = fs::read(&path).unwrap();
            (before.clone(), damage(before))
        };
        assert!(before != damaged, "{file}, {number}");
        fs::write(&path, damaged).unwrap();
        start(&run, &resume()).unwrap();
        assert!(adapter(&run) == adapter(&straight), "{file}, {number}");
    }
    // With no other checkpoint, the damage is named, and nothing begins anew.
    let run = lora(&world, "alone");
    one_step(&run);
    let path = run.output.join("checkpoint-1/training_state.safetensors");
    fs::write(&path, b"").unwrap();
    let error = start(&run, &resume()).expect_err("a damaged checkpoint");
    assert!(matches!(error, TrainError::State { .. }), "{error}");
    assert!(
        error.to_string().contains("training_state.safetensors"),
        "{error}"
    );
}

#[test]
fn parameters_that_are_not_finite_are_never_saved() {
    let world = World::new();
    // One step; the loss and the gradient are finite, and the parameters after it are not.
    let run = RunConfig {
        eval_data: None,
        eval_steps: None,
        max_steps: Some(1),
        warmup_ratio: 0.0,
        learning_rate: Some(3e38),
        weight_decay: 1e3,
        ..lora(&world, "one")
    };
    let error = start(&run, &new()).expect_err("infinite parameters");
    assert!(
        matches!(error, TrainError::NonFinite { step: 1, .. }),
        "{error}"
    );
    assert_eq!(steps(&run), [""; 0]);
    assert!(!run.output.join(TENSORS_FILE).exists());
    // The next try is not blocked by what it left.
    let lower = RunConfig {
        learning_rate: Some(1e-3),
        weight_decay: 0.0,
        ..run
    };
    start(&lower, &new()).unwrap();

    // A good checkpoint stays: the rate rises over the warm-up until a step is too large.
    let run = RunConfig {
        warmup_ratio: 0.99,
        learning_rate: Some(3e38),
        weight_decay: 0.0,
        max_grad_norm: 0.0,
        eval_data: None,
        eval_steps: None,
        save_steps: Some(1),
        save_total_limit: 100,
        ..lora(&world, "rising")
    };
    let error = start(&run, &new()).expect_err("infinite parameters");
    assert!(matches!(error, TrainError::NonFinite { .. }), "{error}");
    for step in steps(&run) {
        let path = run.output.join(&step).join("training_state.safetensors");
        let file = epiphyte_models::Checkpoint::open_file(&path).unwrap();
        for name in file.names() {
            let values = file.tensor(name).unwrap().to_f32().unwrap();
            assert!(
                values.iter().all(|value| value.is_finite()),
                "{step}, {name}"
            );
        }
    }
}
