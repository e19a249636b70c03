//! Models and LoRA adapters as GGUF files, which llama.cpp reads.
//!
//! The layout is that of llama.cpp's own converters (`convert_hf_to_gguf.py` and
//! `convert_lora_to_gguf.py`): its names of tensors and metadata
//! ([`Architecture`]), its vocabulary ([`vocabulary`]), by which files are read too. Two things are
//! more than names:
//!
//! | | |
//! | --- | --- |
//! | Llama, Mistral | llama.cpp turns neighboring dimensions of a head, Hugging Face the two halves: the rows of queries and keys are put in that order |
//! | Gemma | llama.cpp multiplies by the stored scale of a norm, Hugging Face by 1 more: 1 is added |
//!
//! An adapter has `lora_a [r, in]` and `lora_b [out, r]` of each layer and one alpha for all; where
//! layers differ in their scaling (`alpha_pattern`, `use_rslora`), B is multiplied by the rest.

use std::path::Path;

use epiphyte_data::gguf::{self as vocabulary, VocabularyOfModel};
use epiphyte_data::{DataError, Tokenizer};
use epiphyte_io::gguf::{GgufValue, TensorToWrite, keys, prepare_gguf};
use epiphyte_io::safetensors_file::is_finite_as;
use epiphyte_methods::file::AdapterFile;
use epiphyte_methods::file::combine::{LowRankChange, low_rank_changes};
use epiphyte_models::families::decoder::DecoderConfig;
use epiphyte_models::gguf::{Architecture, ROPE_FACTORS, RowOrder};
use epiphyte_models::keys::TensorReader;
use epiphyte_models::{Checkpoint, HeadKind, ModelConfig};
use safetensors::Dtype;
use serde::Serialize;

use crate::{TrainError, WeightType};

/// A file that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// llama.cpp's name of the architecture.
    pub architecture: &'static str,
    /// Tensors in the file.
    pub tensors: usize,
    /// Values of all tensors.
    pub values: usize,
}

/// Writes the model in `model_dir` to `path`, its matrices as `dtype` or in the type of its files.
///
/// # Errors
/// [`TrainError::NotGguf`] if llama.cpp computes something else than the model, or reads its texts
/// otherwise; if a file cannot be read or written.
pub fn export_model(
    model_dir: &Path,
    path: &Path,
    dtype: Option<WeightType>,
) -> Result<Exported, TrainError> {
    let (config, decoder, architecture) = open(model_dir)?;
    let checkpoint = Checkpoint::open(model_dir)?;
    if checkpoint.is_quantized() {
        return Err(refused(
            "its weights are quantized: export the model in full precision",
        ));
    }
    if let Some(name) = checkpoint.non_finite().first() {
        return Err(TrainError::NotFinite {
            what: format!("`{name}`"),
        });
    }
    let tokenizer = Tokenizer::load(model_dir)?;
    let rules = config.family().key_rules(HeadKind::LanguageModel);
    let mut reader = TensorReader::new(&checkpoint, rules);
    if let Some([head, words]) = config.family().tied() {
        if !reader.is_tied(head, words) {
            return Err(refused(
                "its head is not the table of words, and its config.json says so",
            ));
        }
        reader.stand_in(words, &[head]);
    }
    let floats = checkpoint
        .names()
        .filter_map(|name| checkpoint.tensor(name));
    let own = floats.map(|view| view.dtype).find(|it| *it != Dtype::F32);
    let matrices = match dtype.map(WeightType::of_file).or(own) {
        Some(dtype @ (Dtype::F16 | Dtype::BF16)) => dtype,
        _ => Dtype::F32,
    };
    let mut tensors = Vec::new();
    for name in architecture.tensors(&decoder) {
        let view = reader.tensor(&name.hugging_face);
        let Some(view) = view.filter(|view| view.is_float()) else {
            match name.optional {
                true => continue,
                false => return Err(refused(&format!("`{}` is not there", name.hugging_face))),
            }
        };
        reader.skip(&name.hugging_face);
        let shape = name.shape;
        if shape != view.shape {
            return Err(refused(&format!(
                "`{}` has the shape {:?}, and {shape:?} by config.json",
                name.hugging_face, view.shape
            )));
        }
        let dtype = match shape.len() {
            1 => Dtype::F32,
            _ => matrices,
        };
        if dtype != view.dtype {
            let values = view.to_f32().expect("the type was checked");
            if !values.iter().all(|value| is_finite_as(*value, dtype)) {
                return Err(TrainError::NotFinite {
                    what: format!("`{}` as {dtype}", name.hugging_face),
                });
            }
        }
        let (rows, order, offset) = (shape[0], name.rows, name.offset);
        tensors.push(TensorToWrite {
            name: name.gguf,
            dtype,
            shape,
            values: Box::new(move || {
                let values = view.to_f32().expect("the type was checked");
                let values = in_order(values, rows, order);
                values.into_iter().map(|value| value + offset).collect()
            }),
        });
    }
    if let Some(extra) = reader.extra().next() {
        return Err(refused(&format!("llama.cpp has no place for `{extra}`")));
    }
    if let Some(factors) = architecture.rope_factors(&decoder) {
        tensors.push(TensorToWrite {
            name: ROPE_FACTORS.to_owned(),
            shape: vec![factors.len()],
            dtype: Dtype::F32,
            values: Box::new(|| factors),
        });
    }
    let mut metadata = vec![
        text(keys::ARCHITECTURE, architecture.name),
        text("general.type", "model"),
        text("general.name", &name_of(model_dir)),
    ];
    metadata.extend(architecture.metadata(&decoder));
    metadata.extend(file_type(matrices));
    metadata.push(("general.quantization_version".to_owned(), GgufValue::U32(2)));
    let of_model = VocabularyOfModel {
        size: decoder.vocab_size,
        bos_token_id: decoder.bos_token_id,
        eos_token_id: decoder.eos_token_ids.first().copied(),
        pad_token_id: decoder.pad_token_id,
    };
    metadata.extend(
        vocabulary::metadata(&tokenizer, &of_model).map_err(|error| match error {
            DataError::NotGguf { reason } => refused(&reason),
            other => other.into(),
        })?,
    );
    write(path, architecture.name, &metadata, tensors)
}

/// Writes an adapter of LoRA over the base in `model_dir` to `path`.
///
/// # Errors
/// As [`export_model`]; if the adapter is not plain LoRA, or holds more than that.
pub fn export_adapter(
    model_dir: &Path,
    adapter: &AdapterFile,
    path: &Path,
    dtype: Option<WeightType>,
) -> Result<Exported, TrainError> {
    let (_, decoder, architecture) = open(model_dir)?;
    let (alpha, changes) = low_rank_changes(adapter)?;
    let matrices = dtype.map_or(Dtype::F32, WeightType::of_file);
    let mut names = architecture.tensors(&decoder);
    names.retain(|name| name.hugging_face.ends_with(".weight"));
    let mut tensors = Vec::new();
    for change in changes {
        let LowRankChange { path, a, b, .. } = &change;
        let weight = format!("{path}.weight");
        // PEFT's paths of a bare base lack the prefix.
        let is_it =
            |wanted: &str| wanted == weight || wanted.strip_prefix("model.") == Some(&weight);
        let Some(name) = names.iter().find(|name| is_it(&name.hugging_face)) else {
            return Err(refused(&format!(
                "llama.cpp has no place for LoRA of `{path}`"
            )));
        };
        let [rank, _] = a.dims();
        let rest = change.scaling * rank as f64 / alpha;
        let a = if change.is_table {
            a.clone().transpose()
        } else {
            a.clone()
        };
        let b = b.clone() * rest;
        for (end, matrix, order) in [("lora_a", a, RowOrder::Same), ("lora_b", b, name.rows)] {
            let [rows, _] = matrix.dims();
            tensors.push(TensorToWrite {
                name: format!("{}.{end}", name.gguf),
                shape: matrix.dims().to_vec(),
                dtype: matrices,
                values: Box::new(move || {
                    let values = matrix.into_data().try_into_vec_as::<f32>();
                    in_order(values.expect("matrices are f32"), rows, order)
                }),
            });
        }
    }
    let mut metadata = vec![
        text(keys::ARCHITECTURE, architecture.name),
        text("general.type", "adapter"),
        text("general.name", &name_of(adapter.directory())),
        text("adapter.type", "lora"),
        (
            "adapter.lora.alpha".to_owned(),
            GgufValue::F32(alpha as f32),
        ),
    ];
    metadata.extend(file_type(matrices));
    write(path, architecture.name, &metadata, tensors)
}

/// A model's configuration, and its architecture if llama.cpp computes the same.
fn open(
    model_dir: &Path,
) -> Result<(ModelConfig, DecoderConfig, &'static Architecture), TrainError> {
    let config = ModelConfig::open(model_dir)?;
    let model_type = &config.facts().model_type;
    let architecture = Architecture::of_model_type(model_type);
    let decoder = config.of_family::<DecoderConfig>().cloned();
    let (Some(architecture), Some(decoder)) = (architecture, decoder) else {
        return Err(refused(&format!(
            "`{model_type}` is none of the Llama, Qwen and Gemma families"
        )));
    };
    architecture
        .check(&decoder)
        .map_err(|problem| refused(&problem))?;
    Ok((config, decoder, architecture))
}

fn write(
    path: &Path,
    architecture: &'static str,
    metadata: &[(String, GgufValue)],
    tensors: Vec<TensorToWrite<'_>>,
) -> Result<Exported, TrainError> {
    let count = tensors.len();
    let sizes = tensors
        .iter()
        .map(|tensor| tensor.shape.iter().product::<usize>());
    let values = sizes.sum();
    prepare_gguf(path, metadata, tensors)?.put_in_place()?;
    Ok(Exported {
        architecture,
        tensors: count,
        values,
    })
}

/// Why something is not exported.
fn refused(reason: &str) -> TrainError {
    TrainError::NotGguf {
        reason: reason.to_owned(),
    }
}

fn text(key: &str, value: &str) -> (String, GgufValue) {
    (key.to_owned(), GgufValue::String(value.to_owned()))
}

/// llama.cpp's number for the type of most matrices.
fn file_type(dtype: Dtype) -> [(String, GgufValue); 1] {
    let number = match dtype {
        Dtype::F16 => 1,
        Dtype::BF16 => 32,
        _ => 0,
    };
    [("general.file_type".to_owned(), GgufValue::U32(number))]
}

/// The last part of a directory's path.
fn name_of(dir: &Path) -> String {
    let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    whole
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Values in `rows` rows, put in the order that llama.cpp has.
fn in_order(values: Vec<f32>, rows: usize, order: RowOrder) -> Vec<f32> {
    if order == RowOrder::Same {
        return values;
    }
    let columns = values.len() / rows.max(1);
    let row = |row: usize| {
        let at = order.in_hugging_face(row) * columns;
        values[at..at + columns].iter().copied()
    };
    (0..rows).flat_map(row).collect()
}
