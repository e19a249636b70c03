//! Rows of a table by index, and the gradient of the table.
//!
//! ```
//! use epiphyte_kernels::embedding::{gather, scatter_add};
//!
//! let table = [0.0, 0.5, 1.0, 1.5]; // two rows of width 2
//! let mut y = [0.0; 6];
//! gather(&table, 2, &[1, 0, 1], &mut y)?;
//! assert_eq!(y, [1.0, 1.5, 0.0, 0.5, 1.0, 1.5]);
//!
//! let mut d_table = [0.0; 4];
//! scatter_add(&[1.0; 6], 2, &[1, 0, 1], &mut d_table)?;
//! assert_eq!(d_table, [1.0, 1.0, 2.0, 2.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Into how many ranges of rows a table is split when gradients are added to it.
const TABLE_PARTS: usize = 16;

/// `y[i] = table[indices[i]]`, for a `table` of rows of `width`.
///
/// # Errors
/// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit,
/// [`KernelError::Index`] when the table lacks a row.
pub fn gather(
    table: &[f32],
    width: usize,
    indices: &[i64],
    y: &mut [f32],
) -> Result<(), KernelError> {
    check_indices(table, width, indices)?;
    KernelError::check_length("y", y, &[indices.len(), width])?;
    if y.is_empty() {
        return Ok(());
    }
    let part = PART.div_ceil(width);
    threads::for_each(
        indices.chunks(part).zip(y.chunks_mut(part * width)),
        |(indices, y)| {
            for (&index, y) in indices.iter().zip(y.chunks_exact_mut(width)) {
                y.copy_from_slice(&table[index as usize * width..][..width]);
            }
        },
    );
    Ok(())
}

/// `d_table[indices[i]] += dy[i]`; where an index repeats, in the order of i.
///
/// # Errors
/// As [`gather`].
pub fn scatter_add(
    dy: &[f32],
    width: usize,
    indices: &[i64],
    d_table: &mut [f32],
) -> Result<(), KernelError> {
    check_indices(d_table, width, indices)?;
    KernelError::check_length("dy", dy, &[indices.len(), width])?;
    if dy.is_empty() {
        return Ok(());
    }
    // Each task searches for the indices of its own rows, so that no two threads write one row.
    let rows = (d_table.len() / width).div_ceil(TABLE_PARTS);
    threads::for_each(
        d_table.chunks_mut(rows * width).enumerate(),
        |(part, d_table)| {
            for (&index, dy) in indices.iter().zip(dy.chunks_exact(width)) {
                let Some(row) = (index as usize).checked_sub(part * rows) else {
                    continue;
                };
                if let Some(d_row) = d_table.chunks_exact_mut(width).nth(row) {
                    d_row.iter_mut().zip(dy).for_each(|(d, dy)| *d += dy);
                }
            }
        },
    );
    Ok(())
}

fn check_indices(table: &[f32], width: usize, indices: &[i64]) -> Result<(), KernelError> {
    let limit = KernelError::count_rows("table", table, width)?;
    let outside = |&index: &i64| !usize::try_from(index).is_ok_and(|index| index < limit);
    match indices.iter().position(outside) {
        None => Ok(()),
        Some(position) => Err(KernelError::Index {
            operand: "indices",
            position,
            index: indices[position],
            limit,
        }),
    }
}
