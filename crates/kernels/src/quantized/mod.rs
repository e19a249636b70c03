//! Frozen weights in 4 or 8 bits.
//!
//! A weight `[out, in]` is split into blocks of values that follow each other in row-major order.
//! A value is kept as a code, and each block has a scale: `value = table[code] * scale`.
//!
//! | format | table | block | scale | as in |
//! | --- | --- | --- | --- | --- |
//! | [`Format::Nf4`] | 16 quantiles of a normal distribution | 64 values | largest magnitude | bitsandbytes |
//! | [`Format::Fp4`] | 16 floating-point numbers of 4 bits | 64 values | largest magnitude | bitsandbytes |
//! | [`Format::Int8`] | -127 to 127 | one row | largest magnitude / 127 | bitsandbytes, LLM.int8() |
//! | [`Format::Int4`] | -8 to 7 | 32 values | in f16 | GGUF's Q4_0 |
//!
//! The scales of NF4 and FP4 are quantized too (QLoRA's double quantization, [`Nested`]).
//!
//! Sources: Dettmers et al., *QLoRA*, arXiv:2305.14314; *LLM.int8()*, arXiv:2208.07339;
//! bitsandbytes 0.50, whose codes, scales and values on a CPU these are, bit for bit.

mod decode;
mod encode;
mod squares;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

pub use self::encode::{bounds_between, dynamic_map};
pub(crate) use self::squares::Squares;
use crate::KernelError;

/// How the values of a weight are coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// NormalFloat: 4 bits, levels that are equally frequent in a normal distribution.
    Nf4,
    /// Floating-point numbers of 4 bits.
    Fp4,
    /// Whole numbers of 8 bits.
    Int8,
    /// Whole numbers of 4 bits.
    Int4,
}

impl Format {
    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Self::Nf4 | Self::Fp4 | Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// The levels by code, of a format of 4 bits.
    pub fn levels(self) -> Option<&'static [f32; 16]> {
        match self {
            Self::Nf4 => Some(&encode::NF4),
            Self::Fp4 => Some(&encode::FP4),
            Self::Int4 => Some(&encode::INT4),
            Self::Int8 => None,
        }
    }

    /// Bytes that the codes of a number of values take.
    fn bytes(self, values: usize) -> usize {
        (values * self.bits()).div_ceil(8)
    }

    /// Values that share a scale, where rows have `input` values.
    fn block(self, input: usize) -> usize {
        match self {
            Self::Nf4 | Self::Fp4 => 64,
            Self::Int4 => 32,
            Self::Int8 => input.max(1),
        }
    }
}

/// Bytes that others may share, such as a part of a mapped file.
pub type Bytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The scale of each block.
#[derive(Clone, Debug, PartialEq)]
pub enum Scales {
    /// As they are.
    F32(Vec<f32>),
    /// As they are.
    F16(Vec<f16>),
    /// The largest magnitude of each block, which code 127 stands for: the scale is 1/127 of it.
    Of127(Vec<f32>),
    /// Quantized in their turn.
    Nested(Nested),
}

/// Scales in 8 bits: `scale = map[code] * scales[block] + offset`.
#[derive(Clone, Debug, PartialEq)]
pub struct Nested {
    /// A code for each scale.
    pub codes: Vec<u8>,
    /// What the 256 codes stand for.
    pub map: Vec<f32>,
    /// The largest magnitude of each block of scales.
    pub scales: Vec<f32>,
    /// Scales in a block.
    pub block: usize,
    /// The mean of the scales, which was subtracted before.
    pub offset: f32,
}

impl Nested {
    #[inline]
    fn scale(&self, index: usize) -> f32 {
        let code = usize::from(self.codes[index]);
        // A division takes longer than all else here.
        let block = match self.block.is_power_of_two() {
            true => index >> self.block.trailing_zeros(),
            false => index / self.block,
        };
        self.map[code] * self.scales[block] + self.offset
    }
}

impl Scales {
    /// The scale of block `index`.
    #[inline]
    fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(scales) => scales[index],
            Self::F16(scales) => scales[index].to_f32(),
            Self::Of127(largest) => largest[index] * (1.0 / 127.0),
            Self::Nested(nested) => nested.scale(index),
        }
    }

    /// The scales of blocks `first`, `first + step` and so on.
    fn get_every(&self, first: usize, step: usize, to: &mut [f32]) {
        let every = (first..).step_by(step.max(1));
        match self {
            Self::F32(scales) => to
                .iter_mut()
                .zip(every)
                .for_each(|(to, at)| *to = scales[at]),
            Self::F16(scales) => {
                // Converted together, which the processor does eight at a time.
                let mut halves = [f16::ZERO; 32];
                for (to, every) in to.chunks_mut(32).zip(every.step_by(32)) {
                    let halves = &mut halves[..to.len()];
                    for (index, half) in halves.iter_mut().enumerate() {
                        *half = scales[every + index * step];
                    }
                    halves.convert_to_f32_slice(to);
                }
            }
            Self::Of127(largest) => {
                let scale = |(to, at): (&mut f32, usize)| *to = largest[at] * (1.0 / 127.0);
                to.iter_mut().zip(every).for_each(scale);
            }
            Self::Nested(nested) => {
                to.iter_mut()
                    .zip(every)
                    .for_each(|(to, at)| *to = nested.scale(at));
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(scales) | Self::Of127(scales) => scales.len(),
            Self::F16(scales) => scales.len(),
            Self::Nested(nested) => nested.codes.len(),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(scales) | Self::Of127(scales) => size_of_val(&scales[..]),
            Self::F16(scales) => size_of_val(&scales[..]),
            Self::Nested(nested) => {
                let Nested {
                    codes, map, scales, ..
                } = nested;
                codes.len() + size_of_val(&map[..]) + size_of_val(&scales[..])
            }
        }
    }
}

/// A weight `[out, in]` in 4 or 8 bits. Cloning shares it.
#[derive(Clone)]
pub struct QuantizedWeight {
    format: Format,
    out: usize,
    input: usize,
    codes: Bytes,
    block: usize,
    scales: Arc<Scales>,
}

impl fmt::Debug for QuantizedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            format, out, input, ..
        } = self;
        write!(f, "QuantizedWeight([{out}, {input}], {format:?})")
    }
}

impl QuantizedWeight {
    /// A weight from its parts.
    ///
    /// # Shapes
    /// - codes: row-major, one value after the other; of 4 bits two a byte, the first in the high
    ///   half
    /// - scales: one for each `block` values, the last block maybe shorter
    ///
    /// # Errors
    /// [`KernelError::Length`] when there are too few or too many codes or scales,
    /// [`KernelError::Parameter`] for blocks of no values.
    pub fn new(
        format: Format,
        [out, input]: [usize; 2],
        codes: Bytes,
        block: usize,
        scales: Scales,
    ) -> Result<Self, KernelError> {
        let check = |operand, got, expected| match got == expected {
            true => Ok(()),
            false => Err(KernelError::Length {
                operand,
                shape: vec![expected],
                got,
            }),
        };
        let values = out * input;
        let check_block = |parameter, block: usize| match block {
            0 => Err(KernelError::Parameter {
                parameter,
                got: block.to_string(),
                allowed: "1 or more",
            }),
            _ => Ok(()),
        };
        check_block("block", block)?;
        check("codes", (*codes).as_ref().len(), format.bytes(values))?;
        check("scales", scales.len(), values.div_ceil(block))?;
        if let Scales::Nested(nested) = &scales {
            check_block("nested block", nested.block)?;
            check("nested map", nested.map.len(), 256)?;
            let blocks = nested.codes.len().div_ceil(nested.block);
            check("nested scales", nested.scales.len(), blocks)?;
        }
        Ok(Self {
            format,
            out,
            input,
            codes,
            block,
            scales: Arc::new(scales),
        })
    }

    /// Quantizes a weight `[out, in]` of which `rows` returns the values of some rows at a time,
    /// row-major, so that they are never in memory all at once.
    ///
    /// # Panics
    /// If `rows` returns another number of values.
    pub fn quantize<R: AsRef<[f32]>>(
        rows: impl Fn(Range<usize>) -> R + Sync,
        [out, input]: [usize; 2],
        format: Format,
    ) -> Self {
        let (codes, scales) = encode::quantize(rows, out, input, format);
        Self {
            format,
            out,
            input,
            codes: Arc::new(codes),
            block: format.block(input),
            scales: Arc::new(scales),
        }
    }

    /// How the values are coded.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.out, self.input]
    }

    /// The codes, as [`QuantizedWeight::new`] has them.
    pub fn codes(&self) -> &[u8] {
        (*self.codes).as_ref()
    }

    /// Values that share a scale.
    pub fn block(&self) -> usize {
        self.block
    }

    /// The scale of each block.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Bytes that codes and scales take.
    pub fn bytes(&self) -> usize {
        self.codes().len() + self.scales.bytes()
    }

    /// Writes the values that begin at `first`, in row-major order, to `to`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn decode(&self, first: usize, to: &mut [f32]) {
        let codes = self.codes();
        let (mut at, mut rest) = (first, to);
        while !rest.is_empty() {
            let block = at / self.block;
            let count = rest.len().min((block + 1) * self.block - at);
            let (piece, behind) = rest.split_at_mut(count);
            decode::decode(self.format, codes, at, self.scales.get(block), piece);
            (at, rest) = (at + count, behind);
        }
    }
}
