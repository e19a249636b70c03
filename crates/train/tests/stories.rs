//! A language model that was really trained: stories260K of llama2.c, 260,032 parameters, in
//! Hugging Face's layout. Its tokens and numbers were made by llama2.c and by a reference in f64.
//!
//! The model is outside the project, in `../shared/data`.

use std::fs;
use std::ops::ControlFlow::Continue;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_models::{
    AdapterBatch, HeadKind, Identity, LoadOptions, Loaded, Targets, Tokens, load,
};
use epiphyte_ops::Sequences;
use epiphyte_train::{Generation, generate};
use serde::Deserialize;

/// How near logits and the mean loss must be to f64, absolute.
const TOLERANCE: f64 = 1e-4;

/// `golden_numbers.json`.
#[derive(Deserialize)]
struct Golden {
    first_step_logits_0_7: Vec<f64>,
    mean_nll_of_golden: f64,
    n_tokens: usize,
}

struct Stories {
    loaded: Loaded,
    golden: Golden,
    /// The beginning of the sequence and 256 greedy tokens.
    ids: Vec<u32>,
}

impl Stories {
    fn open() -> Self {
        let dir = folder();
        let ids = fs::read_to_string(dir.join("greedy_golden_ids.txt")).expect("ids");
        let numbers = fs::read_to_string(dir.join("golden_numbers.json")).expect("numbers");
        let task = HeadKind::LanguageModel;
        Self {
            loaded: load(
                &dir.join("hf"),
                task,
                &Device::default(),
                &LoadOptions::default(),
            )
            .expect("a model"),
            golden: serde_json::from_str(&numbers).expect("JSON"),
            ids: ids
                .split_whitespace()
                .map(|id| id.parse().expect("a number"))
                .collect(),
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/checkpoints/stories260K")
}

#[test]
#[ignore = "needs ../shared/data"]
fn greedy_generation_gives_the_golden_tokens() {
    let stories = Stories::open();
    let facts = stories.loaded.config.facts();
    let limit = facts.max_position_embeddings.expect("a limit");
    let how = Generation::greedy(stories.golden.n_tokens, vec![2], limit);
    let (prompt, expected) = stories.ids.split_at(1);
    let model = &stories.loaded.model;
    let generated =
        generate(model, &Identity, prompt, &how, |_| Continue(())).expect("a language model");
    assert_eq!(expected.len(), stories.golden.n_tokens);
    assert_eq!(generated.ids, expected);
}

#[test]
#[ignore = "needs ../shared/data"]
fn logits_and_loss_are_those_of_the_f64_reference() {
    let stories = Stories::open();
    let Stories {
        loaded,
        golden,
        ids,
    } = &stories;
    let model = &loaded.model;
    let type_ids = vec![0; ids.len()];
    let tokens = |length: usize| {
        let sequences = Sequences::new(vec![0, length]);
        Tokens::new(&ids[..length], &type_ids[..length], sequences)
    };

    let first = tokens(1);
    let hidden = model.hidden(&first, &Identity);
    let head = model.language_head().expect("a language model");
    let logits = head.forward(hidden.states, &hidden.rows, &AdapterBatch::base(&first));
    let logits = logits
        .try_into_vec_as::<f32>()
        .expect("f32 that can be read");
    assert_eq!(golden.first_step_logits_0_7.len(), 8);
    for (token, (&found, expected)) in logits.iter().zip(&golden.first_step_logits_0_7).enumerate()
    {
        assert!(
            (f64::from(found) - expected).abs() < TOLERANCE,
            "token {token}: {found}, expected {expected}"
        );
    }

    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let loss = model.loss(&tokens(ids.len()), Targets::Tokens(&labels), 0.0, &Identity);
    let loss = loss.expect("there are targets");
    assert_eq!(loss.targets, golden.n_tokens);
    let (found, expected) = (
        f64::from(loss.mean.into_scalar::<f32>()),
        golden.mean_nll_of_golden,
    );
    assert!(
        (found - expected).abs() < TOLERANCE,
        "loss {found}, expected {expected}"
    );
}
