//! Attention with its projections and adapter hooks.

use burn::tensor::Tensor;
use epiphyte_ops::{Angles, Keys, Prefix, Sequences, attention, fork, rotate};

use super::disentangled::Disentangled;
use super::{
    AttentionNames, AttentionShape, Linear, Norm, Projections, RelativeBias, RelativeEmbeddings,
};
use crate::adapter::{
    Adapter, AdapterBatch, AttentionKind, AttentionSite, Entry, ForwardContext, Hook, Role,
};
use crate::builder::Builder;

/// The projections of an attention and its shape.
#[derive(Clone, Debug)]
pub struct Attention {
    at: AttentionSite,
    shape: AttentionShape,
    input: Input,
    /// The norms of queries and keys, and the size of what is normalized.
    norms: Option<[(Norm, usize); 2]>,
    /// What projects embeddings of relative positions to keys and queries, where an attention does
    /// not do so with its own layers.
    position_projections: [Option<Linear>; 2],
    output: Linear,
}

/// The projections into an attention.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has a few of them")]
enum Input {
    Separate {
        query: Linear,
        key: Linear,
        value: Linear,
    },
    Fused(Linear),
}

/// What an attention reads.
pub(crate) struct AttentionInput<'a> {
    /// Where queries come from, `[tokens, hidden]`.
    pub(crate) x: Tensor<2>,
    /// The sequences that the rows of `x` form.
    pub(crate) rows: &'a Sequences,
    /// Where keys and values come from in cross-attention; none where caches have them.
    pub(crate) encoder: Option<(&'a Tensor<2>, &'a Sequences)>,
    /// The rows' rotary angles, for each rotary embedding of the model.
    pub(crate) angles: &'a [Angles],
    /// Added to the scores.
    pub(crate) bias: Option<&'a RelativeBias>,
    /// Embeddings of relative positions.
    pub(crate) positions: Option<&'a RelativeEmbeddings>,
}

impl Attention {
    /// Reads the projections, whose paths begin with `path`.
    pub(crate) fn build(
        builder: &mut Builder<'_>,
        path: &str,
        names: &AttentionNames,
        shape: &AttentionShape,
        hidden_size: usize,
        kind: AttentionKind,
    ) -> Self {
        let at = AttentionSite {
            layer: builder.layer().expect("attention is inside a layer"),
            kind,
        };
        let [query, key, value, output] = match kind {
            AttentionKind::Cross => [
                Role::CrossQuery,
                Role::CrossKey,
                Role::CrossValue,
                Role::CrossAttentionOutput,
            ],
            _ => [Role::Query, Role::Key, Role::Value, Role::AttentionOutput],
        };
        let (q_size, kv_size) = (shape.query_size(), shape.kv_size());
        let full = |name: &str| format!("{path}.{name}");
        let bias = shape.qkv_bias;
        let input = match shape.projections {
            Projections::Separate => Input::Separate {
                query: builder.linear(&full(names.query), query, [q_size, hidden_size], bias),
                key: builder.linear(&full(names.key), key, [kv_size, hidden_size], bias),
                value: builder.linear(&full(names.value), value, [kv_size, hidden_size], bias),
            },
            Projections::FusedConv1d => Input::Fused(builder.conv1d(
                &full(names.query),
                Role::QueryKeyValue,
                [q_size + 2 * kv_size, hidden_size],
            )),
            Projections::Fused | Projections::FusedByHead => Input::Fused(builder.linear(
                &full(names.query),
                Role::QueryKeyValue,
                [q_size + 2 * kv_size, hidden_size],
                bias,
            )),
        };
        let norms = shape.norms.zip(names.norms).map(|(norms, names)| {
            let sizes = match norms.per_head {
                true => [shape.head_dim; 2],
                false => [q_size, kv_size],
            };
            [0, 1].map(|which| {
                let size = sizes[which];
                let norm = Norm::build(builder, &full(names[which]), size, norms.shape);
                (norm, size)
            })
        });
        let own = shape.disentangled.filter(|it| !it.shares_projections);
        let position_projections = [
            own.filter(|it| it.content_to_position)
                .map(|_| ("pos_key_proj", key)),
            own.filter(|it| it.position_to_content)
                .map(|_| ("pos_query_proj", query)),
        ]
        .map(|projection| {
            projection.map(|(name, role)| {
                let path = names.query.rsplit_once('.').map_or("", |(path, _)| path);
                let path = full(&format!("{path}.{name}"));
                builder.linear(&path, role, [q_size, hidden_size], true)
            })
        });
        let output_path = full(names.output);
        let size = [hidden_size, q_size];
        let output = match shape.projections {
            Projections::FusedConv1d => builder.conv1d(&output_path, output, size),
            _ => builder.linear(&output_path, output, size, shape.output_bias),
        };
        Self {
            at,
            shape: shape.clone(),
            input,
            norms,
            position_projections,
            output,
        }
    }

    /// The attention's result before the output projection and its queries, both `[tokens, heads *
    /// head_dim]`, and its input for further readers.
    pub(crate) fn attend(
        &self,
        from: AttentionInput<'_>,
        batch: &AdapterBatch<'_>,
    ) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
        let AttentionInput {
            x,
            rows,
            encoder,
            angles,
            bias,
            positions,
        } = from;
        let (q, kv, read, x) = self.project(x, rows, encoder, batch);
        let key_rows = encoder.map(|(_, rows)| rows);
        let (q, kv) = self.normalize(q, kv, [rows, key_rows.unwrap_or(rows)], batch);
        let angles = angles.get(self.shape.rotary_set);
        let turn = |x: Tensor<2>| match angles.filter(|_| self.shape.rotary) {
            Some(angles) => rotate(x, angles, self.shape.head_dim),
            None => x,
        };
        let (q, kv) = (turn(q), kv.map(|[k, v]| [turn(k), v]));
        let mut hooks = vec![Hook::Attention(self.at), Hook::Prefix(self.at)];
        hooks.extend(bias.map(RelativeBias::hook));
        let positions = positions.and_then(|it| Some((it, self.shape.disentangled?)));
        if let Some((positions, _)) = positions {
            hooks.extend(positions.hooks());
            let projections = self.projections_of_positions().into_iter().flatten();
            hooks.extend(projections.flat_map(Linear::hooks));
        }
        let body = |(q, kv): (Tensor<2>, Option<[Tensor<2>; 2]>),
                    x: Tensor<2>,
                    key_rows: Option<Sequences>,
                    adapter: &dyn Adapter,
                    cx: &ForwardContext<'_>| {
            let prefix = adapter.prefix(self.at, &x, cx);
            let cache = |kind| cx.tokens.cache.filter(|_| self.at.kind == kind);
            let key = (self.at.kind, self.id());
            // Of an encoder's text all is kept as it was before the adapter's hook, which sees it
            // in each pass.
            let (kv, key_rows) = match cache(AttentionKind::Cross) {
                Some(cache) => {
                    let (kv, rows) = cache.extended(key, kv);
                    (Some(kv), Some(rows))
                }
                None => (kv, key_rows),
            };
            let [k, v] = kv.expect("only a cache has keys that are not given");
            let [q, k, v] = adapter.attention(self.at, [q, k, v], cx);
            let prefix_length = prefix.as_ref().map_or(0, Prefix::length);
            if let Some((positions, _)) = positions {
                let table = positions.get(adapter);
                let [keys, queries] = self.project_positions(table, adapter, cx);
                let scores = Disentangled {
                    positions,
                    keys,
                    queries,
                    attention: self.kernel_shape(),
                };
                return scores.attend([q, k, v], cx.rows, prefix, self.id());
            }
            let ([k, v], key_rows) = match cache(AttentionKind::Decoder) {
                Some(cache) => {
                    let (kv, rows) = cache.extended(key, Some([k, v]));
                    (kv, Some(rows))
                }
                None => ([k, v], key_rows),
            };
            let bias = bias.map(|bias| {
                let queries = cx.rows.longest();
                let keys = key_rows.as_ref().map_or(queries, Sequences::longest);
                bias.get(adapter, [queries, keys], prefix_length)
            });
            let keys = Keys {
                k,
                v,
                rows: key_rows,
                prefix,
                bias,
            };
            attention(&self.kernel_shape(), q, cx.rows, keys, self.id())
        };
        let queries = q.clone();
        let context = batch.map_attention(&hooks, (q, kv), read, (rows, key_rows), body);
        (context, queries, x)
    }

    /// The layers that project embeddings of relative positions to keys and to queries.
    fn projections_of_positions(&self) -> [Option<&Linear>; 2] {
        let shares = self.shape.disentangled.filter(|it| it.shares_projections);
        match (&self.input, shares) {
            (Input::Separate { query, key, .. }, Some(shape)) => [
                Some(key).filter(|_| shape.content_to_position),
                Some(query).filter(|_| shape.position_to_content),
            ],
            _ => self.position_projections.each_ref().map(Option::as_ref),
        }
    }

    /// Embeddings of relative positions as keys and as queries, as one adapter has them.
    fn project_positions(
        &self,
        table: Tensor<2>,
        adapter: &dyn Adapter,
        cx: &ForwardContext<'_>,
    ) -> [Option<Tensor<2>>; 2] {
        let rows = Sequences::new(vec![0, table.dims()[0]]);
        let batch = AdapterBatch::new([Entry {
            adapter,
            tokens: cx.tokens,
            mode: cx.mode,
            streams: cx.streams,
        }]);
        let [to_keys, to_queries] = fork(table);
        let [key, query] = self.projections_of_positions();
        [
            key.map(|key| key.forward(to_keys, &rows, &batch)),
            query.map(|query| query.forward(to_queries, &rows, &batch)),
        ]
    }

    fn kernel_shape(&self) -> epiphyte_ops::Attention {
        epiphyte_ops::Attention {
            heads: self.shape.heads,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.head_dim,
            scale: self.shape.scale,
            softcap: self.shape.softcap,
            causal: self.shape.causal,
            window: self.shape.window,
            dropout: self.shape.dropout,
        }
    }

    /// Queries, keys and values; the input twice more, for prefixes and for further readers.
    /// Cross-attention without an encoder's output has queries alone.
    fn project(
        &self,
        x: Tensor<2>,
        rows: &Sequences,
        encoder: Option<(&Tensor<2>, &Sequences)>,
        batch: &AdapterBatch<'_>,
    ) -> (Tensor<2>, Option<[Tensor<2>; 2]>, Tensor<2>, Tensor<2>) {
        match &self.input {
            Input::Separate { query, key, value } if self.at.kind == AttentionKind::Cross => {
                let [to_q, read, x] = fork(x);
                let q = query.forward(to_q, rows, batch);
                let kv = encoder.map(|(states, key_rows)| {
                    let [to_k, to_v] = fork(states.clone());
                    let k = key.forward(to_k, key_rows, batch);
                    [k, value.forward(to_v, key_rows, batch)]
                });
                (q, kv, read, x)
            }
            Input::Separate { query, key, value } => {
                let [to_q, to_k, to_v, read, x] = fork(x);
                let q = query.forward(to_q, rows, batch);
                let k = key.forward(to_k, rows, batch);
                let v = value.forward(to_v, rows, batch);
                (q, Some([k, v]), read, x)
            }
            Input::Fused(all) => {
                let [to_all, read, x] = fork(x);
                let all = all.forward(to_all, rows, batch);
                let (q_size, kv_size) = (self.shape.query_size(), self.shape.kv_size());
                let [q, k, v] = fork(all);
                let [q, k, v] = match self.shape.projections {
                    Projections::FusedByHead => [
                        self.of_each_head(q, 0),
                        self.of_each_head(k, 1),
                        self.of_each_head(v, 2),
                    ],
                    _ => [
                        q.narrow(1, 0, q_size),
                        k.narrow(1, q_size, kv_size),
                        v.narrow(1, q_size + kv_size, kv_size),
                    ],
                };
                (q, Some([k, v]), read, x)
            }
        }
    }

    /// The queries (0), keys (1) or values (2) of a projection that has all three head by head.
    fn of_each_head(&self, all: Tensor<2>, which: usize) -> Tensor<2> {
        let AttentionShape {
            heads, head_dim, ..
        } = self.shape;
        let tokens = all.dims()[0];
        let by_head = all.reshape([tokens, heads, 3 * head_dim]);
        let one = by_head.narrow(2, which * head_dim, head_dim);
        one.reshape([tokens, heads * head_dim])
    }

    /// Queries and keys with their norms, where the attention has these.
    fn normalize(
        &self,
        q: Tensor<2>,
        kv: Option<[Tensor<2>; 2]>,
        [rows, key_rows]: [&Sequences; 2],
        batch: &AdapterBatch<'_>,
    ) -> (Tensor<2>, Option<[Tensor<2>; 2]>) {
        let Some([(query_norm, query_size), (key_norm, key_size)]) = &self.norms else {
            return (q, kv);
        };
        let q = query_norm.forward_parts(q, *query_size, rows, batch);
        let kv = kv.map(|[k, v]| {
            let k = key_norm.forward_parts(k, *key_size, key_rows, batch);
            [k, v]
        });
        (q, kv)
    }

    /// The output projection, `[tokens, heads * head_dim]` to `[tokens, hidden]`.
    pub(crate) fn project_output(
        &self,
        context: Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> Tensor<2> {
        self.output.forward(context, rows, batch)
    }

    /// A key for random draws inside the attention.
    fn id(&self) -> u64 {
        match &self.input {
            Input::Separate { query, .. } => query.site().id(),
            Input::Fused(all) => all.site().id(),
        }
    }

    /// A key for random draws at the attention's output.
    pub(crate) fn output_id(&self) -> u64 {
        self.output.site().id()
    }
}
