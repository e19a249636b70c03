//! The `epiphyte` command as its users meet it: processes, files, exit codes, words.
//!
//! Every test gets a directory of its own with tiny models and data ([`workplace::Workplace`]).

mod adapters;
mod bad_input;
mod classes;
mod data;
mod interruptions;
mod language;
mod methods;
mod scores;
mod settings;
mod workplace;
