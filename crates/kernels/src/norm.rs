//! Layer norm and RMS norm over rows, with the residual sum before them, forward and backward.
//!
//! Transformers almost always normalize a sum: `norm(x + residual)`. Both are one pass over the row
//! while it is in the cache. The backward pass needs the normalized row `h`, which it computes from
//! the input of the norm or from the result: `h = (y - beta) / gamma`. The next linear layer often
//! saves the result anyway; the sum then need not be stored at all.
//!
//! ```
//! use epiphyte_kernels::norm::{Norm, RowStatistics};
//!
//! let norm = Norm::Layer { gamma: &[1.0, 1.0], beta: &[0.0, 10.0], epsilon: 0.0 };
//! let mut y = [0.0; 4];
//! let mut statistics = [RowStatistics::default(); 2];
//! norm.forward(&[1.0, 3.0, 5.0, 5.5], None, &mut y, &mut statistics)?;
//! assert_eq!(y, [-1.0, 11.0, -1.0, 11.0]);
//! assert_eq!(statistics[0].mean, 2.0);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::{dot, fold, kernel, sum};
use crate::{KernelError, scratch, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Rows of a block, over which the gradients of gamma and beta are summed first.
const SUMMED_ROWS: usize = 64;
/// The largest ratio of beta to gamma for which the result is saved in place of the input:
/// `(y - beta) / gamma` loses precision by this factor, of f32's 16 million steps.
const MOST_OFFSET: f32 = 8.0;
/// The smallest gamma that is divided by.
const LEAST_SCALE: f32 = 1e-12;

/// A norm and its parameters, each as long as a row.
#[derive(Clone, Copy, Debug)]
pub enum Norm<'a> {
    /// (x - mean) / √(variance + epsilon) · gamma + beta, with the variance over n (not n - 1):
    /// `torch.nn.LayerNorm` (Ba et al. 2016).
    Layer {
        /// The scale, called `weight` in checkpoints.
        gamma: &'a [f32],
        /// The offset, called `bias` in checkpoints.
        beta: &'a [f32],
        /// Added to the variance.
        epsilon: f32,
    },
    /// x / √(mean of x² + epsilon) · gamma: `LlamaRMSNorm` (Zhang and Sennrich 2019).
    Rms {
        /// The scale, called `weight` in checkpoints.
        gamma: &'a [f32],
        /// Added to the mean of squares.
        epsilon: f32,
    },
}

/// The statistics of a row that the backward pass needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStatistics {
    /// The mean that was subtracted; 0 in an RMS norm.
    pub mean: f32,
    /// The factor, 1 / √(… + epsilon).
    pub rstd: f32,
}

/// The rows from which [`Norm::backward`] computes the normalized rows, `[rows, width]`.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// The input of the norm: x, or its sum with the residual.
    Input(&'a [f32]),
    /// The result. Only for a norm that [`Norm::is_invertible`].
    Output(&'a [f32]),
}

impl<'a> Kept<'a> {
    fn values(self) -> &'a [f32] {
        match self {
            Self::Input(values) | Self::Output(values) => values,
        }
    }

    /// The same part of the rows, `elements` from the start of part `index`.
    fn part(self, index: usize, elements: usize) -> Self {
        let values = self.values();
        let start = index * elements;
        let part = &values[start..values.len().min(start + elements)];
        match self {
            Self::Input(_) => Self::Input(part),
            Self::Output(_) => Self::Output(part),
        }
    }
}

/// The gradients of the parameters that [`Norm::backward`] computes.
#[derive(Debug)]
pub struct NormGradients<'a> {
    /// Receives the gradient of gamma, `[width]`.
    pub d_gamma: &'a mut [f32],
    /// Receives the gradient of beta, `[width]`; empty for an RMS norm.
    pub d_beta: &'a mut [f32],
}

impl Norm<'_> {
    /// Normalizes the rows of `x` (`[rows, width]`), or of its sum with a `residual` of the same
    /// shape, into `y`.
    ///
    /// `statistics` has an element for each row.
    ///
    /// # Errors
    /// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit.
    pub fn forward(
        &self,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        statistics: &mut [RowStatistics],
    ) -> Result<(), KernelError> {
        let (rows, width) = self.check(x)?;
        KernelError::check_length("y", y, &[rows, width])?;
        KernelError::check_length("statistics", statistics, &[rows])?;
        if let Some(residual) = residual {
            KernelError::check_length("residual", residual, &[rows, width])?;
        }
        let part = PART.div_ceil(width);
        let outputs = y.chunks_mut(part * width).zip(statistics.chunks_mut(part));
        let parts = x.chunks(part * width).zip(outputs).enumerate();
        threads::for_each(parts, |(index, (x, (y, statistics)))| {
            match residual {
                Some(residual) => add(x, &residual[index * part * width..][..x.len()], y),
                None => y.copy_from_slice(x),
            }
            normalize_rows(*self, y, statistics);
        });
        Ok(())
    }

    /// Whether the normalized rows can be computed from the result without losing much precision:
    /// no gamma is zero, and none is small compared with its beta.
    pub fn is_invertible(&self) -> bool {
        let scales = |gamma: &f32| gamma.is_finite() && gamma.abs() >= LEAST_SCALE;
        let mut offsets = self.gamma().iter().zip(self.beta());
        self.gamma().iter().all(scales)
            && offsets.all(|(gamma, beta)| beta.abs() <= MOST_OFFSET * gamma.abs())
    }

    /// Changes `gradient`, that of the result, to that of x (and of the residual, which is the
    /// same), `[rows, width]`, and computes those of the parameters if they are wanted.
    ///
    /// # Errors
    /// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit.
    pub fn backward(
        &self,
        kept: Kept<'_>,
        statistics: &[RowStatistics],
        gradient: &mut [f32],
        parameters: Option<NormGradients<'_>>,
    ) -> Result<(), KernelError> {
        let (rows, width) = self.check(kept.values())?;
        KernelError::check_length("gradient", gradient, &[rows, width])?;
        KernelError::check_length("statistics", statistics, &[rows])?;
        if let Some(parameters) = parameters {
            self.backward_parameters(kept, statistics, gradient, parameters)?;
        }
        let part = PART.div_ceil(width);
        let parts = gradient.chunks_mut(part * width);
        threads::for_each(
            parts.zip(statistics.chunks(part)).enumerate(),
            |(index, (gradient, statistics))| {
                let kept = kept.part(index, part * width);
                scratch::floats([width], |[h]| {
                    backward_rows(*self, kept, statistics, gradient, h);
                });
            },
        );
        Ok(())
    }

    /// Sums over blocks of rows, then sums the blocks in order.
    fn backward_parameters(
        &self,
        kept: Kept<'_>,
        statistics: &[RowStatistics],
        gradient: &[f32],
        parameters: NormGradients<'_>,
    ) -> Result<(), KernelError> {
        let NormGradients { d_gamma, d_beta } = parameters;
        let width = self.gamma().len();
        KernelError::check_length("d_gamma", d_gamma, &[width])?;
        KernelError::check_length("d_beta", d_beta, &[self.beta().len()])?;
        let block = SUMMED_ROWS * width;
        let mut partial = vec![0.0; statistics.len().div_ceil(SUMMED_ROWS) * 2 * width];
        let inputs = gradient
            .chunks(block.max(1))
            .zip(statistics.chunks(SUMMED_ROWS));
        threads::for_each(
            inputs
                .zip(partial.chunks_mut((2 * width).max(1)))
                .enumerate(),
            |(index, ((gradient, statistics), partial))| {
                let kept = kept.part(index, block);
                scratch::floats([width], |[h]| {
                    sum_parameters(*self, kept, statistics, gradient, partial, h);
                });
            },
        );
        d_gamma.fill(0.0);
        d_beta.fill(0.0);
        for partial in partial.chunks((2 * width).max(1)) {
            let (gamma, beta) = partial.split_at(width);
            accumulate(gamma, d_gamma);
            accumulate(&beta[..d_beta.len()], d_beta);
        }
        Ok(())
    }

    fn gamma(&self) -> &[f32] {
        match self {
            Norm::Layer { gamma, .. } | Norm::Rms { gamma, .. } => gamma,
        }
    }

    /// Empty for an RMS norm.
    fn beta(&self) -> &[f32] {
        match self {
            Norm::Layer { beta, .. } => beta,
            Norm::Rms { .. } => &[],
        }
    }

    /// The number of rows, and their width (1 if there are no elements).
    fn check(&self, x: &[f32]) -> Result<(usize, usize), KernelError> {
        let width = self.gamma().len();
        if let Norm::Layer { beta, .. } = self {
            KernelError::check_length("beta", beta, &[width])?;
        }
        Ok((KernelError::count_rows("x", x, width)?, width.max(1)))
    }
}

kernel! {
    fn add<S>(x: &[f32], residual: &[f32], sum: &mut [f32]) {
        for ((sum, x), residual) in sum.iter_mut().zip(x).zip(residual) {
            *sum = x + residual;
        }
    }
}

kernel! {
    fn accumulate<S>(x: &[f32], total: &mut [f32]) {
        for (total, x) in total.iter_mut().zip(x) {
            *total += x;
        }
    }
}

kernel! {
    /// Normalizes rows where they are.
    fn normalize_rows<S>(norm: Norm<'_>, rows: &mut [f32], statistics: &mut [RowStatistics]) {
        let width = norm.gamma().len();
        let scale = 1.0 / width as f32;
        for (row, statistics) in rows.chunks_exact_mut(width).zip(statistics) {
            match norm {
                Norm::Layer { gamma, beta, epsilon } => {
                    let mean = sum(row) * scale;
                    // The squares of differences, not the difference of squares, which cancels.
                    let square = |total, x| { let x = x - mean; S::mul_add(x, x, total) };
                    let variance = fold(row, 0.0, square, |a, b| a + b) * scale;
                    let rstd = 1.0 / (variance + epsilon).sqrt();
                    *statistics = RowStatistics { mean, rstd };
                    for ((x, gamma), &beta) in row.iter_mut().zip(gamma).zip(beta) {
                        *x = S::mul_add((*x - mean) * rstd, *gamma, beta);
                    }
                }
                Norm::Rms { gamma, epsilon } => {
                    let rstd = 1.0 / (dot::<S>(row, row) * scale + epsilon).sqrt();
                    *statistics = RowStatistics { mean: 0.0, rstd };
                    for (x, gamma) in row.iter_mut().zip(gamma) {
                        *x = *x * rstd * gamma;
                    }
                }
            }
        }
    }
}

/// Writes the normalized row `row` to `h`.
#[inline(always)]
fn normalized(
    norm: Norm<'_>,
    kept: Kept<'_>,
    row: usize,
    statistics: RowStatistics,
    h: &mut [f32],
) {
    let RowStatistics { mean, rstd } = statistics;
    let width = h.len();
    match (kept, norm) {
        (Kept::Input(x), _) => {
            for (h, x) in h.iter_mut().zip(&x[row * width..]) {
                *h = (x - mean) * rstd;
            }
        }
        (Kept::Output(y), Norm::Layer { gamma, beta, .. }) => {
            let parameters = gamma.iter().zip(beta);
            for ((h, y), (gamma, beta)) in h.iter_mut().zip(&y[row * width..]).zip(parameters) {
                *h = (y - beta) / gamma;
            }
        }
        (Kept::Output(y), Norm::Rms { gamma, .. }) => {
            for ((h, y), gamma) in h.iter_mut().zip(&y[row * width..]).zip(gamma) {
                *h = y / gamma;
            }
        }
    }
}

// With g = dy gamma and the normalized row h: dx = rstd (g - mean(g) - h mean(g h)), where an RMS
// norm has no mean(g).
kernel! {
    fn backward_rows<S>(
        norm: Norm<'_>, kept: Kept<'_>, statistics: &[RowStatistics],
        gradient: &mut [f32], h: &mut [f32],
    ) {
        let gamma = norm.gamma();
        let width = gamma.len();
        let scale = 1.0 / width as f32;
        let rows = gradient.chunks_exact_mut(width).zip(statistics);
        for (row, (g, &statistics)) in rows.enumerate() {
            normalized(norm, kept, row, statistics, h);
            for (g, gamma) in g.iter_mut().zip(gamma) {
                *g *= gamma;
            }
            let mean_g = if let Norm::Layer { .. } = norm { sum(g) * scale } else { 0.0 };
            let mean_g_h = dot::<S>(g, h) * scale;
            for (g, h) in g.iter_mut().zip(&*h) {
                *g = statistics.rstd * (*g - mean_g - h * mean_g_h);
            }
        }
    }
}

kernel! {
    fn sum_parameters<S>(
        norm: Norm<'_>, kept: Kept<'_>, statistics: &[RowStatistics], gradient: &[f32],
        partial: &mut [f32], h: &mut [f32],
    ) {
        let width = h.len();
        let (d_gamma, d_beta) = partial.split_at_mut(width);
        for (row, (dy, &statistics)) in gradient.chunks_exact(width).zip(statistics).enumerate() {
            normalized(norm, kept, row, statistics, h);
            let sums = d_gamma.iter_mut().zip(&mut *d_beta);
            for (((d_gamma, d_beta), h), &dy) in sums.zip(&*h).zip(dy) {
                *d_gamma = S::mul_add(*h, dy, *d_gamma);
                *d_beta += dy;
            }
        }
    }
}
