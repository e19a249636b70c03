//! MAM adapter: a prefix in every attention and a scaled parallel bottleneck at every feed-forward.
//!
//! He, Zhou, Ma, Berg-Kirkpatrick, Neubig, "Towards a Unified View of Parameter-Efficient Transfer
//! Learning", ICLR 2022, arXiv 2110.04366, section 4.6; defaults of AdapterHub's `mam`.
//!
//! Every attention, of an encoder-decoder all three of a layer, runs over `[P_K; K]` and `[P_V; V]`
//! as in Prefix-Tuning, with `p` virtual tokens that
//! a network of 800 hidden values computes during training. The feed-forward with input `x` returns
//! `f = FFN(x) + s · (ReLU(x W_dᵀ + b_d) W_uᵀ + b_u)`, added before the norm where the norm comes
//! after; `m` is `d / 2` and `s` is 4. `W_u` starts at zero, so at first the prefix alone changes
//! something.
//!
//! | | |
//! | --- | --- |
//! | trains | as Prefix-Tuning, and `L (2 d m + m + d)` |
//! | changes | `2 L p kv + L (2 d m + m + d)` |
//! | file | `prompt_embeddings` `[p, 2 L kv]`, `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}` |
//! | merges | no |

use epiphyte_models::{Base, Role};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::composition::Union;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::ParameterSet;
use crate::framework::taxonomy::Claims;
use crate::parts::bottleneck::{self, BottleneckConfig, InLayers, InitWeights, Placement, Scaling};
use crate::parts::prefix::Reach;
use crate::soft_prompts::prefix_tuning::{self, PrefixSettings};

crate::settings! {
    /// The settings of the MAM adapter.
    pub struct MamConfig {
        /// Factor on the output of the parallel bottlenecks.
        scaling: f64 = 4.0, in Positive;

        ..prefix: PrefixSettings = PrefixSettings {
            num_virtual_tokens: 30,
            prefix_projection: true,
            encoder_hidden_size: Some(800),
            prefix_dropout: None,
        };
        ..bottlenecks: BottleneckConfig = BottleneckConfig {
            init_weights: InitWeights::MamAdapter,
            ..BottleneckConfig::default()
        };
    }
}

const PREFIX: prefix_tuning::Variant = prefix_tuning::Variant {
    method: MamConfig::NAME,
    reach: Reach {
        encoder: true,
        cross: true,
    },
    ..prefix_tuning::PREFIX_TUNING
};

const BOTTLENECKS: bottleneck::Variant = bottleneck::Variant {
    method: MamConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 2).max(1),
};

impl MamConfig {
    fn parallel_count(&self, base: &Base) -> Result<usize, MethodError> {
        let one = self
            .bottlenecks
            .count(&BOTTLENECKS, base.dimensions.hidden_size)?;
        Ok(self.bottlenecks.layers(&BOTTLENECKS, base)? * one)
    }

    fn parallel(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let declare = |slot: bottleneck::Slot<'_>| {
            let scaling = Scaling::Fixed(self.scaling);
            slot.declare(parameters).scaled(scaling)
        };
        let role = Role::FeedForwardOut;
        let feed_forward = self.bottlenecks.each(&BOTTLENECKS, base, role, declare)?;
        let count = self.parallel_count(base)?;
        let adapters = InLayers::new(&BOTTLENECKS, Placement::Parallel, feed_forward, count);
        Ok(Box::new(adapters))
    }
}

impl MethodConfig for MamConfig {
    const NAME: &'static str = "mam";
    const PEFT_TYPE: &'static str = "MAM";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a prefix in every attention, a scaled bottleneck in parallel to every feed-forward";
    const PAPER: &'static str = "He et al. 2022, arXiv 2110.04366";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward and input"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1.5e-4;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        // Smooth functions: differences of the loss mean nothing where a step crosses a bend of
        // ReLU.
        vec![
            json!({
                "num_virtual_tokens": 4, "encoder_hidden_size": 5, "bottleneck_dim": 6,
                "non_linearity": "silu",
            }),
            json!({
                "num_virtual_tokens": 3, "prefix_projection": false, "reduction_factor": 4,
                "scaling": 2, "non_linearity": "gelu_new",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let prefix = |own: &mut ParameterSet| -> Result<Box<dyn Method>, MethodError> {
            Ok(Box::new(self.prefix.build(&PREFIX, base, own)?))
        };
        let parallel = |own: &mut ParameterSet| self.parallel(base, own);
        let members = Union::build(Self::NAME, base, parameters, &[&prefix, &parallel])?;
        Ok(Box::new(members))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self.prefix.count(&PREFIX, base)? + self.parallel_count(base)?)
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            prefix: self.prefix.resolved(&PREFIX, base),
            bottlenecks: self.bottlenecks.resolved(&BOTTLENECKS, hidden_size),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            prefix: self.prefix.flat(),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random, values};

    fn settings(scaling: f64) -> serde_json::Value {
        json!({
            "num_virtual_tokens": 3, "prefix_projection": false, "bottleneck_dim": 4,
            "scaling": scaling,
        })
    }

    #[test]
    fn with_the_bottlenecks_at_their_start_it_is_the_prefix_alone() {
        let model = bert();
        let both = module(&model, "mam", settings(4.0));
        let prefix = module(&model, "prefix-tuning", json!({ "num_virtual_tokens": 3 }));
        let table = |it| values(it, "prompt_embeddings");
        assert_eq!(table(&both), table(&prefix));
        assert_eq!(logits(&model, &both), logits(&model, &prefix));
    }

    #[test]
    fn the_scale_multiplies_the_bottlenecks_alone() {
        let model = bert();
        let (four, two) = (
            module(&model, "mam", settings(4.0)),
            module(&model, "mam", settings(2.0)),
        );
        for layer in 0..2 {
            for name in ["weight", "bias"] {
                let key = format!("bert.encoder.layer.{layer}.output.adapter_up.{name}");
                let drawn = set_random(&four, &key);
                let param = two.parameters().get(&key).unwrap();
                param.set_values(drawn.iter().map(|value| 2.0 * value).collect());
            }
        }
        let prefix = module(&model, "prefix-tuning", json!({ "num_virtual_tokens": 3 }));
        assert!(distance(&logits(&model, &four), &logits(&model, &prefix)) > 1e-3);
        assert!(distance(&logits(&model, &four), &logits(&model, &two)) < 1e-5);
    }

    #[test]
    fn counts_on_bert_base_are_those_of_adapterhub() {
        // Outside of the layers: the vectors and the network's first linear layer.
        let outside = 30 * 768 + 768 * 800 + 800;
        assert_eq!(bert_base_count("mam", json!({}), outside), 22_493_984);
        let flat = json!({ "prefix_projection": false });
        assert_eq!(bert_base_count("mam", flat, 0), 552_960 + 7_091_712);
    }
}
