//! Transformer families from Hugging Face directories, with a hook at every place where a
//! fine-tuning method acts.
//!
//! [`load`] reads `config.json` and the safetensors of a directory, or a GGUF file of llama.cpp's
//! ([`gguf`]), checks every tensor, and returns a [`Model`]: tokens in, logits or a loss out. The
//! model calls an [`Adapter`] at each hook ([`adapter`]); [`Identity`] leaves the base as it is.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use epiphyte_models::{HeadKind, Identity, LoadOptions, Tokens, load};
//! use epiphyte_ops::Sequences;
//!
//! let head = HeadKind::Classification { labels: 2 };
//! let options = LoadOptions::default();
//! let loaded = load("bert-base-uncased".as_ref(), head, &Device::default(), &options)?;
//! let tokens = Tokens::new(&[101, 7592, 102], &[0, 0, 0], Sequences::new(vec![0, 3]));
//! println!("{}", loaded.model.logits(&tokens, &Identity));
//! # Ok::<(), epiphyte_models::ModelError>(())
//! ```

pub mod adapter;
mod backbone;
mod base;
pub mod blocks;
mod builder;
mod cache;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod families;
pub mod generation_config;
pub mod gguf;
pub mod heads;
mod json;
pub mod keys;
mod load;
mod mapped_file;
mod model;
pub mod quantized;
pub mod rope;
pub mod shapes;
mod tokens;

pub use adapter::{
    Adapter, AdapterBatch, Embedded, Entry, ForwardContext, Hidden, Hook, Identity, LazyLinear,
    Role, Site, StandIn, Stream, Sublayer,
};
pub use backbone::Backbone;
pub use base::{Base, BaseTensor, DefaultTargets, Depth, Dimensions, LinearInfo};
pub use builder::{Builder, Source};
pub use cache::Cache;
pub use checkpoint::Checkpoint;
pub use error::ModelError;
pub use families::{ConfigFacts, ModelConfig};
pub use heads::HeadKind;
pub use load::{LoadOptions, Loaded, RandomSource, head_outputs, load, load_sharing, random_model};
pub use mapped_file::report_truncated_files;
pub use model::{DECODER_STREAM, ENCODER_STREAM, Loss, LossRows, Model, Targets};
pub use tokens::{DecoderTokens, Mode, SOFT_TOKEN, Tokens};
