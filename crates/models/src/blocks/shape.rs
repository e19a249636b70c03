//! What the layers of families differ in, as data.

use epiphyte_ops::Activation;

use super::DisentangledShape;

/// The shape of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerShape {
    /// Size of the residual stream.
    pub hidden_size: usize,
    /// Its norms.
    pub norm: NormShape,
    /// Where its norms are.
    pub placement: NormPlacement,
    /// Whether self-attention has its norm; not in ModernBERT's first layer.
    pub attention_norm: bool,
    /// Whether self-attention and feed-forward read the same states, `x + Attn(N₁(x)) +
    /// FF(N₂(x))`, as in GPT-NeoX.
    pub parallel: bool,
    /// Self-attention.
    pub attention: AttentionShape,
    /// Attention over an encoder's output, in the decoder of an encoder-decoder.
    pub cross_attention: Option<AttentionShape>,
    /// The feed-forward network.
    pub feed_forward: FeedForwardShape,
    /// Dropout on the feed-forward's output.
    pub dropout: f64,
    /// Dropout on the output of attentions; none in DistilBERT.
    pub attention_output_dropout: f64,
}

/// A norm over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormShape {
    /// Divide by the root mean square, without centering and shift (RMSNorm, T5's layer norm);
    /// otherwise layer norm.
    pub rms: bool,
    /// Whether a layer norm has a shift; ModernBERT's has none.
    pub shift: bool,
    /// Added to the variance.
    pub epsilon: f64,
    /// Added to the stored scale: Gemma stores scales less 1.
    pub offset: f32,
}

/// Where a layer's norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// `x + Block(Norm(x))`: GPT-2, Llama, T5.
    Before,
    /// `Norm(x + Block(x))`: BERT.
    After,
    /// `x + Norm(Block(x))`: OLMo 2.
    Output,
    /// `x + Norm(Block(Norm(x)))`: Gemma 2 and 3, GLM-4.
    Around,
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
    /// Bends scores into `(-softcap, softcap)`: Gemma 2.
    pub softcap: Option<f32>,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
    /// How many tokens, itself included, a token sees to one side.
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
    /// Which of the model's rotary embeddings rotates them: Gemma 3 has two.
    pub rotary_set: usize,
    /// Norms of queries and keys before rotation.
    pub norms: Option<QueryKeyNorms>,
    /// How scores read embeddings of relative positions: DeBERTa.
    pub disentangled: Option<DisentangledShape>,
}

/// RMS norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryKeyNorms {
    /// The norm of each.
    pub shape: NormShape,
    /// Whether a head is normalized by itself, with the same scale for all heads (Qwen3, Gemma 3),
    /// instead of all heads together (OLMo 2).
    pub per_head: bool,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Three linear layers.
    Separate,
    /// One linear layer whose output is queries, keys and values, stored as GPT-2's `Conv1D`.
    FusedConv1d,
    /// The same, stored as a linear layer: Phi-3.
    Fused,
    /// One linear layer whose output is, head by head, query, key and value: GPT-NeoX.
    FusedByHead,
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
    /// Whether one linear layer has the gate's outputs, then those of `up`: Phi-3, GLM-4.
    pub packed: bool,
    /// Whether its linear layers have biases.
    pub bias: bool,
    /// Whether weights are stored as GPT-2's `Conv1D`.
    pub conv1d: bool,
    /// Dropout on the intermediate states, as T5 has it.
    pub dropout: f64,
}

impl LayerShape {
    /// Whether the layer has nothing but what [`LayerNames`](super::LayerNames) names one by one:
    /// linear layers of their own and a norm for each block.
    pub fn is_plain(&self) -> bool {
        let attention = &self.attention;
        let placement = matches!(self.placement, NormPlacement::Before | NormPlacement::After);
        let separate = matches!(
            attention.projections,
            Projections::Separate | Projections::FusedConv1d
        );
        let scores = attention.norms.is_none()
            && attention.softcap.is_none()
            && attention.disentangled.is_none();
        let norms = self.attention_norm && self.norm.offset == 0.0;
        let whole = !self.parallel && !self.feed_forward.packed;
        placement && separate && scores && norms && whole && attention.rotary_set == 0
    }
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
