//! DeLoRA: a low-rank path whose terms have lengths of their own, bounded by one trained strength.
//!
//! Bini, Girrbach, Akata, "Decoupling Angles and Strength in Low-rank Adaptation", ICLR 2025,
//! arXiv 2503.18225, section 3; the form with the norms of single columns is HF PEFT's code.
//!
//! `y = x Wᵀ + b + (((d(x) ⊙ n) Aᵀ) ⊙ c) Bᵀ` with `A: [r, in]`, `B: [out, r]`, `n: [in]` the
//! lengths of W's columns, kept as they were at first, `cᵢ = λ / (r |Aᵢ| |Bᵢ|)` for the rows of A
//! and the columns of B, whose lengths count as `1e-4` at least, and dropout d. `λ` is one trained
//! value a layer. A starts uniform in `±1/√in` and B at zero, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out) + 1` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.delora_A`, `<path>.delora_B`, `<path>.delora_lambda` `[1]`, `<path>.delora_w_norm` `[in]` |
//! | merges | `W + (B diag(c) A) diag(n)` |

use std::sync::Arc;

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::settings::LARGEST_SIZE;
use crate::framework::targets::{Selection, Targets, check_keys, first_match};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::start::{Start, kaiming};
use crate::reparametrized::lora::{alpha, alphas};

/// The smallest square of a length that a term is divided by.
const LEAST: f64 = 1e-8;

crate::settings! {
    /// The settings of DeLoRA, under HF PEFT's names.
    pub struct DeloraConfig {
        /// Rank of the update.
        r: usize = 8, flag "rank", in Size;
        /// Initial strength of the update.
        #[serde(serialize_with = "alpha")]
        delora_lambda: f64 = 15.0, in SinglePrecision;
        /// Dropout on the input of the update.
        module_dropout: f64 = 0.0, in Fraction;
        /// Other ranks for some modules: name=rank,... where a name is a regular expression for the
        /// end of the path and the first match wins.
        rank_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Other initial strengths for some modules: name=strength,...
        #[serde(serialize_with = "alphas")]
        lambda_pattern: IndexMap<String, f64> = IndexMap::new();
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

impl DeloraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its rank and initial strength.
    fn targets<'b>(
        &self,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, f64)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let path = &linear.site.path;
            let rank = first_match(Self::NAME, &self.rank_pattern, path)?.unwrap_or(self.r);
            let lambda = first_match(Self::NAME, &self.lambda_pattern, path)?;
            if !(1..=LARGEST_SIZE).contains(&rank) {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "rank_pattern",
                    value: rank.to_string(),
                    expected: format!("a rank is from 1 to {LARGEST_SIZE}"),
                });
            }
            Ok((linear, rank, lambda.unwrap_or(self.delora_lambda)))
        });
        targets.collect()
    }
}

impl MethodConfig for DeloraConfig {
    const NAME: &'static str = "delora";
    const PEFT_TYPE: &'static str = "DELORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "a low-rank path of normalized terms with one strength, added to chosen linear layers";
    const PAPER: &'static str = "Bini et al. 2025, arXiv 2503.18225";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3, "delora_lambda": 1 }),
            json!({
                "r": 2, "delora_lambda": 0.5, "init_weights": "random",
                "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let deltas = self
            .targets(base)?
            .into_iter()
            .map(|(linear, rank, lambda)| {
                let key = |name: &str| format!("{}.{name}", linear.site.path);
                let (inputs, outputs) = (linear.inputs, linear.outputs);
                let a = parameters.declare(key("delora_A"), &[rank, inputs], kaiming(inputs));
                let init = self.init_weights.choose(Init::Zeros, kaiming(rank));
                let b = parameters.declare(key("delora_B"), &[outputs, rank], init);
                let init = Init::Constant(lambda as f32);
                let strength = parameters.declare(key("delora_lambda"), &[1], init);
                let weight = frozen_weight(base, linear);
                let init = Init::Computed(Arc::new(move || column_lengths(&weight)));
                let norms = parameters.constant(key("delora_w_norm"), &[inputs], init);
                let rows = {
                    let a = a.clone();
                    parameters.derived(key("delora_rows"), &[rank, inputs], move || {
                        let rows = a.get::<2>() * norms.flat().unsqueeze::<2>();
                        rows.reshape([rank * inputs])
                    })
                };
                let columns =
                    parameters.derived(key("delora_columns"), &[outputs, rank], move || {
                        let (a, b) = (a.get::<2>(), b.get::<2>());
                        let squares = (a.clone() * a)
                            .sum_dim(1)
                            .clamp_min(LEAST)
                            .reshape([1, rank]);
                        let squares = squares * (b.clone() * b.clone()).sum_dim(0).clamp_min(LEAST);
                        let scales =
                            strength.get::<1>().unsqueeze::<2>() / rank as f32 / squares.sqrt();
                        (b * scales).reshape([outputs * rank])
                    });
                let delora = Delora {
                    rows,
                    columns,
                    dropout: self.module_dropout,
                };
                (linear, delora)
            });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection();
        selection.check_start(base)?;
        let targets = selection.of(base)?;
        check_keys(Self::NAME, "rank_pattern", &self.rank_pattern, &targets)?;
        check_keys(Self::NAME, "lambda_pattern", &self.lambda_pattern, &targets)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let counts = targets.map(|(linear, rank, _)| rank * (linear.inputs + linear.outputs) + 1);
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["module_dropout"];

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// The lengths of a weight's columns.
fn column_lengths(weight: &FrozenMatrix) -> Vec<f32> {
    let weight = weight.to_tensor();
    let [_, inputs] = weight.dims();
    let lengths = (weight.clone() * weight)
        .sum_dim(0)
        .sqrt()
        .reshape([inputs]);
    let lengths = lengths.try_into_vec_as::<f32>();
    lengths.expect("a base is f32 and on a device that can be read")
}

/// DeLoRA on one linear layer.
#[derive(Debug)]
struct Delora {
    /// `A diag(n)`, `[r, in]`.
    rows: Param,
    /// `B diag(c)`, `[out, r]`.
    columns: Param,
    dropout: f64,
}

impl Change for Delora {
    fn matrix(&self) -> Tensor<2> {
        self.columns.get::<2>().matmul(self.rows.get())
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.rows.get(),
            b: self.columns.get(),
            scale: 1.0,
            dropout,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, module, set_random, values};

    /// Section 3.2: with the columns' lengths divided out, the change is no longer than λ, and of
    /// one term exactly as long.
    #[test]
    fn the_strength_bounds_the_change() {
        let model = bert();
        let path = "bert.encoder.layer.0.attention.self.query";
        for (rank, exact) in [(1, true), (3, false)] {
            let settings = json!({ "r": rank, "delora_lambda": 2 });
            let module = module(&model, "delora", settings);
            for name in ["delora_A", "delora_B"] {
                set_random(&module, &format!("{path}.{name}"));
            }
            module.parameters().derive(false);
            let name = format!("{path}.weight");
            let before = model.base().tensor(&name).unwrap().to_vec();
            let after = module.merged(&name, model.base()).unwrap().unwrap();
            let after = after.try_into_vec_as::<f32>().unwrap();
            let norms = values(&module, &format!("{path}.delora_w_norm"));
            let changes = before.iter().zip(after).enumerate();
            let squares =
                changes.map(|(at, (before, after))| ((after - before) / norms[at % 8]).powi(2));
            let length = squares.sum::<f32>().sqrt();
            assert!(length < 2.0 + 1e-4, "{length}");
            assert_eq!(exact, (length - 2.0).abs() < 1e-4, "{length}");
        }
    }

    #[test]
    fn counts_are_those_of_lora_and_the_strengths() {
        assert_eq!(
            bert_base_count("delora", json!({ "r": 8 }), 0),
            294_912 + 24
        );
    }
}
