//! Matrix products.
//!
//! A frozen weight never changes, so it is packed once, as a [`PackedWeight`], in the order in
//! which the product reads it; the forward pass `y = x Wᵀ` and the backward pass `dx = g W` use the
//! same copy. All other products (trained weights, low-rank paths, weight gradients) pack their
//! operands each time: [`matmul`].
//!
//! Both run the same code, and both guarantee on one instruction set:
//!
//! - the result has the same bytes on any number of threads;
//! - a row of the result depends on that row of the left operand alone, not on how many other
//!   rows there are. So adapters trained together, their rows in one batch, get the same bytes as
//!   each alone.
//!
//! ```
//! use epiphyte_kernels::gemm::{Epilogue, PackedWeight, Precision};
//!
//! // [out = 2, in = 3]
//! let weight = PackedWeight::pack(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3, Precision::F32)?;
//! let mut y = [0.0; 2];
//! let epilogue = Epilogue { bias: Some(&[10.0, 20.0]), low_rank: None };
//! weight.forward(&[1.0, 0.0, -1.0], epilogue, &mut y)?;
//! assert_eq!(y, [8.0, 18.0]);
//! let mut dx = [1.0; 3];
//! weight.backward_input(&[1.0, 1.0], None, &mut dx, true)?;
//! assert_eq!(dx, [6.0, 8.0, 10.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

#[cfg(target_arch = "x86_64")]
mod coded;
mod lanes;
mod macrokernel;
mod matmul;
mod microkernel;
mod packing;
pub(crate) mod small;
mod weight;

pub use matmul::{Operand, affine, matmul};
pub use weight::{Epilogue, LowRank, PackedWeight, Precision};
