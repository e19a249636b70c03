//! Products of small blocks that are already in a cache, on the calling thread, for attention.
//!
//! The caller packs both operands in the order that the microkernel reads: rows of the left one are
//! [`ROW`] apart, the right one is split into *panels* of 32 columns. A block of results can itself
//! have rows [`ROW`] apart and be the left operand of the next product without a copy.

#![expect(unsafe_code, reason = "calls the microkernel, which works on pointers")]

use super::microkernel::{self, BLOCK, Kernel, PANEL, Tile};
use super::packing::{Matrix, transpose};
use crate::Isa;

/// From one row of a left operand to the next.
pub(crate) const ROW: usize = microkernel::ROW;

/// The longest sum of products that one call computes.
pub(crate) const LONGEST: usize = BLOCK;

/// The length of the panels of a right operand `[k, n]`.
pub(crate) const fn panels_len(k: usize, n: usize) -> usize {
    k * n.next_multiple_of(PANEL)
}

/// Packs the rows of a left operand.
pub(crate) fn pack_left<'a>(rows: impl Iterator<Item = &'a [f32]>, left: &mut [f32]) {
    for (row, left) in rows.zip(left.chunks_mut(ROW)) {
        left[..row.len()].copy_from_slice(row);
    }
}

/// Packs the transpose of `block`, `[k, m]` with rows [`ROW`] apart, as a left operand `[m, k]`.
pub(crate) fn transpose_left((m, k): (usize, usize), block: &[f32], left: &mut [f32]) {
    let from = Matrix {
        words: bytemuck::cast_slice(block),
        stride: ROW,
    };
    let to = Matrix {
        words: bytemuck::cast_slice_mut(left),
        stride: ROW,
    };
    transpose(k, m, from, to);
}

/// Packs the rows of a right operand `[k, n]` into panels.
pub(crate) fn pack_rows<'a>(
    (k, n): (usize, usize),
    rows: impl Iterator<Item = &'a [f32]>,
    panels: &mut [f32],
) {
    for (inner, row) in rows.take(k).enumerate() {
        for (panel, part) in row[..n].chunks(PANEL).enumerate() {
            panels[(panel * k + inner) * PANEL..][..part.len()].copy_from_slice(part);
        }
    }
}

/// Packs the transpose of `block`, `[n, k]` with rows [`ROW`] apart, into the panels of a right
/// operand `[k, n]`.
pub(crate) fn pack_columns((k, n): (usize, usize), block: &[f32], panels: &mut [f32]) {
    for (first, panel) in (0..n).step_by(PANEL).zip(panels.chunks_mut(k * PANEL)) {
        let from = Matrix {
            words: bytemuck::cast_slice(&block[first * ROW..]),
            stride: ROW,
        };
        let to = Matrix {
            words: bytemuck::cast_slice_mut(panel),
            stride: PANEL,
        };
        transpose(PANEL.min(n - first), k, from, to);
    }
}

/// Computes `result = left · right`, or adds the product to what `result` holds: `[m, n]` with
/// rows `stride` apart, from `left` (`[m, k]`) and the `panels` of the right operand (`[k, n]`),
/// where k is at most [`LONGEST`].
///
/// # Panics
/// If a slice is too short or k too large.
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    left: &[f32],
    panels: &[f32],
    (result, stride): (&mut [f32], usize),
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k <= LONGEST && left.len() >= (m - 1) * ROW + k);
    assert!(panels.len() >= panels_len(k, n));
    assert!(stride >= n && result.len() >= (m - 1) * stride + n);
    let kernel = Kernel::f32(Isa::current());
    for column in (0..n).step_by(PANEL) {
        for row in (0..m).step_by(kernel.rows()) {
            let tile = Tile {
                words: k,
                left: left[row * ROW..].as_ptr().cast(),
                right: panels[column * k..].as_ptr().cast(),
                right_stride: PANEL,
                result: result[row * stride + column..].as_mut_ptr(),
                result_stride: stride,
                scale: 1.0,
                accumulate,
            };
            // SAFETY: the slices hold the operands and the result, as just asserted, the panels
            // all their columns; the kernel was chosen for `Isa::current`.
            unsafe { kernel.run(kernel.rows().min(m - row), PANEL.min(n - column), tile) };
        }
    }
}
