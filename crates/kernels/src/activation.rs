//! Element-wise activations and gated units, forward and backward.
//!
//! The backward pass takes the input x, not the output: x is what a product's epilogue leaves,
//! and the derivative is computed again instead of being stored.
//!
//! ```
//! use epiphyte_kernels::activation::Activation;
//!
//! let x = [-1.0, 0.0, 2.0];
//! let mut y = [0.0; 3];
//! Activation::Relu.forward(&x, &mut y)?;
//! assert_eq!(y, [0.0, 0.0, 2.0]);
//! let mut gradient = [1.0; 3];
//! Activation::Relu.backward(&x, &mut gradient)?;
//! assert_eq!(gradient, [0.0, 0.0, 1.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::math::{clamp, exp, normal_cdf, sigmoid, tanh};
use crate::simd::{Simd, kernel};
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;

/// An element-wise function, named as in `transformers.activations.ACT2FN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `gelu`: x Φ(x), with the normal distribution function Φ (Hendrycks and Gimpel 2016).
    GeluErf,
    /// `gelu_new`, `gelu_pytorch_tanh`: x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2.
    GeluTanh,
    /// `relu`: max(x, 0).
    Relu,
    /// `silu`: x / (1 + e^-x).
    Silu,
    /// `tanh`.
    Tanh,
    /// `e^x`, which is no activation there.
    Exp,
}

/// An activation as a type, so that loops are compiled with it inside.
trait Curve {
    fn value<S: Simd>(x: f32) -> f32;
    fn slope<S: Simd>(x: f32) -> f32;
}

struct GeluErf;
struct GeluTanh;
struct Relu;
struct Silu;
struct Tanh;
struct Exp;

impl Curve for GeluErf {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * normal_cdf::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        const DENSITY_AT_0: f32 = 0.398_942_3; // 1 / √(2π)
        let density = DENSITY_AT_0 * exp::<S>(-0.5 * x * x);
        S::mul_add(x, density, normal_cdf::<S>(x))
    }
}

impl GeluTanh {
    const SCALE: f32 = 1.595_769; // 2 √(2/π)
    const CUBIC: f32 = 0.044_715;
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        // (1 + tanh(u)) / 2 is the sigmoid of 2u.
        x * sigmoid::<S>(Self::SCALE * x * S::mul_add(Self::CUBIC * x, x, 1.0))
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        // Flat beyond; holding x there keeps infinity times zero out.
        let x = clamp(x, -10.0, 10.0);
        let e = exp::<S>(-Self::SCALE * x * S::mul_add(Self::CUBIC * x, x, 1.0));
        let s = 1.0 / (1.0 + e);
        let inner = Self::SCALE * S::mul_add(3.0 * Self::CUBIC * x, x, 1.0);
        // e s is 1 - s without the cancellation.
        S::mul_add(x * inner, e * s * s, s)
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        if x < 0.0 { 0.0 } else { x }
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        let slope = if x > 0.0 { 1.0 } else { 0.0 };
        // NaN has no slope.
        if x.is_nan() { x } else { slope }
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        x * sigmoid::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        let s = sigmoid::<S>(x);
        S::mul_add(x * s, 1.0 - s, s)
    }
}

impl Curve for Tanh {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        tanh::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        let y = tanh::<S>(x);
        S::mul_add(-y, y, 1.0)
    }
}

impl Curve for Exp {
    #[inline(always)]
    fn value<S: Simd>(x: f32) -> f32 {
        exp::<S>(x)
    }

    #[inline(always)]
    fn slope<S: Simd>(x: f32) -> f32 {
        exp::<S>(x)
    }
}

/// Calls a kernel with the activation as its type.
macro_rules! by_curve {
    ($activation:expr, $kernel:ident($($argument:expr),*)) => {
        match $activation {
            Activation::GeluErf => $kernel::<GeluErf>($($argument),*),
            Activation::GeluTanh => $kernel::<GeluTanh>($($argument),*),
            Activation::Relu => $kernel::<Relu>($($argument),*),
            Activation::Silu => $kernel::<Silu>($($argument),*),
            Activation::Tanh => $kernel::<Tanh>($($argument),*),
            Activation::Exp => $kernel::<Exp>($($argument),*),
        }
    };
}

impl Activation {
    /// `y = f(x)`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `y` is not as long as `x`.
    pub fn forward(self, x: &[f32], y: &mut [f32]) -> Result<(), KernelError> {
        KernelError::check_length("y", y, &[x.len()])?;
        threads::for_each(x.chunks(PART).zip(y.chunks_mut(PART)), |(x, y)| {
            by_curve!(self, values(x, y));
        });
        Ok(())
    }

    /// Multiplies `gradient`, that of f(x), by f'(x), which makes it that of x.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `gradient` is not as long as `x`.
    pub fn backward(self, x: &[f32], gradient: &mut [f32]) -> Result<(), KernelError> {
        KernelError::check_length("gradient", gradient, &[x.len()])?;
        threads::for_each(
            x.chunks(PART).zip(gradient.chunks_mut(PART)),
            |(x, gradient)| by_curve!(self, slopes(x, gradient)),
        );
        Ok(())
    }

    /// The gated unit `y = f(gate) up` (Shazeer 2020): SwiGLU with [`Activation::Silu`], GeGLU
    /// with a GELU.
    ///
    /// # Errors
    /// [`KernelError::Length`] when `up` or `y` is not as long as `gate`.
    pub fn gated_forward(self, gate: &[f32], up: &[f32], y: &mut [f32]) -> Result<(), KernelError> {
        KernelError::check_length("up", up, &[gate.len()])?;
        KernelError::check_length("y", y, &[gate.len()])?;
        let parts = gate
            .chunks(PART)
            .zip(up.chunks(PART))
            .zip(y.chunks_mut(PART));
        threads::for_each(parts, |((gate, up), y)| {
            by_curve!(self, gated_values(gate, up, y))
        });
        Ok(())
    }

    /// Changes `gradient`, that of [`Activation::gated_forward`]'s result, to that of `up`,
    /// `dy f(gate)`, and writes that of `gate`, `dy up f'(gate)`, to `d_gate`.
    ///
    /// # Errors
    /// [`KernelError::Length`] when a slice is not as long as `gate`.
    pub fn gated_backward(
        self,
        gate: &[f32],
        up: &[f32],
        gradient: &mut [f32],
        d_gate: &mut [f32],
    ) -> Result<(), KernelError> {
        KernelError::check_length("up", up, &[gate.len()])?;
        KernelError::check_length("gradient", gradient, &[gate.len()])?;
        KernelError::check_length("d_gate", d_gate, &[gate.len()])?;
        let inputs = gate.chunks(PART).zip(up.chunks(PART));
        let gradients = gradient.chunks_mut(PART).zip(d_gate.chunks_mut(PART));
        threads::for_each(inputs.zip(gradients), |((gate, up), (gradient, d_gate))| {
            by_curve!(self, gated_slopes(gate, up, gradient, d_gate));
        });
        Ok(())
    }
}

kernel! {
    fn values<S, C: Curve>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = C::value::<S>(x);
        }
    }
}

kernel! {
    fn slopes<S, C: Curve>(x: &[f32], gradient: &mut [f32]) {
        for (gradient, &x) in gradient.iter_mut().zip(x) {
            *gradient *= C::slope::<S>(x);
        }
    }
}

kernel! {
    fn gated_values<S, C: Curve>(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = C::value::<S>(gate) * up;
        }
    }
}

kernel! {
    fn gated_slopes<S, C: Curve>(
        gate: &[f32], up: &[f32], gradient: &mut [f32], d_gate: &mut [f32],
    ) {
        let gradients = gradient.iter_mut().zip(d_gate);
        for ((gradient, d_gate), (&gate, &up)) in gradients.zip(gate.iter().zip(up)) {
            *d_gate = *gradient * up * C::slope::<S>(gate);
            *gradient *= C::value::<S>(gate);
        }
    }
}
