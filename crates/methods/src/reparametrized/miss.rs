//! MiSS: one small matrix, repeated along the inputs and added to a frozen weight.
//!
//! Kang, Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure",
//! 2024, arXiv 2409.15371; the definition is HF PEFT's code.
//!
//! The inputs are taken in groups of r, the last filled with zeros, and added up: `y = x Wᵀ + b +
//! (Σ_g d(x)_g) B`, with a trained `B: [r, out]` and dropout d. With the start `mini`, B is a
//! matrix `[r, mini_r]` repeated along the outputs. With `bat` ("block affine transformation") the
//! trained `B: [out / r, r, r]` also multiplies the weight: each block `w: [r, r]` of W in block
//! row p becomes `w + w B_p + B_p`. B starts at zero, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r · out` over the targets, with `mini` `r · mini_r` each |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each, with `bat` of any rank |
//! | file | `<path>.miss_block` `[r, out]`, `[r, mini_r]` or `[out / r, r, r]` |
//! | merges | `W + [Bᵀ Bᵀ …]`, with `bat` block by block |

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, Weight, add, linear};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas, dropped, frozen_weight};
use crate::parts::start::kaiming;

crate::settings! {
    /// The settings of MiSS, under HF PEFT's names.
    pub struct MissConfig {
        /// Rank: inputs of a group.
        r: usize = 64, flag "rank", in Size;
        /// Dropout on the input of the update.
        miss_dropout: f64 = 0.0, in Fraction;
        /// Columns of the matrix with mini.
        mini_r: usize = 1, in Size;
        /// Form: identity, bat, mini, or random (the first with values at random).
        init_weights: MissForm = MissForm::Plain, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

/// The forms of MiSS, which HF PEFT tells apart by `init_weights`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissForm {
    /// One matrix for all groups, at zero: `true` in files.
    #[default]
    Plain,
    /// The same, at random: `false` in files.
    Random,
    /// A matrix for each block row, which multiplies the weight too: `"bat"` in files.
    Bat,
    /// A matrix that is repeated along the outputs too: `"mini"` in files.
    Mini,
}

impl Serialize for MissForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Plain => serializer.serialize_bool(true),
            Self::Random => serializer.serialize_bool(false),
            Self::Bat => serializer.serialize_str("bat"),
            Self::Mini => serializer.serialize_str("mini"),
        }
    }
}

impl<'de> Deserialize<'de> for MissForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("identity")) => Ok(Self::Plain),
            (Value::Bool(false), _) | (_, Some("random")) => Ok(Self::Random),
            (_, Some("bat")) => Ok(Self::Bat),
            (_, Some("mini")) => Ok(Self::Mini),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; identity (true in a file), bat, mini and random (false) are"
            ))),
        }
    }
}

impl MissConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with the shape of its matrix.
    fn targets<'b>(
        &self,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, Vec<usize>)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let shape = self.shape(linear)?;
            Ok((linear, shape))
        });
        targets.collect()
    }

    fn shape(&self, linear: &LinearInfo) -> Result<Vec<usize>, MethodError> {
        let (inputs, outputs, path) = (linear.inputs, linear.outputs, &linear.site.path);
        let wrong = |key, value: usize, expected: String| {
            Err(MethodError::Value {
                method: Self::NAME,
                key,
                value: value.to_string(),
                expected,
            })
        };
        if self.r > inputs {
            let expected = format!("`{path}` has {inputs} inputs, and r is at most that");
            return wrong("r", self.r, expected);
        }
        let divides = |size: usize| size.is_multiple_of(self.r);
        match self.init_weights {
            MissForm::Plain | MissForm::Random => Ok(vec![self.r, outputs]),
            MissForm::Bat if divides(inputs) && divides(outputs) => {
                Ok(vec![outputs / self.r, self.r, self.r])
            }
            MissForm::Bat => {
                let expected = format!(
                    "with bat it must divide both sizes of `{path}`, {inputs} and {outputs}"
                );
                wrong("r", self.r, expected)
            }
            MissForm::Mini if outputs.is_multiple_of(self.mini_r) => Ok(vec![self.r, self.mini_r]),
            MissForm::Mini => {
                let expected = format!("it must divide {outputs}, the outputs of `{path}`");
                wrong("mini_r", self.mini_r, expected)
            }
        }
    }
}

impl MethodConfig for MissConfig {
    const NAME: &'static str = "miss";
    const PEFT_TYPE: &'static str = "MISS";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "one small matrix for all groups of inputs, added to chosen linear layers";
    const PAPER: &'static str = "Kang and Yin 2024, arXiv 2409.15371";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights != MissForm::Random
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 5, "init_weights": "random" }),
            json!({ "r": 4, "target_modules": "all-linear" }),
            json!({ "r": 4, "init_weights": "bat" }),
            json!({ "r": 4, "mini_r": 2, "init_weights": "mini" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let deltas = self.targets(base)?.into_iter().map(|(linear, shape)| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let init = match self.init_weights {
                MissForm::Random => kaiming(linear.outputs),
                _ => Init::Zeros,
            };
            let block = parameters.declare(key("miss_block"), &shape, init);
            let (inputs, outputs) = (linear.inputs, linear.outputs);
            let miss = match self.init_weights {
                MissForm::Bat => {
                    let weight = frozen_weight(base, linear);
                    let change = move || affine_change(&weight, block.get());
                    let change =
                        parameters.derived(key("miss_change"), &[outputs, inputs], move || {
                            change().reshape([outputs * inputs])
                        });
                    Miss::Affine(change)
                }
                _ => Miss::Repeated(Repeated {
                    block,
                    inputs,
                    outputs,
                    dropout: self.miss_dropout,
                }),
            };
            (linear, miss)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?;
        Ok(targets
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["miss_dropout"];

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// What `bat` adds to a weight, `[out, in]`: `w B_p + B_p` for each block w in block row p.
fn affine_change(weight: &FrozenMatrix, blocks: Tensor<3>) -> Tensor<2> {
    let [outputs, inputs] = weight.shape();
    let [rows, r, _] = blocks.dims();
    let columns = inputs / r;
    let weight = weight.to_tensor().reshape([rows, r, columns, r]);
    let weight = weight.swap_dims(1, 2).reshape([rows, columns * r, r]);
    let product = weight.matmul(blocks.clone()).reshape([rows, columns, r, r]);
    let change = product + blocks.reshape([rows, 1, r, r]);
    change.swap_dims(1, 2).reshape([outputs, inputs])
}

/// MiSS on one linear layer.
#[derive(Debug)]
enum Miss {
    /// With one matrix for all groups.
    Repeated(Repeated),
    /// With `bat`: what it adds to the weight, `[out, in]`.
    Affine(Param),
}

impl Change for Miss {
    fn matrix(&self) -> Tensor<2> {
        match self {
            Self::Repeated(repeated) => repeated.matrix(),
            Self::Affine(change) => change.get(),
        }
    }

    fn dropout(&self) -> f64 {
        match self {
            Self::Repeated(repeated) => repeated.dropout,
            Self::Affine(_) => 0.0,
        }
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let x = dropped(&product, dropout);
        let (x, weight) = match self {
            Self::Repeated(repeated) => (repeated.sums(x), repeated.rows()),
            Self::Affine(change) => (x, change.get()),
        };
        add(product.compute(), linear(x, &Weight::Trained(weight), None))
    }
}

/// A matrix that all groups of inputs share.
#[derive(Debug)]
struct Repeated {
    /// `[r, out]`, or `[r, mini_r]`.
    block: Param,
    inputs: usize,
    outputs: usize,
    dropout: f64,
}

impl Repeated {
    /// `Bᵀ`, `[out, r]`.
    fn rows(&self) -> Tensor<2> {
        let block = self.block.get::<2>();
        let [_, columns] = block.dims();
        match self.outputs / columns {
            1 => block.transpose(),
            times => block.transpose().repeat_dim(0, times),
        }
    }

    /// The same for every group of inputs, `[out, in]`.
    fn matrix(&self) -> Tensor<2> {
        let rows = self.rows();
        let [_, r] = rows.dims();
        let groups = self.inputs.div_ceil(r);
        rows.repeat_dim(1, groups).narrow(1, 0, self.inputs)
    }

    /// The sum of the groups of inputs, `[tokens, r]`.
    fn sums(&self, x: Tensor<2>) -> Tensor<2> {
        let (r, [tokens, inputs]) = (self.block.shape()[0], x.dims());
        let groups = inputs.div_ceil(r);
        let x = match groups * r - inputs {
            0 => x,
            rest => {
                let zeros = Tensor::zeros([tokens, rest], &x.device().inner());
                Tensor::cat(vec![x, zeros], 1)
            }
        };
        let sums = x.reshape([tokens, groups, r]).sum_dim(1);
        sums.reshape([tokens, r])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, module, set_random};

    /// Entry by entry: each column group gets the same matrix, also the last, shorter one.
    #[test]
    fn every_group_of_inputs_gets_the_same_matrix() {
        let model = bert();
        let module = module(&model, "miss", json!({ "r": 3 }));
        let path = "bert.encoder.layer.0.attention.self.query";
        let block = set_random(&module, &format!("{path}.miss_block"));
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let after = module.merged(&name, model.base()).unwrap().unwrap();
        let after = after.try_into_vec_as::<f32>().unwrap();
        for (at, (before, after)) in before.iter().zip(after).enumerate() {
            let (row, column) = (at / 8, at % 8);
            assert!((after - before - block[column % 3 * 8 + row]).abs() < 1e-6);
        }
    }

    #[test]
    fn counts_are_the_sizes_of_the_matrices() {
        assert_eq!(bert_base_count("miss", json!({}), 0), 24 * 64 * 768);
        let bat = json!({ "init_weights": "bat" });
        assert_eq!(bert_base_count("miss", bat, 0), 24 * 64 * 768);
        let mini = json!({ "init_weights": "mini", "mini_r": 8 });
        assert_eq!(bert_base_count("miss", mini, 0), 24 * 64 * 8);
    }
}
