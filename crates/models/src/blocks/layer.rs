//! A transformer layer: self-attention, cross-attention if there is an encoder, feed-forward.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, dropout, fork};

use super::attention::AttentionInput;
use super::residual::Residual;
use super::{
    Attention, FeedForward, LayerShape, Norm, NormPlacement, RelativeBias, RelativeEmbeddings,
};
use crate::adapter::{AdapterBatch, AttentionKind, Block, Hidden, Hook};
use crate::builder::Builder;

/// How a family names the tensors of a layer, each below the layer's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNames {
    /// Self-attention.
    pub attention: AttentionNames,
    /// The norm before or after self-attention.
    pub attention_norm: &'static str,
    /// Cross-attention and its norm.
    pub cross_attention: Option<(AttentionNames, &'static str)>,
    /// The feed-forward network.
    pub feed_forward: FeedForwardNames,
    /// The norm before or after the feed-forward network.
    pub feed_forward_norm: &'static str,
    /// The norms of the outputs of self-attention and feed-forward, where these have one before
    /// them too ([`NormPlacement::Around`]).
    pub output_norms: Option<[&'static str; 2]>,
}

/// How a family names the projections of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionNames {
    /// Queries, or queries, keys and values in one matrix.
    pub query: &'static str,
    /// Keys; not read where one matrix holds all three.
    pub key: &'static str,
    /// Values; not read where one matrix holds all three.
    pub value: &'static str,
    /// The output projection.
    pub output: &'static str,
    /// The norms of queries and keys.
    pub norms: Option<[&'static str; 2]>,
}

/// How a family names the linear layers of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForwardNames {
    /// The gate, for gated networks.
    pub gate: Option<&'static str>,
    /// To the intermediate size; the gate too where one layer has both.
    pub up: &'static str,
    /// Back to the hidden size.
    pub down: &'static str,
}

/// A transformer layer with every adapter hook.
#[derive(Clone, Debug)]
pub struct Layer {
    index: usize,
    attention: Attention,
    attention_norms: BlockNorms,
    cross_attention: Option<(Attention, BlockNorms)>,
    feed_forward: FeedForward,
    feed_forward_norms: BlockNorms,
    parallel: bool,
    dropout: f64,
    attention_dropout: f64,
}

/// The norms of a block.
#[derive(Clone, Debug, Default)]
struct BlockNorms {
    /// Of its input.
    before: Option<Norm>,
    /// Of its output.
    output: Option<Norm>,
    /// Of the sum of its output and the residual stream.
    after: Option<Norm>,
}

impl BlockNorms {
    /// The norm of a block, and one of its output where a family has both.
    fn new(norm: Norm, output: Option<Norm>, placement: NormPlacement) -> Self {
        match placement {
            NormPlacement::Before => Self {
                before: Some(norm),
                ..Self::default()
            },
            NormPlacement::After => Self {
                after: Some(norm),
                ..Self::default()
            },
            NormPlacement::Output => Self {
                output: Some(norm),
                ..Self::default()
            },
            NormPlacement::Around => Self {
                before: Some(norm),
                output,
                after: None,
            },
        }
    }
}

/// What a layer reads beside the residual stream.
#[derive(Clone, Debug, Default)]
pub struct LayerInput<'a> {
    /// Added to the scores of self-attention.
    pub bias: Option<&'a RelativeBias>,
    /// Embeddings of relative positions, which the scores of self-attention read.
    pub positions: Option<&'a RelativeEmbeddings>,
    /// What cross-attention reads: an encoder's output and the sequences that its rows form; none
    /// where caches have its keys.
    pub encoder: Option<(Tensor<2>, Sequences)>,
}

impl Layer {
    /// Reads the layer that `builder` is at; `path` is its module path.
    pub fn build(
        builder: &mut Builder<'_>,
        path: &str,
        names: &LayerNames,
        shape: &LayerShape,
    ) -> Self {
        let index = builder.layer().expect("the builder is at a layer");
        builder.layer_shape(shape.clone());
        if shape.is_plain() {
            builder.layer_names(path, names);
        }
        let size = shape.hidden_size;
        let kind = match shape.attention.causal {
            true => AttentionKind::Decoder,
            false => AttentionKind::Encoder,
        };
        let norm = |builder: &mut Builder<'_>, name: &str| {
            Norm::build(builder, &format!("{path}.{name}"), size, shape.norm)
        };
        let around = shape.placement == NormPlacement::Around;
        let output_norms = names.output_norms.filter(|_| around);
        let norms = |builder: &mut Builder<'_>, name: &str, output: Option<&str>| {
            let output = output.map(|name| norm(builder, name));
            BlockNorms::new(norm(builder, name), output, shape.placement)
        };
        let attention_norms = match shape.attention_norm {
            true => norms(builder, names.attention_norm, output_norms.map(|it| it[0])),
            false => BlockNorms::default(),
        };
        let attention = Attention::build(
            builder,
            path,
            &names.attention,
            &shape.attention,
            size,
            kind,
        );
        let cross = names.cross_attention.zip(shape.cross_attention.as_ref());
        let cross_attention = cross.map(|((names, norm_name), shape)| {
            let norms = norms(builder, norm_name, None);
            let kind = AttentionKind::Cross;
            (
                Attention::build(builder, path, &names, shape, size, kind),
                norms,
            )
        });
        let feed_forward_norms = norms(
            builder,
            names.feed_forward_norm,
            output_norms.map(|it| it[1]),
        );
        let feed_forward = FeedForward::build(
            builder,
            path,
            &names.feed_forward,
            &shape.feed_forward,
            size,
        );
        Self {
            index,
            attention,
            attention_norms,
            cross_attention,
            feed_forward,
            feed_forward_norms,
            parallel: shape.parallel,
            dropout: shape.dropout,
            attention_dropout: shape.attention_output_dropout,
        }
    }

    /// The layer's output. With `selected`, only these rows (in ascending order) leave the last
    /// attention.
    pub fn forward(
        &self,
        hidden: Hidden,
        input: LayerInput<'_>,
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let LayerInput {
            bias,
            positions,
            encoder,
        } = input;
        let last_is_self = self.cross_attention.is_none();
        let (hidden, parallel) = match self.parallel {
            true => {
                let [states, parallel] = fork(hidden.states.clone());
                let parallel = hidden.with(parallel);
                (hidden.with(states), Some(parallel))
            }
            false => (hidden, None),
        };
        let hidden = self.attention_block(
            (&self.attention, &self.attention_norms, Block::SelfAttention),
            hidden,
            (None, bias, positions),
            selected.filter(|_| last_is_self),
            batch,
        );
        let encoder = encoder.as_ref().map(|(states, rows)| (states, rows));
        let hidden = match &self.cross_attention {
            Some((attention, norms)) => self.attention_block(
                (attention, norms, Block::CrossAttention),
                hidden,
                (encoder, None, None),
                selected,
                batch,
            ),
            None => hidden,
        };
        let parallel = parallel.map(|parallel| match selected {
            Some(rows) => parallel.select_rows(rows).states,
            None => parallel.states,
        });
        self.feed_forward_block(hidden, parallel, batch)
    }

    fn attention_block(
        &self,
        (attention, norms, block): (&Attention, &BlockNorms, Block),
        hidden: Hidden,
        (encoder, bias, positions): (
            Option<(&Tensor<2>, &Sequences)>,
            Option<&RelativeBias>,
            Option<&RelativeEmbeddings>,
        ),
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let (x, residual) = before(norms, &hidden, batch);
        let (context, queries, input) = attention.attend(
            AttentionInput {
                x,
                rows: &hidden.rows,
                encoder,
                angles: &hidden.angles,
                bias,
                positions,
            },
            batch,
        );
        let select = |states: Tensor<2>| match selected {
            Some(rows) => hidden.with(states).select_rows(rows).states,
            None => states,
        };
        let (context, input) = (select(context), select(input));
        let reads_queries = batch.uses(Hook::Sublayer(self.index, block));
        let queries = reads_queries.then(|| select(queries));
        let residual = residual.map_or_else(|| input.clone(), select);
        let hidden = match selected {
            Some(rows) => hidden.select_rows(rows),
            None => hidden,
        };
        let output = attention.project_output(context, &hidden.rows, batch);
        let id = attention.output_id();
        let output = dropout(output, self.attention_dropout, id, &hidden.rows);
        let states = [input, residual, output];
        self.add_residual(norms, block, states, queries, hidden, batch)
    }

    /// The feed-forward block; `parallel` is its input where that is not the residual stream.
    fn feed_forward_block(
        &self,
        hidden: Hidden,
        parallel: Option<Tensor<2>>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let norms = &self.feed_forward_norms;
        let (x, residual) = match parallel {
            Some(states) => {
                let (x, _) = before(norms, &hidden.with(states), batch);
                (x, Some(hidden.states.clone()))
            }
            None => before(norms, &hidden, batch),
        };
        let (output, input) = self.feed_forward.forward(x, &hidden.rows, batch);
        let residual = residual.unwrap_or_else(|| input.clone());
        let id = self.feed_forward.output_id();
        let output = dropout(output, self.dropout, id, &hidden.rows);
        let block = Block::FeedForward;
        let states = [input, residual, output];
        self.add_residual(norms, block, states, None, hidden, batch)
    }

    fn add_residual(
        &self,
        norms: &BlockNorms,
        block: Block,
        [input, residual, output]: [Tensor<2>; 3],
        queries: Option<Tensor<2>>,
        hidden: Hidden,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let add_to = Residual {
            layer: self.index,
            block,
            norm_after: norms.after.as_ref(),
        };
        let output = match &norms.output {
            Some(norm) => norm.forward(output, &hidden.rows, batch),
            None => output,
        };
        let states = [input, residual, output];
        let states = add_to.add(states, queries, &hidden.rows, batch);
        hidden.with(states)
    }
}

/// A block's input, and the residual stream if it is not the input.
fn before(
    norms: &BlockNorms,
    hidden: &Hidden,
    batch: &AdapterBatch<'_>,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let x = hidden.states.clone();
    match &norms.before {
        Some(norm) => (norm.forward(x.clone(), &hidden.rows, batch), Some(x)),
        None => (x, None),
    }
}
