//! What the layers of families differ in, as data.

use epiphyte_ops::Activation;

/// The shape of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerShape {
    /// Size of the residual stream.
    pub hidden_size: usize,
    /// Its norms.
    pub norm: NormShape,
    /// Whether norms come before the blocks or after the residual addition.
    pub placement: NormPlacement,
    /// Self-attention.
    pub attention: AttentionShape,
    /// Attention over an encoder's output, in the decoder of an encoder-decoder.
    pub cross_attention: Option<AttentionShape>,
    /// The feed-forward network.
    pub feed_forward: FeedForwardShape,
    /// Dropout on each block's output.
    pub dropout: f64,
}

/// A norm over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormShape {
    /// Divide by the root mean square, without centering and shift (RMSNorm, T5's layer norm);
    /// otherwise layer norm with scale and shift.
    pub rms: bool,
    /// Added to the variance.
    pub epsilon: f64,
}

/// Where a layer's norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + Block(Norm(x))`: GPT-2, Llama, T5.
    Before,
    /// `Norm(x + Block(x))`: BERT.
    After,
}

/// An attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// How many tokens, itself included, a token sees.
    pub window: Option<usize>,
    /// Dropout on attention probabilities.
    pub dropout: f64,
    /// How queries, keys and values are projected.
    pub projections: Projections,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether queries and keys are rotated by their position.
    pub rotary: bool,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Three linear layers.
    Separate,
    /// One linear layer whose output is queries, keys and values, stored as GPT-2's `Conv1D`.
    FusedConv1d,
}

/// A feed-forward network.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForwardShape {
    /// Its intermediate size.
    pub intermediate_size: usize,
    /// The activation function.
    pub activation: Activation,
    /// `down(f(gate(x)) ⊙ up(x))` instead of `down(f(up(x)))`.
    pub gated: bool,
    /// Whether its linear layers have biases.
    pub bias: bool,
    /// Whether weights are stored as GPT-2's `Conv1D`.
    pub conv1d: bool,
    /// Dropout on the intermediate states, as T5 has it.
    pub dropout: f64,
}

impl AttentionShape {
    /// Size of all key heads together, which is also that of all value heads.
    pub fn kv_size(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Size of all query heads together.
    pub fn query_size(&self) -> usize {
        self.heads * self.head_dim
    }
}
