//! Signals that ask a run to save and stop: Ctrl-C, and those of batch systems, containers and
//! closed terminals (SIGTERM, SIGHUP).

use std::io;
use std::process::ExitCode;
#[cfg(unix)]
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use epiphyte::train::Interrupt;

use crate::output;

/// The number of Ctrl-C's signal, SIGINT.
const CTRL_C: u8 = 2;

/// The number of the last signal that was heard.
static HEARD: AtomicU8 = AtomicU8::new(CTRL_C);

/// The exit code of a process that a signal ended, as shells have it: 128 and the signal's number.
fn code() -> u8 {
    128 + HEARD.load(Ordering::Relaxed)
}

/// The exit code of a command that stopped for a signal.
pub(crate) fn interrupted() -> ExitCode {
    ExitCode::from(code())
}

/// Listens to signals: the first one asks the run to save and stop, the second ends the process, as
/// the first one does before the first step.
///
/// # Errors
/// If the system refuses.
pub(crate) fn on_signals(quiet: bool) -> Result<Interrupt> {
    let interrupt = Interrupt::default();
    let requested = interrupt.clone();
    let stop = move |signal| {
        HEARD.store(signal, Ordering::Relaxed);
        if requested.request() {
            if !requested.has_begun() && !quiet {
                output::note("stopped before the first step: there is nothing to save");
            }
            // The run has not begun or did not stop after the first one, so it is not waited for,
            // and `main` cannot return an exit code. Files are replaced atomically, so none is left
            // half-written.
            std::process::exit(code().into());
        }
        if !quiet {
            output::note("stopping after this step; Ctrl-C again to leave at once");
        }
    };
    listen(stop).context("cannot listen to signals")?;
    Ok(interrupt)
}

#[cfg(unix)]
fn listen(stop: impl Fn(u8) + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
    use signal_hook::iterator::Signals;

    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let heard = [SIGINT, SIGTERM, SIGHUP].into_iter();
    let mut signals = Signals::new(heard.filter(|&signal| !is_ignored(&status, signal)))?;
    // A file over the limit of `ulimit -f` is then an error of its write and not the end of the
    // process.
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    std::thread::spawn(move || signals.forever().for_each(|signal| stop(signal as u8)));
    Ok(())
}

/// Whether the process was started with a signal ignored, as `nohup` does with SIGHUP: then it
/// stays ignored. Known on Linux alone, from `SigIgn` in `/proc/self/status` (proc(5)), a bit for
/// each signal from 1.
#[cfg(unix)]
fn is_ignored(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(not(unix))]
fn listen(stop: impl Fn(u8) + Send + 'static) -> io::Result<()> {
    ctrlc::set_handler(move || stop(CTRL_C)).map_err(io::Error::other)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_mask_of_ignored_signals_is_read_bit_by_bit() {
        let status = "Name:\tepiphyte\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        for (signal, ignored) in [(1, true), (2, false), (13, true), (15, false)] {
            assert_eq!(is_ignored(status, signal), ignored, "{signal}");
        }
        assert!(!is_ignored("Name:\tepiphyte\n", 1));
    }
}
