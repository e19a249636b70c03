//! How a block's output is added to the residual stream.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, add};

use super::Norm;
use crate::adapter::{Adapter, AdapterBatch, Block, ForwardContext, Hook, Sublayer};

/// What is added where.
pub(crate) struct Residual<'a> {
    pub(crate) layer: usize,
    pub(crate) block: Block,
    /// The norm after the addition, if there is one.
    pub(crate) norm_after: Option<&'a Norm>,
}

impl Residual<'_> {
    /// Offers the block's output to the adapters, adds it to the residual stream, and normalizes if
    /// the norm comes after.
    ///
    /// # Shapes
    /// - `input` (the block's input), `residual`, `output`, result: `[tokens, hidden]`
    /// - `queries`, of an attention: `[tokens, heads * head_dim]`
    pub(crate) fn add(
        &self,
        [input, residual, output]: [Tensor<2>; 3],
        queries: Option<Tensor<2>>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        let mut hooks = vec![Hook::Sublayer(self.layer, self.block)];
        hooks.extend(self.norm_after.into_iter().flat_map(Norm::hooks));
        let body = |[input, residual, output]: [Tensor<2>; 3],
                    queries: Option<&Tensor<2>>,
                    adapter: &dyn Adapter,
                    cx: &ForwardContext<'_>| {
            let add_residual = |output: Tensor<2>| match self.norm_after {
                Some(norm) => norm.apply_sum(output, residual.clone(), adapter),
                None => add(residual.clone(), output),
            };
            let sublayer = Sublayer {
                layer: self.layer,
                block: self.block,
                input: &input,
                residual: &residual,
                queries,
                add_residual: &add_residual,
            };
            let states = add_residual(adapter.sublayer(&sublayer, output, cx));
            adapter.after_block(self.layer, self.block, states, cx)
        };
        match queries {
            Some(queries) => {
                let all = [input, residual, output, queries];
                batch.map(
                    &hooks,
                    all,
                    rows,
                    |[x, residual, output, q], adapter, cx| {
                        body([x, residual, output], Some(&q), adapter, cx)
                    },
                )
            }
            None => batch.map(
                &hooks,
                [input, residual, output],
                rows,
                |states, adapter, cx| body(states, None, adapter, cx),
            ),
        }
    }
}
