//! Values of ggml's blocks, bit for bit those of PyPI's `gguf` (`gguf.quants.dequantize`), and the
//! types whose values a quantized kernel has as they are.
//!
//! d and m are a block's numbers in f16, s and t whole numbers of 4 to 8 bits for a group of
//! values, q the code of a value.
//!
//! | type | values | of a value | as |
//! | --- | --- | --- | --- |
//! | Q4_0 | 32 | d (q − 8) | int4, scales d |
//! | Q5_0, Q8_0 | 32 | d (q − 16), d q | int8, scales d |
//! | Q3_K, Q6_K | 256 in groups of 16 | d (s − 32) (q − 4), d s (q − 32) | int8, scales d s |
//! | Q4_1, Q5_1 | 32 | d q + m | values |
//! | Q2_K | 256 in groups of 16 | d s q − m t | values |
//! | Q4_K, Q5_K | 256 in groups of 32 | d s q − m t | values |
//!
//! d s has at most 19 significant bits, so that only the last product or difference is rounded.
//!
//! Source: ggml's `ggml-quants.c`.

use std::sync::Arc;

use epiphyte_io::gguf::TensorType;
use epiphyte_ops::quantized::{Format, QuantizedWeight, Scales};
use half::{bf16, f16};

/// The most values of a block.
const LONGEST: usize = 256;
/// The most groups of a block that have a scale each.
const MOST_GROUPS: usize = 16;

/// Decodes whole blocks: appends their values to `to`.
pub(super) fn decode(tensor_type: TensorType, bytes: &[u8], to: &mut Vec<f32>) {
    let blocks = bytes.chunks_exact(tensor_type.block_bytes());
    match tensor_type {
        TensorType::F32 => to.extend(blocks.map(|it| f32::from_le_bytes(array(it)))),
        TensorType::F64 => to.extend(blocks.map(|it| f64::from_le_bytes(array(it)) as f32)),
        TensorType::F16 => to.extend(blocks.map(|it| half_at(it, 0))),
        TensorType::Bf16 => to.extend(blocks.map(|it| bf16::from_le_bytes(array(it)).to_f32())),
        _ => blocks.for_each(|block| decode_block(tensor_type, block, to)),
    }
}

/// Decodes a block of several values.
fn decode_block(tensor_type: TensorType, block: &[u8], to: &mut Vec<f32>) {
    match tensor_type {
        TensorType::Q4_1 => with_minimum(block, &block[4..], None, to),
        TensorType::Q5_1 => with_minimum(block, &block[8..], Some(&block[4..8]), to),
        TensorType::Q2K => q2_k(block, to),
        TensorType::Q4K => of_groups(block, &block[16..], None, to),
        TensorType::Q5K => of_groups(block, &block[48..], Some(&block[16..48]), to),
        _ => {
            let (mut scales, mut wholes) = ([0.0; MOST_GROUPS], [0; LONGEST]);
            let wholes = &mut wholes[..tensor_type.block_values()];
            let groups = whole_numbers(tensor_type, block, &mut scales, wholes);
            let of_groups = wholes.chunks(wholes.len() / groups);
            for (scale, wholes) in scales.iter().zip(of_groups) {
                to.extend(wholes.iter().map(|whole| scale * f32::from(*whole)));
            }
        }
    }
}

/// The scale of each group of values of a block, and the whole numbers that it multiplies. Returns
/// the number of groups.
///
/// # Panics
/// For types that are none of scales and whole numbers.
fn whole_numbers(
    tensor_type: TensorType,
    block: &[u8],
    scales: &mut [f32; MOST_GROUPS],
    wholes: &mut [i8],
) -> usize {
    match tensor_type {
        TensorType::Q3K => {
            q3_k(block, scales, wholes);
            return MOST_GROUPS;
        }
        TensorType::Q6K => {
            q6_k(block, scales, wholes);
            return MOST_GROUPS;
        }
        TensorType::Q4_0 => {
            let codes = halves_of_bytes(&block[2..]);
            fill(wholes, codes.map(|code| code as i8 - 8));
        }
        TensorType::Q5_0 => {
            let codes = with_fifth_bits(&block[6..], Some(&block[2..6]));
            fill(wholes, codes.map(|code| code as i8 - 16));
        }
        TensorType::Q8_0 => fill(wholes, block[2..].iter().map(|code| *code as i8)),
        other => unreachable!("{other} is not of scales and whole numbers"),
    }
    scales[0] = half_at(block, 0);
    1
}

/// A weight `[out, in]` as a kernel keeps it in few bits; none if no kernel has the same values.
/// `rows` gives the blocks of a row.
pub(super) fn quantized<'b>(
    tensor_type: TensorType,
    shape: [usize; 2],
    rows: impl Fn(usize) -> &'b [u8],
) -> Option<QuantizedWeight> {
    let format = format(tensor_type)?;
    let [out, input] = shape;
    let mut codes = Vec::with_capacity(out * input * format.bits() / 8);
    let mut scales = Vec::new();
    let (mut of_block, mut wholes) = ([0.0; MOST_GROUPS], [0; LONGEST]);
    let wholes = &mut wholes[..tensor_type.block_values()];
    let mut group = wholes.len();
    for row in 0..out {
        for block in rows(row).chunks_exact(tensor_type.block_bytes()) {
            let groups = whole_numbers(tensor_type, block, &mut of_block, wholes);
            group = wholes.len() / groups;
            scales.extend(&of_block[..groups]);
            match format {
                // Two a byte, the first in the high half, 8 for 0.
                Format::Int4 => {
                    let (pairs, _) = wholes.as_chunks::<2>();
                    let code = |whole: i8| (whole + 8) as u8;
                    codes.extend(pairs.iter().map(|&[a, b]| code(a) << 4 | code(b)));
                }
                _ => codes.extend(wholes.iter().map(|whole| *whole as u8)),
            }
        }
    }
    let scales = match group == tensor_type.block_values() {
        true => Scales::F16(scales.into_iter().map(f16::from_f32).collect()),
        false => Scales::F32(scales),
    };
    let weight = QuantizedWeight::new(format, shape, Arc::new(codes), group, scales);
    Some(weight.expect("a scale for each group and a code for each value"))
}

/// In which format a kernel keeps the values of a type, if it has them exactly.
pub(super) fn format(tensor_type: TensorType) -> Option<Format> {
    match tensor_type {
        TensorType::Q4_0 => Some(Format::Int4),
        TensorType::Q5_0 | TensorType::Q8_0 | TensorType::Q3K | TensorType::Q6K => {
            Some(Format::Int8)
        }
        _ => None,
    }
}

/// Whether the values of blocks are finite: the numbers in f16 are, and nothing that they are
/// multiplied by leaves f32.
pub(super) fn is_finite(tensor_type: TensorType, bytes: &[u8]) -> bool {
    let halves: &[usize] = match tensor_type {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4K | TensorType::Q5K => &[0, 2],
        TensorType::Q2K => &[80, 82],
        TensorType::Q3K => &[108],
        TensorType::Q6K => &[208],
        TensorType::F32 | TensorType::F64 | TensorType::F16 | TensorType::Bf16 => {
            let mut values = Vec::new();
            decode(tensor_type, bytes, &mut values);
            return values.iter().all(|value| value.is_finite());
        }
    };
    let mut blocks = bytes.chunks_exact(tensor_type.block_bytes());
    blocks.all(|block| halves.iter().all(|at| half_at(block, *at).is_finite()))
}

/// Q4_1 and Q5_1.
fn with_minimum(block: &[u8], low: &[u8], fifth: Option<&[u8]>, to: &mut Vec<f32>) {
    let [scale, minimum] = [0, 2].map(|at| half_at(block, at));
    let codes = with_fifth_bits(low, fifth);
    to.extend(codes.map(|code| scale * f32::from(code) + minimum));
}

/// Q4_K and Q5_K: the codes `low` of 4 bits, 32 bytes to 64 values; in bit i of `fifth` the fifth
/// bits of group i.
fn of_groups(block: &[u8], low: &[u8], fifth: Option<&[u8]>, to: &mut Vec<f32>) {
    let [scale, minimum] = [0, 2].map(|at| half_at(block, at));
    let packed = &block[4..16];
    for (group, low) in low.chunks(32).flat_map(|low| [low, low]).enumerate() {
        let (s, t) = match group < 4 {
            true => (packed[group] & 63, packed[4 + group] & 63),
            false => {
                let (low, high) = (packed[4 + group], [packed[group - 4], packed[group]]);
                let [s, t] = high.map(|high| high >> 2 & 0x30);
                (low & 15 | s, low >> 4 | t)
            }
        };
        let (scale, minimum) = (scale * f32::from(s), minimum * f32::from(t));
        let shift = group % 2 * 4;
        to.extend(low.iter().enumerate().map(|(at, low)| {
            let fifth = fifth.map_or(0, |fifth| (fifth[at] >> group & 1) << 4);
            scale * f32::from(low >> shift & 15 | fifth) - minimum
        }));
    }
}

fn q2_k(block: &[u8], to: &mut Vec<f32>) {
    let [scale, minimum] = [80, 82].map(|at| half_at(block, at));
    for (at, code) in two_bits(&block[16..80]).enumerate() {
        let packed = block[at / 16];
        let (scale, minimum) = (
            scale * f32::from(packed & 15),
            minimum * f32::from(packed >> 4),
        );
        to.push(scale * f32::from(code) - minimum);
    }
}

/// Codes of 2 bits; in bit i of the first 32 bytes the third bits of 32 values.
fn q3_k(block: &[u8], scales: &mut [f32; MOST_GROUPS], wholes: &mut [i8]) {
    let (third, packed) = (&block[..32], &block[96..108]);
    for (at, (to, code)) in wholes.iter_mut().zip(two_bits(&block[32..96])).enumerate() {
        let third = third[at % 32] >> (at / 32) & 1;
        *to = (code | third << 2) as i8 - 4;
    }
    let scale = half_at(block, 108);
    for (group, to) in scales.iter_mut().enumerate() {
        let low = packed[group % 8] >> (group / 8 * 4) & 15;
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        *to = scale * f32::from((low | high << 4) as i8 - 32);
    }
}

/// Codes of 4 bits, 64 bytes to 128 values, and their two high bits, 32 bytes to 128 values.
fn q6_k(block: &[u8], scales: &mut [f32; MOST_GROUPS], wholes: &mut [i8]) {
    let (low, packed) = (&block[..128], &block[192..208]);
    for (at, (to, high)) in wholes
        .iter_mut()
        .zip(two_bits(&block[128..192]))
        .enumerate()
    {
        let (part, within) = (at / 128, at % 128);
        let low = low[part * 64 + within % 64] >> (within / 64 * 4) & 15;
        *to = (low | high << 4) as i8 - 32;
    }
    let scale = half_at(block, 208);
    for (to, packed) in scales.iter_mut().zip(packed) {
        *to = scale * f32::from(*packed as i8);
    }
}

/// Codes of 2 bits, 32 bytes to 128 values: the lowest bits of all bytes come first.
fn two_bits(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let shifts = |bytes| [0, 2, 4, 6].into_iter().map(move |shift| (bytes, shift));
    let parts = bytes.chunks(32).flat_map(shifts);
    parts.flat_map(|(bytes, shift): (&[u8], u32)| bytes.iter().map(move |byte| byte >> shift & 3))
}

/// Codes of 4 bits: those in the low halves of all bytes, then those in the high halves.
fn halves_of_bytes(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let low = bytes.iter().map(|byte| byte & 15);
    low.chain(bytes.iter().map(|byte| byte >> 4))
}

/// Codes of 4 bits with a fifth, bit i of `fifth` for value i.
fn with_fifth_bits(low: &[u8], fifth: Option<&[u8]>) -> impl Iterator<Item = u8> {
    let fifth = fifth.map_or(0, |fifth| u32::from_le_bytes(array(fifth)));
    let codes = halves_of_bytes(low).enumerate();
    codes.map(move |(at, low)| low | ((fifth >> at & 1) << 4) as u8)
}

fn fill(to: &mut [i8], from: impl Iterator<Item = i8>) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from);
}

/// The number in f16 at a byte of a block.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(array(&block[at..at + 2])).to_f32()
}

/// Bytes whose number was checked.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a block has its type's bytes")
}
