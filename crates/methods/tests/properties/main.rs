//! What every registered method must satisfy on every family: a method joins by being registered.

mod bottlenecks;
mod counts;
mod decoding;
mod equivalence;
mod finite_differences;
mod first_pass;
mod gradients;
mod quantized;
mod support;
mod virtual_tokens;
