//! GLoRA: a weight and a bias that are scaled and shifted, each by a matrix of few parameters.
//!
//! Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-Tuning", 2023, arXiv
//! 2306.07967, as HF PEFT has it.
//!
//! `y = x (W + W ⊙ A + B)ᵀ + b + b ⊙ D + E + W C`. `A` and `B` `[out, in]` are products of `[out,
//! r]` and `[r, in]` (`lora`), a column `[out, 1]` (`vector`), one number (`constant`) or zero
//! (`none`), as `config_A_B` says; `C` `[in, 1]` likewise, `D` and `E` `[out]` are a vector, a
//! number or zero. In a layer without bias `C`, `D` and `E` are zero. The first factor of products
//! and all others start at zero, so nothing changes at first; the second factors start uniform in
//! `±1/√columns`.
//!
//! | | |
//! | --- | --- |
//! | trains | by default `Σ 2 r (out + in)`, and `r (in + 1) + 2` for layers with a bias |
//! | changes | `Σ in · out`, and the biases |
//! | file | `<path>.glora_A.Xd` `[out, r]`, `.Xu` `[r, in]`, or `.X`, or `.zeros` of the whole size; `B` to `E` likewise |
//! | merges | `W + W ⊙ A + B` and `b + b ⊙ D + E + W C` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{FrozenMatrix, Weight, add, linear};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{NamedTargets, Selection};
use crate::parts::delta::{Delta, Deltas, frozen_weight};

crate::settings! {
    /// The settings of GLoRA, under HF PEFT's names.
    #[expect(non_snake_case, reason = "HF PEFT's keys")]
    pub struct GLoraConfig {
        /// Rank of matrices that are products.
        r: usize = 8, flag "rank", in Size;
        /// What scales and shifts the weight: lora, vector, constant or none.
        config_A_B: Form = Form::Lora, as Text, unset "lora";
        /// What the weight is multiplied with for the bias: lora, vector or none.
        config_C: Form = Form::Lora, as Text, unset "lora";
        /// What scales and shifts the bias: vector, constant or none.
        config_D_E: Form = Form::Constant, as Text, unset "constant";

        ..targets: NamedTargets = NamedTargets::default();
    }
}

/// What a matrix is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A product of two matrices.
    Lora,
    /// A column, for all columns.
    Vector,
    /// A number, for all elements.
    Constant,
    /// Zero.
    None,
}

impl GLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// Checks the forms that are not for every matrix.
    fn check_forms(&self) -> Result<(), MethodError> {
        let value = |key, value, expected: &str| {
            Err(MethodError::Value {
                method: Self::NAME,
                key,
                value,
                expected: format!("it must be {expected}"),
            })
        };
        match (self.config_C, self.config_D_E) {
            (Form::Constant, _) => value("config_C", "constant".to_owned(), "lora, vector or none"),
            (_, Form::Lora) => value("config_D_E", "lora".to_owned(), "vector, constant or none"),
            _ => Ok(()),
        }
    }

    /// `A` to `E` of a layer: the name, the form and the shape of each.
    fn forms(&self, linear: &LinearInfo) -> [(&'static str, Form, [usize; 2]); 5] {
        let (outputs, inputs) = (linear.outputs, linear.inputs);
        let of_bias = |form| if linear.bias { form } else { Form::None };
        let (c, d_e) = (of_bias(self.config_C), of_bias(self.config_D_E));
        [
            ("A", self.config_A_B, [outputs, inputs]),
            ("B", self.config_A_B, [outputs, inputs]),
            ("C", c, [inputs, 1]),
            ("D", d_e, [outputs, 0]),
            ("E", d_e, [outputs, 0]),
        ]
    }
}

impl MethodConfig for GLoraConfig {
    const NAME: &'static str = "glora";
    const PEFT_TYPE: &'static str = "GLORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "matrices of few parameters that scale and shift weight and bias";
    const PAPER: &'static str = "Chavan et al. 2023, arXiv 2306.07967";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3 }),
            json!({
                "target_modules": "all-linear", "config_A_B": "vector", "config_C": "vector",
                "config_D_E": "vector",
            }),
            json!({ "config_A_B": "constant", "config_C": "none", "config_D_E": "none" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.check_forms()?;
        let targets = self.selection().of(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let matrices = self.forms(linear).map(|(name, form, shape)| {
                let path = format!("{}.glora_{name}", linear.site.path);
                Matrix::declare(parameters, &path, form, shape, self.r)
            });
            let bias = base.tensor(&format!("{}.bias", linear.site.path));
            let glora = GLora {
                matrices,
                weight: frozen_weight(base, linear),
                bias: bias.filter(|_| linear.bias).map(|bias| bias.to_flat()),
            };
            (linear, glora)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.check_forms()?;
        let targets = self.selection().of(base)?.into_iter();
        let forms = targets.flat_map(|linear| self.forms(linear));
        let counts = forms.map(|(_, form, [rows, columns])| match form {
            Form::Lora => self.r * (rows + columns),
            Form::Vector => rows,
            Form::Constant => 1,
            Form::None => 0,
        });
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), json!("none")),
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// One of `A` to `E`.
#[derive(Debug)]
enum Matrix {
    Product(Param, Param),
    /// A column, or one number.
    Same(Param),
    Zero,
}

impl Matrix {
    /// Declares a matrix of this shape; a vector has no columns.
    fn declare(
        parameters: &mut ParameterSet,
        path: &str,
        form: Form,
        shape: [usize; 2],
        rank: usize,
    ) -> Self {
        let [rows, columns] = shape;
        let of_vector = |columns: usize| match columns {
            0 => vec![rows],
            columns => vec![rows, columns],
        };
        match form {
            Form::Lora => {
                let first = parameters.declare(format!("{path}.Xd"), &[rows, rank], Init::Zeros);
                let init = Init::kaiming(columns);
                let second = parameters.declare(format!("{path}.Xu"), &[rank, columns], init);
                Self::Product(first, second)
            }
            Form::Vector => {
                let shape = of_vector(columns.min(1));
                Self::Same(parameters.declare(format!("{path}.X"), &shape, Init::Zeros))
            }
            Form::Constant => {
                Self::Same(parameters.declare(format!("{path}.X"), &[1], Init::Zeros))
            }
            Form::None => {
                // HF PEFT stores the zeros, and wants them.
                parameters.constant(format!("{path}.zeros"), &of_vector(columns), Init::Zeros);
                Self::Zero
            }
        }
    }

    /// The values, `[rows, columns]`, or `[rows, 1]` or `[1, 1]` where they are the same.
    fn get(&self) -> Option<Tensor<2>> {
        match self {
            Self::Product(first, second) => Some(first.get::<2>().matmul(second.get())),
            Self::Same(param) => Some(param.flat().reshape([param.count(), 1])),
            Self::Zero => None,
        }
    }

    /// The values of a vector, `[rows]` or `[1]`.
    fn vector(&self) -> Option<Tensor<1>> {
        Some(self.get()?.flatten(0, 1))
    }
}

/// GLoRA on one linear layer.
#[derive(Debug)]
struct GLora {
    /// `A` to `E`.
    matrices: [Matrix; 5],
    weight: FrozenMatrix,
    /// The base's own.
    bias: Option<Tensor<1>>,
}

impl GLora {
    /// `W ⊙ A + B`; none if both are zero.
    fn change(&self) -> Option<Tensor<2>> {
        let [a, b, ..] = &self.matrices;
        Some(self.weight.to_tensor() * a.get()? + b.get()?)
    }

    /// `b ⊙ D + E + W C`, `[out]` or `[1]`; none if all are zero.
    fn shift(&self, bias: &Tensor<1>) -> Option<Tensor<1>> {
        let [_, _, c, d, e] = &self.matrices;
        let product = c.vector().map(|c| {
            let product = linear(c.unsqueeze(), &Weight::Frozen(self.weight.clone()), None);
            product.flatten::<1>(0, 1)
        });
        let scaled = d.vector().map(|d| bias.clone() * d);
        let terms = [product, scaled, e.vector()].into_iter().flatten();
        terms.reduce(|sum, term| sum + term)
    }
}

impl Delta for GLora {
    const CHANGES_BIAS: bool = true;

    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let x = product.input().clone();
        let bias = product.bias().or(self.bias.as_ref());
        let shift = bias.and_then(|bias| self.shift(bias));
        let mut y = product.compute();
        if let Some(change) = self.change() {
            y = add(y, linear(x, &Weight::Trained(change), None));
        }
        match shift {
            Some(shift) => y + shift.unsqueeze::<2>(),
            None => y,
        }
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        match self.change() {
            Some(change) => weight + change.inner(),
            None => weight,
        }
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        match self.shift(&bias) {
            Some(shift) => bias + shift.inner(),
            None => bias,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::MethodError;
    use crate::small_bert::bert_base_count;

    /// `2 r (out + in) + r (in + 1) + 2` for each of two layers in twelve.
    #[test]
    fn counts_follow_the_formula() {
        let count = bert_base_count("glora", json!({ "r": 8 }), 0);
        assert_eq!(count, 24 * (2 * 8 * 2 * 768 + 8 * 769 + 2));
        let vectors = json!({
            "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector",
        });
        assert_eq!(bert_base_count("glora", vectors, 0), 24 * 5 * 768);
    }

    #[test]
    fn forms_that_a_matrix_cannot_have_are_refused() {
        for (key, value) in [("config_C", "constant"), ("config_D_E", "lora")] {
            let settings = json!({ key: value }).as_object().unwrap().clone();
            let config = crate::by_name("glora")
                .unwrap()
                .configure(settings)
                .unwrap();
            let error = config.count(crate::small_bert::bert().base()).unwrap_err();
            assert!(
                matches!(&error, MethodError::Value { key: found, .. } if *found == key),
                "{error}"
            );
        }
    }
}
