//! The flags that every subcommand takes.

use anyhow::Result;
use clap::Args;
use epiphyte::Device;
use epiphyte::kernels::threads::{MAX_THREADS, set_threads};

use crate::device;
use crate::failure::UsageError;

/// The flags of every subcommand.
#[derive(Args, Debug)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Print the result as one JSON object
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show no progress and no notes
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; twice for even more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Number of compute threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<usize>,
    /// Device: cpu, gpu, or a GPU backend by name (wgpu, vulkan, metal, cuda, rocm); cuda:1 is its
    /// second GPU
    #[arg(long, global = true, default_value = device::DEFAULT)]
    pub(crate) device: String,
}

impl Global {
    /// Applies the settings of the whole process.
    ///
    /// # Errors
    /// If the number of threads cannot be set, or an environment variable names too many.
    pub(crate) fn apply(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            return Ok(set_threads(threads)?);
        }
        // The thread pool reads these itself when it starts.
        for variable in ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"] {
            let threads = std::env::var(variable).ok();
            let threads = threads.and_then(|text| text.parse::<u64>().ok());
            if threads.is_some_and(|threads| threads > MAX_THREADS as u64) {
                return Err(UsageError::Value {
                    place: format!("the environment variable `{variable}`"),
                    problem: format!("ask for at most {MAX_THREADS} threads"),
                }
                .into());
            }
        }
        Ok(())
    }

    /// Whether progress is hidden: with `--quiet`, and with `--json`, whose reader is a program.
    pub(crate) fn hides_progress(&self) -> bool {
        self.quiet || self.json
    }

    /// The device that `--device` names.
    ///
    /// # Errors
    /// If there is no such device.
    pub(crate) fn device(&self) -> Result<Device> {
        device::parse(&self.device)
    }
}

/// Reads a number of threads.
fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MAX_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("give a number from 1 to {MAX_THREADS}")),
    }
}
