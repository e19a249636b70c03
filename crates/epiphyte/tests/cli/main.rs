//! The `epiphyte` command as its users meet it: processes, files, exit codes, words.
//!
//! Every test gets a directory of its own with tiny models and data ([`workplace::Workplace`]).

mod about;
mod adapters;
mod bad_input;
mod classes;
mod compare;
mod conversions;
mod data;
mod dry_run;
mod exports;
#[cfg(target_os = "linux")]
mod faults;
mod gguf;
mod interruptions;
mod kills;
mod language;
mod methods;
mod model_card;
mod mutated;
mod optimizers;
mod outputs;
mod predictions;
mod prompts;
mod scores;
mod settings;
mod stages;
mod tasks;
mod workplace;
