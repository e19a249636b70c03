//! Reading Hugging Face directories: good ones, damaged ones, and real ones.

mod checkpoint;
mod config;
mod keys;
mod real;
mod rope;
