//! The settings of a run with the values that they have in it, defaults included.

use epiphyte_data::{Fields, LabelField};
use epiphyte_methods::framework::settings::{Flag, Settings};
use epiphyte_methods::{AdapterModule, by_name};
use epiphyte_models::Base;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::tasks::TaskSpec;
use crate::training::config::RunConfig;
use crate::training::optimizer::OptimizerKind;
use crate::training::trainer::Plan;

/// A setting of a run or of its method.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResolvedSetting {
    /// The key, as in a file of settings.
    pub key: &'static str,
    /// The flag's name, with `_` for `-`: it is a key too, and what users know it by.
    pub name: String,
    /// The value in this run; a text where the default is a rule that depends on the machine or
    /// the data file.
    pub value: Value,
    /// Whether the run's configuration says so; else it is the default.
    pub given: bool,
}

impl ResolvedSetting {
    /// The value for people: texts without quotes, lists separated by commas.
    pub fn text(&self) -> String {
        fn text(value: &Value) -> String {
            match value {
                Value::String(text) => text.clone(),
                Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(", "),
                other => other.to_string(),
            }
        }
        text(&self.value)
    }
}

/// Every setting of a run that has a value, in the order of `--help`: first the run's own, then
/// those of the method.
pub fn resolved_settings(
    run: &RunConfig,
    spec: &TaskSpec,
    plan: Plan,
    module: &AdapterModule,
    base: &Base,
) -> Vec<ResolvedSetting> {
    let values = object(run);
    let defaults = object(&RunConfig::default());
    let computed = computed(run, spec, plan);
    let fields = run.task.fields(spec, true);
    let applies = |flag: &&Flag| match flag.key {
        "label_column" => reads_label(run, fields.as_ref().ok()),
        "labels" => run.task.has_classes(),
        "packing" => matches!(fields, Ok(Fields::PlainText { .. })),
        "embedding_loss" | "pooling" | "normalize" => spec.embedding.is_some(),
        "doc_stride" | "max_answer_length" => run.task.reads_windows(),
        "label_smoothing" => run.task.smooths_targets(),
        "max_new_tokens" | "num_beams" => !run.metrics.is_empty(),
        key if key.starts_with("adam_") => run.optimizer != OptimizerKind::Adafactor,
        key if key.starts_with("galore_") => run.optimizer == OptimizerKind::Galore,
        key if key.starts_with("lisa_") => run.optimizer == OptimizerKind::Lisa,
        _ => true,
    };
    let own = RunConfig::FLAGS.iter().filter(applies);
    let own = own.filter_map(|flag| {
        let value = [values.get(flag.key), computed.get(flag.key)];
        let value = value.into_iter().flatten().find(|value| has_value(value));
        let unset = flag.unset.map(Value::from);
        Some(ResolvedSetting {
            key: flag.key,
            name: flag.name(),
            value: value.cloned().or(unset)?,
            given: values.get(flag.key) != defaults.get(flag.key),
        })
    });
    let resolved = module.config().resolved(base);
    let flags = by_name(&run.method).map_or(&[][..], |method| method.flags);
    let is_given = |flag: &Flag| run.method_settings.keys().any(|name| flag.is_called(name));
    let method = flags.iter().filter_map(|flag| {
        let value = resolved.get(flag.key).filter(|value| has_value(value));
        let unset = flag.unset.map(Value::from);
        Some(ResolvedSetting {
            key: flag.key,
            name: flag.name(),
            value: value.cloned().or(unset)?,
            given: is_given(flag),
        })
    });
    own.chain(method).collect()
}

/// Whether a run reads a label of each row.
fn reads_label(run: &RunConfig, fields: Option<&Fields>) -> bool {
    let without = matches!(
        fields,
        Some(
            Fields::Texts {
                label: LabelField::Absent,
                ..
            } | Fields::SeparateTexts { score: None, .. }
        )
    );
    !without && !run.task.predicts_text()
}

/// What settings that were not given come to in this run.
pub(crate) fn computed(run: &RunConfig, spec: &TaskSpec, plan: Plan) -> Map<String, Value> {
    let warmup = run.warmup().steps(plan.total).ok();
    let evaluates = run.eval_data.is_some();
    let values = json!({
        "label_column": (!spec.task.predicts_text()).then(|| spec.columns.label()),
        "labels": spec.labels,
        "embedding_loss": spec.embedding.map(|embedding| embedding.loss),
        "pooling": spec.embedding.map(|embedding| embedding.pooling),
        "normalize": spec.embedding.map(|embedding| embedding.normalize),
        "max_length": spec.max_length,
        "learning_rate": run.peak_learning_rate(),
        "eval_batch_size": run.batch_size,
        "warmup_steps": warmup,
        "eval_steps": evaluates.then_some(plan.per_epoch),
        "save_steps": plan.per_epoch,
    });
    match values {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}

/// Whether a value says anything: it is neither nothing nor empty.
pub(crate) fn has_value(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

fn object(run: &RunConfig) -> Map<String, Value> {
    match serde_json::to_value(run) {
        Ok(Value::Object(values)) => values,
        _ => unreachable!("a run is an object of plain values"),
    }
}
