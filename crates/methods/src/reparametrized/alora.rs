//! aLoRA: LoRA that begins to act where a text invokes it.
//!
//! Greenewald, Lastras, Parnell, Shah, Popa, Zizzo, Gunasekara, Rawat, Cox, "Activated LoRA:
//! Fine-tuned LLMs for Intrinsics", 2025, arXiv 2504.12397.
//!
//! `y = x Wᵀ + b + m ⊙ s (dropout(x) Aᵀ) Bᵀ`, as in LoRA, where m is 1 for the tokens from the
//! beginning of the last occurrence of the invocation on, and 0 for those before it. A text without
//! the invocation has the base's outputs.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out)` over the targets |
//! | changes | nothing of the base |
//! | file | as LoRA's; the configuration has `alora_invocation_tokens` |
//! | merges | no: tokens before the invocation see the base |

use burn::tensor::{Tensor, TensorData};
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, LowRank, add_low_rank};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Param, ParameterSet};
use crate::parts::delta::Delta;
use crate::reparametrized::lora::{LoraConfig, LoraInit};

crate::settings! {
    /// The settings of aLoRA: those of LoRA, and the invocation.
    pub struct ALoraConfig {
        /// Ids of the tokens from which on the adapter acts.
        alora_invocation_tokens: Option<Vec<usize>> = None, unset "none; required";

        ..lora: LoraConfig = LoraConfig::default();
    }
}

impl MethodConfig for ALoraConfig {
    const NAME: &'static str = "alora";
    const PEFT_TYPE: &'static str = "LORA";
    const PEFT_VARIANT: Option<(&'static str, bool)> = Some(("alora_invocation_tokens", true));
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA that acts from the tokens on that invoke it";
    const PAPER: &'static str = "Greenewald et al. 2025, arXiv 2504.12397";
    const CLAIMS: Option<crate::Claims> =
        Some(crate::Claims::paper(Self::PAPER, "reuses the base's cache"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        true
    }

    /// The first of the three test sequences begins with them.
    fn examples() -> Vec<Value> {
        vec![
            json!({ "alora_invocation_tokens": [3] }),
            json!({ "alora_invocation_tokens": [3, 7], "r": 4 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let tokens = self.alora_invocation_tokens.iter().flatten();
        let tokens: Vec<u32> = tokens.map(|&token| token as u32).collect();
        if tokens.is_empty() {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "alora_invocation_tokens",
                value: "empty".to_owned(),
                expected: "name the tokens that invoke the adapter by their ids, such as those \
                           with which the assistant's turn begins"
                    .to_owned(),
            });
        }
        let is_causal = base.layer_shapes().iter().all(|it| it.attention.causal);
        if !is_causal {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "tokens before an invocation must not see it, but the attention of this \
                         model goes in both directions; use lora"
                    .to_owned(),
            });
        }
        self.lora
            .check_variant(Self::NAME, &[LoraInit::Random, LoraInit::Orthogonal])?;
        let build = |linear: &LinearInfo, (rank, scaling), parameters: &mut ParameterSet| {
            let [a, b] = self.lora.declare(linear, rank, parameters);
            ALora {
                a,
                b,
                scaling: scaling as f32,
                dropout: self.lora.lora_dropout,
                invocation: tokens.clone(),
            }
        };
        Ok(Box::new(self.lora.layers(
            Self::NAME,
            base,
            parameters,
            build,
        )?))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let starts = [LoraInit::Kaiming, LoraInit::Gaussian];
        self.lora.check_variant(Self::NAME, &starts)?;
        self.lora.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.lora.count_of(Self::NAME, base, |linear, rank| {
            rank * (linear.inputs + linear.outputs)
        })
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lora: self.lora.resolved_as(Self::NAME, base),
            ..self.clone()
        }
    }

    crate::parts::lora_files::rules!();

    fn peft_defaults() -> Map<String, Value> {
        LoraConfig::peft_defaults()
    }
}

/// aLoRA on one linear layer.
#[derive(Debug)]
struct ALora {
    a: Param,
    b: Param,
    scaling: f32,
    dropout: f64,
    invocation: Vec<u32>,
}

impl ALora {
    /// The position from which on the adapter acts in a text; none if nothing invokes it.
    fn start(&self, ids: &[u32]) -> Option<usize> {
        ids.windows(self.invocation.len())
            .rposition(|window| window == self.invocation)
    }

    /// 1 for each row where the adapter acts, 0 for the others, `[rows, 1]`.
    fn mask(&self, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let texts = cx.tokens.sequences.boundaries().windows(2);
        let mut starts = texts.map(|ends| self.start(&cx.tokens.ids[ends[0]..ends[1]]));
        let positions: Vec<usize> = cx.rows.positions().collect();
        let mut mask = Vec::with_capacity(positions.len());
        for ends in cx.rows.boundaries().windows(2) {
            let start = starts.next().flatten();
            let acts = |at: &usize| start.is_some_and(|start| *at >= start);
            let positions = positions[ends[0]..ends[1]].iter();
            mask.extend(positions.map(|at| f32::from(u8::from(acts(at)))));
        }
        let shape = [mask.len(), 1];
        let mask = Tensor::from_data(TensorData::new(mask, shape), &x.device().inner());
        match x.is_autodiff() {
            true => mask.autodiff(),
            false => mask,
        }
    }
}

impl Delta for ALora {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let x = product.input().clone();
        let mask = self.mask(&x, cx);
        let path = LowRank {
            a: self.a.get(),
            b: self.b.get(),
            scale: self.scaling,
            dropout: Dropout::new(self.dropout, !site.id(), cx.rows),
        };
        add_low_rank(product.compute(), x * mask, path)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        weight
    }

    const READS_WHOLE_SEQUENCES: bool = true;

    const NOT_MERGEABLE: Option<(&'static str, &'static str)> = Some((
        ALoraConfig::NAME,
        "it acts from the invocation on, and tokens before that see the base",
    ));
}
