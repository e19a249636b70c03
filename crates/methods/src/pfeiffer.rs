//! Pfeiffer's adapter: one bottleneck in each layer, after the feed-forward.
//!
//! Pfeiffer, Kamath, Rücklé, Cho, Gurevych, "AdapterFusion: Non-Destructive Task Composition for
//! Transfer Learning", EACL 2021, arXiv 2005.00247, appendix A; as AdapterHub's `seq_bn` defines it.
//!
//! With `o` the feed-forward's output after dropout and `h` the residual stream, the bottleneck reads
//! what the layer would have returned, `z = LN(o + h)`, and its output is added before the norm:
//! `u = ReLU(z W_dᵀ + b_d) W_uᵀ + b_u`, `out = LN(o + u + h)`, the model's own frozen norm used twice.
//! Where the norm stands before the sub-layer, `z = o + h` and `out = o + u + h`. The bottleneck's
//! residual is `o`, from before the norm: with `u = 0` nothing changes. `m` is `d / 16`, matrices
//! start normal with standard deviation 0.02.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 d m + m + d)` |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::adapter::Block;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, Role, Sublayer};
use serde::{Deserialize, Serialize};

use crate::bottleneck::{Bottleneck, InitWeights, Settings, not_mergeable};
use crate::method::{Flag, FlagKind, KeyStyle, Method, MethodConfig};
use crate::{MethodError, ParameterSet};

/// The settings of Pfeiffer's adapter, under AdapterHub's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PfeifferConfig {
    /// Width of the bottleneck; a sixteenth of the model's if not given.
    pub bottleneck_dim: Option<usize>,
    /// The model's width divided by the bottleneck's, instead.
    pub reduction_factor: Option<f64>,
    /// Activation function.
    pub non_linearity: String,
    /// How the matrices start.
    pub init_weights: InitWeights,
}

impl Default for PfeifferConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: None,
            reduction_factor: None,
            non_linearity: "relu".to_owned(),
            init_weights: InitWeights::Bert,
        }
    }
}

impl PfeifferConfig {
    fn bottlenecks(&self) -> Settings<'_> {
        Settings {
            method: Self::NAME,
            bottleneck_dim: self.bottleneck_dim,
            reduction_factor: self.reduction_factor,
            default_dim: |width| (width / 16).max(1),
            non_linearity: &self.non_linearity,
            init_weights: self.init_weights,
        }
    }
}

impl MethodConfig for PfeifferConfig {
    const NAME: &'static str = "pfeiffer";
    const PEFT_TYPE: &'static str = "PFEIFFER";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a bottleneck after the feed-forward of each layer";
    const PAPER: &'static str = "Pfeiffer et al. 2021, arXiv 2005.00247";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const FLAGS: &'static [Flag] = &[
        Flag {
            flag: "bottleneck-dim",
            key: "bottleneck_dim",
            help: "width of the bottleneck",
            kind: FlagKind::Integer,
        },
        Flag {
            flag: "reduction-factor",
            key: "reduction_factor",
            help: "the model's width divided by the bottleneck's, instead",
            kind: FlagKind::Number,
        },
        Flag {
            flag: "non-linearity",
            key: "non_linearity",
            help: "activation function: relu, gelu_new, silu, ...",
            kind: FlagKind::Text,
        },
        Flag {
            flag: "init-weights",
            key: "init_weights",
            help: "how matrices start: bert, houlsby or mam_adapter (up zero)",
            kind: FlagKind::Text,
        },
    ];

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        Ok(Box::new(Pfeiffer {
            feed_forward: self
                .bottlenecks()
                .declare(base, Role::FeedForwardOut, parameters)?,
            changed: self.count(base)?,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(base.dimensions.layers * self.bottlenecks().count(base.dimensions.hidden_size)?)
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

/// A bottleneck a layer.
#[derive(Debug)]
struct Pfeiffer {
    feed_forward: Vec<Bottleneck>,
    changed: usize,
}

impl Adapter for Pfeiffer {
    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match sublayer.block {
            Block::SelfAttention | Block::CrossAttention => output,
            Block::FeedForward => {
                let z = (sublayer.add_residual)(output.clone());
                output + self.feed_forward[sublayer.layer].forward(z)
            }
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Sublayer(_, Block::FeedForward))
    }
}

impl Method for Pfeiffer {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(PfeifferConfig::NAME))
    }

    fn changed(&self) -> usize {
        self.changed
    }
}
