//! Houlsby's adapter: two bottlenecks in each layer, before the residual connections.
//!
//! Houlsby, Giurgiu, Jastrzebski et al., "Parameter-Efficient Transfer Learning for NLP", ICML
//! 2019, arXiv 1902.00751, section 2; what the paper leaves open follows the code that came with
//! it.
//!
//! With `s` the output of a sub-layer after its projection and dropout, attention and feed-forward
//! alike, `s' = s + f(s W_dᵀ + b_d) W_uᵀ + b_u` joins the residual stream in its place. `f` is GELU
//! in its tanh form, `m` is 64, matrices start normal with standard deviation 0.001. The reference
//! code also trains scale and shift of every norm of the model; `train_layer_norms` = false keeps
//! them frozen, as most later comparisons do.
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
use serde_json::{Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::parts::bottleneck::{Bottleneck, BottleneckConfig, InitWeights, Variant, not_mergeable};
use crate::parts::replace::{self, Replaced};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of Houlsby's adapter, under AdapterHub's names.
    pub struct HoulsbyConfig {
        /// Train the model's norms too: true or false.
        train_layer_norms: bool = true, as Boolean;

        ..bottlenecks: BottleneckConfig = BottleneckConfig {
            non_linearity: "gelu_new".to_owned(),
            init_weights: InitWeights::Houlsby,
            ..BottleneckConfig::default()
        };
    }
}

const HOULSBY: Variant = Variant {
    method: HoulsbyConfig::NAME,
    default_dim: |hidden_size| hidden_size.min(64),
};

impl HoulsbyConfig {
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
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.bottlenecks.init_weights == InitWeights::MamAdapter
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "bottleneck_dim": 3, "train_layer_norms": false, "init_weights": "mam_adapter" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut declare = |role| self.bottlenecks.declare(&HOULSBY, base, role, parameters);
        Ok(Box::new(Houlsby {
            attention: declare(Role::AttentionOutput)?,
            feed_forward: declare(Role::FeedForwardOut)?,
            norms: Replaced::new(base, parameters, |name| self.trains(base, name)),
            changed: self.count(base)?,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self
            .bottlenecks
            .count(&HOULSBY, base.dimensions.hidden_size)?;
        let norms = replace::count(base, |name| self.trains(base, name));
        Ok(2 * base.dimensions.layers * one + norms)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            bottlenecks: self
                .bottlenecks
                .resolved(&HOULSBY, base.dimensions.hidden_size),
            ..self.clone()
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
