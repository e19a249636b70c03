//! The trainer: optimizer, schedules, metrics, exact resume, logs.
//!
//! [`train`] takes a [`RunConfig`] from files to an adapter's directory; [`TaskModel`] and
//! [`mod@scoring::evaluate`] serve what comes after. A run is a function of its configuration:
//! stopped at any moment and resumed, it ends with the same bytes.
//!
//! ```no_run
//! use epiphyte_train::observer::LogLines;
//! use epiphyte_train::{Interrupt, RunConfig, RunOptions, train};
//!
//! let run = RunConfig {
//!     model: "bert-base-uncased".into(),
//!     train_data: "train.jsonl".into(),
//!     text_columns: vec!["text".into()],
//!     method: "lora".into(),
//!     output: "adapter".into(),
//!     ..RunConfig::default()
//! };
//! let options = RunOptions::default();
//! let report = train(&run, &options, &Interrupt::default(), &mut LogLines::default())?;
//! println!("{} values trained", report.account.trainable_parameters);
//! # Ok::<(), epiphyte_train::TrainError>(())
//! ```

/// What a model predicts over a data set, and how good that is.
pub mod scoring {
    pub(crate) mod answers;
    pub mod embeddings;
    pub mod evaluate;
    pub mod forgetting;
    pub mod inference;
    pub(crate) mod majority;
    pub mod metrics;
    pub(crate) mod model_input;
    pub(crate) mod predictions;
    pub mod written_texts;
}

/// What a run writes about itself: log, TensorBoard events, model card.
pub mod report {
    pub mod account;
    pub mod journal;
    pub mod model_card;
    pub(crate) mod run_card;
    pub(crate) mod run_log;
    pub mod settings;
    pub mod tensorboard;
}

/// From a configuration to trained parameters: the loop and its parts.
pub mod training {
    pub(crate) mod activation_cache;
    pub(crate) mod calibration;
    pub mod checkpoints;
    pub mod config;
    pub mod early_stopping;
    pub mod identity;
    pub(crate) mod micro_batch;
    pub mod optimizer;
    pub(crate) mod resume;
    pub mod schedule;
    pub(crate) mod state;
    pub(crate) mod train_loop;
    pub(crate) mod trainer;
}

mod classifier;
mod convert;
pub mod display;
mod dry_run;
mod embedder;
pub mod error;
mod generate;
mod gguf;
pub mod interrupt;
mod label_words;
mod lock;
pub mod memory;
mod merge;
pub mod observer;
mod plan;
mod quantize;
mod run;
mod run_directory;
mod sentence_transformers;
pub mod tasks;
mod trigger_words;

pub use classifier::{Classifier, Prediction};
pub use convert::{
    Changes, Delta, Exchanged, Origin, adapter_of_adapterhub, adapter_to_adapterhub,
    convert_adapter, delta_of_adapter, delta_of_model, extract_lora,
};
pub use dry_run::{DataSummary, DryRun, LengthRange, dry_run};
pub use embedder::Embedder;
pub use error::TrainError;
pub use generate::{
    Generated, Generation, GenerationEnd, Sampling, generate, generate_all, generate_batch,
};
pub use gguf::{Exported, export_adapter, export_model};
pub use interrupt::Interrupt;
pub use label_words::{LabelWordSearch, LabelWords, find_label_words};
pub use lock::{Lock, check_output_directory, lock_output};
pub use merge::{
    CombinedModels, MergeOptions, Merged, Patch, Unmerged, WeightType, WithoutHead, combine_models,
    merge, unmerge, write_patch,
};
pub use observer::Observer;
pub use plan::{Limit, Remedy, RunPlan, plan};
pub use quantize::{Quantized, quantize};
pub use run::{
    LoadedAdapter, Report, RunOptions, SharedBase, check_runs, open_adapter, train, train_several,
};
pub use run_directory::holds_run;
pub use scoring::evaluate::Evaluation;
pub use tasks::{TASKS, Task, TaskKind, TaskModel, TaskRows, TaskSpec};
pub use training::activation_cache::ActivationCacheKind;
pub use training::config::RunConfig;
pub use training::train_loop::train_runs;
pub use training::trainer::{End, EvaluationData, Outcome, Plan, Trainer, Workload};
pub use trigger_words::{TRIGGER, TriggerSearch, TriggerStep, TriggerWords, find_trigger_words};
