//! HiRA: a low-rank matrix that multiplies a frozen weight element by element.
//!
//! Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language
//! Models", ICLR 2025, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + dropout(x) (W ⊙ (B A))ᵀ`, with `A: [r, in]` and `B: [out, r]`; there is no
//! scaling. `A` starts uniform in `±1/√in` or, with `init_weights` = `gaussian`, normal with
//! standard deviation `1/r`, `B` at zero, so nothing changes at first. The product has the rank of
//! `W` and not of `B A`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of any rank |
//! | file | `<path>.hira_A` `[r, in]`, `<path>.hira_B` `[out, r]` |
//! | merges | `W ⊙ (1 + B A)` |

use burn::tensor::Tensor;
use epiphyte_models::Base;
use epiphyte_ops::FrozenMatrix;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas, frozen_weight};

crate::settings! {
    /// The settings of HiRA, under HF PEFT's names.
    pub struct HiraConfig {
        /// Rank of the factor.
        r: usize = 32, flag "rank", in Size;
        /// Dropout on the input of the change.
        hira_dropout: f64 = 0.0, in Fraction;
        /// Initial values of A: kaiming or gaussian; B starts at zero.
        init_weights: HiraInit = HiraInit::Kaiming, as Text, unset "kaiming";

        ..targets: Targets = Targets::default();
    }
}

/// How `A` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum HiraInit {
    /// Uniform in `±1/√in`; `true` in the file.
    Kaiming,
    /// Normal with standard deviation `1/r`; `"gaussian"` in the file.
    Gaussian,
}

impl TryFrom<Value> for HiraInit {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("kaiming")) => Ok(Self::Kaiming),
            (_, Some("gaussian")) => Ok(Self::Gaussian),
            _ => Err(format!(
                "{value} is not known; kaiming (true in a file) and gaussian are"
            )),
        }
    }
}

impl From<HiraInit> for Value {
    fn from(init: HiraInit) -> Self {
        match init {
            HiraInit::Kaiming => Self::Bool(true),
            HiraInit::Gaussian => json!("gaussian"),
        }
    }
}

impl HiraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }
}

impl MethodConfig for HiraConfig {
    const NAME: &'static str = "hira";
    const PEFT_TYPE: &'static str = "HIRA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "a low-rank matrix that multiplies the weight of chosen linear layers";
    const PAPER: &'static str = "Huang et al. 2025, ICLR";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3 }),
            json!({ "r": 2, "target_modules": "all-linear", "init_weights": "gaussian" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let rank = self.r;
        let targets = self.selection().of(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let key = |name| format!("{}.{name}", linear.site.path);
            let a = match self.init_weights {
                HiraInit::Kaiming => Init::kaiming(linear.inputs),
                HiraInit::Gaussian => Init::Normal {
                    std: 1.0 / rank as f64,
                },
            };
            let hira = Hira {
                a: parameters.declare(key("hira_A"), &[rank, linear.inputs], a),
                b: parameters.declare(key("hira_B"), &[linear.outputs, rank], Init::Zeros),
                weight: frozen_weight(base, linear),
                dropout: self.hira_dropout,
            };
            (linear, hira)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?.into_iter();
        Ok(targets
            .map(|linear| self.r * (linear.inputs + linear.outputs))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = &["hira_dropout", "init_weights"];

    /// HF PEFT reads it and gives every target the rank `r` all the same.
    const IGNORED: &'static [&'static str] = &["rank_pattern"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("modules_to_save".to_owned(), Value::Null),
            ("rank_pattern".to_owned(), json!({})),
        ])
    }
}

/// HiRA on one linear layer.
#[derive(Debug)]
struct Hira {
    a: Param,
    b: Param,
    weight: FrozenMatrix,
    dropout: f64,
}

impl Change for Hira {
    fn matrix(&self) -> Tensor<2> {
        self.b.get::<2>().matmul(self.a.get()) * self.weight.to_tensor()
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, module, set_random, values};

    /// `(B A) ⊙ W`, written out.
    #[test]
    fn the_merged_weight_is_the_base_times_one_plus_the_factor() {
        let (model, path) = (bert(), "bert.encoder.layer.1.attention.self.value");
        let module = module(&model, "hira", json!({ "r": 3 }));
        let b = set_random(&module, &format!("{path}.hira_B"));
        let a = values(&module, &format!("{path}.hira_A"));
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let merged = module.merged(&name, model.base()).unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        for (at, (merged, before)) in merged.iter().zip(before).enumerate() {
            let (row, column) = (at / 8, at % 8);
            let factor: f32 = (0..3).map(|k| b[row * 3 + k] * a[k * 8 + column]).sum();
            assert!((merged - before * (1.0 + factor)).abs() < 1e-6);
        }
    }
}
