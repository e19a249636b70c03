//! From a file of examples to batches of token ids.
//!
//! The way through the crate: a file is read into a [`Table`]; [`Columns`] and a [`TaskKind`] say which columns
//! mean what; a [`Tokenizer`] and, for classes, a [`LabelSet`] turn rows into [`Examples`]; [`Batches`] orders
//! and joins them.
//!
//! Batches are not padded. Their sequences stand one behind the other with cumulative boundaries, so that a model
//! spends no work on padding and a linear map is one plain matrix product. Their order depends on seed and epoch
//! alone and any batch can be asked for at any time, so that a stopped run resumes exactly.
//!
//! ```
//! use epiphyte_data::{LabelSet, ReadOptions, Table};
//!
//! let directory = tempfile::tempdir()?;
//! let path = directory.path().join("train.jsonl");
//! std::fs::write(&path, "{\"text\": \"a joy\", \"label\": \"good\"}\n{\"text\": \"a bore\", \"label\": \"bad\"}\n")?;
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

mod batch;
mod chat;
mod csv;
mod error;
mod example;
mod json;
mod labels;
mod language;
mod order;
mod parquet;
mod read;
mod sequence;
mod table;
mod task;
mod tokenizer;

pub use batch::{Batch, Batches, Epoch, Epochs, Targets};
pub use chat::ChatTemplate;
pub use error::DataError;
pub use example::{EncodeOptions, Example, Examples, IGNORED, Labels, Target};
pub use labels::LabelSet;
pub use order::{Order, WINDOW_BATCHES};
pub use read::{Format, ReadOptions};
pub use table::{Table, Value};
pub use task::{Columns, Fields, TaskKind};
pub use tokenizer::{Alignment, Encoding, Tokenizer, check_max_length};
