//! Whole runs over a small model: what may not change their result, and does not; what cannot be
//! run, and is refused.

mod carried_out;
mod decoding;
mod directory;
mod embeddings;
mod encoder_decoder;
mod evaluation;
mod inputs;
mod masked_lm;
mod merged;
mod quantized;
mod resume;
mod world;
mod written_texts;
