//! Several adapters over one base: trained side by side, then used in one forward pass.
//!
//! ```sh
//! cargo run --release --example several_adapters
//! ```

#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use epiphyte::Device;
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::{AdapterBatch, Entry, Identity, LoadOptions, Mode, Tokens};
use epiphyte::ops::Sequences;
use epiphyte::train::observer::Silent;
use epiphyte::train::{Interrupt, RunConfig, RunOptions, TaskKind, TaskModel, train_several};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart");
    let directory = tempfile::tempdir()?;
    let device = Device::flex();

    // Two runs that share nothing but the base. It is in memory once, and the products with its
    // frozen matrices are computed for both runs together.
    let run = |method: &str, learning_rate| RunConfig {
        model: quickstart.join("base"),
        train_data: quickstart.join("train.jsonl"),
        task: TaskKind::text(),
        text_columns: vec!["text".to_owned()],
        max_length: Some(64),
        max_steps: Some(5),
        batch_size: 8,
        method: method.to_owned(),
        learning_rate: Some(learning_rate),
        output: directory.path().join(method),
        ..RunConfig::default()
    };
    let runs = [run("lora", 5e-3), run("ia3", 5e-2)];
    let options = RunOptions {
        device: device.clone(),
        ..RunOptions::default()
    };
    train_several(&runs, &options, &Interrupt::default(), &mut Silent)?;

    // Both adapters, opened over one base.
    let table = epiphyte::data::Table::read(&runs[0].train_data, &runs[0].reading()?)?;
    let (task, _) = runs[0].task_spec(&table, &runs[0].model)?;
    let task_model = TaskModel::open(&runs[0].model, task, &device, &LoadOptions::default())?;
    let model = &task_model.loaded.model;
    let open = |run: &RunConfig| AdapterFile::open(&run.output)?.load(model.base(), &device);
    let (lora, ia3) = (open(&runs[0])?, open(&runs[1])?);

    // A batch of three: the text with each adapter, and with none.
    let ids = task_model
        .tokenizer
        .encode("Monday. The wind", None, None)?
        .ids;
    let type_ids = vec![0; ids.len()];
    let tokens = Tokens::new(&ids, &type_ids, Sequences::new(vec![0, ids.len()]));
    let adapters: [&dyn epiphyte::models::Adapter; 3] = [&lora, &ia3, &Identity];
    let batch = AdapterBatch::new(adapters.map(|adapter| Entry {
        adapter,
        tokens: &tokens,
        mode: Mode::Evaluation,
        streams: &[],
    }));
    let together = model.batch_logits(&batch).inner();

    // Each gets the bytes that it gets alone, and they are not the same.
    let bits = |logits: epiphyte::Tensor<2>| -> Result<Vec<u32>, Box<dyn std::error::Error>> {
        let values = logits.inner().try_into_vec_as::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    };
    let mut seen = Vec::new();
    for (index, adapter) in adapters.into_iter().enumerate() {
        let row = together.clone().narrow(0, index, 1);
        let alone = bits(model.logits(&tokens, adapter))?;
        assert_eq!(bits(row)?, alone, "adapter {index}");
        assert!(!seen.contains(&alone));
        seen.push(alone);
    }
    println!("three rows of one batch equal those of three batches, bit by bit");
    Ok(())
}
