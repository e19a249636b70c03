//! Adapter+: a bottleneck after each layer, with a trained factor for each channel.
//!
//! Steitz, Roth, "Adapters Strike Back", CVPR 2024, arXiv 2406.06820, sections 3 and 4.
//!
//! With `z` the residual stream after the feed-forward was added, and normalized where the norm
//! comes after, the layer returns `z + c ⊙ (GELU(z W_dᵀ + b_d) W_uᵀ + b_u)`. `c` starts at one,
//! matrices start normal with standard deviation 0.01, cut at twice that; `m` is `d / 96`, the
//! paper's 8 of 768. In training each sequence leaves out each bottleneck with probability 0.1, and
//! what is kept is scaled up by the rest.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 d m + m + 2 d)` |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}`, `<module>.scaling` `[d]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Base, ForwardContext, Role};
use epiphyte_ops::{Sequences, dropout, expand_rows};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::Init;
use crate::parts::adapterhub;
use crate::parts::bottleneck::{
    Bottleneck, BottleneckConfig, Branch, InLayers, InitWeights, Placement, Scaling, Slot, Variant,
};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of Adapter+, under AdapterHub's names.
    pub struct AdapterPlusConfig {
        /// Probability with which a sequence leaves out a layer's bottleneck in training.
        stochastic_depth: f64 = 0.1, in Fraction;

        ..bottlenecks: BottleneckConfig = BottleneckConfig {
            non_linearity: "gelu".to_owned(),
            init_weights: InitWeights::Truncated,
            ..BottleneckConfig::default()
        };
    }
}

const ADAPTER_PLUS: Variant = Variant {
    method: AdapterPlusConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 96).max(1),
};

/// What tells AdapterHub's `AdapterPlusConfig` from other bottlenecks.
fn of_adapterhub() -> Value {
    json!({
        "mh_adapter": false, "output_adapter": true, "original_ln_before": true,
        "original_ln_after": false, "residual_before_ln": false, "scaling": "channel",
    })
}

impl MethodConfig for AdapterPlusConfig {
    const NAME: &'static str = "adapter-plus";
    const PEFT_TYPE: &'static str = "ADAPTER_PLUS";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a bottleneck with a factor for each channel after each layer";
    const PAPER: &'static str = "Steitz and Roth 2024, arXiv 2406.06820";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.bottlenecks.init_weights == InitWeights::MamAdapter
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "bottleneck_dim": 4 }),
            json!({
                "bottleneck_dim": 3, "stochastic_depth": 0.5, "init_weights": "mam_adapter",
                "leave_out": [0],
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let declare = |slot: Slot<'_>| {
            let factors = parameters.declare(slot.key("scaling"), &[slot.width], Init::Ones);
            Kept {
                bottleneck: slot.declare(parameters).scaled(Scaling::Channels(factors)),
                left_out: self.stochastic_depth,
                site: name_id(&slot.key("stochastic_depth")),
            }
        };
        let role = Role::FeedForwardOut;
        let layers = self.bottlenecks.each(&ADAPTER_PLUS, base, role, declare)?;
        let count = self.count(base)?;
        let adapters = InLayers::new(&ADAPTER_PLUS, Placement::AfterBlock, layers, count);
        Ok(Box::new(adapters))
    }

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        let mut own = of_adapterhub();
        own["stochastic_depth"] = json!(self.stochastic_depth);
        adapterhub::of_bottlenecks(&self.bottlenecks, &ADAPTER_PLUS, base, own).map(Some)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        Some(Self {
            stochastic_depth: adapterhub::value(config, "stochastic_depth").as_f64()?,
            bottlenecks: adapterhub::to_bottlenecks(config, &of_adapterhub())?,
        })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let hidden_size = base.dimensions.hidden_size;
        let one = self.bottlenecks.count(&ADAPTER_PLUS, hidden_size)? + hidden_size;
        Ok(self.bottlenecks.layers(&ADAPTER_PLUS, base)? * one)
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(&ADAPTER_PLUS, hidden_size),
            ..self.clone()
        }
    }
}

/// A bottleneck that sequences leave out at random in training.
#[derive(Debug)]
struct Kept {
    bottleneck: Bottleneck,
    left_out: f64,
    /// What names its random draws.
    site: u64,
}

impl Branch for Kept {
    fn branch(&self, z: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let device = z.device().inner();
        let u = self.bottleneck.forward(z);
        let Some(keys) = cx.rows.keys().filter(|_| self.left_out > 0.0) else {
            return u;
        };
        // One row for each sequence: all of its tokens have the same factor.
        let sequences = Sequences::new((0..=keys.len()).collect()).with_keys(keys.to_vec());
        let ones = Tensor::ones([keys.len(), 1], &device);
        let factors = dropout(ones, self.left_out, self.site, &sequences);
        u * expand_rows(factors, cx.rows)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use epiphyte_models::{ForwardContext, Mode, Tokens};
    use epiphyte_ops::{Activation, Sequences};
    use serde_json::json;

    use super::Kept;
    use crate::ParameterSet;
    use crate::parts::bottleneck::{Branch, InitWeights, Slot};
    use crate::small_bert::bert_base_count;

    #[test]
    fn counts_on_bert_base_follow_the_formula() {
        let expected = 12 * (2 * 768 * 8 + 8 + 2 * 768);
        assert_eq!(bert_base_count("adapter-plus", json!({}), 0), expected);
    }

    /// A sequence has all of its branch, scaled up, or nothing of it, and a tenth have nothing.
    #[test]
    fn sequences_leave_out_whole_branches() {
        let mut parameters = ParameterSet::new(&Device::default(), 0);
        let slot = Slot {
            module: "m",
            width: 4,
            dim: 2,
            activation: Activation::Gelu,
            init: InitWeights::Bert,
        };
        let kept = Kept {
            bottleneck: slot.declare(&mut parameters),
            left_out: 0.1,
            site: 7,
        };
        let (count, length) = (1000, 3);
        let rows = Sequences::new((0..=count).map(|sequence| sequence * length).collect());
        let zeros = vec![0; count * length];
        let tokens = Tokens::new(&zeros, &zeros, rows.clone());
        let output = |rows: &Sequences| {
            let z = Tensor::ones([count * length, 4], &Device::default());
            let cx = ForwardContext {
                rows,
                tokens: &tokens,
                mode: Mode::Evaluation,
                streams: &[],
            };
            let u = kept.branch(z, &cx);
            u.try_into_vec_as::<f32>().unwrap()
        };
        let whole = output(&rows);
        let with_keys = rows.with_keys((0..count as u64).collect());
        let found = output(&with_keys);
        let mut left_out = 0;
        for (found, whole) in found.chunks(length * 4).zip(whole.chunks(length * 4)) {
            if found.iter().all(|value| *value == 0.0) {
                left_out += 1;
                continue;
            }
            for (found, whole) in found.iter().zip(whole) {
                assert!((found - whole / 0.9).abs() < 1e-6);
            }
        }
        assert!((60..=140).contains(&left_out), "{left_out}");
    }
}
