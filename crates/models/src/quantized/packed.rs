//! Weights whose codes are packed into words of 32 bits: GPTQ's and AWQ's checkpoints.
//!
//! A weight `[out, in]` is split along its inputs into groups, and each output has a scale and a
//! zero point in each group: `value = scale * (code - zero)`.
//!
//! | tensor of module `x` | GPTQ | AWQ |
//! | --- | --- | --- |
//! | `x.qweight` | I32 `[in / n, out]`, n codes of an output in a word | I32 `[in, out / n]` |
//! | `x.qzeros` | I32 `[groups, out / n]`, one less than the zero point | I32 `[groups, out / n]` |
//! | `x.scales` | F16 `[groups, out]` | the same |
//! | `x.g_idx` | I32 `[in]`, the group of each input | |
//!
//! n is 32 over the bits of a code. The first code of a word is in its lowest bits; AWQ has the
//! outputs of a word in the order 0, 2, 4, 6, 1, 3, 5, 7. `checkpoint_format: gptq_v2` has the zero
//! points as they are.
//!
//! Where all groups follow each other, codes less their zero points become whole numbers of 8 bits,
//! or of 4 where each zero point is 8. Inputs in another order (`desc_act`) have no such form.
//!
//! Sources: Frantar et al., *GPTQ*, arXiv:2210.17323, and AutoGPTQ 0.7; Lin et al., *AWQ*,
//! arXiv:2306.00978, and AutoAWQ 0.2.9.

use std::sync::Arc;

use epiphyte_ops::quantized::{Format, QuantizedWeight, Scales};
use half::f16;
use safetensors::Dtype;

use super::{Stored, is_of_module};
use crate::ModelError;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::json::JsonObject;
use crate::keys::TensorReader;

/// The parts of a weight, in the place of `weight`.
const PARTS: [&str; 4] = [CODES, ZEROS, SCALES, GROUPS];
const CODES: &str = "qweight";
const ZEROS: &str = "qzeros";
const SCALES: &str = "scales";
const GROUPS: &str = "g_idx";

/// Whether a checkpoint's tensor is part of such a weight.
pub(super) fn is_part(name: &str) -> bool {
    is_of_module(name, &PARTS)
}

/// How a checkpoint's weights are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packing {
    layout: Layout,
    /// Bits of a code: 2, 4 or 8.
    bits: usize,
    /// Inputs of a group; all of them if none.
    group: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Gptq {
        /// What is added to a stored zero point.
        zero: i32,
    },
    Awq,
}

impl Packing {
    /// What `quantization_config` says; none if it is not GPTQ's or AWQ's.
    ///
    /// # Errors
    /// If it says what is not supported.
    pub(crate) fn parse(config: &JsonObject) -> Result<Option<Self>, ModelError> {
        let method: String = config.get("quant_method", String::new())?;
        let layout = match method.as_str() {
            "gptq" => {
                let format: String = config.get("checkpoint_format", "gptq".to_owned())?;
                let zero = match format.as_str() {
                    "gptq" => 1,
                    "gptq_v2" => 0,
                    _ => {
                        return Err(config.unsupported(
                            "checkpoint_format",
                            format,
                            "gptq, gptq_v2",
                        ));
                    }
                };
                Layout::Gptq { zero }
            }
            "awq" => {
                let version: String = config.get("version", "gemm".to_owned())?;
                match version.to_lowercase().as_str() {
                    "gemm" => Layout::Awq,
                    _ => return Err(config.unsupported("version", version, "gemm")),
                }
            }
            _ => return Ok(None),
        };
        let bits: usize = config.get("bits", 4)?;
        let supported: &[usize] = match layout {
            Layout::Gptq { .. } => &[2, 4, 8],
            Layout::Awq => &[4],
        };
        if !supported.contains(&bits) {
            let supported = if layout == Layout::Awq {
                "4"
            } else {
                "2, 4, 8"
            };
            return Err(config.unsupported("bits", bits.to_string(), supported));
        }
        let group: i64 = config.get("group_size", 128)?;
        Ok(Some(Self {
            layout,
            bits,
            group: usize::try_from(group).ok().filter(|group| *group > 0),
        }))
    }

    /// Codes of a word.
    fn codes(self) -> usize {
        32 / self.bits
    }
}

/// The wanted weight `[out, in]`, if the checkpoint has it packed.
///
/// # Errors
/// [`ModelError::Quantized`] if parts of it are missing or do not fit.
pub(super) fn open(
    checkpoint: &Arc<Checkpoint>,
    reader: &mut TensorReader<'_>,
    packing: Packing,
    name: &str,
    shape: [usize; 2],
) -> Result<Option<Stored>, ModelError> {
    let module = name.strip_suffix("weight").unwrap_or(name);
    let Some(codes) = reader.stored_name(&format!("{module}{CODES}")) else {
        return Ok(None);
    };
    let stored = codes.strip_suffix(CODES).unwrap_or(&codes).to_owned();
    for part in PARTS {
        reader.skip(&format!("{module}{part}"));
    }
    let packed = Packed::read(checkpoint, &stored, packing, shape);
    let packed = packed.map_err(|problem| ModelError::Quantized {
        path: checkpoint.path().to_owned(),
        tensor: codes,
        problem,
    })?;
    Ok(Some(packed.into_stored()))
}

/// The parts of a weight, unpacked but for the codes.
struct Packed {
    packing: Packing,
    shape: [usize; 2],
    /// As they are stored.
    words: Vec<u32>,
    /// The group of each input.
    groups: Vec<usize>,
    /// `[groups, out]`
    zeros: Vec<i32>,
    /// `[groups, out]`
    scales: Vec<f32>,
}

impl Packed {
    fn read(
        checkpoint: &Checkpoint,
        module: &str,
        packing: Packing,
        shape @ [out, input]: [usize; 2],
    ) -> Result<Self, String> {
        let part = |part: &str, shape: &[usize]| -> Result<TensorView<'_>, String> {
            let found = checkpoint.tensor(&format!("{module}{part}"));
            let found = found.ok_or_else(|| format!("`{module}{part}` is missing"))?;
            match found.shape == shape {
                true => Ok(found),
                false => Err(format!(
                    "`{module}{part}` has shape {:?}, but config.json asks for {shape:?}",
                    found.shape
                )),
            }
        };
        let words = |view: TensorView<'_>, part: &str| match view.dtype {
            Dtype::I32 | Dtype::U32 => Ok(words_of(&view.bytes())),
            other => Err(format!("`{module}{part}` is {other:?}, not I32")),
        };
        let codes = packing.codes();
        let group = packing.group.unwrap_or(input).max(1);
        let count = input.div_ceil(group);
        let packed_shape = match packing.layout {
            Layout::Gptq { .. } => [input.div_ceil(codes), out],
            Layout::Awq => [input, out.div_ceil(codes)],
        };
        if !input.is_multiple_of(codes) || !out.is_multiple_of(codes) {
            return Err(format!("[{out}, {input}] is no multiple of {codes} codes"));
        }
        let groups = match checkpoint.tensor(&format!("{module}{GROUPS}")) {
            None => (0..input).map(|input| input / group).collect(),
            Some(_) => {
                let groups = words(part(GROUPS, &[input])?, GROUPS)?;
                let groups: Vec<usize> = groups.into_iter().map(|it| it as usize).collect();
                if let Some(group) = groups.iter().find(|group| **group >= count) {
                    let problem = format!("`{module}{GROUPS}` names group {group} of {count}");
                    return Err(problem);
                }
                groups
            }
        };
        let scales = part(SCALES, &[count, out])?.to_f32();
        let scales = scales.ok_or_else(|| format!("`{module}{SCALES}` is no F16"))?;
        let zeros = words(part(ZEROS, &[count, out / codes])?, ZEROS)?;
        let mut packed = Self {
            packing,
            shape,
            words: words(part(CODES, &packed_shape)?, CODES)?,
            groups,
            zeros: Vec::new(),
            scales,
        };
        packed.zeros = packed.zero_points(&zeros, count);
        Ok(packed)
    }

    /// The zero points `[groups, out]`, from their words `[groups, out / n]`.
    fn zero_points(&self, words: &[u32], groups: usize) -> Vec<i32> {
        let (out, codes) = (self.shape[0], self.packing.codes());
        let mut zeros = Vec::with_capacity(groups * out);
        for group in 0..groups {
            for output in 0..out {
                let word = words[group * (out / codes) + output / codes];
                let (place, more) = match self.packing.layout {
                    Layout::Gptq { zero } => (output % codes, zero),
                    Layout::Awq => (awq_place(output % codes), 0),
                };
                zeros.push(self.code(word, place) + more);
            }
        }
        zeros
    }

    /// The code at a place of a word.
    fn code(&self, word: u32, place: usize) -> i32 {
        let bits = self.packing.bits;
        (word >> (bits * place) & ((1 << bits) - 1)) as i32
    }

    /// A code less its zero point.
    fn whole(&self, output: usize, input: usize) -> i32 {
        let (out, codes) = (self.shape[0], self.packing.codes());
        let (word, place) = match self.packing.layout {
            Layout::Gptq { .. } => (input / codes * out + output, input % codes),
            Layout::Awq => (
                input * (out / codes) + output / codes,
                awq_place(output % codes),
            ),
        };
        self.code(self.words[word], place) - self.zeros[self.groups[input] * out + output]
    }

    fn into_stored(self) -> Stored {
        let [out, input] = self.shape;
        let group = self.packing.group.unwrap_or(input).max(1);
        let in_order = self.groups.iter().enumerate();
        let in_order = in_order.into_iter().all(|(input, &it)| it == input / group);
        let most = 1 << (self.packing.bits - 1);
        let is_symmetric = self.zeros.iter().all(|zero| *zero == most);
        let fits = self.packing.bits < 8 || is_symmetric;
        // A group at the end of a row may not reach into the next.
        if !in_order || !fits || !input.is_multiple_of(group) {
            return Stored::Values(Arc::new(move |range| {
                let value = |at: usize| {
                    let (output, input) = (at / input, at % input);
                    let scale = self.scales[self.groups[input] * out + output];
                    scale * self.whole(output, input) as f32
                };
                range.map(value).collect()
            }));
        }
        let groups = input / group;
        let scales = (0..out).flat_map(|output| (0..groups).map(move |group| group * out + output));
        let scales: Vec<f32> = scales.map(|at| self.scales[at]).collect();
        let halves: Vec<f16> = scales.iter().map(|scale| f16::from_f32(*scale)).collect();
        let exact = halves
            .iter()
            .zip(&scales)
            .all(|(half, scale)| half.to_f32() == *scale);
        let scales = if exact {
            Scales::F16(halves)
        } else {
            Scales::F32(scales)
        };
        let wholes = (0..out).flat_map(|output| (0..input).map(move |input| (output, input)));
        let wholes = wholes.map(|(output, input)| self.whole(output, input));
        let (format, codes): (Format, Vec<u8>) = match (self.packing.bits, is_symmetric) {
            (4, true) => {
                // Two a byte, the first in the high half.
                let codes: Vec<u8> = wholes.map(|whole| (whole + 8) as u8).collect();
                let pairs = codes.chunks(2);
                let byte = |pair: &[u8]| pair[0] << 4 | pair.get(1).copied().unwrap_or_default();
                (Format::Int4, pairs.map(byte).collect())
            }
            _ => (
                Format::Int8,
                wholes.map(|whole| whole as i8 as u8).collect(),
            ),
        };
        let weight = QuantizedWeight::new(format, self.shape, Arc::new(codes), group, scales);
        weight.expect("codes and scales of this shape").into()
    }
}

/// Where AWQ has an output of a word.
fn awq_place(output: usize) -> usize {
    [0, 4, 1, 5, 2, 6, 3, 7][output]
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}
