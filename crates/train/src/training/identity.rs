//! What a run is: everything that its result depends on, so that no other is continued in its
//! place.
//!
//! Paths are no part of it, but what lies there is, as hashes: a run goes on in a directory that
//! was moved, and does not go on over another base or other examples. Neither is what changes no
//! byte of the result: logging, checkpoints, caches.

use std::collections::BTreeMap;

use epiphyte_data::{Batches, Day};
use epiphyte_methods::framework::settings::{Flag, Settings};
use epiphyte_methods::{AdapterModule, METHODS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::report::settings::{computed, has_value};
use crate::scoring::model_input::MICRO_BATCH_TOKENS;
use crate::tasks::TaskModel;
use crate::tasks::question_answering::MAX_ANSWER_LENGTH;
use crate::training::config::RunConfig;
use crate::training::trainer::Plan;

/// Settings that change no byte of the result, or whose effect the hashes of inputs show, or that
/// the number of steps says.
const NOT_IDENTITY: &[&str] = &[
    "model",
    "output",
    "train_data",
    "eval_data",
    "forgetting_data",
    "max_forgetting_rows",
    "meteor_data",
    "labels",
    "format",
    "delimiter",
    "quoting",
    "no_header",
    "doc_stride",
    "epochs",
    "max_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "gradient_checkpointing",
    "activation_cache",
    "activation_cache_budget",
    "chat_template",
];

/// Settings that have a default which depends on the run: a run that names it is the same run. The
/// states of earlier versions do not have it.
const WITH_DEFAULT: &[&str] = &[
    "text_columns",
    "label_column",
    "label_columns",
    "choice_columns",
    "prompt_column",
    "prompt_template",
    "completion_column",
    "messages_column",
    "source_column",
    "target_column",
    "embedding_loss",
    "pooling",
    "normalize",
    "max_length",
    "max_answer_length",
    "eval_batch_size",
    "micro_batch_tokens",
    "eval_steps",
    "metrics",
    "max_new_tokens",
    "num_beams",
    "metric_for_best_model",
];

/// What decides the result of a run, but for the number of its steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Settings of the run, of its method with their defaults, and those of the base's
    /// `config.json` on which results depend.
    settings: Map<String, Value>,
    /// The SHA-256 of each input, by what it is.
    inputs: BTreeMap<String, String>,
    /// The names of the task's classes.
    labels: Vec<String>,
    /// The day that chat templates read, which goes on with the run. The hashes of the examples
    /// show its effect, so it is not compared.
    #[serde(default)]
    pub(crate) today: Option<Day>,
}

impl Identity {
    /// The identity of `run`, which trains `module` over a model.
    pub fn new(
        run: &RunConfig,
        module: &AdapterModule,
        task_model: &TaskModel,
        train: &Batches,
        eval: Option<&Batches>,
    ) -> Self {
        let defaults = defaults(run, task_model, train);
        let learning_rate = run.peak_learning_rate();
        let mut run = serde_json::to_value(run).expect("a run is plain values");
        // The method's own, if it is not set: another version may have another.
        run["learning_rate"] = learning_rate.into();
        for key in WITH_DEFAULT {
            if !has_value(&run[key]) {
                run[key] = defaults.get(*key).cloned().unwrap_or_default();
            }
        }
        let run = run.as_object().cloned().unwrap_or_default().into_iter();
        let run = run.filter(|(key, _)| !NOT_IDENTITY.contains(&key.as_str()));
        let method = module.config().resolved(task_model.loaded.model.base());
        let config = &task_model.loaded.config;
        let base = config.computation().into_iter().chain(config.dropouts());
        let base = base.map(|(key, value)| (format!("config.json: {key}"), value));
        let inputs = [
            ("base model", Some(task_model.loaded.content_hash.clone())),
            (
                "tokenizer",
                Some(task_model.tokenizer.content_hash().to_owned()),
            ),
            ("training examples", Some(train.content_hash())),
            ("evaluation examples", eval.map(Batches::content_hash)),
        ];
        Self {
            settings: run.chain(method).chain(base).collect(),
            inputs: inputs
                .into_iter()
                .filter_map(|(input, hash)| Some((input.to_owned(), hash?)))
                .collect(),
            labels: task_model.spec.labels.clone(),
            today: task_model.spec.today,
        }
    }

    /// What differs between this run, which was begun, and `now`, each as a phrase.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let keys = self.settings.keys();
        let added = now
            .settings
            .keys()
            .filter(|key| !self.settings.contains_key(*key));
        let is_compared = |key: &&String| !NOT_IDENTITY.contains(&key.as_str());
        for key in keys.chain(added).filter(is_compared) {
            let (then, now) = (self.settings.get(key), now.settings.get(key));
            let is_of_earlier_version =
                WITH_DEFAULT.contains(&key.as_str()) && !then.is_some_and(has_value);
            if is_of_earlier_version {
                continue;
            }
            if then.unwrap_or(&Value::Null) != now.unwrap_or(&Value::Null) {
                let (name, then, now) = (name(key), shown(then), shown(now));
                differences.push(format!("`{name}` was {then} and is {now}"));
            }
        }
        let inputs = self.inputs.keys();
        let added = now
            .inputs
            .keys()
            .filter(|key| !self.inputs.contains_key(*key));
        for input in inputs.chain(added) {
            match (self.inputs.get(input), now.inputs.get(input)) {
                (Some(then), Some(now)) if then == now => {}
                (Some(_), Some(_)) => differences.push(format!("{} {input}", other(input))),
                (Some(_), None) => differences.push(format!("no {input} any more")),
                (None, _) => differences.push(format!("{input}, of which there were none")),
            }
        }
        if self.labels != now.labels {
            let (then, now) = (self.labels.join(", "), now.labels.join(", "));
            differences.push(format!("the classes were {then} and are {now}"));
        }
        differences
    }
}

/// The word for another input of this name.
fn other(input: &str) -> &'static str {
    match input.ends_with('s') {
        true => "other",
        false => "another",
    }
}

/// What settings come to in a run that does not name them.
fn defaults(run: &RunConfig, task_model: &TaskModel, train: &Batches) -> Map<String, Value> {
    let spec = &task_model.spec;
    let mut defaults = computed(run, spec, Plan::new(run, train.per_epoch()));
    let columns = serde_json::to_value(&spec.columns).expect("columns are plain values");
    let columns = columns.as_object().cloned().unwrap_or_default();
    defaults.extend(columns);
    // A GPU's default differs from it by rounding alone.
    defaults.insert("micro_batch_tokens".to_owned(), MICRO_BATCH_TOKENS.into());
    if run.task.reads_windows() {
        let longest = spec.max_answer_length.unwrap_or(MAX_ANSWER_LENGTH);
        defaults.insert("max_answer_length".to_owned(), longest.into());
    }
    if run.eval_data.is_some() {
        defaults.insert("metric_for_best_model".to_owned(), "loss".into());
    }
    defaults
}

/// What users know a setting by: the name of its flag.
fn name(key: &str) -> String {
    let methods = METHODS.iter().flat_map(|method| method.flags);
    let mut flags = RunConfig::FLAGS.iter().chain(methods);
    let flag = flags.find(|flag| flag.key == key);
    flag.map_or_else(|| key.to_owned(), Flag::name)
}

fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn identity(settings: Value, inputs: &[(&str, &str)], labels: &[&str]) -> Identity {
        let inputs = inputs.iter();
        Identity {
            settings: settings.as_object().unwrap().clone(),
            inputs: inputs
                .map(|(input, hash)| ((*input).to_owned(), (*hash).to_owned()))
                .collect(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            today: None,
        }
    }

    #[test]
    fn each_difference_is_named() {
        let then = identity(
            json!({ "seed": 0, "r": 8, "packing": false }),
            &[("tokenizer", "a"), ("evaluation examples", "b")],
            &["no", "yes"],
        );
        assert_eq!(then.differences(&then), [""; 0]);
        let now = identity(
            json!({ "seed": 1, "packing": false, "init_r": 4 }),
            &[("tokenizer", "c"), ("training examples", "d")],
            &["yes", "no"],
        );
        let expected = [
            "`seed` was 0 and is 1",
            "`rank` was 8 and is not set",
            "`init_r` was not set and is 4",
            "no evaluation examples any more",
            "another tokenizer",
            "training examples, of which there were none",
            "the classes were no, yes and are yes, no",
        ];
        assert_eq!(then.differences(&now), expected);
    }

    /// A state of an earlier version has no value for a setting that was not given.
    #[test]
    fn a_default_that_is_named_is_no_difference() {
        let then = identity(
            json!({ "max_length": null, "text_columns": [], "labels": [] }),
            &[("training examples", "a")],
            &["no", "yes"],
        );
        let now = identity(
            json!({ "max_length": 128, "text_columns": ["text"], "labels": ["no", "yes"] }),
            &[("training examples", "b")],
            &["no", "yes"],
        );
        assert_eq!(then.differences(&now), ["other training examples"]);
        let now = Identity {
            settings: json!({ "max_length": 64 }).as_object().unwrap().clone(),
            ..now
        };
        let differences = now.differences(&then);
        assert_eq!(differences[0], "`max_length` was 64 and is not set");
    }

    /// A key of these lists that no setting has would leave a renamed setting in the identity.
    #[test]
    fn what_is_no_part_of_the_identity_is_a_setting() {
        let run = serde_json::to_value(RunConfig::default()).unwrap();
        for key in NOT_IDENTITY.iter().chain(WITH_DEFAULT) {
            assert!(run.get(key).is_some(), "{key}");
        }
    }
}
