//! The blocks that families are built of.
//!
//! A family describes its layers as [`LayerShape`] and names their tensors in [`LayerNames`];
//! [`Layer`] is the computation, with every adapter hook at its place. What families differ in is
//! data here.

mod attention;
mod disentangled;
mod embeddings;
mod encoder_decoder;
mod feed_forward;
mod layer;
mod linear;
mod norm;
mod relative_bias;
mod residual;
mod shape;
mod stack;

pub use self::attention::Attention;
pub use self::disentangled::{DisentangledShape, RelativeEmbeddings};
pub use self::embeddings::{Embeddings, Positions};
pub use self::encoder_decoder::{EncoderDecoder, HalfStack};
pub use self::feed_forward::FeedForward;
pub use self::layer::{AttentionNames, FeedForwardNames, Layer, LayerInput, LayerNames};
pub use self::linear::{Linear, Matrix, Vector};
pub use self::norm::Norm;
pub use self::relative_bias::{RelativeBias, RelativeBiasShape, RelativeBuckets};
pub use self::shape::{
    AttentionShape, FeedForwardShape, LayerShape, NormPlacement, NormShape, Projections,
    QueryKeyNorms,
};
pub use self::stack::Stack;
