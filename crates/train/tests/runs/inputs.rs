//! Examples that do not fit a model: refused with what to do, or shortened where the length is a
//! default.

use std::ops::ControlFlow::Continue;

use burn::tensor::Device;
use epiphyte_data::{Order, Table};
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::{HeadKind, LoadOptions};
use epiphyte_train::observer::Silent;
use epiphyte_train::scoring::evaluate::predict;
use epiphyte_train::{
    Generation, GenerationEnd, Interrupt, LoadedAdapter, RunConfig, RunOptions, TaskSpec,
    TrainError, generate, open_adapter, train,
};
use serde_json::{Value, json};

use crate::world::{World, bert};

/// Methods that take positions before those of the text.
const METHODS: [&str; 3] = ["prompt-tuning", "prefix-tuning", "p-tuning-v2"];

/// Positions of the models.
const POSITIONS: usize = 32;
const VIRTUAL_TOKENS: usize = 4;

fn settings() -> Value {
    json!({ "num_virtual_tokens": VIRTUAL_TOKENS })
}

/// Texts longer than the model's positions.
fn long_texts() -> Vec<Value> {
    let text = |word: &str| vec![word; 2 * POSITIONS].join(" ");
    vec![
        json!({ "text": text("w1"), "label": "good" }),
        json!({ "text": text("w8"), "label": "bad" }),
    ]
}

fn start(run: &RunConfig) -> Result<(), TrainError> {
    let options = RunOptions::default();
    train(run, &options, &Interrupt::default(), &mut Silent).map(|_| ())
}

fn open(run: &RunConfig, spec: Option<TaskSpec>) -> LoadedAdapter {
    let file = AdapterFile::open(&run.output).unwrap();
    let (device, load) = (Device::default(), LoadOptions::default());
    open_adapter(&run.model, Some(file), spec, false, &device, &load).unwrap()
}

#[test]
fn a_length_that_leaves_no_room_for_virtual_tokens_is_refused() {
    let world = World::new();
    let data = world.write_data("long.jsonl", &long_texts());
    for method in METHODS {
        let run = RunConfig {
            train_data: data.clone(),
            max_length: Some(POSITIONS),
            ..world.run(method, method, &settings())
        };
        let error = start(&run).expect_err("too long");
        assert!(
            matches!(
                error,
                TrainError::ExampleTooLong {
                    length: POSITIONS,
                    added: VIRTUAL_TOKENS,
                    limit: POSITIONS,
                }
            ),
            "{error:?}"
        );
        let text = error.to_string();
        assert!(text.contains("max_length") && text.contains("28"), "{text}");
        let run = RunConfig {
            max_length: Some(POSITIONS - VIRTUAL_TOKENS),
            max_steps: Some(1),
            ..world.run(&format!("{method}-fits"), method, &settings())
        };
        start(&run).unwrap();
    }
}

#[test]
fn a_length_that_is_a_default_leaves_room_for_virtual_tokens() {
    let world = World::new();
    let data = world.write_data("long.jsonl", &long_texts());
    for method in METHODS {
        let run = RunConfig {
            train_data: data.clone(),
            eval_data: Some(data.clone()),
            max_length: None,
            max_steps: Some(1),
            ..world.run(method, method, &settings())
        };
        start(&run).unwrap();
        assert_eq!(
            open(&run, None).task_model.spec.max_length,
            POSITIONS - VIRTUAL_TOKENS
        );
    }
}

#[test]
fn a_trained_adapter_refuses_examples_that_are_too_long() {
    let world = World::new();
    let data = world.write_data("long.jsonl", &long_texts());
    for method in METHODS {
        let run = RunConfig {
            max_length: Some(POSITIONS - VIRTUAL_TOKENS),
            max_steps: Some(1),
            ..world.run(method, method, &settings())
        };
        start(&run).unwrap();
        let table = Table::read(&data, &run.reading().unwrap()).unwrap();
        let spec = TaskSpec {
            max_length: POSITIONS,
            ..run.task_spec(&table, &run.model).unwrap().0
        };
        let mut loaded_adapter = open(&run, Some(spec));
        let batches = |loaded_adapter: &LoadedAdapter| {
            let batches = loaded_adapter
                .task_model
                .batches(&table, true, 2, Order::Sequential);
            batches.unwrap()
        };
        let long = batches(&loaded_adapter);
        let evaluation = loaded_adapter.evaluation(&long);
        for error in [
            predict(&evaluation, &mut Silent).map(|_| ()),
            run.task
                .evaluate(
                    &evaluation,
                    &loaded_adapter.task_model.rows(&table),
                    &mut Silent,
                )
                .map(|_| ()),
        ] {
            let error = error.expect_err("too long");
            assert!(
                matches!(error, TrainError::ExampleTooLong { .. }),
                "{error}"
            );
        }
        loaded_adapter.fit_max_length();
        let short = batches(&loaded_adapter);
        let logits = predict(&loaded_adapter.evaluation(&short), &mut Silent).unwrap();
        assert_eq!(logits.len(), 2);
    }
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused_before_it_is_run() {
    let world = World::new();
    for method in METHODS {
        let run = RunConfig {
            max_steps: Some(1),
            ..world.language_run(method, method, &settings())
        };
        start(&run).unwrap();
        let loaded_adapter = open(&run, None);
        let limit = loaded_adapter
            .task_model
            .loaded
            .config
            .facts()
            .max_position_embeddings;
        let limit = limit.unwrap();
        // The adapter acts as the prompt is long; the caller sets no limit of its own.
        let how = Generation::greedy(9, Vec::new(), usize::MAX);
        let model = &loaded_adapter.task_model.loaded.model;
        let continued = |prompt: usize| {
            let prompt = vec![5; prompt];
            generate(model, loaded_adapter.adapter(), &prompt, &how, |_| {
                Continue(())
            })
        };
        let room = limit - VIRTUAL_TOKENS;
        let generated = continued(room - 2).unwrap();
        assert_eq!(generated.ids.len(), 2, "{method}");
        let expected = GenerationEnd::ContextLength {
            limit,
            virtual_tokens: VIRTUAL_TOKENS,
        };
        assert_eq!(generated.end, expected, "{method}");
        let error = continued(room).expect_err("no room");
        assert!(
            matches!(error, TrainError::PromptTooLong { length, limit: found }
                if length == limit && found == limit),
            "{error}"
        );
    }
}

#[test]
fn pairs_need_a_model_with_segments() {
    let world = World::new();
    let mut config = bert();
    config["type_vocab_size"] = json!(1);
    let head = HeadKind::Classification { labels: 2 };
    let model = world.write_model("one_segment", &config, head);
    let rows = [
        json!({ "text": "w1 w2", "other": "w3", "label": "good" }),
        json!({ "text": "w7 w8", "other": "w9", "label": "bad" }),
    ];
    let data = world.write_data("pairs.jsonl", &rows);
    let run = |name: &str, columns: &[&str]| RunConfig {
        model: model.clone(),
        train_data: data.clone(),
        eval_data: None,
        eval_steps: None,
        text_columns: columns.iter().map(|&column| column.to_owned()).collect(),
        max_steps: Some(1),
        ..world.run(name, "lora", &json!({ "r": 2 }))
    };
    let error = start(&run("pairs", &["text", "other"])).expect_err("no second segment");
    assert!(
        matches!(
            error,
            TrainError::NoSuchSegment {
                segment: 1,
                segments: 1
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("type_vocab_size"), "{error}");
    start(&run("single", &["text"])).unwrap();
}
