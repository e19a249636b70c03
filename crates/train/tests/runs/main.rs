//! Whole runs over a small model: what may not change their result, and does not.

mod carried_out;
mod encoder_decoder;
mod resume;
mod world;
