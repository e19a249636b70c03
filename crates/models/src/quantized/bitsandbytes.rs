//! Weights that a checkpoint has in 4 or 8 bits, as bitsandbytes serializes them.
//!
//! | of the weight `x.weight` | type | |
//! | --- | --- | --- |
//! | `x.weight` | U8 | NF4, FP4: two codes a byte, the first in the high half |
//! | `x.weight.absmax` | U8 or F32 | a scale for each block, in 8 bits with double quantization |
//! | `x.weight.nested_absmax`, `x.weight.nested_quant_map` | F32 | scales of these, the 256 levels |
//! | `x.weight.quant_map` | F32 | the 16 levels, which follow from the format |
//! | `x.weight.quant_state.bitsandbytes__nf4` (`__fp4`) | U8 | shape and sizes, as JSON |
//! | `x.weight` | I8 | INT8: the codes |
//! | `x.SCB` | F32 | the largest magnitude of each row |
//! | `x.weight_format` | U8 | 0: row-major |

use std::sync::Arc;

use epiphyte_ops::quantized::{Format, Nested, QuantizedWeight, Scales};
use safetensors::Dtype;
use serde::Deserialize;

use super::is_of_module;
use crate::ModelError;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::keys::TensorReader;

/// Tensors beside a weight of 4 bits, as ends of its name.
const BESIDE_4_BITS: [&str; 6] = [
    ".absmax",
    ".nested_absmax",
    ".nested_quant_map",
    ".quant_map",
    STATE_NF4,
    STATE_FP4,
];
/// Tensors beside a weight of 8 bits, in the place of `weight`.
const BESIDE_8_BITS: [&str; 2] = ["SCB", "weight_format"];
const STATE_NF4: &str = ".quant_state.bitsandbytes__nf4";
const STATE_FP4: &str = ".quant_state.bitsandbytes__fp4";

/// Whether a checkpoint's tensor belongs to a weight and is not its codes.
pub(super) fn is_beside_weight(name: &str) -> bool {
    let of_4_bits = |end: &&str| {
        let weight = name.strip_suffix(*end);
        weight.is_some_and(|weight| weight.ends_with(".weight"))
    };
    BESIDE_4_BITS.iter().any(of_4_bits) || is_of_module(name, &BESIDE_8_BITS)
}

/// The JSON beside a weight of 4 bits.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

/// The wanted weight `[out, in]`, if the checkpoint has it quantized. Codes stay in the mapped
/// file.
///
/// # Errors
/// [`ModelError::Quantized`] if parts of it are missing or do not fit.
pub(super) fn open(
    checkpoint: &Arc<Checkpoint>,
    reader: &mut TensorReader<'_>,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<QuantizedWeight>, ModelError> {
    let Some(stored) = reader.stored_name(name) else {
        return Ok(None);
    };
    let problem = |problem: String| ModelError::Quantized {
        path: checkpoint.path().to_owned(),
        tensor: stored.clone(),
        problem,
    };
    let required = |name: &str| {
        let found = checkpoint.tensor(name);
        found.ok_or_else(|| problem(format!("`{name}` is missing: download the model again")))
    };
    let floats = |name: &str| -> Result<Vec<f32>, ModelError> {
        let found = required(name)?;
        found
            .to_f32()
            .ok_or_else(|| problem(format!("`{name}` is {:?}, not F32", found.dtype)))
    };
    let state = [(Format::Nf4, STATE_NF4), (Format::Fp4, STATE_FP4)]
        .into_iter()
        .find_map(|(format, end)| Some((format, checkpoint.tensor(&format!("{stored}{end}"))?)));
    let of_8_bits = |tensor: TensorView<'_>| tensor.dtype == Dtype::I8;
    let (format, block, scales) = match state {
        Some((format, state)) => {
            let state: State = serde_json::from_slice(&state.bytes())
                .map_err(|error| problem(format!("its quant_state is no such JSON: {error}")))?;
            if state.shape != shape {
                return Err(problem(format!(
                    "its shape is {:?}, but config.json asks for {shape:?}",
                    state.shape
                )));
            }
            let absmax = format!("{stored}.absmax");
            let scales = match required(&absmax)?.dtype {
                Dtype::U8 => Scales::Nested(Nested {
                    codes: required(&absmax)?.bytes().into_owned(),
                    map: floats(&format!("{stored}.nested_quant_map"))?,
                    scales: floats(&format!("{stored}.nested_absmax"))?,
                    block: state.nested_blocksize.unwrap_or(256),
                    offset: state.nested_offset.unwrap_or_default() as f32,
                }),
                _ => Scales::F32(floats(&absmax)?),
            };
            (format, state.blocksize, scales)
        }
        None if reader.tensor(name).is_some_and(of_8_bits) => {
            let module = stored.strip_suffix("weight").unwrap_or(&stored);
            let scales = floats(&format!("{module}SCB"))?;
            if let Some(layout) = checkpoint.tensor(&format!("{module}weight_format"))
                && *layout.bytes() != [0]
            {
                return Err(problem(
                    "its weight_format is not row-major: save it with a newer bitsandbytes"
                        .to_owned(),
                ));
            }
            (Format::Int8, shape[1], Scales::Of127(scales))
        }
        None => return Ok(None),
    };
    reader.skip(name);
    let module = name.strip_suffix("weight").unwrap_or(name);
    for end in BESIDE_4_BITS {
        reader.skip(&format!("{name}{end}"));
    }
    for end in BESIDE_8_BITS {
        reader.skip(&format!("{module}{end}"));
    }
    let codes = checkpoint.shared_bytes(&stored);
    let codes = codes.ok_or_else(|| problem("it is missing".to_owned()))?;
    let weight = QuantizedWeight::new(format, shape, Arc::new(codes), block.max(1), scales);
    let weight = weight.map_err(|error| problem(error.to_string()))?;
    Ok(Some(weight))
}
