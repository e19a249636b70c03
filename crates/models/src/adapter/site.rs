//! Names for the places of a model at which adapters act.

/// What a linear layer does inside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Queries of self-attention.
    Query,
    /// Keys of self-attention.
    Key,
    /// Values of self-attention.
    Value,
    /// Queries, keys and values of self-attention in one matrix, in this order.
    QueryKeyValue,
    /// Output projection of self-attention.
    AttentionOutput,
    /// Queries of cross-attention.
    CrossQuery,
    /// Keys of cross-attention.
    CrossKey,
    /// Values of cross-attention.
    CrossValue,
    /// Output projection of cross-attention.
    CrossAttentionOutput,
    /// From the hidden to the intermediate size.
    FeedForwardIn,
    /// The gate of a gated feed-forward.
    FeedForwardGate,
    /// From the intermediate to the hidden size.
    FeedForwardOut,
    /// From the size of the embeddings to the hidden size.
    EmbeddingProjection,
    /// The base model's projection of the token that a classifier reads.
    Pooler,
    /// The task's or the language model's head.
    Head,
}

/// Where a linear layer stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// Module path in Hugging Face's model, such as `bert.encoder.layer.0.attention.self.query`.
    pub path: String,
    /// The layer, from 0, a decoder's after its encoder's; none outside the layers.
    pub layer: Option<usize>,
    /// What the linear layer does there.
    pub role: Role,
    /// Which use of the module in a forward pass this is, from 0: ALBERT's layers share theirs.
    /// What an adapter keeps by path acts in all of them.
    pub pass: usize,
}

impl Site {
    /// A key for random draws at this site, the same in every run.
    pub fn id(&self) -> u64 {
        let pass = self.pass as u64;
        name_id(&self.path) ^ pass.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// A key for random draws at a named place: the FNV-1a hash of the name.
pub fn name_id(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// A block of a layer: what computes one addition to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Block {
    /// Self-attention with its output projection.
    SelfAttention,
    /// Attention of a decoder over the encoder's output, with its output projection.
    CrossAttention,
    /// The feed-forward network.
    FeedForward,
}

/// Which tokens attend to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttentionKind {
    /// Self-attention in both directions.
    Encoder,
    /// Causal self-attention.
    Decoder,
    /// Queries of the decoder over keys of the encoder.
    Cross,
}

/// Where an attention stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionSite {
    /// The layer, from 0, a decoder's after its encoder's.
    pub layer: usize,
    /// Which tokens attend to which.
    pub kind: AttentionKind,
}
