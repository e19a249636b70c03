//! Runs over a base that is quantized, when it is loaded or in its files.

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use epiphyte_io::safetensors_file::{Values, write_f32, write_values};
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::{Checkpoint, LoadOptions};
use epiphyte_ops::Quantization;
use epiphyte_train::observer::Silent;
use epiphyte_train::{
    Interrupt, LoadedAdapter, MergeOptions, RunConfig, RunOptions, merge, open_adapter, quantize,
    train,
};
use serde_json::{Value, json};

use crate::world::World;

const ALL: [Quantization; 4] = [
    Quantization::Nf4,
    Quantization::Fp4,
    Quantization::Int8,
    Quantization::Int4,
];

fn start(run: &RunConfig) {
    train(
        run,
        &RunOptions::default(),
        &Interrupt::default(),
        &mut Silent,
    )
    .unwrap();
}

fn open(model: &Path, adapter: &Path, quantization: Option<Quantization>) -> LoadedAdapter {
    let file = AdapterFile::open(adapter).unwrap();
    let options = LoadOptions {
        quantization,
        ..LoadOptions::default()
    };
    let device = Device::default();
    open_adapter(model, Some(file), None, true, &device, &options).unwrap()
}

#[test]
fn an_adapter_records_its_base_and_merges_into_what_was_decoded() {
    let world = World::new();
    for quantization in ALL {
        let run = RunConfig {
            quantization: Some(quantization),
            max_steps: Some(2),
            ..world.run(quantization.name(), "lora", &json!({ "r": 2 }))
        };
        start(&run);
        let file = AdapterFile::open(&run.output).unwrap();
        let recorded = file.provenance().unwrap().base_quantization;
        assert_eq!(recorded, Some(quantization));
        let loaded = open(&run.model, &run.output, Some(quantization));
        let base = loaded.task_model.loaded.model.base();
        let changed: Vec<&str> = base
            .tensors()
            .iter()
            .filter(|(_, tensor)| tensor.quantization().is_some())
            .map(|(name, _)| name.as_str())
            .collect();
        assert!(changed.len() > 2 && changed.iter().all(|name| name.contains("layer.")));
        let output = run.output.with_extension("merged");
        let merged = merge(&run.model, &loaded, &output, &MergeOptions::default()).unwrap();
        assert!(merged.largest_difference < 1e-4, "{merged:?}");
    }
}

/// A quantized directory is the base that `--quantization` makes, to the last bit of an adapter
/// that is trained over it, and merges into plain weights.
#[test]
fn a_quantized_directory_is_the_base_quantized_when_it_is_loaded() {
    let world = World::new();
    for quantization in [Quantization::Nf4, Quantization::Fp4, Quantization::Int8] {
        let run = RunConfig {
            quantization: Some(quantization),
            max_steps: Some(3),
            ..world.run(
                &format!("loaded-{quantization}"),
                "lora",
                &json!({ "r": 2 }),
            )
        };
        start(&run);
        let directory = run.output.with_extension("quantized");
        let quantized = quantize(&run.model, &directory, quantization, false).unwrap();
        assert!(quantized.weights > 2 && quantized.bytes < quantized.bytes_before);
        let most = if quantization == Quantization::Int8 {
            0.01
        } else {
            0.15
        };
        let error = quantized.relative_error;
        assert!(error > 1e-4 && error < most, "{error}");
        let of_directory = RunConfig {
            model: directory.clone(),
            quantization: None,
            output: run.output.with_extension("adapter"),
            ..run.clone()
        };
        start(&of_directory);
        let bytes = |run: &RunConfig| {
            let tensors = Checkpoint::open_file(&run.output.join("adapter_model.safetensors"));
            let tensors = tensors.unwrap();
            let names = tensors.names().map(str::to_owned);
            let values = |name: String| tensors.tensor(&name).unwrap().bytes().into_owned();
            names
                .map(|name| (name.clone(), values(name)))
                .collect::<Vec<_>>()
        };
        assert!(bytes(&run) == bytes(&of_directory), "{quantization}");
        let loaded = open(&directory, &of_directory.output, None);
        let output = run.output.with_extension("merged");
        let merged = merge(&directory, &loaded, &output, &MergeOptions::default()).unwrap();
        assert!(merged.largest_difference < 1e-4, "{merged:?}");
        let config = fs::read_to_string(output.join("config.json")).unwrap();
        assert!(!config.contains("quantization_config"));
        let tensors = Checkpoint::open(&output).unwrap();
        assert!(
            tensors
                .names()
                .all(|name| !name.contains("absmax") && !name.contains("SCB"))
        );
    }
}

/// Over as many directions as a weight has, LoftQ gives back all that quantization took; over one,
/// a part, whatever the scaling.
#[test]
fn loftq_gives_back_what_quantization_took() {
    let world = World::new();
    let left = |name: &str, settings: Value| {
        let run = RunConfig {
            quantization: Some(Quantization::Nf4),
            max_steps: Some(1),
            learning_rate: Some(1e-12),
            ..world.run(name, "lora", &settings)
        };
        start(&run);
        let file = AdapterFile::open(&run.output).unwrap();
        assert_eq!(file.config().settings()["init_lora_weights"], json!(true));
        let loaded = open(&run.model, &run.output, run.quantization);
        let base = loaded.task_model.loaded.model.base();
        let module = loaded.module.as_ref().unwrap();
        let values = |flat: Tensor<1>| flat.try_into_vec_as::<f32>().unwrap();
        let norm = |one: &[f32], other: &[f32]| {
            let squares = one
                .iter()
                .zip(other)
                .map(|(one, other)| (one - other).powi(2));
            squares.sum::<f32>().sqrt()
        };
        let mut shares = Vec::new();
        let quantized = base
            .tensors()
            .iter()
            .filter(|(_, it)| it.quantization().is_some());
        for (name, tensor) in quantized {
            if let Some(merged) = module.merged(name, base).unwrap() {
                let before = values(tensor.to_unquantized_flat());
                let lost = norm(&before, &values(tensor.to_flat()));
                shares.push(norm(&before, &values(merged)) / lost);
            }
        }
        assert!(!shares.is_empty());
        shares
    };
    let all = json!({ "init_lora_weights": "loftq", "r": 16, "alpha": 48 });
    let shares = left("all", all);
    assert!(shares.iter().all(|share| *share < 1e-3), "{shares:?}");
    let one = json!({ "init_lora_weights": "loftq", "r": 1, "alpha": 3 });
    let shares = left("one", one);
    assert!(
        shares.iter().all(|share| (0.1..0.99).contains(share)),
        "{shares:?}"
    );

    let run = world.run("f32", "lora", &json!({ "init_lora_weights": "loftq" }));
    let (options, interrupt) = (RunOptions::default(), Interrupt::default());
    let error = train(&run, &options, &interrupt, &mut Silent).unwrap_err();
    assert!(error.to_string().contains("--quantization nf4"), "{error}");
}

#[test]
fn what_cannot_be_quantized_is_refused_with_the_reason() {
    let world = World::new();
    let run = world.run("run", "lora", &json!({}));
    let at = |name: &str| run.output.with_extension(name);
    let error = quantize(&run.model, &at("int4"), Quantization::Int4, false).unwrap_err();
    assert!(error.to_string().contains("--quantization int4"), "{error}");
    let nf4 = at("nf4");
    quantize(&run.model, &nf4, Quantization::Nf4, false).unwrap();
    let error = quantize(&nf4, &at("again"), Quantization::Nf4, false).unwrap_err();
    assert!(error.to_string().contains("quantized already"), "{error}");
    let load = |model: &Path, quantization| {
        let run = RunConfig {
            model: model.to_owned(),
            quantization,
            output: at("refused"),
            ..run.clone()
        };
        let (options, interrupt) = (RunOptions::default(), Interrupt::default());
        train(&run, &options, &interrupt, &mut Silent)
            .unwrap_err()
            .to_string()
    };
    let error = load(&nf4, Some(Quantization::Int8));
    assert!(error.contains("is quantized to nf4 already"), "{error}");

    // Parts that are missing or do not fit.
    let weights = nf4.join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let edit = |leave: &dyn Fn(&str) -> bool, cut: &dyn Fn(&str) -> usize| {
        fs::write(&weights, &whole).unwrap();
        let file = Checkpoint::open_file(&weights).unwrap();
        let tensors = file.names().filter(|name| leave(name)).map(|name| {
            let tensor = file.tensor(name).unwrap();
            let (mut shape, mut bytes) = (tensor.shape.to_vec(), tensor.bytes().into_owned());
            if let cut @ 1.. = cut(name) {
                shape[0] -= cut;
                bytes.truncate(bytes.len() - cut);
            }
            (
                name.to_owned(),
                shape,
                Values::Bytes(tensor.dtype, bytes.into()),
            )
        });
        write_values(&weights, tensors.collect::<Vec<_>>()).unwrap();
        load(&nf4, None)
    };
    let error = edit(&|name| !name.ends_with(".absmax"), &|_| 0);
    assert!(error.contains(".absmax` is missing"), "{error}");
    let error = edit(&|_| true, &|name| usize::from(name.ends_with(".absmax")));
    assert!(error.contains("`scales` has"), "{error}");
    let error = edit(&|_| true, &|name| {
        2 * usize::from(name.ends_with("bitsandbytes__nf4"))
    });
    assert!(error.contains("quant_state"), "{error}");
}

/// Squares of such weights are beyond single precision.
#[test]
fn the_error_of_large_weights_is_a_number() {
    let world = World::new();
    let run = world.run("run", "lora", &json!({}));
    let path = run.model.join("model.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    let scaled = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let factor = if name.ends_with("query.weight") {
            1e30
        } else {
            1.0
        };
        let values = tensor.to_f32().unwrap().into_iter();
        let values: Vec<f32> = values.map(|value| value * factor).collect();
        (name.to_owned(), tensor.shape.to_vec(), values)
    };
    let tensors: Vec<_> = file.names().map(scaled).collect();
    let tensors = tensors
        .iter()
        .map(|(name, shape, values)| (name.as_str(), shape.clone(), move || values.clone()));
    write_f32(&path, tensors).unwrap();
    // Int8 goes by way of f16, as in bitsandbytes, which such weights are beyond too.
    for (quantization, most) in [(Quantization::Nf4, 0.2), (Quantization::Int8, 1.0)] {
        let output = run.output.with_extension(quantization.name());
        let quantized = quantize(&run.model, &output, quantization, false).unwrap();
        let error = quantized.relative_error;
        assert!(error > 0.0 && error <= most, "{quantization}: {error}");
    }
}
