//! Small models of every family with nothing at zero, a batch for them, and every registered
//! method.

use burn::tensor::{Device, Tensor};
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::{
    AdapterModule, CalibrationData, Each, Gradients, METHODS, MethodError, Param, by_name,
};
use epiphyte_models::adapter::{Role, name_id};
use epiphyte_models::families::FAMILIES;
use epiphyte_models::{
    Adapter, DecoderTokens, HeadKind, LoadOptions, Model, ModelConfig, Targets, Tokens, load,
    random_model,
};
use epiphyte_ops::{Sequences, random};
use serde_json::Value;

pub(crate) const LABELS: usize = 3;

/// A small model of a family with a head.
pub(crate) struct TestModel {
    pub(crate) name: String,
    pub(crate) model: Model,
    pub(crate) head: HeadKind,
}

/// Every example configuration of every family, with each head that the family has.
pub(crate) fn models() -> Vec<TestModel> {
    let heads = [
        HeadKind::Classification { labels: LABELS },
        HeadKind::TokenClassification { labels: LABELS },
        HeadKind::LanguageModel,
    ];
    let configs = FAMILIES.iter().flat_map(|family| (family.examples)());
    configs
        .flat_map(|config| heads.map(|head| TestModel::new(&config, head)))
        .flatten()
        .collect()
}

/// The first example of a `model_type`, with a head.
pub(crate) fn model(model_type: &str, head: HeadKind) -> TestModel {
    let configs = FAMILIES.iter().flat_map(|family| (family.examples)());
    let mut configs = configs.filter(|config| config["model_type"] == model_type);
    let config = configs.next().expect("a registered family");
    TestModel::new(&config, head).expect("the family has the head")
}

pub(crate) fn bert() -> TestModel {
    model("bert", HeadKind::Classification { labels: LABELS })
}

pub(crate) fn llama() -> TestModel {
    model("llama", HeadKind::Classification { labels: LABELS })
}

impl TestModel {
    /// A model of which no bias is zero and no norm's scale is one; none if the family has no such
    /// head.
    fn new(config: &Value, head: HeadKind) -> Option<Self> {
        let text = config.to_string();
        let device = Device::default();
        let dir = tempfile::tempdir().unwrap();
        let parsed = ModelConfig::parse(&dir.path().join("config.json"), text.as_bytes()).unwrap();
        parsed.family().class_name(head)?;
        let shapes = random_model(&parsed, head, &device, Default::default(), 0).unwrap();
        let tensors = shapes.base().tensors().iter().map(|(name, tensor)| {
            let noise = random::normal(name_id(name), tensor.count(), 0.3);
            let is_scale = tensor.is_norm() && name.ends_with("weight");
            let offset = if is_scale { 1.0 } else { 0.0 };
            let values: Vec<f32> = noise.iter().map(|value| offset + value).collect();
            (name, tensor.shape(), move || values)
        });
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        write_f32(&dir.path().join("model.safetensors"), tensors).unwrap();
        let options = LoadOptions::default();
        let model = load(dir.path(), head, &device, &options).unwrap().model;
        let name = format!("{} with {head}", model.base().dimensions.model_type);
        Some(Self { name, model, head })
    }

    /// The loss of the batch.
    pub(crate) fn loss(&self, adapter: &dyn Adapter) -> Tensor<1> {
        let batch = TestBatch::new(&self.model, None);
        let labels: Vec<i64> = IDS.iter().map(|&id| i64::from(id)).collect();
        let targets = match self.head {
            HeadKind::Classification { .. } => Targets::Classes(&[2, 0, 1]),
            HeadKind::TokenClassification { .. } | HeadKind::MaskedLm => {
                Targets::TokenClasses(&[-100, 2, 0, -100, 1, 1, 0, -100, 2, 2, 0, -100])
            }
            HeadKind::QuestionAnswering => Targets::Spans {
                starts: &[3, 0, 1],
                ends: &[4, 1, 1],
            },
            HeadKind::MultipleChoice => Targets::Choices {
                chosen: &[2],
                choices: 3,
            },
            HeadKind::Embedding(_) => Targets::Texts {
                together: 3,
                scores: None,
            },
            HeadKind::LanguageModel if batch.decoder.is_some() => Targets::DecoderTokens(&labels),
            HeadKind::LanguageModel => Targets::Tokens(&labels),
        };
        let loss = self.model.loss(&batch.tokens(), targets, 0.0, adapter);
        loss.unwrap().mean
    }

    /// The gradients of the loss, carried back to the trained parameters.
    pub(crate) fn gradients(&self, module: &AdapterModule) -> Gradients {
        module.track(true);
        let mut gradients = Gradients::new();
        module.collect(&mut gradients, &mut self.loss(module).backward());
        gradients.pull_back_derived(module.parameters());
        module.track(false);
        gradients
    }

    /// Logits of the batch, or final hidden states where there is no classification head. With
    /// keys, dropout is on.
    pub(crate) fn output(&self, adapter: &dyn Adapter, keys: Option<Vec<u64>>) -> Vec<f32> {
        let batch = TestBatch::new(&self.model, keys);
        to_vec(match self.head {
            HeadKind::LanguageModel => self.model.hidden(&batch.tokens(), adapter).states,
            _ => self.model.logits(&batch.tokens(), adapter),
        })
    }

    /// Whether the gradient of a parameter is only rounding noise: a key's bias where positions are
    /// not rotary, since adding the same to all keys moves all scores of a query alike.
    pub(crate) fn is_noise(&self, param: &Param) -> bool {
        let base = self.model.base();
        let is_rotary = |layer: usize| base.layer_shapes()[layer].attention.rotary;
        let is_key = |path: &str| {
            let mut keys = base.linears().iter().filter(|it| it.site.role == Role::Key);
            let key = keys.find(|it| it.site.path == path);
            key.is_some_and(|it| !it.site.layer.is_some_and(is_rotary))
        };
        param.key().strip_suffix(".bias").is_some_and(is_key)
    }
}

pub(crate) const IDS: [u32; 12] = [3, 7, 1, 19, 4, 25, 6, 2, 11, 28, 9, 5];
const TYPE_IDS: [u32; 12] = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1];

/// Three sequences of unequal length.
pub(crate) struct TestBatch {
    sequences: Sequences,
    decoder: Option<Vec<u32>>,
}

impl TestBatch {
    pub(crate) fn new(model: &Model, keys: Option<Vec<u64>>) -> Self {
        let sequences = Sequences::new(vec![0, 5, 8, 12]);
        let sequences = match keys {
            Some(keys) => sequences.with_keys(keys),
            None => sequences,
        };
        let labels: Vec<i64> = IDS.iter().map(|&id| i64::from(id)).collect();
        Self {
            decoder: model.backbone().decoder_input(&labels, &sequences),
            sequences,
        }
    }

    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens {
            ids: &IDS,
            type_ids: &TYPE_IDS,
            sequences: self.sequences.clone(),
            decoder: self.decoder.as_ref().map(|ids| DecoderTokens {
                ids,
                sequences: self.sequences.clone(),
            }),
            cache: None,
        }
    }
}

/// The batch as calibration data of three examples.
struct TestData<'a>(&'a TestModel);

impl CalibrationData for TestData<'_> {
    fn examples(&self) -> usize {
        3
    }

    fn forward(&mut self, _examples: usize, adapter: &dyn Adapter) -> Result<(), MethodError> {
        self.0.output(adapter, None);
        Ok(())
    }

    fn forward_text(&mut self, ids: &[u32], adapter: &dyn Adapter) -> Result<(), MethodError> {
        let type_ids = vec![0; ids.len()];
        let tokens = Tokens::new(ids, &type_ids, Sequences::new(vec![0, ids.len()]));
        self.0.model.hidden(&tokens, adapter);
        Ok(())
    }

    fn gradients(
        &mut self,
        _examples: usize,
        _each: Each,
        params: &[Param],
        adapter: &dyn Adapter,
        see: &mut dyn FnMut(&Gradients),
    ) -> Result<(), MethodError> {
        let mut gradients = Gradients::new();
        gradients.collect(params.iter(), &mut self.0.loss(adapter).backward());
        see(&gradients);
        Ok(())
    }
}

/// A method with settings that fit the small models.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) method: &'static str,
    pub(crate) settings: Value,
}

impl Case {
    /// Builds the method and begins its first stage.
    pub(crate) fn tune(&self, on: &TestModel) -> Result<AdapterModule, MethodError> {
        let config = by_name(self.method)?.configure(self.settings.as_object().unwrap().clone())?;
        let base = on.model.base();
        let mut module = AdapterModule::new(config, base, &Device::default(), 1)?;
        module.track(true);
        module.begin_stage(0, &mut TestData(on))?;
        module.track(false);
        Ok(module)
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

/// The method that the variable `EPIPHYTE_METHOD` names, for whoever works on it.
pub(crate) fn chosen_method() -> Option<String> {
    std::env::var("EPIPHYTE_METHOD").ok()
}

/// Every registered method, with each of its example settings, or those of [`chosen_method`].
pub(crate) fn cases() -> Vec<Case> {
    let chosen = chosen_method();
    let is_chosen = |name: &str| chosen.as_deref().is_none_or(|chosen| chosen == name);
    let methods = METHODS.iter().filter(|method| is_chosen(method.name));
    let cases = methods.flat_map(|method| {
        let examples = (method.examples)().into_iter();
        examples.map(|settings| case(method.name, settings))
    });
    let cases: Vec<Case> = cases.collect();
    assert!(!cases.is_empty(), "EPIPHYTE_METHOD names no method");
    cases
}

/// Runs `check` for every case on every model that the method can act on.
pub(crate) fn everywhere(check: impl Fn(&str, &Case, &TestModel, AdapterModule)) {
    for on in models() {
        cases_on(&on, &check);
    }
}

/// Runs `check` for every case that can act on this model. A method that cannot must say why.
pub(crate) fn cases_on(on: &TestModel, check: impl Fn(&str, &Case, &TestModel, AdapterModule)) {
    for case in cases() {
        let name = format!("{} {} on {}", case.method, case.settings, on.name);
        match case.tune(on) {
            Ok(module) => check(&name, &case, on, module),
            Err(MethodError::NotApplicable { reason, .. }) => {
                assert!(reason.len() > 10, "{name}: {reason}");
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }
}

/// Moves every trained tensor off its initial value, so that no zero hides anything.
pub(crate) fn perturb(module: &AdapterModule) {
    for param in module.trained() {
        let noise = random::normal(name_id(param.key()) ^ 5, param.count(), 0.2);
        let moved = param.to_vec();
        let moved = moved.iter().zip(noise).map(|(value, noise)| value + noise);
        param.set_values(moved.collect());
    }
    module.parameters().derive(false);
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
