//! The command line: subcommands and the flags that all of them have.

use clap::{Parser, Subcommand};

use crate::commands::{
    compare, convert, data, eval, export, generate, inspect, intrinsic_dimension, merge, methods,
    plan, predict, prompts, quantize, quickstart, report, shell, train, unmerge,
};
use crate::global::Global;

/// Fine-tune a pretrained transformer without changing it: the base stays frozen, and the trained
/// parameters are a small file.
#[derive(Debug, Parser)]
#[command(name = "epiphyte", version = env!("EPIPHYTE_VERSION"), max_term_width = 110, after_help = EXAMPLES)]
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
  epiphyte train --method lora --help";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fine-tune a small built-in model with three methods, in about a minute
    #[command(after_help = quickstart::EXAMPLES)]
    Quickstart(quickstart::Arguments),
    /// Fine-tune a base model
    #[command(after_help = train::EXAMPLES)]
    Train(train::Arguments),
    /// Say what a run will take: parameters, memory, time
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::Arguments),
    /// Evaluate a model on labeled data
    #[command(after_help = eval::EXAMPLES)]
    Eval(eval::Arguments),
    /// Predict a label or number for every row of a file
    #[command(after_help = predict::EXAMPLES)]
    Predict(predict::Arguments),
    /// Continue a text
    #[command(after_help = generate::EXAMPLES)]
    Generate(generate::Arguments),
    /// Show what a model reads of a file, and which data sets are known by name
    #[command(subcommand)]
    Data(data::Command),
    /// List the fine-tuning methods, or describe some with their settings
    #[command(after_help = methods::EXAMPLES)]
    Methods(methods::Arguments),
    /// Compare methods: scores, parameters, memory and time over models, tasks and seeds
    #[command(after_help = compare::EXAMPLES)]
    Compare(compare::Arguments),
    /// Search for the smallest random space in which a task can be learned
    #[command(after_help = intrinsic_dimension::EXAMPLES)]
    IntrinsicDimension(intrinsic_dimension::Arguments),
    /// Draw the curves and costs of training runs as one HTML file
    #[command(after_help = report::EXAMPLES)]
    Report(report::Arguments),
    /// Show the contents of an adapter or a base model
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::Arguments),
    /// Show what trained prompts mean, and which are alike
    #[command(subcommand)]
    Prompts(prompts::Command),
    /// Fold an adapter into its base
    #[command(after_help = merge::EXAMPLES)]
    Merge(merge::Arguments),
    /// Turn the changes of an adapter, a fine-tuned model or a delta into LoRA or a delta
    #[command(after_help = convert::EXAMPLES)]
    Convert(convert::Arguments),
    /// Write a model or an adapter as a file of another program: GGUF, which llama.cpp reads
    #[command(after_help = export::EXAMPLES)]
    Export(export::Arguments),
    /// Restore the base of a merged model to the bit, from the patch of its merge
    #[command(after_help = unmerge::EXAMPLES)]
    Unmerge(unmerge::Arguments),
    /// Write a base model with its linear layers in 4 or 8 bits
    #[command(after_help = quantize::EXAMPLES)]
    Quantize(quantize::Arguments),
    /// Show what a bug report needs: version, processor, memory, devices, caches
    #[command(after_help = "Examples:\n  epiphyte doctor\n  epiphyte doctor --json")]
    Doctor,
    /// Print a script that completes the command line in a shell
    #[command(after_help = shell::COMPLETIONS_EXAMPLES)]
    Completions(shell::Completions),
    /// Print the manual page
    #[command(after_help = shell::MAN_EXAMPLES)]
    Man(shell::Manual),
}

/// The words of the command line; what is not UTF-8 in them is replaced, for help and messages.
pub(crate) fn words() -> impl Iterator<Item = String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned())
}
