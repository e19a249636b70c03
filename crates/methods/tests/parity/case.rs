//! One method on one base: logits, loss, gradients, five optimizer steps.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use epiphyte_methods::file::{AdapterFile, CONFIG_FILE, TENSORS_FILE};
use epiphyte_methods::{
    AdapterModule, AnyConfig, Gradients, Param, StepInfo, StoredValues, by_name,
};
use epiphyte_models::Model;
use epiphyte_ops::{AdamW, Moments};
use serde_json::{Value, json};

use crate::compare;
use crate::forward::{OUTPUTS, logits, loss, values};
use crate::golden::{Base, Batch, Expected, Facts, read_json};

/// How near gradients must be, in units of the tensor's largest.
const GRADIENTS: f32 = 1e-3;
/// How near parameters must be after the optimizer's steps, absolute.
const STEPS: f32 = 1e-3;

/// Compares a case; returns how many trained tensors it has.
pub(crate) fn check(base: &Base, method: &str, differences: &mut Vec<String>) -> usize {
    let mut case = Case::open(base, method);
    let mut same = |key: &str, found: &[f32], tolerance: f32| {
        let expected = case.expected.get(key);
        let part = key
            .strip_prefix("after/")
            .and_then(|key| case.facts.zero_gradient_parts.get(key));
        let (found, expected) = match part {
            Some(part) => (without(found, part), without(&expected, part)),
            None => (found.to_vec(), expected),
        };
        compare(
            &format!("{} {key}", case.name),
            &found,
            &expected,
            tolerance,
            differences,
        );
    };
    let (batch, model) = (base.batch(), &base.model);
    if let Some(saved) = &case.saved {
        same("logits", &logits(model, &batch, saved), OUTPUTS);
    }
    same("logits", &logits(model, &batch, &case.module), OUTPUTS);

    let how = &case.facts.optimizer;
    let (beta1, beta2) = how.betas;
    let adam = AdamW {
        beta1,
        beta2,
        epsilon: how.eps,
        weight_decay: how.weight_decay,
    };
    let mut moments: BTreeMap<String, Moments> = BTreeMap::new();
    let mut losses = Vec::new();
    for step in 1..=how.steps {
        let info = StepInfo {
            step: step as u64 - 1,
            total: how.steps as u64,
            stage: 0,
            stage_step: step as u64 - 1,
            stage_total: how.steps as u64,
        };
        case.module.before_step(info);
        case.module.track(true);
        let mean = objective(model, &batch, &case.module);
        losses.extend(values(mean.clone()));
        let mut gradients = Gradients::new();
        case.module.collect(&mut gradients, &mut mean.backward());
        case.module.after_backward(&mut gradients, info);
        case.module.track(false);
        let of = |param: &Param| {
            let gradient = gradients.get(param).cloned();
            gradient.unwrap_or_else(|| panic!("{}: `{}` has no gradient", case.name, param.key()))
        };
        if step == 1 {
            for (key, found) in case.by_key(case.module.trained().map(|param| values(of(param)))) {
                let tolerance = GRADIENTS * case.largest_gradient(&key);
                same(&format!("grad/{key}"), &found, tolerance);
            }
        }
        for param in case.module.trained() {
            let moved = moments.remove(param.key());
            let moved = moved.unwrap_or_else(|| Moments::zeros(&param.flat()));
            let (value, moved) = adam.step(param.flat(), of(param), moved, how.lr, step);
            moments.insert(param.key().to_owned(), moved);
            param.set(value);
        }
        case.module.parameters().derive(false);
    }

    same("losses", &losses, OUTPUTS);
    same(
        "loss_after",
        &values(objective(model, &batch, &case.module)),
        OUTPUTS,
    );
    for (key, found) in case.by_key(case.module.trained().map(|param| param.to_vec())) {
        if !case.facts.zero_gradient.contains(&key) {
            same(&format!("after/{key}"), &found, STEPS);
        }
    }
    if case.saved.is_some() {
        same(
            "after/prompt_embeddings",
            &first_stored(&case.module),
            STEPS,
        );
    }
    case.facts.trainable.len()
}

/// The values without those of some ranges.
fn without(values: &[f32], ranges: &[[usize; 2]]) -> Vec<f32> {
    let left_out = |at: usize| {
        ranges
            .iter()
            .any(|[start, end]| (*start..*end).contains(&at))
    };
    let values = values.iter().enumerate();
    let values = values.filter(|(at, _)| !left_out(*at));
    values.map(|(_, value)| *value).collect()
}

/// The mean loss with the method's penalty, which PEFT adds to the loss that a model returns.
fn objective(model: &Model, batch: &Batch, module: &AdapterModule) -> Tensor<1> {
    let loss = loss(model, batch, module);
    match module.method().penalty() {
        Some(penalty) => loss + penalty,
        None => loss,
    }
}

/// The values of the first tensor of the adapter's file.
fn first_stored(module: &AdapterModule) -> Vec<f32> {
    match module.stored().remove(0).values {
        StoredValues::F32(values) => values,
        StoredValues::Integers(_, values) => panic!("{} indices", values.len()),
    }
}

/// A method at work, with what PyTorch says about it.
struct Case {
    name: String,
    module: AdapterModule,
    /// The same as its file has it, where training uses tensors that the file does not have.
    saved: Option<AdapterModule>,
    /// The golden key of each trained tensor.
    keys: Vec<String>,
    expected: Expected,
    facts: Facts,
}

impl Case {
    fn open(base: &Base, method: &str) -> Self {
        let dir = base.dir.join(method);
        let name = dir
            .strip_prefix(crate::folder())
            .expect("a base of the folder")
            .display()
            .to_string();
        let expected = Expected::open(&dir.join("expected.safetensors"));
        let facts: Facts = read_json(&dir.join("expected.json"));
        let start = |config: Box<dyn AnyConfig>| {
            AdapterModule::new(config, base.model.base(), &base.device, 0)
                .unwrap_or_else(|error| panic!("{name}: {error}"))
        };

        if !dir.join(CONFIG_FILE).exists() {
            let (method, settings) = settings(method);
            let module = start(configuration(method, settings));
            let keys = module
                .trained()
                .map(|param| param.key().to_owned())
                .collect();
            let case = Self {
                name,
                module,
                saved: None,
                keys,
                expected,
                facts,
            };
            return case.checked();
        }
        let file = AdapterFile::open(&dir).unwrap_or_else(|error| panic!("{name}: {error}"));
        let saved = file
            .load(base.model.base(), &base.device)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut trainable = facts.trainable.keys();
        let network = trainable.any(|key| key.starts_with("prompt_encoder."));
        let (module, saved) = if network {
            let method = file.config().definition().name;
            let module = start(configuration(method, file.config().settings()));
            (module, Some(saved))
        } else {
            (saved, None)
        };
        let style = file.config().definition().keys;
        let key = |prefix: &str, key: &str| match network && prefix.is_empty() {
            true => format!("prompt_encoder.{key}"),
            false => format!("{prefix}{key}"),
        };
        let own = module
            .parameters()
            .trained()
            .map(|param| key(style.prefix(param.key()), param.key()));
        let head = module
            .head_parameters()
            .trained()
            .map(|param| key(style.head_prefix(), param.key()));
        let keys = own.chain(head).collect();
        let case = Self {
            name,
            module,
            saved,
            keys,
            expected,
            facts,
        }
        .checked();
        if network {
            case.set_initial();
            case.module.parameters().derive(false);
            let stored = Expected::open(&dir.join(TENSORS_FILE)).get("prompt_embeddings");
            let mut differences = Vec::new();
            compare(
                "folded",
                &first_stored(&case.module),
                &stored,
                OUTPUTS,
                &mut differences,
            );
            assert!(differences.is_empty(), "{}: {differences:?}", case.name);
        }
        case
    }

    /// Itself, once exactly those tensors are trained that should be.
    fn checked(self) -> Self {
        let counts = self.by_key(self.module.trained().map(|param| param.to_vec()));
        let counts: BTreeMap<&String, usize> = counts
            .iter()
            .map(|(key, values)| (key, values.len()))
            .collect();
        let trainable = self.facts.trainable.iter();
        let expected: BTreeMap<&String, usize> = trainable
            .map(|(key, shape)| (key, shape.iter().product()))
            .collect();
        assert_eq!(counts, expected, "{}", self.name);
        assert_eq!(
            expected.values().sum::<usize>(),
            self.facts.trainable_parameters,
            "{}",
            self.name
        );
        for (key, param) in self.keys.iter().zip(self.module.trained()) {
            let pieces = self.keys.iter().filter(|other| *other == key).count();
            assert!(
                pieces > 1 || param.shape() == self.facts.trainable[key],
                "{}: {key}",
                self.name
            );
        }
        self
    }

    /// What belongs to each trained tensor, by golden key; pieces of one tensor come together.
    fn by_key(&self, of_each: impl Iterator<Item = Vec<f32>>) -> BTreeMap<String, Vec<f32>> {
        let mut by_key: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (key, values) in self.keys.iter().zip(of_each) {
            by_key.entry(key.clone()).or_default().extend(values);
        }
        by_key
    }

    /// Puts the values from before training in place.
    fn set_initial(&self) {
        let mut used: BTreeMap<&str, usize> = BTreeMap::new();
        for (key, param) in self.keys.iter().zip(self.module.trained()) {
            let values = self.expected.get(&format!("initial/{key}"));
            let start = used.entry(key).or_default();
            let piece = values[*start..*start + param.count()].to_vec();
            *start += param.count();
            let device = self.module.parameters().device();
            param.set(Tensor::from_data(
                TensorData::new(piece, [param.count()]),
                device,
            ));
        }
    }

    /// The largest gradient of a tensor; of all tensors, where it is zero in theory.
    fn largest_gradient(&self, key: &str) -> f32 {
        let largest = |key: &str| {
            let gradient = self.expected.get(&format!("grad/{key}"));
            gradient.into_iter().map(f32::abs).fold(0.0, f32::max)
        };
        if self.facts.zero_gradient.iter().any(|zero| zero == key) {
            self.facts
                .trainable
                .keys()
                .map(|key| largest(key))
                .fold(0.0, f32::max)
        } else {
            largest(key)
        }
    }
}

/// Method and settings of a case that PEFT has no file for.
fn settings(case: &str) -> (&'static str, Value) {
    match case {
        "full" => ("full", json!({})),
        "bitfit" => ("bitfit", json!({})),
        "bitfit_subset" => (
            "bitfit",
            json!({ "bitfit_components": "query-intermediate" }),
        ),
        "freeze" => ("freeze", json!({ "freeze_trainable_layers": 1 })),
        other => panic!("the golden folder has a case `{other}` that nothing covers"),
    }
}

fn configuration(method: &str, settings: impl Into<Value>) -> Box<dyn AnyConfig> {
    let Value::Object(settings) = settings.into() else {
        unreachable!("settings are an object")
    };
    let definition = by_name(method).expect("a method that there is");
    definition
        .configure(settings)
        .expect("settings that the method has")
}
