//! Ctrl-C.

use anyhow::{Context, Result};
use epiphyte::train::Interrupt;

use crate::output;

/// The exit code of a process that Ctrl-C ended.
pub(crate) const INTERRUPTED: u8 = 130;

/// Installs the Ctrl-C handler: the first Ctrl-C asks the run to save and stop, the second ends the
/// process.
///
/// # Errors
/// If the system refuses to install the handler.
pub(crate) fn on_ctrl_c(quiet: bool) -> Result<Interrupt> {
    let interrupt = Interrupt::default();
    let requested = interrupt.clone();
    let handler = move || {
        if requested.request() {
            // The run did not stop after the first one, so it cannot be waited for, and `main`
            // cannot return an exit code. Files are replaced atomically, so none is left
            // half-written.
            std::process::exit(INTERRUPTED.into());
        }
        if !quiet {
            output::note("stopping after this step; Ctrl-C again to leave at once");
        }
    };
    ctrlc::set_handler(handler).context("cannot listen to Ctrl-C")?;
    Ok(interrupt)
}
