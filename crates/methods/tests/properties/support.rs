//! Small models with nothing at zero, a batch for them, and the methods to try on them.

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::{METHODS, MethodError, Param, AdapterModule, by_name};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{
    Adapter, LoadOptions, ModelConfig, Targets, HeadKind, Tokens, Model, load, random_model,
};
use epiphyte_ops::{Sequences, random};
use serde_json::{Value, json};

pub(crate) const LABELS: usize = 3;

/// A family with a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    Llama,
    LlamaLanguageModel,
}

pub(crate) const FAMILIES: [Family; 3] = [Family::Bert, Family::Llama, Family::LlamaLanguageModel];

impl Family {
    pub(crate) fn task(self) -> Task {
        match self {
            Self::Bert | Self::Llama => HeadKind::Classification { labels: LABELS },
            Self::LlamaLanguageModel => HeadKind::LanguageModel,
        }
    }

    pub(crate) fn config(self) -> Value {
        match self {
            Self::Bert => json!({
                "model_type": "bert", "architectures": ["BertForSequenceClassification"],
                "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            }),
            // Heads of 6 make the queries' width 24, unlike the model's; two of them share keys.
            Self::Llama | Self::LlamaLanguageModel => json!({
                "model_type": "llama", "architectures": ["LlamaForCausalLM"],
                "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
                "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
            }),
        }
    }

    /// A model of which no bias is zero and no norm's scale is one.
    pub(crate) fn model(self) -> Model {
        let config = self.config();
        let text = config.to_string();
        let device = Device::default();
        let dir = tempfile::tempdir().unwrap();
        let parsed = ModelConfig::parse(&dir.path().join("config.json"), text.as_bytes()).unwrap();
        let shapes = random_model(&parsed, self.task(), &device, Default::default(), 0).unwrap();
        let tensors = shapes.base().tensors().iter().map(|(name, tensor)| {
            let noise = random::normal(name_id(name), tensor.count(), 0.3);
            let offset = if name.ends_with("norm.weight") || name.ends_with("LayerNorm.weight") {
                1.0
            } else {
                0.0
            };
            let values: Vec<f32> = noise.iter().map(|value| offset + value).collect();
            (name, tensor.shape(), move || values)
        });
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        write_f32(&dir.path().join("model.safetensors"), tensors).unwrap();
        load(dir.path(), self.task(), &device, &LoadOptions::default())
            .unwrap()
            .model
    }

    /// The loss of the batch.
    pub(crate) fn loss(self, model: &Model, adapter: &dyn Adapter) -> Tensor<1> {
        let labels: Vec<i64> = IDS.iter().map(|&id| i64::from(id)).collect();
        let targets = match self {
            Self::Bert | Self::Llama => Targets::Classes(&[2, 0, 1]),
            Self::LlamaLanguageModel => Targets::Tokens(&labels),
        };
        model
            .loss(&batch(None), targets, 0.0, adapter)
            .unwrap()
            .mean
    }

    /// What the model says about the batch: logits, or states where there is no task head.
    pub(crate) fn output(
        self,
        model: &Model,
        adapter: &dyn Adapter,
        keys: Option<Vec<u64>>,
    ) -> Vec<f32> {
        let tokens = batch(keys);
        to_vec(match self {
            Self::Bert | Self::Llama => model.logits(&tokens, adapter),
            Self::LlamaLanguageModel => model.hidden(&tokens, adapter).states,
        })
    }
}

pub(crate) const IDS: [u32; 12] = [3, 7, 1, 19, 4, 25, 6, 2, 11, 28, 9, 5];
const TYPE_IDS: [u32; 12] = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1];

/// Three sequences of unequal length; with keys, in training mode.
pub(crate) fn batch(keys: Option<Vec<u64>>) -> Tokens<'static> {
    let sequences = Sequences::new(vec![0, 5, 8, 12]);
    let sequences = match keys {
        Some(keys) => sequences.with_keys(keys),
        None => sequences,
    };
    Tokens {
        ids: &IDS,
        type_ids: &TYPE_IDS,
        sequences,
    }
}

/// A method with settings that fit the small models.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) method: &'static str,
    pub(crate) settings: Value,
}

impl Case {
    pub(crate) fn tune(&self, model: &Model) -> Result<AdapterModule, MethodError> {
        let config = by_name(self.method)?.configure(self.settings.as_object().unwrap().clone())?;
        AdapterModule::new(config, model.base(), &Device::default(), 1)
    }

    pub(crate) fn count(&self, model: &Model) -> usize {
        let config = by_name(self.method).unwrap();
        let config = config
            .configure(self.settings.as_object().unwrap().clone())
            .unwrap();
        config.count(model.base()).unwrap()
    }
}

pub(crate) fn case(method: &'static str, settings: Value) -> Case {
    Case { method, settings }
}

/// Every registered method, in each of its examples.
pub(crate) fn cases() -> Vec<Case> {
    let cases = METHODS.iter().flat_map(|method| {
        let examples = (method.examples)().into_iter();
        examples.map(|settings| case(method.name, settings))
    });
    cases.collect()
}

/// Runs `check` for every case on every family that the method can act on.
pub(crate) fn everywhere(check: impl Fn(&str, &Case, Family, &Model, AdapterModule)) {
    for family in FAMILIES {
        let model = family.model();
        for case in cases() {
            let name = format!("{} {} on {family:?}", case.method, case.settings);
            match case.tune(&*model) {
                Ok(tuned) => check(&name, &case, family, &*model, tuned),
                // Llama has no biases.
                Err(MethodError::NotApplicable {
                    method: "bitfit", ..
                }) if family != Family::Bert => {}
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

/// Moves every trained tensor off its start, so that no zero hides anything.
pub(crate) fn perturb(tuned: &AdapterModule) {
    for param in tuned.trained() {
        let noise = random::normal(name_id(param.key()) ^ 5, param.count(), 0.2);
        let moved: Vec<f32> = param
            .to_vec()
            .iter()
            .zip(noise)
            .map(|(value, noise)| value + noise)
            .collect();
        set(param, moved);
    }
}

pub(crate) fn set(param: &Param, values: Vec<f32>) {
    let count = values.len();
    param.set(Tensor::from_data(
        TensorData::new(values, [count]),
        &Device::default(),
    ));
}

pub(crate) fn to_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.inner().try_into_vec_as::<f32>().unwrap()
}

/// The largest difference, as a share of the largest value.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a
        .iter()
        .fold(0.0f32, |largest, value| largest.max(value.abs()));
    let difference = a
        .iter()
        .zip(b)
        .fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(difference.is_finite() && largest > 0.0);
    difference / largest
}
