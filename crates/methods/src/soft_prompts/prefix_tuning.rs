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
//! An encoder-decoder has a prefix in front of the decoder's own keys, as in HF PEFT;
//! `encoder_prefix` and `cross_prefix` add one to the encoder's and to the keys of cross-attention,
//! which the paper's BART has too. Positions start behind the prefix in the stack whose
//! self-attention has one. T5 scores a prefix by its distance, as it scores tokens.
//!
//! `P: [p, 2 L kv]` holds keys and values of layer 0, then of layer 1, and so on, where `L` counts
//! all attentions with a prefix: the decoder's, then the encoder's, then cross-attention. With
//! `prefix_projection` it is not trained itself but is what a network makes of a small one while
//! training, `P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂` with `E: [p, kv]` and hidden size `h`, and the
//! file holds its result. It is computed once a step.
//! `P` and `E` start normal with standard deviation one, the maps as PyTorch starts them, or `P` at
//! zero with `init_weights` = `zero`, or as the keys and values that the base computes for a text
//! (section 7.4 of the paper: words of the task), without network as in PEFT. `prefix_dropout`
//! drops elements of the keys and values during training; each sequence has its own draw.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 L p kv`; with the projection `p kv + (kv h + h) + (2 L kv h + 2 L kv)` |
//! | changes | `2 L p kv` |
//! | file | `prompt_embeddings` `[p, 2 L kv]` |
//! | merges | no |
//!
//! In a file for an encoder-decoder HF PEFT reads keys of layer `l` at block `4l mod 2N` and values
//! at the next, where `N` is the file's `num_layers`: with `N = L`, as PEFT writes, layers share
//! prefixes and half of the blocks are dead. We write `N = 2L`, so that each layer has its own; the
//! other blocks are zero. Both are read, and files with `N = L` written again as they were.

use epiphyte_models::Base;
use epiphyte_ops::Activation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::dense::Dense;
use crate::parts::prefix::{self, Layout, Prefixes, Reach, TextStart, kv_width};
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
        /// Layers that HF PEFT counts in the table; of an encoder-decoder twice its decoder's.
        num_layers: Option<usize> = None, flag "prefix-num-layers", in Size, unset "those of the model";
        /// A prefix in the encoder of an encoder-decoder too (HF PEFT cannot read it).
        encoder_prefix: bool = false;
        /// A prefix in its cross-attention too (HF PEFT cannot read it).
        cross_prefix: bool = false;

        ..prefix: PrefixSettings = PrefixSettings::default();
        ..text: TextStart = TextStart::default();
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
    /// Which attentions of an encoder-decoder have a prefix, if the settings do not say.
    pub(crate) reach: Reach,
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
    reach: Reach {
        encoder: false,
        cross: false,
    },
};

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
        virtual_tokens::check(variant.method, self.num_virtual_tokens, base)
    }

    /// Where the table of a method without further settings has its keys and values.
    fn layout(variant: &Variant, base: &Base) -> Layout {
        let layout = Layout::new(base, variant.reach, None);
        layout.expect("every model has the layout of new adapters")
    }

    /// As [`MethodConfig::build`], for methods that store the prefix beside other tensors.
    pub(crate) fn build(
        &self,
        variant: &Variant,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Prefixes, MethodError> {
        let layout = Self::layout(variant, base);
        self.build_with(variant, layout, false, base, parameters)
    }

    /// As [`MethodConfig::build`]; with `zero`, all keys and values start at zero.
    fn build_with(
        &self,
        variant: &Variant,
        layout: Layout,
        zero: bool,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Prefixes, MethodError> {
        self.check(variant, base)?;
        let (length, width) = (self.num_virtual_tokens, kv_width(base));
        let size = 2 * layout.pairs * width;
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
        let pieces = match self.prefix_projection {
            true => Vec::new(),
            false => vec![table.clone()],
        };
        Ok(Prefixes {
            method: variant.method,
            table,
            pieces,
            length,
            layout,
            encoder_layers: base.dimensions.encoder_layers,
            kv_size: width,
            dropout: self.dropout(variant),
            start: None,
        })
    }

    /// As [`MethodConfig::count`], for methods that store the prefix beside other tensors.
    pub(crate) fn count(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
        self.count_with(variant, &Self::layout(variant, base), base)
    }

    fn count_with(
        &self,
        variant: &Variant,
        layout: &Layout,
        base: &Base,
    ) -> Result<usize, MethodError> {
        self.check(variant, base)?;
        let (length, width) = (self.num_virtual_tokens, kv_width(base));
        let all = 2 * layout.pairs * width;
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
    fn layout(&self, variant: &Variant, base: &Base) -> Result<Layout, MethodError> {
        let reach = Reach {
            encoder: self.encoder_prefix,
            cross: self.cross_prefix,
        };
        if reach != Reach::default() && base.dimensions.encoder_layers == 0 {
            return Err(MethodError::NotApplicable {
                method: variant.method,
                model_type: base.dimensions.model_type.clone(),
                reason:
                    "`encoder_prefix` and `cross_prefix` are for encoder-decoders; leave them out"
                        .to_owned(),
            });
        }
        Layout::new(base, reach, self.num_layers).ok_or_else(|| {
            let known = Layout::new(base, reach, None);
            MethodError::Value {
                method: variant.method,
                key: "num_layers",
                value: self.num_layers.unwrap_or_default().to_string(),
                expected: format!(
                    "the table of this model counts {}: leave it out",
                    known.map_or(0, |layout| layout.counted)
                ),
            }
        })
    }

    /// As [`MethodConfig::build`].
    pub(crate) fn build_as(
        &self,
        variant: &Variant,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let zero = self.init_weights == Some(PrefixInit::Zero);
        let layout = self.layout(variant, base)?;
        let mut prefixes = self
            .prefix
            .build_with(variant, layout, zero, base, parameters)?;
        prefixes.start = self.text.prefix_init_token_ids.clone();
        Ok(Box::new(prefixes))
    }

    /// As [`MethodConfig::count`].
    pub(crate) fn count_as(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
        let layout = self.layout(variant, base)?;
        self.prefix.count_with(variant, &layout, base)
    }

    /// As [`MethodConfig::resolved`].
    pub(crate) fn resolved_as(&self, variant: &Variant, base: &Base) -> Self {
        let layout = self.layout(variant, base);
        Self {
            prefix: self.prefix.resolved(variant, base),
            num_layers: layout.map_or(self.num_layers, |layout| Some(layout.counted)),
            text: TextStart::default(),
            ..self.clone()
        }
    }

    /// As [`MethodConfig::stored`].
    pub(crate) fn flat(&self) -> Self {
        Self {
            prefix: self.prefix.flat(),
            text: TextStart::default(),
            ..self.clone()
        }
    }

    /// As [`MethodConfig::check_start`].
    pub(crate) fn check_start_as(&self, variant: &Variant, base: &Base) -> Result<(), MethodError> {
        let other = match (self.prefix.prefix_projection, self.init_weights) {
            (true, _) => "`prefix_projection`, whose network computes them",
            (_, Some(PrefixInit::Zero)) => "`init_weights` zero",
            _ => {
                let length = self.prefix.num_virtual_tokens;
                return self.text.check(variant.method, length, base);
            }
        };
        match self.text.prefix_init_text {
            None => Ok(()),
            Some(_) => Err(MethodError::Configuration {
                method: variant.method,
                reason: format!("keys and values cannot start as `prefix_init_text` with {other}"),
            }),
        }
    }

    /// The settings that HF PEFT does not have.
    pub(crate) const OWN_KEYS: &'static [&'static str] =
        &["prefix_init_text", "encoder_prefix", "cross_prefix"];
}

impl MethodConfig for PrefixTuningConfig {
    const NAME: &'static str = "prefix-tuning";
    const PEFT_TYPE: &'static str = "PREFIX_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "trained keys and values in front of those of every layer";
    const PAPER: &'static str = "Li and Liang 2021, arXiv 2101.00190";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = prefix::COMPUTED;
    const OWN: &'static [&'static str] = Self::OWN_KEYS;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "num_virtual_tokens": 4, "prefix_projection": true, "encoder_hidden_size": 5 }),
            json!({ "num_virtual_tokens": 3, "encoder_prefix": true, "cross_prefix": true }),
        ]
    }

    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        self.text.texts()
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>) {
        self.text.set_tokens(tokens);
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.check_start_as(&PREFIX_TUNING, base)
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.build_as(&PREFIX_TUNING, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.count_as(&PREFIX_TUNING, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        self.resolved_as(&PREFIX_TUNING, base)
    }

    fn stored(&self) -> Self {
        self.flat()
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        prefix::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}
