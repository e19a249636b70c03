//! Readers: a file in one of several formats to a [`crate::Table`]. `read` chooses the reader.

mod csv;
mod json;
mod parquet;
mod read;
mod source;

pub use read::{Format, ReadOptions, parse_delimiter};
