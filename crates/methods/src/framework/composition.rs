//! Several adapters as one: each hook calls them in order.

use burn::tensor::Tensor;
use epiphyte_models::adapter::AttentionSite;
use epiphyte_models::{
    Adapter, Embedded, ForwardContext, Hidden, Hook, LazyLinear, Site, StandIn, Sublayer,
};
use epiphyte_ops::Prefix;

/// Adapters that act one after another at every hook: the second sees what the first returned.
///
/// A tensor of the base is replaced by the first adapter that has one for it, and the first prefix at
/// an attention wins; whoever composes checks that no two want the same.
#[derive(Clone, Copy)]
pub struct Chain<'a>(pub &'a [&'a dyn Adapter]);

impl Adapter for Chain<'_> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.0.iter().find_map(|adapter| adapter.parameter(name))
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0
            .iter()
            .fold(rows, |rows, adapter| adapter.lookup(table, ids, rows, cx))
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        self.0.iter().fold(embedded, |embedded, adapter| {
            adapter.embeddings(embedded, cx)
        })
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.0
            .iter()
            .fold(x, |x, adapter| adapter.linear_input(site, x, cx))
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let acting = self.0.iter().filter(|it| it.uses(Hook::Linear(site)));
        let acting: Vec<_> = acting.collect();
        let Some((last, before)) = acting.split_last() else {
            return product.compute();
        };
        let input = product.input().clone();
        let product = before.iter().fold(product, |product, adapter| {
            LazyLinear::done(input.clone(), adapter.linear(site, product, cx))
        });
        last.linear(site, product, cx)
    }

    fn attention(
        &self,
        at: AttentionSite,
        qkv: [Tensor<2>; 3],
        cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        self.0
            .iter()
            .fold(qkv, |qkv, adapter| adapter.attention(at, qkv, cx))
    }

    fn prefix_length(&self) -> usize {
        self.0.iter().map(|adapter| adapter.prefix_length()).sum()
    }

    fn virtual_tokens(&self) -> usize {
        self.0.iter().map(|adapter| adapter.virtual_tokens()).sum()
    }

    fn prefix(&self, at: AttentionSite, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        self.0.iter().find_map(|adapter| adapter.prefix(at, x, cx))
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.iter().fold(output, |output, adapter| {
            adapter.sublayer(sublayer, output, cx)
        })
    }

    fn hidden(&self, layer: usize, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.0
            .iter()
            .fold(hidden, |hidden, adapter| adapter.hidden(layer, hidden, cx))
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match self.0.split_last() {
            Some((last, before)) => {
                let norm = |states| Chain(before).final_norm(states, norm, cx);
                last.final_norm(states, &norm, cx)
            }
            None => norm(states),
        }
    }

    fn first_layer(&self) -> usize {
        let layers = self.0.iter().map(|adapter| adapter.first_layer());
        layers.min().unwrap_or(usize::MAX)
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.0.iter().any(|adapter| adapter.uses(hook))
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        self.0.iter().any(|adapter| adapter.mixes_rows(layer))
    }

    fn needs_base_pass(&self) -> bool {
        self.0.iter().any(|adapter| adapter.needs_base_pass())
    }
}
