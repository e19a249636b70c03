//! The `epiphyte` command: parsing, dispatch and exit codes.
//!
//! Results go to standard output (a table, or one JSON object with `--json`), everything else to
//! standard error. Exit codes: 0 success, 1 failure, 2 usage error, 130 interrupted.

mod arguments;
mod commands;
mod data_arguments;
mod device;
mod failure;
mod global;
mod hub;
mod interrupt;
mod logging;
mod output;
mod progress;
mod settings;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{Arguments, Command};

fn main() -> ExitCode {
    let Arguments { global, command } = Arguments::parse();
    logging::start(&global);
    epiphyte::ops::keep_freed_memory();
    epiphyte::models::report_truncated_files();
    let resumable = matches!(command, Command::Train(_));
    let done = global.apply().and_then(|()| match command {
        Command::Quickstart(arguments) => commands::quickstart::run(arguments, &global),
        Command::Train(arguments) => commands::train::run(arguments, &global),
        Command::Eval(arguments) => commands::eval::run(arguments, &global),
        Command::Predict(arguments) => commands::predict::run(arguments, &global),
        Command::Generate(arguments) => commands::generate::run(arguments, &global),
        Command::Methods => commands::methods::run(&global),
        Command::Inspect(arguments) => commands::inspect::run(arguments, &global),
        Command::Merge(arguments) => commands::merge::run(arguments, &global),
    });
    done.unwrap_or_else(|error| failure::report(&error, resumable))
}
