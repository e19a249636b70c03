//! Transformer families from Hugging Face directories, with a seam at every place where a fine-tuning
//! method acts.
//!
//! [`load`] reads `config.json` and the safetensors of a directory, checks every tensor, and returns a
//! [`Transformer`]: tokens in, logits or a loss out. The model asks an [`Adapter`] at each place
//! ([`seam`]); [`Identity`] leaves the base as it is.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use epiphyte_models::{Identity, LoadOptions, Task, Tokens, load};
//! use epiphyte_ops::Sequences;
//!
//! let task = Task::SequenceClassification { labels: 2 };
//! let loaded = load("bert-base-uncased".as_ref(), task, &Device::default(), &LoadOptions::default())?;
//! let tokens = Tokens {
//!     ids: &[101, 7592, 102],
//!     type_ids: &[0, 0, 0],
//!     sequences: Sequences::new(vec![0, 3]),
//! };
//! println!("{}", loaded.model.logits(&tokens, &Identity));
//! # Ok::<(), epiphyte_models::ModelError>(())
//! ```

mod base;
mod bert;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod generation_config;
mod group;
mod json;
pub mod keys;
mod llama;
mod load;
mod model;
pub mod rope;
pub mod seam;

pub use base::{Base, BaseTensor, Dimensions, Linear, LinearInfo};
pub use bert::Bert;
pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use error::ModelError;
pub use group::Group;
pub use llama::Llama;
pub use load::{LoadOptions, Loaded, load, random_model};
pub use model::{Goal, Hidden, Loss, Targets, Task, Tokens, Transformer};
pub use seam::{Adapter, Embedded, Identity, Part, Place, Product, Role, Site, Sublayer};
