//! RoAd: the output of a linear layer is rotated in the planes of pairs of values, and rescaled.
//!
//! Liao, Monz, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and
//! Composability", NeurIPS 2024, arXiv 2409.00119, section 3.
//!
//! Outputs are taken in groups of g, and value t of a group is paired with value `t + g / 2`: `y_t
//! ← c_t y_t - s_t y_{t + g/2}` and `y_{t + g/2} ← c_{t + g/2} y_{t + g/2} + s_{t + g/2} y_t`, with
//! `c = α cos θ` and `s = α sin θ`, bias included. `road_1` has one α and θ for both values of a
//! pair, `road_2` one for each, `road_4` others for c than for s: in θ and α each group's g for c
//! precede its g for s. θ starts at zero and α at one, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ out` over the targets for `road_1`, twice that for `road_2`, four times for `road_4` |
//! | changes | `Σ in · out`, and the biases |
//! | file | `<path>.road_theta`, `<path>.road_alpha`, each half of the values |
//! | merges | `R W` and `R b`, R the rotation of an output |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::scale_columns;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{NamedTargets, Selection};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::start::{Start, normal_around};

crate::settings! {
    /// The settings of RoAd, under HF PEFT's names.
    pub struct RoadConfig {
        /// Which values share angle and scale: road_1, road_2 or road_4.
        variant: Variant = Variant::Road1, as Text, unset "road_1";
        /// Outputs of a group, an even number that divides them.
        group_size: usize = 64, in Size;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: NamedTargets = NamedTargets::default();
    }
}

/// Which values share angle and scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Variant {
    /// Both values of a pair.
    #[serde(rename = "road_1")]
    Road1,
    /// None.
    #[serde(rename = "road_2")]
    Road2,
    /// None, nor the two factors of a value.
    #[serde(rename = "road_4")]
    Road4,
}

impl Variant {
    /// The number of angles for this many outputs.
    fn angles(self, outputs: usize) -> usize {
        match self {
            Self::Road1 => outputs / 2,
            Self::Road2 => outputs,
            Self::Road4 => 2 * outputs,
        }
    }

    /// `c` and `s`, `[out]` each, of angles and scales.
    fn factors(self, theta: Tensor<1>, alpha: Tensor<1>, group: usize) -> [Tensor<1>; 2] {
        let (cos, sin) = (theta.clone().cos(), theta.sin());
        let [count] = alpha.dims();
        match self {
            Self::Road1 => [cos, sin].map(|it| {
                let of_pairs = (it * alpha.clone()).reshape([2 * count / group, 1, group / 2]);
                of_pairs.repeat_dim(1, 2).reshape([2 * count])
            }),
            Self::Road2 => [cos * alpha.clone(), sin * alpha],
            Self::Road4 => {
                let half = |it: Tensor<1>, half: usize| {
                    let groups = (it * alpha.clone()).reshape([count / (2 * group), 2, group]);
                    groups.narrow(1, half, 1).reshape([count / 2])
                };
                [half(cos, 0), half(sin, 1)]
            }
        }
    }
}

impl RoadConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    fn linears<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let targets = self.selection().of(base)?;
        let wrong = |expected: String| MethodError::Value {
            method: Self::NAME,
            key: "group_size",
            value: self.group_size.to_string(),
            expected,
        };
        if !self.group_size.is_multiple_of(2) {
            return Err(wrong("it must be even, as it is made of pairs".to_owned()));
        }
        match targets
            .iter()
            .find(|it| !it.outputs.is_multiple_of(self.group_size))
        {
            None => Ok(targets),
            Some(linear) => Err(wrong(format!(
                "it must divide {}, the outputs of `{}`",
                linear.outputs, linear.site.path
            ))),
        }
    }
}

impl MethodConfig for RoadConfig {
    const NAME: &'static str = "road";
    const PEFT_TYPE: &'static str = "ROAD";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "rotations and scales of pairs of outputs of chosen linear layers";
    const PAPER: &'static str = "Liao and Monz 2024, arXiv 2409.00119";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "group_size": 4 }),
            json!({ "group_size": 2, "variant": "road_2", "target_modules": "all-linear" }),
            json!({ "group_size": 4, "variant": "road_4", "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (variant, group) = (self.variant, self.group_size);
        let deltas = self.linears(base)?.into_iter().map(|linear| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let outputs = linear.outputs;
            let count = variant.angles(outputs);
            let init = self
                .init_weights
                .choose(Init::Zeros, Init::Normal { std: 0.5 });
            let theta = parameters.declare(key("road_theta"), &[count], init);
            let init = normal_around(1.0, 0.5, count, &key("road_alpha"), parameters);
            let init = self.init_weights.choose(Init::Ones, init);
            let alpha = parameters.declare(key("road_alpha"), &[count], init);
            let factors = parameters.derived(key("road_factors"), &[2, outputs], move || {
                let factors = variant.factors(theta.flat(), alpha.flat(), group);
                Tensor::cat(factors.to_vec(), 0)
            });
            (linear, Road { factors, group })
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let counts = self.linears(base)?.into_iter();
        Ok(counts
            .map(|linear| 2 * self.variant.angles(linear.outputs))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), json!(null))])
    }
}

/// RoAd on one linear layer.
#[derive(Debug)]
struct Road {
    /// `c` and `s`, `[2, out]`.
    factors: Param,
    group: usize,
}

impl Road {
    /// Outputs `[rows, out]`, rotated and rescaled.
    fn rotate(&self, y: Tensor<2>) -> Tensor<2> {
        let [rows, outputs] = y.dims();
        let half = self.group / 2;
        let pairs = y.clone().reshape([rows * outputs / self.group, 2, half]);
        let first = pairs.clone().narrow(1, 0, 1);
        let second = pairs.narrow(1, 1, 1);
        let turned = Tensor::cat(vec![second * -1.0, first], 1).reshape([rows, outputs]);
        let factors = self.factors.get::<2>();
        let [cos, sin] = [0, 1].map(|row| factors.clone().narrow(0, row, 1).reshape([outputs]));
        scale_columns(y, cos) + scale_columns(turned, sin)
    }
}

impl Delta for Road {
    const CHANGES_BIAS: bool = true;

    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        self.rotate(product.compute())
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        self.rotate(weight.transpose()).inner().transpose()
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        let [outputs] = bias.dims();
        self.rotate(bias.unsqueeze()).inner().reshape([outputs])
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use serde_json::json;

    use super::Variant;
    use crate::small_bert::{bert, bert_base_count, module, set_random};

    /// With all scales at one, `road_1` is a rotation: the lengths of the weight's columns stay.
    #[test]
    fn angles_alone_rotate() {
        let model = bert();
        let module = module(&model, "road", json!({ "group_size": 4 }));
        let path = "bert.encoder.layer.0.attention.self.query";
        set_random(&module, &format!("{path}.road_theta"));
        module.parameters().derive(false);
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let after = module.merged(&name, model.base()).unwrap().unwrap();
        let after = after.try_into_vec_as::<f32>().unwrap();
        let square = |values: &[f32], column: usize| -> f32 {
            (0..8).map(|row| values[row * 8 + column].powi(2)).sum()
        };
        for column in 0..8 {
            assert!((square(&before, column) - square(&after, column)).abs() < 1e-5);
        }
        assert!(before.iter().zip(&after).any(|(a, b)| (a - b).abs() > 1e-2));
    }

    /// Groups of two: `road_4` has (c, c, s, s) for each.
    #[test]
    fn factors_of_a_group_stand_together() {
        let theta = Tensor::<1>::zeros([8], &Device::default());
        let alpha =
            Tensor::<1>::from_data([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &theta.device());
        let [cos, sin] = Variant::Road4.factors(theta.clone(), alpha.clone(), 2);
        assert_eq!(cos.try_into_vec_as::<f32>().unwrap(), [1.0, 2.0, 5.0, 6.0]);
        assert_eq!(sin.try_into_vec_as::<f32>().unwrap(), [0.0; 4]);
        let [cos, _] = Variant::Road1.factors(theta, alpha, 4);
        let expected = [
            1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 5.0, 6.0, 5.0, 6.0, 7.0, 8.0, 7.0, 8.0,
        ];
        assert_eq!(cos.try_into_vec_as::<f32>().unwrap(), expected);
    }

    #[test]
    fn counts_are_one_two_or_four_values_an_output() {
        for (variant, count) in [("road_1", 1), ("road_2", 2), ("road_4", 4)] {
            let settings = json!({ "variant": variant });
            assert_eq!(bert_base_count("road", settings, 0), count * 24 * 768);
        }
    }
}
