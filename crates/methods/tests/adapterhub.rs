//! Adapters as AdapterHub computes them: the same weights give the same hidden states.
//!
//! `tests/parity/make_adapterhub.py` made the numbers with PyPI's `adapters`, on an encoder with
//! norms after its blocks and on a decoder with norms before them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use epiphyte_methods::{AdapterModule, by_name};
use epiphyte_models::{Checkpoint, HeadKind, LoadOptions, Tokens, load};
use epiphyte_ops::Sequences;
use serde::Deserialize;
use serde_json::{Map, Value};

/// How near hidden states must be, absolute; they are of the order of one.
const TOLERANCE: f32 = 2e-5;

#[derive(Deserialize)]
struct Case {
    method: String,
    settings: Map<String, Value>,
}

#[test]
fn adapters_compute_what_those_of_adapterhub_do() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapterhub");
    for base in ["bert", "llama"] {
        let directory = directory.join(base);
        let head = HeadKind::Classification { labels: 2 };
        let device = Device::default();
        let model = load(&directory, head, &device, &LoadOptions::default());
        let model = model.unwrap().model;
        let golden = Checkpoint::open_file(&directory.join("cases.safetensors")).unwrap();
        let cases = std::fs::read(directory.join("cases.json")).unwrap();
        let cases: BTreeMap<String, Case> = serde_json::from_slice(&cases).unwrap();
        let ids = [3, 7, 1, 19, 4, 25, 6, 2, 11, 28, 9, 5];
        let tokens = Tokens::new(&ids, &[0; 12], Sequences::new(vec![0, 5, 8, 12]));
        let expected = |case: &str| {
            let states = golden.to_f32(&format!("{case}/states"), &[12, 16]);
            states.unwrap()
        };
        let distance = |a: &[f32], b: &[f32]| {
            let pairs = a.iter().zip(b);
            pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
        };
        let plain = expected("base");
        assert!(cases.len() >= 9);
        for (name, Case { method, settings }) in cases {
            let config = by_name(&method).unwrap().configure(settings).unwrap();
            let module = AdapterModule::new(config, model.base(), &device, 0).unwrap();
            let mut found = 0;
            for param in module.parameters().stored() {
                let key = format!("{name}/{}", param.key());
                let values = golden.to_f32(&key, param.shape());
                param.set_values(values.unwrap_or_else(|error| panic!("{base} {error}")));
                found += 1;
            }
            let own = golden
                .names()
                .filter(|key| key.starts_with(&format!("{name}/")));
            assert_eq!(found + 1, own.count(), "{base} {name}");
            module.parameters().derive(false);
            let states = model.hidden(&tokens, &module).states;
            let states = states.try_into_vec_as::<f32>().unwrap();
            let expected = expected(&name);
            let difference = distance(&states, &expected);
            assert!(difference < TOLERANCE, "{base} {name}: {difference}");
            assert!(
                distance(&plain, &expected) > 0.01,
                "{base} {name} does nothing"
            );
        }
    }
}
