//! All methods, by name. A method joins by its line in [`METHODS`].

use epiphyte_models::Base;
use serde_json::{Map, Value};

use crate::method::{Flag, KeyStyle, Method, MethodConfig};
use crate::{MethodError, ParameterSet};
use crate::{
    bitfit, freeze, full, houlsby, ia3, lora, p_tuning_v2, pfeiffer, prefix_tuning, prompt_tuning,
};

/// The methods there are.
pub static METHODS: &[Definition] = &[
    Definition::of::<full::FullConfig>(),
    Definition::of::<freeze::FreezeConfig>(),
    Definition::of::<bitfit::BitFitConfig>(),
    Definition::of::<lora::LoraConfig>(),
    Definition::of::<ia3::Ia3Config>(),
    Definition::of::<houlsby::HoulsbyConfig>(),
    Definition::of::<pfeiffer::PfeifferConfig>(),
    Definition::of::<prompt_tuning::PromptTuningConfig>(),
    Definition::of::<prefix_tuning::PrefixTuningConfig>(),
    Definition::of::<p_tuning_v2::PTuningV2Config>(),
];

/// The method of a name.
///
/// # Errors
/// [`MethodError::UnknownMethod`], which lists the names there are.
pub fn by_name(name: &str) -> Result<&'static Definition, MethodError> {
    METHODS
        .iter()
        .find(|definition| definition.name == name)
        .ok_or_else(|| {
            let known: Vec<&str> = METHODS.iter().map(|definition| definition.name).collect();
            MethodError::UnknownMethod {
                name: name.to_owned(),
                known: known.join(", "),
            }
        })
}

/// The method whose files say `peft_type`; of several, the first.
pub fn by_peft_type(peft_type: &str) -> Option<&'static Definition> {
    METHODS
        .iter()
        .find(|definition| definition.peft_type == peft_type)
}

/// Makes a configuration of settings.
type Configure = fn(Map<String, Value>) -> Result<Box<dyn AnyConfig>, MethodError>;

/// A method as the registry knows it: [`MethodConfig`] without the type.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name on the command line.
    pub name: &'static str,
    /// `peft_type` in `adapter_config.json`.
    pub peft_type: &'static str,
    /// Whether HF PEFT has the method and reads its files.
    pub in_peft: bool,
    /// One line on what it does.
    pub summary: &'static str,
    /// Where it is defined.
    pub paper: &'static str,
    /// How the keys of its file begin.
    pub keys: KeyStyle,
    /// Its flags.
    pub flags: &'static [Flag],
    /// Keys that HF PEFT writes besides those of the configuration.
    pub peft_defaults: fn() -> Map<String, Value>,
    /// Keys that HF PEFT writes and that follow from the base.
    pub computed: &'static [&'static str],
    configure: Configure,
}

impl Definition {
    const fn of<C: MethodConfig>() -> Self {
        Self {
            name: C::NAME,
            peft_type: C::PEFT_TYPE,
            in_peft: C::IN_PEFT,
            summary: C::SUMMARY,
            paper: C::PAPER,
            keys: C::KEYS,
            flags: C::FLAGS,
            peft_defaults: C::peft_defaults,
            computed: C::COMPUTED,
            configure: |settings| {
                let config: C =
                    serde_json::from_value(Value::Object(settings)).map_err(|error| {
                        MethodError::Configuration {
                            method: C::NAME,
                            reason: error.to_string(),
                        }
                    })?;
                Ok(Box::new(config))
            },
        }
    }

    /// The method with these settings; what they leave out has its default.
    ///
    /// # Errors
    /// [`MethodError::Configuration`] if a key is unknown or of the wrong type.
    pub fn configure(
        &self,
        settings: Map<String, Value>,
    ) -> Result<Box<dyn AnyConfig>, MethodError> {
        (self.configure)(settings)
    }
}

/// A method's configuration without its type.
pub trait AnyConfig: std::fmt::Debug + Send + Sync {
    /// The method.
    fn definition(&self) -> &'static Definition;

    /// As [`MethodConfig::build`].
    ///
    /// # Errors
    /// As there.
    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError>;

    /// As [`MethodConfig::count`].
    ///
    /// # Errors
    /// As there.
    fn count(&self, base: &Base) -> Result<usize, MethodError>;

    /// The settings, with what they leave to the base filled in, under the file's keys.
    fn resolved(&self, base: &Base) -> Map<String, Value>;

    /// As [`MethodConfig::computed`].
    fn computed(&self, base: &Base) -> Map<String, Value>;

    /// The settings as they are.
    fn settings(&self) -> Map<String, Value>;

    /// The configuration under which what the file stores are the parameters.
    fn stored(&self) -> Box<dyn AnyConfig>;
}

impl<C: MethodConfig> AnyConfig for C {
    fn definition(&self) -> &'static Definition {
        by_name(C::NAME).expect("a configuration is made by its definition")
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        MethodConfig::build(self, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        MethodConfig::count(self, base)
    }

    fn resolved(&self, base: &Base) -> Map<String, Value> {
        object(&MethodConfig::resolved(self, base))
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        MethodConfig::computed(self, base)
    }

    fn settings(&self) -> Map<String, Value> {
        object(self)
    }

    fn stored(&self) -> Box<dyn AnyConfig> {
        Box::new(MethodConfig::stored(self))
    }
}

fn object<C: MethodConfig>(config: &C) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(map)) => map,
        _ => unreachable!("a configuration is a struct of plain values"),
    }
}

#[cfg(test)]
mod tests {
    use super::METHODS;

    #[test]
    fn every_setting_has_a_flag_and_every_flag_a_setting() {
        for definition in METHODS {
            let config = definition.configure(serde_json::Map::new()).unwrap();
            let settings = config.settings();
            let mut keys: Vec<&str> = settings.keys().map(String::as_str).collect();
            let mut flags: Vec<&str> = definition.flags.iter().map(|flag| flag.key).collect();
            keys.sort_unstable();
            flags.sort_unstable();
            assert_eq!(keys, flags, "{}", definition.name);
        }
    }
}
