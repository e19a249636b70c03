//! What a merged model's directory says about itself.

use std::fs;

use burn::tensor::Device;
use epiphyte_io::safetensors_file::{Values, write_values};
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::{Checkpoint, HeadKind, LoadOptions};
use epiphyte_train::observer::Silent;
use epiphyte_train::{
    Interrupt, MergeOptions, RunConfig, RunOptions, TaskKind, WeightType, merge, open_adapter,
    train,
};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::world::{World, qwen};

#[test]
fn a_merged_classifier_names_the_class_of_its_own_family() {
    let world = World::new();
    for (model_type, class) in [
        ("llama", "LlamaForSequenceClassification"),
        ("mistral", "MistralForSequenceClassification"),
        ("qwen2", "Qwen2ForSequenceClassification"),
    ] {
        let mut config = qwen();
        config["model_type"] = json!(model_type);
        let model = world.write_model(model_type, &config, HeadKind::LanguageModel);
        let run = RunConfig {
            model: model.clone(),
            task: TaskKind::default(),
            max_steps: Some(1),
            ..world.run(&format!("{model_type}-adapter"), "lora", &json!({ "r": 2 }))
        };
        let options = RunOptions::default();
        train(&run, &options, &Interrupt::default(), &mut Silent).unwrap();
        let file = AdapterFile::open(&run.output).unwrap();
        let (device, load) = (Device::default(), LoadOptions::default());
        let loaded_adapter = open_adapter(&model, Some(file), None, false, &device, &load).unwrap();
        let output = run.output.with_extension("merged");
        let merged = merge(&model, &loaded_adapter, &output, &MergeOptions::default()).unwrap();
        assert!(merged.largest_difference < 1e-4, "{merged:?}");
        let config = fs::read_to_string(output.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["architectures"], json!([class]));
        assert_eq!(config["id2label"], json!({ "0": "bad", "1": "good" }));
        // transformers finds the last token of a text of a batch by it; [SEP] ends every text.
        assert_eq!(config["pad_token_id"], 0);
    }
}

/// The types of the base's files stay, unless others are asked for.
#[test]
fn a_merged_model_has_the_types_of_its_base() {
    let world = World::new();
    let run = RunConfig {
        max_steps: Some(1),
        ..world.run("adapter", "lora", &json!({ "r": 2 }))
    };
    let weights = run.model.join("model.safetensors");
    let file = Checkpoint::open_file(&weights).unwrap();
    let tensors = file.names().map(|name| {
        let tensor = file.tensor(name).unwrap();
        let (shape, values) = (tensor.shape.to_vec(), tensor.to_f32().unwrap());
        let half = Values::Rounded(Dtype::BF16, Box::new(move || values));
        (name, shape, half)
    });
    write_values(&weights, tensors).unwrap();
    let options = RunOptions::default();
    train(&run, &options, &Interrupt::default(), &mut Silent).unwrap();
    let open = || {
        let file = AdapterFile::open(&run.output).unwrap();
        let (device, load) = (Device::default(), LoadOptions::default());
        open_adapter(&run.model, Some(file), None, false, &device, &load).unwrap()
    };
    let base = Checkpoint::open_file(&weights).unwrap();
    for (dtype, expected, bound) in [
        (None, Dtype::BF16, 0.05),
        (Some(WeightType::F32), Dtype::F32, 1e-4),
        (Some(WeightType::F16), Dtype::F16, 0.01),
    ] {
        let options = MergeOptions {
            dtype,
            overwrite: false,
            ..MergeOptions::default()
        };
        let output = run.output.with_extension(format!("{expected}"));
        let merged = merge(&run.model, &open(), &output, &options).unwrap();
        assert!(merged.largest_difference < bound, "{expected}: {merged:?}");
        let merged = Checkpoint::open_file(&output.join("model.safetensors")).unwrap();
        for name in merged.names() {
            let tensor = merged.tensor(name).unwrap();
            assert_eq!(tensor.dtype, expected, "{name}");
            let untouched = name
                .contains("LayerNorm")
                .then(|| base.tensor(name))
                .flatten();
            if let (None, Some(before)) = (dtype, untouched) {
                assert_eq!(tensor, before, "{name}");
            }
        }
    }
}
