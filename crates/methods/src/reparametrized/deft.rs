//! DEFT: a subspace of a weight's outputs is taken out and another content put in its place.
//!
//! HF PEFT's `DEFT`, after "DEFT: Decompositional Efficient Fine-Tuning for Text-to-Image Models";
//! with `para`, PaRa's removal of a subspace alone (Chen et al., "PaRa: Personalizing Text-to-Image
//! Diffusion via Parameter Rank Reduction", ICLR 2025).
//!
//! `W' = W - Q Dᵀ W + s Q R`, with `Q, D: [out, r]` from the trained `P: [out, r]`, `R: [r, in]`
//! and `s = α / r`, or 1 without `alpha`. `relu`: `Q = P`, `D = max(P, 0)`; `qr`: `Q = D`, an
//! orthonormal basis of what `P`'s columns span. With `para` there is no `R`. `P` starts normal
//! with standard deviation 0.02, `R` as `Dᵀ W / s`, so nothing changes at first but rounding; PaRa
//! changes the weight from the start. Dropout acts on the input of `R`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (out + in)` over the targets, with `para` `Σ r out` |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.deft_P` `[out, r]`, `<path>.deft_R` `[r, in]` |
//! | merges | `W - Q Dᵀ W + s Q R` |
//!
//! The columns of `Q` have the signs that LAPACK's Householder reflections give them, on which a
//! trained `R` depends.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, activation::relu};
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank, add_low_rank, fork};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::svd::qr;

crate::settings! {
    /// The settings of DEFT, under HF PEFT's names.
    pub struct DeftConfig {
        /// Rank of the subspace.
        r: usize = 8, flag "rank", in Size;
        /// How the subspace follows from P: relu or qr.
        decomposition_method: Decomposition = Decomposition::Relu, as Text, unset "relu";
        /// Scale of what is put in: it is multiplied by alpha / rank.
        #[serde(serialize_with = "super::lora::optional_alpha")]
        alpha: Option<f64> = None, flag "deft-alpha", in SinglePrecision, unset "the rank";
        /// Put nothing in: only take the subspace out (PaRa).
        para: bool = false;
        /// Dropout on the input of what is put in.
        deft_dropout: f64 = 0.0, in Fraction;

        ..targets: Targets = Targets::default();
    }
}

/// How the subspace follows from `P`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decomposition {
    /// `Q = P`, `D = max(P, 0)`.
    Relu,
    /// `Q = D`, the orthonormal factor of `P`.
    Qr,
}

impl DeftConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The rank in a layer: no more than it has outputs.
    fn rank(&self, linear: &LinearInfo) -> usize {
        self.r.min(linear.outputs)
    }

    /// `s`; an alpha of zero means none, as in HF PEFT.
    fn scaling(&self, rank: usize) -> f64 {
        let alpha = self.alpha.filter(|alpha| *alpha != 0.0);
        alpha.map_or(1.0, |alpha| alpha / rank as f64)
    }
}

impl MethodConfig for DeftConfig {
    const NAME: &'static str = "deft";
    const PEFT_TYPE: &'static str = "DEFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "subspaces of chosen linear layers' outputs, taken out and put in anew";
    const PAPER: &'static str = "HF PEFT; with --para, PaRa, Chen et al. 2025";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    /// Dividing by a power of two and multiplying by it again gives the same bits.
    fn starts_as_identity(&self) -> bool {
        !self.para && self.scaling(self.r).abs().log2().fract() == 0.0
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3 }),
            json!({
                "r": 3, "decomposition_method": "qr", "alpha": 6, "target_modules": "all-linear",
            }),
            json!({ "r": 2, "decomposition_method": "qr", "para": true }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let method = self.decomposition_method;
        let targets = self.selection().of(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let key = |name| format!("{}.deft_{name}", linear.site.path);
            let (rank, outputs, inputs) = (self.rank(linear), linear.outputs, linear.inputs);
            let weight = frozen_weight(base, linear);
            let scaling = self.scaling(rank);
            let normal = Init::Normal { std: 0.02 };
            let p = parameters.declare(key("P"), &[outputs, rank], normal);
            let r = (!self.para).then(|| {
                let (p, weight) = (p.clone(), weight.clone());
                let initial = Init::Computed(Arc::new(move || {
                    let p = p.initial().reshape([outputs, rank]);
                    let [_, d] = bases(method, p);
                    let r = d.transpose().matmul(weight.to_tensor()) / scaling;
                    let r = r.try_into_vec_as::<f32>();
                    r.expect("a base is f32 and on a device that can be read")
                }));
                parameters.declare(key("R"), &[rank, inputs], initial)
            });
            let q = (method == Decomposition::Qr).then(|| {
                let p = p.clone();
                parameters.derived(key("Q"), &[outputs, rank], move || {
                    orthonormal(p.get()).reshape([outputs * rank])
                })
            });
            let deft = Deft {
                p,
                q,
                r,
                weight,
                scaling: scaling as f32,
                dropout: self.deft_dropout,
            };
            (linear, deft)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?.into_iter();
        let inputs = |linear: &LinearInfo| if self.para { 0 } else { linear.inputs };
        Ok(targets
            .map(|linear| self.rank(linear) * (linear.outputs + inputs(linear)))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["deft_dropout"];

    /// How `R` starts with HF PEFT's `init_weights` = false.
    const IGNORED: &'static [&'static str] = &["init_scale"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), json!("none")),
            ("init_scale".to_owned(), json!(1.0)),
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// `Q` and `D` of `P`.
fn bases(method: Decomposition, p: Tensor<2>) -> [Tensor<2>; 2] {
    match method {
        Decomposition::Relu => {
            let [q, d] = fork(p);
            [q, relu(d)]
        }
        Decomposition::Qr => fork(orthonormal(p)),
    }
}

/// The factor `Q` of `P = Q U`, with orthonormal columns, and its gradient.
///
/// The factors themselves count as constants; what is added to `Q` is zero and has its
/// differential, `Q (L - Lᵀ) + (1 - Q Qᵀ) dP U⁻¹`, with L the part of `Qᵀ dP U⁻¹` below the
/// diagonal.
fn orthonormal(p: Tensor<2>) -> Tensor<2> {
    let [q, u] = qr(p.clone());
    let [rank, _] = u.dims();
    let moved = p.matmul(inverse_of_triangle(u));
    let within = q.clone().transpose().matmul(moved.clone());
    let is_below = (0..rank).flat_map(|row| (0..rank).map(move |column| column < row));
    let mask: Vec<f32> = is_below
        .map(|below| if below { 1.0 } else { 0.0 })
        .collect();
    let mask = Tensor::<2>::from_data(TensorData::new(mask, [rank, rank]), &q.device());
    let below = within.clone() * mask;
    let turned = q.clone().matmul(below.clone() - below.transpose());
    let change = turned + moved - q.clone().matmul(within);
    let rounding = change.clone().inner();
    q + (change - rounding)
}

/// The inverse of an upper triangular matrix.
fn inverse_of_triangle(u: Tensor<2>) -> Tensor<2> {
    let ([size, _], device) = (u.dims(), u.device());
    let u = u.try_into_vec_as::<f32>();
    let u = u.expect("parameters are f32 and on a device that can be read");
    let at = |row: usize, column: usize| f64::from(u[row * size + column]);
    let mut inverse = vec![0.0; size * size];
    for column in 0..size {
        for row in (0..=column).rev() {
            let one = if row == column { 1.0 } else { 0.0 };
            let known = (row + 1..=column).map(|k| at(row, k) * inverse[k * size + column]);
            let known: f64 = known.sum();
            inverse[row * size + column] = (one - known) / at(row, row);
        }
    }
    let inverse: Vec<f32> = inverse.into_iter().map(|value| value as f32).collect();
    Tensor::from_data(TensorData::new(inverse, [size, size]), &device)
}

/// DEFT on one linear layer.
#[derive(Debug)]
struct Deft {
    p: Param,
    /// `Q`, where it is not `P`.
    q: Option<Param>,
    r: Option<Param>,
    weight: FrozenMatrix,
    scaling: f32,
    dropout: f64,
}

impl Deft {
    /// `Q`, `[out, r]`, and what is taken out, `-Dᵀ W`, `[r, in]`.
    fn removal(&self) -> [Tensor<2>; 2] {
        let [q, d] = match &self.q {
            Some(q) => fork(q.get()),
            None => bases(Decomposition::Relu, self.p.get()),
        };
        let removed = d.transpose().matmul(self.weight.to_tensor());
        [q, removed.neg()]
    }

    /// `s R`, `[r, in]`.
    fn injection(&self) -> Option<Tensor<2>> {
        Some(self.r.as_ref()?.get::<2>() * self.scaling)
    }
}

impl Change for Deft {
    fn matrix(&self) -> Tensor<2> {
        let [q, removed] = self.removal();
        let low = match self.injection() {
            Some(injected) => injected + removed,
            None => removed,
        };
        q.matmul(low)
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let [q, removed] = self.removal();
        let path = |a, b, dropout| LowRank {
            a,
            b,
            scale: 1.0,
            dropout,
        };
        match (self.injection(), dropout) {
            (None, _) => product.add_low_rank(path(removed, q, None)),
            (Some(injected), None) => product.add_low_rank(path(injected + removed, q, None)),
            // Only what is put in has dropout.
            (Some(injected), dropout) => {
                // The product and both paths read the input; behind a fork, the paths have one
                // gradient, so that the order in which gradients are added is fixed.
                let [x, _] = fork(product.input().clone());
                let removal = path(removed, q.clone(), None);
                let y = add_low_rank(product.compute(), x.clone(), removal);
                add_low_rank(y, x, path(injected, q, dropout))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Tensor, TensorData};
    use epiphyte_ops::random;
    use serde_json::json;

    use super::orthonormal;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random};

    #[test]
    fn counts_follow_the_formula() {
        assert_eq!(
            bert_base_count("deft", json!({ "r": 8 }), 0),
            24 * 8 * 2 * 768
        );
        let para = json!({ "r": 8, "para": true });
        assert_eq!(bert_base_count("deft", para, 0), 24 * 8 * 768);
    }

    #[test]
    fn it_starts_at_the_base_but_for_rounding() {
        let model = bert();
        let plain = logits(&model, &epiphyte_models::Identity);
        for method in ["relu", "qr"] {
            let settings = json!({ "r": 3, "decomposition_method": method, "alpha": 6 });
            let moved = distance(&plain, &logits(&model, &module(&model, "deft", settings)));
            assert!(moved < 1e-6, "{method}: {moved}");
        }
    }

    /// What PaRa leaves has nothing in the span of `P`.
    #[test]
    fn para_takes_the_subspace_out() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let settings = json!({ "r": 2, "decomposition_method": "qr", "para": true });
        let module = module(&model, "deft", settings);
        let p = set_random(&module, &format!("{path}.deft_P"));
        module.parameters().derive(false);
        let merged = module.merged(&format!("{path}.weight"), model.base());
        let merged = merged.unwrap().unwrap().try_into_vec_as::<f32>().unwrap();
        for (column, of_p) in (0..8).flat_map(|column| [(column, 0), (column, 1)]) {
            let share: f32 = (0..8)
                .map(|row| merged[row * 8 + column] * p[row * 2 + of_p])
                .sum();
            assert!(share.abs() < 1e-5, "{share}");
        }
    }

    /// The slope of a sum of `Q`'s entries, weighted at random, along a random direction.
    #[test]
    fn the_gradient_of_the_orthonormal_factor_is_its_slope() {
        let draw = |seed, count| random::normal(seed, count, 1.0);
        let tensor = |values: Vec<f32>| {
            Tensor::<2>::from_data(TensorData::new(values, [6, 3]), &Default::default())
        };
        let (p, direction, weights) = (draw(1, 18), draw(2, 18), draw(3, 18));
        let value = |p: Tensor<2>| (orthonormal(p) * tensor(weights.clone())).sum();
        let tracked = tensor(p.clone()).autodiff().require_grad();
        let gradient = tracked.grad(&value(tracked.clone()).backward()).unwrap();
        let expected = (gradient * tensor(direction.clone()))
            .sum()
            .into_scalar::<f32>();
        let at = |step: f32| {
            let moved = p.iter().zip(&direction).map(|(p, d)| p + step * d);
            value(tensor(moved.collect())).into_scalar::<f32>()
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!(
            (slope - expected).abs() < 1e-2 * expected.abs().max(1.0),
            "{slope} {expected}"
        );
    }
}
