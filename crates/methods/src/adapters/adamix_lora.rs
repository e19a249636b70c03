//! AdaMix over LoRA: LoRA of which each step trains one of several copies.
//!
//! Wang, Agarwal, Mukherjee, Liu, Gao, Awadallah, Gao, "AdaMix: Mixture-of-Adaptations for
//! Parameter-efficient Model Tuning", EMNLP 2022, arXiv 2205.12410; code microsoft/AdaMix, whose
//! GPT-2 has it.
//!
//! `y = x Wᵀ + b + (α / r) x A_iᵀ Bᵀ` with `n` = 8 copies of `A: [r, in]` and one `B: [out, r]`;
//! `i` is drawn by each layer at each step. Each batch runs twice, and the two predictions are
//! drawn together as in [`adamix`](crate::adapters::adamix); the paper's weight of that term for
//! texts is 100. In the end the copies are averaged, to LoRA of rank `r` = 4 with `α` = 32.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (n in + out)` over targets |
//! | changes | `Σ in · out` |
//! | file | `<path>.lora_A.weight` `[r, in]`, `<path>.lora_B.weight` `[out, r]` |
//! | merges | `W + (α / r) B A` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::LowRank;
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::experts::{Experts, Mixture, MixtureConfig};

crate::settings! {
    /// The settings of AdaMix over LoRA.
    pub struct AdaMixLoraConfig {
        /// Rank of the update.
        r: usize = 4, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        lora_alpha: f64 = 32.0, flag "alpha", in SinglePrecision;

        ..mixture: MixtureConfig = MixtureConfig {
            num_experts: 8,
            ..MixtureConfig::default()
        };
        ..targets: Targets = Targets::default();
    }
}

impl AdaMixLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }
}

impl MethodConfig for AdaMixLoraConfig {
    const NAME: &'static str = "adamix-lora";
    const PEFT_TYPE: &'static str = "ADAMIX_LORA";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "LoRA of which each step trains one of several copies, averaged in the end";
    const PAPER: &'static str = "Wang et al. 2022, arXiv 2205.12410";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "num_experts": 3 }),
            json!({
                "r": 2, "lora_alpha": 4.0, "num_experts": 2, "share_down": true, "share_up": false,
                "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut experts = Vec::new();
        let [down, up] = self.mixture.copies();
        let targets = self.selection().of(base)?.into_iter();
        let mut declare = |linear: &LinearInfo| {
            let (path, inputs) = (&linear.site.path, linear.inputs);
            let init = Init::Uniform {
                bound: 1.0 / (inputs as f64).sqrt(),
            };
            let (a, b) = (format!("{path}.lora_A"), format!("{path}.lora_B"));
            let lora = MixedLora {
                a: Experts::declare(parameters, &a, "weight", &[self.r, inputs], &init, down),
                b: Experts::declare(
                    parameters,
                    &b,
                    "weight",
                    &[linear.outputs, self.r],
                    &Init::Zeros,
                    up,
                ),
                scaling: (self.lora_alpha / self.r as f64) as f32,
            };
            experts.extend([lora.a.clone(), lora.b.clone()]);
            lora
        };
        let loras: Vec<_> = targets.map(|linear| (linear, declare(linear))).collect();
        let deltas = Deltas::new(base, loras);
        Ok(Box::new(Mixture::new(deltas, experts, &self.mixture)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [down, up] = self.mixture.copies();
        let one = |linear: &LinearInfo| self.r * (down * linear.inputs + up * linear.outputs);
        Ok(self.selection().of(base)?.into_iter().map(one).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            mixture: self.mixture.averaged(),
            ..self.clone()
        }
    }
}

/// LoRA on one linear layer, with copies.
#[derive(Debug)]
struct MixedLora {
    a: Experts,
    b: Experts,
    scaling: f32,
}

impl Delta for MixedLora {
    fn output(&self, _site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.now(cx).get(),
            b: self.b.now(cx).get(),
            scale: self.scaling,
            dropout: None,
        })
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [a, b] = [&self.a, &self.b].map(|it| it.mean().get::<2>().inner());
        weight + b.matmul(a) * self.scaling
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    #[test]
    fn counts_on_bert_base_follow_the_formula() {
        // Queries and values of twelve layers.
        let count = |settings| bert_base_count("adamix-lora", settings, 0);
        assert_eq!(count(json!({})), 24 * 4 * (8 * 768 + 768));
        assert_eq!(count(json!({ "num_experts": 1, "r": 8 })), 294_912);
    }
}
