//! HRA: the input of a linear layer is reflected at a few trained hyperplanes.
//!
//! Yuan, Liu, Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder
//! Reflection Adaptation", NeurIPS 2024, arXiv 2405.17484, section 3.
//!
//! `y = x (W H₁ ⋯ H_r)ᵀ + b` with `Hᵢ = I - 2 uᵢ uᵢᵀ`, `uᵢ: [in]` the normalized columns of a
//! trained `U: [in, r]`. With the normalized U the product of the reflections is `I - U T Uᵀ`,
//! where `T⁻¹ = I / 2` plus the part of `Uᵀ U` above its diagonal (Schreiber and Van Loan 1989), so
//! y costs as much as LoRA's: `x ← x - (x U) Tᵀ Uᵀ`. With `apply_GS` the columns are orthogonalized
//! first (Gram and Schmidt), and `T = 2 I`. Columns start in equal pairs, uniform at random, whose
//! reflections undo each other: nothing changes at first but by rounding. With an odd r they start
//! unpaired, as in HF PEFT.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r · in` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.hra_u` `[in, r]` |
//! | merges | `W - (W U) T Uᵀ` |

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Base, ForwardContext, Site};
use epiphyte_ops::{LowRank, add_low_rank, random};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::rotation::inverse;
use crate::parts::start::{Start, kaiming};

crate::settings! {
    /// The settings of HRA, under HF PEFT's names.
    #[expect(non_snake_case, reason = "HF PEFT's key is `apply_GS`")]
    pub struct HraConfig {
        /// Number of reflections; even, so that training starts with the base as it is.
        r: usize = 8, flag "rank", in Size;
        /// Orthogonalize the reflections' vectors.
        apply_GS: bool = false, flag "apply-gs";
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

impl HraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// Initial values of `U`: pairs of equal columns where they undo each other.
    fn init(&self, key: &str, inputs: usize, parameters: &ParameterSet) -> Init {
        let rank = self.r;
        if self.init_weights == Start::Random || !rank.is_multiple_of(2) {
            return kaiming(rank);
        }
        let draw = parameters.seed() ^ name_id(key);
        let bound = 1.0 / (rank as f64 / 2.0).sqrt();
        Init::Computed(Arc::new(move || {
            let half = random::uniform(draw, inputs * rank / 2, -bound, bound);
            half.into_iter().flat_map(|value| [value, value]).collect()
        }))
    }
}

impl MethodConfig for HraConfig {
    const NAME: &'static str = "hra";
    const PEFT_TYPE: &'static str = "HRA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a few reflections of the inputs of chosen linear layers";
    const PAPER: &'static str = "Yuan et al. 2024, arXiv 2405.17484";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    /// Pairs of reflections undo each other but for rounding.
    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 4 }),
            json!({ "r": 3, "apply_GS": true, "target_modules": "all-linear" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let (inputs, rank) = (linear.inputs, self.r);
            let init = self.init(&key("hra_u"), inputs, parameters);
            let u = parameters.declare(key("hra_u"), &[inputs, rank], init);
            let orthogonal = self.apply_GS;
            let rows = parameters.derived(key("hra_rows"), &[rank, inputs], move || {
                let rows = u.get::<2>().transpose();
                let rows = match orthogonal {
                    true => orthogonalized(rows),
                    false => normalized(rows),
                };
                rows.reshape([rank * inputs])
            });
            let columns = {
                let rows = rows.clone();
                parameters.derived(key("hra_columns"), &[inputs, rank], move || {
                    let rows = rows.get::<2>();
                    let columns = match orthogonal {
                        true => rows.transpose() * 2.0,
                        false => rows.clone().transpose().matmul(coupling(rows)),
                    };
                    columns.reshape([inputs * rank])
                })
            };
            (linear, Hra { rows, columns })
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?;
        Ok(targets.iter().map(|linear| self.r * linear.inputs).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// Rows of length one.
fn normalized(rows: Tensor<2>) -> Tensor<2> {
    let lengths = (rows.clone() * rows.clone()).sum_dim(1).sqrt();
    rows / lengths
}

/// Rows of length one, each orthogonal to those before it (Gram and Schmidt, modified).
fn orthogonalized(rows: Tensor<2>) -> Tensor<2> {
    let [count, _] = rows.dims();
    let mut done: Vec<Tensor<2>> = Vec::with_capacity(count);
    for row in 0..count {
        let mut row = rows.clone().narrow(0, row, 1);
        for other in &done {
            let along = (row.clone() * other.clone()).sum_dim(1);
            row = row - other.clone() * along;
        }
        done.push(normalized(row));
    }
    Tensor::cat(done, 0)
}

/// `T`, `[r, r]`, of normalized vectors in rows, `[r, in]`.
fn coupling(rows: Tensor<2>) -> Tensor<2> {
    let [rank, _] = rows.dims();
    let products = rows.clone().matmul(rows.transpose());
    let places = (0..rank).flat_map(|row| (0..rank).map(move |column| (row, column)));
    let (above, half): (Vec<f32>, Vec<f32>) = places
        .map(|(row, column)| {
            let above = f32::from(u8::from(row < column));
            (above, if row == column { 0.5 } else { 0.0 })
        })
        .unzip();
    let device = products.device().inner();
    let [above, half] =
        [above, half].map(|it| Tensor::<2>::from_data(TensorData::new(it, [rank, rank]), &device));
    let triangle = products * above + half;
    inverse(triangle.unsqueeze()).reshape([rank, rank])
}

/// HRA on one linear layer.
#[derive(Debug)]
struct Hra {
    /// `Uᵀ`, `[r, in]`.
    rows: Param,
    /// `U T`, `[in, r]`.
    columns: Param,
}

impl Delta for Hra {
    fn input(&self, _site: &Site, x: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let path = LowRank {
            a: self.rows.get(),
            b: self.columns.get(),
            scale: -1.0,
            dropout: None,
        };
        add_low_rank(x.clone(), x, path)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [rows, columns] = [&self.rows, &self.columns].map(|it| it.get::<2>().inner());
        weight.clone() - weight.matmul(columns).matmul(rows)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use epiphyte_models::Identity;
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random, values};

    const PATH: &str = "bert.encoder.layer.0.attention.self.query";

    /// `W H₁ ⋯ H_r`, reflection by reflection.
    #[test]
    fn the_merged_weight_is_the_product_with_each_reflection() {
        let model = bert();
        let module = module(&model, "hra", json!({ "r": 3 }));
        let u = set_random(&module, &format!("{PATH}.hra_u"));
        module.parameters().derive(false);
        let name = format!("{PATH}.weight");
        let mut expected = model.base().tensor(&name).unwrap().to_vec();
        for column in 0..3 {
            let vector: Vec<f32> = (0..8).map(|row| u[row * 3 + column]).collect();
            let square: f32 = vector.iter().map(|it| it * it).sum();
            for row in expected.chunks_mut(8) {
                let along: f32 = row.iter().zip(&vector).map(|(a, b)| a * b).sum();
                let factor = 2.0 * along / square;
                row.iter_mut()
                    .zip(&vector)
                    .for_each(|(it, by)| *it -= factor * by);
            }
        }
        let merged: Tensor<1> = module.merged(&name, model.base()).unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        assert!(distance(&merged, &expected) < 1e-5);
    }

    #[test]
    fn pairs_of_reflections_undo_each_other_at_first() {
        let model = bert();
        let module = module(&model, "hra", json!({ "r": 4 }));
        let u = values(&module, &format!("{PATH}.hra_u"));
        assert!(u.chunks(2).all(|pair| pair[0] == pair[1]));
        let moved = distance(&logits(&model, &Identity), &logits(&model, &module));
        assert!(moved < 1e-5, "{moved}");
    }

    #[test]
    fn orthogonalized_vectors_are_orthogonal() {
        let model = bert();
        let module = module(&model, "hra", json!({ "r": 3, "apply_GS": true }));
        set_random(&module, &format!("{PATH}.hra_u"));
        module.parameters().derive(false);
        let rows = module
            .parameters()
            .get(&format!("{PATH}.hra_rows"))
            .unwrap();
        let rows = rows.get::<2>();
        let products = rows.clone().matmul(rows.transpose());
        let one = Tensor::<2>::eye(3, &products.device());
        assert!((products - one).abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn counts_are_the_inputs_of_each_reflection() {
        assert_eq!(bert_base_count("hra", json!({}), 0), 24 * 8 * 768);
    }
}
