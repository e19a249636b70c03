//! Flat buffers: sums, factors and the length of a gradient.
//!
//! ```
//! use epiphyte_kernels::vector::{add, scale, square_sum};
//!
//! let mut sum = [0.0; 2];
//! add(&[1.0, 2.0], &[2.0, 2.0], &mut sum)?;
//! assert_eq!(square_sum(&sum), 25.0);
//! scale(&mut sum, 0.5);
//! assert_eq!(sum, [1.5, 2.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::kernel;
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Partial sums of a part.
const LANES: usize = 16;

/// `sum = x + y`.
///
/// # Errors
/// [`KernelError::Length`] when a slice is not as long as `x`.
pub fn add(x: &[f32], y: &[f32], sum: &mut [f32]) -> Result<(), KernelError> {
    KernelError::check_length("y", y, &[x.len()])?;
    KernelError::check_length("sum", sum, &[x.len()])?;
    let parts = x.chunks(PART).zip(y.chunks(PART)).zip(sum.chunks_mut(PART));
    threads::for_each(parts, |((x, y), sum)| add_part(x, y, sum));
    Ok(())
}

/// `sum = sum + x`.
///
/// # Errors
/// [`KernelError::Length`] when `sum` is not as long as `x`.
pub fn accumulate(x: &[f32], sum: &mut [f32]) -> Result<(), KernelError> {
    KernelError::check_length("sum", sum, &[x.len()])?;
    threads::for_each(x.chunks(PART).zip(sum.chunks_mut(PART)), |(x, sum)| {
        accumulate_part(x, sum);
    });
    Ok(())
}

/// `x = factor x`.
pub fn scale(x: &mut [f32], factor: f32) {
    threads::for_each(x.chunks_mut(PART), |x| scale_part(x, factor));
}

/// The sum of the squares, in f64: the same on any number of threads.
pub fn square_sum(x: &[f32]) -> f64 {
    let mut sums = vec![0.0; x.len().div_ceil(PART)];
    threads::for_each(x.chunks(PART).zip(&mut sums), |(x, sum)| {
        *sum = square_sum_of_part(x);
    });
    sums.iter().sum()
}

kernel! {
    fn add_part<S>(x: &[f32], y: &[f32], sum: &mut [f32]) {
        for ((sum, x), y) in sum.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
    }
}

kernel! {
    fn accumulate_part<S>(x: &[f32], sum: &mut [f32]) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

kernel! {
    fn scale_part<S>(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

kernel! {
    fn square_sum_of_part<S>(x: &[f32]) -> f64 {
        let (chunks, rest) = x.as_chunks::<LANES>();
        let mut lanes = [0.0f64; LANES];
        for chunk in chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}
