//! Parameter-efficient fine-tuning of pretrained transformers.
//!
//! An epiphyte grows on a tree without changing it: the base model stays frozen, what is learned is a
//! small file beside it. This crate gathers the project's crates under one name, and the `epiphyte`
//! binary stands on nothing else. From the bottom up:
//!
//! - [`kernels`]: slices in, slices out, on the CPU
//! - [`ops`]: the same as differentiable operations on tensors
//! - [`models`]: Hugging Face directories, transformer families, the seam where methods act
//! - [`methods`]: one fine-tuning method a file, and HF PEFT's adapter files
//! - [`hub`]: a model's name on the Hugging Face hub to its directory
//! - [`data`]: files of examples to batches of tokens
//! - [`mod@train`]: from a configuration to an adapter, exactly resumable
//!
//! What a method costs on a model can be told before anything is trained:
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
//! let tuned = AdapterModule::new(lora, model.base(), &device, 0)?;
//!
//! // Rank times inputs and outputs, of two matrices in each of two layers.
//! assert_eq!(tuned.counts(model.base()).trainable_parameters, 8 * (64 + 64) * 2 * 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`train::train`] takes a whole run from files to an adapter.

pub use burn::tensor::Device;

pub use epiphyte_data as data;
pub use epiphyte_hub as hub;
pub use epiphyte_io as io;
pub use epiphyte_kernels as kernels;
pub use epiphyte_methods as methods;
pub use epiphyte_models as models;
pub use epiphyte_ops as ops;
pub use epiphyte_train as train;
