//! A factor for each column of a matrix, and sums over its rows.
//!
//! ```
//! use epiphyte_kernels::columns::{scale, sums};
//!
//! let x = [1.0, 2.0, 3.0, 4.0]; // two rows of width 2
//! let mut y = [0.0; 4];
//! scale(&x, &[10.0, 0.5], &mut y)?;
//! assert_eq!(y, [10.0, 1.0, 30.0, 2.0]);
//! let mut total = [0.0; 2];
//! sums(&y, None, &mut total)?;
//! assert_eq!(total, [40.0, 3.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::kernel;
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Rows that are summed before their sums are.
const SUMMED_ROWS: usize = 64;

/// `y[row][column] = x[row][column] * factors[column]`.
///
/// # Errors
/// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit.
pub fn scale(x: &[f32], factors: &[f32], y: &mut [f32]) -> Result<(), KernelError> {
    let width = factors.len().max(1);
    KernelError::count_rows("x", x, factors.len())?;
    KernelError::check_length("y", y, &[x.len()])?;
    let part = PART.div_ceil(width) * width;
    threads::for_each(x.chunks(part).zip(y.chunks_mut(part)), |(x, y)| {
        scale_rows(x, factors, y)
    });
    Ok(())
}

/// [`scale`] in place.
///
/// # Errors
/// As [`scale`].
pub fn scale_in_place(x: &mut [f32], factors: &[f32]) -> Result<(), KernelError> {
    let width = factors.len().max(1);
    KernelError::count_rows("x", x, factors.len())?;
    let part = PART.div_ceil(width) * width;
    threads::for_each(x.chunks_mut(part), |x| scale_rows_in_place(x, factors));
    Ok(())
}

/// The sum of each column of `x`, or with `other` that of `x[row][column] * other[row][column]`:
/// over blocks of rows, then over the blocks in order.
///
/// # Errors
/// As [`scale`].
pub fn sums(x: &[f32], other: Option<&[f32]>, total: &mut [f32]) -> Result<(), KernelError> {
    let width = total.len();
    let rows = KernelError::count_rows("x", x, width)?;
    if let Some(other) = other {
        KernelError::check_length("other", other, &[rows, width])?;
    }
    total.fill(0.0);
    if width == 0 {
        return Ok(());
    }
    let block = SUMMED_ROWS * width;
    let mut partial = vec![0.0; rows.div_ceil(SUMMED_ROWS) * width];
    let parts = x.chunks(block).zip(partial.chunks_mut(width)).enumerate();
    threads::for_each(parts, |(index, (x, partial))| match other {
        Some(other) => add_products(x, &other[index * block..][..x.len()], partial),
        None => add_rows(x, partial),
    });
    add_rows(&partial, total);
    Ok(())
}

kernel! {
    fn scale_rows<S>(x: &[f32], factors: &[f32], y: &mut [f32]) {
        let width = factors.len();
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            for ((y, x), factor) in y.iter_mut().zip(x).zip(factors) {
                *y = x * factor;
            }
        }
    }
}

kernel! {
    fn scale_rows_in_place<S>(x: &mut [f32], factors: &[f32]) {
        for x in x.chunks_exact_mut(factors.len()) {
            for (x, factor) in x.iter_mut().zip(factors) {
                *x *= factor;
            }
        }
    }
}

kernel! {
    fn add_rows<S>(x: &[f32], total: &mut [f32]) {
        for row in x.chunks_exact(total.len()) {
            for (total, x) in total.iter_mut().zip(row) {
                *total += x;
            }
        }
    }
}

kernel! {
    fn add_products<S>(x: &[f32], other: &[f32], total: &mut [f32]) {
        let width = total.len();
        for (x, other) in x.chunks_exact(width).zip(other.chunks_exact(width)) {
            for ((total, x), other) in total.iter_mut().zip(x).zip(other) {
                *total = S::mul_add(*x, *other, *total);
            }
        }
    }
}
