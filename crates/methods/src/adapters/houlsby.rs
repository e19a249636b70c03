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

use epiphyte_models::{Base, Role};
use serde_json::{Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::bottleneck::{BottleneckConfig, InLayers, InitWeights, Placement, Variant};
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

impl MethodConfig for HoulsbyConfig {
    const NAME: &'static str = "houlsby";
    const PEFT_TYPE: &'static str = "HOULSBY";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks after attention and feed-forward, before the residual";
    const PAPER: &'static str = "Houlsby et al. 2019, arXiv 1902.00751";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward"));
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
            json!({ "bottleneck_dim": 4, "leave_out": [0], "train_layer_norms": false }),
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
        let adapters = InLayers::new(&HOULSBY, Placement::Sequential, feed_forward, count)
            .with_attention(attention)
            .with_norms(base, parameters, |name| self.trains(base, name));
        Ok(Box::new(adapters))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self
            .bottlenecks
            .count(&HOULSBY, base.dimensions.hidden_size)?;
        let norms = replace::count(base, |name| self.trains(base, name));
        Ok(2 * self.bottlenecks.layers(&HOULSBY, base)? * one + norms)
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
