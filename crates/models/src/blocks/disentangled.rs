//! Attention whose scores read embeddings of relative positions (He et al. 2021, "DeBERTa", arXiv
//! 2006.03654, section 3.1).
//!
//! The score of query `i` and key `j` is `qᵢ·kⱼ + qᵢ·Kᵣ[δ(i, j)] + kⱼ·Qᵣ[δ(j, i)]`, times one
//! scale, where `Kᵣ` and `Qᵣ` are projections of a table of embeddings and `δ` is the bucket of a
//! distance. Both sums depend on the sequence, so they are computed sequence by sequence and given
//! to the attention as its bias. Keys of a prefix have no position: nothing is added to their
//! scores.

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_ops::{Attention, Keys, Prefix, Sequences, attention, fork};

use super::{Matrix, Norm};
use crate::adapter::{Adapter, Hook, concat, narrow};
use crate::builder::Builder;

/// Which products with relative positions scores have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DisentangledShape {
    /// Queries with keys of positions: `c2p` in `pos_att_type`.
    pub content_to_position: bool,
    /// Keys with queries of positions: `p2c`.
    pub position_to_content: bool,
    /// Whether positions are projected by the layers of queries and keys: `share_att_key`.
    pub shares_projections: bool,
}

impl DisentangledShape {
    /// What scores are multiplied by: one over the root of the head's size times the number of
    /// products.
    pub(crate) fn scale(self, head_dim: usize) -> f32 {
        let products =
            1 + usize::from(self.content_to_position) + usize::from(self.position_to_content);
        (1.0 / ((head_dim * products) as f64).sqrt()) as f32
    }
}

/// The embeddings of relative positions, which all layers share.
#[derive(Clone, Debug)]
pub struct RelativeEmbeddings {
    /// `[2 * span, hidden]`, the row of distance 0 in the middle.
    table: Matrix,
    norm: Option<Norm>,
    span: usize,
    /// The number of buckets of distances; each distance has its own row where there is none.
    buckets: Option<usize>,
    max_position: usize,
}

impl RelativeEmbeddings {
    /// Reads the table `name` for distances up to `max_position`.
    pub(crate) fn build(
        builder: &mut Builder<'_>,
        name: &str,
        hidden_size: usize,
        buckets: Option<usize>,
        max_position: usize,
    ) -> Self {
        let span = buckets.unwrap_or(max_position);
        Self {
            table: builder.matrix(name, [2 * span, hidden_size]),
            norm: None,
            span,
            buckets,
            max_position,
        }
    }

    /// The same with a norm over each row.
    pub(crate) fn normalized(self, norm: Norm) -> Self {
        Self {
            norm: Some(norm),
            ..self
        }
    }

    /// The hooks by which an adapter changes the table and its norm.
    pub(crate) fn hooks(&self) -> Vec<Hook<'_>> {
        let norm = self.norm.iter().flat_map(Norm::hooks);
        std::iter::once(self.table.hook()).chain(norm).collect()
    }

    /// The embeddings as the adapter has them, `[2 * span, hidden]`.
    pub(crate) fn get(&self, adapter: &dyn Adapter) -> Tensor<2> {
        let ids: Vec<u32> = (0..2 * self.span as u32).collect();
        let table = self.table.get(adapter).gather(&ids);
        match &self.norm {
            Some(norm) => norm.apply(table, adapter),
            None => table,
        }
    }

    /// The row of a token `distance` positions before another, negative if it is after.
    fn row(&self, distance: i64) -> i32 {
        let last = 2 * self.span as i64 - 1;
        (self.bucket(distance) + self.span as i64).clamp(0, last) as i32
    }

    /// As in transformers, in `f32`: near distances have a bucket each, the others grow
    /// logarithmically up to `max_position`.
    fn bucket(&self, distance: i64) -> i64 {
        let Some(buckets) = self.buckets else {
            return distance;
        };
        let middle = (buckets / 2) as i64;
        if distance.abs() <= middle {
            return distance;
        }
        let octaves = ((self.max_position - 1) as f64 / middle as f64) as f32;
        let growth = (distance.abs() as f32 / middle as f32).ln() / octaves.ln();
        let bucket = (growth * (middle - 1) as f32).ceil() as i64 + middle;
        bucket * distance.signum()
    }
}

/// Scores of one layer, as one adapter has them.
pub(super) struct Disentangled<'a> {
    pub(super) positions: &'a RelativeEmbeddings,
    /// Positions as keys, `[2 * span, heads * head_dim]`.
    pub(super) keys: Option<Tensor<2>>,
    /// Positions as queries, likewise.
    pub(super) queries: Option<Tensor<2>>,
    pub(super) attention: Attention,
}

impl Disentangled<'_> {
    /// The attention's result, `[tokens, heads * head_dim]`.
    pub(super) fn attend(
        &self,
        [q, k, v]: [Tensor<2>; 3],
        rows: &Sequences,
        prefix: Option<Prefix>,
        site: u64,
    ) -> Tensor<2> {
        if rows.tokens() == 0 {
            return q;
        }
        let outputs = (0..rows.count()).map(|sequence| {
            let own = rows.part(sequence..sequence + 1);
            let range = rows.range(&(sequence..sequence + 1));
            let [q, k, v] = [&q, &k, &v].map(|x| narrow(x, &range));
            let ([q, to_positions], [k, from_positions]) = (fork(q), fork(k));
            let prefix = prefix.as_ref().map(|prefix| prefix.part(sequence));
            let columns = prefix.as_ref().map_or(0, Prefix::length);
            let keys = Keys {
                prefix,
                bias: self.bias(to_positions, from_positions, columns),
                ..Keys::new(k, v)
            };
            attention(&self.attention, q, &own, keys, site)
        });
        concat(outputs.collect())
    }

    /// What is added to the scores of one sequence, `[heads, tokens, prefix + tokens]`.
    fn bias(&self, q: Tensor<2>, k: Tensor<2>, prefix: usize) -> Option<Tensor<3>> {
        let tokens = q.dims()[0];
        let (heads, scale) = (self.attention.heads, self.attention.scale);
        // Of each head, the products of the rows of `content` with those rows of `positions` that
        // belong to their distances from all tokens.
        let products = |content: Tensor<2>, positions: &Tensor<2>, sign: i64| {
            let products = self
                .of_heads(content)
                .matmul(self.of_heads(positions.clone()).transpose());
            let distances = (0..tokens as i64)
                .flat_map(|row| (0..tokens as i64).map(move |column| sign * (row - column)));
            let rows = distances.map(|distance| self.positions.row(distance));
            let rows: Vec<i32> = rows.collect();
            let index = TensorData::new(rows.repeat(heads), [heads, tokens, tokens]);
            let index = Tensor::<3, Int>::from_data(index, &products.device());
            products.gather(2, index)
        };
        let content_to_position = self.keys.as_ref().map(|keys| products(q, keys, 1));
        // Here rows are keys: the distance is that of the query from the key.
        let position_to_content = self
            .queries
            .as_ref()
            .map(|queries| products(k, queries, -1).transpose());
        let sum = match (content_to_position, position_to_content) {
            (Some(a), Some(b)) => a + b,
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return None,
        };
        let sum = sum * scale;
        Some(match prefix {
            0 => sum,
            prefix => {
                let zeros = Tensor::zeros([heads, tokens, prefix], &sum.device());
                Tensor::cat(vec![zeros, sum], 2)
            }
        })
    }

    /// `[rows, heads * head_dim]` as `[heads, rows, head_dim]`.
    fn of_heads(&self, x: Tensor<2>) -> Tensor<3> {
        let [rows, _] = x.dims();
        let (heads, head_dim) = (self.attention.heads, self.attention.head_dim);
        x.reshape([rows, heads, head_dim]).swap_dims(0, 1)
    }
}
