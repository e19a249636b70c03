//! What LoRA and its variants act on: linear layers, each with a delta of the variant, the word
//! embeddings, and tensors of the base that are trained whole with them.

use burn::tensor::{Int, Tensor};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, Site, StandIn};
use epiphyte_ops::{Weight, linear};

use crate::framework::parameters::Param;
use crate::parts::delta::{Delta, Deltas};
use crate::parts::replace::Replaced;
use crate::{Method, MethodError};

/// LoRA, or a variant whose delta of a linear layer is `D`.
#[derive(Debug)]
pub(crate) struct LowRankLayers<D> {
    pub(crate) linears: Deltas<D>,
    pub(crate) words: Option<WordPath>,
    pub(crate) whole: Replaced,
}

/// LoRA of the word embeddings: `E[id] + s · B A[:, id]`.
#[derive(Debug)]
pub(crate) struct WordPath {
    /// The name of the table, `[vocabulary, hidden]`.
    pub(crate) table: String,
    /// `[r, vocabulary]`
    pub(crate) a: Param,
    /// `[hidden, r]`
    pub(crate) b: Param,
    pub(crate) scaling: f32,
}

impl WordPath {
    /// What is added to the rows of these ids, `[ids, hidden]`.
    fn change(&self, ids: &[u32]) -> Tensor<2> {
        let a = self.a.get::<2>();
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &a.device());
        let columns = a.select(1, ids).transpose();
        linear(columns, &Weight::Trained(self.b.get()), None) * self.scaling
    }

    /// The changed table.
    fn merged(&self, table: Tensor<2>) -> Tensor<2> {
        let change = self.b.get::<2>().inner().matmul(self.a.get::<2>().inner());
        table + change.transpose() * self.scaling
    }
}

impl<D: Delta> LowRankLayers<D> {
    /// What the method itself makes of a tensor of `base`.
    fn change(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        if let Some(words) = self.words.as_ref().filter(|words| words.table == name) {
            let table = base.tensor(name).map(|table| (table, table.to_matrix()));
            if let Some((table, Some(matrix))) = table {
                return Ok(Some(table.flatten(words.merged(matrix))));
            }
        }
        if base.tied_head().as_deref() == Some(name) {
            return Ok(self.tied_head(name, base));
        }
        self.linears.merged(name, base)
    }

    /// The weight of a head that is tied to the word embeddings, where only one of the two changes.
    fn tied_head(&self, name: &str, base: &Base) -> Option<Tensor<1>> {
        let delta = name
            .strip_suffix(".weight")
            .and_then(|path| self.linears.get(path));
        let table = base.tensor(&base.word_embeddings)?;
        match (delta, &self.words) {
            (Some(delta), _) => Some(table.flatten(delta.weight(table.to_matrix()?))),
            (None, Some(_)) => Some(table.to_flat()),
            (None, None) => None,
        }
    }
}

impl<D: Delta> Adapter for LowRankLayers<D> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.whole.parameter(name)
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match self.words.as_ref().filter(|words| words.table == table) {
            Some(words) => rows + words.change(ids),
            None => rows,
        }
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.linears.linear_input(site, x, cx)
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.linears.linear(site, product, cx)
    }

    fn first_layer(&self) -> usize {
        let words = self.words.as_ref().map_or(usize::MAX, |_| 0);
        let others = self.linears.first_layer().min(self.whole.first_layer());
        others.min(words)
    }

    fn adapts_language_head(&self) -> bool {
        self.linears.adapts_language_head()
    }

    fn reads_whole_sequences(&self) -> bool {
        self.linears.reads_whole_sequences()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.linears.uses(hook) || self.whole.uses(hook)
    }
}

impl<D: Delta> Method for LowRankLayers<D> {
    fn penalty(&self) -> Option<Tensor<1>> {
        self.linears.penalty()
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        match self.whole.merged(name, base)? {
            Some(whole) => {
                let changed = self.change(name, &base.with_values(name, whole.clone()))?;
                Ok(Some(changed.unwrap_or(whole)))
            }
            None => self.change(name, base),
        }
    }

    fn changed(&self) -> usize {
        let words = self.words.as_ref().map(|words| {
            let [hidden, vocabulary] = [words.b.shape()[0], words.a.shape()[1]];
            hidden * vocabulary
        });
        self.linears.changed() + words.unwrap_or(0) + self.whole.changed()
    }
}
