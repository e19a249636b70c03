//! Evaluation in micro-batches: never more tokens at once than asked for, and always the same
//! scores.

use std::ops::ControlFlow::Continue;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;
use epiphyte_data::{Batches, Order, Table};
use epiphyte_methods::{AdapterModule, by_name};
use epiphyte_models::{Adapter, Embedded, ForwardContext, LoadOptions};
use epiphyte_train::TrainError::NotFinite;
use epiphyte_train::observer::Silent;
use epiphyte_train::scoring::evaluate::predict;
use epiphyte_train::{
    Evaluation, Generation, LoadedAdapter, MergeOptions, RunConfig, TaskKind, generate, merge,
    open_adapter,
};
use serde_json::{Map, json};

use crate::world::World;

/// The base model; notes the most tokens that it embeds at once.
#[derive(Default)]
struct MostTokens(AtomicUsize);

impl Adapter for MostTokens {
    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        self.0.fetch_max(embedded.rows.tokens(), Ordering::Relaxed);
        embedded
    }
}

/// The base of a run, its evaluation data, and that in batches of `size`.
fn open(run: &RunConfig, size: usize) -> (LoadedAdapter, Table, Batches) {
    let read = |path: &Path| Table::read(path, &run.reading().unwrap()).unwrap();
    let (spec, _) = run.task_spec(&read(&run.train_data), &run.model).unwrap();
    let (device, load) = (Device::default(), LoadOptions::default());
    let loaded_adapter = open_adapter(&run.model, None, Some(spec), false, &device, &load).unwrap();
    let table = read(run.eval_data.as_deref().unwrap());
    let batches = loaded_adapter
        .task_model
        .batches(&table, true, size, Order::Sequential);
    let batches = batches.unwrap();
    (loaded_adapter, table, batches)
}

#[test]
fn scores_do_not_depend_on_the_size_of_micro_batches() {
    let world = World::new();
    for run in [
        world.run("bert", "lora", &json!({})),
        world.language_run("qwen", "lora", &json!({})),
    ] {
        let (loaded_adapter, table, batches) = open(&run, 10);
        let longest = batches.examples().iter().map(|example| example.ids.len());
        let longest = longest.max().unwrap();
        let total: usize = batches.examples().iter().map(|it| it.ids.len()).sum();
        let at = |tokens: usize| {
            let most = MostTokens::default();
            let evaluation = Evaluation {
                micro_batch_tokens: Some(tokens),
                ..Evaluation::new(&loaded_adapter.task_model.loaded.model, &most, &batches)
            };
            let rows = loaded_adapter.task_model.rows(&table);
            let scores = run.task.evaluate(&evaluation, &rows, &mut Silent).unwrap();
            let logits = predict(&evaluation, &mut Silent).unwrap();
            let scores: Vec<(String, u64)> = scores
                .metrics
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_bits()))
                .collect();
            (scores, logits, most.0.into_inner())
        };
        let (scores, logits, most) = at(usize::MAX);
        assert_eq!(most, total, "one batch");
        for tokens in [1, 12, 30] {
            let (own_scores, own_logits, most) = at(tokens);
            assert_eq!(own_scores, scores, "{tokens} tokens");
            assert_eq!(own_logits, logits, "{tokens} tokens");
            assert!(most < tokens + longest, "{most} of {tokens} tokens");
        }
    }
}

/// An adapter with a NaN on queries gives an error that says so, in every task and when it is
/// merged.
#[test]
fn what_is_not_finite_is_no_score_and_no_model() {
    let world = World::new();
    for run in [
        world.run("bert", "lora", &json!({})),
        world.language_run("qwen", "lora", &json!({})),
        world.seq2seq_run("t5", "lora", &json!({})),
    ] {
        let (mut loaded_adapter, table, batches) = open(&run, 10);
        let config = by_name("lora").unwrap().configure(Map::new()).unwrap();
        let base = loaded_adapter.task_model.loaded.model.base();
        let module = AdapterModule::new(config, base, &Device::default(), 0).unwrap();
        let param = module.trained().find(|it| it.key().contains("lora_B"));
        let param = param.unwrap();
        param.set_values(vec![f32::NAN; param.count()]);
        loaded_adapter.module = Some(module);

        let evaluation = loaded_adapter.evaluation(&batches);
        let rows = loaded_adapter.task_model.rows(&table);
        let error = run
            .task
            .evaluate(&evaluation, &rows, &mut Silent)
            .unwrap_err();
        let NotFinite { what } = error else {
            panic!("{}: {error}", run.task)
        };
        assert!(what.contains("example"), "{what}");
        if run.task == TaskKind::text() {
            let how = Generation::greedy(2, Vec::new(), 16);
            let model = &loaded_adapter.task_model.loaded.model;
            let adapter = loaded_adapter.adapter();
            let error = generate(model, adapter, &[1, 2], &how, |_| Continue(()));
            assert!(matches!(error, Err(NotFinite { .. })), "{error:?}");
        }

        let output = run.output.with_extension("merged");
        let error = merge(
            &run.model,
            &loaded_adapter,
            &output,
            &MergeOptions::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains(".weight` of the merged model"));
        assert!(!output.exists());
    }
}
