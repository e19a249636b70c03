//! The boundary between models and methods: the trait that models call and methods implement.
//!
//! A model never depends on a concrete fine-tuning method. At every place where some method of the
//! field acts it calls a hook of [`Adapter`]; each hook does nothing by default, and a method
//! overrides the one or two that it needs. Adding a method touches no model, adding a model touches
//! no method.
//!
//! | hook | methods that use it |
//! | --- | --- |
//! | [`Adapter::parameter`] | full, BitFit, Freeze, sparse and low-dimensional deltas, LN-tuning, every task head |
//! | [`Adapter::lookup`] | trainable tokens, LoRA on embeddings |
//! | [`Adapter::embeddings`] | prompt tuning, P-tuning, SPoT, IPT |
//! | [`Adapter::virtual_targets`] | context-aware prompt tuning |
//! | [`Adapter::linear_input`] | (IA)³ on feed-forwards, OFT, HRA |
//! | [`Adapter::linear`] | LoRA and its variants, DoRA, (IA)³ |
//! | [`Adapter::attention`] | LeTS, methods that read or change queries, keys and values |
//! | [`Adapter::prefix`] | prefix tuning, P-tuning v2 |
//! | [`Adapter::sublayer`] | Houlsby, Pfeiffer, parallel adapters, Compacter, AdaMix, adaption prompts |
//! | [`Adapter::after_block`] | Adapter+ |
//! | [`Adapter::hidden`] | side networks, Attention Fusion, ReFT, invertible adapters |
//! | [`Adapter::encoded`] | side networks over an encoder-decoder |
//! | [`Adapter::final_norm`] | side networks with a norm of their own |
//! | [`Adapter::first_pass`] | X-LoRA, which reads final states before it acts |
//!
//! Four more functions are promises that save work and change no result: [`Adapter::uses`],
//! [`Adapter::first_layer`], [`Adapter::mixes_rows`] and [`Adapter::reads_whole_sequences`]. A test
//! runs every method with the first three set to their most pessimistic answer and expects the same
//! bytes; another lets every method decode with a cache and without.

mod batch;
mod hidden;
mod lazy_linear;
mod site;

use burn::tensor::Tensor;
use epiphyte_ops::{FrozenMatrix, Prefix, Sequences};

pub use self::batch::{AdapterBatch, Entry};
pub use self::hidden::{Hidden, Owner, Stream};
pub(crate) use self::hidden::{concat, narrow};
pub use self::lazy_linear::LazyLinear;
pub use self::site::{AttentionKind, AttentionSite, Block, Role, Site, name_id};
use crate::tokens::{Mode, Tokens};

/// What every hook is told about the forward pass.
#[derive(Clone, Copy, Debug)]
pub struct ForwardContext<'a> {
    /// The sequences that the hook's rows form; a row knows its position in its own sequence.
    pub rows: &'a Sequences,
    /// The tokens of the adapter's own sequences.
    pub tokens: &'a Tokens<'a>,
    /// Training or evaluation, with the step's random key.
    pub mode: Mode,
    /// The adapter's own streams, as they enter the layer; none outside of the layers.
    pub streams: &'a [Stream],
}

impl ForwardContext<'_> {
    /// The states of the adapter's stream `name` for the hook's rows, `[tokens, any size]`; none
    /// if no such stream travels with the layer. It has all rows of the sequences.
    pub fn stream(&self, name: &str) -> Option<Tensor<2>> {
        let mut streams = self.streams.iter();
        let stream = streams.find(|stream| stream.name == name)?;
        if stream.rows.tokens() == self.rows.tokens() {
            return Some(stream.states.clone());
        }
        let positions: Vec<usize> = stream.rows.positions().collect();
        let sequences = self.rows.lengths().zip(stream.rows.firsts());
        let firsts = sequences.flat_map(|(length, &first)| std::iter::repeat_n(first, length));
        let rows = firsts.zip(self.rows.positions());
        let rows = rows.map(|(first, position)| first + position - positions[first]);
        let rows: Vec<usize> = rows.collect();
        Some(epiphyte_ops::rows(stream.states.clone(), &rows))
    }
}

/// What stands in for a tensor of the base.
#[derive(Clone, Debug)]
pub enum StandIn {
    /// A tensor that may be trained, flat, in the order in which Hugging Face stores it.
    Tensor(Tensor<1>),
    /// Another frozen matrix `[out, in]`, such as the residual of a decomposition.
    Frozen(FrozenMatrix),
}

/// Input embeddings before positions and norms are applied.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Word embeddings, `[tokens, hidden]`.
    pub states: Tensor<2>,
    /// The segment of each token, for models that have segments.
    pub type_ids: Vec<u32>,
    /// The sequences that the rows form.
    pub rows: Sequences,
    /// Whether these are the inputs of an encoder-decoder's decoder.
    pub decoder: bool,
}

/// A block whose output is about to be added to the residual stream.
pub struct Sublayer<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Which block of it.
    pub block: Block,
    /// The block's input, `[tokens, hidden]`: normalized if the norm comes first.
    pub input: &'a Tensor<2>,
    /// The residual stream, `[tokens, hidden]`.
    pub residual: &'a Tensor<2>,
    /// The queries of an attention, `[tokens, heads * head_dim]`: normalized and rotated as its
    /// keys are, before [`Adapter::attention`]; none in a feed-forward.
    pub queries: Option<&'a Tensor<2>>,
    /// Adds an output to the residual stream as the model does; normalizes if the norm comes after.
    pub add_residual: &'a dyn Fn(Tensor<2>) -> Tensor<2>,
}

/// What an adapter adds to the loss of a language model: virtual tokens that stand for tokens, such
/// as those of examples in front of a text, are predicted too.
#[derive(Clone, Copy, Debug)]
pub struct VirtualTargets<'a> {
    /// The token that each virtual token stands for; -100 where that does not count.
    pub labels: &'a [i64],
    /// What the loss of each is multiplied by; that of a text's own tokens is multiplied by 1.
    pub weights: &'a [f32],
}

/// A hook at a place of the model, to ask whether an adapter does anything there.
#[derive(Clone, Copy, Debug)]
pub enum Hook<'a> {
    /// [`Adapter::parameter`] for the tensor of this name.
    Parameter(&'a str),
    /// [`Adapter::linear_input`] or [`Adapter::linear`] at this site.
    Linear(&'a Site),
    /// [`Adapter::attention`] at this site.
    Attention(AttentionSite),
    /// [`Adapter::prefix`] at this site.
    Prefix(AttentionSite),
    /// [`Adapter::sublayer`] or [`Adapter::after_block`] for this block of this layer.
    Sublayer(usize, Block),
    /// [`Adapter::hidden`] before this layer; the number of layers stands for after the last.
    Hidden(usize),
    /// [`Adapter::encoded`].
    Encoded,
    /// [`Adapter::final_norm`].
    FinalNorm,
}

/// What a fine-tuning method does during a forward pass, one function for each hook.
///
/// Trained tensors must be returned as they are now (tracked by autodiff during training): the
/// model calls the hook again in every forward pass, and once more when gradient checkpointing
/// recomputes a layer. A hook must give the same result for the same context.
pub trait Adapter: Send + Sync {
    /// The tensor that stands in for the base's tensor `name`; it has the same number of values.
    ///
    /// Called once for each use of the tensor. It has no context: what depends on the step is a
    /// derived parameter, computed once a step.
    fn parameter(&self, _name: &str) -> Option<StandIn> {
        None
    }

    /// Rows looked up in the embedding table `table`, `[ids, hidden]`.
    fn lookup(
        &self,
        _table: &str,
        _ids: &[u32],
        rows: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        rows
    }

    /// Word embeddings, before positions and norms. May add rows to each sequence.
    ///
    /// `cx.rows` are the data's sequences. An adapter with
    /// [virtual tokens](Adapter::virtual_tokens) sees the beginning of a text only, not the tokens
    /// that follow a cache.
    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        embedded
    }

    /// The input of a linear layer, `[tokens, in]`.
    fn linear_input(&self, _site: &Site, x: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        x
    }

    /// The output of a linear layer, `[tokens, out]`.
    fn linear(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        product.compute()
    }

    /// Queries, keys and values, after rotation, before attention.
    ///
    /// # Shapes
    /// - queries `[tokens, heads * head_dim]`, keys and values `[key tokens, kv_heads * head_dim]`
    fn attention(
        &self,
        _at: AttentionSite,
        qkv: [Tensor<2>; 3],
        _cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        qkv
    }

    /// How many positions a prefix takes before those of the tokens; `decoder` says whether these
    /// are the inputs of an encoder-decoder's decoder.
    fn prefix_length(&self, _decoder: bool) -> usize {
        0
    }

    /// How many virtual tokens [`Adapter::embeddings`] adds to each sequence.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// How many soft tokens of each sequence [`Adapter::embeddings`] gives vectors, in their order;
    /// the ids of these are [`SOFT_TOKEN`](crate::SOFT_TOKEN).
    fn soft_tokens(&self) -> usize {
        0
    }

    /// Whether a head that reads the first token of a sequence reads the text's own first one,
    /// such as `[CLS]`, and not the first virtual token.
    fn pools_text(&self) -> bool {
        false
    }

    /// What the loss of a language model reads of the virtual tokens, one label for each.
    fn virtual_targets(&self) -> Option<VirtualTargets<'_>> {
        None
    }

    /// Keys and values that every token of an attention sees in addition to its sequence's own.
    ///
    /// `x` is the attention's input, `[tokens, hidden]`.
    fn prefix(
        &self,
        _at: AttentionSite,
        _x: &Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Option<Prefix> {
        None
    }

    /// A block's output, `[tokens, hidden]`, before it is added to the residual stream.
    fn sublayer(
        &self,
        _sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        output
    }

    /// The residual stream after a block was added to it and, where the norm comes after,
    /// normalized, `[tokens, hidden]`.
    fn after_block(
        &self,
        _layer: usize,
        _block: Block,
        states: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        states
    }

    /// The states before layer `layer`, or, with the number of layers, after the last; may read or
    /// replace them and put streams among those that travel on.
    ///
    /// After the last layer only the rows that the head reads are left, unless
    /// [`Adapter::mixes_rows`] says otherwise for it.
    fn hidden(&self, _layer: usize, hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        hidden
    }

    /// The states after the last layer of an encoder-decoder's encoder, before its norm; as
    /// [`Adapter::hidden`], which is next called before the decoder's first layer, with the
    /// decoder's states.
    fn encoded(&self, hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        hidden
    }

    /// The norm after the last layer, for families that have one; a side network whose states have
    /// been normalized returns them as they are.
    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        norm(states)
    }

    /// The lowest layer in which the adapter does anything: states before it are the base's own,
    /// and no gradient reaches layers below it. 0 if it acts on the embeddings.
    fn first_layer(&self) -> usize {
        0
    }

    /// Whether the adapter does anything at a hook. If not, a batch that several adapters share
    /// need not be split there.
    fn uses(&self, _hook: Hook<'_>) -> bool {
        true
    }

    /// Whether the adapter's hooks after the attention of this layer read several rows of a
    /// sequence at once. If so, the layer computes all rows, not only those that the head reads.
    fn mixes_rows(&self, _layer: usize) -> bool {
        false
    }

    /// Whether a row's result depends on the other rows of its sequence in another way than through
    /// attention, such as through their mean; or, in a decoder, on a stream from the encoder. If
    /// so, a text is read anew for each further token.
    fn reads_whole_sequences(&self) -> bool {
        false
    }

    /// Whether [`Adapter::linear_input`] or [`Adapter::linear`] act on a language model's head. The
    /// loss of other adapters is computed without holding all logits.
    fn adapts_language_head(&self) -> bool {
        false
    }

    /// The adapter under which the model is run first, in evaluation mode and without gradients:
    /// [`Identity`] for the base as it is. Its final states, `[tokens, hidden]`, then travel as the
    /// stream [`FIRST_PASS`].
    fn first_pass(&self) -> Option<&dyn Adapter> {
        None
    }
}

/// The name of the stream that holds the final states of an adapter's
/// [first pass](Adapter::first_pass).
pub const FIRST_PASS: &str = "first pass";

/// The adapter that does nothing: the base model as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl Adapter for Identity {
    fn first_layer(&self) -> usize {
        usize::MAX
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}
