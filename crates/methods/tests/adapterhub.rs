//! Adapters as AdapterHub computes them: the same weights give the same hidden states, and files go
//! both ways.
//!
//! `tests/parity/make_adapterhub.py` made the numbers and the files with PyPI's `adapters`, on an
//! encoder with norms after its blocks and on a decoder with norms before them.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use epiphyte_methods::file::adapterhub;
use epiphyte_methods::{AdapterModule, by_name};
use epiphyte_models::{Checkpoint, HeadKind, LoadOptions, Loaded, Tokens, load};
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

fn open(base: &str) -> (std::path::PathBuf, Loaded) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/adapterhub");
    let directory = directory.join(base);
    let head = HeadKind::Classification { labels: 2 };
    let loaded = load(
        &directory,
        head,
        &Device::default(),
        &LoadOptions::default(),
    );
    (directory, loaded.unwrap())
}

/// The tensors of a file by name, without what stands before the first layer's.
fn tensors(path: &Path, base_prefix: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = Checkpoint::open_file(path).unwrap();
    let tensors = file.names().map(|name| {
        let tensor = file.tensor(name).unwrap();
        let name = name.strip_prefix(base_prefix).unwrap_or(name);
        (
            name.to_owned(),
            (tensor.shape.to_vec(), tensor.to_f32().unwrap()),
        )
    });
    tensors.collect()
}

/// A file of theirs computes what they compute, and what is written of it is what they wrote.
#[test]
fn files_of_adapterhub_are_read_and_written() {
    let device = Device::default();
    for base in ["bert", "llama"] {
        let (directory, loaded) = open(base);
        let (model, family) = (&loaded.model, loaded.config.family());
        let golden = Checkpoint::open_file(&directory.join("cases.safetensors")).unwrap();
        let ids = [3, 7, 1, 19, 4, 25, 6, 2, 11, 28, 9, 5];
        let tokens = Tokens::new(&ids, &[0; 12], Sequences::new(vec![0, 5, 8, 12]));
        let mut cases = 0;
        for entry in std::fs::read_dir(directory.join("saved")).unwrap() {
            let theirs = entry.unwrap().path();
            let case = theirs.file_name().unwrap().to_str().unwrap().to_owned();
            let read = |directory: &Path| {
                let module = adapterhub::read(directory, model.base(), family, &device);
                module.unwrap_or_else(|error| panic!("{base} {case}: {error}"))
            };
            let module = read(&theirs);
            let states = |module: &AdapterModule| {
                let states = model.hidden(&tokens, module).states;
                states.try_into_vec_as::<f32>().unwrap()
            };
            let found = states(&module);
            let expected = golden.to_f32(&format!("{case}/states"), &[12, 16]).unwrap();
            let distances = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let distance = distances.fold(0.0f32, f32::max);
            assert!(distance < TOLERANCE, "{base} {case}: {distance}");

            let ours = tempfile::tempdir().unwrap();
            adapterhub::write(ours.path(), "a", &module, model.base(), family).unwrap();
            assert_eq!(states(&read(ours.path())), found, "{base} {case}");
            let file = "adapter.safetensors";
            let prefix = model.base().prefix;
            assert!(
                tensors(&ours.path().join(file), prefix) == tensors(&theirs.join(file), prefix),
                "{base} {case}"
            );
            let config = |directory: &Path| {
                let text = std::fs::read(directory.join("adapter_config.json")).unwrap();
                let json: Value = serde_json::from_slice(&text).unwrap();
                let mut config = json["config"].as_object().unwrap().clone();
                // What training starts with is not known of a finished adapter.
                config.retain(|key, _| {
                    !key.starts_with("init_weights") && !key.starts_with("phm_c_")
                });
                for value in config.values_mut() {
                    if let Some(number) = value.as_f64() {
                        *value = number.into();
                    }
                }
                config
            };
            assert_eq!(config(ours.path()), config(&theirs), "{base} {case}");
            cases += 1;
        }
        assert!(cases >= 9, "{cases}");
    }
}

/// Changes of a file, each with words of the error that it leads to.
#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let (directory, loaded) = open("bert");
    let (base, family) = (loaded.model.base(), loaded.config.family());
    let theirs = directory.join("saved/seq_bn");
    let refused = |change: &dyn Fn(&mut Value)| {
        let changed = tempfile::tempdir().unwrap();
        let text = std::fs::read(theirs.join("adapter_config.json")).unwrap();
        let mut json: Value = serde_json::from_slice(&text).unwrap();
        change(&mut json);
        std::fs::write(changed.path().join("adapter_config.json"), json.to_string()).unwrap();
        let file = "adapter.safetensors";
        std::fs::copy(theirs.join(file), changed.path().join(file)).unwrap();
        let read = adapterhub::read(changed.path(), base, family, &Device::default());
        read.unwrap_err().to_string()
    };
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 7] = [
        (
            |json| json["model_type"] = "roberta".into(),
            "`model_type` is",
        ),
        (
            |json| json["hidden_size"] = 32.into(),
            "`hidden_size` is 32",
        ),
        (|json| json["name"] = "b".into(), "adapters.b.adapter_down"),
        (
            |json| json["config"]["use_gating"] = true.into(),
            "no method here",
        ),
        (
            |json| json["config"]["unknown"] = true.into(),
            "no method here",
        ),
        (|json| json["config"] = "seq_bn".into(), "no object"),
        (
            |json| json["config"]["mh_adapter"] = true.into(),
            "no method here",
        ),
    ];
    for (change, words) in cases {
        let error = refused(&change);
        assert!(error.contains(words), "{words}: {error}");
    }
}
