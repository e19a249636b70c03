//! From values to codes and scales.

use std::ops::Range;

use half::f16;

use super::{Format, Nested, Scales};
use crate::simd::kernel;
use crate::threads;

/// The levels of NF4 by code: quantiles of a normal distribution, as bitsandbytes has them.
pub(super) static NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The levels of FP4 by code: a sign, two bits of exponent, one of mantissa. The largest is 12.
const FP4_BY_CODE: [f32; 16] = [
    0.0,
    0.0625 / 12.0,
    8.0 / 12.0,
    1.0,
    4.0 / 12.0,
    0.5,
    2.0 / 12.0,
    0.25,
    0.0,
    -0.0625 / 12.0,
    -8.0 / 12.0,
    -1.0,
    -4.0 / 12.0,
    -0.5,
    -2.0 / 12.0,
    -0.25,
];

/// As above.
pub(super) static FP4: [f32; 16] = FP4_BY_CODE;

/// The codes of [`FP4`] by level, in the order in which PyTorch sorts them. Zero is there twice.
const FP4_ORDER: [u8; 16] = [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3];

/// The levels of INT4 by code.
pub(super) static INT4: [f32; 16] = [
    -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0,
];

/// Rows that are quantized together: whole blocks and whole bytes for any length of a row.
const ROWS: usize = 64;

/// Scales in a block of double quantization.
const NESTED_BLOCK: usize = 256;

/// Codes and scales of a weight `[out, in]` of which `rows` returns the values of some rows.
pub(super) fn quantize<R: AsRef<[f32]>>(
    rows: impl Fn(Range<usize>) -> R + Sync,
    out: usize,
    input: usize,
    format: Format,
) -> (Vec<u8>, Scales) {
    let block = format.block(input);
    let mut codes = vec![0; format.bytes(out * input)];
    let mut scales = vec![0.0; (out * input).div_ceil(block)];
    let pieces = codes
        .chunks_mut(format.bytes(ROWS * input).max(1))
        .zip(scales.chunks_mut((ROWS * input).div_ceil(block).max(1)))
        .enumerate();
    threads::for_each(pieces, |(piece, (codes, scales))| {
        let range = piece * ROWS..out.min((piece + 1) * ROWS);
        let count = range.len();
        let values = rows(range);
        let values = values.as_ref();
        assert_eq!(values.len(), count * input, "values of {count} rows");
        let mut bytes = vec![0; values.len()];
        let blocks = values.chunks(block).zip(bytes.chunks_mut(block));
        for ((values, codes), scale) in blocks.zip(scales) {
            *scale = match format {
                Format::Nf4 => levels(values, block, &NF4, None, codes),
                Format::Fp4 => levels(values, block, &FP4_LEVELS, Some(&FP4_ORDER), codes),
                Format::Int8 => int8(values, codes),
                Format::Int4 => int4(values, codes),
            };
        }
        match format.bits() {
            8 => codes.copy_from_slice(&bytes),
            _ => {
                for (byte, pair) in codes.iter_mut().zip(bytes.chunks(2)) {
                    // What pads an odd last one is the code of zero.
                    *byte = pair[0] << 4 | pair.get(1).unwrap_or(&zero(format));
                }
            }
        }
    });
    let scales = match format {
        Format::Nf4 | Format::Fp4 => Scales::Nested(nested(scales)),
        Format::Int8 => Scales::Of127(scales),
        Format::Int4 => Scales::F16(scales.into_iter().map(f16::from_f32).collect()),
    };
    (codes, scales)
}

/// The code of zero.
fn zero(format: Format) -> u8 {
    match format {
        Format::Nf4 => 7,
        Format::Fp4 | Format::Int8 => 0,
        Format::Int4 => 8,
    }
}

/// [`FP4`] in the order of [`FP4_ORDER`].
const FP4_LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut index = 0;
    while index < 16 {
        levels[index] = FP4_BY_CODE[FP4_ORDER[index] as usize];
        index += 1;
    }
    levels
};

/// Codes of the nearest of `levels`, which rise, for one block of at most `whole` values. Returns
/// the scale: the largest magnitude.
fn levels(
    values: &[f32],
    whole: usize,
    levels: &[f32; 16],
    order: Option<&[u8; 16]>,
    codes: &mut [u8],
) -> f32 {
    const TINY: f32 = 1e-38;
    let largest = largest(values);
    let bounds = std::array::from_fn(|index| (levels[index] + levels[index + 1]) / 2.0);
    // bitsandbytes multiplies whole blocks and divides the rest.
    let scale = match values.len() == whole {
        true => {
            count_below(values, 1.0 / largest.max(TINY), &bounds, codes);
            largest
        }
        false => {
            let scale = largest.max(TINY);
            let scaled: Vec<f32> = values.iter().map(|value| value / scale).collect();
            count_below(&scaled, 1.0, &bounds, codes);
            scale
        }
    };
    if let Some(order) = order {
        codes
            .iter_mut()
            .for_each(|code| *code = order[usize::from(*code)]);
    }
    scale
}

fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |largest, value| value.abs().max(largest))
}

kernel! {
    /// For each value times `factor`, how many bounds are below it.
    fn count_below<S>(values: &[f32], factor: f32, bounds: &[f32; 15], counts: &mut [u8]) {
        for (count, value) in counts.iter_mut().zip(values) {
            let value = (value * factor).clamp(-1.0, 1.0);
            *count = bounds.iter().fold(0, |count, &bound| count + u8::from(bound < value));
        }
    }
}

/// A row in 8 bits, by way of f16 as in bitsandbytes. Returns its largest magnitude.
fn int8(values: &[f32], codes: &mut [u8]) -> f32 {
    let rounded = |value: f32| {
        let value = f16::from_f32(value);
        let value = if value.is_infinite() {
            f16::MAX.copysign(value)
        } else {
            value
        };
        value.to_f32()
    };
    let values: Vec<f32> = values.iter().map(|&value| rounded(value)).collect();
    let largest = largest(&values);
    // PyTorch divides a number by a tensor so.
    let factor = 127.0 * (1.0 / largest);
    for (code, value) in codes.iter_mut().zip(&values) {
        // A row of zeros gives NaN, which becomes 0.
        *code = (value * factor).round_ties_even() as i8 as u8;
    }
    largest
}

/// 32 values in 4 bits, as GGUF's Q4_0: the value of largest magnitude becomes -8. Returns the
/// scale.
fn int4(values: &[f32], codes: &mut [u8]) -> f32 {
    let mut extreme = 0.0_f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    let scale = extreme / -8.0;
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (code, &value) in codes.iter_mut().zip(values) {
        let code_of = (f64::from(value) * f64::from(factor) + 8.5) as f32;
        *code = (code_of as u8).min(15);
    }
    scale
}

/// Double quantization of scales.
fn nested(mut scales: Vec<f32>) -> Nested {
    let offset = match scales.len() {
        0 => 0.0,
        count => pytorch_sum(&scales) / count as f32,
    };
    scales.iter_mut().for_each(|scale| *scale -= offset);
    let map = dynamic_map(true);
    let bounds = bounds_between(&map);
    let mut codes = vec![0; scales.len()];
    let blocks = scales
        .chunks(NESTED_BLOCK)
        .zip(codes.chunks_mut(NESTED_BLOCK));
    let largest = blocks.map(|(scales, codes)| {
        let largest = largest(scales);
        if largest > 0.0 {
            let factor = 1.0 / largest;
            for (code, scale) in codes.iter_mut().zip(scales) {
                *code = code_of(scale * factor, &bounds);
            }
        }
        largest
    });
    Nested {
        scales: largest.collect(),
        codes,
        map,
        block: NESTED_BLOCK,
        offset,
    }
}

/// The code of a number from -1 to 1. bitsandbytes looks it up by the nearest of 65536 numbers at
/// equal distances, which near a bound may be on its other side.
fn code_of(value: f32, bounds: &[f32]) -> u8 {
    const LAST: f32 = 65535.0;
    let index = ((value.clamp(-1.0, 1.0) + 1.0) * 0.5 * LAST + 0.5) as u16;
    let nearest = -1.0 + 2.0 * f32::from(index) / LAST;
    bounds.partition_point(|&bound| bound < nearest) as u8
}

/// bitsandbytes' dynamic map: of each power of ten from 1e-6 to 1, twice as many numbers as of the
/// one below, at equal distances from 0.1 to 1; the same negative, or without a sign twice as many;
/// 0 and 1.
pub fn dynamic_map(signed: bool) -> Vec<f32> {
    let mut map = vec![0.0, 1.0];
    for exponent in 0..7 {
        let items = 1 << if signed { exponent } else { exponent + 1 };
        let power = 10.0_f64.powi(exponent - 6) as f32;
        let step = (1.0 - 0.1_f32) / items as f32;
        // As `torch.linspace`, from both ends.
        let boundary = |index: i32| match index < (items + 1) / 2 {
            true => step.mul_add(index as f32, 0.1),
            false => (-step).mul_add((items - index) as f32, 1.0),
        };
        for item in 0..items {
            let mean = (boundary(item) + boundary(item + 1)) / 2.0;
            map.push(power * mean);
            if signed {
                map.push(-power * mean);
            }
        }
    }
    map.sort_by(f32::total_cmp);
    map
}

/// What lies half way between each number of a map and the next: as many bounds are below a value
/// as the number of the nearest.
pub fn bounds_between(map: &[f32]) -> Vec<f32> {
    map.windows(2)
        .map(|pair| 0.5 * (pair[0] + pair[1]))
        .collect()
}

/// The sum as PyTorch computes it on one thread of an x86-64 processor, so that means of scales
/// have its last bit: in vectors of eight, where there are eight values or more.
fn pytorch_sum(values: &[f32]) -> f32 {
    const LANES: usize = 8;
    match values.as_chunks::<LANES>() {
        ([], _) => cascade(values.as_chunks::<1>().0)[0],
        (vectors, rest) => rest.iter().chain(&cascade(vectors)).sum(),
    }
}

/// The sum of vectors, in four rows of partial sums and up to four levels of these.
fn cascade<const LANES: usize>(vectors: &[[f32; LANES]]) -> [f32; LANES] {
    const ROWS: usize = 4;
    const LEVELS: usize = 4;
    let add = |to: &mut [f32; LANES], other: &[f32; LANES]| {
        to.iter_mut()
            .zip(other)
            .for_each(|(to, other)| *to += other);
    };
    let add_rows = |to: &mut [[f32; LANES]; ROWS], other: &[[f32; LANES]; ROWS]| {
        to.iter_mut()
            .zip(other)
            .for_each(|(to, other)| add(to, other));
    };
    let (groups, single) = vectors.as_chunks::<ROWS>();
    let power = (groups.len().next_power_of_two().trailing_zeros() as usize / LEVELS).max(4);
    let (step, mask) = (1 << power, (1 << power) - 1);
    let mut sums = [[[0.0; LANES]; ROWS]; LEVELS];
    let mut done = 0;
    while done + step <= groups.len() {
        for group in &groups[done..done + step] {
            add_rows(&mut sums[0], group);
        }
        done += step;
        for level in 1..LEVELS {
            let below = std::mem::replace(&mut sums[level - 1], [[0.0; LANES]; ROWS]);
            add_rows(&mut sums[level], &below);
            if done & mask << (level * power) != 0 {
                break;
            }
        }
    }
    for group in &groups[done..] {
        add_rows(&mut sums[0], group);
    }
    let [mut all, above @ ..] = sums;
    above.iter().for_each(|level| add_rows(&mut all, level));
    let [mut first, others @ ..] = all;
    single.iter().for_each(|vector| add(&mut first, vector));
    others.iter().for_each(|row| add(&mut first, row));
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(1 / (torch.arange(1, n + 1) * 0.37)).sum()` on one thread, for each n, as bits.
    const SUMS: [(u32, u32); 13] = [
        (1, 0x402cf915),
        (7, 0x40e03f42),
        (8, 0x40eb0ed4),
        (31, 0x412e26b2),
        (32, 0x412f80a4),
        (33, 0x4130d01a),
        (100, 0x416051ab),
        (511, 0x41935787),
        (512, 0x41936258),
        (1000, 0x41a1d918),
        (8191, 0x41cf4f41),
        (32768, 0x41ed48ff),
        (100003, 0x4202b461),
    ];

    #[test]
    fn sums_are_those_of_pytorch() {
        for (count, expected) in SUMS {
            let values: Vec<f32> = (1..=count).map(|i| 1.0 / (i as f32 * 0.37)).collect();
            assert_eq!(pytorch_sum(&values).to_bits(), expected, "{count}");
        }
    }
}
