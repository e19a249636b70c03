//! Losses, averaged over the rows that have a target.

use burn::tensor::{Int, Tensor, TensorData, activation};
use epiphyte_kernels::cross_entropy::{CrossEntropy, DenseHead, HeadGradients};
use epiphyte_kernels::vector;

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::{FrozenMatrix, SHAPES, Weight, linear, rows};

/// The target of a row without a loss, as in PyTorch and Hugging Face.
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
    let counted: Vec<usize> = (0..targets.len())
        .filter(|&row| targets[row] != IGNORED)
        .collect();
    if counted.is_empty() {
        return None;
    }
    let classes = logits.dims()[1];
    let logits = if counted.len() == targets.len() {
        logits
    } else {
        rows(logits, &counted)
    };
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

/// `½ (KL(q ‖ p) + KL(p ‖ q))` of the distributions that two matrices of logits stand for, averaged
/// over rows; the first operand of each divergence is a constant to the gradient.
///
/// # Shapes
/// - `logits`, `others`: `[rows, classes]`
pub fn symmetric_divergence(logits: Tensor<2>, others: Tensor<2>) -> Tensor<1> {
    let rows = logits.dims()[0].max(1) as f64;
    let [p, q] = [logits, others].map(|logits| activation::log_softmax(logits, 1));
    let divergence = |of: &Tensor<2>, from: &Tensor<2>| {
        let of = of.clone().detach();
        (of.clone().exp() * (of - from.clone())).sum()
    };
    (divergence(&q, &p) + divergence(&p, &q)) * (0.5 / rows)
}

/// Mean next-token cross-entropy of a language model's head over hidden states, computed on the CPU
/// without storing the logits of all tokens.
///
/// `targets[row]` is the token that row `row` should predict (already shifted).
///
/// # Shapes
/// - `hidden`: `[tokens, hidden]`
/// - `head`: `[vocabulary, hidden]`
pub fn language_model_loss(
    hidden: Tensor<2>,
    head: &Weight,
    targets: &[i64],
    smoothing: f64,
) -> Option<Tensor<1>> {
    let counted: Vec<usize> = (0..targets.len())
        .filter(|&row| targets[row] != IGNORED)
        .collect();
    if counted.is_empty() {
        return None;
    }
    let chosen: Vec<i64> = counted.iter().map(|&row| targets[row]).collect();
    let hidden = if counted.len() == targets.len() {
        hidden
    } else {
        rows(hidden, &counted)
    };
    match head {
        Weight::Frozen(matrix) if matrix.packed().is_some() && uses_fused(&hidden) => {
            let tracked = hidden.is_autodiff() && hidden.is_tracked();
            let op = FrozenHead {
                matrix: matrix.clone(),
                targets: chosen,
                smoothing,
                tracked,
            };
            Some(apply(op, [hidden.into()]))
        }
        Weight::Trained(weight) if uses_fused(weight) && uses_fused(&hidden) => {
            let tracked = weight.is_autodiff() || hidden.is_autodiff();
            let op = TrainedHead {
                shape: weight.dims(),
                targets: chosen,
                smoothing,
                tracked,
            };
            Some(apply(op, [hidden.into(), weight.clone().into()]))
        }
        head => cross_entropy(linear(hidden, head, None), &chosen, smoothing),
    }
}

/// The mean loss of a frozen head over `hidden`; the forward pass computes its gradient too, chunk
/// by chunk, while the logits are there.
#[derive(Clone, Debug)]
struct FrozenHead {
    matrix: FrozenMatrix,
    targets: Vec<i64>,
    smoothing: f64,
    tracked: bool,
}

/// The same with a head that is trained.
#[derive(Clone, Debug)]
struct TrainedHead {
    shape: [usize; 2],
    targets: Vec<i64>,
    smoothing: f64,
    tracked: bool,
}

fn kernel(smoothing: f64) -> CrossEntropy {
    CrossEntropy {
        ignore_index: IGNORED,
        label_smoothing: smoothing as f32,
    }
}

/// `values` times a gradient of the mean over `count` targets.
fn scaled(values: &[f32], gradient: f32, count: usize) -> Gradient {
    let mut scaled = values.to_vec();
    vector::scale(&mut scaled, gradient / count as f32);
    scaled.into()
}

impl Fused<1> for FrozenHead {
    type Saved = Vec<f32>;

    fn forward(&self, [hidden]: [&[f32]; 1]) -> (Vec<f32>, Vec<f32>) {
        let head = self
            .matrix
            .packed()
            .expect("the caller chose this operation for a packed head");
        let mut losses = vec![0.0; self.targets.len()];
        let mut d_hidden = vec![0.0; if self.tracked { hidden.len() } else { 0 }];
        let gradients = HeadGradients {
            d_hidden: self.tracked.then_some(&mut d_hidden[..]),
            d_weight: None,
        };
        let loss = kernel(self.smoothing)
            .with_head(head, hidden, &self.targets, &mut losses, gradients)
            .expect(SHAPES);
        (vec![(loss.sum / loss.targets as f64) as f32], d_hidden)
    }

    fn shape(&self) -> Vec<usize> {
        vec![1]
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &Vec<f32>) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        kept: Kept<'_, 1, Vec<f32>>,
        gradient: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| scaled(kept.saved, gradient[0], self.targets.len()))]
    }
}

impl Fused<2> for TrainedHead {
    type Saved = [Vec<f32>; 2];

    fn forward(&self, [hidden, weight]: [&[f32]; 2]) -> (Vec<f32>, [Vec<f32>; 2]) {
        let head = DenseHead {
            weight,
            width: self.shape[1],
        };
        let mut losses = vec![0.0; self.targets.len()];
        let length = |values: &[f32]| if self.tracked { values.len() } else { 0 };
        let (mut d_hidden, mut d_weight) = (vec![0.0; length(hidden)], vec![0.0; length(weight)]);
        let gradients = HeadGradients {
            d_hidden: self.tracked.then_some(&mut d_hidden[..]),
            d_weight: self.tracked.then_some(&mut d_weight[..]),
        };
        let loss = kernel(self.smoothing)
            .with_head(&head, hidden, &self.targets, &mut losses, gradients)
            .expect(SHAPES);
        (
            vec![(loss.sum / loss.targets as f64) as f32],
            [d_hidden, d_weight],
        )
    }

    fn shape(&self) -> Vec<usize> {
        vec![1]
    }

    fn saved_operands(&self, _tracked: Wanted<2>, _saved: &[Vec<f32>; 2]) -> (Wanted<2>, bool) {
        ([false; 2], false)
    }

    fn backward(
        &self,
        kept: Kept<'_, 2, [Vec<f32>; 2]>,
        gradient: Gradient,
        wanted: Wanted<2>,
    ) -> [Option<Gradient>; 2] {
        std::array::from_fn(|operand| {
            wanted[operand].then(|| scaled(&kept.saved[operand], gradient[0], self.targets.len()))
        })
    }
}

/// Mean cross-entropy of the first and of the last row of a span, each chosen among all rows of its
/// sequence: half the sum of the two, as Hugging Face's question answering has it. None where there
/// is no sequence.
///
/// # Shapes
/// - `logits`: `[rows, 2]`
/// - `boundaries`: cumulative lengths of the sequences, from 0 to `rows`
/// - `ends`: the first and the last row of each span, counted from its sequence's first
pub fn span_cross_entropy(
    logits: Tensor<2>,
    boundaries: &[usize],
    ends: [&[i64]; 2],
) -> Option<Tensor<1>> {
    let count = boundaries.len() - 1;
    let lengths = boundaries.windows(2).map(|ends| ends[1] - ends[0]);
    let longest = lengths.max()?;
    // Rows past the end of a sequence are a last row, which has no weight in a softmax.
    let last = logits.dims()[0];
    let none = Tensor::full([1, 2], f32::MIN, &logits.device());
    let table = boundaries.windows(2).flat_map(|ends| {
        let row = move |at| Some(ends[0] + at).filter(|&row| row < ends[1]);
        (0..longest).map(move |at| row(at).unwrap_or(last))
    });
    let table = rows(
        Tensor::cat(vec![logits, none], 0),
        &table.collect::<Vec<_>>(),
    );
    let loss_of = |side: usize| {
        let column = table.clone().slice([0..count * longest, side..side + 1]);
        cross_entropy(column.reshape([count, longest]), ends[side], 0.0)
    };
    Some((loss_of(0)? + loss_of(1)?) / 2.0)
}

/// Mean binary cross-entropy of logits against 0 and 1, over all of them.
///
/// # Shapes
/// - `logits`: `[rows, classes]`
/// - `targets`: `[rows, classes]`, row-major
pub fn binary_cross_entropy(logits: Tensor<2>, targets: &[f32]) -> Tensor<1> {
    let targets = TensorData::new(targets.to_vec(), logits.dims());
    let targets = Tensor::<2>::from_data(targets, &logits.device().inner());
    // max(x, 0) - x y + log(1 + e^-|x|), which no x makes overflow.
    let tail = (-logits.clone().abs()).exp().log1p();
    (activation::relu(logits.clone()) - logits * targets + tail).mean()
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};

    use super::symmetric_divergence;

    /// Against the definition in f64; the gradient of each side is half the difference of the
    /// distributions.
    #[test]
    fn the_divergence_pulls_two_distributions_together() {
        let sides = [
            [0.3f32, -1.2, 0.8, 2.0, 0.1, -0.4],
            [1.1, 0.2, -0.7, 0.0, 0.5, 1.5],
        ];
        let [a, b] = sides.map(|values| {
            let data = TensorData::new(values.to_vec(), [2, 3]);
            let tensor = Tensor::<2>::from_data(data, &Device::default());
            tensor.autodiff().require_grad()
        });
        let divergence = symmetric_divergence(a.clone(), b.clone());
        let [p, q] = sides.map(|values| {
            let rows = values.chunks(3).flat_map(|row| {
                let sum: f64 = row.iter().map(|value| f64::from(*value).exp()).sum();
                row.iter().map(move |value| f64::from(*value).exp() / sum)
            });
            rows.collect::<Vec<f64>>()
        });
        let pairs = p.iter().zip(&q);
        let both = pairs.map(|(p, q)| (p - q) * (p / q).ln());
        let expected = both.sum::<f64>() * 0.5 / 2.0;
        let found = divergence.clone().inner().try_into_vec_as::<f32>().unwrap();
        let found = f64::from(found[0]);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        let mut tape = divergence.backward();
        for (side, [own, other]) in [(a, [&p, &q]), (b, [&q, &p])] {
            let gradient = side.grad_remove(&mut tape).unwrap();
            let gradient = gradient.try_into_vec_as::<f32>().unwrap();
            for (found, (own, other)) in gradient.into_iter().zip(own.iter().zip(other)) {
                assert!((f64::from(found) - (own - other) / 4.0).abs() < 1e-6);
            }
        }
    }
}
