//! Prefix-Tuning: trained keys and values in front of those of every layer.
//!
//! Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv
//! 2101.00190.
//!
//! In layer `l` attention runs over `[P_K; K]` and `[P_V; V]`, with `P_K, P_V: [p, kv]` and `kv`
//! the width of all key heads together. As in HF PEFT, the text's own tokens start at position `p`,
//! and rotary positions do not turn the prefix. Every query sees the whole prefix, but for models
//! with a sliding window: there it stands at positions 0 to `p - 1`, and later tokens lose sight of
//! it. A prefix of zeros is not the identity: it takes its share of the softmax.
//!
//! `P: [p, 2 L kv]` holds keys and values of layer 0, then of layer 1, and so on. With
//! `prefix_projection` it is not trained itself but is what a network makes of a small one while
//! training, `P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂` with `E: [p, kv]` and hidden size `h`, and the
//! file holds its result. It is computed once a step.
//! `P` and `E` start normal with standard deviation one, the maps as PyTorch starts them, or `P` at
//! zero with `init_weights` = `zero`. `prefix_dropout` drops elements of the keys and values during
//! training; each sequence has its own draw.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 L p kv`; with the projection `p kv + (kv h + h) + (2 L kv h + 2 L kv)` |
//! | changes | `2 L p kv` |
//! | file | `prompt_embeddings` `[p, 2 L kv]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::adapter::{AttentionSite, name_id};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook};
use epiphyte_ops::{Activation, Dropout, Prefix, Sequences};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stored};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::dense::Dense;
use crate::parts::virtual_tokens::{self, KEY};

crate::settings! {
    /// The settings of a prefix, under HF PEFT's names.
    pub struct PrefixSettings {
        /// Number of virtual tokens.
        num_virtual_tokens: usize = 20, in Size;
        /// Compute the prefixes with a small network during training.
        prefix_projection: bool = false;
        /// Hidden size of that network.
        encoder_hidden_size: Option<usize> = None, in Size,
            unset "prefix-tuning the size of all keys of a token, p-tuning-v2 512";
        /// Dropout on keys and values of the prefix.
        prefix_dropout: Option<f64> = None, in Fraction, unset "prefix-tuning 0, p-tuning-v2 0.1";
    }
}

crate::settings! {
    /// The settings of Prefix-Tuning, under HF PEFT's names.
    pub struct PrefixTuningConfig {
        /// Initial values: zero, instead of random.
        init_weights: Option<PrefixInit> = None, flag "prefix-init", as Text;

        ..prefix: PrefixSettings = PrefixSettings::default();
    }
}

/// How a prefix starts, if not at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixInit {
    /// All keys and values zero.
    Zero,
}

/// What a method with prefixes does where its configuration leaves it open.
pub(crate) struct Variant {
    /// The method's name.
    pub(crate) method: &'static str,
    /// How tables of vectors start.
    pub(crate) embedding: Init,
    /// Initial weight and bias of a linear layer with this many inputs.
    pub(crate) dense: fn(inputs: usize) -> (Init, Init),
    /// Hidden size of the network, by the width of the keys.
    pub(crate) hidden_size: fn(kv_width: usize) -> usize,
    /// Dropout on keys and values.
    pub(crate) dropout: f64,
}

/// Prefix-Tuning as HF PEFT has it.
pub(crate) const PREFIX_TUNING: Variant = Variant {
    method: PrefixTuningConfig::NAME,
    embedding: Init::Normal { std: 1.0 },
    dense: |inputs| {
        let bound = 1.0 / (inputs as f64).sqrt();
        (Init::Uniform { bound }, Init::Uniform { bound })
    },
    hidden_size: |kv_width| kv_width,
    dropout: 0.0,
};

/// Width of all key heads together, which is also that of all value heads.
fn kv_width(base: &Base) -> usize {
    base.dimensions.kv_heads * base.dimensions.head_dim
}

impl PrefixSettings {
    fn hidden_size(&self, variant: &Variant, base: &Base) -> usize {
        self.encoder_hidden_size
            .unwrap_or_else(|| (variant.hidden_size)(kv_width(base)))
    }

    fn dropout(&self, variant: &Variant) -> f64 {
        self.prefix_dropout.unwrap_or(variant.dropout)
    }

    /// Checks that a prefix of this length can stand in front of the base's keys and values.
    pub(crate) fn check(&self, variant: &Variant, base: &Base) -> Result<(), MethodError> {
        if base.dimensions.encoder_layers > 0 {
            return Err(MethodError::NotApplicable {
                method: variant.method,
                model_type: base.dimensions.model_type.clone(),
                reason: "prefixes of encoder-decoders are not implemented; LoRA is".to_owned(),
            });
        }
        virtual_tokens::check(variant.method, self.num_virtual_tokens, base)
    }

    /// As [`MethodConfig::build`]; with `zero`, all keys and values start at zero.
    pub(crate) fn build(
        &self,
        variant: &Variant,
        zero: bool,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.check(variant, base)?;
        let (layers, length, width) = (
            base.dimensions.layers,
            self.num_virtual_tokens,
            kv_width(base),
        );
        let size = 2 * layers * width;
        let table = if self.prefix_projection {
            let hidden = self.hidden_size(variant, base);
            let embedding = variant.embedding.clone();
            let embedding = parameters.declare("embedding.weight", &[length, width], embedding);
            let init = (variant.dense)(width);
            let inward = Dense::declare(parameters, "transform.0", [hidden, width], init);
            let init = match zero {
                true => (Init::Zeros, Init::Zeros),
                false => (variant.dense)(hidden),
            };
            let outward = Dense::declare(parameters, "transform.2", [size, hidden], init);
            parameters.derived(KEY, &[length, size], move || {
                let inner = Activation::Tanh.apply(inward.forward(embedding.get()));
                outward.forward(inner).reshape([length * size])
            })
        } else {
            let init = match zero {
                true => Init::Zeros,
                false => variant.embedding.clone(),
            };
            parameters.declare(KEY, &[length, size], init)
        };
        Ok(Box::new(Prefixes {
            method: variant.method,
            table,
            length,
            layers,
            kv_size: width,
            dropout: self.dropout(variant),
        }))
    }

    /// As [`MethodConfig::count`].
    pub(crate) fn count(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
        self.check(variant, base)?;
        let (length, width) = (self.num_virtual_tokens, kv_width(base));
        let all = 2 * base.dimensions.layers * width;
        if !self.prefix_projection {
            return Ok(length * all);
        }
        let hidden = self.hidden_size(variant, base);
        Ok(length * width + Dense::count([hidden, width]) + Dense::count([all, hidden]))
    }

    /// As [`MethodConfig::resolved`].
    pub(crate) fn resolved(&self, variant: &Variant, base: &Base) -> Self {
        Self {
            encoder_hidden_size: Some(self.hidden_size(variant, base)),
            prefix_dropout: Some(self.dropout(variant)),
            ..self.clone()
        }
    }

    /// The configuration whose parameters are what the file stores: the table, with no network.
    pub(crate) fn flat(&self) -> Self {
        Self {
            prefix_projection: false,
            ..self.clone()
        }
    }
}

impl PrefixTuningConfig {
    /// As [`MethodConfig::build`].
    pub(crate) fn build_as(
        &self,
        variant: &Variant,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let zero = self.init_weights == Some(PrefixInit::Zero);
        self.prefix.build(variant, zero, base, parameters)
    }

    /// As [`MethodConfig::resolved`].
    pub(crate) fn resolved_as(&self, variant: &Variant, base: &Base) -> Self {
        Self {
            prefix: self.prefix.resolved(variant, base),
            ..self.clone()
        }
    }

    /// As [`MethodConfig::stored`].
    pub(crate) fn flat(&self) -> Self {
        Self {
            prefix: self.prefix.flat(),
            ..self.clone()
        }
    }

    /// As [`MethodConfig::computed`].
    pub(crate) fn computed_of(base: &Base) -> Map<String, Value> {
        virtual_tokens::computed(base, base.dimensions.kv_heads, kv_width(base))
    }
}

impl MethodConfig for PrefixTuningConfig {
    const NAME: &'static str = "prefix-tuning";
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "trained keys and values in front of those of every layer";
    const PAPER: &'static str = "Li and Liang 2021, arXiv 2101.00190";
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = virtual_tokens::COMPUTED;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "num_virtual_tokens": 4, "prefix_projection": true, "encoder_hidden_size": 5 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.build_as(&PREFIX_TUNING, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.prefix.count(&PREFIX_TUNING, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        self.resolved_as(&PREFIX_TUNING, base)
    }

    fn stored(&self) -> Self {
        self.flat()
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        Self::computed_of(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}

/// Keys and values for every layer.
#[derive(Debug)]
struct Prefixes {
    method: &'static str,
    /// `[length, 2 · layers · kv_size]`, trained or derived.
    table: Param,
    length: usize,
    layers: usize,
    kv_size: usize,
    dropout: f64,
}

impl Prefixes {
    /// Keys and values of a layer in one matrix, `[length, 2 · kv_size]`.
    fn of_layer(&self, layer: usize) -> Tensor<2> {
        let size = 2 * self.kv_size;
        self.table.get::<2>().narrow(1, layer * size, size)
    }

    /// Keys and values apart.
    fn split(&self, both: Tensor<2>) -> [Tensor<2>; 2] {
        let keys = both.clone().narrow(1, 0, self.kv_size);
        [keys, both.narrow(1, self.kv_size, self.kv_size)]
    }
}

impl Adapter for Prefixes {
    fn prefix_length(&self) -> usize {
        self.length
    }

    fn prefix(&self, at: AttentionSite, _x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        let both = self.of_layer(at.layer);
        let count = cx.rows.count();
        let boundaries = (0..=count).map(|sequence| sequence * self.length);
        let rows = Sequences::new(boundaries.collect());
        let rows = match cx.rows.keys() {
            Some(keys) => rows.with_keys(keys.to_vec()),
            None => rows,
        };
        let Some(dropout) = Dropout::new(self.dropout, name_id("prefix") + at.layer as u64, &rows)
        else {
            let [keys, values] = self.split(both);
            return Some(Prefix::Shared { keys, values });
        };
        // Each sequence has its own draw, as in the paper's code.
        let repeated: Vec<usize> = (0..count).flat_map(|_| 0..self.length).collect();
        let [keys, values] = self.split(dropout.apply(epiphyte_ops::rows(both, &repeated)));
        Some(Prefix::PerSequence {
            length: self.length,
            keys,
            values,
        })
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Prefix(_))
    }
}

impl Method for Prefixes {
    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        vec![Stored::of(&self.table)]
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: self.method,
            reason: "its keys and values depend on no input",
        })
    }

    fn changed(&self) -> usize {
        2 * self.layers * self.length * self.kv_size
    }
}
