//! Tensors and linear layers of the base, with their adapter hooks.

use burn::tensor::{Device, Int, Tensor};
use epiphyte_ops::{FrozenMatrix, Sequences, Weight, linear};

use crate::adapter::{
    Adapter, AdapterBatch, Entry, Hook, Identity, LazyLinear, Site, StandIn, concat, narrow,
};

/// A vector of the base, for which an adapter may put another.
#[derive(Clone, Debug)]
pub struct Vector {
    name: String,
    values: Tensor<1>,
}

impl Vector {
    pub(crate) fn new(name: &str, values: Tensor<1>) -> Self {
        Self {
            name: name.to_owned(),
            values,
        }
    }

    /// The hook by which an adapter replaces it.
    pub fn hook(&self) -> Hook<'_> {
        Hook::Parameter(&self.name)
    }

    /// The values to use in this pass.
    pub fn get(&self, adapter: &dyn Adapter) -> Tensor<1> {
        match adapter.parameter(&self.name) {
            Some(StandIn::Tensor(values)) => values,
            Some(StandIn::Frozen(matrix)) => matrix.to_tensor().flatten(0, 1),
            None => self.values.clone(),
        }
    }
}

/// A matrix of the base, for which an adapter may put another.
#[derive(Clone, Debug)]
pub struct Matrix {
    name: String,
    values: FrozenMatrix,
    transposed: bool,
}

impl Matrix {
    pub(crate) fn new(name: &str, values: FrozenMatrix, transposed: bool) -> Self {
        Self {
            name: name.to_owned(),
            values,
            transposed,
        }
    }

    /// Rows and columns; outputs and inputs for a linear layer.
    pub fn shape(&self) -> [usize; 2] {
        self.values.shape()
    }

    /// Whether Hugging Face stores it as `[in, out]`.
    pub(crate) fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// The hook by which an adapter replaces it.
    pub fn hook(&self) -> Hook<'_> {
        Hook::Parameter(&self.name)
    }

    /// The values to use in this pass.
    pub fn get(&self, adapter: &dyn Adapter) -> Weight {
        let [rows, columns] = self.shape();
        match adapter.parameter(&self.name) {
            Some(StandIn::Tensor(values)) if self.transposed => {
                Weight::Trained(values.reshape([columns, rows]).transpose())
            }
            Some(StandIn::Tensor(values)) => Weight::Trained(values.reshape([rows, columns])),
            Some(StandIn::Frozen(matrix)) => Weight::Frozen(matrix),
            None => Weight::Frozen(self.values.clone()),
        }
    }

    /// Looks up rows of an embedding table, `[ids, hidden]`, as the entry's adapter has it.
    pub fn look_up(&self, ids: &[u32], entry: &Entry<'_>, rows: &Sequences) -> Tensor<2> {
        let found = self.get(entry.adapter).gather(ids);
        entry
            .adapter
            .lookup(&self.name, ids, found, &entry.context(rows))
    }
}

/// A linear layer of the base with its adapter hooks.
#[derive(Clone, Debug)]
pub struct Linear {
    site: Site,
    weight: Matrix,
    bias: Option<Vector>,
}

impl Linear {
    pub(crate) fn new(site: Site, weight: Matrix, bias: Option<Vector>) -> Self {
        Self { site, weight, bias }
    }

    /// Where it stands.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The layer as the batch's adapters have it. The product with the frozen weight is shared by
    /// all adapters that leave the weight in place.
    ///
    /// # Shapes
    /// - `x`: `[tokens, in]`
    /// - result: `[tokens, out]`
    pub fn forward(&self, x: Tensor<2>, rows: &Sequences, batch: &AdapterBatch<'_>) -> Tensor<2> {
        if !self.hooks().any(|hook| batch.uses(hook)) {
            return self.product(x, &Identity).compute();
        }
        if let [only] = batch.entries() {
            let cx = only.context(rows);
            let x = only.adapter.linear_input(&self.site, x, &cx);
            let product = self.product(x, only.adapter);
            return only.adapter.linear(&self.site, product, &cx);
        }
        self.forward_several(&x, rows, batch)
    }

    fn forward_several(
        &self,
        x: &Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        let parts = batch.per_adapter(rows);
        let inputs: Vec<Tensor<2>> = parts
            .iter()
            .map(|(entry, own, range)| {
                let x = narrow(x, range);
                entry
                    .adapter
                    .linear_input(&self.site, x, &entry.context(own))
            })
            .collect();
        let shares: Vec<bool> = parts
            .iter()
            .map(|(entry, ..)| !self.is_replaced(entry.adapter))
            .collect();
        let sharing = inputs.iter().zip(&shares).filter(|(_, shares)| **shares);
        let sharing: Vec<Tensor<2>> = sharing.map(|(input, _)| input.clone()).collect();
        let shared =
            (!sharing.is_empty()).then(|| self.product(concat(sharing), &Identity).compute());
        let mut start = 0;
        let outputs =
            parts
                .iter()
                .zip(inputs)
                .zip(shares)
                .map(|(((entry, own, _), input), shares)| {
                    let product = match &shared {
                        Some(shared) if shares => {
                            let range = start..start + input.dims()[0];
                            start = range.end;
                            LazyLinear::done(input, narrow(shared, &range))
                        }
                        _ => self.product(input, entry.adapter),
                    };
                    entry
                        .adapter
                        .linear(&self.site, product, &entry.context(own))
                });
        concat(outputs.collect())
    }

    /// The product with the weight and bias that the adapter has here.
    fn product(&self, x: Tensor<2>, adapter: &dyn Adapter) -> LazyLinear {
        let bias = self.bias.as_ref().map(|bias| bias.get(adapter));
        LazyLinear::pending(x, self.weight.get(adapter), bias)
    }

    /// Whether the adapter has a weight or bias of its own here.
    fn is_replaced(&self, adapter: &dyn Adapter) -> bool {
        let names = [
            Some(&self.weight.name),
            self.bias.as_ref().map(|bias| &bias.name),
        ];
        let mut names = names.into_iter().flatten();
        names.any(|name| adapter.parameter(name).is_some())
    }

    /// The hooks at this layer.
    pub(crate) fn hooks(&self) -> impl Iterator<Item = Hook<'_>> {
        let weight = self.weight.hook();
        let bias = self.bias.as_ref().map(Vector::hook);
        [Some(Hook::Linear(&self.site)), Some(weight), bias]
            .into_iter()
            .flatten()
    }

    /// Some of the outputs, by their numbers: `[tokens, outputs]`. Where an adapter acts on the
    /// layer itself, and not only on its tensors, all are computed.
    pub fn forward_some(
        &self,
        x: Tensor<2>,
        outputs: &[u32],
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        let columns: Vec<i32> = outputs.iter().map(|&output| output as i32).collect();
        let columns = |device: &Device| Tensor::<1, Int>::from_ints(columns.as_slice(), device);
        match batch.entries() {
            [only] if !batch.uses(Hook::Linear(&self.site)) => {
                let weight = Weight::Trained(self.weight.get(only.adapter).gather(outputs));
                let bias = self.bias.as_ref().map(|bias| bias.get(only.adapter));
                let bias = bias.map(|bias| {
                    let device = bias.device();
                    bias.select(0, columns(&device))
                });
                linear(x, &weight, bias)
            }
            _ => {
                let all = self.forward(x, rows, batch);
                let device = all.device();
                all.select(1, columns(&device))
            }
        }
    }

    /// The weight to use in this pass, for a head whose loss is computed in pieces.
    pub fn weight(&self, adapter: &dyn Adapter) -> Weight {
        self.weight.get(adapter)
    }
}
