//! Every kernel, on every instruction set of this machine, against a reference in f64.
//!
//! The references are written down from the definitions, slowly and plainly; their gradients are
//! checked by central differences.

mod activation;
mod adamw;
mod attention;
mod columns;
mod cross_entropy;
mod embedding;
mod norm;
mod not_finite;
mod rope;
mod support;
mod vector;
