//! The microkernel: a register tile of a few rows times a few vectors of the result, held in
//! registers during the reduction.
//!
//! Each element of the result is one chain of multiply-adds over a block of the reduction, for any
//! size of the tile. So an element does not depend on the other rows and columns, and the result
//! may be split into tiles anywhere.

#![expect(
    unsafe_code,
    reason = "calls code compiled for more than the baseline, over raw pointers"
)]

use super::lanes::{self, Lanes};
use crate::Isa;

/// Columns of a packed panel of the right operand: the widest tile of any instruction set.
pub(super) const PANEL: usize = 32;

/// The most words of the reduction that one block holds.
pub(super) const BLOCK: usize = 512;

/// Words from one row of a packed left operand to the next. Sixteen more than a block, so that the
/// rows of a tile do not all map to the same set of the L1 cache.
pub(super) const ROW: usize = BLOCK + 16;

/// A product of at most so few rows waits for the right operand's memory; the processor's own
/// prefetcher stops at the end of each page.
const FEW_ROWS: usize = 8;

/// How many words ahead such a product prefetches.
const AHEAD: usize = 2048;

/// Rows of the tallest tile.
const ROWS: usize = 14;

/// One tile's work: `result (+)= scale * left * right`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Length of the reduction, in words.
    pub(super) words: usize,
    /// `[rows, words]`, rows [`ROW`] words apart.
    pub(super) left: *const u32,
    /// `[words, columns]`.
    pub(super) right: *const u32,
    /// Words from one row of `right` to the next.
    pub(super) right_stride: usize,
    /// `[rows, columns]`.
    pub(super) result: *mut f32,
    /// Floats from one row of `result` to the next.
    pub(super) result_stride: usize,
    /// Factor on the product.
    pub(super) scale: f32,
    /// Whether the product is added to the result or replaces it.
    pub(super) accumulate: bool,
}

/// Functions that compute tiles of one width, that of `i + 1` rows at index i.
type Heights = &'static [unsafe fn(Tile)];

/// The tiles of one instruction set and kind of word.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Columns and heights of each width, the widest first.
    widths: &'static [(usize, Heights)],
}

impl Kernel {
    /// The kernel for words that are f32.
    pub(super) fn f32(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 => Self {
                widths: const { &[(32, &AVX512_2), (16, &AVX512_1), (8, &AVX512_HALF)] },
            },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self {
                widths: const { &[(16, &AVX2_2), (8, &AVX2_1)] },
            },
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Self {
                widths: const { &[(16, &NEON_4), (8, &NEON_2)] },
            },
            _ => Self {
                widths: const { &[(8, &PORTABLE)] },
            },
        }
    }

    /// The kernel for words that are two bf16, where the processor has one.
    pub(super) fn bf16(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Some(Self {
                widths: const { &[(32, &AVX512_BF16_2), (16, &AVX512_BF16_1)] },
            }),
            _ => None,
        }
    }

    /// The kernel for words that are two bf16 where the processor has none of its own: for few
    /// rows, which do not repay the copying of a panel as f32. Its sums have the bytes of
    /// [`Kernel::f32`] over the same numbers in blocks of the same length.
    pub(super) fn few_pairs(isa: Isa) -> Option<Self> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(Self {
                widths: const { &[(32, &AVX512_PAIRS), (16, &AVX512_PAIRS_1)] },
            }),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(Self {
                widths: const { &[(16, &AVX2_PAIRS), (8, &AVX2_PAIRS_1)] },
            }),
            _ => None,
        }
    }

    /// Rows of the tallest tile.
    pub(super) fn rows(self) -> usize {
        self.widths[0].1.len()
    }

    /// Computes `rows <= self.rows()` rows and `columns <= PANEL` columns.
    ///
    /// # Safety
    /// `tile`'s pointers cover `rows` rows, and `right` all [`PANEL`] columns; nothing else uses
    /// the result; the processor has the instruction set that the kernel was chosen for.
    pub(super) unsafe fn run(self, rows: usize, columns: usize, tile: Tile) {
        let mut first = 0;
        while first < columns {
            let left = columns - first;
            let wide_enough = self.widths.iter().rfind(|(width, _)| *width >= left);
            let &(width, heights) = wide_enough.unwrap_or(&self.widths[0]);
            // SAFETY: `first < columns <= PANEL`.
            let mut part = unsafe {
                Tile {
                    right: tile.right.add(first),
                    result: tile.result.add(first),
                    ..tile
                }
            };
            if width <= left {
                // SAFETY: the caller's promise; `width` columns are left.
                unsafe { heights[rows - 1](part) };
            } else {
                // The tile is wider than the result: compute it in a buffer, copy the part needed.
                let mut aside = [0.0; ROWS * PANEL];
                let rows_of = |tile: Tile| {
                    // SAFETY: `first..columns` of `rows` rows belong to the result.
                    (0..rows).map(move |row| unsafe { tile.result.add(row * tile.result_stride) })
                };
                let result = rows_of(part);
                (part.result, part.result_stride) = (aside.as_mut_ptr(), width);
                for (from, to) in result.clone().zip(rows_of(part)) {
                    // SAFETY: `left` columns are left, and `aside` holds the largest tile.
                    unsafe { from.copy_to_nonoverlapping(to, left) };
                }
                // SAFETY: the caller's promise; `width` columns of `right` are left, PANEL being a
                // multiple of every width.
                unsafe { heights[rows - 1](part) };
                for (to, from) in result.zip(rows_of(part)) {
                    // SAFETY: as above.
                    unsafe { from.copy_to_nonoverlapping(to, left) };
                }
            }
            first += width;
        }
    }
}

/// The tile of `M` rows and `V` vectors. Inlined into a function that enables the instruction set.
///
/// # Safety
/// As for [`Kernel::run`], with `V * L::COUNT` columns.
#[inline(always)]
unsafe fn tile<L: Lanes, const M: usize, const V: usize>(tile: Tile) {
    // SAFETY: every address is that of a row below M and a column below V * L::COUNT.
    unsafe {
        for row in 0..M {
            L::prefetch(tile.result.add(row * tile.result_stride));
        }
        let mut sums = [[L::zero(); V]; M];
        let (mut left, mut right) = (tile.left, tile.right);
        for _ in 0..tile.words {
            if M <= FEW_ROWS {
                for vector in 0..V {
                    L::prefetch(right.wrapping_add(AHEAD + vector * L::COUNT).cast());
                }
            }
            let mut columns = [L::spread(right); V];
            for (vector, columns) in columns.iter_mut().enumerate() {
                *columns = L::words(right.add(vector * L::COUNT));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let factor = L::spread(left.add(row * ROW));
                for (sum, &columns) in sums.iter_mut().zip(&columns) {
                    *sum = sum.add_product(factor, columns);
                }
            }
            left = left.add(1);
            right = right.add(tile.right_stride);
        }
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sum) in sums.iter().enumerate() {
                let to = tile
                    .result
                    .add(row * tile.result_stride + vector * L::COUNT);
                sum.store(tile.scale, tile.accumulate, to);
            }
        }
    }
}

/// Compiles [`tile`] for an instruction set in every height, as a table `[rows - 1]`.
macro_rules! heights {
    ($arch:literal, $features:literal: $($table:ident = $lanes:ident x $vectors:literal, rows $($rows:literal)*;)*) => {$(
        #[cfg(target_arch = $arch)]
        static $table: [unsafe fn(Tile); [$($rows),*].len()] = {
            #[target_feature(enable = $features)]
            unsafe fn compiled<const M: usize>(work: Tile) {
                // SAFETY: the caller of the table keeps the promises of `Kernel::run`.
                unsafe { tile::<lanes::$lanes, M, $vectors>(work) }
            }
            [$(compiled::<$rows>),*]
        };
    )*};
}

heights! { "x86_64", "avx512f,avx512bf16":
    AVX512_BF16_2 = Avx512Bf16 x 2, rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    AVX512_BF16_1 = Avx512Bf16 x 1, rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
}
heights! { "x86_64", "avx512f":
    AVX512_2 = Avx512 x 2, rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
    AVX512_1 = Avx512 x 1, rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
}
heights! { "x86_64", "avx512f":
    AVX512_PAIRS = Avx512Pairs x 2, rows 1 2 3 4 5 6 7 8;
    AVX512_PAIRS_1 = Avx512Pairs x 1, rows 1 2 3 4 5 6 7 8;
}
heights! { "x86_64", "avx2,fma":
    AVX2_PAIRS = Avx2Pairs x 2, rows 1 2 3 4;
    AVX2_PAIRS_1 = Avx2Pairs x 1, rows 1 2 3 4;
}
heights! { "x86_64", "avx512f,avx512vl,fma":
    AVX512_HALF = Avx2 x 1, rows 1 2 3 4 5 6 7 8 9 10 11 12 13 14;
}
heights! { "x86_64", "avx2,fma":
    AVX2_2 = Avx2 x 2, rows 1 2 3 4 5 6;
    AVX2_1 = Avx2 x 1, rows 1 2 3 4 5 6;
}
heights! { "aarch64", "neon":
    NEON_4 = Neon x 4, rows 1 2 3 4 5 6;
    NEON_2 = Neon x 2, rows 1 2 3 4 5 6;
}

/// Needs no feature beyond the target's baseline.
static PORTABLE: [unsafe fn(Tile); 4] = [
    tile::<lanes::Portable, 1, 1>,
    tile::<lanes::Portable, 2, 1>,
    tile::<lanes::Portable, 3, 1>,
    tile::<lanes::Portable, 4, 1>,
];
