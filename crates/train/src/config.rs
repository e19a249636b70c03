//! Everything a user may say about a run. Every key is a flag of `epiphyte train`, and the other way round.
//!
//! Keys that are not here are the method's own and go to it; it refuses those that it does not know.

use std::path::PathBuf;

use epiphyte_data::{Columns, Format, Order, ReadOptions};
use epiphyte_methods::{Flag, FlagKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::TrainError;
use crate::activation_cache::ActivationCacheKind;
use crate::early_stopping::Selection;
use crate::evaluate;
use crate::schedule::{ScheduleKind, Warmup};
use crate::tasks::TaskKind;

/// A run: model, data, method, optimisation, output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunConfig {
    /// Directory of the base model.
    pub model: PathBuf,
    /// Where the adapter, the log and the checkpoints go.
    pub output: PathBuf,
    /// What is learned.
    pub task: TaskKind,
    /// The training examples.
    pub train_data: PathBuf,
    /// The examples to evaluate on.
    pub eval_data: Option<PathBuf>,
    /// Text columns: one, or two for pairs.
    pub text_columns: Vec<String>,
    /// The label's or number's column.
    pub label_column: Option<String>,
    /// Language modelling: the column of the prompt.
    pub prompt_column: Option<String>,
    /// Language modelling: the column of the completion.
    pub completion_column: Option<String>,
    /// Language modelling: the column of the chat.
    pub messages_column: Option<String>,
    /// The data's format: json, jsonl, csv, tsv, parquet or text; by the extension if not given.
    pub format: Option<String>,
    /// The first line of CSV and TSV files is data, columns are called 0, 1, …
    pub no_header: bool,
    /// Whether `"` quotes fields; CSV yes and TSV no if not given.
    pub quoting: Option<bool>,
    /// Use only the first so many training rows.
    pub max_train_rows: Option<usize>,
    /// Use only the first so many evaluation rows.
    pub max_eval_rows: Option<usize>,
    /// Plain text: join all rows and cut the result into examples of `max_length`.
    pub packing: bool,
    /// Longest example in tokens.
    pub max_length: Option<usize>,
    /// The method's name.
    pub method: String,
    /// Passes over the training data.
    pub epochs: f64,
    /// Stop after so many optimiser steps, whatever `epochs` says.
    pub max_steps: Option<u64>,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// Sequences in a batch of an evaluation; as in training if not given.
    pub eval_batch_size: Option<usize>,
    /// Batches before an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate goes.
    pub lr_scheduler_type: ScheduleKind,
    /// Share of all steps in which the learning rate rises.
    pub warmup_ratio: f64,
    /// Steps in which the learning rate rises; goes before the ratio.
    pub warmup_steps: Option<u64>,
    /// AdamW's decoupled weight decay; biases and norms are not decayed.
    pub weight_decay: f64,
    /// AdamW's decay of the mean of gradients.
    pub adam_beta1: f64,
    /// AdamW's decay of the mean of squared gradients.
    pub adam_beta2: f64,
    /// AdamW's term in the denominator.
    pub adam_epsilon: f64,
    /// Longest gradient, all parameters together; longer ones are scaled down. 0 for no limit.
    pub max_grad_norm: f64,
    /// Share of the target distribution that is spread over all classes.
    pub label_smoothing: f64,
    /// The base's own dropout, in place of what its config.json says.
    pub base_dropout: Option<f64>,
    /// In which type the frozen base is kept: f32 or bf16.
    pub precision: Precision,
    /// About how many tokens go through the model at once: a batch with more goes in several passes, whose gradients
    /// are added up. If not given, 512 on a processor and whole batches on a GPU.
    pub tokens_per_pass: Option<usize>,
    /// Keep only what enters each layer and compute the rest again on the way back: less memory, more time.
    pub gradient_checkpointing: bool,
    /// Where states below the lowest trained layer are kept from epoch to epoch, if nothing is random there.
    pub trunk_cache: ActivationCacheKind,
    /// The most that these may take, in gigabytes (10⁹ bytes).
    pub trunk_cache_budget: f64,
    /// From what initialisation, order and dropout follow.
    pub seed: u64,
    /// Bring examples of similar length into the same batch.
    pub group_by_length: bool,
    /// Evaluate every so many steps; after every epoch if not given.
    pub eval_steps: Option<u64>,
    /// Save a checkpoint every so many steps; at every evaluation or epoch if not given.
    pub save_steps: Option<u64>,
    /// Keep so many checkpoints, beside the best.
    pub save_total_limit: usize,
    /// Log every so many steps.
    pub logging_steps: u64,
    /// By which metric the best checkpoint is chosen; loss if not given.
    pub metric_for_best_model: Option<String>,
    /// Save the best evaluation's adapter at the end, not the last step's.
    pub load_best_model_at_end: bool,
    /// Stop after so many evaluations without improvement.
    pub early_stopping_patience: Option<u32>,
    /// What counts as an improvement.
    pub early_stopping_threshold: f64,
    /// What the method's own flags say.
    #[serde(flatten)]
    pub method_settings: Map<String, Value>,
}

/// In which type the frozen base is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
}

impl From<Precision> for epiphyte_ops::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            output: PathBuf::new(),
            task: TaskKind::SequenceClassification,
            train_data: PathBuf::new(),
            eval_data: None,
            text_columns: Vec::new(),
            label_column: None,
            prompt_column: None,
            completion_column: None,
            messages_column: None,
            format: None,
            no_header: false,
            quoting: None,
            max_train_rows: None,
            max_eval_rows: None,
            packing: false,
            max_length: None,
            method: "lora".to_owned(),
            epochs: 3.0,
            max_steps: None,
            batch_size: 32,
            eval_batch_size: None,
            gradient_accumulation_steps: 1,
            learning_rate: 1e-3,
            lr_scheduler_type: ScheduleKind::Linear,
            warmup_ratio: 0.06,
            warmup_steps: None,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            label_smoothing: 0.0,
            base_dropout: None,
            precision: Precision::F32,
            tokens_per_pass: None,
            gradient_checkpointing: false,
            trunk_cache: ActivationCacheKind::Auto,
            trunk_cache_budget: 4.0,
            seed: 0,
            group_by_length: false,
            eval_steps: None,
            save_steps: None,
            save_total_limit: 1,
            logging_steps: 10,
            metric_for_best_model: None,
            load_best_model_at_end: false,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            method_settings: Map::new(),
        }
    }
}

const fn flag(flag: &'static str, key: &'static str, kind: FlagKind, help: &'static str) -> Flag {
    Flag {
        flag,
        key,
        help,
        kind,
    }
}

impl RunConfig {
    /// The run's own flags, one a key.
    pub const FLAGS: &'static [Flag] = &[
        flag(
            "model",
            "model",
            FlagKind::Text,
            "directory of the base model (config.json, *.safetensors, tokenizer.json), or its name on the hub",
        ),
        flag(
            "output",
            "output",
            FlagKind::Text,
            "where the adapter, the log and the checkpoints go",
        ),
        flag(
            "task",
            "task",
            FlagKind::Text,
            "what is learned: sequence-classification, regression or causal-language-modelling [default: sequence-classification]",
        ),
        flag(
            "train-data",
            "train_data",
            FlagKind::Text,
            "training examples: .jsonl, .json, .csv, .tsv, .parquet or .txt",
        ),
        flag(
            "eval-data",
            "eval_data",
            FlagKind::Text,
            "examples to evaluate on",
        ),
        flag(
            "text-columns",
            "text_columns",
            FlagKind::Texts,
            "text column, or two for pairs: a,b",
        ),
        flag(
            "label-column",
            "label_column",
            FlagKind::Text,
            "column of the label or number [default: label]",
        ),
        flag(
            "prompt-column",
            "prompt_column",
            FlagKind::Text,
            "language modelling: column of the prompt",
        ),
        flag(
            "completion-column",
            "completion_column",
            FlagKind::Text,
            "language modelling: column of the completion, which alone is learned",
        ),
        flag(
            "messages-column",
            "messages_column",
            FlagKind::Text,
            "language modelling: column of the chat messages",
        ),
        flag(
            "format",
            "format",
            FlagKind::Text,
            "format of the data: json, jsonl, csv, tsv, parquet or text [default: by extension]",
        ),
        flag(
            "no-header",
            "no_header",
            FlagKind::Switch,
            "CSV and TSV without a header line; columns are called 0, 1, ...",
        ),
        flag(
            "quoting",
            "quoting",
            FlagKind::Boolean,
            "whether \" quotes fields: true or false [default: CSV true, TSV false]",
        ),
        flag(
            "max-train-rows",
            "max_train_rows",
            FlagKind::Integer,
            "use only the first N training rows",
        ),
        flag(
            "max-eval-rows",
            "max_eval_rows",
            FlagKind::Integer,
            "use only the first N evaluation rows",
        ),
        flag(
            "packing",
            "packing",
            FlagKind::Switch,
            "plain text: join all rows, cut into examples of max-length",
        ),
        flag(
            "max-length",
            "max_length",
            FlagKind::Integer,
            "longest example in tokens [default: 128, or 512 for language modelling]",
        ),
        flag(
            "method",
            "method",
            FlagKind::Text,
            "fine-tuning method; see `epiphyte methods` [default: lora]",
        ),
        flag(
            "epochs",
            "epochs",
            FlagKind::Number,
            "passes over the training data [default: 3]",
        ),
        flag(
            "max-steps",
            "max_steps",
            FlagKind::Integer,
            "stop after N optimiser steps",
        ),
        flag(
            "batch-size",
            "batch_size",
            FlagKind::Integer,
            "sequences in a batch [default: 32]",
        ),
        flag(
            "eval-batch-size",
            "eval_batch_size",
            FlagKind::Integer,
            "sequences in a batch of an evaluation",
        ),
        flag(
            "gradient-accumulation-steps",
            "gradient_accumulation_steps",
            FlagKind::Integer,
            "batches before an optimiser step [default: 1]",
        ),
        flag(
            "learning-rate",
            "learning_rate",
            FlagKind::Number,
            "highest learning rate [default: 1e-3]",
        ),
        flag(
            "lr-scheduler-type",
            "lr_scheduler_type",
            FlagKind::Text,
            "how the learning rate goes: linear, cosine, constant or constant_with_warmup [default: linear]",
        ),
        flag(
            "warmup-ratio",
            "warmup_ratio",
            FlagKind::Number,
            "share of steps in which the learning rate rises [default: 0.06]",
        ),
        flag(
            "warmup-steps",
            "warmup_steps",
            FlagKind::Integer,
            "steps in which the learning rate rises; goes before the ratio",
        ),
        flag(
            "weight-decay",
            "weight_decay",
            FlagKind::Number,
            "AdamW's decoupled weight decay [default: 0]",
        ),
        flag(
            "adam-beta1",
            "adam_beta1",
            FlagKind::Number,
            "AdamW's decay of the mean of gradients [default: 0.9]",
        ),
        flag(
            "adam-beta2",
            "adam_beta2",
            FlagKind::Number,
            "AdamW's decay of the mean of squared gradients [default: 0.999]",
        ),
        flag(
            "adam-epsilon",
            "adam_epsilon",
            FlagKind::Number,
            "AdamW's term in the denominator [default: 1e-8]",
        ),
        flag(
            "max-grad-norm",
            "max_grad_norm",
            FlagKind::Number,
            "scale longer gradients down to this; 0 for no limit [default: 1]",
        ),
        flag(
            "label-smoothing",
            "label_smoothing",
            FlagKind::Number,
            "share of the target spread over all classes [default: 0]",
        ),
        flag(
            "base-dropout",
            "base_dropout",
            FlagKind::Number,
            "the base's own dropout [default: what its config.json says]",
        ),
        flag(
            "precision",
            "precision",
            FlagKind::Text,
            "type of the frozen base: f32 or bf16 [default: f32]",
        ),
        flag(
            "tokens-per-pass",
            "tokens_per_pass",
            FlagKind::Integer,
            "about how many tokens of a batch go through the model at once [default: 512; on a GPU all]",
        ),
        flag(
            "gradient-checkpointing",
            "gradient_checkpointing",
            FlagKind::Switch,
            "compute layers again on the way back: less memory, more time",
        ),
        flag(
            "trunk-cache",
            "trunk_cache",
            FlagKind::Text,
            "where states below the lowest trained layer are kept: auto, memory, disk or off [default: auto]",
        ),
        flag(
            "trunk-cache-budget",
            "trunk_cache_budget",
            FlagKind::Number,
            "the most that they may take, in gigabytes [default: 4]",
        ),
        flag(
            "seed",
            "seed",
            FlagKind::Integer,
            "what initialisation, order and dropout follow from [default: 0]",
        ),
        flag(
            "group-by-length",
            "group_by_length",
            FlagKind::Switch,
            "bring examples of similar length into the same batch",
        ),
        flag(
            "eval-steps",
            "eval_steps",
            FlagKind::Integer,
            "evaluate every N steps [default: every epoch]",
        ),
        flag(
            "save-steps",
            "save_steps",
            FlagKind::Integer,
            "save a checkpoint every N steps [default: every epoch]",
        ),
        flag(
            "save-total-limit",
            "save_total_limit",
            FlagKind::Integer,
            "keep N checkpoints beside the best [default: 1]",
        ),
        flag(
            "logging-steps",
            "logging_steps",
            FlagKind::Integer,
            "log every N steps [default: 10]",
        ),
        flag(
            "metric-for-best-model",
            "metric_for_best_model",
            FlagKind::Text,
            "metric that decides which checkpoint is best [default: loss]",
        ),
        flag(
            "load-best-model-at-end",
            "load_best_model_at_end",
            FlagKind::Switch,
            "save the best evaluation's adapter at the end",
        ),
        flag(
            "early-stopping-patience",
            "early_stopping_patience",
            FlagKind::Integer,
            "stop after N evaluations without improvement",
        ),
        flag(
            "early-stopping-threshold",
            "early_stopping_threshold",
            FlagKind::Number,
            "what counts as an improvement [default: 0]",
        ),
    ];

    /// A run from the keys and values of a file and flags.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if a value is of the wrong type or unknown.
    pub fn parse(settings: Map<String, Value>) -> Result<Self, TrainError> {
        // Every key has a default, so each can be read alone: its error then has its name.
        for (key, value) in &settings {
            let alone = Value::Object(Map::from_iter([(key.clone(), value.clone())]));
            Self::deserialize(alone).map_err(|error| TrainError::Setting {
                key: key.clone(),
                problem: error.to_string(),
            })?;
        }
        serde_json::from_value(Value::Object(settings))
            .map_err(|error| TrainError::Config(error.to_string()))
    }

    /// Checks what can be checked before anything is read.
    ///
    /// # Errors
    /// [`TrainError::Config`] or [`TrainError::Setting`], which name the key.
    pub fn check(&self) -> Result<(), TrainError> {
        let required = [
            ("model", &self.model),
            ("output", &self.output),
            ("train_data", &self.train_data),
        ];
        for (key, path) in required {
            if path.as_os_str().is_empty() {
                let flag = key.replace('_', "-");
                return Err(TrainError::Config(format!(
                    "`{key}` is missing: pass --{flag} or set it in the file"
                )));
            }
        }
        let wrong = |key: &str, value: f64, expected: &str| {
            Err(TrainError::Config(format!(
                "`{key}` is {value}, but it must be {expected}"
            )))
        };
        let positive = [
            ("batch_size", self.batch_size as f64),
            (
                "gradient_accumulation_steps",
                self.gradient_accumulation_steps as f64,
            ),
            ("epochs", self.epochs),
            ("learning_rate", self.learning_rate),
            ("logging_steps", self.logging_steps as f64),
            ("save_total_limit", self.save_total_limit as f64),
            ("max_steps", self.max_steps.unwrap_or(1) as f64),
            ("eval_steps", self.eval_steps.unwrap_or(1) as f64),
            ("save_steps", self.save_steps.unwrap_or(1) as f64),
            ("eval_batch_size", self.eval_batch_size.unwrap_or(1) as f64),
            ("tokens_per_pass", self.tokens_per_pass.unwrap_or(1) as f64),
        ];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return wrong(key, value, "greater than 0");
            }
        }
        let shares = [
            ("warmup_ratio", self.warmup_ratio),
            ("label_smoothing", self.label_smoothing),
            ("base_dropout", self.base_dropout.unwrap_or(0.0)),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return wrong(key, value, "in [0, 1)");
            }
        }
        self.reading()?;
        let measured = evaluate::measured(self.task);
        if let Some(metric) = &self.metric_for_best_model
            && !measured.contains(&metric.as_str())
        {
            return Err(TrainError::Setting {
                key: "metric_for_best_model".to_owned(),
                problem: format!(
                    "`{metric}` is not measured for {}, but {} are",
                    self.task,
                    measured.join(", ")
                ),
            });
        }
        if self.eval_data.is_none() {
            let evaluated = [
                (
                    "early_stopping_patience",
                    self.early_stopping_patience.is_some(),
                ),
                ("load_best_model_at_end", self.load_best_model_at_end),
                (
                    "metric_for_best_model",
                    self.metric_for_best_model.is_some(),
                ),
            ];
            if let Some((key, _)) = evaluated.iter().find(|(_, is_set)| *is_set) {
                return Err(TrainError::Config(format!(
                    "`{key}` needs evaluations: pass --eval-data"
                )));
            }
        }
        for (key, value) in [
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("trunk_cache_budget", self.trunk_cache_budget),
        ] {
            if !(value >= 0.0 && value.is_finite()) {
                return wrong(key, value, "0 or more");
            }
        }
        Ok(())
    }

    /// The data's columns.
    pub fn columns(&self) -> Columns {
        Columns {
            text_columns: self.text_columns.clone(),
            label_column: self.label_column.clone(),
            prompt_column: self.prompt_column.clone(),
            completion_column: self.completion_column.clone(),
            messages_column: self.messages_column.clone(),
            ..Columns::default()
        }
    }

    /// How data files are read, the number of rows aside.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the format is unknown.
    pub fn reading(&self) -> Result<ReadOptions, TrainError> {
        let format = self.format.as_deref().map(str::parse::<Format>);
        let format = format.transpose().map_err(|error| TrainError::Setting {
            key: "format".to_owned(),
            problem: error.to_string(),
        })?;
        Ok(ReadOptions {
            format,
            header: !self.no_header,
            quoting: self.quoting,
            limit: None,
        })
    }

    /// The order of training examples.
    pub fn order(&self) -> Order {
        if self.group_by_length {
            Order::LengthGrouped { seed: self.seed }
        } else {
            Order::Shuffled { seed: self.seed }
        }
    }

    /// The warm-up.
    pub fn warmup(&self) -> Warmup {
        self.warmup_steps
            .map_or(Warmup::Ratio(self.warmup_ratio), Warmup::Steps)
    }

    /// How the best evaluation is chosen.
    pub fn selection(&self) -> Selection {
        let metric = self.metric_for_best_model.as_deref().unwrap_or("loss");
        Selection {
            patience: self.early_stopping_patience,
            min_delta: self.early_stopping_threshold,
            ..Selection::by(metric)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_a_flag() {
        let Ok(Value::Object(keys)) = serde_json::to_value(RunConfig::default()) else {
            panic!("a run is an object");
        };
        let mut keys: Vec<&str> = keys.keys().map(String::as_str).collect();
        let mut flags: Vec<&str> = RunConfig::FLAGS.iter().map(|flag| flag.key).collect();
        keys.sort_unstable();
        flags.sort_unstable();
        assert_eq!(keys, flags);
        for flag in RunConfig::FLAGS {
            assert_eq!(flag.flag.replace('-', "_"), flag.key);
        }
    }

    #[test]
    fn keys_of_the_method_are_left_to_it() {
        let Value::Object(settings) = serde_json::json!({ "rank": 4, "epochs": 2 }) else {
            unreachable!()
        };
        let run = RunConfig::parse(settings).unwrap();
        assert_eq!(run.epochs, 2.0);
        assert_eq!(run.method_settings["rank"], 4);
    }

    #[test]
    fn values_that_there_are_not_are_named() {
        for (key, value, words) in [
            ("lr_scheduler_type", "linera", "`constant_with_warmup`"),
            ("precision", "f31", "expected `f32` or `bf16`"),
            ("task", "translation", "`causal-language-modelling`"),
        ] {
            let settings = Map::from_iter([
                ("epochs".to_owned(), 2.into()),
                (key.to_owned(), value.into()),
            ]);
            let error = RunConfig::parse(settings).unwrap_err();
            assert!(matches!(&error, TrainError::Setting { key: named, .. } if named == key));
            for words in [value, words] {
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn what_needs_evaluations_is_refused_without_them() {
        let run = RunConfig {
            model: "m".into(),
            output: "o".into(),
            train_data: "t".into(),
            early_stopping_patience: Some(2),
            ..RunConfig::default()
        };
        let error = run.check().unwrap_err().to_string();
        assert!(error.contains("`early_stopping_patience`"), "{error}");
        let run = RunConfig {
            eval_data: Some("e".into()),
            ..run
        };
        run.check().unwrap();
        let run = RunConfig {
            metric_for_best_model: Some("perplexity".to_owned()),
            ..run
        };
        let error = run.check().unwrap_err().to_string();
        assert!(error.contains("`perplexity` is not measured"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let run = RunConfig {
            model: "m".into(),
            output: "o".into(),
            train_data: "t".into(),
            batch_size: 0,
            ..RunConfig::default()
        };
        assert!(
            run.check()
                .unwrap_err()
                .to_string()
                .contains("`batch_size` is 0")
        );
    }
}
