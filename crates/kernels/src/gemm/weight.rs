//! A frozen weight, packed once for the forward and the backward pass.

use std::ops::Range;

use bytemuck::Zeroable;

#[cfg(target_arch = "x86_64")]
use super::coded::{self, Factors, Work};
use super::macrokernel::{Left, Product, Right, block_of};
use super::microkernel::{Kernel, PANEL, ROW};
use super::packing::{
    Matrix, pair_rows, prefetch, repair, round, round_in_place, round_pairs, rows_ahead, transpose,
    widen,
};
use crate::quantized::{self, QuantizedWeight};
use crate::scratch::{self, Line};
use crate::simd::kernel;
use crate::{Isa, KernelError, threads};

/// The most rows for which bf16 becomes f32 in registers, again for each tile of rows. More repay
/// the copying of a panel.
const PAIRED_ROWS: usize = 32;

/// The number format in which a frozen weight is stored and multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 throughout.
    F32,
    /// The weight in bf16. The other factor is rounded to bf16 too (to nearest, ties to even) when
    /// it is packed; the sums are f32. Where the processor multiplies bf16 itself, it takes
    /// denormal factors as zero.
    Bf16,
}

/// A matrix of low rank, `left · right`, that is added to a product while that is still in a cache.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[tokens, rank]`
    pub left: &'a [f32],
    /// `[rank, columns]`, as many columns as the product has.
    pub right: &'a [f32],
}

impl LowRank<'_> {
    fn check(&self, tokens: usize, columns: usize) -> Result<(), KernelError> {
        // Nothing is added to no columns, and their number of rows is not known.
        if columns == 0 {
            return Ok(());
        }
        let rank = self.left.len().checked_div(tokens).unwrap_or(0);
        KernelError::check_length("low_rank.left", self.left, &[tokens, rank])?;
        if tokens > 0 {
            KernelError::check_length("low_rank.right", self.right, &[rank, columns])?;
        }
        Ok(())
    }

    /// Adds the `piece` of row `row` that starts at `first` of a row of `columns`.
    fn add(&self, row: usize, columns: usize, first: usize, piece: &mut [f32]) {
        let Some(rank) = self.right.len().checked_div(columns) else {
            return;
        };
        let left = &self.left[row * rank..][..rank];
        add_combination(left, self.right, columns, first, piece);
    }
}

kernel! {
    /// Adds the combination of the rows of `right`, `columns` apart, with the factors `left`, from
    /// column `first` on. It is summed separately first, as a product of its own would be, so that
    /// the result has the bytes of the two products added.
    fn add_combination<S>(
        left: &[f32], right: &[f32], columns: usize, first: usize, piece: &mut [f32],
    ) {
        let (chunks, rest) = piece.as_chunks_mut::<PANEL>();
        let whole = chunks.len() * PANEL;
        for (index, chunk) in chunks.iter_mut().enumerate() {
            let mut sums = [0.0; PANEL];
            for (r, &factor) in left.iter().enumerate() {
                let right = &right[r * columns + first + index * PANEL..][..PANEL];
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum = S::mul_add(factor, *right, *sum);
                }
            }
            for (value, sum) in chunk.iter_mut().zip(sums) {
                *value += sum;
            }
        }
        for (index, value) in rest.iter_mut().enumerate() {
            let mut sum = 0.0;
            for (r, &factor) in left.iter().enumerate() {
                sum = S::mul_add(factor, right[r * columns + first + whole + index], sum);
            }
            *value += sum;
        }
    }
}

/// What is added to `x Wᵀ` while it is still in a cache: `y = x Wᵀ + bias + low rank`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// Added to each row, `[out]`.
    pub bias: Option<&'a [f32]>,
    /// Added after it.
    pub low_rank: Option<LowRank<'a>>,
}

/// A frozen weight `[out, in]`, packed.
///
/// It is split into squares of 32 x 32 (the edges filled with zeros), the squares of 32 outputs
/// contiguous, and each square stored with its outputs contiguous: `x Wᵀ` reads its panels in
/// place. `g W` reads the squares in the other order and transposes each in registers while it
/// copies a block of them, which takes little time next to the product and needs no second copy of
/// the weight.
///
/// In bf16 a word is a pair of inputs of one output, the layout of the processor's dot product. All
/// instruction sets share the layout; those without bf16 products widen the block to f32 while they
/// copy it.
///
/// The codes of a [`QuantizedWeight`] are put in the same order: both products decode the squares
/// of a block when they come to it. Their results have the bytes of those over the decoded values,
/// packed.
pub struct PackedWeight {
    values: Stored,
    out: usize,
    input: usize,
    precision: Precision,
}

/// The values of a packed weight.
enum Stored {
    /// As they are multiplied.
    Squares(Vec<Line>),
    /// In 4 or 8 bits.
    Quantized(quantized::Squares),
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "PackedWeight([{}, {}], {:?})",
            self.out, self.input, self.precision
        )
    }
}

impl PackedWeight {
    /// Packs a row-major f32 weight `[out, in]`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when the slice is not `out * input` long.
    pub fn pack(
        weight: &[f32],
        out: usize,
        input: usize,
        precision: Precision,
    ) -> Result<Self, KernelError> {
        KernelError::check_length("weight", weight, &[out, input])?;
        let rows = |rows: Range<usize>| &weight[rows.start * input..rows.end * input];
        Ok(Self::pack_rows(rows, out, input, precision))
    }

    /// Packs a weight `[out, in]` of which `rows` returns the values of some rows at a time,
    /// row-major, so that they are never in memory all at once.
    ///
    /// # Panics
    /// If `rows` returns another number of values.
    pub fn pack_rows<R: AsRef<[f32]>>(
        rows: impl Fn(Range<usize>) -> R + Sync,
        out: usize,
        input: usize,
        precision: Precision,
    ) -> Self {
        let panel_words = input.div_ceil(PANEL) * square_words(precision);
        let panels = out.div_ceil(PANEL);
        let mut lines = vec![Line::zeroed(); panels * panel_words / Line::WORDS];
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut lines);
        threads::for_each(
            words.chunks_mut(panel_words.max(1)).enumerate(),
            |(panel, to)| {
                let panel = panel * PANEL..out.min((panel + 1) * PANEL);
                let (height, row_words) = (panel.len(), precision.words(input));
                let values = rows(panel);
                let values = values.as_ref();
                assert_eq!(values.len(), height * input, "values of {height} rows");
                scratch::with(height * row_words, |from| {
                    let each = values
                        .chunks(input.max(1))
                        .zip(from.chunks_mut(row_words.max(1)));
                    for (floats, words) in each {
                        match precision {
                            Precision::F32 => words.copy_from_slice(bytemuck::cast_slice(floats)),
                            Precision::Bf16 => round_pairs(floats, words),
                        }
                    }
                    let from = Matrix {
                        words: &*from,
                        stride: row_words,
                    };
                    transpose(
                        height,
                        row_words,
                        from,
                        Matrix {
                            words: to,
                            stride: PANEL,
                        },
                    );
                });
            },
        );
        Self {
            values: Stored::Squares(lines),
            out,
            input,
            precision,
        }
    }

    /// A weight that stays in 4 or 8 bits; products decode it as they go. In bf16, what is decoded
    /// is rounded.
    pub fn quantized(weight: &QuantizedWeight, precision: Precision) -> Self {
        let [out, input] = weight.shape();
        Self {
            values: Stored::Quantized(quantized::Squares::new(weight)),
            out,
            input,
            precision,
        }
    }

    /// The weight as it was packed, row-major `[out, in]`; in bf16, the rounded values.
    pub fn unpack(&self) -> Vec<f32> {
        let mut weight = vec![0.0; self.out * self.input];
        let lines = match &self.values {
            Stored::Squares(lines) => lines,
            Stored::Quantized(squares) => {
                squares.unpack(&mut weight);
                self.round(&mut weight);
                return weight;
            }
        };
        let row_words = self.precision.words(self.input);
        threads::for_each(
            weight.chunks_mut((PANEL * self.input).max(1)).enumerate(),
            |(panel, rows)| {
                let from = Matrix {
                    words: self.panel_words(lines, panel),
                    stride: PANEL,
                };
                let count = rows.len() / self.input;
                scratch::with(count * row_words, |words| {
                    transpose(
                        row_words,
                        count,
                        from,
                        Matrix {
                            words,
                            stride: row_words,
                        },
                    );
                    for (row, words) in rows.chunks_mut(self.input).zip(words.chunks(row_words)) {
                        match self.precision {
                            Precision::F32 => row.copy_from_slice(bytemuck::cast_slice(words)),
                            Precision::Bf16 => {
                                for (index, value) in row.iter_mut().enumerate() {
                                    let pair = words[index / 2];
                                    *value = f32::from_bits(if index % 2 == 0 {
                                        pair << 16
                                    } else {
                                        pair & 0xffff_0000
                                    });
                                }
                            }
                        }
                    }
                });
            },
        );
        weight
    }

    /// Reads row `index` of the weight as it was packed into `to`, `[in]`: an embedding look-up in
    /// a table that is also a head.
    ///
    /// # Errors
    /// [`KernelError::Index`] when there is no such row, [`KernelError::Length`] when `to` does
    /// not fit.
    pub fn row(&self, index: usize, to: &mut [f32]) -> Result<(), KernelError> {
        KernelError::check_length("to", to, &[self.input])?;
        if index >= self.out {
            return Err(KernelError::Index {
                operand: "index",
                position: 0,
                index: index as i64,
                limit: self.out,
            });
        }
        let lines = match &self.values {
            Stored::Squares(lines) => lines,
            Stored::Quantized(squares) => {
                squares.row(index, to);
                self.round(to);
                return Ok(());
            }
        };
        let words = &self.panel_words(lines, index / PANEL)[index % PANEL..];
        match self.precision {
            Precision::F32 => {
                for (value, word) in to.iter_mut().zip(words.iter().step_by(PANEL)) {
                    *value = f32::from_bits(*word);
                }
            }
            Precision::Bf16 => {
                for (pair, word) in to.chunks_mut(2).zip(words.iter().step_by(PANEL)) {
                    pair[0] = f32::from_bits(word << 16);
                    if let Some(second) = pair.get_mut(1) {
                        *second = f32::from_bits(word & 0xffff_0000);
                    }
                }
            }
        }
        Ok(())
    }

    /// Rows of the weight: elements of a row of y.
    pub fn out(&self) -> usize {
        self.out
    }

    /// Columns of the weight: elements of a row of x.
    pub fn input(&self) -> usize {
        self.input
    }

    /// In which numbers it is kept.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Bytes of memory that the weight takes.
    pub fn bytes(&self) -> usize {
        match &self.values {
            Stored::Squares(lines) => size_of_val(&lines[..]),
            Stored::Quantized(quantized) => quantized.bytes(),
        }
    }

    /// `y = x Wᵀ + bias + low rank`.
    ///
    /// # Shapes
    /// - x: `[tokens, in]`
    /// - y: `[tokens, out]`
    ///
    /// # Errors
    /// [`KernelError::Rows`] when x (or y, for an empty weight) is not whole rows,
    /// [`KernelError::Length`] when y, the bias or the low rank does not fit.
    pub fn forward(
        &self,
        x: &[f32],
        epilogue: Epilogue<'_>,
        y: &mut [f32],
    ) -> Result<(), KernelError> {
        let tokens = self.tokens(("x", x, self.input), ("y", y, self.out))?;
        let Epilogue { bias, low_rank } = epilogue;
        if let Some(bias) = bias {
            KernelError::check_length("bias", bias, &[self.out])?;
        }
        if let Some(low_rank) = &low_rank {
            low_rank.check(tokens, self.out)?;
        }
        self.product(tokens, x, Direction::Forward, false)
            .run(y, |row, columns, y| {
                if let Some(bias) = bias {
                    y.iter_mut()
                        .zip(&bias[columns.clone()])
                        .for_each(|(y, bias)| *y += bias);
                }
                if let Some(low_rank) = &low_rank {
                    low_rank.add(row, self.out, columns.start, y);
                }
            });
        Ok(())
    }

    /// `dx = g W`, or `dx += g W` to accumulate; plus a matrix of low rank.
    ///
    /// # Shapes
    /// - g: `[tokens, out]`
    /// - dx: `[tokens, in]`
    ///
    /// # Errors
    /// [`KernelError::Rows`] when g (or dx, for an empty weight) is not whole rows,
    /// [`KernelError::Length`] when dx or the low rank does not fit.
    pub fn backward_input(
        &self,
        g: &[f32],
        low_rank: Option<LowRank<'_>>,
        dx: &mut [f32],
        accumulate: bool,
    ) -> Result<(), KernelError> {
        let tokens = self.tokens(("g", g, self.out), ("dx", dx, self.input))?;
        if let Some(low_rank) = &low_rank {
            low_rank.check(tokens, self.input)?;
        }
        self.product(tokens, g, Direction::Backward, accumulate)
            .run(dx, |row, columns, dx| {
                if let Some(low_rank) = &low_rank {
                    low_rank.add(row, self.input, columns.start, dx);
                }
            });
        Ok(())
    }

    /// All squares of 32 outputs.
    fn panel_words<'a>(&self, lines: &'a [Line], panel: usize) -> &'a [u32] {
        let length = self.input.div_ceil(PANEL) * square_words(self.precision);
        &bytemuck::cast_slice(lines)[panel * length..][..length]
    }

    /// The square at `place` of 32 outputs.
    fn square_words<'a>(&self, lines: &'a [Line], panel: usize, place: usize) -> &'a [u32] {
        let length = square_words(self.precision);
        &self.panel_words(lines, panel)[place * length..][..length]
    }

    /// Rounds decoded values to the numbers that are multiplied.
    fn round(&self, values: &mut [f32]) {
        if self.precision == Precision::Bf16 {
            round_in_place(bytemuck::cast_slice_mut(values));
        }
    }

    /// Checks that two matrices have the same number of rows, and counts them.
    fn tokens(
        &self,
        (name, from, width): (&'static str, &[f32], usize),
        (to_name, to, to_width): (&'static str, &[f32], usize),
    ) -> Result<usize, KernelError> {
        let tokens = match width {
            0 => KernelError::count_rows(to_name, to, to_width)?,
            _ => KernelError::count_rows(name, from, width)?,
        };
        KernelError::check_length(name, from, &[tokens, width])?;
        KernelError::check_length(to_name, to, &[tokens, to_width])?;
        Ok(tokens)
    }

    fn product<'a>(
        &'a self,
        tokens: usize,
        left: &'a [f32],
        direction: Direction,
        accumulate: bool,
    ) -> Product<Rows<'a>, Panels<'a>> {
        let isa = Isa::current();
        let (width, columns) = match direction {
            Direction::Forward => (self.input, self.out),
            Direction::Backward => (self.out, self.input),
        };
        let pairs = width.div_ceil(2);
        // Squares are in the order of the few rows' kernel in one direction only. What is decoded
        // is f32 already.
        let in_order = matches!(
            (&self.values, direction),
            (Stored::Squares(_), Direction::Forward)
        );
        let few = tokens <= PAIRED_ROWS && in_order;
        let few_pairs = Kernel::few_pairs(isa).filter(|_| few);
        let (kernel, words, block) = match (self.precision, Kernel::bf16(isa), few_pairs) {
            (Precision::F32, _, _) => (Kernel::f32(isa), Words::F32, block_of(width)),
            (Precision::Bf16, Some(kernel), _) => (kernel, Words::Pairs, block_of(pairs)),
            // The blocks of the widened numbers, so that other rows change no bit.
            (Precision::Bf16, None, Some(kernel)) => (kernel, Words::Pairs, block_of(width) / 2),
            (Precision::Bf16, None, None) => (Kernel::f32(isa), Words::Widened, block_of(width)),
        };
        Product {
            kernel,
            rows: tokens,
            columns,
            words: match words {
                Words::Pairs => pairs,
                Words::F32 | Words::Widened => width,
            },
            block,
            left: Rows {
                x: left,
                width,
                words,
            },
            right: Panels {
                weight: self,
                direction,
                words,
            },
            scale: 1.0,
            accumulate,
        }
    }
}

/// Words of one square.
fn square_words(precision: Precision) -> usize {
    precision.words(PANEL) * PANEL
}

impl Precision {
    /// Words that a row of `elements` takes.
    fn words(self, elements: usize) -> usize {
        match self {
            Self::F32 => elements,
            Self::Bf16 => elements.div_ceil(2),
        }
    }
}

/// Which of the two products.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

/// The kind of words that the microkernel multiplies.
#[derive(Clone, Copy, PartialEq)]
enum Words {
    /// An f32 each.
    F32,
    /// An f32 each, which is a bf16 widened.
    Widened,
    /// Two bf16 each.
    Pairs,
}

/// The left operand: x or g, `[tokens, width]`.
struct Rows<'a> {
    x: &'a [f32],
    width: usize,
    words: Words,
}

impl Left for Rows<'_> {
    fn pack(&self, rows: Range<usize>, words: Range<usize>, to: &mut [u32]) {
        let columns = match self.words {
            Words::Pairs => 2 * words.start..self.width.min(2 * words.end),
            Words::F32 | Words::Widened => words.clone(),
        };
        let row_of = |row: usize| &self.x[row * self.width..][columns.clone()];
        let ahead = rows_ahead(columns.len());
        for (row, to) in rows.clone().zip(to.chunks_mut(ROW)) {
            if row + ahead < rows.end {
                prefetch(row_of(row + ahead));
            }
            let from = row_of(row);
            let to = &mut to[..words.len()];
            match self.words {
                Words::F32 => to.copy_from_slice(bytemuck::cast_slice(from)),
                Words::Widened => round(from, to),
                Words::Pairs => round_pairs(from, to),
            }
        }
    }
}

/// The right operand: the weight, read in one of its two directions.
struct Panels<'a> {
    weight: &'a PackedWeight,
    direction: Direction,
    words: Words,
}

impl Right for Panels<'_> {
    fn panel<'a>(
        &'a self,
        panel: usize,
        words: Range<usize>,
        scratch: &'a mut [u32],
    ) -> Matrix<&'a [u32]> {
        let in_place = matches!(
            (self.direction, self.words),
            (Direction::Forward, Words::F32 | Words::Pairs)
        );
        if let (Stored::Squares(lines), true) = (&self.weight.values, in_place) {
            let panel = self.weight.panel_words(lines, panel);
            let words = &panel[words.start * PANEL..words.end * PANEL];
            return Matrix {
                words,
                stride: PANEL,
            };
        }
        // Blocks of the reduction begin at whole squares.
        let depth = if self.words == Words::Pairs {
            PANEL / 2
        } else {
            PANEL
        };
        let squares = words.start / depth..words.end.div_ceil(depth);
        let place_of = |square: usize| match self.direction {
            Direction::Forward => (panel, square),
            Direction::Backward => (square, panel),
        };
        for (square, to) in squares.clone().zip(scratch.chunks_exact_mut(depth * PANEL)) {
            let (panel, place) = place_of(square);
            match &self.weight.values {
                Stored::Squares(lines) => {
                    if square + 1 < squares.end {
                        let (panel, place) = place_of(square + 1);
                        prefetch(self.weight.square_words(lines, panel, place));
                    }
                    self.turn(self.weight.square_words(lines, panel, place), to);
                }
                Stored::Quantized(squares) => {
                    let mut values = [0.0; PANEL * PANEL];
                    squares.decode(panel, place, &mut values);
                    self.order(values, to);
                }
            }
        }
        Matrix {
            words: scratch,
            stride: PANEL,
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply(
        &self,
        panel: usize,
        words: Range<usize>,
        left: &[u32],
        rows: &mut [[f32; PANEL]],
    ) -> bool {
        let (Stored::Quantized(squares), Direction::Forward) =
            (&self.weight.values, self.direction)
        else {
            return false;
        };
        let factors = match (Isa::current(), self.words) {
            (Isa::Avx512 | Isa::Avx512Bf16, Words::F32) => Factors::F32,
            (Isa::Avx512 | Isa::Avx512Bf16, Words::Widened) => Factors::Rounded,
            (Isa::Avx512Bf16, Words::Pairs) => Factors::Pairs,
            _ => return false,
        };
        let work = Work {
            squares,
            panel,
            inputs: self.inputs(words),
            left,
        };
        coded::multiply(&work, factors, rows)
    }
}

impl Panels<'_> {
    /// The inputs that are `words` of the forward product.
    #[cfg(target_arch = "x86_64")]
    fn inputs(&self, words: Range<usize>) -> Range<usize> {
        let input = self.weight.input;
        match self.words {
            Words::Pairs => 2 * words.start..input.min(2 * words.end),
            Words::F32 | Words::Widened => words,
        }
    }

    /// Decoded values `[inputs, outputs]` become a square of a panel.
    fn order(&self, mut values: [f32; PANEL * PANEL], to: &mut [u32]) {
        if let Direction::Backward = self.direction {
            let inputs = values;
            let outputs = bytemuck::cast_slice_mut(&mut values);
            transpose_square(PANEL, bytemuck::cast_slice(&inputs), outputs);
        }
        match self.words {
            Words::F32 => to.copy_from_slice(bytemuck::cast_slice(&values)),
            Words::Widened => round(&values, to),
            Words::Pairs => pair_rows(&values, to),
        }
    }

    /// A square as it is stored becomes a square of a panel.
    fn turn(&self, from: &[u32], to: &mut [u32]) {
        match (self.words, self.direction) {
            (Words::F32, _) => transpose_square(PANEL, from, to),
            (Words::Pairs, _) => {
                let mut rows = [0; PANEL * PANEL / 2];
                transpose_square(PANEL / 2, from, &mut rows);
                repair(&rows, to);
            }
            (Words::Widened, Direction::Forward) => widen(from, to),
            (Words::Widened, Direction::Backward) => {
                let mut columns = [0; PANEL * PANEL];
                widen(from, &mut columns);
                transpose_square(PANEL, &columns, to);
            }
        }
    }
}

/// Transposes the words of a square: `rows` rows of [`PANEL`] words.
fn transpose_square(rows: usize, from: &[u32], to: &mut [u32]) {
    transpose(
        rows,
        PANEL,
        Matrix {
            words: from,
            stride: PANEL,
        },
        Matrix {
            words: to,
            stride: rows,
        },
    );
}
