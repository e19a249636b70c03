//! RandLoRA: a sum of frozen random low-rank matrices that all targets share, each scaled by
//! trained vectors of the target.
//!
//! Albert, Zhang, Saratchandran, Rodriguez-Opazo, van den Hengel, Abbasnejad, "RandLoRA:
//! Full-rank Parameter-efficient Fine-tuning of Large Models", ICLR 2025, arXiv 2502.00987, section
//! 4; the pairing of the bases is HF PEFT's code.
//!
//! With `low = min(in, out)`, `high = max(in, out)` and `n = ⌈low / r⌉` bases: `ΔW = s B' A'`, or
//! its transpose where `out < in`, with `A'[i n + j, :] = λ[i, j] γ[j, :] ⊙ A[i, :]`: `[r n, low]`
//! and `B': [high, n r]` the bases `B[:, j, :]` next to each other, `s = α / r`. `A: [r, 1, max
//! low]` and `B: [max high, n, r]` are shared, frozen, of unit variance, and drawn as HF PEFT draws
//! them from `projection_prng_key`: uniform and in bf16, or with `sparse` and `very_sparse` -1, 0
//! and 1. `λ: [r, n]` starts at zero, so nothing changes at first, and `γ: [n, low]` at `1 / max(n,
//! low)`. `ΔW` is computed once a step.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ n (r + min(in, out))` over the targets |
//! | changes | `Σ in · out`, by a matrix of full rank each |
//! | file | `<path>.randlora_lambda`, `<path>.randlora_gamma`, `randlora_A` and `randlora_B`, also for each path |
//! | merges | `W + ΔW` |

use std::sync::Arc;

use burn::tensor::Tensor;
use epiphyte_models::{Base, LinearInfo};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Change, Deltas};
use crate::parts::start::Start;
use crate::parts::torch_generator::{TorchGenerator, bf16};
use crate::reparametrized::lora::alpha;

crate::settings! {
    /// The settings of RandLoRA, under HF PEFT's names.
    pub struct RandLoraConfig {
        /// Rank of each basis; a lower rank trains more.
        r: usize = 32, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        #[serde(serialize_with = "alpha")]
        randlora_alpha: f64 = 640.0, in SinglePrecision;
        /// Dropout on the input of the update.
        randlora_dropout: f64 = 0.0, in Fraction;
        /// Seed of the bases, apart from the run's.
        projection_prng_key: u64 = 0;
        /// Store the bases, which follow from their seed.
        save_projection: bool = true, as Boolean;
        /// Bases of -1, 0 and 1, two thirds of them 0.
        sparse: bool = false;
        /// Bases of -1, 0 and 1 with fewer values that are not 0.
        very_sparse: bool = false;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: LayerTargets = LayerTargets::default();
    }
}

/// The smaller and the larger side of a layer, and its number of bases.
fn sizes(linear: &LinearInfo, rank: usize) -> [usize; 3] {
    let low = linear.inputs.min(linear.outputs);
    [low, linear.inputs.max(linear.outputs), low.div_ceil(rank)]
}

impl RandLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// Declares `A` and `B` for these targets.
    fn bases(
        &self,
        targets: &[&LinearInfo],
        parameters: &mut ParameterSet,
    ) -> Result<[Param; 2], MethodError> {
        let inputs = targets
            .iter()
            .map(|linear| linear.inputs)
            .max()
            .unwrap_or(1);
        let outputs = targets
            .iter()
            .map(|linear| linear.outputs)
            .max()
            .unwrap_or(1);
        let (low, high, rank) = (inputs.min(outputs), inputs.max(outputs), self.r);
        let count = low.div_ceil(rank);
        let drawing = match (self.very_sparse, self.sparse) {
            (true, _) => Drawing::Sparse((low as f64).sqrt()),
            (_, true) => Drawing::Sparse(3.0),
            _ => Drawing::Uniform,
        };
        let (a, b) = drawing.draw(self.projection_prng_key, [low, high, rank, count]);
        if a.iter().chain(&b).any(|it| !it.is_finite()) {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "very_sparse",
                value: self.very_sparse.to_string(),
                expected: format!(
                    "of {low} values a row none is drawn: use another `projection_prng_key` or rank"
                ),
            });
        }
        let [a, b] = [a, b].map(|it| Init::Values(Arc::from(it)));
        // What the file does not hold is declared in a set of its own, which is not stored.
        let mut unsaved = ParameterSet::new(parameters.device(), parameters.seed());
        let parameters = match self.save_projection {
            true => parameters,
            false => &mut unsaved,
        };
        Ok([
            parameters.constant("randlora_A", &[rank, 1, low], a),
            parameters.constant("randlora_B", &[high, count, rank], b),
        ])
    }
}

/// How bases are drawn.
#[derive(Clone, Copy, Debug)]
enum Drawing {
    /// Uniform, in bf16 as PEFT does where the machine has it: on processors and recent GPUs.
    Uniform,
    /// -1 and 1 with probability `1 / (2 s)` each, else 0.
    Sparse(f64),
}

impl Drawing {
    /// `A` and `B` of unit variance, for these sizes: the smaller and the larger side, rank and
    /// number of bases.
    fn draw(self, key: u64, [low, high, rank, count]: [usize; 4]) -> (Vec<f32>, Vec<f32>) {
        let mut generator = TorchGenerator::new(key);
        match self {
            Self::Uniform => {
                let mut draw = |size: usize, fan_in: usize| {
                    generator.uniform_bf16(size, 1.0 / (fan_in as f64).sqrt())
                };
                let a = draw(rank * low, low);
                let mut b = vec![0.0; high * count * rank];
                for basis in 0..count {
                    let values = draw(high * rank, rank);
                    for (row, values) in values.chunks_exact(rank).enumerate() {
                        b[(row * count + basis) * rank..][..rank].copy_from_slice(values);
                    }
                }
                let unit = |values: Vec<f32>| {
                    let deviation = bf16(deviation(&values));
                    values.into_iter().map(|it| bf16(it / deviation)).collect()
                };
                (unit(a), unit(b))
            }
            Self::Sparse(sparsity) => {
                let share = (1.0 / (2.0 * sparsity)) as f32;
                let rest = (1.0 - 1.0 / (2.0 * sparsity)) as f32;
                let mut draw = |size: usize| -> Vec<f32> {
                    let draws = generator.rand(size).into_iter();
                    let sign =
                        |it: f32| f32::from(u8::from(it > rest)) - f32::from(u8::from(it < share));
                    draws.map(sign).collect()
                };
                let unit = |values: Vec<f32>| {
                    let deviation = deviation(&values);
                    values.into_iter().map(|it| it / deviation).collect()
                };
                let a = draw(rank * low);
                (unit(a), unit(draw(high * count * rank)))
            }
        }
    }
}

/// `torch.std`.
fn deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().map(|it| f64::from(*it)).sum::<f64>() / count;
    let squares = values.iter().map(|it| (f64::from(*it) - mean).powi(2));
    (squares.sum::<f64>() / (count - 1.0)).sqrt() as f32
}

impl MethodConfig for RandLoraConfig {
    const NAME: &'static str = "randlora";
    const PEFT_TYPE: &'static str = "RANDLORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "vectors that scale shared random bases of full rank, for chosen linear layers";
    const PAPER: &'static str = "Albert et al. 2025, arXiv 2502.00987";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper("HF PEFT's documentation", "none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 5, "randlora_alpha": 5 }),
            json!({
                "r": 4, "randlora_alpha": 8, "target_modules": "all-linear", "sparse": true,
                "save_projection": false,
            }),
            json!({ "r": 8, "randlora_alpha": 4, "very_sparse": true, "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?;
        let rank = self.r;
        let [a, b] = self.bases(&targets, parameters)?;
        let deltas = targets.into_iter().map(|linear| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let [low, high, count] = sizes(linear, rank);
            let init = Init::Normal { std: 1.0 };
            let init = self.init_weights.choose(Init::Zeros, init);
            let lambda = parameters.declare(key("randlora_lambda"), &[rank, count], init);
            let init = self.init_weights.choose(
                Init::Constant(1.0 / count.max(low) as f32),
                Init::Constant(1.0 / high as f32),
            );
            let gamma = parameters.declare(key("randlora_gamma"), &[count, low], init);
            if self.save_projection {
                parameters.copy_in_file(key("randlora_A"), &a);
                parameters.copy_in_file(key("randlora_B"), &b);
            }
            let size = [linear.outputs, linear.inputs];
            let scale = (self.randlora_alpha / rank as f64) as f32;
            let (a, b) = (a.clone(), b.clone());
            let change = parameters.derived(key("randlora_change"), &size, move || {
                let a = a.get::<3>().narrow(2, 0, low);
                let b = b.get::<3>().narrow(0, 0, high).narrow(1, 0, count);
                let lambda = lambda.get::<2>().reshape([rank, count, 1]);
                let gamma = gamma.get::<2>().reshape([1, count, low]);
                let a = (a * lambda * gamma).reshape([rank * count, low]);
                let change = b.reshape([high, count * rank]).matmul(a) * scale;
                let change = if size[1] == low {
                    change
                } else {
                    change.transpose()
                };
                change.reshape([size[0] * size[1]])
            });
            let dropout = self.randlora_dropout;
            (linear, RandLora { change, dropout })
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?;
        let count = |linear: &&LinearInfo| {
            let [low, _, count] = sizes(linear, self.r);
            count * (self.r + low)
        };
        Ok(targets.iter().map(count).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["randlora_dropout"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// RandLoRA on one linear layer.
#[derive(Debug)]
struct RandLora {
    /// `ΔW`, `[out, in]`.
    change: Param,
    dropout: f64,
}

impl Change for RandLora {
    fn matrix(&self) -> Tensor<2> {
        self.change.get()
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Drawing;
    use crate::parts::svd::Svd;
    use crate::small_bert::{bert, bert_base_count, module, set_random};

    /// Written by peft 0.21.2: `_init_randlora_A_randlora_B` and its sparse form, key 0, for layers
    /// of 7 and 5 at rank 2.
    #[test]
    fn bases_are_those_of_peft() {
        let sizes = [5, 7, 2, 3];
        for (drawing, a, b, last) in [
            (
                Drawing::Uniform,
                [-0.014404297, 1.03125, -1.578125, -1.421875],
                [-0.50390625, -0.32617188, -0.26757812, 0.17578125],
                1.6484375,
            ),
            (
                Drawing::Sparse(3.0),
                [0.0, 0.0, -1.7616607, -1.7616607],
                [0.0, 0.0, -1.7775358, 0.0],
                1.7775358,
            ),
        ] {
            let (found_a, found_b) = drawing.draw(0, sizes);
            assert_eq!((found_a.len(), found_b.len()), (10, 42));
            assert_eq!(found_a[..4], a, "{drawing:?}");
            assert_eq!((&found_b[..4], found_b[41]), (&b[..], last), "{drawing:?}");
        }
    }

    #[test]
    fn the_change_has_full_rank() {
        let model = bert();
        let module = module(&model, "randlora", json!({ "r": 3 }));
        let path = "bert.encoder.layer.0.attention.self.query";
        for name in ["randlora_lambda", "randlora_gamma"] {
            set_random(&module, &format!("{path}.{name}"));
        }
        module.parameters().derive(false);
        let change = module.parameters().get(&format!("{path}.randlora_change"));
        let singular = Svd::new(change.unwrap().get()).values;
        // Of a rank of three the others would be f32's rounding, 1e-7.
        assert!(singular[7] > 1e-4 * singular[0], "{singular:?}");
    }

    #[test]
    fn counts_are_those_of_the_bases() {
        let bases = 768 / 32;
        assert_eq!(
            bert_base_count("randlora", json!({}), 0),
            24 * bases * (32 + 768)
        );
    }
}
