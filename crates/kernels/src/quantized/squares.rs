//! Codes in the order in which products read them.

use std::ops::Range;
use std::sync::Arc;

use bytemuck::Zeroable;

use super::{Format, QuantizedWeight, Scales};
use crate::scratch::Line;
use crate::simd::kernel;
use crate::{Isa, threads};

/// Rows and columns of a square.
const SIDE: usize = 32;

/// The codes of a weight `[out, in]` in squares of 32 x 32, the squares of 32 outputs contiguous,
/// and in each square the codes of an input contiguous. The edges hold code 0.
///
/// A code of 8 bits is a byte. Of 4 bits, byte `j` of an input holds the code of output `j` in its
/// low half and that of output `16 + j` in its high half, so that a register of bytes becomes two
/// registers of neighboring outputs.
pub(crate) struct Squares {
    format: Format,
    out: usize,
    input: usize,
    /// Values that share a scale, in row-major order.
    block: usize,
    /// Inputs after which a scale may end, in every row: it divides both the block and the row.
    run: usize,
    scales: Arc<Scales>,
    codes: Vec<Line>,
}

impl Squares {
    /// The codes of a weight, put in order.
    pub(crate) fn new(weight: &QuantizedWeight) -> Self {
        let &QuantizedWeight {
            format,
            out,
            input,
            block,
            ..
        } = weight;
        // The codes of a weight may be those of a file: they are asked for once.
        let from = weight.codes();
        let code = |index: usize| match format.bits() {
            8 => from[index],
            _ => from[index / 2] >> (4 * (1 - index % 2)) & 15,
        };
        let bytes = input_bytes(format);
        let panel_bytes = input.next_multiple_of(SIDE) * bytes;
        let lines = out.div_ceil(SIDE) * panel_bytes / size_of::<Line>();
        let mut codes = vec![Line::zeroed(); lines];
        let panels = bytemuck::cast_slice_mut::<_, u8>(&mut codes);
        let panels = panels.chunks_mut(panel_bytes.max(1)).enumerate();
        threads::for_each(panels, |(panel, to)| {
            let outputs = panel * SIDE..out.min((panel + 1) * SIDE);
            for (place, output) in outputs.enumerate() {
                for (index, to) in to.chunks_mut(bytes).take(input).enumerate() {
                    let code = code(output * input + index);
                    match format.bits() {
                        8 => to[place] = code,
                        _ => to[place % (SIDE / 2)] |= code << (4 * (place / (SIDE / 2))),
                    }
                }
            }
        });
        Self {
            format,
            out,
            input,
            block,
            run: greatest_common_divisor(block, input),
            scales: Arc::clone(&weight.scales),
            codes,
        }
    }

    /// Bytes that codes and scales take.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.codes[..]) + self.scales.bytes()
    }

    /// The levels by code, of a format of 4 bits.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn levels(&self) -> Option<&'static [f32; 16]> {
        self.format.levels()
    }

    /// Whether two inputs that are multiplied as a pair may have different scales.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn splits_pairs(&self) -> bool {
        self.run % 2 == 1 && self.run < self.input
    }

    /// The first of the inputs `inputs` of a panel, as many as share their scales.
    pub(crate) fn run(&self, panel: usize, inputs: Range<usize>) -> Run<'_> {
        let bytes = input_bytes(self.format);
        let first = panel * self.input.next_multiple_of(SIDE);
        let end = inputs.end.min((inputs.start / self.run + 1) * self.run);
        let codes = &bytemuck::cast_slice::<_, u8>(&self.codes);
        Run {
            inputs: end - inputs.start,
            codes: &codes[(first + inputs.start) * bytes..(first + end) * bytes],
            scales: self.scales_of(panel, inputs.start),
        }
    }

    /// Writes the values of square `square` of the 32 outputs of `panel`: `[inputs, outputs]`, zero
    /// beyond the weight's edges.
    pub(crate) fn decode(&self, panel: usize, square: usize, to: &mut [f32; SIDE * SIDE]) {
        let inputs = square * SIDE..self.input.min((square + 1) * SIDE);
        let (to, beyond) = to.split_at_mut(inputs.len() * SIDE);
        beyond.fill(0.0);
        let (mut input, mut rest) = (inputs.start, to.as_chunks_mut().0);
        while input < inputs.end {
            let run = self.run(panel, input..inputs.end);
            let (to, behind) = rest.split_at_mut(run.inputs);
            match self.format.levels() {
                Some(levels) => halves(levels, run.codes.as_chunks().0, &run.scales, to),
                None => whole_numbers(run.codes.as_chunks().0, &run.scales, to),
            }
            (input, rest) = (input + run.inputs, behind);
        }
    }

    /// Writes all values in row-major order.
    pub(crate) fn unpack(&self, to: &mut [f32]) {
        let panels = to.chunks_mut((SIDE * self.input).max(1)).enumerate();
        threads::for_each(panels, |(panel, rows)| {
            let mut values = [0.0; SIDE * SIDE];
            for first in (0..self.input).step_by(SIDE) {
                self.decode(panel, first / SIDE, &mut values);
                for (place, row) in rows.chunks_mut(self.input).enumerate() {
                    let values = values.iter().skip(place).step_by(SIDE);
                    row[first..]
                        .iter_mut()
                        .zip(values)
                        .for_each(|(to, from)| *to = *from);
                }
            }
        });
    }

    /// Writes the values of row `row` of the weight.
    pub(crate) fn row(&self, row: usize, to: &mut [f32]) {
        let (panel, place) = (row / SIDE, row % SIDE);
        let mut values = [0.0; SIDE * SIDE];
        for (square, to) in to.chunks_mut(SIDE).enumerate() {
            self.decode(panel, square, &mut values);
            for (value, values) in to.iter_mut().zip(values.chunks(SIDE)) {
                *value = values[place];
            }
        }
    }

    /// The scales of the values of one input, for the outputs of a panel.
    fn scales_of(&self, panel: usize, input: usize) -> [f32; SIDE] {
        let outputs = panel * SIDE..self.out.min((panel + 1) * SIDE);
        let mut scales = [0.0; SIDE];
        let to = &mut scales[..outputs.len()];
        let blocks = self.input / self.block;
        if blocks * self.block == self.input {
            // Every row begins with a block.
            let first = outputs.start * blocks + input / self.block;
            self.scales.get_every(first, blocks, to);
        } else {
            for (scale, output) in to.iter_mut().zip(outputs) {
                *scale = self.scales.get((output * self.input + input) / self.block);
            }
        }
        scales
    }
}

/// Inputs of a panel that share their scales.
pub(crate) struct Run<'a> {
    /// How many.
    pub(crate) inputs: usize,
    /// Their codes, one input after the other.
    pub(crate) codes: &'a [u8],
    /// The scale of each output. Beyond the last output it is zero.
    pub(crate) scales: [f32; SIDE],
}

/// Bytes of the codes of one input in a square.
fn input_bytes(format: Format) -> usize {
    SIDE * format.bits() / 8
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    match b {
        0 => a,
        _ => greatest_common_divisor(b, a % b),
    }
}

kernel! {
    /// Values of some inputs from codes of 8 bits.
    fn whole_numbers<S>(codes: &[[u8; SIDE]], scales: &[f32; SIDE], to: &mut [[f32; SIDE]]) {
        for (codes, to) in codes.iter().zip(to) {
            for ((value, &code), scale) in to.iter_mut().zip(codes).zip(scales) {
                *value = f32::from(code as i8) * scale;
            }
        }
    }
}

/// Values of some inputs from codes of 4 bits.
fn halves(
    levels: &[f32; 16],
    codes: &[[u8; SIDE / 2]],
    scales: &[f32; SIDE],
    to: &mut [[f32; SIDE]],
) {
    match Isa::current() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 => x86::avx512(levels, codes, scales, to),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2(levels, codes, scales, to),
        _ => {
            for (codes, to) in codes.iter().zip(to) {
                for (place, &code) in codes.iter().enumerate() {
                    let high = place + SIDE / 2;
                    to[place] = levels[usize::from(code & 15)] * scales[place];
                    to[high] = levels[usize::from(code >> 4)] * scales[high];
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(unsafe_code, reason = "intrinsics over raw pointers")]

    use std::arch::x86_64::*;

    use super::SIDE;

    /// [`super::halves`]: the levels are one register.
    pub(super) fn avx512(
        levels: &[f32; 16],
        codes: &[[u8; SIDE / 2]],
        scales: &[f32; SIDE],
        to: &mut [[f32; SIDE]],
    ) {
        // SAFETY: the caller checked for AVX-512.
        unsafe { with_avx512(levels, codes, scales, to) }
    }

    #[target_feature(enable = "avx512f")]
    fn with_avx512(
        levels: &[f32; 16],
        codes: &[[u8; SIDE / 2]],
        scales: &[f32; SIDE],
        to: &mut [[f32; SIDE]],
    ) {
        // SAFETY: there are 16 levels and 32 scales.
        let (levels, low_scales, high_scales) = unsafe {
            let scales = scales.as_ptr();
            (
                _mm512_loadu_ps(levels.as_ptr()),
                _mm512_loadu_ps(scales),
                _mm512_loadu_ps(scales.add(16)),
            )
        };
        for (codes, to) in codes.iter().zip(to) {
            // SAFETY: 16 bytes.
            let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
            // Only the lowest four bits of each word choose a level.
            let low = _mm512_cvtepu8_epi32(codes);
            let high = _mm512_srli_epi32::<4>(low);
            let value = |codes, scales| _mm512_mul_ps(_mm512_permutexvar_ps(codes, levels), scales);
            // SAFETY: 32 values.
            unsafe {
                _mm512_storeu_ps(to.as_mut_ptr(), value(low, low_scales));
                _mm512_storeu_ps(to.as_mut_ptr().add(16), value(high, high_scales));
            }
        }
    }

    /// [`super::halves`]: the levels are two registers.
    pub(super) fn avx2(
        levels: &[f32; 16],
        codes: &[[u8; SIDE / 2]],
        scales: &[f32; SIDE],
        to: &mut [[f32; SIDE]],
    ) {
        // SAFETY: the caller checked for AVX2.
        unsafe { with_avx2(levels, codes, scales, to) }
    }

    #[target_feature(enable = "avx2")]
    fn with_avx2(
        levels: &[f32; 16],
        codes: &[[u8; SIDE / 2]],
        scales: &[f32; SIDE],
        to: &mut [[f32; SIDE]],
    ) {
        // SAFETY: there are 16 levels.
        let (lower, upper) = unsafe {
            let levels = levels.as_ptr();
            (_mm256_loadu_ps(levels), _mm256_loadu_ps(levels.add(8)))
        };
        let value = |codes, scales| {
            // The fourth bit of a code says which half of the levels.
            let is_upper = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
            let level = _mm256_blendv_ps(
                _mm256_permutevar8x32_ps(lower, codes),
                _mm256_permutevar8x32_ps(upper, codes),
                is_upper,
            );
            _mm256_mul_ps(level, scales)
        };
        for (codes, to) in codes.iter().zip(to) {
            for half in [0, 8] {
                // SAFETY: 8 of 16 bytes; 8 scales and values from `half` and `16 + half` on.
                unsafe {
                    let codes = _mm_loadl_epi64(codes.as_ptr().add(half).cast());
                    let low = _mm256_cvtepu8_epi32(codes);
                    let high = _mm256_srli_epi32::<4>(low);
                    for (codes, first) in [(low, half), (high, 16 + half)] {
                        let scales = _mm256_loadu_ps(scales.as_ptr().add(first));
                        _mm256_storeu_ps(to.as_mut_ptr().add(first), value(codes, scales));
                    }
                }
            }
        }
    }
}
