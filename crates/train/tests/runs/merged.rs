//! What a merged model's directory says about itself.

use std::fs;

use burn::tensor::Device;
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::{HeadKind, LoadOptions};
use epiphyte_train::observer::Silent;
use epiphyte_train::{Interrupt, MergeOptions, RunConfig, RunOptions, TaskKind, merge, open_adapter, train};
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
    }
}
