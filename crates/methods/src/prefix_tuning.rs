//! Prefix-Tuning: trained keys and values in front of those of every layer.
//!
//! Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv
//! 2101.00190.
//!
//! In layer `l` attention runs over `[P_K; K]` and `[P_V; V]`, with `P_K, P_V: [p, kv]` and `kv` the
//! width of all key heads together. As in HF PEFT, the text's own tokens start at position `p`, and
//! rotary positions do not turn the prefix. Every query sees the whole prefix, but for models with a
//! sliding window: there it stands at positions 0 to `p - 1`, and later tokens lose sight of it. A prefix
//! of zeros is not the identity: it takes its share of the softmax.
//!
//! `P: [p, 2 L kv]` holds keys and values of layer 0, then of layer 1, and so on. With
//! `prefix_projection` it is not trained itself but is what a network makes of a small one while
//! training, `P = tanh(E W₁ᵀ + b₁) W₂ᵀ + b₂` with `E: [p, kv]` and `h` values in the middle, and the
//! file holds its result. `W₂` is kept in a piece for each layer, so that a layer computes its own.
//! `P` and `E` start normal with standard deviation one, the maps as PyTorch starts them, or `P` at
//! zero with `init_weights` = `zero`. `prefix_dropout` drops elements of the keys and values while
//! training; as all sequences of a batch share the prefix, they share the draw.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 L p kv`; with the projection `p kv + (kv h + h) + (2 L kv h + 2 L kv)` |
//! | changes | `2 L p kv` |
//! | file | `prompt_embeddings` `[p, 2 L kv]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::seam::name_id;
use epiphyte_models::{Adapter, Base, Place};
use epiphyte_ops::{Activation, Prefix, Sequences, dropout};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::dense::Dense;
use crate::method::{KeyStyle, Method, MethodConfig, Stored};
use crate::parameters::{Init, Param, ParameterSet};
use crate::virtual_tokens::{self, KEY};

crate::settings! {
    /// The settings of Prefix-Tuning, under HF PEFT's names.
    pub struct PrefixTuningConfig {
        /// Number of virtual tokens.
        num_virtual_tokens: usize = 20, in AtLeastOne;
        /// Compute the prefixes with a small network during training.
        prefix_projection: bool = false;
        /// Hidden size of that network.
        encoder_hidden_size: Option<usize> = None, in AtLeastOne,
            unset "prefix-tuning the size of all keys of a token, p-tuning-v2 512";
        /// Initial values: zero, instead of random.
        init_weights: Option<PrefixInit> = None, flag "prefix-init", as Text;
        /// Dropout on keys and values of the prefix.
        prefix_dropout: Option<f64> = None, in Fraction, unset "prefix-tuning 0, p-tuning-v2 0.1";
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
    /// How weight and bias of a map with so many inputs start.
    pub(crate) dense: fn(inputs: usize) -> (Init, Init),
    /// Values in the middle of the network, by the width of the keys.
    pub(crate) hidden_size: fn(kv_width: usize) -> usize,
    /// Dropout on keys and values.
    pub(crate) dropout: f64,
}

/// Prefix-Tuning as HF PEFT has it.
const PREFIX_TUNING: Variant = Variant {
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

impl PrefixTuningConfig {
    fn hidden_size(&self, variant: &Variant, base: &Base) -> usize {
        self.encoder_hidden_size
            .unwrap_or_else(|| (variant.hidden_size)(kv_width(base)))
    }

    fn dropout(&self, variant: &Variant) -> f64 {
        self.prefix_dropout.unwrap_or(variant.dropout)
    }

    fn check(&self, variant: &Variant, base: &Base) -> Result<(), MethodError> {
        virtual_tokens::check(variant.method, self.num_virtual_tokens, base)
    }

    /// As [`MethodConfig::build`].
    pub(crate) fn build_as(
        &self,
        variant: &Variant,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.check(variant, base)?;
        let (layers, length, width) = (
            base.dimensions.layers,
            self.num_virtual_tokens,
            kv_width(base),
        );
        let zero = self.init_weights == Some(PrefixInit::Zero);
        let source = if self.prefix_projection {
            let hidden = self.hidden_size(variant, base);
            let embedding = parameters.declare(
                "embedding.weight",
                &[length, width],
                variant.embedding.clone(),
            );
            let inward = Dense::declare(
                parameters,
                "transform.0",
                [hidden, width],
                (variant.dense)(width),
            );
            let outward = (0..layers).map(|layer| {
                let init = if zero {
                    (Init::Zeros, Init::Zeros)
                } else {
                    (variant.dense)(hidden)
                };
                Dense::declare(
                    parameters,
                    &format!("transform.2.{layer}"),
                    [2 * width, hidden],
                    init,
                )
            });
            Source::Projection {
                embedding,
                inward,
                outward: outward.collect(),
            }
        } else {
            let init = if zero {
                Init::Zeros
            } else {
                variant.embedding.clone()
            };
            Source::Table(parameters.declare(KEY, &[length, 2 * layers * width], init))
        };
        Ok(Box::new(Prefixes {
            method: variant.method,
            source,
            length,
            layers,
            width,
            dropout: self.dropout(variant),
        }))
    }

    /// As [`MethodConfig::count`].
    pub(crate) fn count_as(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
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
    pub(crate) fn resolved_as(&self, variant: &Variant, base: &Base) -> Self {
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
        self.count_as(&PREFIX_TUNING, base)
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
    source: Source,
    length: usize,
    layers: usize,
    width: usize,
    dropout: f64,
}

/// Where the keys and values come from.
#[derive(Debug)]
enum Source {
    /// They are trained: `[length, 2 · layers · width]`.
    Table(Param),
    /// A network makes them: `[length, width]`, the map to its middle, a map out of it for each layer.
    Projection {
        embedding: Param,
        inward: Dense,
        outward: Vec<Dense>,
    },
}

impl Prefixes {
    /// Keys and values of a layer side by side, `[length, 2 · width]`.
    fn of_layer(&self, layer: usize) -> Tensor<2> {
        match &self.source {
            Source::Table(table) => {
                table
                    .get::<2>()
                    .narrow(1, 2 * layer * self.width, 2 * self.width)
            }
            Source::Projection {
                embedding,
                inward,
                outward,
            } => {
                let middle = Activation::Tanh.apply(inward.forward(embedding.get()));
                outward[layer].forward(middle)
            }
        }
    }

    /// Dropout with the key of the batch's first sequence, for all sequences alike.
    fn dropped(&self, x: Tensor<2>, place: &str, sequences: &Sequences) -> Tensor<2> {
        let rows = Sequences::new(vec![0, self.length]);
        match sequences.keys().and_then(<[u64]>::first) {
            Some(&key) => dropout(x, self.dropout, name_id(place), &rows.with_keys(vec![key])),
            None => x,
        }
    }
}

impl Adapter for Prefixes {
    fn prefix_length(&self) -> usize {
        self.length
    }

    fn prefix(&self, layer: usize, _x: &Tensor<2>, sequences: &Sequences) -> Option<Prefix> {
        let both = self.dropped(self.of_layer(layer), &format!("prefix.{layer}"), sequences);
        Some(Prefix {
            keys: both.clone().narrow(1, 0, self.width),
            values: both.narrow(1, self.width, self.width),
        })
    }

    fn acts(&self, place: Place<'_>) -> bool {
        matches!(place, Place::Prefix)
    }
}

impl Method for Prefixes {
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        match &self.source {
            Source::Table(_) => parameters.iter().map(Stored::of).collect(),
            Source::Projection { .. } => {
                let layers = (0..self.layers).map(|layer| self.of_layer(layer).inner());
                let table = Tensor::cat(layers.collect(), 1);
                let shape = table.dims().to_vec();
                let values = table.try_into_vec_as::<f32>();
                let values = values.expect("parameters are f32 and on a device that can be read");
                vec![Stored {
                    key: KEY.to_owned(),
                    shape,
                    values,
                }]
            }
        }
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: self.method,
            reason: "its keys and values depend on no input",
        })
    }

    fn changed(&self) -> usize {
        2 * self.layers * self.length * self.width
    }
}
