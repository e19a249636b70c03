//! From codes to values, in row-major order.

use super::Format;
use crate::simd::kernel;

/// Writes the values of the codes from `first` on, which share a scale, to `to`.
pub(super) fn decode(format: Format, codes: &[u8], first: usize, scale: f32, to: &mut [f32]) {
    let Some(levels) = format.levels() else {
        return whole_numbers(&codes[first..][..to.len()], scale, to);
    };
    let value = |code: u8| levels[usize::from(code)] * scale;
    // Codes begin and end in the middle of a byte where rows have an odd length.
    let (first, to) = match (first % 2, to) {
        (1, [start, rest @ ..]) => {
            *start = value(codes[first / 2] & 15);
            (first + 1, rest)
        }
        (_, to) => (first, to),
    };
    let (pairs, last) = to.as_chunks_mut::<2>();
    let codes = &codes[first / 2..];
    if let [end] = last {
        *end = value(codes[pairs.len()] >> 4);
    }
    for (pair, &code) in pairs.iter_mut().zip(codes) {
        *pair = [code >> 4, code & 15].map(value);
    }
}

kernel! {
    fn whole_numbers<S>(codes: &[u8], scale: f32, to: &mut [f32]) {
        for (value, &code) in to.iter_mut().zip(codes) {
            *value = f32::from(code as i8) * scale;
        }
    }
}
