//! LoKr: the Kronecker product of a small and a larger matrix, added to a frozen weight.
//!
//! Yeh, Hsieh, Gao, Yang, Oh, Gong, "Navigating Text-To-Image Customization: From LyCORIS
//! Fine-Tuning to Model Evaluation", ICLR 2024, arXiv 2309.14859, section 3; the definition is HF
//! PEFT's code.
//!
//! `y = x Wᵀ + b + x (s C ⊗ D)ᵀ` with `C: [c₁, c₂]`, `D: [d₁, d₂]`, `c₁ d₁ = out`, `c₂ d₂ = in` and
//! `s = α / r`. Sizes are split near their square root, the smaller part in C, or by
//! `decompose_factor` if that divides them. D is a product `[d₁, r] [r, d₂]` if `r < max(d₁, d₂) /
//! 2`; so is C if `decompose_both` and `r < max(c₁, c₂) / 2`. C, or its first factor, starts at
//! zero, all else uniform in `±1/√columns`; the start `lycoris` has zeros in D, or its second
//! factor. Either way nothing changes at first. `C ⊗ D` is not made: x is multiplied by D, then by
//! C.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ c₁ c₂ + d₁ d₂` over the targets, `r (c₁ + c₂)` or `r (d₁ + d₂)` for a product |
//! | changes | `Σ in · out`, by a matrix of rank `rank C · rank D` each |
//! | file | `<path>.lokr_w1`, or `lokr_w1_a` and `lokr_w1_b`; `lokr_w2`, or `lokr_w2_a` and `_b` |
//! | merges | `W + s C ⊗ D` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::kronecker::{kronecker_linear, kronecker_product};
use crate::parts::lycoris::{Lycoris, UpdateDropout};
use crate::parts::start::kaiming;

crate::settings! {
    /// The settings of LoKr, under HF PEFT's names.
    pub struct LokrConfig {
        /// Make the small matrix a product of two too, where the rank is below half its size.
        decompose_both: bool = false;
        /// Size of the small matrix's sides, where it divides those of the weight; -1 for their
        /// square roots.
        decompose_factor: i64 = -1, as Number;
        /// Divide the outputs that dropout leaves by their share.
        rank_dropout_scale: bool = false;
        /// Start: identity, lycoris (with the other matrix at zero), or random.
        init_weights: LokrStart = LokrStart::Identity, as Text, unset "identity";

        ..lycoris: Lycoris = Lycoris::default();
    }
}

/// How LoKr starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LokrStart {
    /// The small matrix at zero: `true` in files.
    #[default]
    Identity,
    /// The larger matrix at zero: `"lycoris"` in files.
    Lycoris,
    /// Everything at random: `false` in files.
    Random,
}

impl Serialize for LokrStart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lycoris => serializer.serialize_str("lycoris"),
            start => serializer.serialize_bool(*start == Self::Identity),
        }
    }
}

impl<'de> Deserialize<'de> for LokrStart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (&value, value.as_str()) {
            (Value::Bool(true), _) | (_, Some("identity")) => Ok(Self::Identity),
            (Value::Bool(false), _) | (_, Some("random")) => Ok(Self::Random),
            (_, Some("lycoris")) => Ok(Self::Lycoris),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; identity (true in a file), lycoris and random (false) are"
            ))),
        }
    }
}

/// Splits a size in two factors, the smaller first: those nearest to each other of which the
/// smaller is at most `factor`, or `factor` itself and its quotient.
fn split(size: usize, factor: i64) -> [usize; 2] {
    let most = match usize::try_from(factor) {
        Ok(factor) if factor > 0 && size.is_multiple_of(factor) => return [factor, size / factor],
        Ok(factor) => factor,
        Err(_) if factor == -1 => size,
        Err(_) => 1,
    };
    let divisors = (1..=most.max(1)).take_while(|it| it * it <= size);
    let smaller = divisors
        .filter(|it| size.is_multiple_of(*it))
        .max()
        .unwrap_or(1);
    [smaller, size / smaller]
}

/// The sizes of a linear layer's two matrices, and of which of them a product is made.
struct Shapes {
    small: [usize; 2],
    large: [usize; 2],
    small_is_product: bool,
    large_is_product: bool,
}

impl LokrConfig {
    fn shapes(&self, linear: &LinearInfo, rank: usize) -> Shapes {
        let [c1, d1] = split(linear.outputs, self.decompose_factor);
        let [c2, d2] = split(linear.inputs, self.decompose_factor);
        let is_below = |size: usize| 2 * rank < size;
        Shapes {
            small: [c1, c2],
            large: [d1, d2],
            small_is_product: self.decompose_both && is_below(c1.max(c2)),
            large_is_product: is_below(d1.max(d2)),
        }
    }
}

impl MethodConfig for LokrConfig {
    const NAME: &'static str = "lokr";
    const PEFT_TYPE: &'static str = "LOKR";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "the Kronecker product of two small matrices, added to chosen linear layers";
    const PAPER: &'static str = "Yeh et al. 2024, arXiv 2309.14859";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights != LokrStart::Random
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 4 }),
            json!({
                "r": 1, "decompose_both": true, "target_modules": "all-linear",
                "init_weights": "lycoris",
            }),
            json!({ "r": 2, "decompose_factor": 2, "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.lycoris.targets(Self::NAME, base)?.into_iter();
        let deltas = targets.map(|(linear, rank, scale)| {
            let shapes = self.shapes(linear, rank);
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let zeros = |start| (self.init_weights == start).then_some(Init::Zeros);
            let (small, large) = (zeros(LokrStart::Identity), zeros(LokrStart::Lycoris));
            let small = match shapes.small_is_product {
                true => Factor::product(
                    key("lokr_w1"),
                    shapes.small,
                    rank,
                    [small, None],
                    parameters,
                ),
                false => Factor::whole(key("lokr_w1"), shapes.small, small, parameters),
            };
            let large = match shapes.large_is_product {
                true => Factor::product(
                    key("lokr_w2"),
                    shapes.large,
                    rank,
                    [None, large],
                    parameters,
                ),
                false => Factor::whole(key("lokr_w2"), shapes.large, large, parameters),
            };
            let dropout = self.lycoris.dropout(self.rank_dropout_scale);
            let lokr = Lokr {
                small,
                large,
                scale,
                dropout,
            };
            (linear, lokr)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lycoris.check_start(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.lycoris.targets(Self::NAME, base)?;
        let count = |(linear, rank, _): &(&LinearInfo, usize, f32)| {
            let shapes = self.shapes(linear, *rank);
            let of = |[rows, columns]: [usize; 2], is_product| match is_product {
                true => rank * (rows + columns),
                false => rows * columns,
            };
            of(shapes.small, shapes.small_is_product) + of(shapes.large, shapes.large_is_product)
        };
        Ok(targets.iter().map(count).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lycoris: self.lycoris.resolved(Self::NAME, base),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = Lycoris::TRAINING_ONLY;

    /// A form for convolutions.
    const IGNORED: &'static [&'static str] = &["use_effective_conv2d"];

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("modules_to_save".to_owned(), Value::Null),
            ("use_effective_conv2d".to_owned(), json!(false)),
        ])
    }
}

/// A matrix of LoKr's.
#[derive(Debug)]
enum Factor {
    Whole(Param),
    Product([Param; 2]),
}

impl Factor {
    /// Declares a whole matrix; `init` is zero, or nothing for values at random.
    fn whole(
        key: String,
        shape: [usize; 2],
        init: Option<Init>,
        parameters: &mut ParameterSet,
    ) -> Self {
        let init = init.unwrap_or_else(|| kaiming(shape[1]));
        Self::Whole(parameters.declare(key, &shape, init))
    }

    /// Declares `[rows, rank]` and `[rank, columns]`.
    fn product(
        key: String,
        [rows, columns]: [usize; 2],
        rank: usize,
        [first, second]: [Option<Init>; 2],
        parameters: &mut ParameterSet,
    ) -> Self {
        let first = first.unwrap_or_else(|| kaiming(rank));
        let second = second.unwrap_or_else(|| kaiming(columns));
        Self::Product([
            parameters.declare(format!("{key}_a"), &[rows, rank], first),
            parameters.declare(format!("{key}_b"), &[rank, columns], second),
        ])
    }

    fn matrix(&self) -> Tensor<2> {
        match self {
            Self::Whole(matrix) => matrix.get(),
            Self::Product([a, b]) => a.get::<2>().matmul(b.get()),
        }
    }
}

/// LoKr on one linear layer.
#[derive(Debug)]
struct Lokr {
    /// C.
    small: Factor,
    /// D.
    large: Factor,
    scale: f32,
    dropout: UpdateDropout,
}

impl Delta for Lokr {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let small = self.small.matrix() * self.scale;
        let update = |x| kronecker_linear(x, small, self.large.matrix());
        self.dropout.add(site, product, cx, update)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let small = self.small.matrix().inner() * self.scale;
        weight + kronecker_product(small, self.large.matrix().inner())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::split;
    use crate::small_bert::bert_base_count;

    /// Written by `factorization` of peft 0.21.2.
    #[test]
    fn sizes_are_split_as_in_peft() {
        for (size, factor, expected) in [
            (768, -1, [24, 32]),
            (3072, -1, [48, 64]),
            (4096, -1, [64, 64]),
            (11008, -1, [86, 128]),
            (768, 8, [8, 96]),
            (768, 100, [24, 32]),
            (768, 5, [4, 192]),
            (127, -1, [1, 127]),
            (128, 4, [4, 32]),
            (250, 3, [2, 125]),
            (360, 4, [4, 90]),
            (12, 6, [6, 2]),
            (768, 0, [1, 768]),
        ] {
            assert_eq!(split(size, factor), expected, "{size} by {factor}");
        }
    }

    /// One matrix of bert-base at rank 8: 24 · 24 and 8 (32 + 32).
    #[test]
    fn counts_are_those_of_the_shapes() {
        assert_eq!(bert_base_count("lokr", json!({ "r": 8 }), 0), 24 * 1088);
    }
}
