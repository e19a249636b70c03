//! Parameter-efficient fine-tuning of pretrained transformers.
//!
//! The base model stays frozen; a method trains a small number of parameters, which are saved as an
//! adapter. This crate re-exports the project's crates, in the order in which a program uses them:
//!
//! | module | content |
//! | --- | --- |
//! | [`hub`] | from a model's name on the Hugging Face hub to its directory |
//! | [`data`] | readers, label sets, tokenizers, chat templates, batches |
//! | [`models`] | transformer families, read from Hugging Face directories; the hooks of methods |
//! | [`methods`] | the fine-tuning methods and the adapter files of HF PEFT |
//! | [`mod@train`] | training, evaluation, prediction, generation, merging |
//! | [`io`] | files that are replaced atomically, safetensors files |
//!
//! [`train::train`] is a whole run, from a configuration to a saved adapter, and what happens
//! during it goes to a [`train::Observer`]. [`Classifier`] opens a base with an adapter and
//! classifies strings, [`Embedder`] makes vectors of them; [`train::open_adapter`] serves every
//! task. A model is a directory or a name on the hub. The programs in `examples/` show each of
//! these. Types of two lower crates appear in some signatures (`ops::Precision`,
//! `ops::Sequences`); everything else in `ops` and `kernels` may change without notice.
//!
//! # Example
//!
//! The number of parameters that a method trains is known before training:
//!
//! ```
//! use epiphyte::Device;
//! use epiphyte::methods::{AdapterModule, by_name};
//! use epiphyte::models::{ModelConfig, HeadKind, random_model};
//! use epiphyte::ops::Precision;
//!
//! let config = br#"{
//!     "model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
//!     "intermediate_size": 128, "vocab_size": 100
//! }"#;
//! let config = ModelConfig::parse("config.json".as_ref(), config)?;
//! let (task, device) = (HeadKind::Classification { labels: 2 }, Device::default());
//! let model = random_model(&config, task, &device, Precision::F32, 0)?;
//!
//! let settings = serde_json::json!({ "rank": 8, "target_modules": ["query", "value"] });
//! let lora = by_name("lora")?.configure(settings.as_object().unwrap().clone())?;
//! let module = AdapterModule::new(lora, model.base(), &device, 0)?;
//!
//! // Rank times inputs and outputs, of two matrices in each of two layers.
//! assert_eq!(module.counts(model.base()).trainable_parameters, 8 * (64 + 64) * 2 * 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use burn::tensor::{Device, Tensor};

pub use epiphyte_data as data;
pub use epiphyte_hub as hub;
pub use epiphyte_io as io;
#[doc(hidden)]
pub use epiphyte_kernels as kernels;
pub use epiphyte_methods as methods;
pub use epiphyte_models as models;
#[doc(hidden)]
pub use epiphyte_ops as ops;
pub use epiphyte_train as train;
pub use epiphyte_train::{Classifier, Embedder, Prediction};

/// The example of the crate's README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
