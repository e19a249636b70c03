//! One measurement of training steps: the Rust side of `benches/against_pytorch`.
//!
//! The shape that `--work` names, with random weights or those of `--model DIR`, quantized if
//! `--quantization` says so; fixed tokens, no dropout, AdamW over what the method trains. Prints
//! one JSON object with the median time of a step after warm-up, processor seconds a step (of all
//! threads, the first step and the final checkpoint included), tokens a second, peak memory, and
//! the time from the start of the process to the end of the first step.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use epiphyte_data::{Batches, Example, Order, Target};
use epiphyte_methods::{AdapterModule, by_name};
use epiphyte_models::{HeadKind, LoadOptions, ModelConfig, load, random_model};
use epiphyte_ops::{Precision, allocator};
use epiphyte_train::observer::Silent;
use epiphyte_train::report::journal::{self, Record};
use epiphyte_train::training::identity::Identity;
use epiphyte_train::training::schedule::ScheduleKind;
use epiphyte_train::{Interrupt, RunConfig, TaskKind, Trainer, Workload, memory, train_runs};
use serde_json::{Map, Value, json};

use crate::arguments::Arguments;
use crate::print;

/// Measures the work that `arguments` name; `started` is when the process began.
pub(crate) fn run(arguments: &[String], started: Instant) -> Result<()> {
    epiphyte_ops::keep_freed_memory();
    let arguments = Arguments(arguments);
    let work = arguments
        .value("--work")
        .context("pass --work, such as bert-base-lora")?;
    let (steps, warmup) = (
        arguments.number("--steps", 5)?,
        arguments.number("--warmup", 2)?,
    );
    arguments.set_threads()?;
    let precision = match arguments.value("--dtype") {
        Some("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };

    let (config, task) = shape(work)?;
    let (method, settings) = method(work)?;
    let examples = match arguments.value("--data") {
        Some(path) => read(path)?,
        None => fixed(task, config.facts().vocab_size),
    };
    let batch_size = match task {
        HeadKind::LanguageModel => 4,
        _ if work.starts_with("minilm") => 32,
        _ => 16,
    };
    let output = std::env::temp_dir().join(format!("epiphyte-bench-{}", std::process::id()));
    let run = RunConfig {
        output: output.clone(),
        task: match task {
            HeadKind::LanguageModel => TaskKind::text(),
            _ => TaskKind::default(),
        },
        max_steps: Some((steps + warmup) as u64),
        batch_size,
        learning_rate: Some(1e-4),
        lr_scheduler_type: ScheduleKind::Constant,
        logging_steps: 1,
        max_grad_norm: 0.0,
        // One batch is an epoch here; a checkpoint after each would be measured with the steps.
        save_steps: Some(u64::MAX),
        precision,
        micro_batch_tokens: match arguments.value("--micro-batch-tokens") {
            Some(text) => Some(text.parse()?),
            // Its four texts would be one pass: for a few per cent of time, a quarter of the
            // activations.
            None => work.starts_with("llama").then_some(128),
        },
        gradient_checkpointing: arguments.has("--gradient-checkpointing"),
        ..RunConfig::default()
    };
    let device = Device::default();
    let model = match arguments.value("--model") {
        Some(directory) => {
            let options = LoadOptions {
                precision,
                quantization: arguments.quantization()?,
                ..LoadOptions::default()
            };
            load(directory.as_ref(), task, &device, &options)?.model
        }
        None if arguments.quantization()?.is_some() => bail!("--quantization needs --model"),
        None => random_model(&config, task, &device, precision, 0)?,
    };
    let config = by_name(method)?.configure(settings)?;
    let module = AdapterModule::new(config, model.base(), &device, 0)?;
    let batches = Batches::new(examples, batch_size, Order::Sequential)?;
    let work = Workload {
        run: &run,
        model: &model,
        train: &batches,
        eval: None,
        device: &device,
        identity: Identity::default(),
    };
    let mut trainer = [Trainer::new(work, module, false)?];
    let before = since_start(started);
    let processor = processor_seconds();
    train_runs(&mut trainer, &Interrupt::default(), &mut Silent)?;
    let processor = processor_seconds() - processor;
    let records = journal::read(&output.join("log.jsonl"))?;
    std::fs::remove_dir_all(&output)?;

    let ends: Vec<(f64, f64)> = records
        .iter()
        .filter_map(|record| match record {
            Record::Step(step) => Some((step.elapsed, step.loss)),
            Record::Evaluation(_) => None,
        })
        .collect();
    let mut times: Vec<f64> = ends.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let mut times = times.split_off(warmup - 1);
    let first = warmup as u64;
    let epoch = batches.epoch(0);
    let tokens: usize = (first..first + times.len() as u64)
        .map(|step| {
            epoch
                .batch(step as usize % batches.per_epoch())
                .map(|batch| batch.tokens())
        })
        .sum::<Result<usize, _>>()?;
    let tokens_per_s = tokens as f64 / times.iter().sum::<f64>();
    times.sort_by(f64::total_cmp);
    let report = json!({
        "median_step_s": times[times.len() / 2],
        "processor_s_per_step": processor / (steps + warmup) as f64,
        "tokens_per_s": tokens_per_s,
        "peak_rss_bytes": memory::peak_resident_bytes(),
        "peak_live_bytes": allocator::peak_bytes(),
        "first_step_s": before + ends[0].0,
        "loss": ends.last().map(|end| end.1),
    });
    print(&report.to_string());
    Ok(())
}

/// Seconds that the threads of this process have computed, by `/proc/self/stat` (proc(5): in
/// hundredths).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Seconds since the process was started, by `BENCH_START` if the caller set it.
fn since_start(started: Instant) -> f64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |time| time.as_secs_f64());
    let start = std::env::var("BENCH_START")
        .ok()
        .and_then(|start| start.parse::<f64>().ok());
    start.map_or(started.elapsed().as_secs_f64(), |start| now - start)
}

/// The model's shape and task.
fn shape(work: &str) -> Result<(ModelConfig, HeadKind)> {
    let classification = HeadKind::Classification { labels: 2 };
    let no_dropout = json!({ "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0 });
    let (config, task) = if work.starts_with("bert-base") {
        (
            json!({ "model_type": "bert", "num_hidden_layers": 12, "hidden_size": 768,
            "num_attention_heads": 12, "intermediate_size": 3072 }),
            classification,
        )
    } else if work.starts_with("minilm") {
        (
            json!({ "model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384,
            "num_attention_heads": 12, "intermediate_size": 1536 }),
            classification,
        )
    } else if work.starts_with("llama-0.5b") {
        (
            json!({ "model_type": "llama", "num_hidden_layers": 24, "hidden_size": 896,
            "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
            "vocab_size": 151_936, "tie_word_embeddings": true }),
            HeadKind::LanguageModel,
        )
    } else {
        bail!("unknown work `{work}`");
    };
    let mut config = config;
    if let (Some(config), Some(more)) = (config.as_object_mut(), no_dropout.as_object()) {
        config.extend(more.clone());
    }
    Ok((
        ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes())?,
        task,
    ))
}

/// The method and its settings.
fn method(work: &str) -> Result<(&'static str, Map<String, Value>)> {
    let (name, settings) = match work {
        work if work.contains("-lora") => ("lora", json!({ "r": 8, "lora_alpha": 16 })),
        work if work.ends_with("-full") => ("full", json!({})),
        work if work.ends_with("-bitfit") => ("bitfit", json!({})),
        work if work.ends_with("-houlsby") => ("houlsby", json!({ "bottleneck_dim": 64 })),
        work if work.ends_with("-prefix") => ("prefix-tuning", json!({ "num_virtual_tokens": 20 })),
        work if work.ends_with("-ia3") => ("ia3", json!({})),
        work if work.ends_with("-lst") => ("ladder-side-tuning", json!({})),
        other => bail!("unknown work `{other}`"),
    };
    let Value::Object(settings) = settings else {
        unreachable!("the literals are objects")
    };
    Ok((name, settings))
}

/// One batch of fixed tokens, the same as in `torch_side.py`.
fn fixed(task: HeadKind, vocabulary: usize) -> Vec<Example> {
    let rows = if task == HeadKind::LanguageModel {
        4
    } else {
        16
    };
    (0..rows)
        .map(|row| {
            let ids: Vec<u32> = (row * 128..(row + 1) * 128)
                .map(|index| (index * 7919 % (vocabulary - 1) + 1) as u32)
                .collect();
            let target = match task {
                HeadKind::LanguageModel => {
                    Target::Tokens(ids.iter().map(|&id| i64::from(id)).collect())
                }
                _ => Target::Class(row % 2),
            };
            Example {
                type_ids: vec![0; ids.len()],
                ids,
                target,
            }
        })
        .collect()
}

/// Token rows from JSONL: `input_ids`, `token_type_ids`, `label`.
fn read(path: &str) -> Result<Vec<Example>> {
    let numbers = |value: &Value| -> Vec<u32> {
        value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_u64)
            .map(|id| id as u32)
            .collect()
    };
    std::fs::read_to_string(path)?
        .lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line)?;
            Ok(Example {
                ids: numbers(&row["input_ids"]),
                type_ids: numbers(&row["token_type_ids"]),
                target: Target::Class(row["label"].as_u64().unwrap_or(0) as usize),
            })
        })
        .collect()
}
