//! The fast Walsh-Hadamard transform.
//!
//! ```
//! use epiphyte_kernels::hadamard::transform;
//!
//! let mut x = [1.0, 2.0, 3.0, 4.0];
//! transform(&mut x)?;
//! assert_eq!(x, [10.0, -2.0, -4.0, 0.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::kernel;
use crate::{KernelError, threads};

/// Elements that are transformed while they are in a cache.
const PART: usize = 16 * 1024;

/// `x = H x` in place, where `H` is the unnormalized Hadamard matrix in natural (Sylvester's)
/// order: symmetric, and `H H x = n x` for `n` values.
///
/// # Errors
/// [`KernelError::Length`] if the number of values is no power of two.
pub fn transform(x: &mut [f32]) -> Result<(), KernelError> {
    KernelError::check_length("x", x, &[x.len().max(1).next_power_of_two()])?;
    threads::for_each(x.chunks_mut(PART), |part| {
        let mut half = 1;
        while half < part.len() {
            butterflies(part, half);
            half *= 2;
        }
    });
    let mut half = PART;
    while half < x.len() {
        for pair in x.chunks_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            let parts = first.chunks_mut(PART).zip(second.chunks_mut(PART));
            threads::for_each(parts, |(first, second)| butterfly(first, second));
        }
        half *= 2;
    }
    Ok(())
}

kernel! {
    fn butterflies<S>(part: &mut [f32], half: usize) {
        for pair in part.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
    }
}

kernel! {
    fn butterfly<S>(first: &mut [f32], second: &mut [f32]) {
        for (a, b) in first.iter_mut().zip(second) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::transform;
    use crate::random;

    /// Entry `(i, j)` of the matrix is 1 if `i` and `j` have an even number of bits in common, else
    /// -1.
    #[test]
    fn the_transform_is_the_product_with_the_matrix() {
        for size in [1usize, 2, 8, 64] {
            let x = random::normal(size as u64, size, 1.0);
            let mut found = x.clone();
            transform(&mut found).unwrap();
            for (row, found) in found.iter().enumerate() {
                let terms = x.iter().enumerate().map(|(column, value)| {
                    match (row & column).count_ones() % 2 {
                        0 => f64::from(*value),
                        _ => -f64::from(*value),
                    }
                });
                let expected: f64 = terms.sum();
                assert!((expected - f64::from(*found)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn twice_is_the_number_of_values_times_once() {
        let size = 1 << 16;
        let x = random::normal(5, size, 1.0);
        let mut twice = x.clone();
        transform(&mut twice).unwrap();
        transform(&mut twice).unwrap();
        for (twice, x) in twice.iter().zip(&x) {
            assert!((twice / size as f32 - x).abs() < 1e-4);
        }
    }

    #[test]
    fn other_sizes_are_refused() {
        let error = transform(&mut [0.0; 6]).unwrap_err();
        assert!(error.to_string().contains('8'), "{error}");
    }
}
