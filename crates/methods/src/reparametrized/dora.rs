//! DoRA: LoRA that trains the length of each row of the weight apart from its direction.
//!
//! Liu, Wang, Yin, Molchanov, Wang, Cheng, Chen, "DoRA: Weight-Decomposed Low-Rank Adaptation",
//! ICML 2024, arXiv 2402.09353, sections 4.1 and 4.3.
//!
//! With `V = W + s B A` as in LoRA and `n: [out]` the lengths of V's rows, the weight is `diag(m /
//! n) V`: `y = (m / n) ⊙ (x Wᵀ + s (x Aᵀ) Bᵀ) + b`. The trained `m: [out]` starts at the lengths of
//! W's rows and `B` at zero, so nothing changes at first. `n` counts as a constant to gradients
//! (section 4.3) and is computed once a step, without `V`: `n² = |W|² + 2 s B ⊙ (W Aᵀ) + s² (B A
//! Aᵀ) ⊙ B`, summed over each row. With dropout d the correction sees the dropped input, as in HF
//! PEFT: `y = x Wᵀ + b + (m / n - 1) ⊙ (d(x) Wᵀ) + (m / n) ⊙ s (d(x) Aᵀ) Bᵀ`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out) + out` over the targets |
//! | changes | `Σ in · out` |
//! | file | as LoRA's, and `<path>.lora_magnitude_vector` `[out]`; the configuration says `use_dora` |
//! | merges | `diag(m / n) (W + s B A)` |

use std::sync::Arc;

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank, Weight, linear, scale_columns};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::delta::Delta;
use crate::reparametrized::lora::{LoraConfig, LoraInit};

crate::settings! {
    /// The settings of DoRA: those of LoRA.
    pub struct DoraConfig {
        ..lora: LoraConfig = LoraConfig::default();
    }
}

impl MethodConfig for DoraConfig {
    const NAME: &'static str = "dora";
    const PEFT_TYPE: &'static str = "LORA";
    const PEFT_VARIANT: Option<(&'static str, bool)> = Some(("use_dora", true));
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA for the rows' directions, and the rows' lengths";
    const PAPER: &'static str = "Liu et al. 2024, arXiv 2402.09353";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
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
            json!({ "r": 2, "bias": "lora_only" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let build = |linear: &LinearInfo, (rank, scaling), parameters: &mut ParameterSet| {
            let lora = self.lora.declare(linear, rank, parameters);
            let how = (scaling as f32, self.lora.lora_dropout);
            Dora::new(base, linear, lora, how, parameters)
        };
        self.lora
            .check_variant(Self::NAME, &[LoraInit::Random, LoraInit::Orthogonal])?;
        let layers = self.lora.layers(Self::NAME, base, parameters, build)?;
        Ok(Box::new(layers))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lora.check_variant(Self::NAME, &[])?;
        self.lora.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.lora.count_of(Self::NAME, base, |linear, rank| {
            rank * (linear.inputs + linear.outputs) + linear.outputs
        })
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lora: self.lora.resolved_as(Self::NAME, base),
        }
    }

    crate::parts::lora_files::rules!();

    fn peft_defaults() -> Map<String, Value> {
        let mut defaults = LoraConfig::peft_defaults();
        defaults.insert("use_dora".to_owned(), json!(true));
        defaults
    }
}

/// DoRA on one linear layer.
#[derive(Debug)]
struct Dora {
    a: Param,
    b: Param,
    magnitude: Param,
    /// Lengths of the rows of V, `[out]`.
    norms: Param,
    weight: FrozenMatrix,
    bias: Option<Tensor<1>>,
    scaling: f32,
    dropout: f64,
}

impl Dora {
    fn new(
        base: &Base,
        linear: &LinearInfo,
        [a, b]: [Param; 2],
        (scaling, dropout): (f32, f64),
        parameters: &mut ParameterSet,
    ) -> Self {
        let path = &linear.site.path;
        let tensor = |name: &str| base.tensor(&format!("{path}.{name}"));
        let weight = tensor("weight").and_then(|weight| weight.matrix());
        let weight = weight.expect("a linear layer has a matrix").clone();
        let outputs = linear.outputs;
        let key = format!("{path}.lora_magnitude_vector");
        let squares = square_sums(weight.to_tensor());
        let lengths = squares.clone().sqrt();
        let initial = Init::Computed(Arc::new(move || {
            let lengths = lengths.clone().try_into_vec_as::<f32>();
            lengths.expect("a base is f32 and on a device that can be read")
        }));
        let magnitude = parameters.declare(key, &[outputs], initial);
        let norms = {
            let (a, b, weight) = (a.clone(), b.clone(), weight.clone());
            parameters.detached(format!("{path}.norms"), &[outputs], move || {
                norms(&weight, squares.clone(), [&a, &b], scaling)
            })
        };
        Self {
            a,
            b,
            magnitude,
            norms,
            weight,
            bias: linear
                .bias
                .then(|| tensor("bias").map(|bias| bias.to_flat()))
                .flatten(),
            scaling,
            dropout,
        }
    }

    /// `m / n`, `[out]`.
    fn factors(&self) -> Tensor<1> {
        self.magnitude.flat() / self.norms.flat()
    }

    fn path(&self) -> LowRank {
        LowRank {
            a: self.a.get(),
            b: self.b.get(),
            scale: self.scaling,
            dropout: None,
        }
    }
}

/// The sum of the squares of each row.
fn square_sums(matrix: Tensor<2>) -> Tensor<1> {
    let [rows, _] = matrix.dims();
    (matrix.clone() * matrix).sum_dim(1).reshape([rows])
}

/// The lengths of the rows of `W + s B A`, given the squares of those of W.
fn norms(weight: &FrozenMatrix, squares: Tensor<1>, [a, b]: [&Param; 2], scale: f32) -> Tensor<1> {
    let (a, b) = (a.get::<2>().inner(), b.get::<2>().inner());
    let across = linear(a.clone(), &Weight::Frozen(weight.clone()), None).transpose();
    let own = b.clone().matmul(a.clone().matmul(a.transpose()));
    let [rows, _] = b.dims();
    let added = (across * (2.0 * scale) + own * (scale * scale)) * b;
    (squares + added.sum_dim(1).reshape([rows])).sqrt()
}

impl Delta for Dora {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let factors = self.factors();
        if let Some(dropout) = Dropout::new(self.dropout, !site.id(), cx.rows) {
            let x = dropout.apply(product.input().clone());
            let plain = linear(x.clone(), &Weight::Frozen(self.weight.clone()), None);
            let changed = epiphyte_ops::add_low_rank(plain.clone(), x, self.path());
            return product.compute() + (scale_columns(changed, factors) - plain);
        }
        // The product has the bias in it, which is not scaled and may be trained too.
        let bias = product.bias().cloned().or_else(|| self.bias.clone());
        let changed = scale_columns(product.add_low_rank(self.path()), factors.clone());
        match &bias {
            Some(bias) => changed + (bias.clone() - bias.clone() * factors).unsqueeze::<2>(),
            None => changed,
        }
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let change = self.b.get::<2>().inner().matmul(self.a.get::<2>().inner());
        (weight + change * self.scaling) * self.factors().inner().unsqueeze_dim::<2>(1)
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_models::Model;
    use epiphyte_ops::random;
    use serde_json::json;

    use crate::AdapterModule;
    use crate::small_bert::{self, bert};

    const NAME: &str = "bert.encoder.layer.1.attention.self.value";

    fn module(model: &Model) -> AdapterModule {
        small_bert::module(model, "dora", json!({ "r": 3, "lora_alpha": 6 }))
    }

    fn set_random(module: &AdapterModule, name: &str) {
        let param = module.parameters().get(&format!("{NAME}.{name}")).unwrap();
        param.set_values(random::normal(3, param.count(), 0.5));
        module.parameters().derive(false);
    }

    fn merged(module: &AdapterModule, model: &Model) -> Vec<f32> {
        let merged = module.merged(&format!("{NAME}.weight"), model.base());
        merged.unwrap().unwrap().try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn rows_of_the_merged_weight_are_as_long_as_their_magnitudes() {
        let model = bert();
        let module = module(&model);
        set_random(&module, "lora_B.weight");
        set_random(&module, "lora_magnitude_vector");
        let magnitudes = format!("{NAME}.lora_magnitude_vector");
        let magnitudes = module.parameters().get(&magnitudes).unwrap().to_vec();
        let weight = merged(&module, &model);
        for (row, magnitude) in weight.chunks(8).zip(magnitudes) {
            let length = row.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            assert!((length - f64::from(magnitude.abs())).abs() < 1e-5);
        }
    }

    #[test]
    fn a_magnitude_scales_its_row_alone() {
        let model = bert();
        let module = module(&model);
        set_random(&module, "lora_B.weight");
        let before = merged(&module, &model);
        let magnitudes = module
            .parameters()
            .get(&format!("{NAME}.lora_magnitude_vector"));
        let magnitudes = magnitudes.unwrap();
        let mut values = magnitudes.to_vec();
        values[2] *= 3.0;
        magnitudes.set_values(values);
        let after = merged(&module, &model);
        for (row, (before, after)) in before.chunks(8).zip(after.chunks(8)).enumerate() {
            let factor = if row == 2 { 3.0 } else { 1.0 };
            for (before, after) in before.iter().zip(after) {
                assert!((factor * before - after).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn the_norm_is_that_of_the_changed_weight_and_gets_no_gradient() {
        let model = bert();
        let module = module(&model);
        set_random(&module, "lora_B.weight");
        let norms = module.parameters().get(&format!("{NAME}.norms")).unwrap();
        module.track(true);
        assert!(!norms.flat().is_autodiff());
        module.track(false);
        let param = |name: &str| {
            let param = module.parameters().get(&format!("{NAME}.{name}"));
            param.unwrap().to_vec()
        };
        let (a, b) = (param("lora_A.weight"), param("lora_B.weight"));
        let weight = model
            .base()
            .tensor(&format!("{NAME}.weight"))
            .unwrap()
            .to_vec();
        for (row, norm) in norms.to_vec().into_iter().enumerate() {
            let value = |column: usize| {
                let low = (0..3).map(|k| f64::from(b[row * 3 + k] * a[k * 8 + column]));
                f64::from(weight[row * 8 + column]) + 2.0 * low.sum::<f64>()
            };
            let expected = (0..8)
                .map(|column| value(column).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!((f64::from(norm) - expected).abs() < 1e-5);
        }
    }
}
