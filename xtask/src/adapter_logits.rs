//! The logits of many adapters over one base: the Rust side of `tests/parity/sweep.py`.
//!
//! Reads a base's directory, and a file with the rows that it is run on: `{"input_ids": [[..]],
//! "token_type_ids": [[..]], "labels": [[..]], "classes": 3}`, of which the second is for pairs,
//! the third for a decoder's targets, and the last for a classifier. Prints one JSON object a line
//! for each adapter that the file of `--list` names, one a line, with the logits of all rows or
//! what is wrong with it. With `--save DIR` each adapter that loads is written again, as `DIR/<its
//! name>`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use burn::tensor::Device;
use epiphyte_methods::file::{AdapterFile, AdapterMetadata, Provenance, save};
use epiphyte_models::{
    Adapter, AdapterBatch, DecoderTokens, HeadKind, LoadOptions, Model, Tokens, load,
};
use epiphyte_ops::Sequences;
use serde_json::{Value, json};

use crate::arguments::Arguments;
use crate::print;

/// Runs `adapter-logits --base DIR --rows FILE --list FILE [--save DIR]`.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let flags = Arguments(arguments);
    let base = flags.value("--base").context("pass --base DIR")?;
    let rows = flags.value("--rows").context("pass --rows FILE")?;
    let rows: Value = serde_json::from_str(&fs::read_to_string(rows)?)?;
    let head = match rows["classes"].as_u64() {
        Some(classes) => HeadKind::Classification {
            labels: classes as usize,
        },
        None => HeadKind::LanguageModel,
    };
    let device = Device::default();
    let options = LoadOptions::default();
    let loaded = load(Path::new(base), head, &device, &options)?;
    let adapters = flags.value("--list").context("pass --list FILE")?;
    for adapter in fs::read_to_string(adapters)?.lines() {
        let dir = Path::new(adapter);
        let line = match one(&loaded.model, &rows, dir, flags.value("--save"), &device) {
            Ok(logits) => json!({ "adapter": adapter, "logits": logits }),
            Err(error) => json!({ "adapter": adapter, "problem": format!("{error:#}") }),
        };
        print(&line.to_string());
    }
    Ok(())
}

/// The logits of one adapter, which is written again below `save_in`.
fn one(
    model: &Model,
    rows: &Value,
    dir: &Path,
    save_in: Option<&str>,
    device: &Device,
) -> Result<Vec<f32>> {
    let file = AdapterFile::open(dir)?;
    let module = file.load(model.base(), device)?;
    if let (Some(save_in), Some(name)) = (save_in, dir.file_name()) {
        let metadata = AdapterMetadata {
            base_model: file.base_model().unwrap_or_default().to_owned(),
            task_type: file.task_type().unwrap_or_default().to_owned(),
            provenance: Provenance {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                method: file.config().definition().name.to_owned(),
                base_sha256: String::new(),
                base_config: None,
                base_quantization: None,
                tokenizer_sha256: String::new(),
                task: Value::Null,
                account: None,
                training: None,
            },
        };
        save(
            &Path::new(save_in).join(name),
            &module,
            model.base(),
            &metadata,
        )?;
    }
    let count = rows["input_ids"].as_array().map_or(0, Vec::len);
    let mut logits = Vec::new();
    for row in 0..count {
        logits.extend(of_row(model, rows, row, &module)?);
    }
    Ok(logits)
}

/// The logits of one row: of its classes, or of every token.
fn of_row(model: &Model, rows: &Value, row: usize, adapter: &dyn Adapter) -> Result<Vec<f32>> {
    let ids: Vec<u32> = serde_json::from_value(rows["input_ids"][row].clone())?;
    let type_ids = match rows["token_type_ids"][row].is_array() {
        true => serde_json::from_value(rows["token_type_ids"][row].clone())?,
        false => vec![0; ids.len()],
    };
    let labels: Vec<i64> = match rows["labels"][row].is_array() {
        true => serde_json::from_value(rows["labels"][row].clone())?,
        false => ids.iter().map(|&id| i64::from(id)).collect(),
    };
    let sequences = Sequences::new(vec![0, ids.len()]);
    let target = Sequences::new(vec![0, labels.len()]);
    let decoder = model.backbone().decoder_input(&labels, &target);
    let tokens = Tokens {
        decoder: decoder.as_ref().map(|ids| DecoderTokens {
            ids,
            sequences: target.clone(),
        }),
        ..Tokens::new(&ids, &type_ids, sequences.clone())
    };
    let logits = match model.language_head() {
        None => model.logits(&tokens, adapter),
        Some(head) => {
            let hidden = model.hidden(&tokens, adapter);
            let own = if decoder.is_some() {
                labels.len()
            } else {
                ids.len()
            };
            // Virtual tokens come first.
            let all = hidden.rows.tokens();
            let real: Vec<usize> = (all - own..all).collect();
            let real = hidden.select_rows(&real);
            let batch = AdapterBatch::single(adapter, &tokens);
            head.forward(real.states, &real.rows, &batch)
        }
    };
    let values = logits.inner().try_into_vec_as::<f32>();
    Ok(values.expect("logits are f32 and can be read"))
}
