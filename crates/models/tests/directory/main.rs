//! Reading Hugging Face directories: good ones, damaged ones, and real ones; models made of them.

mod checkpoint;
mod company;
mod config;
mod gguf;
mod keys;
mod loading;
mod packed;
mod real;
mod rope;
