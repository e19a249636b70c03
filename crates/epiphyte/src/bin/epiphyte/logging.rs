//! Log messages of the libraries, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::global::Global;
use crate::output;

/// Starts logging: warnings, downloads and how data are read by default, more with `--verbose`,
/// errors only with `--quiet`. `RUST_LOG` overrides the flags.
pub(crate) fn start(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn,epiphyte_hub=info,epiphyte_data=info",
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
