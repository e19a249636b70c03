//! A transformer layer: self-attention, cross-attention if there is an encoder, feed-forward.

use burn::tensor::Tensor;
use epiphyte_ops::{Sequences, dropout};

use super::attention::AttentionInput;
use super::residual::Residual;
use super::{Attention, FeedForward, LayerShape, Norm, NormPlacement, RelativeBias};
use crate::adapter::{AdapterBatch, AttentionKind, Block, Hidden};
use crate::builder::Builder;

/// How a family names the tensors of a layer, each below the layer's path.
#[derive(Clone, Copy, Debug)]
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
}

/// How a family names the projections of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionNames {
    /// Queries, or queries, keys and values in one matrix.
    pub query: &'static str,
    /// Keys; not read where one matrix holds all three.
    pub key: &'static str,
    /// Values; not read where one matrix holds all three.
    pub value: &'static str,
    /// The output projection.
    pub output: &'static str,
}

/// How a family names the linear layers of a feed-forward network.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardNames {
    /// The gate, for gated networks.
    pub gate: Option<&'static str>,
    /// To the intermediate size.
    pub up: &'static str,
    /// Back to the hidden size.
    pub down: &'static str,
}

/// A transformer layer with every adapter hook.
#[derive(Clone, Debug)]
pub struct Layer {
    index: usize,
    attention: Attention,
    attention_norm: Norm,
    cross_attention: Option<(Attention, Norm)>,
    feed_forward: FeedForward,
    feed_forward_norm: Norm,
    placement: NormPlacement,
    dropout: f64,
}

/// What a layer reads beside the residual stream.
#[derive(Clone, Debug, Default)]
pub struct LayerInput<'a> {
    /// Added to the scores of self-attention.
    pub bias: Option<&'a RelativeBias>,
    /// What cross-attention reads: an encoder's output and the sequences that its rows form.
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
        builder.layer_names(path, names);
        let size = shape.hidden_size;
        let kind = match shape.attention.causal {
            true => AttentionKind::Decoder,
            false => AttentionKind::Encoder,
        };
        let norm = |builder: &mut Builder<'_>, name: &str| {
            Norm::build(builder, &format!("{path}.{name}"), size, shape.norm)
        };
        let attention_norm = norm(builder, names.attention_norm);
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
            let norm = norm(builder, norm_name);
            let kind = AttentionKind::Cross;
            (
                Attention::build(builder, path, &names, shape, size, kind),
                norm,
            )
        });
        let feed_forward_norm = norm(builder, names.feed_forward_norm);
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
            attention_norm,
            cross_attention,
            feed_forward,
            feed_forward_norm,
            placement: shape.placement,
            dropout: shape.dropout,
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
        let LayerInput { bias, encoder } = input;
        let last_is_self = self.cross_attention.is_none();
        let hidden = self.attention_block(
            (&self.attention, &self.attention_norm, Block::SelfAttention),
            hidden,
            (None, bias),
            selected.filter(|_| last_is_self),
            batch,
        );
        let hidden = match (&self.cross_attention, &encoder) {
            (Some((attention, norm)), Some((states, rows))) => self.attention_block(
                (attention, norm, Block::CrossAttention),
                hidden,
                (Some((states, rows)), None),
                selected,
                batch,
            ),
            _ => hidden,
        };
        self.feed_forward_block(hidden, batch)
    }

    fn attention_block(
        &self,
        (attention, norm, block): (&Attention, &Norm, Block),
        hidden: Hidden,
        (encoder, bias): (Option<(&Tensor<2>, &Sequences)>, Option<&RelativeBias>),
        selected: Option<&[usize]>,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let (x, residual) = self.before(norm, &hidden, batch);
        let (context, input) = attention.attend(
            AttentionInput {
                x,
                rows: &hidden.rows,
                encoder,
                angles: hidden.angles.as_ref(),
                bias,
            },
            batch,
        );
        let select = |states: Tensor<2>| match selected {
            Some(rows) => hidden.with(states).select_rows(rows).states,
            None => states,
        };
        let (context, input) = (select(context), select(input));
        let residual = residual.map_or_else(|| input.clone(), select);
        let hidden = match selected {
            Some(rows) => hidden.select_rows(rows),
            None => hidden,
        };
        let output = attention.project_output(context, &hidden.rows, batch);
        let output = dropout(output, self.dropout, attention.output_id(), &hidden.rows);
        self.add_residual(norm, block, [input, residual, output], hidden, batch)
    }

    fn feed_forward_block(&self, hidden: Hidden, batch: &AdapterBatch<'_>) -> Hidden {
        let norm = &self.feed_forward_norm;
        let (x, residual) = self.before(norm, &hidden, batch);
        let (output, input) = self.feed_forward.forward(x, &hidden.rows, batch);
        let residual = residual.unwrap_or_else(|| input.clone());
        let id = self.feed_forward.output_id();
        let output = dropout(output, self.dropout, id, &hidden.rows);
        let block = Block::FeedForward;
        self.add_residual(norm, block, [input, residual, output], hidden, batch)
    }

    /// A block's input, and the residual stream if it is not the input.
    fn before(
        &self,
        norm: &Norm,
        hidden: &Hidden,
        batch: &AdapterBatch<'_>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let x = hidden.states.clone();
        match self.placement {
            NormPlacement::Before => (norm.forward(x.clone(), &hidden.rows, batch), Some(x)),
            NormPlacement::After => (x, None),
        }
    }

    fn add_residual(
        &self,
        norm: &Norm,
        block: Block,
        states: [Tensor<2>; 3],
        hidden: Hidden,
        batch: &AdapterBatch<'_>,
    ) -> Hidden {
        let residual = Residual {
            layer: self.index,
            block,
            norm_after: (self.placement == NormPlacement::After).then_some(norm),
        };
        let states = residual.add(states, &hidden.rows, batch);
        hidden.with(states)
    }
}
