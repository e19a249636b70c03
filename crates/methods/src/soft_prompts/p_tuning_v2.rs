//! P-Tuning v2: a prefix in every layer, for understanding tasks and small models.
//!
//! Liu, Ji, Fu, Tam, Du, Yang, Tang, "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning
//! Universally Across Scales and Tasks", ACL 2022, arXiv 2110.07602.
//!
//! The computation is that of [`prefix_tuning`](crate::soft_prompts::prefix_tuning), whose
//! configuration it shares; the paper's code differs in the start, normal with standard deviation
//! 0.02 (biases zero), in the dropout of 0.1 on keys and values, and in the optional network, whose
//! hidden size is 512. Its learning rates, 0.005 and more, need that start. HF PEFT reads the files
//! as `PREFIX_TUNING`.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 L p kv`; with the projection as Prefix-Tuning |
//! | changes | `2 L p kv` |
//! | file | `prompt_embeddings` `[p, 2 L kv]` |
//! | merges | no |

use epiphyte_models::Base;
use serde_json::{Map, Value};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::prefix::{self, Reach};
use crate::soft_prompts::prefix_tuning::{PrefixTuningConfig, Variant};

crate::settings! {
    /// The settings of P-Tuning v2: those of Prefix-Tuning, other defaults where they are left
    /// open.
    pub struct PTuningV2Config {
        ..prefix: PrefixTuningConfig = PrefixTuningConfig::default();
    }
}

const P_TUNING_V2: Variant = Variant {
    method: PTuningV2Config::NAME,
    embedding: Init::Normal { std: 0.02 },
    dense: |_inputs| (Init::Normal { std: 0.02 }, Init::Zeros),
    hidden_size: |_kv_width| 512,
    dropout: 0.1,
    reach: Reach {
        encoder: false,
        cross: false,
    },
};

impl MethodConfig for PTuningV2Config {
    const NAME: &'static str = "p-tuning-v2";
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "prefix tuning with a small start and dropout, for understanding tasks";
    const PAPER: &'static str = "Liu et al. 2022, arXiv 2110.07602";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = prefix::COMPUTED;
    const OWN: &'static [&'static str] = PrefixTuningConfig::OWN_KEYS;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        PrefixTuningConfig::examples()
    }

    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        self.prefix.text.texts()
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>) {
        self.prefix.text.set_tokens(tokens);
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.prefix.check_start_as(&P_TUNING_V2, base)
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.prefix.build_as(&P_TUNING_V2, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.prefix.count_as(&P_TUNING_V2, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            prefix: self.prefix.resolved_as(&P_TUNING_V2, base),
        }
    }

    fn stored(&self) -> Self {
        Self {
            prefix: self.prefix.flat(),
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        prefix::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        PrefixTuningConfig::peft_defaults()
    }
}
