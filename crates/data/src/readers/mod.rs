//! Readers: a file in one of several formats to a [`crate::Table`]. `read` chooses the reader.

mod conll;
mod csv;
mod files;
mod json;
mod parquet;
mod read;
mod source;

pub use files::DataFile;
pub use read::{Format, ReadOptions, parse_delimiter};
