//! Between rows and sequences: the mean of each sequence's rows, and a row for each of its tokens.

use burn::tensor::{IndexingUpdateOp, Tensor, TensorData};
use epiphyte_kernels::columns;

use crate::Sequences;
use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::{SHAPES, index};

/// The mean of each sequence's rows; zeros for a sequence without rows.
///
/// # Shapes
/// - `x`: `[tokens, hidden]`
/// - result: `[sequences, hidden]`
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use epiphyte_ops::{Sequences, expand_rows, mean_rows};
///
/// let rows = Sequences::new(vec![0, 2, 3]);
/// let x = Tensor::<2>::from_floats([[1.0], [3.0], [5.0]], &Device::default());
/// let means = mean_rows(x, &rows);
/// assert_eq!(means.to_data().to_vec::<f32>().unwrap(), [2.0, 5.0]);
/// let expanded = expand_rows(means, &rows);
/// assert_eq!(expanded.to_data().to_vec::<f32>().unwrap(), [2.0, 2.0, 5.0]);
/// ```
pub fn mean_rows(x: Tensor<2>, rows: &Sequences) -> Tensor<2> {
    if uses_fused(&x) {
        let op = MeanRows(PerSequence::new(&x, rows));
        return apply(op, [x.into()]);
    }
    let (sequences, [_, hidden]) = (rows.count(), x.dims());
    let factors: Vec<f32> = rows.lengths().map(factor_of_mean).collect();
    let factors = TensorData::new(factors, [sequences, 1]);
    let factors = Tensor::<2>::from_data(factors, &x.device().inner());
    let sums = Tensor::zeros([sequences, hidden], &x.device());
    let of_row = index(sequence_of_rows(rows), rows.tokens(), &x.device());
    sums.select_assign(0, of_row, x, IndexingUpdateOp::Add) * factors
}

/// Each sequence's row for each of its tokens.
///
/// # Shapes
/// - `per_sequence`: `[sequences, hidden]`
/// - result: `[tokens, hidden]`
pub fn expand_rows(per_sequence: Tensor<2>, rows: &Sequences) -> Tensor<2> {
    if uses_fused(&per_sequence) {
        let op = ExpandRows(PerSequence::new(&per_sequence, rows));
        return apply(op, [per_sequence.into()]);
    }
    let device = per_sequence.device();
    per_sequence.select(0, index(sequence_of_rows(rows), rows.tokens(), &device))
}

/// The sequence of each row.
fn sequence_of_rows(rows: &Sequences) -> impl Iterator<Item = usize> + '_ {
    let lengths = rows.lengths().enumerate();
    lengths.flat_map(|(sequence, length)| std::iter::repeat_n(sequence, length))
}

/// The factor from the sum of `length` rows to their mean.
fn factor_of_mean(length: usize) -> f32 {
    1.0 / length.max(1) as f32
}

/// The two maps between rows and sequences, each the other's transpose.
#[derive(Clone, Debug)]
struct PerSequence {
    rows: Sequences,
    hidden: usize,
}

impl PerSequence {
    fn new(x: &Tensor<2>, rows: &Sequences) -> Self {
        Self {
            rows: rows.clone(),
            hidden: x.dims()[1],
        }
    }

    /// `[tokens, hidden]` to the sum of each sequence's rows, `[sequences, hidden]`.
    fn sums(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(x.len(), self.rows.tokens() * self.hidden, "one row a token");
        let mut sums = vec![0.0; self.rows.count() * self.hidden];
        let rows = self.rows.boundaries().windows(2);
        for (pair, sum) in rows.zip(sums.chunks_mut(self.hidden.max(1))) {
            let x = &x[pair[0] * self.hidden..pair[1] * self.hidden];
            columns::sums(x, None, sum).expect(SHAPES);
        }
        sums
    }

    /// `[sequences, hidden]` to each sequence's row for each of its tokens, `[tokens, hidden]`.
    fn expand(&self, x: &[f32]) -> Vec<f32> {
        assert_eq!(
            x.len(),
            self.rows.count() * self.hidden,
            "one row a sequence"
        );
        let mut rows = Vec::with_capacity(self.rows.tokens() * self.hidden);
        for (length, row) in self.rows.lengths().zip(x.chunks(self.hidden.max(1))) {
            (0..length).for_each(|_| rows.extend_from_slice(row));
        }
        rows
    }

    /// Divides each sequence's row by its length.
    fn divide(&self, x: &mut [f32]) {
        for (length, row) in self.rows.lengths().zip(x.chunks_mut(self.hidden.max(1))) {
            let factor = factor_of_mean(length);
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}

/// [`mean_rows`].
#[derive(Clone, Debug)]
struct MeanRows(PerSequence);

impl Fused<1> for MeanRows {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let mut means = self.0.sums(x);
        self.0.divide(&mut means);
        (means, ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.0.rows.count(), self.0.hidden]
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &()) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        mut gradient: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| {
            self.0.divide(gradient.values_mut());
            self.0.expand(&gradient).into()
        })]
    }
}

/// [`expand_rows`].
#[derive(Clone, Debug)]
struct ExpandRows(PerSequence);

impl Fused<1> for ExpandRows {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        (self.0.expand(x), ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.0.rows.tokens(), self.0.hidden]
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &()) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        gradient: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| self.0.sums(&gradient).into())]
    }
}
