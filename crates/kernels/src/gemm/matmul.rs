//! The general f32 product, for operands that change: packed during the product.

use std::ops::Range;

use super::macrokernel::{Left, Product, Right, block_of};
use super::microkernel::{Kernel, PANEL, ROW};
use super::packing::{Matrix, prefetch, rows_ahead, transpose};
use crate::{Isa, KernelError};

/// A matrix as a factor of [`matmul`].
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// As it is stored.
    Plain(&'a [f32]),
    /// Stored transposed.
    Transposed(&'a [f32]),
}

impl<'a> Operand<'a> {
    /// Checks that the slice holds `[rows, columns]` as multiplied, and gives its words and the
    /// distances from row to row and from column to column.
    fn view(
        self,
        name: &'static str,
        rows: usize,
        columns: usize,
    ) -> Result<View<'a>, KernelError> {
        let (slice, stored, transposed) = match self {
            Self::Plain(slice) => (slice, [rows, columns], false),
            Self::Transposed(slice) => (slice, [columns, rows], true),
        };
        KernelError::check_length(name, slice, &stored)?;
        Ok(View {
            words: bytemuck::cast_slice(slice),
            stride: stored[1],
            transposed,
        })
    }
}

/// `c = alpha a b + beta c` in f32, with a `[m, k]`, b `[k, n]` and c `[m, n]`, row-major.
///
/// With beta = 0, what c held does not matter, NaN included.
///
/// ```
/// use epiphyte_kernels::gemm::{Operand, matmul};
///
/// // The gradient of a [2, 1] weight from 3 rows: gᵀ x.
/// let (g, x) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1.0, 0.0, 2.0]);
/// let mut dw = [0.0; 2];
/// matmul([2, 3, 1], 1.0, Operand::Transposed(&g), Operand::Plain(&x), 0.0, &mut dw)?;
/// assert_eq!(dw, [11.0, 14.0]);
/// # Ok::<(), epiphyte_kernels::KernelError>(())
/// ```
///
/// # Errors
/// [`KernelError::Length`] when an operand does not have the elements of its shape.
pub fn matmul(
    [m, k, n]: [usize; 3],
    alpha: f32,
    a: Operand<'_>,
    b: Operand<'_>,
    beta: f32,
    c: &mut [f32],
) -> Result<(), KernelError> {
    let (left, right) = (a.view("a", m, k)?, b.view("b", k, n)?);
    KernelError::check_length("c", c, &[m, n])?;
    if beta != 0.0 && beta != 1.0 {
        c.iter_mut().for_each(|c| *c *= beta);
    }
    run([m, k, n], alpha, left, right, beta != 0.0, c, |_, _| {});
    Ok(())
}

/// `y = x Wᵀ + bias` in f32, over a weight that changes.
///
/// # Shapes
/// - x: `[tokens, in]`
/// - weight: `[out, in]`
/// - bias: `[out]`
/// - y: `[tokens, out]`
///
/// # Errors
/// [`KernelError::Length`] when an operand does not have the elements of its shape.
pub fn affine(
    [tokens, input, out]: [usize; 3],
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    y: &mut [f32],
) -> Result<(), KernelError> {
    let x = Operand::Plain(x).view("x", tokens, input)?;
    let weight = Operand::Transposed(weight).view("weight", input, out)?;
    KernelError::check_length("bias", bias, &[out])?;
    KernelError::check_length("y", y, &[tokens, out])?;
    let add = |columns: Range<usize>, y: &mut [f32]| {
        let bias = &bias[columns];
        y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
    };
    run([tokens, input, out], 1.0, x, weight, false, y, add);
    if input == 0 {
        y.chunks_exact_mut(out.max(1))
            .for_each(|row| row.copy_from_slice(bias));
    }
    Ok(())
}

/// `c (+)= alpha a b`, calling `finish` with each complete piece of a row, unless the reduction is
/// empty.
fn run(
    [m, k, n]: [usize; 3],
    alpha: f32,
    left: View<'_>,
    right: View<'_>,
    accumulate: bool,
    c: &mut [f32],
    finish: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if k == 0 {
        // Nothing to add up, and no operand to point into.
        if !accumulate {
            c.fill(0.0);
        }
        return;
    }
    let kernel = Kernel::f32(Isa::current());
    let in_place = !right.transposed && m <= 2 * kernel.rows();
    let product = Product {
        kernel,
        rows: m,
        columns: n,
        words: k,
        block: block_of(k),
        left,
        right: Panels {
            matrix: right,
            columns: n,
            in_place,
        },
        scale: alpha,
        accumulate,
    };
    product.run(c, |_, columns, c| finish(columns, c));
}

/// A row-major matrix of f32 words.
struct View<'a> {
    words: &'a [u32],
    /// Words from one stored row to the next.
    stride: usize,
    /// Whether stored rows are columns of the operand.
    transposed: bool,
}

impl View<'_> {
    fn from(&self, row: usize, column: usize) -> Matrix<&[u32]> {
        let (row, column) = if self.transposed {
            (column, row)
        } else {
            (row, column)
        };
        Matrix {
            words: &self.words[row * self.stride + column..],
            stride: self.stride,
        }
    }

    /// Writes a rectangle with `stride` words from row to row.
    fn copy(&self, rows: Range<usize>, columns: Range<usize>, to: Matrix<&mut [u32]>) {
        if rows.is_empty() || columns.is_empty() {
            return;
        }
        let from = self.from(rows.start, columns.start);
        if self.transposed {
            return transpose(columns.len(), rows.len(), from, to);
        }
        let row_of = |row: usize| &from.words[row * from.stride..][..columns.len()];
        let ahead = rows_ahead(columns.len());
        for row in 0..rows.len() {
            if row + ahead < rows.len() {
                prefetch(row_of(row + ahead));
            }
            to.words[row * to.stride..][..columns.len()].copy_from_slice(row_of(row));
        }
    }
}

impl Left for View<'_> {
    fn pack(&self, rows: Range<usize>, words: Range<usize>, to: &mut [u32]) {
        self.copy(
            rows,
            words,
            Matrix {
                words: to,
                stride: ROW,
            },
        );
    }
}

/// A right operand whose panels are copied when they are needed.
struct Panels<'a> {
    matrix: View<'a>,
    columns: usize,
    /// Whether full panels are read in place, since there are too few rows to repay the copy.
    in_place: bool,
}

impl Right for Panels<'_> {
    fn panel<'a>(
        &'a self,
        panel: usize,
        words: Range<usize>,
        scratch: &'a mut [u32],
    ) -> Matrix<&'a [u32]> {
        let columns = panel * PANEL..self.columns.min((panel + 1) * PANEL);
        if self.in_place && columns.len() == PANEL {
            return self.matrix.from(words.start, columns.start);
        }
        self.matrix.copy(
            words,
            columns,
            Matrix {
                words: scratch,
                stride: PANEL,
            },
        );
        Matrix {
            words: scratch,
            stride: PANEL,
        }
    }
}
