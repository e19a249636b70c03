//! Counter-based random numbers (Philox): a value depends on its key and index, not on how many
//! values were drawn before it, so it is the same on every machine and any number of threads.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
//! 3"): a bijection of a 128-bit counter under a 64-bit key.

use std::ops::Range;

use crate::threads;

/// Counters that are encrypted at a time, one a lane.
const LANES: usize = 16;
/// Columns whose mask numbers are drawn together: four words of each counter.
pub(crate) const BLOCK: usize = 4 * LANES;

/// The last word of the counter of a dropout mask's numbers; distinct from [`KEY`], so that the two
/// never use the same number.
const MASK: u32 = 0;
/// The last word of the counter of a derived key.
const KEY: u32 = 3;

/// Philox4x32-10: encrypts `counter` under `key`.
///
/// ```
/// use epiphyte_kernels::random::philox4x32;
/// // A known answer of the authors' library, Random123.
/// assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
/// ```
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    philox::<1>(counter.map(|word| [word]), key).map(|[word]| word)
}

/// [`philox4x32`] of `N` counters at a time; the word of a counter comes first, then its lane.
#[inline(always)]
fn philox<const N: usize>(counters: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    let [mut a, mut b, mut c, mut d] = counters;
    for _ in 0..10 {
        for lane in 0..N {
            let first = u64::from(a[lane]) * 0xD251_1F53;
            let second = u64::from(c[lane]) * 0xCD9E_8D57;
            a[lane] = (second >> 32) as u32 ^ b[lane] ^ key[0];
            b[lane] = second as u32;
            c[lane] = (first >> 32) as u32 ^ d[lane] ^ key[1];
            d[lane] = first as u32;
        }
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    [a, b, c, d]
}

/// The numbers by which dropout decides about columns `BLOCK * block ..` of a row: column `16 w +
/// l` of the block is word `w` of counter `16 block + l`.
#[inline(always)]
pub(crate) fn mask_words(key: u64, row: u64, block: u32) -> [[u32; LANES]; 4] {
    let mut first = [0; LANES];
    for (lane, word) in first.iter_mut().enumerate() {
        *word = block.wrapping_mul(LANES as u32).wrapping_add(lane as u32);
    }
    let rest = [row as u32, (row >> 32) as u32, MASK].map(|word| [word; LANES]);
    philox(
        [first, rest[0], rest[1], rest[2]],
        [key as u32, (key >> 32) as u32],
    )
}

/// A key for a part of what `parent` is the key of: a step of a run, a layer of a step, a sequence
/// of a batch. Different labels give independent keys.
pub fn derive_key(parent: u64, label: u64) -> u64 {
    let counter = [label as u32, (label >> 32) as u32, 0, KEY];
    let [low, high, ..] = philox4x32(counter, [parent as u32, (parent >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

/// `count` values uniform in `[low, high)`.
pub fn uniform(key: u64, count: usize, low: f64, high: f64) -> Vec<f32> {
    drawn(0..count, |index| low + unit(key, index) * (high - low))
}

/// `count` values, normal with mean zero and the given standard deviation (Box and Muller 1958).
pub fn normal(key: u64, count: usize, std: f64) -> Vec<f32> {
    normal_at(key, 0..count, std)
}

/// A part of what [`normal`] draws: the values at these places.
pub fn normal_at(key: u64, places: Range<usize>, std: f64) -> Vec<f32> {
    drawn(places, |index| std * gaussian(key, index))
}

/// `count` values, normal with mean zero and the given standard deviation, those beyond two of
/// them drawn again, as TensorFlow's `truncated_normal` does.
pub fn truncated_normal(key: u64, count: usize, std: f64) -> Vec<f32> {
    let draw = |index| {
        let draws = (0..).map(|attempt| gaussian(derive_key(key, attempt), index));
        let kept = draws.into_iter().find(|value| value.abs() <= 2.0);
        kept.expect("nineteen of twenty draws are kept")
    };
    drawn(0..count, |index| std * draw(index))
}

/// `draw(index)` for each index, on all threads.
fn drawn(places: Range<usize>, draw: impl Fn(u64) -> f64 + Sync) -> Vec<f32> {
    const PART: usize = 1 << 12;
    let mut values = vec![0.0; places.len()];
    threads::for_each(values.chunks_mut(PART).enumerate(), |(part, values)| {
        for (index, value) in values.iter_mut().enumerate() {
            *value = draw((places.start + part * PART + index) as u64) as f32;
        }
    });
    values
}

/// Normal with mean zero and standard deviation one.
fn gaussian(key: u64, index: u64) -> f64 {
    let radius = (-2.0 * (1.0 - unit(key, 2 * index)).ln()).sqrt();
    let angle = std::f64::consts::TAU * unit(key, 2 * index + 1);
    radius * angle.cos()
}

/// Uniform in `[0, 1)`.
fn unit(key: u64, index: u64) -> f64 {
    (derive_key(key, index) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_std(values: &[f32]) -> (f64, f64) {
        let count = values.len() as f64;
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let square = values
            .iter()
            .map(|&value| (f64::from(value) - mean).powi(2))
            .sum::<f64>();
        (mean, (square / count).sqrt())
    }

    #[test]
    fn normal_has_the_moments_asked_for() {
        let (mean, std) = mean_and_std(&normal(1, 100_000, 0.02));
        assert!(mean.abs() < 3.0 * 0.02 / 100_000f64.sqrt(), "{mean}");
        assert!((std / 0.02 - 1.0).abs() < 0.01, "{std}");
    }

    #[test]
    fn a_part_is_what_the_whole_has_there() {
        let whole = normal(5, 10_000, 0.3);
        for places in [0..10_000, 4_000..9_001, 17..17] {
            assert_eq!(normal_at(5, places.clone(), 0.3), whole[places]);
        }
    }

    #[test]
    fn truncated_normal_stays_within_two_deviations() {
        let values = truncated_normal(1, 100_000, 1e-3);
        assert!(values.iter().all(|value| value.abs() <= 2e-3));
        let (mean, std) = mean_and_std(&values);
        assert!(mean.abs() < 3.0 * 1e-3 / 100_000f64.sqrt(), "{mean}");
        // A standard normal truncated at two has this standard deviation:
        // scipy.stats.truncnorm(-2, 2).std().
        assert!((std / 1e-3 - 0.879_626).abs() < 0.01, "{std}");
    }

    #[test]
    fn uniform_has_the_moments_asked_for() {
        let values = uniform(1, 100_000, -2.0, 4.0);
        assert!(values.iter().all(|value| (-2.0..4.0).contains(value)));
        let (mean, std) = mean_and_std(&values);
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        assert!((std - 3f64.sqrt()).abs() < 0.02, "{std}");
    }

    /// `kat_vectors` of Random123 1.14: philox4x32, 10 rounds.
    #[test]
    fn known_answers() {
        let ones = u32::MAX;
        assert_eq!(
            philox4x32([ones; 4], [ones; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_the_generator() {
        let words = mask_words(0x0123_4567_89ab_cdef, (5 << 32) | 9, 3);
        for (column, &word) in words.as_flattened().iter().enumerate() {
            let counter = [3 * 16 + column as u32 % 16, 9, 5, MASK];
            assert_eq!(
                word,
                philox4x32(counter, [0x89ab_cdef, 0x0123_4567])[column / 16]
            );
        }
    }
}
