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
//! | trains, changes | `2 L (2 d m + m + d)` and an invertible adapter ([`crate::parts::invertible`]), and with the norms `(2 L + 1) 2 d` more on BERT, `(2 L + 1) d` on Llama |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}`; each norm's tensors under their own names |
//! | merges | no |

use epiphyte_models::{Base, Role};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::adapterhub;
use crate::parts::bottleneck::{BottleneckConfig, InLayers, InitWeights, Placement, Variant};
use crate::parts::invertible::InvertibleConfig;
use crate::parts::replace;
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
        ..invertible: InvertibleConfig = InvertibleConfig::default();
    }
}

const HOULSBY: Variant = Variant {
    method: HoulsbyConfig::NAME,
    default_dim: |hidden_size| hidden_size.min(64),
};

impl HoulsbyConfig {
    fn trains(&self, base: &Base, name: &str) -> bool {
        self.train_layer_norms && self.bottlenecks.trains_norm(base, name)
    }
}

/// What tells AdapterHub's `double_seq_bn` from other bottlenecks.
fn double_seq_bn() -> Value {
    json!({ "mh_adapter": true, "output_adapter": true })
}

impl MethodConfig for HoulsbyConfig {
    const NAME: &'static str = "houlsby";
    const PEFT_TYPE: &'static str = "HOULSBY";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks after attention and feed-forward, before the residual";
    const PAPER: &'static str = "Houlsby et al. 2019, arXiv 1902.00751";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.bottlenecks.init_weights == InitWeights::MamAdapter
            && self.invertible.inv_adapter.is_none()
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "bottleneck_dim": 3, "train_layer_norms": false, "init_weights": "mam_adapter" }),
            json!({ "bottleneck_dim": 4, "leave_out": [0], "train_layer_norms": false }),
            json!({ "bottleneck_dim": 2, "train_layer_norms": false, "inv_adapter": "nice" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut declare = |role| self.bottlenecks.declare(&HOULSBY, base, role, parameters);
        let attention = declare(Role::AttentionOutput)?;
        let feed_forward = declare(Role::FeedForwardOut)?;
        let count = self.count(base)?;
        let activation = self.bottlenecks.activation(&HOULSBY)?;
        let invertible = &self.invertible;
        let invertible = invertible.declare(Self::NAME, base, activation, parameters)?;
        let adapters = InLayers::new(&HOULSBY, Placement::Sequential, feed_forward, count)
            .with_attention(attention)
            .with_invertible(invertible)
            .with_norms(base, parameters, |name| self.trains(base, name));
        Ok(Box::new(adapters))
    }

    /// `double_seq_bn`, which does not train norms, or `double_seq_bn_inv`.
    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        if self.train_layer_norms {
            return Ok(None);
        }
        let own = adapterhub::of_invertible(&self.invertible, double_seq_bn());
        adapterhub::of_bottlenecks(&self.bottlenecks, &HOULSBY, base, own).map(Some)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let invertible = adapterhub::to_invertible(config)?;
        let own = adapterhub::of_invertible(&invertible, double_seq_bn());
        Some(Self {
            train_layer_norms: false,
            bottlenecks: adapterhub::to_bottlenecks(config, &own)?,
            invertible,
        })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self
            .bottlenecks
            .count(&HOULSBY, base.dimensions.hidden_size)?;
        let norms = replace::count(base, |name| self.trains(base, name));
        let in_layers = 2 * self.bottlenecks.layers(&HOULSBY, base)? * one;
        Ok(in_layers + norms + self.invertible.count(base))
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
