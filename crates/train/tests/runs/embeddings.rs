//! Sentence embeddings: what is learned, what it is scored by, and what is refused.

use burn::tensor::Device;
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::LoadOptions;
use epiphyte_models::heads::{EmbeddingLoss, EmbeddingPooling};
use epiphyte_train::observer::Silent;
use epiphyte_train::scoring::embeddings::cosine;
use epiphyte_train::{
    Embedder, Interrupt, MergeOptions, Report, RunConfig, RunOptions, TaskKind, TrainError, merge,
    open_adapter, train,
};
use serde_json::{Value, json};

use crate::world::World;

/// A text of words from one half of the vocabulary.
fn text(half: usize, number: usize) -> String {
    let words = (0..3 + number % 2).map(|at| format!("w{}", half * 6 + (number * 5 + at * 4) % 6));
    words.collect::<Vec<String>>().join(" ")
}

/// Pairs of texts of one half, with a text of the other as negative, and scores of pairs.
fn rows(numbers: std::ops::Range<usize>) -> Vec<Value> {
    let row = |number: usize| {
        let (half, alike) = (number % 2, !number.is_multiple_of(3));
        json!({
            "anchor": text(half, number), "positive": text(half, number + 3),
            "negative": text(1 - half, number + 1), "sentence1": text(half, number),
            "sentence2": text(if alike { half } else { 1 - half }, number + 2),
            "score": if alike { 0.9 } else { 0.1 },
        })
    };
    numbers.map(row).collect()
}

/// A run over these columns.
fn run(world: &World, name: &str, texts: &[&str], score: Option<&str>) -> RunConfig {
    RunConfig {
        task: TaskKind::embedding(),
        train_data: world.write_data(&format!("{name}-train.jsonl"), &rows(0..24)),
        eval_data: Some(world.write_data(&format!("{name}-eval.jsonl"), &rows(40..52))),
        text_columns: texts.iter().map(|&text| text.to_owned()).collect(),
        label_column: score.map(str::to_owned),
        batch_size: 6,
        epochs: 10.0,
        eval_steps: None,
        gradient_accumulation_steps: 1,
        base_dropout: Some(0.1),
        max_length: None,
        ..world.run(name, "lora", &json!({ "r": 4 }))
    }
}

fn trained(run: &RunConfig) -> Result<Report, TrainError> {
    train(
        run,
        &RunOptions::default(),
        &Interrupt::default(),
        &mut Silent,
    )
}

#[test]
fn texts_that_belong_together_come_near_each_other() {
    let world = World::new();
    type Case<'a> = (
        &'a str,
        &'a [&'a str],
        Option<&'a str>,
        EmbeddingLoss,
        &'a str,
    );
    let cases: [Case<'_>; 4] = [
        (
            "pairs",
            &["anchor", "positive"],
            None,
            EmbeddingLoss::MultipleNegativesRanking,
            "mrr@10",
        ),
        (
            "triplets",
            &["anchor", "positive", "negative"],
            None,
            EmbeddingLoss::MultipleNegativesSymmetricRanking,
            "ndcg@10",
        ),
        (
            "cosent",
            &["sentence1", "sentence2"],
            Some("score"),
            EmbeddingLoss::Cosent,
            "spearman",
        ),
        (
            "cosine",
            &["sentence1", "sentence2"],
            Some("score"),
            EmbeddingLoss::CosineSimilarity,
            "pearson",
        ),
    ];
    for (name, texts, score, loss, metric) in cases {
        let run = RunConfig {
            embedding_loss: Some(loss),
            ..run(&world, name, texts, score)
        };
        let report = trained(&run).unwrap();
        let metrics = report.metrics.unwrap();
        assert!(metrics.get("loss").unwrap().is_finite());
        assert!(metrics.get(metric).is_some(), "{name}: {metrics:?}");
        let apart = |embedder: Embedder| {
            let texts = [text(0, 61), text(0, 62), text(1, 63)];
            let vectors = embedder.embed(&texts).unwrap();
            cosine(&vectors[0], &vectors[1]) - cosine(&vectors[0], &vectors[2])
        };
        let before = apart(Embedder::open(&run.model).unwrap());
        let after = apart(Embedder::open_with_adapter(&run.model, &run.output).unwrap());
        assert!(after > before + 0.05, "{name}: {before}, {after}");
    }
}

/// Every text of a batch is a negative of the others, so a batch is never split.
#[test]
fn micro_batches_change_nothing() {
    let world = World::new();
    let adapters = [None, Some(8)].map(|micro_batch_tokens| {
        let name = format!("{micro_batch_tokens:?}");
        let run = RunConfig {
            micro_batch_tokens,
            max_steps: Some(4),
            ..run(&world, &name, &["anchor", "positive"], None)
        };
        trained(&run).unwrap();
        let embedder = Embedder::open_with_adapter(&run.model, &run.output).unwrap();
        embedder.embed(&[text(0, 1), text(1, 2)]).unwrap()
    });
    assert_eq!(adapters[0], adapters[1]);
}

#[test]
fn a_merged_model_has_the_layout_of_sentence_transformers() {
    let world = World::new();
    let run = RunConfig {
        pooling: Some(EmbeddingPooling::Cls),
        normalize: Some(true),
        max_length: Some(20),
        max_steps: Some(2),
        ..run(&world, "merged", &["anchor", "positive"], None)
    };
    trained(&run).unwrap();
    let file = AdapterFile::open(&run.output).unwrap();
    assert_eq!(file.task_type(), Some("FEATURE_EXTRACTION"));
    // PEFT's names over a base model without head have no prefix.
    let names: Vec<&str> = file.tensors().names().collect();
    assert!(!names.is_empty());
    for name in names {
        assert!(name.starts_with("base_model.model.encoder."), "{name}");
    }
    let (device, load) = (Device::default(), LoadOptions::default());
    let opened = open_adapter(&run.model, Some(file), None, false, &device, &load).unwrap();
    let output = run.output.with_extension("merged");
    let merged = merge(&run.model, &opened, &output, &MergeOptions::default()).unwrap();
    assert!(merged.largest_difference < 1e-4, "{merged:?}");
    for directory in [&run.output, &output] {
        for file in [
            "modules.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
        ] {
            assert!(directory.join(file).is_file(), "{file}");
        }
    }
    let texts = [text(0, 7), text(1, 8)];
    let adapter = Embedder::open_with_adapter(&run.model, &run.output).unwrap();
    let adapter = adapter.embed(&texts).unwrap();
    let merged = Embedder::open(&output).unwrap().embed(&texts).unwrap();
    for (adapter, merged) in adapter.iter().flatten().zip(merged.iter().flatten()) {
        assert!((adapter - merged).abs() < 1e-5, "{adapter}, {merged}");
    }
    let length: f32 = adapter[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
}

#[test]
fn what_cannot_be_learned_from_is_refused() {
    let world = World::new();
    let symmetric = EmbeddingLoss::MultipleNegativesSymmetricRanking;
    type Case<'a> = (
        &'a [&'a str],
        Option<&'a str>,
        Option<EmbeddingLoss>,
        &'a str,
    );
    let cases: [Case<'_>; 5] = [
        (&["anchor"], None, None, "text columns of an anchor"),
        (
            &["anchor", "positive", "negative"],
            Some("score"),
            None,
            "text columns of an anchor",
        ),
        (
            &["anchor", "positive"],
            None,
            Some(EmbeddingLoss::Cosent),
            "needs two text columns and",
        ),
        (
            &["sentence1", "sentence2"],
            Some("score"),
            Some(symmetric),
            "and no --label-column",
        ),
        (&["anchor", "missing"], None, None, "`missing`"),
    ];
    for (number, (texts, score, embedding_loss, words)) in cases.into_iter().enumerate() {
        let run = RunConfig {
            embedding_loss,
            ..run(&world, &format!("refused-{number}"), texts, score)
        };
        let error = trained(&run).unwrap_err();
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message += &source.to_string();
        }
        assert!(message.contains(words), "{message}");
    }
    let classifier = RunConfig {
        pooling: Some(EmbeddingPooling::Cls),
        ..world.run("classifier", "lora", &json!({}))
    };
    let error = trained(&classifier).unwrap_err().to_string();
    assert!(error.contains("`pooling`: it has no use for"), "{error}");
    // What a classifier is asked for is not there.
    let pairs = run(&world, "pairs", &["anchor", "positive"], None);
    trained(&pairs).unwrap();
    let error = epiphyte_train::Classifier::open(&pairs.model, &pairs.output).unwrap_err();
    assert!(matches!(error, TrainError::NoClasses { .. }), "{error}");
}
