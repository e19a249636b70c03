//! Bases in llama.cpp's GGUF files: the configuration and the tensors of a Hugging Face directory,
//! from the one file.
//!
//! | | |
//! | --- | --- |
//! | `config.json` | made of the metadata ([`Architecture`]), and read like any other |
//! | names, order of rows, scales of norms | those of [`Architecture::tensors`], which files are written by too |
//! | types | the values of blocks are those of PyPI's `gguf`; Q4_0, Q5_0, Q8_0, Q3_K and Q6_K stay in few bits where a linear layer reads them, other blocks become values when they are used |

mod architecture;
mod blocks;
mod encoding;

use std::collections::HashMap;
use std::path::Path;

use epiphyte_io::gguf::{GgufFile, GgufTensor, TensorType, keys, model_file};
use epiphyte_io::{FileError, GgufError};
use serde_json::{Map, Value, json};

use self::architecture::rope_scaling;
pub use self::architecture::{Architecture, ROPE_FACTORS, RowOrder, TensorNames};
pub(crate) use self::encoding::Encoding;
use crate::ModelError;
use crate::error::TensorProblems;
use crate::families::ModelConfig;
use crate::families::decoder::DecoderConfig;
use crate::heads::HeadKind;

/// The header of the GGUF file that a model is; none for a Hugging Face directory.
///
/// # Errors
/// [`ModelError::Gguf`]; [`ModelError::Io`].
pub(crate) fn open(model: &Path) -> Result<Option<GgufFile>, ModelError> {
    let path = model_file(model).map_err(FileError::at("read", model))?;
    let Some(path) = path else {
        return Ok(None);
    };
    let file = GgufFile::open(&path)?;
    match file.count(keys::SPLIT_COUNT)? {
        Some(parts @ 2..) => {
            let problem = format!(
                "the file is one of {parts} parts of a model: join them with llama.cpp's \
                 `llama-gguf-split --merge`"
            );
            Err(file.invalid(keys::SPLIT_COUNT, problem).into())
        }
        _ => Ok(Some(file)),
    }
}

/// What a file says under the keys of a `config.json`.
///
/// # Errors
/// If the architecture is not known; if a key is missing, of another type or not supported.
pub(crate) fn config(file: &GgufFile) -> Result<Map<String, Value>, ModelError> {
    let architecture = Architecture::of_file(file)?;
    let mut config = architecture.config(file)?;
    if let Some(factors) = rope_factors(file, &config)? {
        let scaling = rope_scaling(&config, &factors);
        config.insert("rope_scaling".to_owned(), scaling);
    }
    for (key, hugging_face) in [
        (keys::BOS_TOKEN_ID, "bos_token_id"),
        (keys::PADDING_TOKEN_ID, "pad_token_id"),
    ] {
        config.insert(hugging_face.to_owned(), json!(file.count(key)?));
    }
    let ends = [
        file.count(keys::EOS_TOKEN_ID)?,
        file.count(keys::EOT_TOKEN_ID)?,
    ];
    let mut ends: Vec<usize> = ends.into_iter().flatten().collect();
    ends.dedup();
    let ends = match ends[..] {
        [] => Value::Null,
        [end] => json!(end),
        _ => json!(ends),
    };
    config.insert("eos_token_id".to_owned(), ends);
    let parsed = ModelConfig::of_entries(file.path(), config.clone())?;
    let class = parsed.family().class_name(HeadKind::LanguageModel);
    config.insert("architectures".to_owned(), json!([class]));
    let mut types = file.tensors().iter().map(|it| it.tensor_type);
    let of_matrices = match types.find(|it| *it != TensorType::F32) {
        Some(TensorType::F16) => "float16",
        Some(TensorType::Bf16) => "bfloat16",
        _ => "float32",
    };
    config.insert("dtype".to_owned(), json!(of_matrices));
    Ok(config)
}

/// What the frequencies of rotary positions are divided by.
fn rope_factors(
    file: &GgufFile,
    config: &Map<String, Value>,
) -> Result<Option<Vec<f32>>, ModelError> {
    let mut tensors = file.tensors().iter();
    let Some(tensor) = tensors.find(|it| it.name == ROPE_FACTORS) else {
        return Ok(None);
    };
    let head_dim = config.get("head_dim").and_then(Value::as_u64);
    let pairs = head_dim.unwrap_or_default() as usize / 2;
    if tensor.shape != [pairs] || tensor.tensor_type != TensorType::F32 {
        let problem =
            format!("it is not F32 [{pairs}], one factor for each pair of a head's dimensions");
        return Err(file.invalid_tensor(ROPE_FACTORS, problem).into());
    }
    let mut factors = Vec::new();
    blocks::decode(TensorType::F32, &file.read(tensor)?, &mut factors);
    let is_usable = |factor: &f32| factor.is_finite() && *factor > 0.0;
    match factors.iter().all(is_usable) {
        true => Ok(Some(factors)),
        false => Err(file
            .invalid_tensor(ROPE_FACTORS, "a factor is not above 0")
            .into()),
    }
}

/// The tensors of a file by Hugging Face's names, each with how its values follow from its bytes.
///
/// # Errors
/// As [`config`]; [`ModelError::Tensors`] for tensors that the architecture does not have.
pub(crate) fn tensors(file: &GgufFile) -> Result<Vec<(String, &GgufTensor, Encoding)>, ModelError> {
    let architecture = Architecture::of_file(file)?;
    let config = ModelConfig::of_entries(file.path(), config(file)?)?;
    let decoder = config.of_family::<DecoderConfig>();
    let decoder = decoder.expect("llama.cpp's architectures here are decoders");
    let names = architecture.tensors(decoder).into_iter();
    let mut known: HashMap<String, TensorNames> =
        names.map(|names| (names.gguf.clone(), names)).collect();
    let (mut tensors, mut extra) = (Vec::new(), Vec::new());
    for tensor in file.tensors().iter().filter(|it| it.name != ROPE_FACTORS) {
        let Some(names) = known.remove(&tensor.name) else {
            extra.push(tensor.name.clone());
            continue;
        };
        if tensor.shape != names.shape {
            let problem = format!(
                "its shape is {:?}, and {:?} by the metadata",
                tensor.shape, names.shape
            );
            return Err(file.invalid_tensor(&tensor.name, problem).into());
        }
        let encoding = Encoding::new(tensor.tensor_type, &names);
        let encoding = encoding.ok_or_else(|| {
            let problem = "a vector in blocks cannot be put in another order";
            file.invalid_tensor(&tensor.name, problem)
        })?;
        tensors.push((names.hugging_face, tensor, encoding));
    }
    match extra.is_empty() {
        true => Ok(tensors),
        false => Err(ModelError::Tensors(Box::new(TensorProblems {
            path: file.path().to_owned(),
            loaded: tensors.len(),
            wanted: tensors.len(),
            extra,
            ..TensorProblems::default()
        }))),
    }
}

impl From<GgufError> for ModelError {
    fn from(error: GgufError) -> Self {
        match error {
            GgufError::Problem { path, problem } => Self::Gguf { path, problem },
            GgufError::File(error) => error.into(),
        }
    }
}
