//! Layer norm and RMS norm over rows, with the residual sum before them, forward and backward.
//!
//! Transformers almost always normalise a sum: `norm(x + residual)` (BERT), or they keep the sum
//! as the residual stream and normalise it (Llama). Both are one pass over the row while it is in
//! the cache. The backward pass recomputes the normalised row from the sum and two numbers a row.
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
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;
/// Rows whose contributions to the gradients of gamma and beta are summed before those sums are.
const SUMMED_ROWS: usize = 64;

/// A norm and its parameters; all of them have the width of a row.
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

/// What the backward pass needs to know of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RowStatistics {
    /// The mean that was subtracted; 0 in an RMS norm.
    pub mean: f32,
    /// The factor, 1 / √(… + epsilon).
    pub rstd: f32,
}

/// What is added to x before the norm.
#[derive(Debug)]
pub struct Residual<'a> {
    /// The other summand, `[rows, width]`.
    pub residual: &'a [f32],
    /// Receives `x + residual`, `[rows, width]`.
    pub sum: &'a mut [f32],
}

/// What [`Norm::backward`] starts from.
#[derive(Clone, Copy, Debug)]
pub struct NormBackward<'a> {
    /// What was normalised, `[rows, width]`: x, or its sum with the residual.
    pub x: &'a [f32],
    /// What the forward pass found out about each row.
    pub statistics: &'a [RowStatistics],
    /// The gradient of the output, `[rows, width]`.
    pub dy: &'a [f32],
    /// A gradient that reached the sum on another way (the residual stream's), `[rows, width]`.
    pub d_sum: Option<&'a [f32]>,
}

/// Where [`Norm::backward`] leaves the gradients of the parameters.
#[derive(Debug)]
pub struct NormGradients<'a> {
    /// Receives the gradient of gamma, `[width]`.
    pub d_gamma: &'a mut [f32],
    /// Receives the gradient of beta, `[width]`; empty for an RMS norm.
    pub d_beta: &'a mut [f32],
}

impl Norm<'_> {
    /// Normalises the rows of `x` (`[rows, width]`), or of its sum with a residual, into `y`.
    ///
    /// `statistics` has an element a row.
    ///
    /// # Errors
    /// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit.
    pub fn forward(
        &self,
        x: &[f32],
        residual: Option<Residual<'_>>,
        y: &mut [f32],
        statistics: &mut [RowStatistics],
    ) -> Result<(), KernelError> {
        let (rows, width) = self.check(x)?;
        KernelError::check_length("y", y, &[rows, width])?;
        KernelError::check_length("statistics", statistics, &[rows])?;
        let part = PART.div_ceil(width);
        let outputs = y.chunks_mut(part * width).zip(statistics.chunks_mut(part));
        match residual {
            None => threads::for_each(
                x.chunks(part * width).zip(outputs),
                |(x, (y, statistics))| forward_rows(*self, x, y, statistics),
            ),
            Some(Residual { residual, sum }) => {
                KernelError::check_length("residual", residual, &[rows, width])?;
                KernelError::check_length("sum", sum, &[rows, width])?;
                let inputs = x.chunks(part * width).zip(residual.chunks(part * width));
                let sums = sum.chunks_mut(part * width);
                threads::for_each(
                    inputs.zip(sums).zip(outputs),
                    |(((x, residual), sum), (y, statistics))| {
                        add(x, residual, sum);
                        forward_rows(*self, sum, y, statistics);
                    },
                );
            }
        }
        Ok(())
    }

    /// The gradient of x (and of the residual, which is the same) into `dx`, `[rows, width]`; and
    /// of the parameters where asked.
    ///
    /// # Errors
    /// [`KernelError::Rows`] or [`KernelError::Length`] when a shape does not fit.
    pub fn backward(
        &self,
        from: NormBackward<'_>,
        dx: &mut [f32],
        parameters: Option<NormGradients<'_>>,
    ) -> Result<(), KernelError> {
        let NormBackward {
            x,
            statistics,
            dy,
            d_sum,
        } = from;
        let (rows, width) = self.check(x)?;
        KernelError::check_length("dy", dy, &[rows, width])?;
        KernelError::check_length("dx", dx, &[rows, width])?;
        KernelError::check_length("statistics", statistics, &[rows])?;
        if let Some(d_sum) = d_sum {
            KernelError::check_length("d_sum", d_sum, &[rows, width])?;
        }
        let part = PART.div_ceil(width);
        let inputs = x.chunks(part * width).zip(dy.chunks(part * width));
        let inputs = inputs.zip(statistics.chunks(part)).enumerate();
        threads::for_each(
            inputs.zip(dx.chunks_mut(part * width)),
            |((index, ((x, dy), statistics)), dx)| {
                backward_rows(*self, x, dy, statistics, dx);
                if let Some(d_sum) = d_sum {
                    accumulate(&d_sum[index * part * width..][..dx.len()], dx);
                }
            },
        );
        match parameters {
            Some(parameters) => self.backward_parameters(from, parameters),
            None => Ok(()),
        }
    }

    /// Sums over blocks of rows, then sums the blocks in order.
    fn backward_parameters(
        &self,
        from: NormBackward<'_>,
        parameters: NormGradients<'_>,
    ) -> Result<(), KernelError> {
        let NormBackward {
            x, statistics, dy, ..
        } = from;
        let NormGradients { d_gamma, d_beta } = parameters;
        let width = self.gamma().len();
        KernelError::check_length("d_gamma", d_gamma, &[width])?;
        KernelError::check_length("d_beta", d_beta, &[self.beta().len()])?;
        let block = SUMMED_ROWS * width;
        let mut partial = vec![0.0; statistics.len().div_ceil(SUMMED_ROWS) * 2 * width];
        let inputs = x
            .chunks(block)
            .zip(dy.chunks(block))
            .zip(statistics.chunks(SUMMED_ROWS));
        threads::for_each(
            inputs.zip(partial.chunks_mut(2 * width)),
            |(((x, dy), statistics), partial)| sum_parameters(x, dy, statistics, partial),
        );
        d_gamma.fill(0.0);
        d_beta.fill(0.0);
        for partial in partial.chunks(2 * width) {
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

    /// The number of rows, and their width (1 where there is nothing).
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
    fn forward_rows<S>(norm: Norm<'_>, x: &[f32], y: &mut [f32], statistics: &mut [RowStatistics]) {
        let width = norm.gamma().len();
        let scale = 1.0 / width as f32;
        let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), statistics) in rows.zip(statistics) {
            match norm {
                Norm::Layer { gamma, beta, epsilon } => {
                    let mean = sum(x) * scale;
                    // The squares of differences, not the difference of squares, which cancels.
                    let square = |total, x| { let x = x - mean; S::mul_add(x, x, total) };
                    let variance = fold(x, 0.0, square, |a, b| a + b) * scale;
                    let rstd = 1.0 / (variance + epsilon).sqrt();
                    *statistics = RowStatistics { mean, rstd };
                    for (((y, x), gamma), &beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                        *y = S::mul_add((x - mean) * rstd, *gamma, beta);
                    }
                }
                Norm::Rms { gamma, epsilon } => {
                    let rstd = 1.0 / (dot::<S>(x, x) * scale + epsilon).sqrt();
                    *statistics = RowStatistics { mean: 0.0, rstd };
                    for ((y, x), gamma) in y.iter_mut().zip(x).zip(gamma) {
                        *y = x * rstd * gamma;
                    }
                }
            }
        }
    }
}

// With g = dy gamma and the normalised row h = (x - mean) rstd:
// dx = rstd (g - mean(g) - h mean(g h)), where an RMS norm has no mean(g).
kernel! {
    fn backward_rows<S>(
        norm: Norm<'_>, x: &[f32], dy: &[f32], statistics: &[RowStatistics], dx: &mut [f32],
    ) {
        let gamma = norm.gamma();
        let width = gamma.len();
        let scale = 1.0 / width as f32;
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(statistics);
        for (((x, dy), &RowStatistics { mean, rstd }), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            for ((dx, dy), gamma) in dx.iter_mut().zip(dy).zip(gamma) {
                *dx = dy * gamma;
            }
            let mean_g = if let Norm::Layer { .. } = norm { sum(dx) * scale } else { 0.0 };
            let centred = dot::<S>(dx, x) - mean * sum(dx);
            let mean_g_h = centred * rstd * scale;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = rstd * (*dx - mean_g - (x - mean) * rstd * mean_g_h);
            }
        }
    }
}

kernel! {
    fn sum_parameters<S>(x: &[f32], dy: &[f32], statistics: &[RowStatistics], partial: &mut [f32]) {
        let width = partial.len() / 2;
        let (d_gamma, d_beta) = partial.split_at_mut(width);
        let inputs = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), &RowStatistics { mean, rstd }) in inputs.zip(statistics) {
            for (((d_gamma, d_beta), x), &dy) in d_gamma.iter_mut().zip(&mut *d_beta).zip(x).zip(dy) {
                *d_gamma = S::mul_add((x - mean) * rstd, dy, *d_gamma);
                *d_beta += dy;
            }
        }
    }
}
