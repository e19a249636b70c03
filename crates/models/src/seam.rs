//! The seam between models and methods.
//!
//! A model never knows which fine-tuning method runs. At every place where some method in the field
//! acts it calls [`Adapter`], whose every place does nothing by default; a method overrides the one
//! or two that it needs. Adding a method touches no model, adding a model touches no method.
//!
//! | place | what methods do there |
//! | --- | --- |
//! | [`Adapter::parameter`] | stand in for a tensor of the base: full, BitFit, Freeze, sparse and low-dimensional deltas, LN-tuning, every task head |
//! | [`Adapter::embeddings`] | put trained vectors into the input: prompt tuning, P-tuning, SPoT, IPT |
//! | [`Adapter::linear_input`] | rotate or scale what goes into a linear map: (IA)³ on feed-forwards, OFT, HRA |
//! | [`Adapter::linear`] | add to or scale what comes out: LoRA and its kin, DoRA, (IA)³ |
//! | [`Adapter::prefix`] | keys and values of a layer: prefix tuning, P-tuning v2 |
//! | [`Adapter::sublayer`] | bottlenecks in series or in parallel, before or after the residual: Houlsby, Pfeiffer, Parallel, Compacter, AdaMix |
//! | [`Adapter::hidden`] | look at or replace states between layers: side networks, Attention Fusion |
//!
//! Two more functions say where an adapter does nothing, which saves work and changes no result:
//! [`Adapter::first_layer`] and [`Adapter::acts`].

use burn::tensor::Tensor;
use epiphyte_ops::{LowRank, Prefix, Sequences, Weight, add_low_rank, linear, low_rank_linear};

use crate::group::Group;

/// What a linear map does in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Queries of self-attention.
    Query,
    /// Keys of self-attention.
    Key,
    /// Values of self-attention.
    Value,
    /// Self-attention's output projection.
    AttentionOutput,
    /// Into the feed-forward's middle.
    FeedForwardIn,
    /// The gate of a gated feed-forward.
    FeedForwardGate,
    /// Out of the feed-forward's middle.
    FeedForwardOut,
    /// The projection of the first token that a classifier reads.
    Pooler,
    /// The task's or the language model's head.
    Head,
}

/// Where a linear map stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// Module path in Hugging Face's model, such as `bert.encoder.layer.0.attention.self.query`.
    pub path: String,
    /// The layer, from 0; none outside the layers.
    pub layer: Option<usize>,
    /// What the map does there.
    pub role: Role,
}

impl Site {
    /// A number that names the place to random draws: the same in every run.
    pub fn id(&self) -> u64 {
        name_id(&self.path)
    }
}

/// The number of a name (FNV-1a), for random draws at a named place.
pub fn name_id(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Which half of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// Self-attention, output projection included.
    Attention,
    /// The feed-forward.
    FeedForward,
}

/// Input embeddings before anything is added to them.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Word embeddings, `[tokens, width]`.
    pub states: Tensor<2>,
    /// Segment of each token, for models that have segments.
    pub type_ids: Vec<u32>,
    /// The sequences that the rows form.
    pub sequences: Sequences,
}

/// A linear map's product, not yet computed unless somebody asked.
#[derive(Debug)]
pub struct Product {
    input: Tensor<2>,
    state: State,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
enum State {
    Pending {
        weight: Weight,
        bias: Option<Tensor<1>>,
    },
    Done(Tensor<2>),
}

impl Product {
    /// `input Wᵀ + bias`, computed when asked for.
    pub fn pending(input: Tensor<2>, weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self {
            input,
            state: State::Pending { weight, bias },
        }
    }

    /// A product that exists.
    pub fn done(input: Tensor<2>, output: Tensor<2>) -> Self {
        Self {
            input,
            state: State::Done(output),
        }
    }

    /// What went into the map, `[tokens, in]`.
    pub fn input(&self) -> &Tensor<2> {
        &self.input
    }

    /// What comes out, `[tokens, out]`.
    pub fn compute(self) -> Tensor<2> {
        match self.state {
            State::Pending { weight, bias } => linear(self.input, &weight, bias),
            State::Done(output) => output,
        }
    }

    /// What comes out, plus a low-rank path beside the map; in one operation where the product is still
    /// pending.
    pub fn add_low_rank(self, path: LowRank) -> Tensor<2> {
        match self.state {
            State::Pending { weight, bias } => low_rank_linear(self.input, &weight, bias, path),
            State::Done(output) => add_low_rank(output, self.input, path),
        }
    }
}

/// A sub-layer whose output is about to join the residual stream.
pub struct Sublayer<'a> {
    /// The layer, from 0.
    pub layer: usize,
    /// Which half of it.
    pub part: Part,
    /// What went into the sub-layer, `[tokens, width]`.
    pub input: &'a Tensor<2>,
    /// The residual stream that its output joins, `[tokens, width]`.
    pub residual: &'a Tensor<2>,
    /// Joins the two as the model does: the sum, normalised where the norm comes after.
    pub close: &'a dyn Fn(Tensor<2>) -> Tensor<2>,
    /// The sequences that the rows form.
    pub sequences: &'a Sequences,
}

/// A place of the seam inside the layers or above them, to ask whether an adapter does anything there.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// [`Adapter::parameter`] for this tensor.
    Parameter(&'a str),
    /// [`Adapter::linear_input`] or [`Adapter::linear`] at this site.
    Linear(&'a Site),
    /// [`Adapter::prefix`].
    Prefix,
    /// [`Adapter::sublayer`].
    Sublayer,
    /// [`Adapter::hidden`].
    Hidden,
}

/// What a fine-tuning method does during a forward pass, one function a place.
///
/// Tensors that a method trains must take part as they are now, tracked by autodiff while training;
/// the model asks anew in every pass.
pub trait Adapter: Send + Sync {
    /// The tensor that stands in for the base's tensor `name`, flat and of its size.
    fn parameter(&self, _name: &str) -> Option<Tensor<1>> {
        None
    }

    /// Word embeddings, before positions and norms.
    fn embeddings(&self, embedded: Embedded) -> Embedded {
        embedded
    }

    /// What goes into a linear map, `[tokens, in]`.
    fn linear_input(&self, _site: &Site, x: Tensor<2>, _sequences: &Sequences) -> Tensor<2> {
        x
    }

    /// What comes out of a linear map, `[tokens, out]`.
    fn linear(&self, _site: &Site, product: Product, _sequences: &Sequences) -> Tensor<2> {
        product.compute()
    }

    /// How many positions a prefix takes in front of the tokens' own.
    fn prefix_length(&self) -> usize {
        0
    }

    /// Keys and values that every token of layer `layer` sees besides its sequence's own.
    ///
    /// `x` is what goes into the attention, `[tokens, width]`.
    fn prefix(&self, _layer: usize, _x: &Tensor<2>, _sequences: &Sequences) -> Option<Prefix> {
        None
    }

    /// A sub-layer's output, `[tokens, width]`, before it joins the residual stream.
    fn sublayer(&self, _sublayer: &Sublayer<'_>, output: Tensor<2>) -> Tensor<2> {
        output
    }

    /// States that enter layer `layer`; with the number of layers, those that leave the last, where only
    /// the rows are left that a loss reads.
    fn hidden(&self, _layer: usize, states: Tensor<2>, _sequences: &Sequences) -> Tensor<2> {
        states
    }

    /// The lowest layer in which the adapter does anything: states that enter it are the base's own, and
    /// no gradient goes below it. 0 if it acts on the embeddings.
    fn first_layer(&self) -> usize {
        0
    }

    /// Whether the adapter does anything at a place. Where it says no, a pass that it shares with other
    /// runs need not part its rows from theirs.
    fn acts(&self, _place: Place<'_>) -> bool {
        true
    }

    /// The adapters that share this pass, where this one stands for several.
    fn group(&self) -> Option<&Group<'_>> {
        None
    }
}

/// The adapter that does nothing: the base as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity;

impl Adapter for Identity {
    fn first_layer(&self) -> usize {
        usize::MAX
    }

    fn acts(&self, _place: Place<'_>) -> bool {
        false
    }
}
