//! LoRA: a low-rank path beside a frozen linear layer.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685,
//! section 4.1; rank-stabilized scaling from Kalajdzievski 2023, arXiv 2312.03732.
//!
//! `y = x Wᵀ + b + s · (dropout(x) Aᵀ) Bᵀ`, with `A: [r, in]`, `B: [out, r]` and `s = α / r`, or
//! `α / √r` with `use_rslora`. `A` starts uniform in `±1/√in` (Kaiming with a = √5) or normal with
//! standard deviation `1/r` (`gaussian`), `B` starts at zero, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.lora_A.weight` `[r, in]`, `<path>.lora_B.weight` `[out, r]` |
//! | merges | `W + s B A` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, LowRank};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::settings::LARGEST_SIZE;
use crate::framework::targets::{Selection, Targets, check_keys, first_match};
use crate::parts::delta::{Delta, Deltas};

crate::settings! {
    /// The settings of LoRA, under HF PEFT's names.
    pub struct LoraConfig {
        /// Rank of the update.
        r: usize = 8, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        #[serde(serialize_with = "alpha")]
        lora_alpha: f64 = 16.0, flag "alpha", in SinglePrecision;
        /// Dropout on the input of the low-rank path.
        lora_dropout: f64 = 0.0, flag "dropout", in Fraction;
        /// Multiply by alpha / sqrt(rank) instead (rank-stabilized LoRA).
        use_rslora: bool = false;
        /// Other ranks for some modules: name=rank,... where a name is a regular expression for the
        /// end of the path and the first match wins.
        rank_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Other alphas for some modules: name=alpha,...
        #[serde(serialize_with = "alphas")]
        alpha_pattern: IndexMap<String, f64> = IndexMap::new();
        /// Initial values of A: kaiming or gaussian; B starts at zero.
        init_lora_weights: LoraInit = LoraInit::Kaiming, as Text, unset "kaiming";

        ..targets: Targets = Targets::default();
    }
}

/// An alpha as HF PEFT writes it: without a point where it is a whole number.
pub(crate) fn alpha<S: serde::Serializer>(alpha: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    written(*alpha).serialize(serializer)
}

/// The same of an alpha that may not be given.
pub(crate) fn optional_alpha<S: serde::Serializer>(
    alpha: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    alpha.map(written).serialize(serializer)
}

fn alphas<S: serde::Serializer>(
    alphas: &IndexMap<String, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(alphas.iter().map(|(key, alpha)| (key, written(*alpha))))
}

fn written(alpha: f64) -> Value {
    let whole = alpha as i64;
    if whole as f64 == alpha {
        json!(whole)
    } else {
        json!(alpha)
    }
}

/// How LoRA's `A` starts; `B` starts at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoraInit {
    /// Uniform in `±1/√in`; `true` in the file.
    #[default]
    Kaiming,
    /// Normal with standard deviation `1/r`; `"gaussian"` in the file.
    Gaussian,
    /// Another start that left the base as it was, in the file of an adapter that HF PEFT trained.
    Finished(FinishedInit),
}

/// Starts of HF PEFT's that leave the base as it is. Training does not begin with them here; in a
/// finished adapter they mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishedInit {
    /// Both matrices at random: `false` in the file.
    Random,
    /// Both matrices orthogonal.
    Orthogonal,
    /// `A` from the singular vectors of the layer's inputs.
    Eva,
}

impl Serialize for LoraInit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Kaiming => serializer.serialize_bool(true),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::Finished(FinishedInit::Random) => serializer.serialize_bool(false),
            Self::Finished(FinishedInit::Orthogonal) => serializer.serialize_str("orthogonal"),
            Self::Finished(FinishedInit::Eva) => serializer.serialize_str("eva"),
        }
    }
}

impl<'de> Deserialize<'de> for LoraInit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let finished = |init| Ok(Self::Finished(init));
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("kaiming")) => Ok(Self::Kaiming),
            (_, Some("gaussian")) => Ok(Self::Gaussian),
            (Value::Bool(false), _) => finished(FinishedInit::Random),
            (_, Some("orthogonal")) => finished(FinishedInit::Orthogonal),
            (_, Some("eva")) => finished(FinishedInit::Eva),
            (_, Some("olora" | "corda" | "loftq" | "lora_ga")) => Err(changes_base(&value)),
            (_, Some(name)) if name.starts_with("pissa") => Err(changes_base(&value)),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; kaiming (true in a file) and gaussian are"
            ))),
        }
    }
}

/// A start that took something from the base's weights, which the adapter alone does not say.
fn changes_base<E: serde::de::Error>(value: &Value) -> E {
    E::custom(format!(
        "{value} changed the base's own weights before training, so the adapter does not fit the \
         base as it is; convert it to plain LoRA with HF PEFT: save_pretrained(..., \
         path_initial_model_for_weight_conversion=...)"
    ))
}

impl LoraConfig {
    fn selection(&self, method: &'static str) -> Selection<'_> {
        self.targets
            .selection(method, |base| base.default_targets.lora)
    }

    /// The targets, each with its rank and scaling; `method` is the method of LoRA's kind whose
    /// settings these are.
    pub(crate) fn targets<'b>(
        &self,
        method: &'static str,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, f64)>, MethodError> {
        let targets = self.selection(method).of(base)?;
        targets
            .into_iter()
            .map(|linear| {
                let path = &linear.site.path;
                let rank = first_match(method, &self.rank_pattern, path)?;
                let rank = rank.unwrap_or(self.r);
                let alpha = first_match(method, &self.alpha_pattern, path)?;
                let alpha = alpha.unwrap_or(self.lora_alpha);
                if !(alpha as f32).is_finite() {
                    return Err(MethodError::Value {
                        method,
                        key: "alpha_pattern",
                        value: format!("{alpha:e}"),
                        expected: "it must be a number that is finite in single precision"
                            .to_owned(),
                    });
                }
                let divisor = if self.use_rslora {
                    (rank as f64).sqrt()
                } else {
                    rank as f64
                };
                Ok((linear, rank, alpha / divisor))
            })
            .collect()
    }

    /// The initial values of a target's `A`.
    pub(crate) fn initial_a(&self, linear: &LinearInfo, rank: usize) -> Init {
        match self.init_lora_weights {
            // Of a finished adapter, the values are those of its file.
            LoraInit::Kaiming | LoraInit::Finished(_) => Init::Uniform {
                bound: 1.0 / (linear.inputs as f64).sqrt(),
            },
            LoraInit::Gaussian => Init::Normal {
                std: 1.0 / rank as f64,
            },
        }
    }

    /// Declares `A` and `B` of a target.
    pub(crate) fn declare(
        &self,
        linear: &LinearInfo,
        rank: usize,
        parameters: &mut ParameterSet,
    ) -> [Param; 2] {
        let path = &linear.site.path;
        let a = format!("{path}.lora_A.weight");
        let a = parameters.declare(a, &[rank, linear.inputs], self.initial_a(linear, rank));
        let b = format!("{path}.lora_B.weight");
        let b = parameters.declare(b, &[linear.outputs, rank], Init::Zeros);
        [a, b]
    }

    /// As [`MethodConfig::check_start`], for the method of LoRA's kind whose settings these are.
    pub(crate) fn check_start_as(
        &self,
        method: &'static str,
        base: &Base,
    ) -> Result<(), MethodError> {
        if let LoraInit::Finished(_) = self.init_lora_weights {
            let init = json!(self.init_lora_weights);
            return Err(MethodError::Value {
                method,
                key: "init_lora_weights",
                value: init.as_str().map_or(init.to_string(), str::to_owned),
                expected: "training begins with kaiming or gaussian".to_owned(),
            });
        }
        let selection = self.selection(method);
        selection.check_start(base)?;
        let targets = selection.of(base)?;
        let most = self.rank_pattern.iter().max_by_key(|(_, rank)| **rank);
        if let Some((key, rank)) = most.filter(|(_, rank)| **rank > LARGEST_SIZE) {
            return Err(MethodError::Value {
                method,
                key: "rank_pattern",
                value: format!("{key}={rank}"),
                expected: format!("a rank is at most {LARGEST_SIZE}"),
            });
        }
        check_keys(method, "rank_pattern", &self.rank_pattern, &targets)?;
        check_keys(method, "alpha_pattern", &self.alpha_pattern, &targets)
    }

    /// The settings with the target modules that are left to the base, for the file.
    pub(crate) fn resolved_as(&self, method: &'static str, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection(method).targets(base)),
            ..self.clone()
        }
    }
}

impl MethodConfig for LoraConfig {
    const NAME: &'static str = "lora";
    const PEFT_TYPE: &'static str = "LORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a low-rank path added to chosen linear layers";
    const PAPER: &'static str = "Hu et al. 2021, arXiv 2106.09685";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "target_modules": "all-linear", "r": 4, "alpha": 2, "use_rslora": true }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(Self::NAME, base)?.into_iter();
        let deltas = targets.map(|(linear, rank, scaling)| {
            let [a, b] = self.declare(linear, rank, parameters);
            let lora = Lora {
                a,
                b,
                scaling: scaling as f32,
                dropout: self.lora_dropout,
            };
            (linear, lora)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(Self::NAME, base)?;
        Ok(targets
            .iter()
            .map(|(linear, rank, _)| rank * (linear.inputs + linear.outputs))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        self.resolved_as(Self::NAME, base)
    }

    /// Our alpha is twice the rank unless said otherwise, PEFT's is 8.
    fn file_defaults() -> Map<String, Value> {
        Map::from_iter([("lora_alpha".to_owned(), json!(8))])
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["lora_dropout"];

    const IGNORED: &'static [&'static str] = &[
        "corda_config",
        "eva_config",
        "loftq_config",
        "lora_ga_config",
    ];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection(Self::NAME).computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        let Value::Object(defaults) = json!({
            "alora_invocation_tokens": null, "arrow_config": null, "bias": "none",
            "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
            "kasa_config": null, "layer_replication": null,
            "loftq_config": {}, "lora_bias": false, "lora_ga_config": null,
            "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null,
            "monteclora_config": null, "qalora_group_size": 16, "target_parameters": null,
            "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
            "use_qalora": false, "velora_config": null,
        }) else {
            unreachable!("the literal is an object");
        };
        defaults
    }
}

/// LoRA on one linear layer.
#[derive(Debug)]
pub(crate) struct Lora {
    pub(crate) a: Param,
    pub(crate) b: Param,
    pub(crate) scaling: f32,
    pub(crate) dropout: f64,
}

impl Delta for Lora {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.get(),
            b: self.b.get(),
            scale: self.scaling,
            dropout: Dropout::new(self.dropout, !site.id(), cx.rows),
        })
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        weight + self.b.get::<2>().inner().matmul(self.a.get::<2>().inner()) * self.scaling
    }
}
