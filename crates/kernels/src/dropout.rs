//! Dropout whose mask is recomputed, not stored.
//!
//! Whether an element is dropped depends on the *key* of the mask, which says which run, step and
//! layer it belongs to ([`derive_key`](crate::random::derive_key)), and on the element's *row* and
//! *column*. So the backward pass draws the mask of the forward pass again, and neither the number
//! of threads nor the other rows of a batch change the mask of a row.
//!
//! ```
//! use epiphyte_kernels::dropout::Dropout;
//! use epiphyte_kernels::random::derive_key;
//!
//! let (seed, step, layer) = (42, 7, 3);
//! let dropout = Dropout::new(0.5, derive_key(derive_key(seed, step), layer))?;
//! let mut x = vec![1.0; 2 * 100];
//! dropout.apply(&mut x, 100, 0)?;
//! assert!(x.iter().all(|&x| x == 0.0 || x == 2.0));
//!
//! // Row 1 alone has the same mask.
//! let mut row = vec![1.0; 100];
//! dropout.apply(&mut row, 100, 1)?;
//! assert_eq!(row, x[100..]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::kernel;
use crate::{KernelError, random, threads};

/// Columns whose numbers are drawn together.
pub(crate) const BLOCK: usize = random::BLOCK;
/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;

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
        let words = random::mask_words(self.key, row, block as u32);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::random::derive_key;

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
