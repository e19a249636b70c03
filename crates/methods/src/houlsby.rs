//! Houlsby's adapter: two bottlenecks in each layer, before the residual connections.
//!
//! Houlsby, Giurgiu, Jastrzebski et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019,
//! arXiv 1902.00751, section 2; what the paper leaves open follows the code that came with it.
//!
//! With `s` the output of a sub-layer after its projection and dropout, attention and feed-forward
//! alike, `s' = s + f(s W_dᵀ + b_d) W_uᵀ + b_u` joins the residual stream in its place. `f` is GELU in
//! its tanh form, `m` is 64, matrices start normal with standard deviation 0.001. The reference code
//! also trains scale and shift of every norm of the model; `train_layer_norms` = false keeps them
//! frozen, as most later comparisons do.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `2 L (2 d m + m + d)`, and with the norms `(2 L + 1) 2 d` more on BERT, `(2 L + 1) d` on Llama |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}`; each norm's tensors under their own names |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::adapter::Block;
use epiphyte_models::{Adapter, Base, BaseTensor, ForwardContext, Hook, Role, StandIn, Sublayer};
use epiphyte_ops::add;
use serde::{Deserialize, Serialize};

use crate::bottleneck::{Bottleneck, InitWeights, Settings, not_mergeable};
use crate::method::{Flag, FlagKind, KeyStyle, Method, MethodConfig};
use crate::replace::{self, Replaced};
use crate::{MethodError, ParameterSet};

/// The settings of Houlsby's adapter, under AdapterHub's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoulsbyConfig {
    /// Width of the bottlenecks; 64, or the model's width where that is less, if not given.
    pub bottleneck_dim: Option<usize>,
    /// The model's width divided by the bottlenecks', instead.
    pub reduction_factor: Option<f64>,
    /// Activation function.
    pub non_linearity: String,
    /// How the matrices start.
    pub init_weights: InitWeights,
    /// Whether the model's norms are trained too.
    pub train_layer_norms: bool,
}

impl Default for HoulsbyConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: None,
            reduction_factor: None,
            non_linearity: "gelu_new".to_owned(),
            init_weights: InitWeights::Houlsby,
            train_layer_norms: true,
        }
    }
}

impl HoulsbyConfig {
    fn bottlenecks(&self) -> Settings<'_> {
        Settings {
            method: Self::NAME,
            bottleneck_dim: self.bottleneck_dim,
            reduction_factor: self.reduction_factor,
            default_dim: |width| width.min(64),
            non_linearity: &self.non_linearity,
            init_weights: self.init_weights,
        }
    }

    fn trains(&self, base: &Base, name: &str) -> bool {
        self.train_layer_norms && base.tensor(name).is_some_and(BaseTensor::is_norm)
    }
}

impl MethodConfig for HoulsbyConfig {
    const NAME: &'static str = "houlsby";
    const PEFT_TYPE: &'static str = "HOULSBY";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks after attention and feed-forward, before the residual";
    const PAPER: &'static str = "Houlsby et al. 2019, arXiv 1902.00751";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const FLAGS: &'static [Flag] = &[
        Flag {
            flag: "bottleneck-dim",
            key: "bottleneck_dim",
            help: "width of the bottlenecks",
            kind: FlagKind::Integer,
        },
        Flag {
            flag: "reduction-factor",
            key: "reduction_factor",
            help: "the model's width divided by the bottlenecks', instead",
            kind: FlagKind::Number,
        },
        Flag {
            flag: "non-linearity",
            key: "non_linearity",
            help: "activation function: gelu_new, relu, silu, ...",
            kind: FlagKind::Text,
        },
        Flag {
            flag: "init-weights",
            key: "init_weights",
            help: "how matrices start: houlsby, bert or mam_adapter (up zero)",
            kind: FlagKind::Text,
        },
        Flag {
            flag: "train-layer-norms",
            key: "train_layer_norms",
            help: "train the model's norms too: true or false",
            kind: FlagKind::Boolean,
        },
    ];

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let bottlenecks = self.bottlenecks();
        Ok(Box::new(Houlsby {
            attention: bottlenecks.declare(base, Role::AttentionOutput, parameters)?,
            feed_forward: bottlenecks.declare(base, Role::FeedForwardOut, parameters)?,
            norms: Replaced::new(base, parameters, |name| self.trains(base, name)),
            changed: self.count(base)?,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self.bottlenecks().count(base.dimensions.hidden_size)?;
        let norms = replace::count(base, |name| self.trains(base, name));
        Ok(2 * base.dimensions.layers * one + norms)
    }

    fn resolved(&self, base: &Base) -> Self {
        match self.bottlenecks().dim(base.dimensions.hidden_size) {
            Ok(dim) => Self {
                bottleneck_dim: Some(dim),
                reduction_factor: None,
                ..self.clone()
            },
            Err(_) => self.clone(),
        }
    }
}

/// Two bottlenecks a layer, and the model's norms.
#[derive(Debug)]
struct Houlsby {
    attention: Vec<Bottleneck>,
    feed_forward: Vec<Bottleneck>,
    norms: Replaced,
    changed: usize,
}

impl Adapter for Houlsby {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.norms.parameter(name)
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let bottlenecks = match sublayer.block {
            Block::SelfAttention => &self.attention,
            Block::FeedForward => &self.feed_forward,
            Block::CrossAttention => return output,
        };
        add(output.clone(), bottlenecks[sublayer.layer].forward(output))
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Sublayer(..)) || self.norms.uses(hook)
    }
}

impl Method for Houlsby {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(HoulsbyConfig::NAME))
    }

    fn changed(&self) -> usize {
        self.changed
    }
}
