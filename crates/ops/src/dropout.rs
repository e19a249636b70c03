//! Dropout whose decisions follow from where an element stands, not from when it is drawn.

use burn::tensor::{Tensor, TensorData};

use crate::Sequences;

/// Drops elements with probability `p` and scales the others by `1 / (1 - p)` (Srivastava et al.
/// 2014), while the sequences carry keys; otherwise returns `x` as it is.
///
/// An element's fate depends on its sequence's key, on `site` and on its row and column within the
/// sequence, so a run repeats on any number of threads, in any batch, and after a resume.
///
/// # Shapes
/// - `x`, result: `[tokens, width]`
pub fn dropout(x: Tensor<2>, p: f64, site: u64, sequences: &Sequences) -> Tensor<2> {
    let (Some(keys), true) = (sequences.keys(), p > 0.0) else {
        return x;
    };
    let [tokens, width] = x.dims();
    let mut kept = vec![0.0; tokens * width];
    for (key, pair) in keys.iter().zip(sequences.boundaries().windows(2)) {
        for row in pair[0]..pair[1] {
            mask(place(*key, site), row - pair[0], p, &mut kept[row * width..][..width]);
        }
    }
    let kept = TensorData::new(kept, [tokens, width]);
    x.clone() * Tensor::from_data(kept, &x.device().inner())
}

/// One key for one site of one sequence.
pub(crate) fn place(key: u64, site: u64) -> u64 {
    mix(key ^ site.rotate_left(32))
}

/// Fills `row` with 0 (dropped) or `1 / (1 - p)` (kept).
pub(crate) fn mask(place: u64, row_number: usize, p: f64, row: &mut [f32]) {
    let scale = (1.0 / (1.0 - p)) as f32;
    let threshold = (p * 2f64.powi(32)) as u64;
    for (column, kept) in row.iter_mut().enumerate() {
        let draw = mix(place ^ ((row_number as u64) << 32 | column as u64)) >> 32;
        *kept = if draw < threshold { 0.0 } else { scale };
    }
}

/// SplitMix64's finaliser (Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
