//! A base model quantized once, in a directory that transformers with bitsandbytes reads too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::Device;
use epiphyte_io::safetensors_file::{Values, prepare_values};
use epiphyte_models::keys::TensorReader;
use epiphyte_models::{Base, Checkpoint, LoadOptions, ModelConfig, ModelError, load};
use epiphyte_ops::quantized::{QuantizedWeight, Scales};
use epiphyte_ops::{FrozenMatrix, Quantization};
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};

use crate::TrainError;
use crate::lock::lock_output;
use crate::merge::{self, MARK, WEIGHTS_FILE, config, files};

/// Heads that transformers would quantize if it were not told to leave them.
const HEADS: [&str; 4] = ["classifier", "lm_head", "qa_outputs", "score"];

/// What quantizing did.
#[derive(Clone, Debug, Serialize)]
pub struct Quantized {
    /// Weights that are quantized.
    pub weights: usize,
    /// Bytes of the base's tensors.
    pub bytes_before: usize,
    /// Bytes of the tensors that were written.
    pub bytes: usize,
    /// The norm of the difference of all quantized weights over their norm.
    pub relative_error: f64,
}

/// Writes the base in `model_dir` to `output` with its linear layers in `quantization`: those that
/// are quantized when a model is loaded so. Everything else stays as it is.
///
/// # Errors
/// If a file cannot be read or written; [`TrainError::Config`] for int4, which bitsandbytes does
/// not have, and for a base that is quantized already; [`TrainError::OutputNotMerged`] if `output`
/// has anything in it that is not an earlier model written by merging or quantizing;
/// [`TrainError::NotFinite`] for weights that are too large.
pub fn quantize(
    model_dir: &Path,
    output: &Path,
    quantization: Quantization,
    overwrite: bool,
) -> Result<Quantized, TrainError> {
    if quantization == Quantization::Int4 {
        return Err(TrainError::Config(
            "bitsandbytes' files have no int4: quantize to nf4, fp4 or int8, or load the model with \
             --quantization int4"
                .to_owned(),
        ));
    }
    let _lock = lock_output(output)?;
    let copied = files::files_of(model_dir)?;
    let written = [config::FILE, WEIGHTS_FILE].map(Path::new).into_iter();
    let written = written.chain(copied.iter().map(|file| &**file));
    merge::check_output(output, written, overwrite)?;
    let checkpoint = Checkpoint::open(model_dir)?;
    if checkpoint.is_quantized() {
        let problem = format!("`{}` is quantized already", model_dir.display());
        return Err(TrainError::Config(problem));
    }
    let model_config = ModelConfig::open(model_dir)?;
    let head = merge::head_of_files(model_dir, &model_config)?;
    let options = LoadOptions {
        quantization: Some(quantization),
        ..LoadOptions::default()
    };
    let loaded = load(model_dir, head, &Device::flex(), &options)?;
    let base = loaded.model.base();
    let reader = TensorReader::new(&checkpoint, model_config.family().key_rules(head));
    let weights = base.tensors().iter().filter_map(|(name, tensor)| {
        let matrix = tensor.matrix()?;
        Some((reader.stored_name(name)?, (matrix.to_quantized()?, matrix)))
    });
    let weights: BTreeMap<String, (QuantizedWeight, &FrozenMatrix)> = weights.collect();
    let mut tensors = Vec::new();
    for name in checkpoint.names() {
        let view = checkpoint.tensor(name).expect("the checkpoint lists it");
        match weights.get(name) {
            Some((weight, _)) => tensors.extend(parts(name, weight, view.dtype)),
            None => {
                let values = merge::stored_values(view);
                tensors.push((name.to_owned(), view.shape.to_vec(), values));
            }
        }
    }
    let bytes: usize = weights.values().map(|(weight, _)| weight.bytes()).sum();
    let kept = checkpoint
        .names()
        .filter(|name| !weights.contains_key(*name));
    let kept = kept.filter_map(|name| checkpoint.tensor(name));
    let bytes_of_kept: usize = kept.map(|view| view.stored_bytes()).sum();
    let relative_error = relative_error(weights.values());
    if !relative_error.is_finite() {
        return Err(TrainError::NotFinite {
            what: format!("a weight in {quantization}"),
        });
    }
    let mut json = config::read(model_dir)?;
    let left = left_out(&checkpoint, &weights, base);
    json.insert(
        config::QUANTIZATION.to_owned(),
        bitsandbytes_config(quantization, &left),
    );
    let json = serde_json::to_string_pretty(&json).expect("JSON values print");
    merge::write_model(output, |directory| {
        let path = directory.join(WEIGHTS_FILE);
        let pending = prepare_values(&path, tensors, &[MARK]).map_err(ModelError::from)?;
        pending.put_in_place()?;
        for file in &copied {
            files::copy(model_dir, file, directory)?;
        }
        epiphyte_io::write(&directory.join(config::FILE), json.as_bytes())?;
        Ok(())
    })?;
    Ok(Quantized {
        weights: weights.len(),
        bytes_before: checkpoint.total_bytes(),
        bytes: bytes_of_kept + bytes,
        relative_error,
    })
}

/// The tensors of a quantized weight, as bitsandbytes serializes them.
fn parts<'a>(
    name: &str,
    weight: &'a QuantizedWeight,
    dtype: Dtype,
) -> Vec<(String, Vec<usize>, Values<'a>)> {
    let [out, input] = weight.shape();
    let floats = |values: &'a [f32]| Values::F32(Box::new(move || values.to_vec()));
    let at = |end: &str| format!("{name}{end}");
    let codes = |dtype| Values::Bytes(dtype, weight.codes().into());
    match (weight.scales(), weight.format().levels()) {
        (Scales::Nested(nested), Some(levels)) => {
            let format = Quantization::from(weight.format());
            let state = json!({
                "quant_type": format.name(),
                "blocksize": weight.block(),
                "dtype": match dtype {
                    Dtype::F16 => "float16",
                    Dtype::BF16 => "bfloat16",
                    _ => "float32",
                },
                "shape": [out, input],
                "nested_blocksize": nested.block,
                "nested_dtype": "float32",
                "nested_offset": f64::from(nested.offset),
            });
            let state = state.to_string().into_bytes();
            let state_name = format!(".quant_state.bitsandbytes__{}", format.name());
            vec![
                (at(""), vec![weight.codes().len(), 1], codes(Dtype::U8)),
                (
                    at(".absmax"),
                    vec![nested.codes.len()],
                    Values::Bytes(Dtype::U8, (&nested.codes).into()),
                ),
                (
                    at(".nested_absmax"),
                    vec![nested.scales.len()],
                    floats(&nested.scales),
                ),
                (
                    at(".nested_quant_map"),
                    vec![nested.map.len()],
                    floats(&nested.map),
                ),
                (at(".quant_map"), vec![levels.len()], floats(levels)),
                (
                    at(&state_name),
                    vec![state.len()],
                    Values::Bytes(Dtype::U8, state.into()),
                ),
            ]
        }
        (Scales::Of127(largest), _) => {
            let module = name.strip_suffix("weight").unwrap_or(name);
            vec![
                (at(""), vec![out, input], codes(Dtype::I8)),
                (format!("{module}SCB"), vec![out], floats(largest)),
                (
                    format!("{module}weight_format"),
                    Vec::new(),
                    Values::Bytes(Dtype::U8, vec![0].into()),
                ),
            ]
        }
        (scales, _) => unreachable!("no such scales are written: {scales:?}"),
    }
}

/// Modules that transformers must leave as they are: those with a matrix that is not quantized.
fn left_out(
    checkpoint: &Checkpoint,
    weights: &BTreeMap<String, (QuantizedWeight, &FrozenMatrix)>,
    base: &Base,
) -> BTreeSet<String> {
    let matrices = checkpoint.names().filter(|name| {
        let tensor = checkpoint.tensor(name);
        !weights.contains_key(*name) && tensor.is_some_and(|tensor| tensor.shape.len() == 2)
    });
    let modules = matrices.filter_map(|name| name.strip_suffix(".weight"));
    let modules = modules.map(|module| module.strip_prefix(base.prefix).unwrap_or(module));
    modules.chain(HEADS).map(str::to_owned).collect()
}

/// `quantization_config`, as transformers writes it.
fn bitsandbytes_config(quantization: Quantization, left_out: &BTreeSet<String>) -> Value {
    let is_int8 = quantization == Quantization::Int8;
    json!({
        "quant_method": "bitsandbytes",
        "load_in_4bit": !is_int8,
        "load_in_8bit": is_int8,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": if is_int8 { "nf4" } else { quantization.name() },
        "bnb_4bit_use_double_quant": !is_int8,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": left_out,
        "llm_int8_threshold": 6.0,
    })
}

/// The norm of what quantization changed, over the norm of the weights.
fn relative_error<'a>(
    weights: impl Iterator<Item = &'a (QuantizedWeight, &'a FrozenMatrix)>,
) -> f64 {
    let (mut difference, mut whole) = (0.0, 0.0);
    for (weight, matrix) in weights {
        let before = matrix.to_unquantized_tensor().try_into_vec_as::<f32>();
        let before = before.expect("a base's values are numbers");
        let mut after = vec![0.0; before.len()];
        weight.decode(0, &mut after);
        for (before, after) in before.into_iter().zip(after) {
            difference += (f64::from(before) - f64::from(after)).powi(2);
            whole += f64::from(before).powi(2);
        }
    }
    match whole > 0.0 {
        true => (difference / whole).sqrt(),
        false => 0.0,
    }
}
