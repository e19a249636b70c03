//! Model families: one file each, and the table that lists them.
//!
//! A family reads its `config.json`, builds its backbone of [blocks](crate::blocks) and its head,
//! and says how its checkpoints name tensors. Adding one touches its own file and its line in
//! [`FAMILIES`].

pub mod albert;
pub mod bart;
pub mod bert;
pub mod deberta;
pub mod decoder;
pub mod distilbert;
pub mod electra;
pub mod encoder;
pub mod gemma;
pub mod glm;
pub mod gpt2;
pub mod gpt_neox;
pub mod llama;
pub mod modernbert;
pub mod mpnet;
pub mod olmo2;
pub mod opt;
pub mod phi3;
pub mod qwen3;
pub mod roberta;
pub mod smollm3;
pub mod t5;

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::ModelError;
use crate::builder::Builder;
use crate::config::Labels;
use crate::gguf;
use crate::heads::{HeadKind, MaskedLmNames};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;
use crate::quantized::Packing;

/// The families there are.
pub static FAMILIES: &[Family] = &[
    bert::FAMILY,
    roberta::FAMILY,
    distilbert::FAMILY,
    electra::FAMILY,
    mpnet::FAMILY,
    deberta::FAMILY,
    modernbert::FAMILY,
    albert::FAMILY,
    gpt2::FAMILY,
    llama::FAMILY,
    qwen3::FAMILY,
    gemma::FAMILY,
    gemma::GEMMA2_FAMILY,
    gemma::GEMMA3_FAMILY,
    phi3::FAMILY,
    smollm3::FAMILY,
    olmo2::FAMILY,
    glm::FAMILY,
    glm::GLM4_FAMILY,
    gpt_neox::FAMILY,
    opt::FAMILY,
    t5::FAMILY,
    bart::FAMILY,
    bart::MBART_FAMILY,
];

/// A family of models.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name in documents.
    pub name: &'static str,
    /// The values of `model_type` in `config.json` that belong to it.
    pub model_types: &'static [&'static str],
    /// Small configurations that switch on what the family has, for tests: `config.json` each.
    pub examples: fn() -> Vec<Value>,
    /// Reads the configuration of a `model_type`.
    parse: Parse,
}

/// Reads a family's configuration; the second argument is the `model_type`.
type Parse = fn(&JsonObject, &str) -> Result<Box<dyn FamilyConfig>, ModelError>;

/// The configuration of a family's model.
pub trait FamilyConfig: Any + fmt::Debug + Send + Sync {
    /// What all families' configurations say.
    fn facts(&self) -> ConfigFacts;

    /// A copy in which every dropout of the base is `p`.
    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig>;

    /// What checkpoints may hold beyond what the model with this head needs.
    fn key_rules(&self, head: HeadKind) -> KeyRules;

    /// The class of transformers that the model is; none if the family has no such head.
    fn class_name(&self, head: HeadKind) -> Option<String>;

    /// Path of the head that a task trains; none where the head is the language model's.
    fn task_head(&self, head: HeadKind) -> Option<&'static str>;

    /// The module at which AdapterHub's library has the adapters that stand here at the sub-layer
    /// of `module`, the module that holds the sub-layer's last linear layer; none where the
    /// library's names for the family are not known.
    fn adapterhub_site(&self, _module: &str) -> Option<String> {
        None
    }

    /// Names of the language model's head and of the embeddings that it is tied to, where the
    /// configuration ties them.
    fn tied(&self) -> Option<[&'static str; 2]> {
        None
    }

    /// The name of the word embeddings, then the names of what is tied to them: of these, some
    /// checkpoints hold one alone. Empty where nothing is tied.
    fn tied_embeddings(&self) -> &'static [&'static str] {
        &[]
    }

    /// Paths of modules besides the head that checkpoints of other tasks lack: they start at
    /// random and become part of what a task trains and saves. Not every head reads them.
    fn optional_modules(&self) -> &'static [&'static str] {
        &[]
    }

    /// How its masked language models' head is named; none if the family has none.
    fn masked_lm(&self) -> Option<&'static MaskedLmNames> {
        None
    }

    /// The first token that a decoder writes whatever its logits say, and the last one of a text
    /// that has reached its longest length, where there is no `generation_config.json`.
    fn forced_tokens(&self) -> [Option<u32>; 2] {
        [None; 2]
    }

    /// The values of the configuration on which results depend, besides sizes that the tensors
    /// show: what an adapter remembers of its base, so that another value is noticed.
    fn computation(&self) -> Value;

    /// The dropout probabilities, by their keys in `config.json`: what training depends on besides.
    fn dropouts(&self) -> Value;

    /// Builds the model out of what `builder` reads; a `tied` head is the word embeddings.
    ///
    /// # Errors
    /// If tensors cannot be read, or the family has no such head.
    fn build(&self, head: HeadKind, tied: bool, builder: Builder<'_>) -> Result<Model, ModelError>;
}

/// What the configurations of all families say.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigFacts {
    /// `model_type`, such as `bert`.
    pub model_type: String,
    /// `architectures`: the transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Names of the classes of a classification head.
    pub labels: Labels,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// The longest sequence that the model can read; none if positions are relative.
    pub max_position_embeddings: Option<usize>,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
}

/// The `config.json` of a supported model.
///
/// # Example
/// ```
/// use epiphyte_models::ModelConfig;
/// use epiphyte_models::families::bert::BertConfig;
/// let json = br#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6}"#;
/// let config = ModelConfig::parse("config.json".as_ref(), json)?;
/// assert_eq!(config.facts().hidden_size, 384);
/// let bert = config.of_family::<BertConfig>().unwrap();
/// assert_eq!(bert.intermediate_size, 3072); // transformers' default
/// # Ok::<(), epiphyte_models::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelConfig {
    facts: ConfigFacts,
    family: Arc<dyn FamilyConfig>,
    /// How its weights are packed, if they are.
    packing: Option<Packing>,
}

/// The file's name in a model directory.
const FILE: &str = "config.json";

const ADVICE: &str = "place the model's config.json there, from the model's page on huggingface.co \
    or a copy of it; config.json, model.safetensors and tokenizer.json belong in one directory";

const ADAPTER_ADVICE: &str = "this is the directory of an adapter; pass it as --adapter, and the \
    directory of its base as --model";

impl ModelConfig {
    /// Reads `config.json` in a model directory, or makes it of a GGUF file.
    ///
    /// # Errors
    /// [`ModelError::MissingDirectory`], [`ModelError::MissingFile`], [`ModelError::NotUtf8`],
    /// [`ModelError::Json`], [`ModelError::UnknownArchitecture`], [`ModelError::InvalidConfig`],
    /// [`ModelError::UnsupportedConfig`] and [`ModelError::Gguf`].
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Self::from_json(&Self::json_of(dir)?)
    }

    /// The content of a model's `config.json`, or what a GGUF file says under its keys.
    ///
    /// # Errors
    /// As [`ModelConfig::open`], except for what the keys say.
    pub fn read_json(dir: &Path) -> Result<Map<String, Value>, ModelError> {
        Ok(Self::json_of(dir)?.into_entries())
    }

    /// A configuration of these keys, which were made of the file at `path`.
    pub(crate) fn of_entries(path: &Path, entries: Map<String, Value>) -> Result<Self, ModelError> {
        Self::from_json(&JsonObject::new(path, entries))
    }

    fn json_of(dir: &Path) -> Result<JsonObject, ModelError> {
        if let Some(file) = gguf::open(dir)? {
            return Ok(JsonObject::new(file.path(), gguf::config(&file)?));
        }
        if !dir.is_dir() {
            return Err(ModelError::MissingDirectory {
                dir: dir.to_owned(),
            });
        }
        let is_adapter = dir.join("adapter_config.json").exists();
        let advice = if is_adapter { ADAPTER_ADVICE } else { ADVICE };
        JsonObject::read(&dir.join(FILE), advice)
    }

    /// Parses the bytes of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`ModelConfig::open`], except for missing files.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self, ModelError> {
        Self::from_json(&JsonObject::parse(path, json)?)
    }

    fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        let model_type: Option<String> = json.get("model_type", None)?;
        let mut packing = None;
        if let Some(quantization) = json.object("quantization_config")? {
            let method: String = quantization.get("quant_method", String::new())?;
            packing = Packing::parse(&quantization)?;
            if packing.is_none() && method != "bitsandbytes" {
                return Err(json.unsupported(
                    "quantization_config",
                    format!("a base that was saved quantized ({method})"),
                    "bitsandbytes, gptq, awq, and F64, F32, F16 and BF16 weights",
                ));
            }
        }
        let of_type = |model_type: String| {
            let mut families = FAMILIES.iter();
            let family = families.find(|it| it.model_types.contains(&&*model_type));
            family.map(|family| (model_type, family))
        };
        let Some((model_type, family)) = model_type.clone().and_then(of_type) else {
            let architectures = crate::config::architectures(json)?;
            let found = model_type.or(architectures.into_iter().next());
            return Err(ModelError::UnknownArchitecture {
                path: json.path().to_owned(),
                found: found.unwrap_or("(no model_type)".to_owned()),
                supported: supported().join(", "),
            });
        };
        Ok(Self::new(
            (family.parse)(json, &model_type)?.into(),
            packing,
        ))
    }

    fn new(family: Arc<dyn FamilyConfig>, packing: Option<Packing>) -> Self {
        Self {
            facts: family.facts(),
            family,
            packing,
        }
    }

    /// How the checkpoint's weights are packed, if they are.
    pub(crate) fn packing(&self) -> Option<Packing> {
        self.packing
    }

    /// What all families' configurations say.
    pub fn facts(&self) -> &ConfigFacts {
        &self.facts
    }

    /// The family's own view.
    pub fn family(&self) -> &dyn FamilyConfig {
        &*self.family
    }

    /// The values on which results depend, besides sizes that the tensors show: `hidden_act`,
    /// `num_attention_heads`, and so on. Neither the order of the file's keys nor a default that is
    /// written out changes them.
    pub fn computation(&self) -> Map<String, Value> {
        match self.family.computation() {
            Value::Object(values) => values,
            _ => Map::new(),
        }
    }

    /// The dropout probabilities of the base in training, by their keys.
    pub fn dropouts(&self) -> Map<String, Value> {
        match self.family.dropouts() {
            Value::Object(values) => values,
            _ => Map::new(),
        }
    }

    /// Whether `architectures` names the class of transformers that has this head: a model with it
    /// was saved.
    pub fn is_saved_with(&self, head: HeadKind) -> bool {
        let class = self.family.class_name(head);
        class.is_some_and(|class| self.facts.architectures.contains(&class))
    }

    /// Whether `architectures` says that the checkpoint's head is another one that a task trains:
    /// it may have the names and the shape of this one.
    pub fn is_for_another_task(&self, head: HeadKind) -> bool {
        let mut architectures = self.facts.architectures.iter();
        architectures.any(|class| head.is_another_than_of(class))
    }

    /// The configuration as that of one family, if it is.
    pub fn of_family<C: FamilyConfig>(&self) -> Option<&C> {
        (&*self.family as &dyn Any).downcast_ref()
    }

    /// A copy in which every dropout of the base is `p`.
    #[must_use]
    pub fn with_dropout(&self, p: f64) -> Self {
        Self::new(self.family.with_dropout(p).into(), self.packing)
    }
}

/// The values of `model_type` that are supported.
pub fn supported() -> Vec<&'static str> {
    let families = FAMILIES.iter();
    families
        .flat_map(|family| family.model_types)
        .copied()
        .collect()
}
