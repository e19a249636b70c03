//! KaSA: LoRA in the form of a singular value decomposition, over a base without its smallest
//! singular values.
//!
//! Wang, Jiang, Park, Kim, Tang, "KaSA: Knowledge-Aware Singular-Value Adaptation of
//! Large Language Models", ICLR 2025, arXiv 2412.06071, equations 4 to 11.
//!
//! `y = x W'ᵀ + b + s ((dropout(x) Aᵀ) ⊙ d) Bᵀ`, where `W'` is W without its r smallest singular
//! values, `A: [r, in]`, `B: [out, r]`, and `d: [r]` are the trained singular values. `A` starts as
//! in LoRA, `B` at zero, `d` normal. Since `W'` is not W, the start is near the base, not the base.
//! To the loss of each step is added, over all layers, `β |d|² + γ (‖BᵀB - I‖ + ‖A Aᵀ - I‖)`, which
//! HF PEFT leaves to the training loop.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out + 1)` over the targets |
//! | changes | `Σ in · out` |
//! | file | as LoRA's, and `<path>.lora_diag` `[r]`; `W'` is computed from W again |
//! | merges | `W' + s B diag(d) A` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, LowRank, add_low_rank, fork};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::check_rank;
use crate::parts::delta::Delta;
use crate::parts::low_rank_start::{Pair, Start};
use crate::parts::svd::Svd;
use crate::reparametrized::lora::{LoraConfig, LoraInit};

crate::settings! {
    /// The settings of KaSA: those of LoRA, and the weights of the penalties.
    pub struct KasaConfig {
        /// Weights of the penalties: beta of the singular values, gamma of the distance of A and B
        /// from orthonormal.
        kasa_config: Penalties = Penalties::default(), as Pattern;

        ..lora: LoraConfig = LoraConfig::default();
    }
}

/// The weights of the penalties.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Penalties {
    /// Of `|d|²`.
    pub beta: f64,
    /// Of `‖BᵀB - I‖ + ‖A Aᵀ - I‖`.
    pub gamma: f64,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            beta: 1e-4,
            gamma: 1e-3,
        }
    }
}

impl MethodConfig for KasaConfig {
    const NAME: &'static str = "kasa";
    const PEFT_TYPE: &'static str = "LORA";
    const PEFT_VARIANT: Option<(&'static str, bool)> = Some(("kasa_config", true));
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA with singular values, in place of the base's smallest";
    const PAPER: &'static str = "Wang et al. 2025, arXiv 2412.06071";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 2, "lora_alpha": 1 }),
            json!({ "r": 3, "lora_alpha": 2, "kasa_config": { "beta": 0.1, "gamma": 0.2 } }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.lora
            .check_variant(Self::NAME, &[LoraInit::Random, LoraInit::Orthogonal])?;
        for (linear, rank, _) in self.lora.targets(Self::NAME, base)? {
            if linear.transposed {
                return Err(MethodError::NotApplicable {
                    method: Self::NAME,
                    model_type: base.dimensions.model_type.clone(),
                    reason: "HF PEFT has no KaSA of layers that are stored transposed (Conv1D); \
                             use lora with init_lora_weights = pissa"
                        .to_owned(),
                });
            }
            let path = &linear.site.path;
            check_rank(
                Self::NAME,
                "r",
                rank + 1,
                path,
                [linear.inputs, linear.outputs],
            )?;
        }
        let build = |linear: &LinearInfo, (rank, scaling), parameters: &mut ParameterSet| {
            self.kasa(base, linear, rank, scaling, parameters)
        };
        Ok(Box::new(self.lora.layers(
            Self::NAME,
            base,
            parameters,
            build,
        )?))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lora.check_variant(Self::NAME, &[])?;
        self.lora.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.lora.count_of(Self::NAME, base, |linear, rank| {
            rank * (linear.inputs + linear.outputs + 1)
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

impl KasaConfig {
    fn kasa(
        &self,
        base: &Base,
        linear: &LinearInfo,
        rank: usize,
        scaling: f64,
        parameters: &mut ParameterSet,
    ) -> Kasa {
        let path = &linear.site.path;
        let [a, b] = self.lora.declare(linear, rank, parameters);
        let key = format!("{path}.lora_diag");
        let diagonal = parameters.declare(key, &[rank], Init::Normal { std: 1.0 });
        let weight = base.tensor(&format!("{path}.weight"));
        let weight = weight.and_then(|weight| weight.matrix());
        let weight = weight.expect("a linear layer has a matrix").clone();
        let dropped = Start::computed(move || {
            let svd = Svd::new(weight.to_tensor());
            let all = svd.values.len();
            let smallest = all - rank..all;
            [svd.right(smallest.clone(), 0.5), svd.left(smallest, 0.5)]
        });
        Kasa {
            a,
            b,
            diagonal,
            scaling: scaling as f32,
            dropout: self.lora.lora_dropout,
            dropped,
            penalties: self.kasa_config,
        }
    }
}

/// KaSA on one linear layer.
#[derive(Debug)]
struct Kasa {
    a: Param,
    b: Param,
    diagonal: Param,
    scaling: f32,
    dropout: f64,
    /// The part of W that is left out.
    dropped: Start,
    penalties: Penalties,
}

impl Kasa {
    fn dropped(&self) -> &Pair {
        self.dropped.pair().expect("it is computed from the weight")
    }

    /// `diag(d) A`, `[r, in]`.
    fn scaled(&self) -> Tensor<2> {
        self.a.get::<2>() * self.diagonal.flat().unsqueeze_dim::<2>(1)
    }
}

impl Delta for Kasa {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        // The product and both paths read the input; behind a fork, the paths have one gradient, so
        // that the order in which gradients are added is fixed.
        let [x, _] = fork(product.input().clone());
        let path = LowRank {
            a: self.scaled(),
            b: self.b.get(),
            scale: self.scaling,
            dropout: Dropout::new(self.dropout, !site.id(), cx.rows),
        };
        let output = add_low_rank(product.compute(), x.clone(), path);
        let [a, b] = self.dropped().clone();
        let path = LowRank {
            a,
            b,
            scale: -1.0,
            dropout: None,
        };
        add_low_rank(output, x, path)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [a, b] = self.dropped().clone();
        let change = self.b.get::<2>().inner().matmul(self.scaled().inner());
        weight - b.matmul(a) + change * self.scaling
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let Penalties { beta, gamma } = self.penalties;
        if beta == 0.0 && gamma == 0.0 {
            return None;
        }
        // The layer reads them too; behind a fork, the readers here have one gradient.
        let [diagonal, _] = fork(self.diagonal.flat());
        let ([a, _], [b, _]) = (fork(self.a.get::<2>()), fork(self.b.get::<2>()));
        let rank = self.diagonal.count();
        let distance = |gram: Tensor<2>| {
            let eye = Tensor::<2>::eye(rank, &self.diagonal.flat().inner().device());
            let eye = if gram.is_autodiff() {
                eye.autodiff()
            } else {
                eye
            };
            let off = gram - eye;
            (off.clone() * off).sum().sqrt()
        };
        let of_a = distance(a.clone().matmul(a.transpose()));
        let of_b = distance(b.clone().transpose().matmul(b));
        Some((diagonal.clone() * diagonal).sum() * beta + (of_a + of_b) * gamma)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{self, bert};

    /// `_kasa_layer_regularization_loss` of HF PEFT 0.21.2, written out for one layer: with B = 0,
    /// `‖BᵀB - I‖` is √r.
    #[test]
    fn the_penalty_is_that_of_the_singular_values_and_of_both_matrices() {
        let model = bert();
        let settings = json!({
            "r": 2, "kasa_config": { "beta": 0.5, "gamma": 0.25 },
            "target_modules": r".*layer\.1\.attention\.self\.value",
        });
        let module = small_bert::module(&model, "kasa", settings);
        let path = "bert.encoder.layer.1.attention.self.value";
        let values = |name: &str| {
            let param = module.parameters().get(&format!("{path}.{name}"));
            let values = param.unwrap().to_vec();
            values.into_iter().map(f64::from).collect::<Vec<f64>>()
        };
        let (a, diagonal) = (values("lora_A.weight"), values("lora_diag"));
        let gram = |i: usize, j: usize| -> f64 {
            let (one, other) = (&a[i * 8..(i + 1) * 8], &a[j * 8..(j + 1) * 8]);
            one.iter().zip(other).map(|(x, y)| x * y).sum()
        };
        let mut square = 0.0;
        for i in 0..2 {
            for j in 0..2 {
                square += (gram(i, j) - f64::from(u8::from(i == j))).powi(2);
            }
        }
        let of_diagonal: f64 = diagonal.iter().map(|value| value * value).sum();
        let expected = 0.5 * of_diagonal + 0.25 * (square.sqrt() + 2f64.sqrt());
        let found = module.method().penalty().unwrap().into_scalar::<f32>();
        assert!(
            (f64::from(found) - expected).abs() < 1e-5,
            "{found} {expected}"
        );
    }
}
