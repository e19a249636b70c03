//! The macrokernel: a product split into cache blocks and over the threads.
//!
//! A task is a rectangle of the result. It splits the reduction into blocks (BLIS's KC); for each
//! block it packs its rows of the left operand once, and multiplies them by one panel of the right
//! operand after the other:
//!
//! - the packed rows (at most [`ROWS`] x [`BLOCK`] words) stay in the L2 cache for all panels,
//! - a block of a panel ([`BLOCK`] x [`PANEL`] words) stays in the L1 cache for all rows.
//!
//! The blocks of the reduction depend on its length alone and their sums are added in order, so
//! that neither the number of threads nor the other rows change a bit of the result.

#![expect(unsafe_code, reason = "tasks write disjoint rectangles of one slice")]

use std::marker::PhantomData;
use std::ops::Range;

use super::microkernel::{BLOCK, Kernel, PANEL, ROW, Tile};
use super::packing::Matrix;
use crate::{scratch, threads};

/// The most rows that a task packs.
const ROWS: usize = 256;

/// The most panels of a task.
const PANELS: usize = 24;

/// Products of fewer multiplications are computed on the calling thread: to wake another takes
/// longer.
const SMALL: usize = 1 << 17;

/// The most rows for which [`Right::multiply`] is asked.
pub(super) const FEW: usize = 8;

/// Panels whose columns are passed to `finish` together, while they are still in a cache.
const FINISHED: usize = 4;

/// The left operand, `[rows, words]`.
pub(super) trait Left: Sync {
    /// Writes `words` of row `rows.start + i` to `to[i * ROW..]`.
    fn pack(&self, rows: Range<usize>, words: Range<usize>, to: &mut [u32]);
}

/// The right operand, `[words, columns]`, in panels of [`PANEL`] columns.
pub(super) trait Right: Sync {
    /// `words` of a panel, as a `[words, PANEL]` matrix: either in place or copied to
    /// `scratch`. Columns past the operand's last may hold anything.
    fn panel<'a>(
        &'a self,
        panel: usize,
        words: Range<usize>,
        scratch: &'a mut [u32],
    ) -> Matrix<&'a [u32]>;

    /// The products of few packed rows of the left operand, [`ROW`] words apart, and `words` of a
    /// panel, for operands that have a quicker way to them than [`Right::panel`] and the same
    /// bytes. False if there is none.
    fn multiply(
        &self,
        _panel: usize,
        _words: Range<usize>,
        _left: &[u32],
        _rows: &mut [[f32; PANEL]],
    ) -> bool {
        false
    }
}

/// `result (+)= scale * left * right`.
pub(super) struct Product<L, R> {
    pub(super) kernel: Kernel,
    /// Rows of the left operand and of the result.
    pub(super) rows: usize,
    /// Columns of the right operand and of the result.
    pub(super) columns: usize,
    /// Length of the reduction.
    pub(super) words: usize,
    /// Length of its blocks, as [`block_of`].
    pub(super) block: usize,
    pub(super) left: L,
    pub(super) right: R,
    pub(super) scale: f32,
    pub(super) accumulate: bool,
}

impl<L: Left, R: Right> Product<L, R> {
    /// Computes the product into `result`, `[rows, columns]`.
    ///
    /// Each piece of a row is passed to `finish(row, columns, piece)` once, when it is complete.
    pub(super) fn run(
        &self,
        result: &mut [f32],
        finish: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
    ) {
        assert!(result.len() == self.rows * self.columns);
        let result = Shared::new(result);
        let panels = self.columns.div_ceil(PANEL);
        let (tall, wide) = self.task(panels);
        let down = self.rows.div_ceil(tall);
        let compute = |task: usize| {
            let (row, panel) = (task % down * tall, task / down * wide);
            let rows = row..self.rows.min(row + tall);
            let panels = panel..panels.min(panel + wide);
            self.rectangle(rows, panels, &result, |row, columns| {
                let piece = row * self.columns + columns.start..row * self.columns + columns.end;
                // SAFETY: a piece of this task's rectangle, which no other task touches.
                finish(row, columns, unsafe { result.piece(piece) });
            });
        };
        let tasks = 0..down * panels.div_ceil(wide);
        match self.rows * self.columns * self.words < SMALL {
            true => tasks.for_each(compute),
            false => threads::for_each(tasks, compute),
        }
    }

    /// Rows and panels of one task: as many as suit the caches, or fewer if threads would be idle.
    fn task(&self, panels: usize) -> (usize, usize) {
        let even = |total: usize, most: usize| total.div_ceil(total.div_ceil(most).max(1)).max(1);
        let (mut tall, mut wide) = (even(self.rows, ROWS), even(panels, PANELS));
        let wanted = 4 * threads::threads();
        while self.rows.div_ceil(tall) * panels.div_ceil(wide) < wanted {
            if wide > 4 {
                wide = wide.div_ceil(2);
            } else if tall > 8 * self.kernel.rows() {
                tall = tall.div_ceil(2);
            } else if wide > 1 {
                wide = wide.div_ceil(2);
            } else {
                break;
            }
        }
        (tall.next_multiple_of(self.kernel.rows()), wide)
    }

    /// Computes one task's rectangle, which no other task touches, and calls `finish(row, columns)`
    /// for each piece that is complete.
    fn rectangle(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        result: &Shared<'_>,
        finish: impl Fn(usize, Range<usize>),
    ) {
        let block = self.block;
        let last = self.words.saturating_sub(1) / block * block;
        let columns_of =
            |panels: Range<usize>| panels.start * PANEL..self.columns.min(panels.end * PANEL);
        scratch::with(rows.len() * ROW, |left| {
            scratch::with(block * PANEL, |right| {
                for start in (0..=last).step_by(block) {
                    let words = start..self.words.min(start + block);
                    self.left.pack(rows.clone(), words.clone(), left);
                    for group in panels.clone().step_by(FINISHED) {
                        let group = group..panels.end.min(group + FINISHED);
                        for panel in group.clone() {
                            let columns = columns_of(panel..panel + 1);
                            if self.few(panel, rows.clone(), columns.clone(), &words, left, result)
                            {
                                continue;
                            }
                            let right = self.right.panel(panel, words.clone(), right);
                            self.strip(rows.clone(), columns, &words, left, &right, result);
                        }
                        if start == last {
                            rows.clone()
                                .for_each(|row| finish(row, columns_of(group.clone())));
                        }
                    }
                }
            });
        });
    }

    /// [`Product::strip`] in the quicker way of few rows, if there is one.
    fn few(
        &self,
        panel: usize,
        rows: Range<usize>,
        columns: Range<usize>,
        words: &Range<usize>,
        left: &[u32],
        result: &Shared<'_>,
    ) -> bool {
        let mut products = [[0.0; PANEL]; FEW];
        let Some(products) = products.get_mut(..rows.len()) else {
            return false;
        };
        if !self.right.multiply(panel, words.clone(), left, products) {
            return false;
        }
        for (row, products) in rows.zip(products) {
            let piece = row * self.columns + columns.start..row * self.columns + columns.end;
            // SAFETY: a piece of this task's rectangle, which no other task touches.
            let piece = unsafe { result.piece(piece) };
            for (to, product) in piece.iter_mut().zip(products) {
                let before = match self.accumulate || words.start > 0 {
                    true => *to,
                    false => 0.0,
                };
                *to = before + self.scale * *product;
            }
        }
        true
    }

    /// Multiplies the packed rows by one panel, over one block of the reduction (one KC step).
    fn strip(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        words: &Range<usize>,
        left: &[u32],
        right: &Matrix<&[u32]>,
        result: &Shared<'_>,
    ) {
        assert!(left.len() >= rows.len() * ROW);
        assert!(words.is_empty() || right.words.len() >= (words.len() - 1) * right.stride + PANEL);
        for row in rows.clone().step_by(self.kernel.rows()) {
            let height = self.kernel.rows().min(rows.end - row);
            let tile = Tile {
                words: words.len(),
                left: left[(row - rows.start) * ROW..].as_ptr(),
                right: right.words.as_ptr(),
                right_stride: right.stride,
                result: result.at(row * self.columns + columns.start),
                result_stride: self.columns,
                scale: self.scale,
                accumulate: self.accumulate || words.start > 0,
            };
            // SAFETY: `left` holds the rows and `right` the words, as just asserted; the part of
            // the result lies in this task's rectangle; the kernel was chosen for `Isa::current`.
            unsafe { self.kernel.run(height, columns.len(), tile) };
        }
    }
}

/// Words in a block of a reduction of `words`: nearly equal blocks, whole squares of a packed
/// weight.
pub(super) fn block_of(words: usize) -> usize {
    words
        .div_ceil(words.div_ceil(BLOCK).max(1))
        .max(1)
        .next_multiple_of(PANEL)
}

/// A mutable slice of which several tasks use different parts.
struct Shared<'a> {
    start: *mut f32,
    length: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: only `piece` and the pointer of `at` reach the floats, and whoever uses them promises
// that no other task does.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn new(slice: &'a mut [f32]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            slice: PhantomData,
        }
    }

    /// The address of element `index`.
    fn at(&self, index: usize) -> *mut f32 {
        assert!(index <= self.length);
        self.start.wrapping_add(index)
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// Nothing else uses this part while the reference lives.
    #[expect(
        clippy::mut_from_ref,
        reason = "the parts of different tasks do not overlap"
    )]
    unsafe fn piece(&self, range: Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.length);
        // SAFETY: inside the slice, and the caller promises that it is not shared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
