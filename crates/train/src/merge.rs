//! An adapter folded into its base: a plain Hugging Face directory that needs no adapter.

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use epiphyte_io::FileError;
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::AdapterModule;
use epiphyte_models::{
    Adapter, AdapterBatch, DecoderTokens, HeadKind, Identity, LoadOptions, Model, ModelError,
    Tokens, load,
};
use epiphyte_ops::Sequences;
use serde::Serialize;

use crate::TrainError;
use crate::run::LoadedAdapter;

/// What merging did.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// Tensors that changed.
    pub changed_tensors: usize,
    /// Tensors written.
    pub tensors: usize,
    /// The largest difference of logits on probe inputs between base with adapter and merged model.
    pub largest_difference: f64,
}

/// Writes the base with the adapter folded in to `output`: `model.safetensors`, and the other files
/// of the base's directory as they are.
///
/// # Errors
/// If the method cannot be merged, or files cannot be written.
pub fn merge(
    model_dir: &Path,
    loaded_adapter: &LoadedAdapter,
    output: &Path,
) -> Result<Merged, TrainError> {
    let LoadedAdapter {
        task_model,
        module: Some(module),
    } = loaded_adapter
    else {
        return Err(TrainError::Config(
            "there is no adapter to merge: pass --adapter".to_owned(),
        ));
    };
    let model = &task_model.loaded.model;
    let base = model.base();
    let mut changed_tensors = 0;
    let mut tensors = Vec::new();
    for (name, tensor) in base.tensors() {
        let merged = module.merged(name, base)?;
        let is_finite = |it: &Tensor<1>| it.clone().inner().is_finite().all().into_scalar::<bool>();
        if merged.as_ref().is_some_and(|merged| !is_finite(merged)) {
            return Err(TrainError::NotFinite {
                what: format!("`{name}` of the merged model"),
            });
        }
        changed_tensors += usize::from(merged.is_some());
        let values = move || match merged {
            Some(merged) => merged
                .inner()
                .try_into_vec_as::<f32>()
                .expect("weights are f32 and can be read"),
            None => tensor.to_vec(),
        };
        tensors.push((name, tensor.shape(), values));
    }
    fs::create_dir_all(output).map_err(FileError::at("create", output))?;
    let count = tensors.len();
    write_f32(&output.join("model.safetensors"), tensors).map_err(ModelError::from)?;
    let class = task_model
        .loaded
        .config
        .family()
        .class_name(task_model.spec.head());
    copy_rest(
        model_dir,
        output,
        task_model.spec.head(),
        class,
        &task_model.spec.labels,
    )?;

    let options = LoadOptions::default();
    let device = Device::flex();
    let merged = load(output, task_model.spec.head(), &device, &options)?;
    let largest_difference = largest_difference(model, module, &merged.model)?;
    Ok(Merged {
        changed_tensors,
        tensors: count,
        largest_difference,
    })
}

/// Copies tokenizer and configuration; the configuration learns the classes.
fn copy_rest(
    from: &Path,
    to: &Path,
    head: HeadKind,
    class: Option<&str>,
    labels: &[String],
) -> Result<(), TrainError> {
    for entry in fs::read_dir(from).map_err(FileError::at("read", from))? {
        let path = entry.map_err(FileError::at("read", from))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let weights = [
            ".safetensors",
            ".safetensors.index.json",
            ".bin",
            ".pt",
            ".onnx",
        ];
        if path.is_dir() || weights.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let mut bytes = fs::read(&path).map_err(FileError::at("read", &path))?;
        if name == "config.json"
            && let Some(outputs) = head.labels()
        {
            let invalid = |error: serde_json::Error| TrainError::State {
                path: path.clone(),
                reason: error.to_string(),
            };
            let mut config: serde_json::Value = serde_json::from_slice(&bytes).map_err(invalid)?;
            let names = (0..outputs).map(|id| match labels.get(id) {
                Some(name) => name.clone(),
                None => format!("LABEL_{id}"),
            });
            let names: Vec<String> = names.collect();
            config["id2label"] = names
                .iter()
                .enumerate()
                .map(|(id, name)| (id.to_string(), name.clone().into()))
                .collect::<serde_json::Map<_, _>>()
                .into();
            config["label2id"] = names
                .iter()
                .enumerate()
                .map(|(id, name)| (name.clone(), id.into()))
                .collect::<serde_json::Map<_, _>>()
                .into();
            if let Some(config) = config.as_object_mut() {
                config.remove("num_labels");
            }
            if let Some(class) = class {
                config["architectures"] = serde_json::json!([class]);
            }
            bytes = serde_json::to_vec_pretty(&config).map_err(invalid)?;
        }
        epiphyte_io::write(&to.join(name), &bytes)?;
    }
    Ok(())
}

/// Over a few made-up texts, the largest difference between what the two models say.
fn largest_difference(
    model: &Model,
    module: &AdapterModule,
    merged: &Model,
) -> Result<f64, TrainError> {
    let vocabulary = model.base().dimensions.vocabulary as u32;
    let longest = model.base().dimensions.max_positions.unwrap_or(32).min(32);
    let mut largest = 0.0f64;
    for probe in 0..4u32 {
        let length = (longest / 4 * (probe as usize + 1)).max(1);
        let ids: Vec<u32> = (0..length as u32)
            .map(|at| (probe.wrapping_mul(7919) + at.wrapping_mul(104_729)) % vocabulary)
            .collect();
        let type_ids = vec![0; length];
        let sequences = Sequences::new(vec![0, length]);
        let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        let decoder = model.backbone().decoder_input(&labels, &sequences);
        let tokens = Tokens {
            decoder: decoder.as_ref().map(|ids| DecoderTokens {
                ids,
                sequences: sequences.clone(),
            }),
            ..Tokens::new(&ids, &type_ids, sequences.clone())
        };
        let before = outputs(model, &tokens, module);
        let after = outputs(merged, &tokens, &Identity);
        for (a, b) in before.iter().zip(&after) {
            let difference = f64::from(a - b).abs();
            if !difference.is_finite() {
                return Err(TrainError::NotFinite {
                    what: "a logit of the merged model".to_owned(),
                });
            }
            largest = largest.max(difference);
        }
    }
    Ok(largest)
}

fn outputs(model: &Model, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Vec<f32> {
    let logits = match model.language_head() {
        Some(head) => {
            let hidden = model.hidden(tokens, adapter);
            let batch = AdapterBatch::single(adapter, tokens);
            head.forward(hidden.states, &hidden.rows, &batch)
        }
        None => model.logits(tokens, adapter),
    };
    logits
        .inner()
        .try_into_vec_as::<f32>()
        .expect("logits are f32 and can be read")
}
