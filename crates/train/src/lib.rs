//! The trainer: optimizer, schedules, metrics, exact resume, logs.
//!
//! [`train`] takes a [`RunConfig`] from files to an adapter's directory; [`TaskModel`] and
//! [`mod@evaluate`] serve what comes after. A run is a function of its configuration: stopped at any
//! moment and resumed, it ends with the same bytes.
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

mod activation_cache;
mod calibration;
pub mod checkpoints;
pub mod config;
pub mod display;
pub mod early_stopping;
pub mod error;
pub mod evaluate;
mod generate;
pub mod interrupt;
pub mod journal;
pub mod memory;
mod merge;
pub mod metrics;
mod micro_batch;
pub mod model_card;
mod model_input;
pub mod observer;
pub mod optimizer;
mod run;
pub mod schedule;
mod state;
pub mod tasks;
pub mod tensorboard;
mod train_loop;
mod trainer;

pub use activation_cache::ActivationCacheKind;
pub use config::RunConfig;
pub use error::TrainError;
pub use evaluate::Evaluation;
pub use generate::{Generation, generate};
pub use interrupt::Interrupt;
pub use merge::{Merged, merge};
pub use observer::Observer;
pub use run::{Report, RunOptions, Tuning, open_adapter, train, train_several};
pub use tasks::{TASKS, Task, TaskKind, TaskModel, TaskSpec};
pub use train_loop::train_runs;
pub use trainer::{End, Outcome, Plan, Trainer, Workload};
