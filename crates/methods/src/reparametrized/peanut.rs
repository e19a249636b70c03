//! PEANuT: a change of the weight that a small network computes from the weight itself.
//!
//! Zhong et al., "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers", 2024,
//! arXiv 2410.01870, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + s · x (h Bᵀ)`. The network's rows are the columns of `W`: `h = f(Wᵀ Aᵀ)` is
//! `[in, r]`, with `A: [r, out]`; then `depth` encoders `h ← f(h E_iᵀ)`, and as many decoders
//! `h ← f(h D_iᵀ) + g`, where `g` is what went into the encoder of the same level, the last first;
//! all of these are `[r, r]`. `B: [out, r]` starts at zero, so nothing changes at first; the others
//! start uniform in `±1/√columns`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ 2 r out + 2 depth r²` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.peanut_A.weight`, `.peanut_B.weight`, `.peanut_encoders.<i>.weight`, `.peanut_decoders.<i>.weight` |
//! | merges | `W + s · B hᵀ` |

use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};

use burn::tensor::{Tensor, activation};
use epiphyte_models::{Base, LazyLinear};
use epiphyte_ops::{Activation, Dropout, FrozenMatrix, LowRank, Weight, linear};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas, frozen_weight};

crate::settings! {
    /// The settings of PEANuT, under HF PEFT's names.
    pub struct PeanutConfig {
        /// Size inside the network, and rank of the update.
        r: usize = 32, flag "rank", in Size;
        /// Number of hidden layers of each of encoder and decoder.
        depth: usize = 0;
        /// Activation function, by the name that transformers has for it: relu, gelu, silu, ...
        act_fn: String = "relu".to_owned();
        /// Factor on the update.
        scaling: f64 = 1.0, in SinglePrecision;

        ..targets: Targets = Targets::default();
    }
}

impl PeanutConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The activation function.
    fn function(&self) -> Result<Function, MethodError> {
        let found = FUNCTIONS.iter().find(|(name, _)| *name == self.act_fn);
        found.map(|(_, function)| *function).ok_or_else(|| {
            let known: Vec<_> = FUNCTIONS.iter().map(|(name, _)| *name).collect();
            MethodError::Value {
                method: Self::NAME,
                key: "act_fn",
                value: self.act_fn.clone(),
                expected: format!(
                    "known are {}; those of transformers that have parameters of their own, \
                     prelu and xielu, are not",
                    known.join(", ")
                ),
            }
        })
    }
}

/// An activation function.
type Function = fn(Tensor<2>) -> Tensor<2>;

/// Those of transformers without parameters, by its names.
const FUNCTIONS: &[(&str, Function)] = &[
    ("gelu", |x| Activation::Gelu.apply(x)),
    ("gelu_10", |x| Activation::Gelu.apply(x).clamp(-10.0, 10.0)),
    ("gelu_accurate", |x| Activation::GeluTanh.apply(x)),
    ("gelu_fast", |x| Activation::GeluTanh.apply(x)),
    ("gelu_new", |x| Activation::GeluTanh.apply(x)),
    ("gelu_python", |x| Activation::Gelu.apply(x)),
    ("gelu_python_tanh", |x| Activation::GeluTanh.apply(x)),
    ("gelu_pytorch_tanh", |x| Activation::GeluTanh.apply(x)),
    ("hardswish", |x| x.clone() * (x + 3.0).clamp(0.0, 6.0) / 6.0),
    ("laplace", |x| {
        (((x - FRAC_1_SQRT_2) / (0.282095 * SQRT_2)).erf() + 1.0) * 0.5
    }),
    ("leaky_relu", |x| activation::leaky_relu(x, 0.01)),
    ("linear", |x| x),
    ("mish", activation::mish),
    ("quick_gelu", |x| x.clone() * activation::sigmoid(x * 1.702)),
    ("relu", |x| Activation::Relu.apply(x)),
    ("relu2", |x| {
        let x = Activation::Relu.apply(x);
        x.clone() * x
    }),
    ("relu6", |x| x.clamp(0.0, 6.0)),
    ("sigmoid", activation::sigmoid),
    ("silu", |x| Activation::Silu.apply(x)),
    ("sqrtsoftplus", |x| activation::softplus(x, 1.0).sqrt()),
    ("swish", |x| Activation::Silu.apply(x)),
    ("tanh", |x| Activation::Tanh.apply(x)),
];

impl MethodConfig for PeanutConfig {
    const NAME: &'static str = "peanut";
    const PEFT_TYPE: &'static str = "PEANUT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "small networks that compute changes of weights from the weights";
    const PAPER: &'static str = "Zhong et al. 2024, arXiv 2410.01870";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(
        "HF PEFT's documentation",
        "slower than LoRA",
    ));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 4 }),
            json!({
                "r": 3, "depth": 2, "act_fn": "gelu", "scaling": 0.5, "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let activation = self.function()?;
        let targets = self.selection().of(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let mut declare = |name: &str, shape: [usize; 2], init| {
                let key = format!("{}.peanut_{name}.weight", linear.site.path);
                parameters.declare(key, &shape, init)
            };
            let (r, outputs) = (self.r, linear.outputs);
            let mut square = |name: &str| {
                let layers = 0..self.depth;
                let layers = layers
                    .map(|layer| declare(&format!("{name}.{layer}"), [r, r], Init::kaiming(r)));
                layers.collect()
            };
            let (encoders, decoders) = (square("encoders"), square("decoders"));
            let peanut = Peanut {
                encoders,
                decoders,
                a: declare("A", [r, outputs], Init::kaiming(outputs)),
                b: declare("B", [outputs, r], Init::Zeros),
                weight: frozen_weight(base, linear),
                activation,
                scaling: self.scaling as f32,
            };
            (linear, peanut)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let (r, depth) = (self.r, self.depth);
        let targets = self.selection().of(base)?.into_iter();
        Ok(targets
            .map(|linear| 2 * r * linear.outputs + 2 * depth * r * r)
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
        ])
    }
}

/// PEANuT on one linear layer.
#[derive(Debug)]
struct Peanut {
    a: Param,
    b: Param,
    encoders: Vec<Param>,
    decoders: Vec<Param>,
    weight: FrozenMatrix,
    activation: Function,
    scaling: f32,
}

impl Peanut {
    /// `h`, `[in, r]`.
    fn hidden(&self) -> Tensor<2> {
        let layer = |x: Tensor<2>, weight: &Param| {
            let product = linear(x, &Weight::Trained(weight.get()), None);
            (self.activation)(product)
        };
        let mut h = layer(self.weight.to_tensor().transpose(), &self.a);
        let mut inputs = Vec::new();
        for encoder in &self.encoders {
            inputs.push(h.clone());
            h = layer(h, encoder);
        }
        for decoder in &self.decoders {
            let input = inputs
                .pop()
                .expect("there are as many encoders as decoders");
            h = layer(h, decoder) + input;
        }
        h
    }
}

impl Change for Peanut {
    fn matrix(&self) -> Tensor<2> {
        self.b.get::<2>().matmul(self.hidden().transpose()) * self.scaling
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.hidden().transpose(),
            b: self.b.get(),
            scale: self.scaling,
            dropout,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    #[test]
    fn counts_follow_the_formula() {
        let two = json!({ "r": 32, "depth": 2 });
        let expected = 24 * (2 * 32 * 768 + 2 * 2 * 32 * 32);
        assert_eq!(bert_base_count("peanut", two, 0), expected);
    }

    #[test]
    fn unknown_activation_functions_are_refused_by_name() {
        let settings = json!({ "act_fn": "prelu" }).as_object().unwrap().clone();
        let config = crate::by_name("peanut")
            .unwrap()
            .configure(settings)
            .unwrap();
        let model = crate::small_bert::bert();
        let mut parameters = crate::ParameterSet::new(&Default::default(), 0);
        let error = config.build(model.base(), &mut parameters).unwrap_err();
        assert!(error.to_string().contains("`act_fn`"), "{error}");
    }
}
