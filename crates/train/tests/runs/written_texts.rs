//! Evaluations that score what the model writes.

use std::collections::BTreeMap;

use burn::tensor::Device;
use epiphyte_data::Table;
use epiphyte_methods::file::{AdapterFile, TENSORS_FILE};
use epiphyte_models::LoadOptions;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_train::observer::Silent;
use epiphyte_train::report::account::RunAccount;
use epiphyte_train::report::journal::{Record, read};
use epiphyte_train::scoring::metrics::Metrics;
use epiphyte_train::scoring::metrics::texts::ScoredText;
use epiphyte_train::scoring::written_texts::TextEvaluation;
use epiphyte_train::{
    Generation, Interrupt, Report, RunConfig, RunOptions, TrainError, dry_run, open_adapter, plan,
    train,
};
use serde_json::{Value, json};

use crate::world::World;

/// A prompt with two rows, and two with one each. A completion follows its prompt with nothing
/// between.
const ROWS: [(&str, &str); 4] = [
    ("w0 w1", " w2 w3"),
    ("w6 w7", " w8"),
    ("w0 w1", " w2"),
    ("w4", " w5 w4"),
];

/// Completions of prompts by a decoder, and targets of sources by an encoder-decoder: 40 steps over
/// [`ROWS`], evaluated on them after every fourth.
fn runs(world: &World, name: &str) -> [RunConfig; 2] {
    let rows = ROWS.map(|(text, target)| json!({ "text": text, "target": target }));
    let data = world.write_data(&format!("{name}.jsonl"), &rows);
    let writing = |run: RunConfig| RunConfig {
        output: run.output.with_file_name(format!("{name}-{}", run.task)),
        train_data: data.clone(),
        eval_data: Some(data.clone()),
        batch_size: 4,
        eval_batch_size: Some(2),
        max_steps: Some(40),
        eval_steps: Some(4),
        metrics: ["chrf", "exact-match"].map(|it| it.parse().unwrap()).into(),
        max_new_tokens: 6,
        base_dropout: Some(0.0),
        metric_for_best_model: Some("chrf".to_owned()),
        load_best_model_at_end: true,
        ..run
    };
    let decoder = RunConfig {
        text_columns: Vec::new(),
        prompt_column: vec!["text".to_owned()],
        completion_column: Some("target".to_owned()),
        ..world.language_run(name, "full", &json!({}))
    };
    let encoder_decoder = world.seq2seq_run(name, "full", &json!({}));
    [writing(decoder), writing(encoder_decoder)]
}

fn trained(run: &RunConfig, resume: bool, interrupt: &Interrupt) -> Report {
    let options = RunOptions {
        resume,
        ..RunOptions::default()
    };
    train(run, &options, interrupt, &mut Silent).unwrap_or_else(|error| panic!("{error}"))
}

fn evaluations(run: &RunConfig) -> Vec<(u64, bool, Metrics)> {
    let records = read(&run.output.join("log.jsonl")).unwrap();
    let evaluations = records.into_iter().filter_map(|record| match record {
        Record::Evaluation(record) => Some((record.step, record.is_best, record.metrics)),
        Record::Step(_) => None,
    });
    evaluations.collect()
}

#[test]
fn scores_are_those_of_the_texts_that_the_saved_adapter_writes() {
    let world = World::new();
    for run in runs(&world, "straight") {
        let report = trained(&run, false, &Interrupt::default());
        let all = evaluations(&run);
        let steps = all.iter().map(|(step, ..)| *step);
        assert!(steps.eq((4..=40).step_by(4)), "{all:?}");
        let chrf: Vec<f64> = all.iter().map(|it| it.2.get("chrf").unwrap()).collect();
        let best = chrf.iter().copied().fold(f64::MIN, f64::max);
        let scores = report.metrics.unwrap();
        assert_eq!(scores.get("chrf"), Some(best), "{}: {chrf:?}", run.task);
        assert!(best > 0.0 && chrf.iter().any(|&it| it < best), "{chrf:?}");
        let names = scores.iter().map(|(name, _)| name);
        assert!(names.eq(run.scores(None)), "{scores:?}");

        let file = AdapterFile::open(&run.output).unwrap();
        let (device, load) = (Device::default(), LoadOptions::default());
        let loaded = open_adapter(&run.model, Some(file), None, false, &device, &load).unwrap();
        let task_model = &loaded.task_model;
        let table = Table::read(&run.train_data, &task_model.spec.reading().unwrap()).unwrap();
        let (config, tokenizer) = (&task_model.loaded.config, &task_model.tokenizer);
        let special = GenerationConfig::open(&run.model, config).unwrap();
        let generation = Generation {
            max_new_tokens: 6,
            ..Generation::of_model(&special, config, tokenizer, false).unwrap()
        };
        let rows = task_model.rows(&table);
        let texts =
            TextEvaluation::new(&rows, None, generation, Vec::new(), Vec::new(), None).unwrap();
        let model = &task_model.loaded.model;
        let written = texts.write(model, loaded.adapter(), tokenizer, 1, &mut Silent);
        let written = written.unwrap();
        let references = [&[" w2 w3", " w2"][..], &[" w8"], &[" w5 w4"]];
        let references = references.map(|it| it.iter().map(|&it| it.to_owned()).collect());
        let scored = written.iter().zip::<&[Vec<String>; 3]>(&references);
        let scored = scored.map(|(written, references)| ScoredText {
            text: &written.text,
            references,
        });
        let scored: Vec<ScoredText<'_>> = scored.collect();
        assert_eq!(scored.len(), 3);
        for metric in &run.metrics {
            for (name, value) in metric.scores(&scored, None).unwrap().iter() {
                assert_eq!(scores.get(name), Some(value), "{}: {name}", run.task);
            }
        }
        let account = RunAccount::read(&run.output).unwrap().unwrap();
        let cost = account.cost.writing.unwrap();
        let tokens: usize = written.iter().map(|it| it.tokens).sum();
        assert_eq!((cost.texts, cost.tokens), (3, tokens));
    }
}

#[test]
fn a_run_that_is_stopped_after_every_step_ends_with_the_same_bytes() {
    let world = World::new();
    let straight = runs(&world, "straight");
    let pieces = runs(&world, "pieces");
    for (straight, pieces) in straight.iter().zip(&pieces) {
        let whole = trained(straight, false, &Interrupt::default());
        let asked = Interrupt::default();
        asked.request();
        let reports = (0..40).map(|step| trained(pieces, step > 0, &asked));
        let reports: Vec<Report> = reports.collect();
        let last = reports.last().unwrap();
        assert_eq!(last.status, "finished");
        assert_eq!(last.metrics, whole.metrics);
        assert_eq!(evaluations(pieces), evaluations(straight));
        let bytes = |run: &RunConfig| std::fs::read(run.output.join(TENSORS_FILE)).unwrap();
        assert!(bytes(pieces) == bytes(straight), "{}", straight.task);
        let other = RunConfig {
            max_new_tokens: 7,
            ..pieces.clone()
        };
        let options = RunOptions {
            resume: true,
            ..RunOptions::default()
        };
        let error = train(&other, &options, &Interrupt::default(), &mut Silent).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("`max_new_tokens` was 6 and is 7"),
            "{error}"
        );
    }
}

#[test]
fn a_dry_run_counts_the_texts_and_a_plan_has_their_time() {
    let world = World::new();
    let [run, _] = runs(&world, "planned");
    let options = RunOptions::default();
    let found = dry_run(std::slice::from_ref(&run), &options).unwrap();
    assert_eq!(found[0].texts, Some(3));
    let settings: BTreeMap<String, Value> = found[0]
        .settings
        .iter()
        .map(|setting| (setting.name.clone(), setting.value.clone()))
        .collect();
    assert_eq!(settings["metrics"], json!(["chrf", "exact-match"]));
    assert_eq!(settings["max_new_tokens"], 6);
    assert!(!run.output.exists());

    let with = plan(&run, &options, 3, None).unwrap();
    let loss_alone = RunConfig {
        metrics: Vec::new(),
        max_new_tokens: RunConfig::default().max_new_tokens,
        metric_for_best_model: None,
        ..run.clone()
    };
    let without = plan(&loss_alone, &options, 3, None).unwrap();
    assert_eq!(without.dry_run.texts, None);
    // A text takes several forward passes, a loss one.
    assert!(with.evaluation_seconds > without.evaluation_seconds);
}

#[test]
fn what_cannot_be_written_or_compared_is_refused_before_the_first_step() {
    let world = World::new();
    let [run, _] = runs(&world, "refused");
    let rows = ["w1", &"w1 ".repeat(70)].map(|text| json!({ "text": text, "target": "w2" }));
    let long = world.write_data("long.jsonl", &rows);
    let plain = RunConfig {
        text_columns: vec!["text".to_owned()],
        prompt_column: Vec::new(),
        completion_column: None,
        ..run.clone()
    };
    let too_long = RunConfig {
        eval_data: Some(long),
        max_length: Some(32),
        ..run.clone()
    };
    for (run, words) in [
        (plain, "row 1 of "),
        (too_long, "prompt 2: the prompt has 7"),
    ] {
        let refused = |error: TrainError| {
            assert!(error.to_string().contains(words), "{error}");
        };
        let options = RunOptions::default();
        refused(dry_run(std::slice::from_ref(&run), &options).unwrap_err());
        refused(train(&run, &options, &Interrupt::default(), &mut Silent).unwrap_err());
        assert!(!run.output.exists());
    }
}
