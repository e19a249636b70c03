//! Parameter-efficient fine-tuning methods, one file each, and the adapter files of HF PEFT.
//!
//! A method's file holds all of it: paper, equation, shapes, parameters, file keys, tests. It acts
//! on a model through the hooks of [`epiphyte_models::Adapter`] alone; the registry ([`METHODS`])
//! and the list of modules below are the only other places that name it.
//!
//! [`framework`] is what every method is written against: the traits, parameters, gradients,
//! settings. [`parts`] is what methods of one kind share. The method files are in folders by the
//! taxonomy of the surveys.
//!
//! ```
//! let lora = epiphyte_methods::by_name("lora")?;
//! let settings = serde_json::json!({ "rank": 4, "target_modules": ["query"] });
//! let config = lora.configure(settings.as_object().unwrap().clone())?;
//! assert_eq!(config.settings()["r"], 4);
//! # Ok::<(), epiphyte_methods::MethodError>(())
//! ```

/// What every method is written against.
pub mod framework {
    pub mod calibration;
    pub mod composition;
    pub mod gradients;
    pub mod method;
    pub mod parameters;
    pub mod patterns;
    pub mod settings;
    pub mod targets;
    pub mod taxonomy;
    pub mod whole;
}

/// What methods of one kind share.
pub mod parts {
    pub(crate) mod adapterhub;
    pub mod bottleneck;
    pub mod delta;
    pub(crate) mod dense;
    pub mod experts;
    pub(crate) mod fastfood;
    pub mod invertible;
    pub mod kmeans;
    pub mod kronecker;
    pub(crate) mod lora_files;
    pub(crate) mod low_rank;
    pub mod low_rank_start;
    pub(crate) mod lstm;
    pub mod lycoris;
    pub mod numpy_generator;
    pub mod phm;
    pub mod prefix;
    pub mod prompt_library;
    pub mod replace;
    pub(crate) mod rotation;
    pub mod sparse;
    pub(crate) mod spectrum;
    pub mod start;
    pub mod structural_pruning;
    pub mod svd;
    pub mod torch_generator;
    pub mod virtual_tokens;
    pub(crate) mod wavelets;
}

/// Small networks and vectors added inside the layers.
pub mod adapters {
    pub mod adamix;
    pub mod adamix_lora;
    pub mod adapter_fusion;
    pub mod adapter_plus;
    pub mod beft;
    pub mod compacter;
    pub mod compacter_plus_plus;
    pub mod houlsby;
    pub mod ia3;
    pub mod krona_b;
    pub mod parallel;
    pub mod pfeiffer;
    pub mod phm;
    pub mod reft;
    pub mod scaled_parallel;
    pub mod sparse_adapter;
}

/// Several methods in one.
pub mod hybrid {
    pub mod mam;
    pub mod s4;
    pub mod unipelt;
}

/// Trained vectors in front of the input, or keys and values in front of those of each layer.
pub mod soft_prompts {
    pub mod adaption_prompt;
    pub mod cartridge;
    pub mod cpt;
    pub mod ipt;
    pub mod multitask_prompt_tuning;
    pub mod p_tuning;
    pub mod p_tuning_v2;
    pub mod prefix_tuning;
    pub mod prompt_tuning;
    pub mod spot;
}

/// Some of the base's own parameters.
pub mod selective {
    pub mod bitfit;
    pub mod cross_attention;
    pub mod diff_pruning;
    pub mod far;
    pub mod fish_mask;
    pub mod freeze;
    pub mod full;
    pub mod ln_tuning;
    pub mod lt_sft;
    pub mod trainable_tokens;
}

/// Changes of a weight that are expressed by few parameters.
pub mod reparametrized {
    pub mod adalora;
    pub mod adamss;
    pub mod alora;
    pub mod bdlora;
    pub mod boft;
    pub mod c3a;
    pub mod deft;
    pub mod delora;
    pub mod dora;
    pub mod fourierft;
    pub mod frod;
    pub mod glora;
    pub mod gralora;
    pub mod hira;
    pub mod hra;
    pub mod kasa;
    pub mod krona;
    pub mod lily;
    pub mod loha;
    pub mod lokr;
    pub mod lora;
    pub mod lora_fa;
    pub mod miss;
    pub mod oft;
    pub mod osf;
    pub mod peanut;
    pub mod poly;
    pub mod psoft;
    pub mod pvera;
    pub mod randlora;
    pub mod road;
    pub mod said;
    pub mod shira;
    pub mod super_tuning;
    pub mod tinylora;
    pub mod unilora;
    pub mod vblora;
    pub mod vera;
    pub mod waveft;
    pub mod x_lora;
}

/// Networks of their own that read the states of the frozen base.
pub mod side_networks {
    pub mod attention_fusion;
    pub mod ladder_side_tuning;
    pub mod lets;
}

mod adapter_module;
mod error;
pub mod file;
mod registry;
#[cfg(test)]
mod small_bert;
#[cfg(test)]
mod test_data;

pub use adapter_module::{AdapterModule, ParameterCounts, WholeInFile};
pub use error::MethodError;
pub use framework::calibration::{CalibrationData, Each};
pub use framework::composition::{Adapters, Chain, Member, Union};
pub use framework::gradients::Gradients;
pub use framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, OptimizerState, Stage, StepInfo, Stored,
    StoredTensors, StoredValues,
};
pub use framework::parameters::{Init, Param, ParamGroup, ParamId, ParamKind, ParameterSet};
pub use framework::settings::{Flag, FlagKind, Settings};
pub use framework::targets::Modules;
pub use framework::taxonomy::{Claims, Kind};
pub use registry::{AnyConfig, Definition, METHODS, by_name, by_peft_config};
