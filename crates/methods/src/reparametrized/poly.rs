//! Poly: an inventory of low-rank paths, of which each task has a mixture of its own.
//!
//! Ponti et al., "Combining Modular Skills in Multitask Learning" (Polytropon), 2022, arXiv
//! 2202.13914; with splits Caccia et al., "Multi-Head Adapter Routing for Cross-Task
//! Generalization", NeurIPS 2023, arXiv 2211.03831; as HF PEFT has it.
//!
//! `y = x Wᵀ + b + x A B / r`, with `A: [in, r]` and `B: [r, out]` cut into `n_splits` blocks along
//! `in` and `out`, and each block a mixture of `n_skills`: `A_q = Σ_s w_qs A_qs`. The weights are
//! `σ(z_qs)` of the task's logits over their sum over the skills; in training `z` gets logistic
//! noise for each sequence (a relaxed Bernoulli variable at temperature 1). There is one task here.
//! `A` starts uniform in `±√(n_splits/in)`, `B` at zero, so nothing changes at first, the logits
//! uniform in `±0.001`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ n_skills r (in + out) + n_splits n_skills` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.poly_lora_A` `[splits, skills, in/splits, r]`, `.poly_lora_B` `[splits, skills, r, out/splits]`, `.poly_router.module_logits` `[1, splits · skills]` |
//! | merges | `W + (A B)ᵀ / r` |

use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, TensorData};
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Sequences, add, expand_rows, fork, random, split_off};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, TargetModules};
use crate::parts::delta::{Delta, Deltas};

crate::settings! {
    /// The settings of Poly, under HF PEFT's names.
    pub struct PolyConfig {
        /// Rank of the update.
        r: usize = 8, flag "rank", in Size;
        /// Number of tasks; one run trains one.
        n_tasks: usize = 1, in Size;
        /// Number of paths in the inventory.
        n_skills: usize = 4, in Size;
        /// Number of blocks of a layer, each with a mixture of its own.
        n_splits: usize = 1, in Size;

        ..targets: TargetModules = TargetModules::default();
    }
}

impl PolyConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, which can be cut into blocks.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let value = |key, value: usize, expected: String| MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected,
        };
        if self.n_tasks != 1 {
            let expected = "texts have no tasks here, so there can only be one".to_owned();
            return Err(value("n_tasks", self.n_tasks, expected));
        }
        let splits = self.n_splits;
        let targets = self.selection().of(base)?;
        for linear in &targets {
            let (inputs, outputs) = (linear.inputs, linear.outputs);
            if !(inputs.is_multiple_of(splits) && outputs.is_multiple_of(splits)) {
                let path = &linear.site.path;
                let expected =
                    format!("it must divide the sizes of `{path}`, {outputs} and {inputs}");
                return Err(value("n_splits", splits, expected));
            }
        }
        Ok(targets)
    }
}

impl MethodConfig for PolyConfig {
    const NAME: &'static str = "poly";
    const PEFT_TYPE: &'static str = "POLY";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "an inventory of low-rank paths that each task mixes";
    const PAPER: &'static str = "Ponti et al. 2022, arXiv 2202.13914";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3, "n_skills": 2 }),
            json!({
                "r": 2, "n_skills": 3, "n_splits": 2, "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (r, splits, skills) = (self.r, self.n_splits, self.n_skills);
        let targets = self.targets(base)?.into_iter();
        let deltas: Vec<_> = targets
            .map(|linear| {
                let key = |name| format!("{}.poly_{name}", linear.site.path);
                let (inputs, outputs) = (linear.inputs / splits, linear.outputs / splits);
                let a = [splits, skills, inputs, r];
                let b = [splits, skills, r, outputs];
                let logits = [1, splits * skills];
                let small = Init::Uniform { bound: 1e-3 };
                let poly = Poly {
                    a: parameters.declare(key("lora_A"), &a, Init::kaiming(inputs)),
                    b: parameters.declare(key("lora_B"), &b, Init::Zeros),
                    logits: parameters.declare(key("router.module_logits"), &logits, small),
                };
                (linear, poly)
            })
            .collect();
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let (r, skills) = (self.r, self.n_skills);
        let router = self.n_splits * skills;
        let targets = self.targets(base)?.into_iter();
        Ok(targets
            .map(|linear| skills * r * (linear.inputs + linear.outputs) + router)
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
            ("poly_type".to_owned(), json!("poly")),
        ])
    }
}

/// Poly on one linear layer.
#[derive(Debug)]
struct Poly {
    a: Param,
    b: Param,
    logits: Param,
}

impl Poly {
    /// Splits, skills, inputs of a split, rank, outputs of a split.
    fn sizes(&self) -> [usize; 5] {
        let ([splits, skills, inputs, r], [.., outputs]) =
            (self.a.get::<4>().dims(), self.b.get::<4>().dims());
        [splits, skills, inputs, r, outputs]
    }

    /// How much of each skill each split has, from logits with this noise: `[rows, splits ·
    /// skills]`.
    fn shares(&self, noise: Tensor<2>) -> Tensor<2> {
        /// As in HF PEFT, against a sum of zero.
        const LEAST: f64 = 1e-12;
        let [splits, skills, ..] = self.sizes();
        let [rows, _] = noise.dims();
        let weights = sigmoid(noise + self.logits.get::<2>()).reshape([rows, splits, skills]);
        let sums = weights.clone().sum_dim(2) + LEAST;
        (weights / sums).reshape([rows, splits * skills])
    }

    /// `x A B / r`, with the shares of each row.
    ///
    /// Each term reads `x` and what is low by a fork of its own, so that the order in which their
    /// gradients are added is fixed.
    fn path(&self, mut x: Tensor<2>, shares: Tensor<2>) -> Tensor<2> {
        let [splits, skills, inputs, r, outputs] = self.sizes();
        let (a, b) = (self.a.get::<4>(), self.b.get::<4>());
        let block = |of: &Tensor<4>, split, skill, shape: [usize; 2]| {
            let skill = of.clone().narrow(0, split, 1).narrow(1, skill, 1);
            skill.reshape(shape)
        };
        let share = |split, skill| shares.clone().narrow(1, split * skills + skill, 1);
        let sum = |terms: Vec<Tensor<2>>| {
            let sum = terms.into_iter().reduce(|sum, term| sum + term);
            sum.expect("there are splits and skills")
        };
        let pairs = (0..splits).flat_map(|split| (0..skills).map(move |skill| (split, skill)));
        let low = pairs.map(|(split, skill)| {
            let x = split_off(&mut x).narrow(1, split * inputs, inputs);
            x.matmul(block(&a, split, skill, [inputs, r])) * share(split, skill)
        });
        let mut low = sum(low.collect());
        let blocks = (0..splits).map(|split| {
            let skills = (0..skills).map(|skill| {
                split_off(&mut low).matmul(block(&b, split, skill, [r, outputs]))
                    * share(split, skill)
            });
            sum(skills.collect())
        });
        Tensor::cat(blocks.collect(), 1) / r as f64
    }

    /// Logistic noise for each sequence, where training draws it, and none elsewhere; a row for
    /// each of the sequences' rows.
    fn noise(&self, site: &Site, rows: &Sequences) -> Tensor<2> {
        let count = self.logits.shape()[1];
        let device = self.logits.flat().device().inner();
        let Some(keys) = rows.keys() else {
            return Tensor::zeros([rows.tokens(), count], &device);
        };
        let noise = keys.iter().flat_map(|key| {
            let shares = random::uniform(key ^ !site.id(), count, 0.0, 1.0).into_iter();
            shares.map(|share| {
                let share = share.clamp(f32::EPSILON, 1.0 - f32::EPSILON);
                share.ln() - (1.0 - share).ln()
            })
        });
        let noise = TensorData::new(noise.collect::<Vec<f32>>(), [keys.len(), count]);
        expand_rows(Tensor::from_data(noise, &device), rows)
    }
}

impl Delta for Poly {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let [x, _] = fork(product.input().clone());
        let path = self.path(x, self.shares(self.noise(site, cx.rows)));
        add(product.compute(), path)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [_, inputs] = weight.dims();
        let device = weight.device();
        let [splits, skills, ..] = self.sizes();
        let shares = self.shares(Tensor::zeros([inputs, splits * skills], &device));
        let change = self.path(Tensor::eye(inputs, &device), shares);
        weight + change.inner().transpose()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::MethodError;
    use crate::small_bert::{bert, bert_base_count, module, set_random, values};

    #[test]
    fn counts_follow_the_formula() {
        let settings = json!({ "r": 8, "n_skills": 4, "n_splits": 2 });
        let expected = 24 * (4 * 8 * 2 * 768 + 2 * 4);
        assert_eq!(bert_base_count("poly", settings, 0), expected);
    }

    /// With one skill the mixture is that skill, whatever the logits: a LoRA with alpha 1.
    #[test]
    fn one_skill_is_a_low_rank_path() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let module = module(&model, "poly", json!({ "r": 2, "n_skills": 1 }));
        let b = set_random(&module, &format!("{path}.poly_lora_B"));
        let a = values(&module, &format!("{path}.poly_lora_A"));
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let merged = module.merged(&name, model.base()).unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        for (at, (merged, before)) in merged.iter().zip(before).enumerate() {
            let (row, column) = (at / 8, at % 8);
            let change: f32 = (0..2).map(|k| a[column * 2 + k] * b[k * 8 + row]).sum();
            assert!((merged - before - change / 2.0).abs() < 1e-6);
        }
    }

    #[test]
    fn tasks_and_splits_that_are_not_there_are_refused() {
        let model = bert();
        for (settings, key) in [
            (json!({ "n_tasks": 2 }), "n_tasks"),
            (json!({ "n_splits": 3 }), "n_splits"),
        ] {
            let settings = settings.as_object().unwrap().clone();
            let config = crate::by_name("poly").unwrap().configure(settings).unwrap();
            let error = config.count(model.base()).unwrap_err();
            assert!(
                matches!(&error, MethodError::Value { key: found, .. } if *found == key),
                "{error}"
            );
        }
    }
}
