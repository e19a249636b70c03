//! LoHa: the elementwise product of two low-rank matrices, added to a frozen weight.
//!
//! Hyeon-Woo, Ye-Bin, Oh, "FedPara: Low-rank Hadamard Product for Communication-Efficient Federated
//! Learning", ICLR 2022, arXiv 2108.06098, proposition 1; LyCORIS, Yeh et al., ICLR 2024, arXiv
//! 2309.14859.
//!
//! `y = x Wᵀ + b + x ΔWᵀ` with `ΔW = s (A₁ B₁) ⊙ (A₂ B₂)`, `A: [out, r]`, `B: [r, in]` and `s = α /
//! r`. All start uniform in `±1/√columns` but `B₂`, which starts at zero, so nothing changes at
//! first. `ΔW` is computed once a step.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ 2 r (in + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r²` each |
//! | file | `<path>.hada_w1_a` `[out, r]`, `<path>.hada_w1_b` `[r, in]`, `hada_w2_a`, `hada_w2_b` |
//! | merges | `W + ΔW` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Weight, linear};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::lycoris::{Lycoris, UpdateDropout};
use crate::parts::start::{Start, kaiming};

crate::settings! {
    /// The settings of LoHa, under HF PEFT's names.
    pub struct LohaConfig {
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..lycoris: Lycoris = Lycoris::default();
    }
}

impl MethodConfig for LohaConfig {
    const NAME: &'static str = "loha";
    const PEFT_TYPE: &'static str = "LOHA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "the elementwise product of two low-rank matrices, added to chosen linear layers";
    const PAPER: &'static str = "Hyeon-Woo et al. 2022, arXiv 2108.06098";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3 }),
            json!({
                "r": 2, "lycoris_alpha": 3, "target_modules": "all-linear", "init_weights": "random",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.lycoris.targets(Self::NAME, base)?.into_iter();
        let deltas = targets.map(|(linear, rank, scale)| {
            let last = self
                .init_weights
                .choose(Init::Zeros, kaiming(linear.inputs));
            let change = declare(linear, rank, scale, last, parameters);
            let dropout = self.lycoris.dropout(true);
            (linear, Loha { change, dropout })
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lycoris.check_start(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.lycoris.targets(Self::NAME, base)?;
        let count = |(linear, rank, _): &(&LinearInfo, usize, f32)| {
            2 * rank * (linear.inputs + linear.outputs)
        };
        Ok(targets.iter().map(count).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lycoris: self.lycoris.resolved(Self::NAME, base),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = Lycoris::TRAINING_ONLY;

    /// A form for convolutions.
    const IGNORED: &'static [&'static str] = &["use_effective_conv2d"];

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("modules_to_save".to_owned(), Value::Null),
            ("use_effective_conv2d".to_owned(), json!(false)),
        ])
    }
}

/// Declares the four factors, of which the last starts at `last`, and `ΔW`.
fn declare(
    linear: &LinearInfo,
    rank: usize,
    scale: f32,
    last: Init,
    parameters: &mut ParameterSet,
) -> Param {
    let (inputs, outputs) = (linear.inputs, linear.outputs);
    let key = |name: &str| format!("{}.{name}", linear.site.path);
    let [first, second] = [("hada_w1", kaiming(inputs)), ("hada_w2", last)].map(|(name, init)| {
        let a = key(&format!("{name}_a"));
        let b = key(&format!("{name}_b"));
        [
            parameters.declare(a, &[outputs, rank], kaiming(rank)),
            parameters.declare(b, &[rank, inputs], init),
        ]
    });
    let product = |[a, b]: &[Param; 2]| a.get::<2>().matmul(b.get::<2>());
    parameters.derived(key("hada_change"), &[outputs, inputs], move || {
        let change = product(&first) * product(&second) * scale;
        change.reshape([outputs * inputs])
    })
}

/// LoHa on one linear layer.
#[derive(Debug)]
struct Loha {
    /// `ΔW`, `[out, in]`.
    change: Param,
    dropout: UpdateDropout,
}

impl Delta for Loha {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let change = Weight::Trained(self.change.get());
        let update = |x| linear(x, &change, None);
        self.dropout.add(site, product, cx, update)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        weight + self.change.get::<2>().inner()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::parts::svd::Svd;
    use crate::small_bert::{bert, bert_base_count, module, set_random};

    /// Proposition 1 of the paper: ranks multiply.
    #[test]
    fn the_change_has_rank_r_squared() {
        let model = bert();
        let module = module(&model, "loha", json!({ "r": 2 }));
        let path = "bert.encoder.layer.0.attention.self.query";
        for name in ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"] {
            set_random(&module, &format!("{path}.{name}"));
        }
        module.parameters().derive(false);
        let change = module.parameters().get(&format!("{path}.hada_change"));
        let singular = Svd::new(change.unwrap().get()).values;
        let rank = singular
            .iter()
            .filter(|it| **it > 1e-4 * singular[0])
            .count();
        assert_eq!(rank, 4);
    }

    #[test]
    fn counts_are_twice_those_of_lora() {
        assert_eq!(bert_base_count("loha", json!({ "r": 8 }), 0), 2 * 294_912);
    }
}
