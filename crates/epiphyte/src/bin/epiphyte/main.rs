//! The `epiphyte` command: parsing, dispatch and exit codes.
//!
//! Results go to standard output (a table, or one JSON object with `--json`), everything else to
//! standard error. Exit codes: 0 success, 1 failure, 2 usage error; 130, 143 or 129 after
//! SIGINT, SIGTERM or SIGHUP.

mod arguments;
mod commands;
mod data_arguments;
mod decoding_arguments;
mod device;
mod failure;
mod foreign_names;
mod global;
mod hub;
mod interrupt;
mod logging;
mod output;
mod outputs;
mod progress;
mod settings;
mod standard_output;
mod written;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use epiphyte::ops::allocator::CountingAllocator;

use crate::arguments::{Arguments, Command};
use crate::failure::UsageError;

/// Counts the memory in use, which runs report by what needs it.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Prints what the command line asks for instead of a command: help, the version, or what is wrong
/// with it.
fn answer(request: &clap::Error) -> ExitCode {
    if let Some(ContextValue::String(flag)) = request.get(ContextKind::InvalidArg)
        && request.kind() == ErrorKind::UnknownArgument
        && let Some(advice) = foreign_names::advice(flag)
    {
        let flag = flag.clone();
        return failure::report(&UsageError::ForeignFlag { flag, advice }.into(), false);
    }
    let code = u8::try_from(request.exit_code()).unwrap_or(2);
    if request.use_stderr() {
        let _ = request.print();
        return ExitCode::from(code);
    }
    match output::finish(request.print()) {
        Ok(()) => ExitCode::from(code),
        Err(error) => failure::report(&error, false),
    }
}

fn main() -> ExitCode {
    let Arguments { global, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(request) => return answer(&request),
    };
    logging::start(&global);
    epiphyte::ops::keep_freed_memory();
    epiphyte::models::report_truncated_files();
    let resumable = matches!(command, Command::Train(_));
    let done = global.apply().and_then(|()| match command {
        Command::Quickstart(arguments) => commands::quickstart::run(arguments, &global),
        Command::Train(arguments) => commands::train::run(arguments, &global),
        Command::Plan(arguments) => commands::plan::run(arguments, &global),
        Command::Eval(arguments) => commands::eval::run(arguments, &global),
        Command::Predict(arguments) => commands::predict::run(arguments, &global),
        Command::Generate(arguments) => commands::generate::run(arguments, &global),
        Command::Data(command) => commands::data::run(command, &global),
        Command::Methods(arguments) => commands::methods::run(&arguments, &global),
        Command::Compare(arguments) => commands::compare::run(arguments, &global),
        Command::IntrinsicDimension(arguments) => {
            commands::intrinsic_dimension::run(arguments, &global)
        }
        Command::Report(arguments) => commands::report::run(&arguments, &global),
        Command::Inspect(arguments) => commands::inspect::run(arguments, &global),
        Command::Prompts(command) => commands::prompts::run(command, &global),
        Command::Merge(arguments) => commands::merge::run(arguments, &global),
        Command::Convert(arguments) => commands::convert::run(arguments, &global),
        Command::Export(arguments) => commands::export::run(arguments, &global),
        Command::Unmerge(arguments) => commands::unmerge::run(arguments, &global),
        Command::Quantize(arguments) => commands::quantize::run(arguments, &global),
        Command::Doctor => commands::doctor::run(&global),
        Command::Completions(arguments) => commands::shell::completions(&arguments),
        Command::Man(arguments) => commands::shell::manual(&arguments),
    });
    done.unwrap_or_else(|error| failure::report(&error, resumable))
}
