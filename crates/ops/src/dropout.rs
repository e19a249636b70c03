//! Dropout whose mask depends on the position of an element, not on the order of draws.

use burn::tensor::{Tensor, TensorData};
use epiphyte_kernels::dropout as kernels;
use epiphyte_kernels::random::derive_key;

use crate::Sequences;
use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::SHAPES;

/// Drops elements with probability `p` and scales the others by `1 / (1 - p)` (Srivastava et al.
/// 2014), if the sequences have random keys; otherwise returns `x`.
///
/// Whether an element is dropped depends on its sequence's key, on `site`, on its row's position in
/// the sequence and on its column, so a run repeats on any number of threads, in any batch, after a
/// resume, and whether or not only some rows are left.
///
/// # Shapes
/// - `x`, result: `[tokens, hidden]`
///
/// # Panics
/// If `p` is 1 or more; configurations are checked where they are read.
pub fn dropout(x: Tensor<2>, p: f64, site: u64, sequences: &Sequences) -> Tensor<2> {
    match Dropout::new(p, site, sequences) {
        Some(dropout) => dropout.apply(x),
        None => x,
    }
}

/// [`dropout`] at one site of the model, for these sequences.
#[derive(Clone, Debug)]
pub struct Dropout {
    p: f64,
    site: u64,
    sequences: Sequences,
}

impl Dropout {
    /// Dropout with probability `p` at `site`; `None` if nothing is dropped, because `p` is 0 or
    /// the sequences have no random keys.
    ///
    /// `p` must be in `[0, 1)`; configurations are checked where they are read.
    pub fn new(p: f64, site: u64, sequences: &Sequences) -> Option<Self> {
        (sequences.keys().is_some() && p > 0.0).then(|| Self {
            p,
            site,
            sequences: sequences.clone(),
        })
    }

    /// Applies it to `x`, `[tokens, hidden]`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        let op = Mask {
            shape: x.dims(),
            dropout: self.clone(),
        };
        if uses_fused(&x) {
            return apply(op, [x.into()]);
        }
        let mut factors = vec![1.0; op.shape[0] * op.shape[1]];
        op.dropout.apply_to(&mut factors, op.shape[1]);
        let factors = TensorData::new(factors, op.shape);
        x.clone() * Tensor::from_data(factors, &x.device().inner())
    }

    /// Multiplies each element of rows of `width` by its factor; forward and backward are the same.
    /// Rows draw at their position, also where only some of a sequence's were selected.
    pub(crate) fn apply_to(&self, x: &mut [f32], width: usize) {
        let keys = self.sequences.keys().unwrap_or_default();
        let positions: Vec<usize> = self.sequences.positions().collect();
        for (key, pair) in keys.iter().zip(self.sequences.boundaries().windows(2)) {
            let mask = kernels::Dropout::new(self.p as f32, site_key(*key, self.site));
            let mask = mask.expect(SHAPES);
            let mut start = pair[0];
            for run in positions[pair[0]..pair[1]].chunk_by(|a, b| a + 1 == *b) {
                let end = start + run.len();
                let rows = &mut x[start * width..end * width];
                mask.apply(rows, width, run[0] as u64).expect(SHAPES);
                start = end;
            }
        }
    }
}

/// The random key of a site of a sequence.
pub(crate) fn site_key(key: u64, site: u64) -> u64 {
    derive_key(key, site)
}

/// [`Dropout`] as an operation.
#[derive(Clone, Debug)]
struct Mask {
    shape: [usize; 2],
    dropout: Dropout,
}

impl Fused<1> for Mask {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let mut y = x.to_vec();
        self.dropout.apply_to(&mut y, self.shape[1]);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
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
            self.dropout.apply_to(gradient.values_mut(), self.shape[1]);
            gradient
        })]
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;

    use super::dropout;
    use crate::{Sequences, rows};

    #[test]
    fn selected_rows_draw_what_they_draw_among_all() {
        let all = Sequences::new(vec![0, 4, 9]).with_keys(vec![5, 6]);
        let x = Tensor::<2>::ones([9, 40], &Default::default());
        let selected = [0, 2, 3, 5, 8];
        let expected = rows(dropout(x.clone(), 0.5, 1, &all), &selected);
        let found = dropout(rows(x, &selected), 0.5, 1, &all.select_rows(&selected));
        assert_eq!(found.to_data(), expected.to_data());
    }
}
