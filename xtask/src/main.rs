//! Programs for those who work on this project, not a part of what it ships:
//!
//! - `cargo run --release -p xtask -- bench-step --work bert-base-lora`: one measurement of
//!   training steps, the Rust side of `benches/against_pytorch` and of `benches/profile_step.py`;
//! - `cargo run --release -p xtask -- bench-decode --model DIRECTORY`: one measurement of text
//!   generation, the Rust side of `benches/against_pytorch/decode.py`;
//! - `cargo run --release -p xtask -- quickstart-base TEXT WORK_DIRECTORY`: the base model that
//!   ships with `epiphyte quickstart`;
//! - `cargo run --release -p xtask -- rows TEXT ROWS FILE`: a file of many examples;
//! - `cargo run --release -p xtask -- adapter-logits --base DIRECTORY ...`: the logits of many
//!   adapters, the Rust side of `tests/parity/sweep.py`.

mod adapter_logits;
mod arguments;
mod bench_decode;
mod bench_step;
mod quickstart_base;
mod rows;

use std::time::Instant;

use anyhow::{Result, bail};
use epiphyte_ops::allocator::CountingAllocator;

/// Counts the memory in use, which `bench-step` reports.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> Result<()> {
    let started = Instant::now();
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next();
    let arguments: Vec<String> = arguments.collect();
    match task.as_deref() {
        Some("bench-step") => bench_step::run(&arguments, started),
        Some("bench-decode") => bench_decode::run(&arguments),
        Some("quickstart-base") => quickstart_base::run(&arguments),
        Some("rows") => rows::run(&arguments),
        Some("adapter-logits") => adapter_logits::run(&arguments),
        _ => bail!(
            "usage: xtask bench-step --work NAME ... | xtask bench-decode --model DIRECTORY ... | xtask quickstart-base TEXT WORK_DIRECTORY \
             | xtask rows TEXT ROWS FILE | xtask adapter-logits --base DIRECTORY ..."
        ),
    }
}

/// Prints a line of results.
#[expect(clippy::print_stdout, reason = "results are this program's output")]
fn print(line: &str) {
    println!("{line}");
}
