//! Differentiable operations for training over a frozen transformer.
//!
//! Each operation has at most two implementations: composed of Burn's own operations, which runs on
//! every Burn backend, and fused over [`epiphyte_kernels`], which runs on the CPU in one pass over
//! memory instead of about ten. The device of the operands decides which one runs.
//!
//! Hidden states are `[tokens, hidden]` matrices without padding; [`Sequences`] holds where each
//! sequence begins and ends, which only attention, dropout and the per-sequence operations read.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use epiphyte_ops::{Activation, layer_norm};
//!
//! let device = Device::default().autodiff();
//! let x = Tensor::<2>::from_floats([[1.0, 2.0, 4.0, 8.0]], &device).require_grad();
//! let ones = Tensor::<1>::ones([4], &device);
//! let y = Activation::Gelu.apply(layer_norm(x.clone(), ones.clone(), ones.zeros_like(), 1e-5));
//! let gradients = y.sum().backward();
//! assert_eq!(x.grad(&gradients).unwrap().dims(), [1, 4]);
//! ```

mod activation;
mod attention;
mod columns;
mod dropout;
mod error;
mod fused;
mod hadamard;
mod linear;
mod loss;
mod low_rank;
mod norm;
mod optimizer;
mod per_sequence;
mod quantization;
mod residual;
mod rope;
mod sequences;

pub use activation::{Activation, exp};
pub use attention::{Attention, Keys, Prefix, attention};
pub use columns::scale_columns;
pub use dropout::{Dropout, dropout};
pub use error::OpsError;
pub use fused::{composed, fork, on_processor, pull_back, split_off};
pub use hadamard::hadamard;
pub use linear::{FrozenMatrix, Precision, QuantizedSource, Source, Weight, linear, rows};
pub use loss::{
    IGNORED, binary_cross_entropy, cross_entropy, language_model_loss, mean_squared_error,
    span_cross_entropy, symmetric_divergence,
};
pub use low_rank::{LowRank, add_low_rank, low_rank_linear};
pub use norm::{add_layer_norm, layer_norm, rms_norm};
pub use optimizer::{AdamW, Moments, accumulate, scale, square_sum};
pub use per_sequence::{expand_rows, mean_rows};
pub use quantization::Quantization;
pub use residual::add;
pub use rope::{Angles, rotate};
pub use sequences::Sequences;

pub use epiphyte_kernels::allocator;
pub use epiphyte_kernels::memory::keep_freed_memory;
pub use epiphyte_kernels::quantized;
pub use epiphyte_kernels::random;
pub use epiphyte_kernels::scratch_bytes;
pub use epiphyte_kernels::threads::{awake, set_threads, threads};
