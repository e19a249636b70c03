//! A merged model's `config.json`: the base's, with what the task changed.

use std::path::Path;

use epiphyte_data::Tokenizer;
use epiphyte_models::{Base, ModelConfig};
use serde_json::{Map, Value, json};

use super::WeightType;
use crate::{TaskSpec, TrainError};

/// The name of the file.
pub(crate) const FILE: &str = "config.json";
/// The key that says how the weights are quantized.
pub(crate) const QUANTIZATION: &str = "quantization_config";

/// The base's `config.json`, parsed, or what a GGUF file has in its place.
pub(crate) fn read(base: &Path) -> Result<Map<String, Value>, TrainError> {
    Ok(ModelConfig::read_json(base)?)
}

/// Says which class of transformers the model is, and its classes.
pub(super) fn set_task(json: &mut Map<String, Value>, config: &ModelConfig, spec: &TaskSpec) {
    let head = spec.head();
    if let Some(class) = config.family().class_name(head) {
        json.insert("architectures".to_owned(), json!([class]));
    }
    let Some(outputs) = head.outputs() else {
        return;
    };
    let names = (0..outputs).map(|id| match spec.labels.get(id) {
        Some(name) => name.clone(),
        None => format!("LABEL_{id}"),
    });
    let names: Vec<String> = names.collect();
    let ids = || names.iter().enumerate();
    let by_id = ids().map(|(id, name)| (id.to_string(), json!(name)));
    let by_name = ids().map(|(id, name)| (name.clone(), json!(id)));
    json.insert("id2label".to_owned(), Value::Object(by_id.collect()));
    json.insert("label2id".to_owned(), Value::Object(by_name.collect()));
    json.shift_remove("num_labels");
    // The base's own may be that of another task.
    match spec.task.problem_type() {
        Some(problem) if json.contains_key("problem_type") || !problem.is_inferred() => {
            json.insert("problem_type".to_owned(), json!(problem));
        }
        Some(_) => {}
        None => {
            json.shift_remove("problem_type");
        }
    }
}

/// Gives a decoder that classifies a padding token, where it has none: transformers finds the last
/// token of each text of a batch by it.
pub(super) fn set_padding(
    json: &mut Map<String, Value>,
    config: &ModelConfig,
    base: &Base,
    tokenizer: &Tokenizer,
) -> Result<(), TrainError> {
    let causal = base.layer_shapes().iter().any(|it| it.attention.causal);
    let facts = config.facts();
    if base.task_head.is_none() || !causal || facts.pad_token_id.is_some() {
        return Ok(());
    }
    // The token must not be the one that texts end with, which would be taken for padding.
    let last = tokenizer.encode("a", None, None)?.ids.last().copied();
    let named = |name| tokenizer.special_id(name).ok();
    // Where the tokenizer adds a token at the end, any other will do.
    let plain = tokenizer.align("a", false)?.ids.last().copied();
    let any = (plain != last).then_some(u32::from(last == Some(0)));
    let candidates = [
        named("pad_token"),
        tokenizer.id("[PAD]"),
        tokenizer.id("<pad>"),
        facts.eos_token_ids.first().copied(),
        named("eos_token"),
        named("unk_token"),
        named("bos_token"),
        any,
    ];
    let fits = |id: &u32| Some(*id) != last && (*id as usize) < facts.vocab_size;
    if let Some(id) = candidates.into_iter().flatten().find(fits) {
        json.insert("pad_token_id".to_owned(), json!(id));
    }
    Ok(())
}

/// Says in which type the weights are, under whichever key the file has.
pub(super) fn set_type(json: &mut Map<String, Value>, weights: WeightType) {
    let key = match json.contains_key("dtype") {
        true => "dtype",
        false => "torch_dtype",
    };
    json.insert(key.to_owned(), json!(weights.torch_name()));
}
