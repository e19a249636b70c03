//! Random numbers that have an address instead of an order: dropout, and fills for initial values.
//!
//! The generator is Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
//! 3"): a bijection of a 128-bit counter under a 64-bit key. The number that decides about an
//! element is that of its place: the *key* says which run, step and layer it belongs to
//! ([`derive_key`]), *row* and *column* where it stands. So the backward pass draws the forward
//! pass's mask again instead of storing it, and neither threads nor the other rows of a batch
//! change what a row sees.
//!
//! ```
//! use epiphyte_kernels::dropout::{Dropout, derive_key};
//!
//! let (seed, step, layer) = (42, 7, 3);
//! let dropout = Dropout::new(0.5, derive_key(derive_key(seed, step), layer))?;
//! let mut x = vec![1.0; 2 * 100];
//! dropout.apply(&mut x, 100, 0)?;
//! assert!(x.iter().all(|&x| x == 0.0 || x == 2.0));
//!
//! // Row 1 alone meets the same mask.
//! let mut row = vec![1.0; 100];
//! dropout.apply(&mut row, 100, 1)?;
//! assert_eq!(row, x[100..]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::kernel;
use crate::{KernelError, threads};

/// Counters that are encrypted at a time, one a lane.
const LANES: usize = 16;
/// Columns whose numbers are drawn together: four words of each counter.
pub(crate) const BLOCK: usize = 4 * LANES;
/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;

/// What a number is for; the last word of the counter, so that uses never share a number.
#[derive(Clone, Copy)]
enum Purpose {
    Mask,
    Uniform,
    Normal,
    Key,
}

/// Philox4x32-10: encrypts `counter` under `key`.
///
/// ```
/// use epiphyte_kernels::dropout::philox4x32;
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

/// The numbers of columns `BLOCK * block ..` of a row: column `16 w + l` of the block is word `w`
/// of counter `16 block + l`.
#[inline(always)]
fn draw(key: u64, purpose: Purpose, row: u64, block: u32) -> [[u32; LANES]; 4] {
    let mut first = [0; LANES];
    for (lane, word) in first.iter_mut().enumerate() {
        *word = block.wrapping_mul(LANES as u32).wrapping_add(lane as u32);
    }
    let rest = [row as u32, (row >> 32) as u32, purpose as u32].map(|word| [word; LANES]);
    philox(
        [first, rest[0], rest[1], rest[2]],
        [key as u32, (key >> 32) as u32],
    )
}

/// A key for something inside what `parent` is the key of: a step of a run, a layer of a step, a
/// sequence of a batch. Different labels give unrelated keys.
pub fn derive_key(parent: u64, label: u64) -> u64 {
    let counter = [label as u32, (label >> 32) as u32, 0, Purpose::Key as u32];
    let [low, high, ..] = philox4x32(counter, [parent as u32, (parent >> 32) as u32]);
    u64::from(high) << 32 | u64::from(low)
}

/// Inverted dropout at one site: an element is zeroed with probability p and otherwise divided by
/// 1 - p, as `torch.nn.Dropout` does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// An element is dropped when its number is below.
    threshold: u32,
    scale: f32,
    key: u64,
}

impl Dropout {
    /// Dropout with `probability` (at least 0, less than 1) at the site with this `key`.
    ///
    /// # Errors
    /// [`KernelError::Parameter`] for any other probability.
    pub fn new(probability: f32, key: u64) -> Result<Self, KernelError> {
        if !(0.0..1.0).contains(&probability) {
            return Err(KernelError::Parameter {
                parameter: "probability",
                got: probability.to_string(),
                allowed: "at least 0 and less than 1",
            });
        }
        let threshold = (f64::from(probability) * 2f64.powi(32)) as u32;
        Ok(Self {
            threshold,
            scale: 1.0 / (1.0 - probability),
            key,
        })
    }

    /// Multiplies rows of `columns` elements by their mask, in place; the first of them is row
    /// `first_row` of the site. This is the forward pass on x and the backward pass on dy alike.
    ///
    /// # Errors
    /// [`KernelError::Rows`] when `x` is not whole rows.
    pub fn apply(&self, x: &mut [f32], columns: usize, first_row: u64) -> Result<(), KernelError> {
        if KernelError::count_rows("x", x, columns)? == 0 {
            return Ok(());
        }
        let rows_a_part = PART.div_ceil(columns);
        threads::for_each(
            x.chunks_mut(rows_a_part * columns).enumerate(),
            |(part, x)| {
                mask_rows(*self, x, columns, first_row + (part * rows_a_part) as u64);
            },
        );
        Ok(())
    }

    /// What columns `BLOCK * block ..` of a row are multiplied by: 0 or 1 / (1 - p).
    #[inline(always)]
    pub(crate) fn factors(self, row: u64, block: usize) -> [f32; BLOCK] {
        let words = draw(self.key, Purpose::Mask, row, block as u32);
        let mut factors = [0.0; BLOCK];
        for (factor, &word) in factors.iter_mut().zip(words.as_flattened()) {
            *factor = if word < self.threshold {
                0.0
            } else {
                self.scale
            };
        }
        factors
    }
}

kernel! {
    fn mask_rows<S>(dropout: Dropout, x: &mut [f32], columns: usize, first_row: u64) {
        for (row, x) in x.chunks_mut(columns).enumerate() {
            for (block, x) in x.chunks_mut(BLOCK).enumerate() {
                let factors = dropout.factors(first_row + row as u64, block);
                for (x, factor) in x.iter_mut().zip(factors) {
                    *x *= factor;
                }
            }
        }
    }
}

/// Fills `out` with numbers from the uniform distribution over [`low`, `high`), as
/// `torch.nn.init.uniform_` does (other numbers, same distribution).
pub fn fill_uniform(out: &mut [f32], low: f32, high: f32, key: u64) {
    threads::for_each(out.chunks_mut(PART).enumerate(), |(part, out)| {
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let words = draw(key, Purpose::Uniform, part as u64, block as u32);
            for (out, &word) in out.iter_mut().zip(words.as_flattened()) {
                // Rounding may reach `high`; the step before it is as good a number.
                *out = (low + unit(word) * (high - low))
                    .min(high.next_down())
                    .max(low);
            }
        }
    });
}

/// Fills `out` with numbers from the normal distribution, as `torch.nn.init.normal_` does (other
/// numbers, same distribution; Box and Muller 1958).
pub fn fill_normal(out: &mut [f32], mean: f32, standard_deviation: f32, key: u64) {
    threads::for_each(out.chunks_mut(PART).enumerate(), |(part, out)| {
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let words = draw(key, Purpose::Normal, part as u64, block as u32);
            let (radii, angles) = words.as_flattened().split_at(BLOCK / 2);
            let mut normals = [0.0f64; BLOCK];
            for (pair, (&radius, &angle)) in radii.iter().zip(angles).enumerate() {
                // 1 - unit is never 0, so the logarithm is finite.
                let radius = (-2.0 * (1.0 - f64::from(unit(radius))).ln()).sqrt();
                let (sine, cosine) = (std::f64::consts::TAU * f64::from(unit(angle))).sin_cos();
                normals[pair] = radius * cosine;
                normals[BLOCK / 2 + pair] = radius * sine;
            }
            for (out, normal) in out.iter_mut().zip(normals) {
                *out = (normal * f64::from(standard_deviation)) as f32 + mean;
            }
        }
    });
}

/// A number in [0, 1) from the word's 24 high bits, which a float holds exactly.
#[inline(always)]
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

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
        let key = 0x0123_4567_89ab_cdef;
        let words = draw(key, Purpose::Uniform, (5 << 32) | 9, 3);
        for (column, &word) in words.as_flattened().iter().enumerate() {
            let counter = [3 * 16 + column as u32 % 16, 9, 5, Purpose::Uniform as u32];
            assert_eq!(
                word,
                philox4x32(counter, [0x89ab_cdef, 0x0123_4567])[column / 16]
            );
        }
    }

    #[test]
    fn an_element_depends_on_its_address_alone() {
        let dropout = Dropout::new(0.3, 11).unwrap();
        let (rows, columns) = (700, 77);
        let mut all = vec![1.0; rows * columns];
        Isa::Portable
            .with(|| dropout.apply(&mut all, columns, 5))
            .unwrap();
        for isa in Isa::available() {
            for (row, expected) in all.chunks(columns).enumerate() {
                let mut alone = vec![1.0; columns];
                isa.with(|| dropout.apply(&mut alone, columns, 5 + row as u64))
                    .unwrap();
                assert_eq!(alone, expected, "{isa:?}, row {row}");
            }
        }
        let mut narrow = vec![1.0; 50];
        dropout.apply(&mut narrow, 50, 5).unwrap();
        assert_eq!(narrow, all[..50]);
    }

    #[test]
    fn masks_have_their_probability_and_are_unrelated() {
        for (probability, key) in [(0.1f32, 1), (0.5, 2), (0.9, 3)] {
            let n = 1_000_000;
            let mut x = vec![1.0f32; n];
            Dropout::new(probability, key)
                .unwrap()
                .apply(&mut x, 1000, 0)
                .unwrap();
            let kept = x.iter().filter(|&&x| x != 0.0).count() as f64;
            let (p, n) = (f64::from(probability), n as f64);
            let deviations = (kept - n * (1.0 - p)) / (n * p * (1.0 - p)).sqrt();
            assert!(deviations.abs() < 4.0, "{deviations} standard deviations");
            assert!(
                x.iter()
                    .all(|&x| x == 0.0 || x == 1.0 / (1.0 - probability))
            );

            let mut y = vec![1.0f32; x.len()];
            let other = derive_key(key, 0);
            Dropout::new(probability, other)
                .unwrap()
                .apply(&mut y, 1000, 0)
                .unwrap();
            let both = x
                .iter()
                .zip(&y)
                .filter(|(x, y)| **x != 0.0 && **y != 0.0)
                .count() as f64;
            let q = (1.0 - p).powi(2);
            let deviations = (both - n * q) / (n * q * (1.0 - q)).sqrt();
            assert!(deviations.abs() < 4.0, "{deviations} standard deviations");
        }
    }

    #[test]
    fn no_dropout_changes_nothing() {
        let mut x = vec![0.1, f32::MAX, -3.0, f32::MIN_POSITIVE];
        let before = x.clone();
        Dropout::new(0.0, 9).unwrap().apply(&mut x, 2, 0).unwrap();
        assert_eq!(x, before);
    }

    #[test]
    fn fills_have_their_moments() {
        let moments = |x: &[f32]| {
            let n = x.len() as f64;
            let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let moment = |power| {
                x.iter()
                    .map(|&x| (f64::from(x) - mean).powi(power))
                    .sum::<f64>()
                    / n
            };
            (mean, moment(2), moment(4))
        };
        let mut x = vec![0.0; 1_000_003];
        fill_uniform(&mut x, -2.0, 4.0, 5);
        assert!(x.iter().all(|&x| (-2.0..4.0).contains(&x)));
        let (mean, variance, _) = moments(&x);
        assert!(
            (mean - 1.0).abs() < 0.007 && (variance - 3.0).abs() < 0.02,
            "{mean} {variance}"
        );

        fill_normal(&mut x, 1.0, 2.0, 5);
        let (mean, variance, fourth) = moments(&x);
        assert!(
            (mean - 1.0).abs() < 0.008 && (variance - 4.0).abs() < 0.025,
            "{mean} {variance}"
        );
        assert!(
            (fourth / variance.powi(2) - 3.0).abs() < 0.03,
            "kurtosis {fourth}"
        );
    }

    #[test]
    fn probabilities_outside_are_refused() {
        for probability in [-0.1, 1.0, f32::NAN] {
            assert!(matches!(
                Dropout::new(probability, 0),
                Err(KernelError::Parameter { .. })
            ));
        }
        let dropout = Dropout::new(0.5, 0).unwrap();
        assert!(matches!(
            dropout.apply(&mut [0.0; 5], 2, 0),
            Err(KernelError::Rows { .. })
        ));
        dropout.apply(&mut [], 0, 0).unwrap();
    }
}
