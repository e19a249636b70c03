//! Pfeiffer's adapter: one bottleneck in each layer, after the feed-forward.
//!
//! Pfeiffer, Kamath, Rücklé, Cho, Gurevych, "AdapterFusion: Non-Destructive Task Composition for
//! Transfer Learning", EACL 2021, arXiv 2005.00247, appendix A; as AdapterHub's `seq_bn` defines
//! it.
//!
//! With `o` the feed-forward's output after dropout and `h` the residual stream, the bottleneck
//! reads what the layer would have returned, `z = LN(o + h)`, and its output is added before the
//! norm: `u = ReLU(z W_dᵀ + b_d) W_uᵀ + b_u`, `out = LN(o + u + h)`, the model's own frozen norm
//! used twice. Where the norm stands before the sub-layer, `z = o + h` and `out = o + u + h`. The
//! bottleneck's residual is `o`, from before the norm: with `u = 0` nothing changes. `m` is `d /
//! 16`, matrices start normal with standard deviation 0.02.
//!
//! `inv_adapter` puts an invertible adapter after the embeddings, the language adapter of MAD-X
//! ([`crate::parts::invertible`]).
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 d m + m + d)`, and the invertible adapter |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}` |
//! | merges | no |

use epiphyte_models::{Base, Role};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::parts::adapterhub;
use crate::parts::bottleneck::{BottleneckConfig, InLayers, InitWeights, Placement, Variant};
use crate::parts::invertible::InvertibleConfig;
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of Pfeiffer's adapter, under AdapterHub's names.
    pub struct PfeifferConfig {
        ..bottlenecks: BottleneckConfig = BottleneckConfig::default();
        ..invertible: InvertibleConfig = InvertibleConfig::default();
    }
}

const PFEIFFER: Variant = Variant {
    method: PfeifferConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 16).max(1),
};

/// What tells AdapterHub's `seq_bn` from other bottlenecks.
fn seq_bn() -> Value {
    json!({ "mh_adapter": false, "output_adapter": true, "original_ln_before": true })
}

impl MethodConfig for PfeifferConfig {
    const NAME: &'static str = "pfeiffer";
    const PEFT_TYPE: &'static str = "PFEIFFER";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a bottleneck after the feed-forward of each layer";
    const PAPER: &'static str = "Pfeiffer et al. 2021, arXiv 2005.00247";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.bottlenecks.init_weights == InitWeights::MamAdapter
            && self.invertible.inv_adapter.is_none()
    }

    fn examples() -> Vec<Value> {
        vec![
            // A sixteenth of the tests' hidden size is a single unit, which may be off for every
            // token; a smooth activation, since gradients are compared with slopes.
            json!({ "bottleneck_dim": 6, "non_linearity": "gelu" }),
            json!({ "reduction_factor": 4, "non_linearity": "silu", "init_weights": "mam_adapter" }),
            json!({ "bottleneck_dim": 4, "non_linearity": "gelu", "inv_adapter": "nice" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let role = Role::FeedForwardOut;
        let feed_forward = self
            .bottlenecks
            .declare(&PFEIFFER, base, role, parameters)?;
        let count = self.count(base)?;
        let activation = self.bottlenecks.activation(&PFEIFFER)?;
        let invertible = &self.invertible;
        let invertible = invertible.declare(Self::NAME, base, activation, parameters)?;
        let adapters = InLayers::new(&PFEIFFER, Placement::AroundNorm, feed_forward, count)
            .with_invertible(invertible);
        Ok(Box::new(adapters))
    }

    /// `seq_bn`, or `seq_bn_inv`.
    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        let own = adapterhub::of_invertible(&self.invertible, seq_bn());
        adapterhub::of_bottlenecks(&self.bottlenecks, &PFEIFFER, base, own).map(Some)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let invertible = adapterhub::to_invertible(config)?;
        let own = adapterhub::of_invertible(&invertible, seq_bn());
        Some(Self {
            bottlenecks: adapterhub::to_bottlenecks(config, &own)?,
            invertible,
        })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self
            .bottlenecks
            .count(&PFEIFFER, base.dimensions.hidden_size)?;
        let in_layers = self.bottlenecks.layers(&PFEIFFER, base)? * one;
        Ok(in_layers + self.invertible.count(base))
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(&PFEIFFER, hidden_size),
            ..self.clone()
        }
    }
}
