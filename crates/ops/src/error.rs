//! Errors in the arguments of operations.

use thiserror::Error;

/// Arguments that an operation rejects.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpsError {
    /// The number of values is not that of the shape.
    #[error("{what} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The shape it should have.
        expected: Vec<usize>,
        /// The shape it has.
        found: Vec<usize>,
    },
    /// bf16 on a device that keeps frozen matrices in f32.
    #[error(
        "bf16 is for the CPU: a GPU keeps frozen matrices in f32, so ask for the precision f32"
    )]
    Bf16OnGpu,
    /// A quantized base on a device that has no products for it.
    #[error("a quantized base is for the CPU: on a GPU, leave out the quantization")]
    QuantizedOnGpu,
    /// A quantization of an unknown name.
    #[error("unknown quantization `{0}`: use nf4, fp4, int8 or int4")]
    UnknownQuantization(String),
    /// A precision of an unknown name.
    #[error("unknown precision `{0}`: use f32 or bf16")]
    UnknownPrecision(String),
    /// An activation function of an unknown name.
    #[error(
        "unknown activation function `{0}`; known are gelu, gelu_new, gelu_pytorch_tanh, relu, \
         silu, swish and tanh"
    )]
    UnknownActivation(String),
}
