//! Parameter-efficient fine-tuning methods, one file each, and the adapter files of HF PEFT.
//!
//! A method's file holds all of it: paper, equation, shapes, parameters, file keys, tests. It acts on
//! a model through the seam ([`epiphyte_models::Adapter`]) alone; the registry ([`METHODS`]) is the
//! only other file that names it. Methods of one kind share what is the same: [`delta`] for changes
//! of a linear map's weight, [`replace`] for tensors that stand in for the base's, [`bottleneck`] for
//! small networks beside the layers.
//!
//! ```
//! let lora = epiphyte_methods::by_name("lora")?;
//! let settings = serde_json::json!({ "rank": 4, "target_modules": ["query"] });
//! let config = lora.configure(settings.as_object().unwrap().clone())?;
//! assert_eq!(config.settings()["r"], 4);
//! # Ok::<(), epiphyte_methods::MethodError>(())
//! ```

mod adapter_module;
pub mod bitfit;
pub mod bottleneck;
mod calibration;
mod composition;
pub mod delta;
mod dense;
mod error;
pub mod file;
pub mod freeze;
pub mod full;
mod gradients;
pub mod houlsby;
pub mod ia3;
pub mod lora;
mod method;
pub mod p_tuning_v2;
mod parameters;
pub mod pfeiffer;
pub mod prefix_tuning;
pub mod prompt_tuning;
mod registry;
pub mod replace;
pub mod settings;
pub mod targets;
mod virtual_tokens;

pub use adapter_module::{AdapterModule, ParameterCounts};
pub use calibration::{CalibrationData, Each};
pub use composition::Chain;
pub use error::MethodError;
pub use gradients::Gradients;
pub use method::{
    KeyStyle, Method, MethodConfig, OptimizerState, Stage, StepInfo, Stored, StoredTensors,
    StoredValues,
};
pub use parameters::{Init, Param, ParamGroup, ParamId, ParamKind, ParameterSet};
pub use registry::{AnyConfig, Definition, METHODS, by_name, by_peft_type};
pub use settings::{Flag, FlagKind, Settings};
pub use targets::Modules;
