//! CPU kernels for training over a frozen transformer: slices in, slices out, no framework.
//!
//! - Every kernel chooses its code at run time by [`Isa::current`]: AVX-512 (with bf16), AVX2, NEON
//!   or portable Rust.
//! - [`threads::for_each`] runs work on rayon's pool; the result never depends on the number of
//!   threads.
//! - A wrong shape is a [`KernelError`], not a panic.
//! - Matrices are row-major and dense; hidden states are `[tokens, hidden]`, without padding.

pub mod activation;
pub mod adamw;
pub mod allocator;
pub mod attention;
pub mod columns;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
mod error;
pub mod gemm;
pub mod hadamard;
pub mod isa;
mod math;
pub mod memory;
pub mod norm;
pub mod quantized;
pub mod random;
pub mod rope;
mod scratch;
mod simd;
pub mod threads;
pub mod vector;

pub use error::KernelError;
pub use isa::Isa;
pub use scratch::scratch_bytes;
