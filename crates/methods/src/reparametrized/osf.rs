//! OSF: the small singular directions of a weight are trained, orthogonally to the large ones.
//!
//! Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual
//! Learning", 2025, arXiv 2504.07097, as HF PEFT has it.
//!
//! `W = U Σ V`, of which the `k` largest singular values stay (`effective_rank`; half of them
//! unless it is set) and the others are trained: `W' = W - U₀ Σ₀ V₀ + U_l diag(S_l) V_l`, with
//! `U_l: [out, m-k]`, `S_l: [m-k]`, `V_l: [m-k, in]`, `m = min(out, in)`, which start as `U₀, Σ₀,
//! V₀`, so nothing changes at first but rounding. Gradients of `U_l` and `V_l` lose what lies in
//! the span of the directions that stay.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ (m - k) (out + in + 1)` over the targets: the larger `effective_rank`, the fewer |
//! | changes | `Σ in · out`, by a matrix of rank `≤ 2 (m - k)` each |
//! | file | `<path>.osf_svd_params.U_low`, `.S_low`, `.V_low` |
//! | merges | `W'` |

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::gradients::Gradients;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::patterns::Pattern;
use crate::framework::settings::{FlagKind, SettingType};
use crate::framework::targets::{ALL_LINEAR, Modules, NamedTargets};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::svd::Svd;

crate::settings! {
    /// The settings of OSF, under HF PEFT's names.
    pub struct OsfConfig {
        /// How many of the largest singular values stay: a number, or a share in (0, 1].
        effective_rank: Option<PreservedRank> = None, unset "half of them";
        /// Other ranks for some modules: name=rank,... where a name is a regular expression that
        /// occurs in the path and the first match wins.
        rank_pattern: Option<IndexMap<String, PreservedRank>> = None;
        /// Linear layers to adapt: names, a regular expression, or all-linear.
        target_modules: Option<Modules> = None, unset "all-linear";
    }
}

/// How many singular values stay.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PreservedRank {
    /// This many.
    Count(usize),
    /// This share of them, in (0, 1]; of a larger number the whole part is a count.
    Share(f64),
}

impl SettingType for PreservedRank {
    const KIND: FlagKind = FlagKind::Number;
}

impl PreservedRank {
    /// The number, of `most` singular values.
    fn of(self, most: usize) -> usize {
        let rank = match self {
            Self::Count(count) => count,
            Self::Share(share) if share > 0.0 && share <= 1.0 => (most as f64 * share) as usize,
            Self::Share(count) => count.max(0.0) as usize,
        };
        rank.min(most)
    }
}

impl OsfConfig {
    fn targets_setting(&self) -> NamedTargets {
        let all = || Modules::Pattern(ALL_LINEAR.to_owned());
        NamedTargets {
            target_modules: Some(self.target_modules.clone().unwrap_or_else(all)),
        }
    }

    /// The targets, each with how many singular values stay.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        let targets = self.targets_setting();
        let targets = targets.selection(Self::NAME, |_| &[]).of(base)?;
        let ranked = targets.into_iter().map(|linear| {
            let (path, most) = (&linear.site.path, linear.inputs.min(linear.outputs));
            let mut rank = self.effective_rank.map_or(most / 2, |rank| rank.of(most));
            for (pattern, other) in self.rank_pattern.iter().flatten() {
                let pattern = Pattern::whole(&format!(".*(?:{pattern}).*"));
                let matches = pattern.and_then(|pattern| pattern.matches(path));
                let matches = matches.map_err(|error| MethodError::Configuration {
                    method: Self::NAME,
                    reason: format!("`rank_pattern` cannot be used: {error}"),
                })?;
                if matches {
                    rank = other.of(most);
                    break;
                }
            }
            if (1..most).contains(&rank) {
                return Ok((linear, rank));
            }
            Err(MethodError::Value {
                method: Self::NAME,
                key: "effective_rank",
                value: rank.to_string(),
                expected: format!(
                    "of `{path}` it must be from 1 to {}, so that something stays and something \
                     is trained",
                    most - 1
                ),
            })
        });
        ranked.collect()
    }
}

impl MethodConfig for OsfConfig {
    const NAME: &'static str = "osf";
    const PEFT_TYPE: &'static str = "OSF";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "the small singular directions of weights, orthogonal to the large ones";
    const PAPER: &'static str = "Nayak et al. 2025, arXiv 2504.07097";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_storage: Some(false),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "effective_rank": 5, "rank_pattern": { "dense|proj|[0-9]": 0.8 } }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let deltas = targets.map(|(linear, preserved)| {
            let key = |name| format!("{}.osf_svd_params.{name}", linear.site.path);
            let directions = Directions {
                weight: frozen_weight(base, linear),
                preserved,
                svd: Arc::default(),
            };
            let trained = linear.inputs.min(linear.outputs) - preserved;
            let mut declare = |name, shape: &[usize], values: fn(&Directions) -> Tensor<2>| {
                let directions = directions.clone();
                let init = Init::Computed(Arc::new(move || {
                    let values = values(&directions).try_into_vec_as::<f32>();
                    values.expect("a base is f32 and on a device that can be read")
                }));
                parameters.declare(key(name), shape, init)
            };
            let osf = Osf {
                u: declare("U_low", &[linear.outputs, trained], |it| it.left(0.0)),
                s: declare("S_low", &[trained], Directions::sizes),
                v: declare("V_low", &[trained, linear.inputs], |it| it.right()),
                directions,
            };
            (linear, osf)
        });
        let deltas: Vec<_> = deltas.collect();
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let targets = self.targets_setting();
        targets.selection(Self::NAME, |_| &[]).check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let counts = targets.map(|(linear, preserved)| {
            let trained = linear.inputs.min(linear.outputs) - preserved;
            trained * (linear.inputs + linear.outputs + 1)
        });
        Ok(counts.sum())
    }

    fn resolved(&self, _base: &Base) -> Self {
        Self {
            target_modules: self.targets_setting().target_modules,
            ..self.clone()
        }
    }

    /// HF PEFT accepts it and does nothing with it.
    const IGNORED: &'static [&'static str] = &["target_svd_config"];

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
            ("target_svd_config".to_owned(), Value::Null),
        ])
    }
}

/// The singular directions of a weight, found when they are first needed.
#[derive(Clone, Debug)]
struct Directions {
    weight: FrozenMatrix,
    preserved: usize,
    svd: Arc<OnceLock<Svd>>,
}

impl Directions {
    fn svd(&self) -> &Svd {
        self.svd.get_or_init(|| Svd::new(self.weight.to_tensor()))
    }

    /// `U₀ Σ₀^power`, `[out, m-k]`.
    fn left(&self, power: f64) -> Tensor<2> {
        let svd = self.svd();
        svd.left(self.preserved..svd.values.len(), power)
    }

    /// `V₀`, `[m-k, in]`.
    fn right(&self) -> Tensor<2> {
        let svd = self.svd();
        svd.right(self.preserved..svd.values.len(), 0.0)
    }

    /// `Σ₀`, `[1, m-k]`.
    fn sizes(&self) -> Tensor<2> {
        let sizes = self.svd().values[self.preserved..].iter();
        let sizes: Vec<f32> = sizes.map(|size| *size as f32).collect();
        Tensor::<1>::from_floats(sizes.as_slice(), self.weight.device()).unsqueeze()
    }

    /// `U` of those that stay, `[out, k]`.
    fn preserved_left(&self) -> Tensor<2> {
        self.svd().left(0..self.preserved, 0.0)
    }

    /// `V` of those that stay, `[k, in]`.
    fn preserved_right(&self) -> Tensor<2> {
        self.svd().right(0..self.preserved, 0.0)
    }
}

/// OSF on one linear layer.
#[derive(Debug)]
struct Osf {
    u: Param,
    s: Param,
    v: Param,
    directions: Directions,
}

impl Osf {
    /// `[V_l; V₀]` and `[U_l diag(S_l), -U₀ Σ₀]`: the change is the product of the second with the
    /// first.
    fn factors(&self) -> [Tensor<2>; 2] {
        let left = self.u.get::<2>() * self.s.flat().unsqueeze::<2>();
        let initial = self.directions.left(1.0).neg();
        [
            Tensor::cat(vec![self.v.get(), self.directions.right()], 0),
            Tensor::cat(vec![left, initial], 1),
        ]
    }
}

impl Change for Osf {
    fn matrix(&self) -> Tensor<2> {
        let [a, b] = self.factors();
        b.matmul(a)
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let [a, b] = self.factors();
        product.add_low_rank(LowRank {
            a,
            b,
            scale: 1.0,
            dropout,
        })
    }

    fn after_backward(&self, gradients: &mut Gradients) {
        let shaped = |param: &Param, gradient: Tensor<1>| {
            gradient.reshape([param.shape()[0], param.shape()[1]])
        };
        gradients.update(&self.u, |gradient| {
            let (gradient, u) = (shaped(&self.u, gradient), self.directions.preserved_left());
            let within = u.clone().matmul(u.transpose().matmul(gradient.clone()));
            (gradient - within).reshape([self.u.count()])
        });
        gradients.update(&self.v, |gradient| {
            let (gradient, v) = (shaped(&self.v, gradient), self.directions.preserved_right());
            let within = gradient.clone().matmul(v.clone().transpose()).matmul(v);
            (gradient - within).reshape([self.v.count()])
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::PreservedRank;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module};

    #[test]
    fn a_larger_effective_rank_trains_less() {
        let count = |rank: usize| {
            let settings = json!({ "effective_rank": rank, "target_modules": ["query"] });
            bert_base_count("osf", settings, 0)
        };
        assert_eq!(count(384), 12 * 384 * 1537);
        assert_eq!(count(760), 12 * 8 * 1537);
    }

    #[test]
    fn ranks_are_numbers_or_shares_as_in_peft() {
        let read = |text: &str| serde_json::from_str::<PreservedRank>(text).unwrap().of(16);
        let found = ["1", "1.0", "0.25", "7", "7.5", "99"].map(read);
        assert_eq!(found, [1, 16, 4, 7, 7, 16]);
    }

    #[test]
    fn it_starts_at_the_base_but_for_rounding() {
        let model = bert();
        let plain = logits(&model, &epiphyte_models::Identity);
        let moved = distance(&plain, &logits(&model, &module(&model, "osf", json!({}))));
        assert!(moved < 1e-6, "{moved}");
    }
}
