//! LoRA-FA: LoRA whose `A` stays at its random start; only `B` is trained.
//!
//! Zhang, Zhang, Shi, Chu, Li, "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language
//! Models Fine-tuning", 2023, arXiv 2308.03303; HF PEFT's `create_lorafa_optimizer`.
//!
//! `y = x Wᵀ + b + s (d(x) Aᵀ) Bᵀ` as in LoRA. Of a target's input nothing is kept for the backward
//! pass but the narrow `d(x) Aᵀ`. Before it is clipped and used, the gradient of `B` is multiplied
//! from the right by `(A Aᵀ)⁻¹ / s²`, as PEFT's optimizer does: then a step of `B` moves `s B A` as
//! near as it can to a step of the whole weight. (PEFT adds 1e-8 to the diagonal, less than single
//! precision tells apart, and rounds the product to bf16 on processors that have it.)
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r out` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | as LoRA's, `A` included: HF PEFT reads it as a LoRA |
//! | merges | `W + s B A` |

use std::sync::OnceLock;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site, StandIn};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::gradients::Gradients;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StepInfo};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::low_rank::LowRankLayers;
use crate::parts::svd::Svd;
use crate::reparametrized::lora::{Lora, LoraConfig};

crate::settings! {
    /// The settings of LoRA-FA: those of LoRA.
    pub struct LoraFaConfig {
        ..lora: LoraConfig = LoraConfig::default();
    }
}

impl MethodConfig for LoraFaConfig {
    const NAME: &'static str = "lora-fa";
    const PEFT_TYPE: &'static str = LoraConfig::PEFT_TYPE;
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA of which the second matrix alone is trained";
    const PAPER: &'static str = "Zhang et al. 2023, arXiv 2308.03303";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "target_modules": "all-linear", "r": 4, "alpha": 2, "use_rslora": true }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut projected = Vec::new();
        self.lora.check_variant(Self::NAME, &[])?;
        let build = |linear: &LinearInfo, (rank, scaling), parameters: &mut ParameterSet| {
            let path = &linear.site.path;
            let init = self.lora.initial_a(linear, rank);
            let a = format!("{path}.lora_A.weight");
            let a = parameters.constant(a, &[rank, linear.inputs], init);
            let b = format!("{path}.lora_B.weight");
            let b = parameters.declare(b, &[linear.outputs, rank], Init::Zeros);
            projected.push(Projected::new(&a, &b, scaling));
            Lora {
                a,
                b,
                bias: None,
                scaling: scaling as f32,
                dropout: self.lora.lora_dropout,
                taken: None,
            }
        };
        let layers = self.lora.layers(Self::NAME, base, parameters, build)?;
        Ok(Box::new(LoraFa { layers, projected }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lora.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.lora
            .count_of(Self::NAME, base, |linear, rank| rank * linear.outputs)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lora: self.lora.resolved_as(Self::NAME, base),
        }
    }

    crate::parts::lora_files::rules!();

    fn peft_defaults() -> Map<String, Value> {
        LoraConfig::peft_defaults()
    }
}

/// What the gradient of a target's `B` is multiplied by.
#[derive(Debug)]
struct Projected {
    a: Param,
    b: Param,
    scaling: f64,
    /// `(A Aᵀ)⁻¹ / s²`, `[r, r]`.
    inverse: OnceLock<Tensor<2>>,
}

impl Projected {
    fn new(a: &Param, b: &Param, scaling: f64) -> Self {
        Self {
            a: a.clone(),
            b: b.clone(),
            scaling,
            inverse: OnceLock::new(),
        }
    }

    /// With `A = U diag(σ) Vᵀ`, `(A Aᵀ)⁻¹ = U diag(1 / σ²) Uᵀ`; directions that `A` does not reach
    /// are left out.
    fn inverse(&self) -> &Tensor<2> {
        self.inverse.get_or_init(|| {
            let svd = Svd::new(self.a.get::<2>().inner());
            let reached = svd.values.iter().filter(|value| **value > 1e-4).count();
            let half = svd.left(0..reached, -1.0) / self.scaling;
            half.clone().matmul(half.transpose())
        })
    }
}

/// LoRA on the targets, with the change of the gradients.
#[derive(Debug)]
struct LoraFa {
    layers: LowRankLayers<Lora>,
    projected: Vec<Projected>,
}

impl Adapter for LoraFa {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.layers.parameter(name)
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.layers.linear(site, product, cx)
    }

    fn first_layer(&self) -> usize {
        self.layers.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.layers.uses(hook)
    }
}

impl Method for LoraFa {
    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for projected in &self.projected {
            let [outputs, rank] = [projected.b.shape()[0], projected.b.shape()[1]];
            gradients.update(&projected.b, |gradient| {
                let gradient = gradient.reshape([outputs, rank]);
                let product = gradient.matmul(projected.inverse().clone());
                product.reshape([outputs * rank])
            });
        }
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.layers.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.layers.changed()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_ops::{AdamW, Moments};
    use serde::Deserialize;
    use serde_json::json;

    use super::{LoraFaConfig, Projected};
    use crate::framework::method::{Method, StepInfo};
    use crate::parts::delta::Deltas;
    use crate::parts::replace::Replaced;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random};
    use crate::{Gradients, Init, MethodConfig, ParameterSet};

    const INFO: StepInfo = StepInfo {
        step: 0,
        total: 1,
        stage: 0,
        stage_step: 0,
        stage_total: 1,
    };

    /// Steps of HF PEFT's optimizer; `tests/make_lora_fa.py` wrote them.
    #[derive(Deserialize)]
    struct Golden {
        scaling: f64,
        learning_rate: f64,
        epsilon: f64,
        a: Vec<f32>,
        b: Vec<f32>,
        gradients: Vec<Vec<f32>>,
        after: Vec<Vec<f32>>,
    }

    #[test]
    fn steps_are_those_of_peft() {
        let text = include_str!("../../tests/golden_lora_fa.json");
        let cases: Vec<Golden> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 2);
        let (outputs, inputs, rank) = (5, 7, 3);
        for case in cases {
            let device = Device::default();
            let mut parameters = ParameterSet::new(&device, 0);
            let a = parameters.constant("a", &[rank, inputs], Init::Zeros);
            let b = parameters.declare("b", &[outputs, rank], Init::Zeros);
            a.set_values(case.a);
            b.set_values(case.b);
            let mut method = super::LoraFa {
                layers: super::LowRankLayers {
                    linears: Deltas::new(bert().base(), []),
                    words: None,
                    whole: Replaced::none(),
                },
                projected: vec![Projected::new(&a, &b, case.scaling)],
            };
            let adam = AdamW {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: case.epsilon,
                weight_decay: 0.0,
            };
            let mut moments = Moments::zeros(&b.flat());
            for (step, (gradient, after)) in case.gradients.into_iter().zip(&case.after).enumerate()
            {
                let mut gradients = Gradients::new();
                let data = TensorData::new(gradient, [outputs * rank]);
                gradients.add(&b, Tensor::from_data(data, &device));
                method.after_backward(&mut gradients, INFO);
                let gradient = gradients.take(&b).unwrap();
                let (value, moved) =
                    adam.step(b.flat(), gradient, moments, case.learning_rate, step + 1);
                moments = moved;
                b.set(value);
                assert!(distance(&b.to_vec(), after) < 1e-4, "step {step}");
            }
        }
    }

    #[test]
    fn it_computes_what_lora_computes_and_trains_b_alone() {
        let model = bert();
        let (lora, fa) = (
            module(&model, "lora", json!({ "r": 3 })),
            module(&model, "lora-fa", json!({ "r": 3 })),
        );
        let trained = fa.parameters().trained();
        assert!(
            trained
                .into_iter()
                .all(|it| it.key().ends_with("lora_B.weight"))
        );
        let mut drawn = BTreeMap::new();
        for param in lora.parameters().trained() {
            if param.key().ends_with("lora_B.weight") {
                drawn.insert(param.key().to_owned(), set_random(&lora, param.key()));
            }
        }
        for (key, values) in drawn {
            fa.parameters().get(&key).unwrap().set_values(values);
        }
        assert_eq!(logits(&model, &lora), logits(&model, &fa));
        let stored = |module: &crate::AdapterModule| -> Vec<String> {
            module.stored().into_iter().map(|it| it.key).collect()
        };
        assert_eq!(stored(&lora), stored(&fa));
        assert_eq!(LoraFaConfig::PEFT_TYPE, "LORA");
    }

    #[test]
    fn counts_on_bert_base_are_those_of_b() {
        assert_eq!(bert_base_count("lora-fa", json!({ "r": 8 }), 0), 147_456);
        let six = json!({
            "r": 8,
            "target_modules": ["query", "key", "value", "intermediate.dense", "output.dense"],
        });
        assert_eq!(bert_base_count("lora-fa", six, 0), 663_552);
    }
}
