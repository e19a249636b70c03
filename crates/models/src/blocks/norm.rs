//! Norms with their adapter hooks.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, add, add_layer_norm, layer_norm, rms_norm};

use super::{NormShape, Vector};
use crate::adapter::{Adapter, AdapterBatch, Hook};
use crate::builder::Builder;

/// Layer norm or RMS norm over the hidden size.
#[derive(Clone, Debug)]
pub struct Norm {
    weight: Vector,
    shift: Shift,
    epsilon: f64,
    offset: f32,
}

/// What is added to normalized rows.
#[derive(Clone, Debug)]
enum Shift {
    /// Nothing, and rows are not centered: RMS norm.
    Rms,
    /// Nothing, in a layer norm: zeros.
    Zeros(Tensor<1>),
    /// A layer norm's bias.
    Bias(Vector),
}

impl Norm {
    /// The norm whose tensors are `{path}.weight` and, for layer norm with a shift, `{path}.bias`,
    /// `[size]` each.
    pub fn build(builder: &mut Builder<'_>, path: &str, size: usize, shape: NormShape) -> Self {
        Self {
            weight: builder.norm_vector(&format!("{path}.weight"), size),
            shift: match shape {
                NormShape { rms: true, .. } => Shift::Rms,
                NormShape { shift: false, .. } => Shift::Zeros(builder.zeros(size)),
                _ => Shift::Bias(builder.norm_vector(&format!("{path}.bias"), size)),
            },
            epsilon: shape.epsilon,
            offset: shape.offset,
        }
    }

    /// `Norm(x)`, as each adapter of the batch has it.
    pub fn forward(&self, x: Tensor<2>, rows: &Sequences, batch: &AdapterBatch<'_>) -> Tensor<2> {
        batch.map(&self.hooks(), [x], rows, |[x], adapter, _| {
            self.apply(x, adapter)
        })
    }

    /// `Norm(x)` after the last layer, and what `then` makes of it, where an adapter may have a
    /// norm of its own ([`Adapter::final_norm`]).
    pub fn forward_final(
        &self,
        x: Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
        then: impl Fn(Tensor<2>, &Sequences) -> Tensor<2>,
    ) -> Tensor<2> {
        let mut hooks = self.hooks();
        hooks.push(Hook::FinalNorm);
        batch.map(&hooks, [x], rows, |[x], adapter, cx| {
            let norm = |x| then(self.apply(x, adapter), cx.rows);
            adapter.final_norm(x, &norm, cx)
        })
    }

    /// `Norm(x)` of each run of `size` elements of a row by itself, as each adapter of the batch
    /// has it.
    pub(crate) fn forward_parts(
        &self,
        x: Tensor<2>,
        size: usize,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        batch.map(&self.hooks(), [x], rows, |[x], adapter, _| {
            let [tokens, width] = x.dims();
            let parts = x.reshape([tokens * width / size, size]);
            self.apply(parts, adapter).reshape([tokens, width])
        })
    }

    /// The scale as one adapter has it.
    fn scale(&self, adapter: &dyn Adapter) -> Tensor<1> {
        let weight = self.weight.get(adapter);
        match self.offset {
            0.0 => weight,
            offset => weight + offset,
        }
    }

    /// The shift as one adapter has it; none for RMS norm.
    fn shift(&self, adapter: &dyn Adapter) -> Option<Tensor<1>> {
        match &self.shift {
            Shift::Rms => None,
            Shift::Zeros(zeros) => Some(zeros.clone()),
            Shift::Bias(bias) => Some(bias.get(adapter)),
        }
    }

    /// `Norm(x)` for one adapter.
    pub(crate) fn apply(&self, x: Tensor<2>, adapter: &dyn Adapter) -> Tensor<2> {
        let weight = self.scale(adapter);
        match self.shift(adapter) {
            Some(shift) => layer_norm(x, weight, shift, self.epsilon),
            None => rms_norm(x, weight, self.epsilon),
        }
    }

    /// `Norm(x + residual)` for one adapter.
    pub(crate) fn apply_sum(
        &self,
        x: Tensor<2>,
        residual: Tensor<2>,
        adapter: &dyn Adapter,
    ) -> Tensor<2> {
        let weight = self.scale(adapter);
        match self.shift(adapter) {
            Some(shift) => add_layer_norm(x, residual, weight, shift, self.epsilon),
            None => rms_norm(add(residual, x), weight, self.epsilon),
        }
    }

    /// The hooks at this norm.
    pub(crate) fn hooks(&self) -> Vec<Hook<'_>> {
        let bias = match &self.shift {
            Shift::Bias(bias) => Some(bias),
            Shift::Rms | Shift::Zeros(_) => None,
        };
        let vectors = std::iter::once(&self.weight).chain(bias);
        vectors.map(Vector::hook).collect()
    }
}
