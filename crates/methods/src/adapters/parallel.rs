//! Parallel adapter: a bottleneck in parallel to each layer's feed-forward.
//!
//! He, Zhou, Ma, Berg-Kirkpatrick, Neubig, "Towards a Unified View of Parameter-Efficient Transfer
//! Learning", ICLR 2022, arXiv 2110.04366, section 4.2.
//!
//! With `x` the input of the feed-forward, its output `o` after dropout becomes
//! `o + ReLU(x W_dᵀ + b_d) W_uᵀ + b_u`, before the norm where the norm comes after. Where the norm
//! comes first, `x` is normalized, as in the paper; AdapterHub reads the residual stream there,
//! which `parallel_input` = residual chooses. `m` is `d / 2`, matrices start normal with standard
//! deviation 0.02. The paper's code drops a tenth of the bottleneck's values in training; here
//! nothing is dropped, as in AdapterHub.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 d m + m + d)` |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}` |
//! | merges | no |

use epiphyte_models::blocks::NormPlacement;
use epiphyte_models::{Base, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::adapterhub;
use crate::parts::bottleneck::{
    BottleneckConfig, InLayers, InitWeights, Placement, Scaling, Slot, Variant,
};
use crate::{MethodError, ParameterSet};

/// What a parallel adapter reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParallelInput {
    /// What the feed-forward reads.
    Normalized,
    /// The residual stream.
    Residual,
}

crate::settings! {
    /// The settings of adapters in parallel to feed-forwards.
    pub struct ParallelSettings {
        /// What is read where the norm comes first: normalized or residual.
        parallel_input: ParallelInput = ParallelInput::Normalized, as Text;

        ..bottlenecks: BottleneckConfig = BottleneckConfig::default();
    }
}

impl ParallelSettings {
    /// Declares the bottlenecks, each with what `scaling` makes for it.
    ///
    /// # Errors
    /// As [`BottleneckConfig::each`].
    pub(crate) fn build(
        &self,
        variant: &Variant,
        base: &Base,
        parameters: &mut ParameterSet,
        mut scaling: impl FnMut(&Slot<'_>, &mut ParameterSet) -> Scaling,
    ) -> Result<Box<dyn Method>, MethodError> {
        let declare = |slot: Slot<'_>| {
            let scaling = scaling(&slot, parameters);
            slot.declare(parameters).scaled(scaling)
        };
        let role = Role::FeedForwardOut;
        let feed_forward = self.bottlenecks.each(variant, base, role, declare)?;
        let placement = match self.parallel_input {
            ParallelInput::Normalized => Placement::Parallel,
            ParallelInput::Residual => Placement::ParallelResidual,
        };
        let count = parameters.count();
        let adapters = InLayers::new(variant, placement, feed_forward, count);
        Ok(Box::new(adapters))
    }

    /// How many values the bottlenecks train.
    ///
    /// # Errors
    /// As [`BottleneckConfig::each`].
    pub(crate) fn count(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
        let hidden_size = base.dimensions.hidden_size;
        let one = self.bottlenecks.count(variant, hidden_size)?;
        Ok(self.bottlenecks.layers(variant, base)? * one)
    }

    /// `par_bn` with this `scaling`, which reads the residual stream: where the norm comes after a
    /// sub-layer, that is what the sub-layer reads.
    pub(crate) fn to_adapterhub(
        &self,
        variant: &Variant,
        base: &Base,
        scaling: &Value,
    ) -> Result<Option<Map<String, Value>>, MethodError> {
        let mut layers = base.layer_shapes().iter();
        let reads_same = layers.all(|layer| layer.placement == NormPlacement::After);
        if self.parallel_input == ParallelInput::Normalized && !reads_same {
            return Ok(None);
        }
        adapterhub::of_bottlenecks(&self.bottlenecks, variant, base, par_bn(scaling)).map(Some)
    }

    /// The settings of a `par_bn` with this `scaling`.
    pub(crate) fn of_adapterhub(config: &Map<String, Value>, scaling: &Value) -> Option<Self> {
        Some(Self {
            parallel_input: ParallelInput::Residual,
            bottlenecks: adapterhub::to_bottlenecks(config, &par_bn(scaling))?,
        })
    }

    /// As [`BottleneckConfig::resolved`].
    pub(crate) fn resolved(&self, variant: &Variant, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(variant, hidden_size),
            ..self.clone()
        }
    }
}

crate::settings! {
    /// The settings of the parallel adapter.
    pub struct ParallelConfig {
        ..parallel: ParallelSettings = ParallelSettings::default();
    }
}

const PARALLEL: Variant = Variant {
    method: ParallelConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 2).max(1),
};

/// What tells AdapterHub's `par_bn` from other bottlenecks.
fn par_bn(scaling: &Value) -> Value {
    json!({
        "mh_adapter": false, "output_adapter": true, "is_parallel": true, "scaling": scaling,
    })
}

impl MethodConfig for ParallelConfig {
    const NAME: &'static str = "parallel";
    const PEFT_TYPE: &'static str = "PARALLEL";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a bottleneck in parallel to the feed-forward of each layer";
    const PAPER: &'static str = "He et al. 2022, arXiv 2110.04366";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.parallel.bottlenecks.init_weights == InitWeights::MamAdapter
    }

    fn examples() -> Vec<Value> {
        // Smooth functions: differences of the loss mean nothing where a step crosses a bend of
        // ReLU.
        vec![
            json!({ "non_linearity": "gelu" }),
            json!({
                "bottleneck_dim": 3, "non_linearity": "silu", "init_weights": "mam_adapter",
                "parallel_input": "residual", "leave_out": [1],
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.parallel
            .build(&PARALLEL, base, parameters, |_, _| Scaling::One)
    }

    /// `par_bn` with a scaling of one.
    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        self.parallel.to_adapterhub(&PARALLEL, base, &json!(1.0))
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let parallel = ParallelSettings::of_adapterhub(config, &json!(1.0))?;
        Some(Self { parallel })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.parallel.count(&PARALLEL, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            parallel: self.parallel.resolved(&PARALLEL, base),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    #[test]
    fn counts_on_bert_base_are_those_of_the_paper() {
        assert_eq!(bert_base_count("parallel", json!({}), 0), 7_091_712);
        let wide = json!({ "bottleneck_dim": 512 });
        assert_eq!(bert_base_count("parallel", wide, 0), 9_452_544);
    }
}
