//! TinyLoRA: a handful of numbers that combine random matrices between a weight's singular vectors.
//!
//! Morris, Mireshghallah, Ibrahim, Mahloujifar, "Learning to Reason in 13 Parameters", 2026, arXiv
//! 2602.04118, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + (dropout(x) Aᵀ) Rᵀ Bᵀ`, with `A = √Σ Vᵀ: [r, in]` and `B = U √Σ: [out, r]` of
//! the weight's `r` largest singular values, and `R = Σ_i v_i P_i`, with random `P: [u, r, r]` and
//! the trained `v: [u]`, which several targets may share (`weight_tying`). `v` starts at zero, so
//! nothing changes at first, or uniform in `±init_v_bound` (`init_weights` = `uniform`). `P` is
//! normal with variance `1/r`, drawn as HF PEFT draws it from `projection_seed` and the target's
//! number.
//!
//! | | |
//! | --- | --- |
//! | trains | `G · u`, for G groups of targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `tinylora_v.<group>` `[u]`; `<path>.tinylora_A` `[r, in]`, `.tinylora_B` `[out, r]`, `.tinylora_P` `[u, r, r]` |
//! | merges | `W + B R A` |

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::svd::Svd;
use crate::parts::torch_generator::TorchGenerator;

crate::settings! {
    /// The settings of TinyLoRA, under HF PEFT's names.
    pub struct TinyLoraConfig {
        /// Number of singular values.
        r: usize = 2, flag "rank", in Size;
        /// Number of trained values of a group of targets.
        u: usize = 64, in Size;
        /// How much is shared: 0 for values of each target's own, 1 for the same in all.
        weight_tying: f64 = 0.0, in NotNegative;
        /// Seed of the random matrices, apart from the run's.
        projection_seed: u64 = 42;
        /// Store the random matrices, which follow from their seed.
        save_projection: bool = true, as Boolean;
        /// Bound of the initial values, with init_weights uniform.
        init_v_bound: f64 = 0.02, in SinglePrecision;
        /// Dropout on the input of the path.
        tinylora_dropout: f64 = 0.0, in Fraction;
        /// Initial values: zero or uniform.
        init_weights: TinyLoraInit = TinyLoraInit::Zero, as Text, unset "zero";

        ..targets: LayerTargets = LayerTargets::default();
    }
}

/// How `v` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum TinyLoraInit {
    /// At zero; `true` in the file.
    Zero,
    /// Uniform in `±init_v_bound`; `"uniform"` in the file.
    Uniform,
}

impl TryFrom<Value> for TinyLoraInit {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("zero")) => Ok(Self::Zero),
            (_, Some("uniform")) => Ok(Self::Uniform),
            _ => Err(format!(
                "{value} is not known; zero (true in a file) and uniform are"
            )),
        }
    }
}

impl From<TinyLoraInit> for Value {
    fn from(init: TinyLoraInit) -> Self {
        match init {
            TinyLoraInit::Zero => Self::Bool(true),
            TinyLoraInit::Uniform => json!("uniform"),
        }
    }
}

impl TinyLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with the number of its group, as HF PEFT counts them.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        if self.weight_tying > 1.0 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "weight_tying",
                value: self.weight_tying.to_string(),
                expected: "it must be from 0 to 1".to_owned(),
            });
        }
        let mut targets = self.selection().of(base)?;
        base.in_module_order(&mut targets);
        let count = targets.len();
        let groups = (count as f64 * (1.0 - self.weight_tying)).round_ties_even() as usize;
        let groups = groups.max(1);
        let size = (count / groups).max(1);
        let numbered = targets.into_iter().enumerate();
        Ok(numbered
            .map(|(at, linear)| (linear, (at / size).min(groups - 1)))
            .collect())
    }
}

impl MethodConfig for TinyLoraConfig {
    const NAME: &'static str = "tinylora";
    const PEFT_TYPE: &'static str = "TINYLORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "a few numbers that combine random matrices between singular vectors";
    const PAPER: &'static str = "Morris et al. 2026, arXiv 2602.04118";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == TinyLoraInit::Zero
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "u": 5 }),
            json!({
                "r": 3, "u": 7, "weight_tying": 0.6, "target_modules": "all-linear",
                "save_projection": false, "init_weights": "uniform", "init_v_bound": 0.1,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let u = self.u;
        // What the file does not hold is declared in a set of its own, which is not stored.
        let mut unsaved = ParameterSet::new(parameters.device(), parameters.seed());
        let mut groups: Vec<Param> = Vec::new();
        let mut deltas = Vec::new();
        for (at, (linear, group)) in self.targets(base)?.into_iter().enumerate() {
            if group == groups.len() {
                let init = match self.init_weights {
                    TinyLoraInit::Zero => Init::Zeros,
                    TinyLoraInit::Uniform => Init::Uniform {
                        bound: self.init_v_bound,
                    },
                };
                let key = format!("base_model.tinylora_v.{group}");
                groups.push(parameters.declare(key, &[u], init));
            }
            let key = |name| format!("{}.tinylora_{name}", linear.site.path);
            let rank = self.r.min(linear.inputs).min(linear.outputs);
            let [a, b] = factors(frozen_weight(base, linear), rank);
            let a = parameters.constant(key("A"), &[rank, linear.inputs], a);
            let b = parameters.constant(key("B"), &[linear.outputs, rank], b);
            let seed = self.projection_seed.wrapping_add(at as u64);
            let drawn = Init::Computed(Arc::new(move || {
                let std = 1.0 / (rank as f64).sqrt();
                TorchGenerator::new(seed).normal(u * rank * rank, std)
            }));
            let set = match self.save_projection {
                true => &mut *parameters,
                false => &mut unsaved,
            };
            let tiny = TinyLora {
                a,
                b,
                p: set.constant(key("P"), &[u, rank, rank], drawn),
                v: groups[group].clone(),
                dropout: self.tinylora_dropout,
            };
            deltas.push((linear, tiny));
        }
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?;
        let last = targets.iter().map(|(_, group)| group + 1).max();
        Ok(last.unwrap_or(0) * self.u)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] =
        &["init_v_bound", "init_weights", "tinylora_dropout"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// `√Σ Vᵀ` and `U √Σ` of a weight's largest singular values, which are found when the first of the
/// two is asked for.
fn factors(weight: FrozenMatrix, rank: usize) -> [Init; 2] {
    let found: Arc<OnceLock<[Vec<f32>; 2]>> = Arc::default();
    [0, 1].map(|which| {
        let (weight, found) = (weight.clone(), found.clone());
        Init::Computed(Arc::new(move || {
            let factors = found.get_or_init(|| {
                let svd = Svd::new(weight.to_tensor());
                [svd.right(0..rank, 0.5), svd.left(0..rank, 0.5)].map(|factor| {
                    let values = factor.try_into_vec_as::<f32>();
                    values.expect("a base is f32 and on a device that can be read")
                })
            });
            factors[which].clone()
        }))
    })
}

/// TinyLoRA on one linear layer.
#[derive(Debug)]
struct TinyLora {
    a: Param,
    b: Param,
    p: Param,
    v: Param,
    dropout: f64,
}

impl TinyLora {
    /// `B R`, `[out, r]`.
    fn left(&self) -> Tensor<2> {
        let [u, rank, _] = self.p.get::<3>().dims();
        let row: Tensor<2> = self.v.flat().unsqueeze();
        let r = row.matmul(self.p.flat().reshape([u, rank * rank]));
        self.b.get::<2>().matmul(r.reshape([rank, rank]))
    }
}

impl Change for TinyLora {
    fn matrix(&self) -> Tensor<2> {
        self.left().matmul(self.a.get())
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.get(),
            b: self.left(),
            scale: 1.0,
            dropout,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, module, values};

    /// Four targets: each its own, two pairs, and all together.
    #[test]
    fn tying_makes_groups_of_neighbors() {
        let model = bert();
        for (tying, groups) in [(0.0, 4), (0.5, 2), (1.0, 1)] {
            let settings = json!({ "u": 13, "weight_tying": tying });
            let counts = module(&model, "tinylora", settings).counts(model.base());
            assert_eq!(counts.trainable_parameters, groups * 13);
        }
    }

    /// `B A` is the best approximation of the weight of its rank: what it leaves is orthogonal to
    /// it.
    #[test]
    fn the_factors_are_those_of_the_weight() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let module = module(&model, "tinylora", json!({ "u": 3 }));
        let a = values(&module, &format!("{path}.tinylora_A"));
        let b = values(&module, &format!("{path}.tinylora_B"));
        let weight = model
            .base()
            .tensor(&format!("{path}.weight"))
            .unwrap()
            .to_vec();
        let product = |at: usize| b[at / 8 * 2] * a[at % 8] + b[at / 8 * 2 + 1] * a[8 + at % 8];
        let left: f32 = (0..64)
            .map(|at| (weight[at] - product(at)) * product(at))
            .sum();
        let size: f32 = (0..64).map(|at| product(at).powi(2)).sum();
        assert!(left.abs() < 1e-4 * size, "{left} of {size}");
    }
}
