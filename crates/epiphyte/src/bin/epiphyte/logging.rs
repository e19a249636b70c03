//! Log messages of the libraries, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::global::Global;
use crate::output;

/// Starts logging: warnings, downloads and how data are read by default, with progress where there
/// is no terminal to draw a bar on; more with `--verbose`, errors only with `--quiet`. `RUST_LOG`
/// overrides the flags.
pub(crate) fn start(global: &Global) {
    let has_no_lines = global.hides_progress() || output::is_terminal();
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) if has_no_lines => "warn,epiphyte_hub=info,epiphyte_data=info",
        (false, 0) => "warn,epiphyte_hub=info,epiphyte_data=info,epiphyte_train::observer=info",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(output::is_terminal())
        .with_target(false)
        .without_time()
        .init();
}
