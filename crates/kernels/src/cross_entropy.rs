//! Softmax cross-entropy: of a classifier's logits, and fused with a language model's head.
//!
//! The logits of a batch would be its largest tensor by far. The fused form never stores all of
//! them: it takes a few rows at a time, computes their logits, turns them in place into losses and
//! gradients, and multiplies these by the head's weight before it continues. It splits the rows,
//! never the vocabulary: a row's logits are kept until its gradient is computed, so no product is
//! computed twice. Ignored rows cost nothing.
//!
//! Definitions are those of `torch.nn.functional.cross_entropy`: a row with target t and logits z
//! has the loss `(1 - s) (lse - z[t]) + s (lse - mean(z))`, with the log-sum-exp lse and the label
//! smoothing s. Losses and gradients are those of the *sum* over rows; divide by
//! [`Loss::targets`] for the mean.
//!
//! ```
//! use epiphyte_kernels::cross_entropy::CrossEntropy;
//!
//! let mut losses = [0.0; 2];
//! let loss = CrossEntropy::default().forward(&[0.0, 0.0, 3.0, 9.0], 2, &[1, -100], &mut losses)?;
//! assert_eq!(loss.targets, 1);
//! assert!((loss.sum - 2f64.ln()).abs() < 1e-6);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::gemm::{Epilogue, Operand, PackedWeight, matmul};
use crate::math::exp;
use crate::simd::{fold, kernel, max, sum};
use crate::{KernelError, scratch, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Elements that are summed in f32 before the sum goes on in f64.
const SUMMED: usize = 4096;
/// Logits that are held at a time, 32 MiB of them, but always those of one row.
const HELD: usize = 8 * 1024 * 1024;

/// The loss and its options.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Rows with this target have no loss and no gradient.
    pub ignore_index: i64,
    /// How much of the target's probability is spread over all classes, 0 to 1.
    pub label_smoothing: f32,
}

impl Default for CrossEntropy {
    /// PyTorch's: `ignore_index = -100`, no smoothing.
    fn default() -> Self {
        Self {
            ignore_index: -100,
            label_smoothing: 0.0,
        }
    }
}

/// The loss of some rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// The sum of the rows' losses.
    pub sum: f64,
    /// How many rows were not ignored.
    pub targets: usize,
}

/// A linear layer from hidden states to logits.
pub trait Head {
    /// The hidden size.
    fn width(&self) -> usize;

    /// How many logits there are.
    fn vocabulary(&self) -> usize;

    /// Computes `logits` (`[rows, vocabulary]`) from `hidden` (`[rows, hidden]`).
    ///
    /// # Errors
    /// When a shape does not fit.
    fn logits(&self, hidden: &[f32], logits: &mut [f32]) -> Result<(), KernelError>;

    /// Computes `d_hidden` (`[rows, hidden]`) from `d_logits` (`[rows, vocabulary]`).
    ///
    /// # Errors
    /// When a shape does not fit.
    fn input_gradient(&self, d_logits: &[f32], d_hidden: &mut [f32]) -> Result<(), KernelError>;
}

/// A frozen head without bias.
impl Head for PackedWeight {
    fn width(&self) -> usize {
        self.input()
    }

    fn vocabulary(&self) -> usize {
        self.out()
    }

    fn logits(&self, hidden: &[f32], logits: &mut [f32]) -> Result<(), KernelError> {
        self.forward(hidden, Epilogue::default(), logits)
    }

    fn input_gradient(&self, d_logits: &[f32], d_hidden: &mut [f32]) -> Result<(), KernelError> {
        self.backward_input(d_logits, None, d_hidden, false)
    }
}

/// A head without bias whose weight may change, such as a trained one.
#[derive(Clone, Copy, Debug)]
pub struct DenseHead<'a> {
    /// `[vocabulary, hidden]`.
    pub weight: &'a [f32],
    /// The hidden size.
    pub width: usize,
}

impl DenseHead<'_> {
    /// Rows, hidden size and vocabulary, in the order of a product.
    fn shape(&self, hidden: &[f32]) -> Result<[usize; 3], KernelError> {
        let vocabulary = KernelError::count_rows("weight", self.weight, self.width)?;
        Ok([
            KernelError::count_rows("hidden", hidden, self.width)?,
            self.width,
            vocabulary,
        ])
    }
}

impl Head for DenseHead<'_> {
    fn width(&self) -> usize {
        self.width
    }

    fn vocabulary(&self) -> usize {
        self.weight.len().checked_div(self.width).unwrap_or(0)
    }

    fn logits(&self, hidden: &[f32], logits: &mut [f32]) -> Result<(), KernelError> {
        let weight = Operand::Transposed(self.weight);
        matmul(
            self.shape(hidden)?,
            1.0,
            Operand::Plain(hidden),
            weight,
            0.0,
            logits,
        )
    }

    fn input_gradient(&self, d_logits: &[f32], d_hidden: &mut [f32]) -> Result<(), KernelError> {
        let [rows, width, vocabulary] = self.shape(d_hidden)?;
        let weight = Operand::Plain(self.weight);
        matmul(
            [rows, vocabulary, width],
            1.0,
            Operand::Plain(d_logits),
            weight,
            0.0,
            d_hidden,
        )
    }
}

/// The gradients that [`CrossEntropy::with_head`] computes; those that are `None` cost nothing.
#[derive(Debug, Default)]
pub struct HeadGradients<'a> {
    /// Receives that of the hidden states, `[rows, hidden]`.
    pub d_hidden: Option<&'a mut [f32]>,
    /// Receives that of the head's weight, `[vocabulary, hidden]`.
    pub d_weight: Option<&'a mut [f32]>,
}

impl CrossEntropy {
    /// The loss of `logits` (`[rows, classes]`) against `targets` (`[rows]`); `losses` (`[rows]`)
    /// receives that of each row, 0 where ignored.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a shape does not fit, [`KernelError::Index`] for a target that
    /// is no class, [`KernelError::Parameter`] for a smoothing outside 0 to 1.
    pub fn forward(
        &self,
        logits: &[f32],
        classes: usize,
        targets: &[i64],
        losses: &mut [f32],
    ) -> Result<Loss, KernelError> {
        let mut d_logits = vec![0.0; logits.len()];
        self.rows(logits, classes, targets, losses, &mut d_logits, false)
    }

    /// As [`CrossEntropy::forward`], and `d_logits` (`[rows, classes]`) receives the gradient of
    /// the sum: `softmax(z) - (1 - s) onehot(t) - s / classes`, 0 where ignored.
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`].
    pub fn forward_backward(
        &self,
        logits: &[f32],
        classes: usize,
        targets: &[i64],
        losses: &mut [f32],
        d_logits: &mut [f32],
    ) -> Result<Loss, KernelError> {
        KernelError::check_length("d_logits", d_logits, &[targets.len(), classes])?;
        self.rows(logits, classes, targets, losses, d_logits, true)
    }

    fn rows(
        &self,
        logits: &[f32],
        classes: usize,
        targets: &[i64],
        losses: &mut [f32],
        d_logits: &mut [f32],
        gradient: bool,
    ) -> Result<Loss, KernelError> {
        KernelError::check_length("logits", logits, &[targets.len(), classes])?;
        self.check(targets, classes, losses)?;
        d_logits.copy_from_slice(logits);
        self.turn(d_logits, classes, targets, losses, gradient);
        Ok(self.sum(targets, losses))
    }

    /// The loss of `head`'s logits of `hidden` (`[rows, hidden]`) against `targets` (`[rows]`), and
    /// the gradients of its sum. `losses` (`[rows]`) receives that of each row, 0 where ignored.
    ///
    /// ```
    /// use epiphyte_kernels::cross_entropy::{CrossEntropy, DenseHead, HeadGradients};
    ///
    /// // A vocabulary of two, hidden size 1.
    /// let head = DenseHead { weight: &[1.0, -1.0], width: 1 };
    /// let (mut losses, mut d_hidden) = ([0.0; 2], [0.0; 2]);
    /// let gradients = HeadGradients { d_hidden: Some(&mut d_hidden), d_weight: None };
    /// let (hidden, targets) = ([0.0, 7.0], [0, -100]);
    /// let loss = CrossEntropy::default();
    /// let loss = loss.with_head(&head, &hidden, &targets, &mut losses, gradients)?;
    /// assert_eq!(loss.targets, 1);
    /// assert_eq!(d_hidden, [-1.0, 0.0]);
    /// # Ok::<(), epiphyte_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::forward`].
    pub fn with_head(
        &self,
        head: &impl Head,
        hidden: &[f32],
        targets: &[i64],
        losses: &mut [f32],
        gradients: HeadGradients<'_>,
    ) -> Result<Loss, KernelError> {
        let HeadGradients {
            mut d_hidden,
            mut d_weight,
        } = gradients;
        let (width, vocabulary) = (head.width(), head.vocabulary());
        KernelError::check_length("hidden", hidden, &[targets.len(), width])?;
        if let Some(d_hidden) = &mut d_hidden {
            KernelError::check_length("d_hidden", d_hidden, &[targets.len(), width])?;
            d_hidden.fill(0.0);
        }
        if let Some(d_weight) = &mut d_weight {
            KernelError::check_length("d_weight", d_weight, &[vocabulary, width])?;
            d_weight.fill(0.0);
        }
        self.check(targets, vocabulary, losses)?;
        losses.fill(0.0);
        let wanted = d_hidden.is_some() || d_weight.is_some();
        let counted: Vec<usize> = (0..targets.len())
            .filter(|&row| targets[row] != self.ignore_index)
            .collect();
        let held = (HELD / vocabulary.max(1)).clamp(1, counted.len().max(1));

        scratch::floats([held * vocabulary, held * width], |[logits, states]| {
            for rows in counted.chunks(held) {
                let logits = &mut logits[..rows.len() * vocabulary];
                let states = &mut states[..rows.len() * width];
                let row_targets: Vec<i64> = rows.iter().map(|&row| targets[row]).collect();
                let mut row_losses = vec![0.0; rows.len()];

                for (state, &row) in states.chunks_exact_mut(width).zip(rows) {
                    state.copy_from_slice(&hidden[row * width..][..width]);
                }
                head.logits(states, logits)?;
                self.turn(logits, vocabulary, &row_targets, &mut row_losses, wanted);
                for (&row, loss) in rows.iter().zip(row_losses) {
                    losses[row] = loss;
                }
                if let Some(d_weight) = &mut d_weight {
                    let shape = [vocabulary, rows.len(), width];
                    let d_logits = Operand::Transposed(logits);
                    matmul(shape, 1.0, d_logits, Operand::Plain(states), 1.0, d_weight)?;
                }
                if let Some(d_hidden) = &mut d_hidden {
                    head.input_gradient(logits, states)?;
                    for (state, &row) in states.chunks_exact(width).zip(rows) {
                        d_hidden[row * width..][..width].copy_from_slice(state);
                    }
                }
            }
            Ok(())
        })?;
        Ok(self.sum(targets, losses))
    }

    fn check(&self, targets: &[i64], classes: usize, losses: &[f32]) -> Result<(), KernelError> {
        KernelError::check_length("losses", losses, &[targets.len()])?;
        if !(0.0..=1.0).contains(&self.label_smoothing) {
            let (got, allowed) = (self.label_smoothing.to_string(), "between 0 and 1");
            return Err(KernelError::Parameter {
                parameter: "label_smoothing",
                got,
                allowed,
            });
        }
        let fits = |target: i64| usize::try_from(target).is_ok_and(|target| target < classes);
        match targets
            .iter()
            .position(|&target| target != self.ignore_index && !fits(target))
        {
            None => Ok(()),
            Some(position) => Err(KernelError::Index {
                operand: "targets",
                position,
                index: targets[position],
                limit: classes,
            }),
        }
    }

    /// Computes the losses of logits and, with `gradient`, replaces the logits by their gradients.
    fn turn(
        &self,
        logits: &mut [f32],
        classes: usize,
        targets: &[i64],
        losses: &mut [f32],
        gradient: bool,
    ) {
        let part = PART.div_ceil(classes.max(1));
        let rows = logits.chunks_mut((part * classes).max(1));
        threads::for_each(
            rows.zip(targets.chunks(part).zip(losses.chunks_mut(part))),
            |(logits, (targets, losses))| {
                turn_rows(*self, logits, targets, losses, gradient);
            },
        );
    }

    /// In the order of the rows.
    fn sum(&self, targets: &[i64], losses: &[f32]) -> Loss {
        Loss {
            sum: losses.iter().map(|&loss| f64::from(loss)).sum(),
            targets: targets
                .iter()
                .filter(|&&target| target != self.ignore_index)
                .count(),
        }
    }
}

kernel! {
    fn turn_rows<S>(
        loss: CrossEntropy, logits: &mut [f32], targets: &[i64], losses: &mut [f32], gradient: bool,
    ) {
        let classes = logits.len() / targets.len();
        let smoothing = f64::from(loss.label_smoothing);
        let rows = logits.chunks_exact_mut(classes).zip(targets);
        for ((logits, &target), row_loss) in rows.zip(losses) {
            if target == loss.ignore_index {
                logits.fill(0.0);
                *row_loss = 0.0;
                continue;
            }
            let target = target as usize;
            let largest = max(logits);
            // Relative to the largest, where nothing cancels.
            let at_target = f64::from(logits[target]) - f64::from(largest);
            let mut mean = 0.0;
            if smoothing > 0.0 {
                for part in logits.chunks(SUMMED) {
                    let sum = fold(part, 0.0, |total, x| total + (x - largest), |a, b| a + b);
                    mean += f64::from(sum);
                }
                mean /= classes as f64;
            }
            let mut total = 0.0;
            for part in logits.chunks_mut(SUMMED) {
                for x in part.iter_mut() {
                    *x = exp::<S>(*x - largest);
                }
                total += f64::from(sum(part));
            }
            let lse = total.ln();
            *row_loss = ((1.0 - smoothing) * (lse - at_target) + smoothing * (lse - mean)) as f32;
            if gradient {
                let scale = (1.0 / total) as f32;
                let spread = -(smoothing / classes as f64) as f32;
                for x in logits.iter_mut() {
                    *x = S::mul_add(*x, scale, spread);
                }
                logits[target] -= (1.0 - smoothing) as f32;
            }
        }
    }
}
