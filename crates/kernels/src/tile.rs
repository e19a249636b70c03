//! Small products inside other kernels: blocks that are in the cache already.
//!
//! The right operand is packed into *panels* of as many columns as a register tile has, the left
//! one is read where it lies. Every element of the result is one sum over the inner dimension in
//! order, whatever the tile it falls into: a row's result does not depend on its neighbours.

use crate::simd::Simd;

/// The width of a panel never exceeds this, and divides it.
pub(crate) const MAX_COLUMNS: usize = 32;

/// `columns` rounded up to whole panels, on every instruction set.
pub(crate) const fn padded(columns: usize) -> usize {
    columns.next_multiple_of(MAX_COLUMNS)
}

/// A left operand: `[m, k]`, or `[k, m]` when it is used transposed; `stride` from row to row.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) stride: usize,
}

/// Packs a right operand `[k, n]` whose rows are `rows(0..k)`; the last panel is filled up with zeros.
#[inline(always)]
pub(crate) fn pack_rows<'a, S: Simd>(
    k: usize,
    n: usize,
    rows: impl Fn(usize) -> &'a [f32],
    panels: &mut [f32],
) {
    let width = S::TILE_COLUMNS;
    for inner in 0..k {
        for (panel, part) in rows(inner)[..n].chunks(width).enumerate() {
            let packed = &mut panels[(panel * k + inner) * width..][..width];
            packed[..part.len()].copy_from_slice(part);
            packed[part.len()..].fill(0.0);
        }
    }
}

/// Packs a right operand `[k, n]` whose columns are `columns(0..n)`; the last panel is filled up
/// with zeros.
#[inline(always)]
pub(crate) fn pack_columns<'a, S: Simd>(
    k: usize,
    n: usize,
    columns: impl Fn(usize) -> &'a [f32],
    panels: &mut [f32],
) {
    let width = S::TILE_COLUMNS;
    for (first, panel) in (0..n)
        .step_by(width)
        .zip(panels.chunks_exact_mut(k * width))
    {
        if n - first < width {
            panel.fill(0.0);
        }
        for column in first..n.min(first + width) {
            let packed = panel[column - first..].iter_mut().step_by(width);
            packed
                .zip(&columns(column)[..k])
                .for_each(|(packed, &value)| *packed = value);
        }
    }
}

/// `c = a b`, or `c += a b` when `ADD`: `[m, n]` with rows `stride` apart, where `stride` is at
/// least `padded(n)`; the columns up to there are written too. `a` is read transposed when
/// `TRANSPOSED`; its rows must then reach to `m` rounded up to a multiple of 8.
#[inline(always)]
pub(crate) fn multiply<S: Simd, const TRANSPOSED: bool, const ADD: bool>(
    (m, n, k): (usize, usize, usize),
    a: Left<'_>,
    panels: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    if k == 0 {
        if !ADD {
            c[..m * stride].fill(0.0);
        }
        return;
    }
    match S::TILE_COLUMNS {
        32 => tiles::<S, TRANSPOSED, ADD, 8, 32>((m, n, k), a, panels, c, stride),
        16 => tiles::<S, TRANSPOSED, ADD, 4, 16>((m, n, k), a, panels, c, stride),
        _ => tiles::<S, TRANSPOSED, ADD, 4, 8>((m, n, k), a, panels, c, stride),
    }
}

#[inline(always)]
fn tiles<S: Simd, const TRANSPOSED: bool, const ADD: bool, const M: usize, const N: usize>(
    (m, n, k): (usize, usize, usize),
    a: Left<'_>,
    panels: &[f32],
    c: &mut [f32],
    stride: usize,
) {
    let panels = panels
        .as_chunks::<N>()
        .0
        .chunks_exact(k)
        .take(n.div_ceil(N));
    for (column, panel) in panels.enumerate() {
        for row in (0..m).step_by(M) {
            let tile = if TRANSPOSED {
                tile_transposed::<S, M, N>(a, row, panel)
            } else {
                // Past the end the last row is computed again and dropped.
                let rows = std::array::from_fn(|i| &a.data[(row + i).min(m - 1) * a.stride..][..k]);
                tile::<S, M, N>(rows, panel)
            };
            for (i, tile) in tile.iter().enumerate().take(m - row) {
                let c = &mut c[(row + i) * stride + column * N..][..N];
                for (c, &tile) in c.iter_mut().zip(tile) {
                    *c = if ADD { *c + tile } else { tile };
                }
            }
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const M: usize, const N: usize>(
    rows: [&[f32]; M],
    panel: &[[f32; N]],
) -> [[f32; N]; M] {
    let rows = rows.map(|row| &row[..panel.len()]);
    let mut tile = [[0.0; N]; M];
    for (inner, right) in panel.iter().enumerate() {
        for i in 0..M {
            let left = rows[i][inner];
            for j in 0..N {
                tile[i][j] = S::mul_add(left, right[j], tile[i][j]);
            }
        }
    }
    tile
}

#[inline(always)]
fn tile_transposed<S: Simd, const M: usize, const N: usize>(
    a: Left<'_>,
    row: usize,
    panel: &[[f32; N]],
) -> [[f32; N]; M] {
    let mut tile = [[0.0; N]; M];
    for (inner, right) in panel.iter().enumerate() {
        let left = &a.data[inner * a.stride + row..][..M];
        for i in 0..M {
            for j in 0..N {
                tile[i][j] = S::mul_add(left[i], right[j], tile[i][j]);
            }
        }
    }
    tile
}
