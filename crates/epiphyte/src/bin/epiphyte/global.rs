//! The flags that every subcommand takes.

use anyhow::Result;
use clap::Args;
use epiphyte::Device;

use crate::device;

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
    #[arg(long, global = true, value_name = "N")]
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
    /// If the number of threads cannot be set.
    pub(crate) fn apply(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            epiphyte::kernels::threads::set_threads(threads)?;
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
