//! The command line: subcommands and the flags that all of them have.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use epiphyte::Device;

use crate::commands::{eval, generate, inspect, merge, predict, quickstart, train};
use crate::device;

/// Fine-tune a pretrained transformer without changing it: the base stays frozen, and the trained
/// parameters are a small file.
#[derive(Debug, Parser)]
#[command(name = "epiphyte", version, max_term_width = 110, after_help = EXAMPLES)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  epiphyte quickstart
  epiphyte methods
  epiphyte train --model bert-base-uncased --train-data train.jsonl --eval-data dev.jsonl \\
      --text-columns text --method lora --output adapter
  epiphyte eval --model bert-base-uncased --adapter adapter --data test.jsonl
  epiphyte train --help";

/// Flags of every subcommand.
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
    /// Device: cpu, gpu, or a GPU backend by name (wgpu, vulkan, metal, cuda, rocm); cuda:1 is its second GPU
    #[arg(long, global = true, default_value = device::DEFAULT)]
    pub(crate) device: String,
}

impl Global {
    /// Applies the settings of the whole process.
    pub(crate) fn apply(&self) -> Result<()> {
        if let Some(threads) = self.threads {
            epiphyte::kernels::threads::set_threads(threads)?;
        }
        Ok(())
    }

    /// Whether progress is hidden: with `--quiet`, and with `--json`, whose output a program reads.
    pub(crate) fn hides_progress(&self) -> bool {
        self.quiet || self.json
    }

    /// The device that was asked for.
    pub(crate) fn device(&self) -> Result<Device> {
        device::parse(&self.device)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a small built-in model with three methods, in about a minute
    #[command(after_help = quickstart::EXAMPLES)]
    Quickstart(quickstart::Arguments),
    /// Fine-tune a base model
    #[command(after_help = train::EXAMPLES)]
    Train(train::Arguments),
    /// Evaluate a model on labeled data
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::Arguments),
    /// Write labels and logits for every example of a file
    #[command(after_help = predict::EXAMPLES)]
    Predict(predict::Arguments),
    /// Continue a text
    #[command(after_help = generate::EXAMPLES)]
    Generate(generate::Arguments),
    /// List the fine-tuning methods and their flags
    #[command(after_help = "Examples:\n  epiphyte methods\n  epiphyte methods --json")]
    Methods,
    /// Show the contents of an adapter or a base model
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::Arguments),
    /// Fold an adapter into its base
    #[command(after_help = merge::EXAMPLES)]
    Merge(merge::Arguments),
}
