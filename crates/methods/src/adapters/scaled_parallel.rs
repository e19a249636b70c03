//! Scaled parallel adapter: a bottleneck in parallel to each layer's feed-forward, times a factor.
//!
//! He, Zhou, Ma, Berg-Kirkpatrick, Neubig, "Towards a Unified View of Parameter-Efficient Transfer
//! Learning", ICLR 2022, arXiv 2110.04366, section 4.5.
//!
//! As the parallel adapter ([`crate::adapters::parallel`]) with
//! `o + s (ReLU(x W_dᵀ + b_d) W_uᵀ + b_u)`. `s` is 4, as the paper has it, or a trained number of
//! each layer, which the paper found no better: with `learn_scaling` it starts at `scaling`;
//! AdapterHub's `scaled_par_bn` starts it at 1.
//! `W_u` starts at zero, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 d m + m + d)`, and `L` where `s` is trained |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}`, `<module>.scaling` `[1]` |
//! | merges | no |

use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::adapters::parallel::ParallelSettings;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::Init;
use crate::parts::adapterhub;
use crate::parts::bottleneck::{BottleneckConfig, InitWeights, Scaling, Slot, Variant};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of the scaled parallel adapter.
    pub struct ScaledParallelConfig {
        /// Factor on the output of the parallel bottlenecks.
        scaling: f64 = 4.0, in Positive;
        /// Train the factor, one for each layer.
        learn_scaling: bool = false;

        ..parallel: ParallelSettings = ParallelSettings {
            bottlenecks: BottleneckConfig {
                init_weights: InitWeights::MamAdapter,
                ..BottleneckConfig::default()
            },
            ..ParallelSettings::default()
        };
    }
}

const SCALED_PARALLEL: Variant = Variant {
    method: ScaledParallelConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 2).max(1),
};

impl MethodConfig for ScaledParallelConfig {
    const NAME: &'static str = "scaled-parallel";
    const PEFT_TYPE: &'static str = "SCALED_PARALLEL";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a scaled bottleneck in parallel to the feed-forward of each layer";
    const PAPER: &'static str = "He et al. 2022, arXiv 2110.04366";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-4;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.parallel.bottlenecks.init_weights == InitWeights::MamAdapter
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "non_linearity": "gelu" }),
            json!({
                "bottleneck_dim": 3, "non_linearity": "silu", "init_weights": "bert",
                "scaling": 1.0, "learn_scaling": true,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let scaling = |slot: &Slot<'_>, parameters: &mut ParameterSet| match self.learn_scaling {
            true => {
                let start = Init::Constant(self.scaling as f32);
                Scaling::Learned(parameters.declare(slot.key("scaling"), &[1], start))
            }
            false => Scaling::Fixed(self.scaling),
        };
        self.parallel
            .build(&SCALED_PARALLEL, base, parameters, scaling)
    }

    /// `par_bn`, or `scaled_par_bn` where the factor is trained.
    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        let scaling = match self.learn_scaling {
            true => json!("learned"),
            false => json!(self.scaling),
        };
        self.parallel
            .to_adapterhub(&SCALED_PARALLEL, base, &scaling)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let scaling = adapterhub::value(config, "scaling");
        let parallel = ParallelSettings::of_adapterhub(config, &scaling)?;
        let learn_scaling = scaling == "learned";
        Some(Self {
            scaling: match learn_scaling {
                true => 1.0,
                false => scaling.as_f64()?,
            },
            learn_scaling,
            parallel,
        })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let layers = self.parallel.bottlenecks.layers(&SCALED_PARALLEL, base)?;
        let scalings = layers * usize::from(self.learn_scaling);
        Ok(self.parallel.count(&SCALED_PARALLEL, base)? + scalings)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            parallel: self.parallel.resolved(&SCALED_PARALLEL, base),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random};

    /// `s → s / 2` with `W_u → 2 W_u` and `b_u → 2 b_u` is the same.
    #[test]
    fn the_factor_multiplies_what_the_bottleneck_adds() {
        let model = bert();
        let with = |scaling: f64| module(&model, "scaled-parallel", json!({ "scaling": scaling }));
        let (four, two) = (with(4.0), with(2.0));
        let before = logits(&model, &four);
        for layer in 0..2 {
            for name in ["weight", "bias"] {
                let key = format!("bert.encoder.layer.{layer}.output.adapter_up.{name}");
                let drawn = set_random(&four, &key);
                let param = two.parameters().get(&key).unwrap();
                param.set_values(drawn.iter().map(|value| 2.0 * value).collect());
            }
        }
        assert!(distance(&logits(&model, &four), &before) > 1e-3);
        assert!(distance(&logits(&model, &four), &logits(&model, &two)) < 1e-5);
    }

    /// A trained factor acts as a constant one of its value.
    #[test]
    fn a_trained_factor_is_a_factor() {
        let model = bert();
        let settings = |learned: bool| json!({ "scaling": 3.0, "learn_scaling": learned });
        let (fixed, learned) = (
            module(&model, "scaled-parallel", settings(false)),
            module(&model, "scaled-parallel", settings(true)),
        );
        for layer in 0..2 {
            let key = format!("bert.encoder.layer.{layer}.output.adapter_up.weight");
            assert_eq!(set_random(&fixed, &key), set_random(&learned, &key));
        }
        let (fixed, learned) = (logits(&model, &fixed), logits(&model, &learned));
        assert!(distance(&fixed, &learned) < 1e-6);
    }

    #[test]
    fn a_trained_factor_counts_once_a_layer() {
        let learned = json!({ "learn_scaling": true });
        let count = |settings| bert_base_count("scaled-parallel", settings, 0);
        assert_eq!(count(json!({})), 7_091_712);
        assert_eq!(count(learned), 7_091_712 + 12);
    }
}
