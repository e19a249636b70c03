//! Dropout whose decisions follow from where an element stands, not from when it is drawn.

use burn::tensor::{Tensor, TensorData};
use epiphyte_kernels::dropout::{Dropout, derive_key};

use crate::Sequences;
use crate::fused::{Fused, Kept, Wanted, apply, runs_here};
use crate::linear::SHAPES;

/// Drops elements with probability `p` and scales the others by `1 / (1 - p)` (Srivastava et al.
/// 2014), while the sequences carry keys; otherwise returns `x` as it is.
///
/// An element's fate depends on its sequence's key, on `site` and on its row and column within the
/// sequence, so a run repeats on any number of threads, in any batch, and after a resume.
///
/// # Shapes
/// - `x`, result: `[tokens, width]`
///
/// # Panics
/// If `p` is not in `[0, 1)`; configurations are checked where they are read.
pub fn dropout(x: Tensor<2>, p: f64, site: u64, sequences: &Sequences) -> Tensor<2> {
    if sequences.keys().is_none() || p == 0.0 {
        return x;
    }
    let op = Mask {
        shape: x.dims(),
        p: p as f32,
        site,
        sequences: sequences.clone(),
    };
    if runs_here(&x) {
        return apply(op, [x.into()]);
    }
    let mut factors = vec![1.0; op.shape[0] * op.shape[1]];
    op.apply(&mut factors);
    let factors = TensorData::new(factors, op.shape);
    x.clone() * Tensor::from_data(factors, &x.device().inner())
}

/// The key from which a site of a sequence draws.
pub(crate) fn place(key: u64, site: u64) -> u64 {
    derive_key(key, site)
}

/// Dropout of every sequence by its own key.
#[derive(Clone, Debug)]
struct Mask {
    shape: [usize; 2],
    p: f32,
    site: u64,
    sequences: Sequences,
}

impl Mask {
    /// Multiplies each element by its factor, forward and backward alike.
    fn apply(&self, x: &mut [f32]) {
        let width = self.shape[1];
        let keys = self.sequences.keys().unwrap_or_default();
        for (key, pair) in keys.iter().zip(self.sequences.boundaries().windows(2)) {
            let mask = Dropout::new(self.p, place(*key, self.site)).expect("p is in [0, 1)");
            mask.apply(&mut x[pair[0] * width..pair[1] * width], width, 0)
                .expect(SHAPES);
        }
    }
}

impl Fused<1> for Mask {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let mut y = x.to_vec();
        self.apply(&mut y);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn keeps(&self, _tracked: Wanted<1>) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        gradient: &[f32],
        [wanted]: Wanted<1>,
    ) -> [Option<Vec<f32>>; 1] {
        [wanted.then(|| {
            let mut dx = gradient.to_vec();
            self.apply(&mut dx);
            dx
        })]
    }
}
