//! VB-LoRA: low-rank matrices put together from vectors of a bank that all targets share.
//!
//! Li, Han, Ji, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", NeurIPS 2024,
//! arXiv 2405.15179, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + (dropout(x) Aᵀ) Bᵀ`. Rows of `A: [r, in]` and columns of `B: [out, r]` are cut
//! into pieces of `vector_length` values. A piece is a mixture of bank vectors: of its
//! `num_vectors` logits the `topk` largest, through a softmax, weight their vectors. Logits start
//! normal with standard deviation `init_logits_std`, the bank uniform in `±init_vector_bank_bound`,
//! so the model changes from the start.
//!
//! | | |
//! | --- | --- |
//! | trains | `num_vectors · vector_length + Σ r (in + out) / vector_length · num_vectors` |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `vblora_vector_bank`, `<path>.vblora_logits_A` `[r, in/length, vectors]`, `_B` `[out/length, r, vectors]`; with `save_only_topk_weights` of each `_topk_indices` and `_topk_weights`, the last weight left out |
//! | merges | `W + B A` |

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, LowRank};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Change, Deltas};

crate::settings! {
    /// The settings of VB-LoRA, under HF PEFT's names.
    pub struct VbLoraConfig {
        /// Rank of the update.
        r: usize = 4, flag "rank", in Size;
        /// Number of vectors in the bank.
        num_vectors: usize = 256, in Size;
        /// Length of a vector; it must divide the sizes of the targets.
        vector_length: usize = 256, in Size;
        /// Number of vectors in a mixture.
        topk: usize = 2, in AtLeastOne;
        /// Store of each mixture only its vectors and their weights, which cannot be trained again.
        save_only_topk_weights: bool = false;
        /// Dropout on the input of the low-rank path.
        vblora_dropout: f64 = 0.0, in Fraction;
        /// Bound of the bank's initial values.
        init_vector_bank_bound: f64 = 0.02, in Positive;
        /// Standard deviation of the initial logits.
        init_logits_std: f64 = 0.1, in Positive;

        ..targets: Targets = Targets::default();
    }
}

impl VbLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, whose sizes are multiples of the vectors' length.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let length = self.vector_length;
        let value = |key, value: usize, expected: String| MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected,
        };
        if self.topk > self.num_vectors {
            let expected = format!("`num_vectors` is only {}", self.num_vectors);
            return Err(value("topk", self.topk, expected));
        }
        let targets = self.selection().of(base)?;
        let misfit = targets.iter().find(|linear| {
            !(linear.inputs.is_multiple_of(length) && linear.outputs.is_multiple_of(length))
        });
        match misfit {
            None => Ok(targets),
            Some(linear) => {
                let (path, outputs, inputs) = (&linear.site.path, linear.outputs, linear.inputs);
                let expected =
                    format!("it must divide the sizes of `{path}`, {outputs} and {inputs}");
                Err(value("vector_length", length, expected))
            }
        }
    }
}

impl MethodConfig for VbLoraConfig {
    const NAME: &'static str = "vblora";
    const TRAINS_ALONE: bool = true;
    const PEFT_TYPE: &'static str = "VBLORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "low-rank matrices put together from a bank of vectors";
    const PAPER: &'static str = "Li et al. 2024, arXiv 2405.15179";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        // Mixtures of all vectors: which ones are the largest changes with a jump.
        vec![
            json!({
                "r": 2, "num_vectors": 3, "topk": 3, "vector_length": 4,
                "init_vector_bank_bound": 0.3,
            }),
            json!({
                "r": 2, "num_vectors": 5, "topk": 5, "vector_length": 2, "init_logits_std": 0.5,
                "init_vector_bank_bound": 0.3, "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?;
        let (vectors, length, r) = (self.num_vectors, self.vector_length, self.r);
        let bound = self.init_vector_bank_bound;
        let shape = [vectors, length];
        let bank = parameters.declare("vblora_vector_bank", &shape, Init::Uniform { bound });
        let deltas: Vec<_> = targets
            .into_iter()
            .map(|linear| {
                let mut mixtures = |name: &str, [rows, columns]: [usize; 2]| {
                    let key = format!("{}.vblora_logits_{name}", linear.site.path);
                    let std = self.init_logits_std;
                    let shape = [rows, columns, vectors];
                    let init = Init::Normal { std };
                    let logits = match self.save_only_topk_weights {
                        true => parameters.declare_unstored(key, &shape, init),
                        false => parameters.declare(key, &shape, init),
                    };
                    Mixtures {
                        logits,
                        topk: self.topk,
                        compact: self.save_only_topk_weights,
                        stored: None,
                    }
                };
                let a = mixtures("A", [r, linear.inputs / length]);
                let b = mixtures("B", [linear.outputs / length, r]);
                let vblora = VbLora {
                    a,
                    b,
                    bank: bank.clone(),
                    dropout: self.vblora_dropout,
                };
                (linear, vblora)
            })
            .collect();
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let pieces = targets.map(|linear| (linear.inputs + linear.outputs) / self.vector_length);
        let mixtures: usize = pieces.map(|pieces| self.r * pieces).sum();
        Ok(self.num_vectors * (self.vector_length + mixtures))
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &[
        "init_logits_std",
        "init_vector_bank_bound",
        "vblora_dropout",
    ];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// The vectors that a mixture has, the largest weight first, and their weights without the last.
type Compact = (Vec<i64>, Vec<f32>);

/// The mixtures of `A` or `B`.
#[derive(Debug)]
struct Mixtures {
    /// `[rows, columns, vectors]`
    logits: Param,
    topk: usize,
    /// Whether the file holds vectors and weights in place of logits.
    compact: bool,
    /// What a file held, to be written again as it was.
    stored: Option<Compact>,
}

impl Mixtures {
    /// The numbers of the largest logits of each mixture, the largest first.
    fn largest(&self) -> Vec<i64> {
        let logits = self.logits.to_vec();
        let vectors = self.logits.shape()[2];
        let largest = logits.chunks(vectors).flat_map(|logits| {
            let mut order: Vec<usize> = (0..vectors).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            order.into_iter().take(self.topk).map(|at| at as i64)
        });
        largest.collect()
    }

    /// The weights of these vectors, `[mixtures, topk]`.
    fn weights(&self, largest: &[i64]) -> Tensor<2> {
        let logits = self.logits.flat();
        let (topk, vectors) = (self.topk, self.logits.shape()[2]);
        let places = (0..).zip(largest);
        let places = places.map(|(at, vector)| (at / topk * vectors) as i64 + vector);
        let places = TensorData::new(places.collect::<Vec<i64>>(), [largest.len()]);
        let places = Tensor::<1, Int>::from_data(places, &logits.device());
        let chosen = logits.select(0, places);
        softmax(chosen.reshape([largest.len() / topk, topk]), 1)
    }

    /// The mixed vectors, `[rows, columns, length]`.
    fn mixed(&self, bank: &Param) -> Tensor<3> {
        let [rows, columns, _] = self.logits.get::<3>().dims();
        let bank = bank.get::<2>();
        let [_, length] = bank.dims();
        let largest = self.largest();
        let weights = self.weights(&largest);
        let count = largest.len();
        let numbers = TensorData::new(largest, [count]);
        let numbers = Tensor::<1, Int>::from_data(numbers, &bank.device());
        let shape = [rows * columns, self.topk, length];
        let vectors = bank.select(0, numbers).reshape(shape);
        let weighted = vectors * weights.unsqueeze_dim::<3>(2);
        weighted.sum_dim(1).reshape([rows, columns, length])
    }

    /// How HF PEFT stores numbers of vectors.
    fn number_type(&self) -> IntegerType {
        match self.logits.shape()[2] {
            0..0x100 => IntegerType::U8,
            0x100..0x8000 => IntegerType::I16,
            _ => IntegerType::I32,
        }
    }

    fn stored(&self) -> Vec<Stored> {
        if !self.compact {
            return Vec::new();
        }
        let (key, topk) = (self.logits.key(), self.topk);
        let (numbers, weights) = self.stored.clone().unwrap_or_else(|| {
            let largest = self.largest();
            let weights = self.weights(&largest).inner().try_into_vec_as::<f32>();
            let weights = weights.expect("parameters are f32 and on a device that can be read");
            let all_but_last = weights.chunks(topk).flat_map(|it| it[..topk - 1].to_vec());
            (largest, all_but_last.collect())
        });
        let shape = |last| {
            let mut shape = self.logits.shape().to_vec();
            shape[2] = last;
            shape
        };
        let (kind, of_numbers) = (self.number_type(), format!("{key}_topk_indices"));
        vec![
            Stored::integers(of_numbers, &shape(topk), kind, numbers),
            Stored::f32(format!("{key}_topk_weights"), &shape(topk - 1), weights),
        ]
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        if !self.compact {
            return Ok(());
        }
        let [rows, columns, vectors] = self.logits.get::<3>().dims();
        let (key, topk) = (self.logits.key().to_owned(), self.topk);
        let numbers_key = format!("{key}_topk_indices");
        let numbers = file.take_integers(&numbers_key, &[rows, columns, topk])?;
        let weights = format!("{key}_topk_weights");
        let weights = file.take(&weights, &[rows, columns, topk - 1])?;
        let (Some(numbers), Some(weights)) = (numbers, weights) else {
            return Ok(());
        };
        let outside = numbers.iter().find(|at| !(0..vectors as i64).contains(*at));
        if let Some(outside) = outside {
            return Err(MethodError::Configuration {
                method: VbLoraConfig::NAME,
                reason: format!("`{numbers_key}` has {outside}, but `num_vectors` is {vectors}"),
            });
        }
        // Logits that give these weights; the others are too small to be among the largest.
        let mut logits = vec![f32::NEG_INFINITY; rows * columns * vectors];
        for (mixture, numbers) in numbers.chunks(topk).enumerate() {
            let weights = &weights[mixture * (topk - 1)..][..topk - 1];
            let last = 1.0 - weights.iter().sum::<f32>();
            let weights = weights.iter().copied().chain([last]);
            for (number, weight) in numbers.iter().zip(weights) {
                logits[mixture * vectors + *number as usize] = weight.max(0.0).ln();
            }
        }
        self.logits.set_values(logits);
        self.stored = Some((numbers, weights));
        Ok(())
    }
}

/// VB-LoRA on one linear layer.
#[derive(Debug)]
struct VbLora {
    a: Mixtures,
    b: Mixtures,
    bank: Param,
    dropout: f64,
}

impl VbLora {
    /// `A` and `B`, `[r, in]` and `[out, r]`.
    fn factors(&self) -> [Tensor<2>; 2] {
        let a = self.a.mixed(&self.bank);
        let [r, pieces, length] = a.dims();
        let b = self.b.mixed(&self.bank);
        let [blocks, _, _] = b.dims();
        [
            a.reshape([r, pieces * length]),
            b.swap_dims(1, 2).reshape([blocks * length, r]),
        ]
    }
}

impl Change for VbLora {
    fn matrix(&self) -> Tensor<2> {
        let [a, b] = self.factors();
        b.matmul(a)
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let [a, b] = self.factors();
        product.add_low_rank(LowRank {
            a,
            b,
            scale: 1.0,
            dropout,
        })
    }

    fn stored(&self) -> Vec<Stored> {
        let mixtures = [&self.a, &self.b].into_iter();
        mixtures.flat_map(Mixtures::stored).collect()
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        self.a.load(file)?;
        self.b.load(file)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::MethodError;
    use crate::small_bert::{bert, bert_base_count, module};

    #[test]
    fn counts_follow_the_formula() {
        let settings = json!({ "num_vectors": 90, "vector_length": 256, "r": 4 });
        let expected = 90 * 256 + 24 * 4 * 6 * 90;
        assert_eq!(bert_base_count("vblora", settings, 90 * 256), expected);
    }

    /// Of `k` weights that add up to one, the file holds `k - 1`.
    #[test]
    fn compact_files_hold_vectors_and_weights() {
        let model = bert();
        let settings = |compact: bool| {
            json!({
                "num_vectors": 6, "vector_length": 4, "r": 2, "topk": 3,
                "save_only_topk_weights": compact,
            })
        };
        let full = module(&model, "vblora", settings(false)).counts(model.base());
        let compact = module(&model, "vblora", settings(true)).counts(model.base());
        let mixtures = 4 * 2 * 4;
        assert_eq!(full.stored_parameters, 24 + mixtures * 6);
        assert_eq!(compact.stored_parameters, 24 + mixtures * (3 + 2));
        assert_eq!(full.trainable_parameters, compact.trainable_parameters);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let model = bert();
        for (settings, key) in [
            (json!({ "vector_length": 3 }), "vector_length"),
            (
                json!({ "vector_length": 4, "num_vectors": 2, "topk": 3 }),
                "topk",
            ),
        ] {
            let settings = settings.as_object().unwrap().clone();
            let config = crate::by_name("vblora")
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
