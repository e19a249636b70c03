//! A small BERT for the tests of methods, and what they do with it.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use epiphyte_models::{Adapter, HeadKind, Model, ModelConfig, Targets, Tokens, random_model};
use epiphyte_ops::{Precision, Sequences, random};
use serde_json::{Value, json};

use crate::file::{self, AdapterMetadata, Provenance};
use crate::{AdapterModule, Gradients, by_name};

fn model(hidden_size: usize, intermediate_size: usize, layers: usize, heads: usize) -> Model {
    let config = json!({
        "model_type": "bert", "vocab_size": 8, "hidden_size": hidden_size,
        "intermediate_size": intermediate_size, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 64,
    });
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes()).unwrap();
    let head = HeadKind::Classification { labels: 2 };
    random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap()
}

/// Two layers of hidden size 8.
pub(crate) fn bert() -> Model {
    model(8, 12, 2, 2)
}

/// What a method trains on bert-base, of which `outside` stands outside of its twelve layers.
pub(crate) fn bert_base_count(method: &str, settings: Value, outside: usize) -> usize {
    let settings = settings.as_object().unwrap().clone();
    let config = by_name(method).unwrap().configure(settings).unwrap();
    let one_layer = config.count(model(768, 3072, 1, 12).base()).unwrap();
    12 * (one_layer - outside) + outside
}

/// A method at work.
pub(crate) fn module(model: &Model, method: &str, settings: Value) -> AdapterModule {
    let settings = settings.as_object().unwrap().clone();
    let config = by_name(method).unwrap().configure(settings).unwrap();
    AdapterModule::new(config, model.base(), &Device::default(), 0).unwrap()
}

/// Saves a method at work as an adapter.
pub(crate) fn save(model: &Model, adapter: &AdapterModule, dir: &Path) {
    let metadata = AdapterMetadata {
        base_model: "tiny".to_owned(),
        task_type: "SEQ_CLS".to_owned(),
        provenance: Provenance {
            version: "0".to_owned(),
            method: adapter.config().definition().name.to_owned(),
            base_sha256: "0".repeat(64),
            base_config: None,
            base_quantization: None,
            tokenizer_sha256: "0".repeat(64),
            task: Value::Null,
            account: None,
            training: None,
        },
    };
    file::save(dir, adapter, model.base(), &metadata).unwrap();
}

/// A parameter's values.
pub(crate) fn values(module: &AdapterModule, key: &str) -> Vec<f32> {
    module.parameters().get(key).unwrap().to_vec()
}

/// Draws a parameter's values, and returns them.
pub(crate) fn set_random(module: &AdapterModule, key: &str) -> Vec<f32> {
    let param = module.parameters().get(key).unwrap();
    let drawn = random::normal(epiphyte_models::adapter::name_id(key), param.count(), 0.5);
    param.set_values(drawn.clone());
    drawn
}

/// Logits of these sequences.
pub(crate) fn logits_of(model: &Model, adapter: &dyn Adapter, texts: &[&[u32]]) -> Vec<f32> {
    let ids = texts.concat();
    let mut boundaries = vec![0];
    boundaries.extend(texts.iter().scan(0, |end, text| {
        *end += text.len();
        Some(*end)
    }));
    let type_ids = vec![0; ids.len()];
    let tokens = Tokens::new(&ids, &type_ids, Sequences::new(boundaries));
    to_vec(model.logits(&tokens, adapter))
}

/// Logits of two sequences.
pub(crate) fn logits(model: &Model, adapter: &dyn Adapter) -> Vec<f32> {
    logits_of(model, adapter, &[&[3, 1, 4, 1, 5], &[2, 6]])
}

/// The gradient of each of the method's parameters, by key.
pub(crate) fn gradients(model: &Model, module: &AdapterModule) -> Vec<(String, Vec<f32>)> {
    let tokens = Tokens::new(&[3, 1, 4, 1, 5], &[0; 5], Sequences::new(vec![0, 3, 5]));
    module.track(true);
    let loss = model.loss(&tokens, Targets::Classes(&[1, 0]), 0.0, module);
    let mut found = Gradients::new();
    module.collect(&mut found, &mut loss.unwrap().mean.backward());
    found.pull_back_derived(module.parameters());
    module.track(false);
    let trained = module.parameters().trained();
    let of = |param| {
        to_vec(
            found
                .get(param)
                .cloned()
                .unwrap_or_else(|| param.initial() * 0.0),
        )
    };
    trained
        .map(|param| (param.key().to_owned(), of(param)))
        .collect()
}

fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().try_into_vec_as::<f32>().unwrap()
}

/// The largest difference.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max)
}
