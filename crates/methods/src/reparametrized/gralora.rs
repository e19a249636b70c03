//! GraLoRA: a low-rank path for each of `k × k` blocks of the weight.
//!
//! Jung et al., "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
//! NeurIPS 2025, arXiv 2505.20355, as HF PEFT has it.
//!
//! `x` is cut into `k` pieces of `in/k` values; piece `n` becomes `r` values through `A_n: [in/k,
//! r]`, which are `k` groups of `r/k`. Group `m` of every piece goes to block `m` of the output,
//! through `B_m: [r, out/k]`. `y = x Wᵀ + b + s · path(dropout(x))`, with `s = α / (r + r_h)`; with
//! `hybrid_r` = `r_h` above zero the path has LoRA's `A_h: [r_h, in]` and `B_h: [out, r_h]` in it
//! too. `A` and `A_h` start uniform in `±√(k/in)` and `±1/√in`, `B` and `B_h` at zero, so nothing
//! changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ (r + r_h) (in + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ k r + r_h` each |
//! | file | `<path>.gralora_A` `[k, in/k, r]`, `.gralora_B` `[k, r, out/k]`; `.gralora_A_general.weight` `[r_h, in]`, `.gralora_B_general.weight` `[out, r_h]` |
//! | merges | `W + s · path(1)ᵀ` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, Weight, add, linear};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Change, Deltas, dropped};

crate::settings! {
    /// The settings of GraLoRA, under HF PEFT's names.
    pub struct GraLoraConfig {
        /// Rank of a block row: each block has this divided by the number of blocks in a row.
        r: usize = 32, flag "rank", in Size;
        /// Rank of a LoRA over the whole weight besides; 0 for none.
        hybrid_r: usize = 0;
        /// Scale of the update: it is multiplied by alpha / (r + hybrid_r).
        #[serde(serialize_with = "super::lora::alpha")]
        alpha: f64 = 64.0, flag "gralora-alpha", in SinglePrecision;
        /// Dropout on the input of the paths.
        gralora_dropout: f64 = 0.0, in Fraction;
        /// Number of blocks in each row and column of blocks.
        gralora_k: usize = 2, in Size;

        ..targets: LayerTargets = LayerTargets::default();
    }
}

impl GraLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, whose sizes can be cut into blocks.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let k = self.gralora_k;
        let value = |key, value: usize, expected: String| MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected,
        };
        if !self.r.is_multiple_of(k) {
            let expected = format!("it must be a multiple of `gralora_k`, {k}");
            return Err(value("r", self.r, expected));
        }
        let targets = self.selection().of(base)?;
        for linear in &targets {
            let (inputs, outputs) = (linear.inputs, linear.outputs);
            if !(inputs.is_multiple_of(k) && outputs.is_multiple_of(k)) {
                let path = &linear.site.path;
                let expected =
                    format!("it must divide the sizes of `{path}`, {outputs} and {inputs}");
                return Err(value("gralora_k", k, expected));
            }
        }
        Ok(targets)
    }
}

impl MethodConfig for GraLoraConfig {
    const NAME: &'static str = "gralora";
    const PEFT_TYPE: &'static str = "GRALORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "a low-rank path for each block of the weight of chosen linear layers";
    const PAPER: &'static str = "Jung et al. 2025, arXiv 2505.20355";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 4, "alpha": 8 }),
            json!({
                "r": 4, "gralora_k": 4, "hybrid_r": 2, "alpha": 6, "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (k, r, hybrid) = (self.gralora_k, self.r, self.hybrid_r);
        let targets = self.targets(base)?.into_iter();
        let deltas = targets.map(|linear| {
            let key = |name| format!("{}.gralora_{name}", linear.site.path);
            let (inputs, outputs) = (linear.inputs, linear.outputs);
            let shape = [k, inputs / k, r];
            let a = parameters.declare(key("A"), &shape, Init::kaiming(inputs / k));
            let b = parameters.declare(key("B"), &[k, r, outputs / k], Init::Zeros);
            let general = (hybrid > 0).then(|| {
                let (a, init) = (key("A_general.weight"), Init::kaiming(inputs));
                let a = parameters.declare(a, &[hybrid, inputs], init);
                let b = key("B_general.weight");
                [a, parameters.declare(b, &[outputs, hybrid], Init::Zeros)]
            });
            let gralora = GraLora {
                a,
                b,
                general,
                scaling: (self.alpha / (r + hybrid) as f64) as f32,
                dropout: self.gralora_dropout,
            };
            (linear, gralora)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let rank = self.r + self.hybrid_r;
        let targets = self.targets(base)?.into_iter();
        Ok(targets
            .map(|linear| rank * (linear.inputs + linear.outputs))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["gralora_dropout"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), json!("none")),
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// GraLoRA on one linear layer.
#[derive(Debug)]
struct GraLora {
    a: Param,
    b: Param,
    general: Option<[Param; 2]>,
    scaling: f32,
    dropout: f64,
}

impl GraLora {
    /// `s · path(x)`, `[rows, out]`.
    fn path(&self, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = (self.a.get::<3>(), self.b.get::<3>());
        let ([rows, _], [k, piece, r], [_, _, block]) = (x.dims(), a.dims(), b.dims());
        let pieces = x.clone().reshape([rows, k, piece]).swap_dims(0, 1);
        // `[pieces, rows, groups, r/k]`, then the groups of all pieces together.
        let low = pieces.matmul(a).reshape([k, rows, k, r / k]);
        let groups = low.permute([2, 1, 0, 3]).reshape([k, rows, r]);
        let blocks = groups.matmul(b).swap_dims(0, 1).reshape([rows, k * block]);
        let path = match &self.general {
            None => blocks,
            Some([a, b]) => {
                let low = linear(x, &Weight::Trained(a.get()), None);
                blocks + linear(low, &Weight::Trained(b.get()), None)
            }
        };
        path * self.scaling
    }
}

impl Change for GraLora {
    fn matrix(&self) -> Tensor<2> {
        let [k, piece, _] = self.a.shape() else {
            unreachable!("A has three dimensions")
        };
        let unit = Tensor::eye(k * piece, &self.a.flat().device());
        self.path(unit).transpose()
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let path = self.path(dropped(&product, dropout));
        add(product.compute(), path)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::MethodError;
    use crate::small_bert::{bert, bert_base_count, module, set_random, values};
    use crate::test_data;

    /// As many values as LoRA of the same rank, as the paper has it.
    #[test]
    fn it_trains_as_many_values_as_lora() {
        for k in [1, 2, 4] {
            let gralora = bert_base_count("gralora", json!({ "r": 32, "gralora_k": k }), 0);
            assert_eq!(gralora, bert_base_count("lora", json!({ "r": 32 }), 0));
        }
    }

    /// Block `m, n` is `B_mᵀ A_nᵀ` over group `m` of piece `n`, written out.
    #[test]
    fn each_block_of_the_change_is_a_product_of_its_own() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let module = module(
            &model,
            "gralora",
            json!({ "r": 4, "gralora_k": 2, "alpha": 8 }),
        );
        let b = set_random(&module, &format!("{path}.gralora_B"));
        let a = values(&module, &format!("{path}.gralora_A"));
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let merged = module.merged(&name, model.base()).unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        for (at, (merged, before)) in merged.iter().zip(before).enumerate() {
            let (row, column) = (at / 8, at % 8);
            let (m, n) = (row / 4, column / 4);
            let change: f32 = (0..2)
                .map(|s| {
                    let a = a[(n * 4 + column % 4) * 4 + m * 2 + s];
                    a * b[(m * 4 + n * 2 + s) * 4 + row % 4]
                })
                .sum();
            assert!((merged - before - 2.0 * change).abs() < 1e-6);
        }
    }

    #[test]
    fn blocks_must_fit() {
        let model = test_data::model();
        for (settings, key) in [
            (json!({ "r": 3 }), "r"),
            (json!({ "r": 6, "gralora_k": 3 }), "gralora_k"),
        ] {
            let settings = settings.as_object().unwrap().clone();
            let config = crate::by_name("gralora")
                .unwrap()
                .configure(settings)
                .unwrap();
            let error = config.count(model.base()).unwrap_err();
            assert!(
                matches!(&error, MethodError::Value { key: found, .. } if *found == key),
                "{error}"
            );
        }
    }
}
