//! Losses, averaged over what has a target.

use burn::tensor::{Int, Tensor, TensorData, activation};

use crate::linear::{Weight, linear, rows};

/// The target that says "no loss here", as in PyTorch and Hugging Face.
pub const IGNORED: i64 = -100;

/// Mean cross-entropy of `logits` against class numbers; rows whose target is [`IGNORED`] do not
/// count. With `smoothing` ε the target distribution is `(1 - ε)` on the class and `ε / classes` on
/// every class, as PyTorch defines it.
///
/// Returns the mean as one value, or `None` when no row has a target.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
pub fn cross_entropy(logits: Tensor<2>, targets: &[i64], smoothing: f64) -> Option<Tensor<1>> {
    let counted: Vec<usize> = (0..targets.len()).filter(|&row| targets[row] != IGNORED).collect();
    if counted.is_empty() {
        return None;
    }
    let classes = logits.dims()[1];
    let logits = if counted.len() == targets.len() { logits } else { rows(logits, &counted) };
    let log_probabilities = activation::log_softmax(logits, 1);
    let classes_of: Vec<i32> = counted.iter().map(|&row| targets[row] as i32).collect();
    let picks = TensorData::new(classes_of, [counted.len(), 1]);
    let picks = Tensor::<2, Int>::from_data(picks, &log_probabilities.device());
    let nll = log_probabilities.clone().gather(1, picks).sum() * (smoothing - 1.0);
    let loss = if smoothing > 0.0 {
        nll - log_probabilities.sum() * (smoothing / classes as f64)
    } else {
        nll
    };
    Some(loss / counted.len() as f64)
}

/// Mean next-token cross-entropy of a language model's head over hidden states, computed without
/// ever holding the logits of all tokens where the device allows.
///
/// `targets[row]` is the token that row `row` should predict (already shifted).
///
/// # Shapes
/// - `hidden`: `[tokens, width]`
/// - `head`: `[vocabulary, width]`
pub fn language_model_loss(
    hidden: Tensor<2>,
    head: &Weight,
    targets: &[i64],
    smoothing: f64,
) -> Option<Tensor<1>> {
    let counted: Vec<usize> = (0..targets.len()).filter(|&row| targets[row] != IGNORED).collect();
    let chosen: Vec<i64> = counted.iter().map(|&row| targets[row]).collect();
    if counted.is_empty() {
        return None;
    }
    cross_entropy(linear(rows(hidden, &counted), head, None), &chosen, smoothing)
}

/// Mean squared error, over rows of one value each.
///
/// # Shapes
/// - `predictions`: `[rows, 1]`
pub fn mean_squared_error(predictions: Tensor<2>, targets: &[f32]) -> Tensor<1> {
    let targets = TensorData::new(targets.to_vec(), [targets.len(), 1]);
    let targets = Tensor::<2>::from_data(targets, &predictions.device().inner());
    (predictions - targets).square().mean()
}
