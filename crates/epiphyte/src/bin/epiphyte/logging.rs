//! What the libraries have to tell, on standard error.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::arguments::Global;
use crate::output;

/// Shows warnings and downloads; with `--verbose` what is done, too. `RUST_LOG` overrides both.
pub(crate) fn start(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (false, 0) => "warn,epiphyte_hub=info",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(output::is_watched())
        .with_target(false)
        .without_time()
        .init();
}
