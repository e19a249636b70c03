//! One measurement of text generation: the Rust side of `benches/against_pytorch/decode.py`.
//!
//! Greedy tokens after a prompt of fixed ids, without an adapter. Prints one JSON object with the
//! prompt's tokens a second (the first new token included), new tokens a second after the first, of
//! all texts together, and resident memory before and after.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::tensor::Device;
use epiphyte_models::{HeadKind, Identity, LoadOptions, load};
use epiphyte_ops::Precision;
use epiphyte_train::{Generation, generate, generate_batch, memory};
use serde_json::json;

use crate::arguments::Arguments;
use crate::print;

/// Measures the model in the directory that `arguments` name.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    epiphyte_ops::keep_freed_memory();
    let arguments = Arguments(arguments);
    let model: PathBuf = arguments
        .value("--model")
        .context("pass --model DIR")?
        .into();
    let (prompt, new) = (
        arguments.number("--prompt", 512)?,
        arguments.number("--new", 64)?,
    );
    let batch = arguments.number("--batch", 1)?;
    arguments.set_threads()?;
    let options = LoadOptions {
        precision: arguments
            .value("--dtype")
            .unwrap_or("bf16")
            .parse::<Precision>()?,
        quantization: arguments.quantization()?,
        ..LoadOptions::default()
    };
    let began = Instant::now();
    let loaded = load(
        &model,
        HeadKind::LanguageModel,
        &Device::default(),
        &options,
    )?;
    let load_s = began.elapsed().as_secs_f64();
    let ids: Vec<u32> = (0..prompt as u32).map(|at| 10 + at * 7 % 900).collect();
    // A short text reads every weight.
    let once = Generation::greedy(1, Vec::new(), usize::MAX);
    let warm = Instant::now();
    generate(
        &loaded.model,
        &Identity,
        &ids[..8.min(prompt)],
        &once,
        |_| ControlFlow::Continue(()),
    )?;
    let first_use_s = warm.elapsed().as_secs_f64();

    let how = Generation::greedy(new, Vec::new(), usize::MAX);
    let (first, all) = if batch == 1 {
        let start = Instant::now();
        let mut first = None;
        generate(&loaded.model, &Identity, &ids, &how, |_| {
            first.get_or_insert_with(|| start.elapsed().as_secs_f64());
            ControlFlow::Continue(())
        })?;
        (first.unwrap_or_default(), start.elapsed().as_secs_f64())
    } else {
        let prompts = vec![ids.clone(); batch];
        let start = Instant::now();
        generate_batch(&loaded.model, &Identity, &prompts, &once)?;
        let first = start.elapsed().as_secs_f64();
        let start = Instant::now();
        generate_batch(&loaded.model, &Identity, &prompts, &how)?;
        (first, start.elapsed().as_secs_f64())
    };
    let report = json!({
        "load_s": load_s,
        "first_use_s": first_use_s,
        "prompt_tokens_per_s": (batch * prompt) as f64 / first,
        "new_tokens_per_s": (batch * (new - 1)) as f64 / (all - first),
        "peak_rss_bytes": memory::peak_resident_bytes(),
        "rss_bytes": memory::resident_bytes(),
        "weights_bytes": std::fs::metadata(model.join("model.safetensors")).map(|it| it.len()).ok(),
    });
    print(&report.to_string());
    Ok(())
}
