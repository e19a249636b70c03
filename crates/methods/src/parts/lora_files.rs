//! What variants of LoRA say of their files: as LoRA does.

/// The rules of files of a `MethodConfig` whose settings are those of LoRA in `self.lora`, besides
/// its `peft_defaults`.
macro_rules! rules {
    () => {
        fn file_defaults() -> serde_json::Map<String, serde_json::Value> {
            crate::reparametrized::lora::LoraConfig::file_defaults()
        }

        const SPARES_BIASES: bool = crate::reparametrized::lora::LoraConfig::SPARES_BIASES;

        const TRAINING_ONLY: &'static [&'static str] =
            crate::reparametrized::lora::LoraConfig::TRAINING_ONLY;

        const IGNORED: &'static [&'static str] = crate::reparametrized::lora::LoraConfig::IGNORED;

        const OWN: &'static [&'static str] = crate::reparametrized::lora::LoraConfig::OWN;

        const REFUSED: &'static [(&'static str, &'static str)] =
            crate::reparametrized::lora::LoraConfig::REFUSED;

        const COMPUTED: &'static [&'static str] = crate::reparametrized::lora::LoraConfig::COMPUTED;

        fn computed(
            &self,
            base: &epiphyte_models::Base,
        ) -> serde_json::Map<String, serde_json::Value> {
            self.lora.computed(base)
        }
    };
}

pub(crate) use rules;
