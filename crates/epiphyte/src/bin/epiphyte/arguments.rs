//! The command line: subcommands and the flags that all of them have.

use clap::{Parser, Subcommand};

use crate::commands::{eval, generate, inspect, merge, predict, quickstart, train};
use crate::global::Global;

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
