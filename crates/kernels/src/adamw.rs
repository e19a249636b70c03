//! AdamW, one pass over flat buffers.
//!
//! Adam with decoupled weight decay (Loshchilov and Hutter 2019), in the operations and the order
//! of `torch.optim.AdamW`. One buffer may hold the parameters of many tensors: the update is
//! elementwise.

use crate::simd::kernel;
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;

/// The hyper-parameters, with the names of `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// `lr`, of this step.
    pub learning_rate: f64,
    /// `betas`: the decay of the mean gradient and of the mean squared gradient.
    pub betas: (f64, f64),
    /// `eps`, added to the root of the mean squared gradient.
    pub epsilon: f64,
    /// `weight_decay`: the share of a parameter that a step at learning rate 1 subtracts.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// The defaults of `torch.optim.AdamW`.
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

/// The factors of one step.
#[derive(Clone, Copy)]
struct Factors {
    decay: f32,
    first: f32,
    second: (f32, f32),
    root: f32,
    epsilon: f32,
    step: f32,
}

impl AdamW {
    /// Takes step number `step`, counted from 1: updates the `parameters`, the mean gradient `m`
    /// (`exp_avg`) and the mean squared gradient `v` (`exp_avg_sq`). `m` and `v` start as zeros.
    ///
    /// ```
    /// use epiphyte_kernels::adamw::AdamW;
    ///
    /// let (mut parameters, mut m, mut v) = (vec![1.0, 1.0], vec![0.0; 2], vec![0.0; 2]);
    /// let adamw = AdamW { learning_rate: 0.1, weight_decay: 0.0, ..AdamW::default() };
    /// adamw.step(1, &mut parameters, &[0.5, -0.5], &mut m, &mut v)?;
    /// // The first step has the length of the learning rate, against the gradient's sign.
    /// assert!((parameters[0] - 0.9).abs() < 1e-6 && (parameters[1] - 1.1).abs() < 1e-6);
    /// # Ok::<(), epiphyte_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// [`KernelError::Length`] when a slice is not as long as `parameters`,
    /// [`KernelError::Parameter`] for step 0.
    pub fn step(
        &self,
        step: u64,
        parameters: &mut [f32],
        gradients: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) -> Result<(), KernelError> {
        KernelError::check_length("gradients", gradients, &[parameters.len()])?;
        KernelError::check_length("m", m, &[parameters.len()])?;
        KernelError::check_length("v", v, &[parameters.len()])?;
        if step == 0 {
            let got = step.to_string();
            return Err(KernelError::Parameter {
                parameter: "step",
                got,
                allowed: "at least 1",
            });
        }
        let factors = self.factors(step);
        let states = m.chunks_mut(PART).zip(v.chunks_mut(PART));
        let parts = parameters
            .chunks_mut(PART)
            .zip(gradients.chunks(PART))
            .zip(states);
        threads::for_each(parts, |((parameters, gradients), (m, v))| {
            update(factors, parameters, gradients, m, v);
        });
        Ok(())
    }

    /// In f64, as Python does it, and then rounded.
    fn factors(&self, step: u64) -> Factors {
        let Self {
            learning_rate,
            betas: (beta_1, beta_2),
            epsilon,
            weight_decay,
        } = *self;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Factors {
            decay: (1.0 - learning_rate * weight_decay) as f32,
            first: (1.0 - beta_1) as f32,
            second: (beta_2 as f32, (1.0 - beta_2) as f32),
            root: correction(beta_2).sqrt() as f32,
            epsilon: epsilon as f32,
            step: (learning_rate / correction(beta_1)) as f32,
        }
    }
}

kernel! {
    fn update<S>(
        factors: Factors, parameters: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32],
    ) {
        let states = m.iter_mut().zip(v);
        for ((parameter, &gradient), (m, v)) in parameters.iter_mut().zip(gradients).zip(states) {
            *m = S::mul_add(factors.first, gradient - *m, *m);
            *v = S::mul_add(factors.second.1 * gradient, gradient, *v * factors.second.0);
            let denominator = v.sqrt() / factors.root + factors.epsilon;
            *parameter = *parameter * factors.decay - factors.step * (*m / denominator);
        }
    }
}
