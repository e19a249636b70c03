//! Weights that a checkpoint has in fewer bits: as bitsandbytes serializes them, or as programs
//! that quantize a model for inference do, GPTQ, AWQ and llama.cpp.

mod bitsandbytes;
mod packed;

use std::sync::Arc;

use epiphyte_ops::quantized::QuantizedWeight;
use epiphyte_ops::{Quantization, QuantizedSource, Source as Values};

pub(crate) use self::packed::Packing;
use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::gguf::Encoding;
use crate::keys::TensorReader;

/// Whether a checkpoint's tensor belongs to a quantized weight and has another name than that.
pub fn is_beside_weight(name: &str) -> bool {
    bitsandbytes::is_beside_weight(name) || packed::is_part(name)
}

/// Whether a tensor is one of these `parts` of a module.
fn is_of_module(name: &str, parts: &[&str]) -> bool {
    let mut modules = parts.iter().filter_map(|part| name.strip_suffix(part));
    modules.any(|module| module.ends_with('.'))
}

/// A weight of fewer bits.
pub enum Stored {
    /// It stays as it is, in this format.
    Quantized(Quantization, Arc<QuantizedSource>),
    /// No kernel multiplies it so: its values, row-major, which are read when they are used.
    Values(Arc<Values>),
}

impl From<QuantizedWeight> for Stored {
    fn from(weight: QuantizedWeight) -> Self {
        let format = Quantization::from(weight.format());
        Self::Quantized(format, Arc::new(move || weight.clone()))
    }
}

/// The wanted weight `[out, in]`, if the checkpoint has it in fewer bits. One in a GGUF file's
/// blocks is quantized anew where another format is `asked` for, from its values.
///
/// # Errors
/// [`ModelError::Quantized`] if parts of it are missing or do not fit.
pub(crate) fn open(
    checkpoint: &Arc<Checkpoint>,
    reader: &mut TensorReader<'_>,
    packing: Option<Packing>,
    asked: Option<Quantization>,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<Stored>, ModelError> {
    if let Some(view) = reader.tensor(name).filter(|view| view.shape == shape)
        && let Some(format) = view.encoding().and_then(Encoding::format)
    {
        let format = Quantization::from(format);
        if asked.is_some_and(|asked| asked != format) {
            return Ok(None);
        }
        let stored = reader.claim(name, &shape)?;
        let checkpoint = checkpoint.clone();
        return Ok(Some(Stored::Quantized(
            format,
            Arc::new(move || {
                let weight = checkpoint.quantized(&stored, shape);
                weight.expect("type and shape were checked when the tensor was claimed")
            }),
        )));
    }
    if let Some(packing) = packing
        && let Some(stored) = packed::open(checkpoint, reader, packing, name, shape)?
    {
        return Ok(Some(stored));
    }
    let weight = bitsandbytes::open(checkpoint, reader, name, shape)?;
    Ok(weight.map(Stored::from))
}
