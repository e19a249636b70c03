//! The crate's integration tests, one binary so that it links once.

mod batches;
mod chat;
mod examples;
mod fixtures;
mod gguf;
mod golden;
mod large;
mod llama_cpp;
mod older_tokenizers;
mod prompts;
mod readers;
mod real_data;
mod several_files;
mod support;
mod tokenizer;
mod words;
