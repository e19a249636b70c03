//! KronA-B and KronA-B-res: a Kronecker product in parallel to each feed-forward.
//!
//! Edalati, Tahaei, Kobyzev, Nia, Clark, Rezagholizadeh, "KronA: Parameter Efficient Tuning with
//! Kronecker Adapter", 2022, arXiv 2212.10650, section 3 (KronA^B, KronA^B_res).
//!
//! With `x [tokens, d]` what the feed-forward reads, `Y = FFN(x) + s · x (A ⊗ B)ᵀ`, where `A: [a₁,
//! a₂]`, `B: [b₁, b₂]` and `a₁ b₁ = a₂ b₂ = d`; there is no activation function. KronA-B-res adds a
//! residual with a trained factor for each layer, `Y = FFN(x) + s · x (A ⊗ B)ᵀ + s_res · x`.
//!
//! There is no code of the authors, and the paper leaves open what follows, which is decided here:
//! the sum is made before the residual addition and the norm, `x` is normalized where the norm
//! comes first, `A` starts as Kaiming initialization and `B` at zero, `s` is 1 and `s_res` starts
//! at 0, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (a₁ a₂ + b₁ b₂)`, and `L` factors of the residual |
//! | file | `<module>.krona_A` `[a₁, a₂]`, `<module>.krona_B` `[b₁, b₂]`, `<module>.krona_residual` `[1]` |
//! | merges | no: a linear path around the feed-forward is in none of its layers |

use burn::tensor::Tensor;
use epiphyte_models::adapter::Block;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, Role, Sublayer};
use epiphyte_ops::{add, fork};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::bottleneck::modules;
use crate::parts::kronecker::{Kronecker, KroneckerConfig};

crate::settings! {
    /// The settings of KronA-B.
    pub struct KronaBConfig {
        ..product: KroneckerConfig = KroneckerConfig::default();
    }
}

crate::settings! {
    /// The settings of KronA-B-res.
    pub struct KronaBResConfig {
        /// Initial factor on the residual of the parallel path.
        krona_residual: f64 = 0.0, in SinglePrecision;

        ..product: KroneckerConfig = KroneckerConfig::default();
    }
}

/// Declares a product in each layer, and a residual if it has an initial factor.
fn build(
    method: &'static str,
    product: &KroneckerConfig,
    residual: Option<f64>,
    base: &Base,
    parameters: &mut ParameterSet,
) -> Result<Box<dyn Method>, MethodError> {
    let size = base.dimensions.hidden_size;
    let mut layers = Vec::new();
    for module in modules(base, Role::FeedForwardOut, method)? {
        let product = product.declare(method, module, [size, size], parameters)?;
        let residual = residual.map(|initial| {
            let key = format!("{module}.krona_residual");
            parameters.declare(key, &[1], Init::Constant(initial as f32))
        });
        layers.push(Parallel { product, residual });
    }
    Ok(Box::new(KronaB { method, layers }))
}

/// As [`MethodConfig::count`].
fn count(
    method: &'static str,
    product: &KroneckerConfig,
    residual: bool,
    base: &Base,
) -> Result<usize, MethodError> {
    let size = base.dimensions.hidden_size;
    let one = product.count(method, "the feed-forward", [size, size])? + usize::from(residual);
    Ok(base.dimensions.layers * one)
}

impl MethodConfig for KronaBConfig {
    const NAME: &'static str = "krona-b";
    const PEFT_TYPE: &'static str = "KRONA_B";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a Kronecker product in parallel to every feed-forward";
    const PAPER: &'static str = "Edalati et al. 2022, arXiv 2212.10650";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "krona_factor": [2, 8], "krona_scale": 2 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        build(Self::NAME, &self.product, None, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        count(Self::NAME, &self.product, false, base)
    }

    fn resolved(&self, _base: &Base) -> Self {
        self.clone()
    }
}

impl MethodConfig for KronaBResConfig {
    const NAME: &'static str = "krona-b-res";
    const PEFT_TYPE: &'static str = "KRONA_B_RES";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a Kronecker product and a scaled residual in parallel to every feed-forward";
    const PAPER: &'static str = "Edalati et al. 2022, arXiv 2212.10650";
    // The survey's row is that of the form with a residual.
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra linear layer"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        self.krona_residual == 0.0
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "krona_factor": [2, 8], "krona_residual": 1 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let residual = Some(self.krona_residual);
        build(Self::NAME, &self.product, residual, base, parameters)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        count(Self::NAME, &self.product, true, base)
    }

    fn resolved(&self, _base: &Base) -> Self {
        self.clone()
    }
}

/// The path around one feed-forward.
#[derive(Debug)]
struct Parallel {
    product: Kronecker,
    /// `s_res`, `[1]`
    residual: Option<Param>,
}

/// The paths of all layers.
#[derive(Debug)]
struct KronaB {
    method: &'static str,
    layers: Vec<Parallel>,
}

impl Adapter for KronaB {
    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match sublayer.block {
            Block::SelfAttention | Block::CrossAttention => output,
            Block::FeedForward => {
                let Parallel { product, residual } = &self.layers[sublayer.layer];
                // With the feed-forward three read the input; behind a fork, two of them have one
                // gradient, so that the order in which gradients are added is fixed.
                let [x, _] = fork(sublayer.input.clone());
                let output = add(output, product.forward(x.clone()));
                match residual {
                    Some(factor) => output + x * factor.flat().unsqueeze::<2>(),
                    None => output,
                }
            }
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Sublayer(_, Block::FeedForward))
    }
}

impl Method for KronaB {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: self.method,
            reason: "its linear path goes around the feed-forward and is in none of its layers",
        })
    }

    fn changed(&self) -> usize {
        let count =
            |it: &Parallel| it.product.count() + it.residual.as_ref().map_or(0, Param::count);
        self.layers.iter().map(count).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random};

    #[test]
    fn with_the_residual_at_zero_both_are_the_same() {
        let model = bert();
        let (plain, residual) = (
            module(&model, "krona-b", json!({})),
            module(&model, "krona-b-res", json!({})),
        );
        for layer in 0..2 {
            let path = |name| format!("bert.encoder.layer.{layer}.output.{name}");
            let drawn = set_random(&plain, &path("krona_B"));
            let param = residual.parameters().get(&path("krona_B")).unwrap();
            param.set_values(drawn);
        }
        let before = logits(&model, &plain);
        assert!(distance(&before, &logits(&model, &residual)) < 1e-6);
        set_random(&residual, "bert.encoder.layer.1.output.krona_residual");
        assert!(distance(&before, &logits(&model, &residual)) > 1e-4);
    }

    /// 24² + 32² values for a size of 768.
    #[test]
    fn counts_on_bert_base_are_those_of_near_square_factors() {
        assert_eq!(bert_base_count("krona-b", json!({}), 0), 12 * 1600);
        assert_eq!(bert_base_count("krona-b-res", json!({}), 0), 12 * 1601);
    }
}
