//! From a file of examples to batches of token ids.
//!
//! | step | types |
//! | --- | --- |
//! | read a file | [`ReadOptions`], [`Format`] → [`Table`] of [`Value`]s |
//! | say what its columns are | [`Columns`] → [`Fields`], [`LabelField`], [`LabelSet`] |
//! | load the base model's tokenizer | [`Tokenizer`], [`ChatTemplate`] |
//! | tokenize rows | [`EncodeOptions`] → [`Examples`] of [`Example`]s, each with a [`Target`] |
//! | have a model write | [`WritingPrompt`]s with the texts that would be right |
//! | write a file of columns | [`OutputFormat`], [`OutputColumn`] |
//! | order and join them | [`Order`], [`Batches`], [`Epochs`] → [`Batch`] with its [`Targets`] |
//!
//! The crate knows fields and kinds of targets, not tasks: which fields a task reads is decided by
//! the caller.
//!
//! Batches have no padding. Their sequences are concatenated, with cumulative boundaries, so that
//! no computation is spent on padding and a linear layer is one matrix product. The order of the
//! batches depends on seed and epoch alone and any batch can be computed at any time, so that a
//! stopped run resumes exactly.
//!
//! Files, columns and token ids that are larger than [`ReadOptions::in_memory`] lie in files
//! without a name, which are mapped into memory: data may be larger than memory.
//!
//! ```
//! use epiphyte_data::{LabelSet, ReadOptions, Table};
//!
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("train.jsonl");
//! let rows = [
//!     r#"{"text": "a joy", "label": "good"}"#,
//!     r#"{"text": "a bore", "label": "bad"}"#,
//! ];
//! std::fs::write(&path, rows.join("\n"))?;
//!
//! let table = Table::read(&path, &ReadOptions::default())?;
//! assert_eq!(table.texts("text")?, ["a joy", "a bore"]);
//!
//! let labels = LabelSet::from_column(&table, "label")?;
//! assert_eq!(labels.names(), ["bad", "good"]);
//! assert_eq!(labels.ids(&table, "label")?, [1, 0]);
//!
//! let error = table.texts("txt").unwrap_err();
//! assert!(error.to_string().ends_with("it has `text`, `label`; did you mean `text`?"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod panics;
mod spelling;
mod table;
mod values;

mod readers;
mod writer;

mod cloze;
mod fields;
mod labels;
mod layouts;
mod messages;
mod prompt;
mod prompts;

mod chat;
mod tokenizer;

mod encode;
mod example;
mod examples;

mod batch;
mod masking;
mod order;

pub use batch::{Batch, Batches, Epoch, Epochs, TargetSequences, Targets};
pub use chat::{ChatTemplate, Day, TemplateLimit};
pub use cloze::{Cloze, WordPlace};
pub use encode::{EncodeOptions, windows_of_row};
pub use error::DataError;
pub use example::{Example, IGNORED, SOFT, Target, UNKNOWN};
pub use examples::Examples;
pub use fields::{Columns, Fields, LabelField};
pub use labels::LabelSet;
pub use layouts::{DOCUMENTS, Layout, PLAIN_TEXT, TEXTS_AND_PAIRS};
pub use masking::Masking;
pub use order::Order;
pub use prompt::{Piece, Prompt, before_blank};
pub use prompts::WritingPrompt;
pub use readers::{DataFile, Format, ReadOptions, parse_delimiter};
pub use spelling::nearest_name;
pub use table::{Answer, Table, Value};
pub use tokenizer::{
    Alignment, Encoding, Tokenizer, Window, Windows, check_max_length, gguf, tokenizer_files,
};
pub use writer::{OutputColumn, OutputFormat};
