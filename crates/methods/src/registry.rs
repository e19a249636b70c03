//! All methods, by name. A method joins by its line in [`METHODS`].

use epiphyte_models::Base;
use serde_json::{Map, Value};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::settings::{self, Flag, SettingError};
use crate::framework::taxonomy::{Claims, Kind};
use crate::{
    MethodError, ParameterSet, adapters, hybrid, reparametrized, selective, side_networks,
    soft_prompts,
};

/// The methods there are.
pub static METHODS: &[Definition] = &[
    Definition::of::<selective::full::FullConfig>(),
    Definition::of::<selective::trainable_tokens::TrainableTokensConfig>(),
    Definition::of::<selective::freeze::FreezeConfig>(),
    Definition::of::<selective::bitfit::BitFitConfig>(),
    Definition::of::<selective::cross_attention::CrossAttentionConfig>(),
    Definition::of::<selective::diff_pruning::DiffPruningConfig>(),
    Definition::of::<selective::ln_tuning::LnTuningConfig>(),
    Definition::of::<selective::fish_mask::FishMaskConfig>(),
    Definition::of::<selective::far::FarConfig>(),
    Definition::of::<selective::lt_sft::LtSftConfig>(),
    Definition::of::<reparametrized::lora::LoraConfig>(),
    Definition::of::<reparametrized::lora_fa::LoraFaConfig>(),
    Definition::of::<reparametrized::adalora::AdaLoraConfig>(),
    Definition::of::<reparametrized::adamss::AdaMssConfig>(),
    Definition::of::<reparametrized::dora::DoraConfig>(),
    Definition::of::<reparametrized::alora::ALoraConfig>(),
    Definition::of::<reparametrized::x_lora::XLoraConfig>(),
    Definition::of::<reparametrized::kasa::KasaConfig>(),
    Definition::of::<reparametrized::bdlora::BdLoraConfig>(),
    Definition::of::<reparametrized::vera::VeraConfig>(),
    Definition::of::<reparametrized::pvera::PveraConfig>(),
    Definition::of::<reparametrized::hira::HiraConfig>(),
    Definition::of::<reparametrized::gralora::GraLoraConfig>(),
    Definition::of::<reparametrized::glora::GLoraConfig>(),
    Definition::of::<reparametrized::peanut::PeanutConfig>(),
    Definition::of::<reparametrized::super_tuning::SuperTuningConfig>(),
    Definition::of::<reparametrized::krona::KronaConfig>(),
    Definition::of::<reparametrized::said::SaidConfig>(),
    Definition::of::<reparametrized::tinylora::TinyLoraConfig>(),
    Definition::of::<reparametrized::unilora::UniLoraConfig>(),
    Definition::of::<reparametrized::vblora::VbLoraConfig>(),
    Definition::of::<reparametrized::deft::DeftConfig>(),
    Definition::of::<reparametrized::osf::OsfConfig>(),
    Definition::of::<reparametrized::frod::FrodConfig>(),
    Definition::of::<reparametrized::lily::LilyConfig>(),
    Definition::of::<reparametrized::poly::PolyConfig>(),
    Definition::of::<reparametrized::psoft::PsoftConfig>(),
    Definition::of::<reparametrized::randlora::RandLoraConfig>(),
    Definition::of::<reparametrized::delora::DeloraConfig>(),
    Definition::of::<reparametrized::loha::LohaConfig>(),
    Definition::of::<reparametrized::lokr::LokrConfig>(),
    Definition::of::<reparametrized::miss::MissConfig>(),
    Definition::of::<reparametrized::c3a::C3aConfig>(),
    Definition::of::<reparametrized::fourierft::FourierFtConfig>(),
    Definition::of::<reparametrized::waveft::WaveFtConfig>(),
    Definition::of::<reparametrized::shira::ShiraConfig>(),
    Definition::of::<reparametrized::oft::OftConfig>(),
    Definition::of::<reparametrized::boft::BoftConfig>(),
    Definition::of::<reparametrized::hra::HraConfig>(),
    Definition::of::<reparametrized::road::RoadConfig>(),
    Definition::of::<adapters::ia3::Ia3Config>(),
    Definition::of::<adapters::beft::BeftConfig>(),
    Definition::of::<adapters::houlsby::HoulsbyConfig>(),
    Definition::of::<adapters::pfeiffer::PfeifferConfig>(),
    Definition::of::<adapters::parallel::ParallelConfig>(),
    Definition::of::<adapters::scaled_parallel::ScaledParallelConfig>(),
    Definition::of::<adapters::adapter_plus::AdapterPlusConfig>(),
    Definition::of::<adapters::compacter::CompacterConfig>(),
    Definition::of::<adapters::compacter_plus_plus::CompacterPlusPlusConfig>(),
    Definition::of::<adapters::phm::PhmAdapterConfig>(),
    Definition::of::<adapters::krona_b::KronaBConfig>(),
    Definition::of::<adapters::krona_b::KronaBResConfig>(),
    Definition::of::<adapters::reft::ReftConfig>(),
    Definition::of::<adapters::sparse_adapter::SparseAdapterConfig>(),
    Definition::of::<adapters::adapter_fusion::AdapterFusionConfig>(),
    Definition::of::<adapters::adamix::AdaMixConfig>(),
    Definition::of::<adapters::adamix_lora::AdaMixLoraConfig>(),
    Definition::of::<soft_prompts::prompt_tuning::PromptTuningConfig>(),
    Definition::of::<soft_prompts::prefix_tuning::PrefixTuningConfig>(),
    Definition::of::<soft_prompts::p_tuning::PTuningConfig>(),
    Definition::of::<soft_prompts::p_tuning_v2::PTuningV2Config>(),
    Definition::of::<soft_prompts::multitask_prompt_tuning::MultitaskPromptTuningConfig>(),
    Definition::of::<soft_prompts::spot::SpotConfig>(),
    Definition::of::<soft_prompts::ipt::IptConfig>(),
    Definition::of::<soft_prompts::cpt::CptConfig>(),
    Definition::of::<soft_prompts::cartridge::CartridgeConfig>(),
    Definition::of::<soft_prompts::adaption_prompt::AdaptionPromptConfig>(),
    Definition::of::<side_networks::ladder_side_tuning::LadderSideTuningConfig>(),
    Definition::of::<side_networks::attention_fusion::AttentionFusionConfig>(),
    Definition::of::<side_networks::lets::LetsConfig>(),
    Definition::of::<hybrid::mam::MamConfig>(),
    Definition::of::<hybrid::unipelt::UniPeltConfig>(),
    Definition::of::<hybrid::s4::S4Config>(),
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

/// The method of an `adapter_config.json` that HF PEFT wrote: the variant of its `peft_type` if one
/// fits, else the first method of that type that is no variant.
pub fn by_peft_config(json: &Map<String, Value>) -> Option<&'static Definition> {
    let peft_type = json.get("peft_type").and_then(Value::as_str)?;
    let of_type = || METHODS.iter().filter(|it| it.peft_type == peft_type);
    let is_variant = |it: &&Definition| {
        it.peft_variant
            .is_some_and(|(key, value)| is_on(json.get(key)) == value)
    };
    let plain = || of_type().find(|it| it.peft_variant.is_none());
    of_type().find(is_variant).or_else(plain)
}

/// Whether a value of a file asks for something: it is true, or not empty.
pub(crate) fn is_on(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

/// Makes a configuration of settings.
type Configure = fn(Map<String, Value>) -> Result<Box<dyn AnyConfig>, MethodError>;

/// Reads a configuration of AdapterHub's.
type OfAdapterHub = fn(&Map<String, Value>, &Base) -> Option<Box<dyn AnyConfig>>;

/// A method as the registry knows it: [`MethodConfig`] without the type.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// The name on the command line.
    pub name: &'static str,
    /// `peft_type` in `adapter_config.json`.
    pub peft_type: &'static str,
    /// As [`MethodConfig::PEFT_VARIANT`].
    pub peft_variant: Option<(&'static str, bool)>,
    /// Whether HF PEFT has the method and reads its files.
    pub in_peft: bool,
    /// One line on what it does.
    pub summary: &'static str,
    /// Where it is defined.
    pub paper: &'static str,
    /// How the keys of its file begin.
    pub keys: KeyStyle,
    /// As [`MethodConfig::LEARNING_RATE`].
    pub learning_rate: f64,
    /// As [`MethodConfig::kind`].
    pub kind: fn() -> Kind,
    /// As [`MethodConfig::CLAIMS`].
    pub claims: Option<Claims>,
    /// Its flags.
    pub flags: &'static [Flag],
    /// The default of each setting.
    pub defaults: fn() -> Map<String, Value>,
    /// Whether it can be folded into the base.
    pub merges: bool,
    /// Settings to test it with.
    pub examples: fn() -> Vec<Value>,
    /// As [`MethodConfig::file_defaults`].
    pub file_defaults: fn() -> Map<String, Value>,
    /// Keys that HF PEFT writes besides those of the configuration.
    pub peft_defaults: fn() -> Map<String, Value>,
    /// Keys that HF PEFT writes and that follow from the base.
    pub computed: &'static [&'static str],
    /// As [`MethodConfig::TRAINING_ONLY`].
    pub training_only: &'static [&'static str],
    /// As [`MethodConfig::IGNORED`].
    pub ignored: &'static [&'static str],
    /// As [`MethodConfig::OWN`].
    pub own: &'static [&'static str],
    /// As [`MethodConfig::LISTS_MODULES`].
    pub lists_modules: bool,
    /// As [`MethodConfig::REFUSED`].
    pub refused: &'static [(&'static str, &'static str)],
    /// As [`MethodConfig::SPARES_BIASES`].
    pub spares_biases: bool,
    /// As [`MethodConfig::TRAINS_ALONE`].
    pub trains_alone: bool,
    configure: Configure,
    of_adapterhub: OfAdapterHub,
}

impl Definition {
    /// The method of this configuration. [`METHODS`] lists those that this crate has; a method of
    /// another crate needs no place in it to train and to act.
    pub const fn of<C: MethodConfig>() -> Self {
        Self {
            name: C::NAME,
            peft_type: C::PEFT_TYPE,
            peft_variant: C::PEFT_VARIANT,
            in_peft: C::IN_PEFT,
            summary: C::SUMMARY,
            paper: C::PAPER,
            keys: C::KEYS,
            learning_rate: C::LEARNING_RATE,
            kind: C::kind,
            claims: C::CLAIMS,
            flags: C::FLAGS,
            defaults: || object(&C::default()),
            merges: C::MERGES,
            examples: C::examples,
            file_defaults: C::file_defaults,
            peft_defaults: C::peft_defaults,
            computed: C::COMPUTED,
            training_only: C::TRAINING_ONLY,
            ignored: C::IGNORED,
            own: C::OWN,
            lists_modules: C::LISTS_MODULES,
            refused: C::REFUSED,
            spares_biases: C::SPARES_BIASES,
            trains_alone: C::TRAINS_ALONE,
            of_adapterhub: |config, base| Some(Box::new(C::of_adapterhub(config, base)?)),
            configure: |given| {
                let config = settings::parse::<C>(&given).map_err(wrong::<C>)?;
                config.check().map_err(wrong::<C>)?;
                Ok(Box::new(config))
            },
        }
    }

    /// The method with these settings; what they leave out has its default.
    ///
    /// # Errors
    /// [`MethodError::Configuration`] if a key is unknown, [`MethodError::Setting`] if its value is
    /// of the wrong type, [`MethodError::Value`] if it is out of range.
    pub fn configure(
        &self,
        settings: Map<String, Value>,
    ) -> Result<Box<dyn AnyConfig>, MethodError> {
        (self.configure)(settings)
    }

    /// As [`MethodConfig::of_adapterhub`].
    pub fn of_adapterhub(
        &self,
        config: &Map<String, Value>,
        base: &Base,
    ) -> Option<Box<dyn AnyConfig>> {
        (self.of_adapterhub)(config, base)
    }
}

/// What is wrong with a setting of the method `C`.
fn wrong<C: MethodConfig>(error: SettingError) -> MethodError {
    let method = C::NAME;
    match error {
        SettingError::Unknown { .. } => MethodError::Configuration {
            method,
            reason: error.to_string(),
        },
        SettingError::Type { key, problem } => MethodError::Setting {
            method,
            key,
            problem,
        },
        SettingError::Range { key, value, range } => MethodError::Value {
            method,
            key,
            value: value.to_string(),
            expected: format!("it must be {range}"),
        },
    }
}

/// A method's configuration without its type.
pub trait AnyConfig: std::fmt::Debug + Send + Sync {
    /// The method.
    fn definition(&self) -> &'static Definition;

    /// As [`MethodConfig::starts_as_identity`].
    fn starts_as_identity(&self) -> bool;

    /// As [`MethodConfig::texts`].
    fn texts(&self, labels: &[String]) -> Vec<(String, bool)>;

    /// As [`MethodConfig::set_tokens`].
    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>);

    /// As [`MethodConfig::check_start`].
    ///
    /// # Errors
    /// As there.
    fn check_start(&self, base: &Base) -> Result<(), MethodError>;

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

    /// As [`MethodConfig::to_adapterhub`].
    ///
    /// # Errors
    /// As there.
    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError>;

    /// The configuration under which what the file stores are the parameters.
    fn stored(&self) -> Box<dyn AnyConfig>;
}

/// How many times the parameters of the base a method may train; sizes come from flags and from
/// files of strangers, and become allocations.
const TIMES_THE_BASE: usize = 16;
/// What it may train besides, for bases that are tiny.
const ADDED: usize = 1 << 24;

fn most_parameters(base: &Base) -> usize {
    base.count() * TIMES_THE_BASE + ADDED
}

impl<C: MethodConfig> AnyConfig for C {
    fn definition(&self) -> &'static Definition {
        const { &Definition::of::<C>() }
    }

    fn starts_as_identity(&self) -> bool {
        MethodConfig::starts_as_identity(self)
    }

    fn texts(&self, labels: &[String]) -> Vec<(String, bool)> {
        MethodConfig::texts(self, labels)
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>) {
        MethodConfig::set_tokens(self, tokens);
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        MethodConfig::check_start(self, base)
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.check().map_err(wrong::<C>)?;
        let count = MethodConfig::count(self, base)?;
        let most = most_parameters(base);
        if count > most {
            return Err(MethodError::Configuration {
                method: C::NAME,
                reason: format!(
                    "with these settings it would train {count} parameters, and at most {most} make \
                     sense over this base ({TIMES_THE_BASE} times its own and {ADDED} more)"
                ),
            });
        }
        MethodConfig::build(self, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.check().map_err(wrong::<C>)?;
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

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        MethodConfig::to_adapterhub(self, base)
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
    use std::collections::BTreeMap;

    use serde_json::{Map, Value, json};

    use super::{METHODS, by_name};

    #[test]
    fn every_setting_has_a_flag_and_every_flag_a_setting() {
        for definition in METHODS {
            let config = definition.configure(Map::new()).unwrap();
            let settings = config.settings();
            let mut keys: Vec<&str> = settings.keys().map(String::as_str).collect();
            let mut flags: Vec<&str> = definition.flags.iter().map(|flag| flag.key).collect();
            keys.sort_unstable();
            flags.sort_unstable();
            assert_eq!(keys, flags, "{}", definition.name);
        }
    }

    #[test]
    fn a_name_of_a_flag_means_the_same_in_every_method() {
        let mut known = BTreeMap::new();
        for definition in METHODS {
            for flag in definition.flags {
                for name in [flag.flag].iter().chain(flag.aliases) {
                    let meaning = (flag.key, flag.kind);
                    let first = *known.entry(*name).or_insert(meaning);
                    assert_eq!(first, meaning, "--{name} of {}", definition.name);
                }
            }
        }
    }

    #[test]
    fn settings_are_read_back_as_they_were_written() {
        for definition in METHODS {
            for example in (definition.examples)() {
                let Value::Object(example) = example else {
                    panic!("{}: {example} is not an object", definition.name)
                };
                let settings = definition.configure(example).unwrap().settings();
                let again = definition.configure(settings.clone()).unwrap().settings();
                assert_eq!(settings, again, "{}", definition.name);
            }
        }
    }

    fn error(method: &str, settings: Value) -> String {
        let Value::Object(settings) = settings else {
            panic!("{settings} is not an object")
        };
        let configured = by_name(method).unwrap().configure(settings);
        configured.unwrap_err().to_string()
    }

    #[test]
    fn unknown_keys_are_refused_beside_shared_groups() {
        for definition in METHODS {
            let error = error(definition.name, json!({ "no_such_key": 1 }));
            assert!(
                error.contains("there is no setting `no_such_key`"),
                "{error}"
            );
        }
        let layers = error("ia3", json!({ "layers_to_transform": [0] }));
        assert!(layers.contains("`layers_to_transform`"), "{layers}");
    }

    #[test]
    fn wrong_values_are_named_with_their_key() {
        for (method, settings, message) in [
            (
                "lora",
                json!({ "rank": "x" }),
                "lora: `r`: \"x\" is not a whole number",
            ),
            (
                "lora",
                json!({ "rank": -8 }),
                "lora: `r`: -8 is not a whole number, 0 or more",
            ),
            (
                "lora",
                json!({ "init_lora_weights": "loft" }),
                "corda, lora_ga and loftq are",
            ),
            (
                "adalora",
                json!({ "rank_pattern": 3 }),
                "adalora: `rank_pattern`: 3 is not a table",
            ),
            (
                "lora",
                json!({ "rank": 0 }),
                "lora: `r` is 0, but it must be at least 1",
            ),
            (
                "lora",
                json!({ "dropout": 1 }),
                "lora: `lora_dropout` is 1, but it must be in [0, 1)",
            ),
            (
                "ia3",
                json!({ "target_modules": 3 }),
                "ia3: `target_modules`: 3 is not a list of texts, or one text",
            ),
            (
                "houlsby",
                json!({ "reduction_factor": 0 }),
                "`reduction_factor` is 0",
            ),
        ] {
            let error = error(method, settings);
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn one_value_is_a_list_of_one() {
        let settings = json!({ "layers_to_transform": 1, "layers_pattern": "layers" });
        let Value::Object(settings) = settings else {
            unreachable!()
        };
        let lora = by_name("lora").unwrap().configure(settings).unwrap();
        assert_eq!(lora.settings()["layers_to_transform"], json!([1]));
        assert_eq!(lora.settings()["layers_pattern"], json!(["layers"]));
    }

    #[test]
    fn names_that_were_valid_stay_valid() {
        for (method, old, key) in [
            ("lora", "rank", "r"),
            ("lora", "alpha", "lora_alpha"),
            ("lora", "dropout", "lora_dropout"),
            ("lora", "target-modules", "target_modules"),
            ("prefix-tuning", "init-weights", "init_weights"),
            ("houlsby", "init-weights", "init_weights"),
        ] {
            let is_called = |flag: &&crate::Flag| flag.is_called(old);
            let flag = by_name(method).unwrap().flags.iter().find(is_called);
            assert_eq!(flag.map(|flag| flag.key), Some(key), "{method} {old}");
        }
    }
}
