//! Uni-LoRA: one vector from which the entries of all low-rank matrices are taken.
//!
//! Li et al., "Uni-LoRA: One Vector is All You Need", NeurIPS 2025, arXiv 2506.00799, as HF PEFT
//! has it.
//!
//! `y = x Wᵀ + b + (dropout(x) Aᵀ) Bᵀ`, where entry `e` of all `A: [r, in]` and `B: [out, r]`, one
//! target after the other, is `θ_i / √n_i`, with `i` its index and `n_i` how often `i` occurs. The
//! indices are balanced and shuffled as HF PEFT does it from `proj_seed`, so a file without them is
//! complete. `θ: [d]` starts uniform in `±init_theta_d_bound`, so the model changes from the start.
//!
//! | | |
//! | --- | --- |
//! | trains | `d` (`theta_d_length`), whatever the model |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `unilora_theta_d` `[d]`; with `save_indices` `<path>.unilora_indices_A`, `_B`, `.unilora_scales_A`, `_B` |
//! | merges | `W + B A` |

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, LowRank};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Change, Deltas};
use crate::parts::numpy_generator::NumpyGenerator;

crate::settings! {
    /// The settings of Uni-LoRA, under HF PEFT's names.
    pub struct UniLoraConfig {
        /// Rank of the update.
        r: usize = 4, flag "rank", in Size;
        /// Seed of the indices, apart from the run's.
        proj_seed: u64 = 42;
        /// Length of the vector.
        theta_d_length: usize = 256, in AtLeastOne;
        /// Bound of the vector's initial values.
        init_theta_d_bound: f64 = 0.02, in Positive;
        /// Dropout on the input of the low-rank path.
        unilora_dropout: f64 = 0.0, in Fraction;
        /// Store the indices, which follow from their seed.
        save_indices: bool = false;

        ..targets: LayerTargets = LayerTargets::default();
    }
}

impl UniLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The index of each of `total` entries, and the scale of each index.
    fn indices(&self, total: usize) -> (Vec<i64>, Vec<f32>) {
        let length = self.theta_d_length;
        let each = total / length;
        let mut indices: Vec<i64> = (0..length * each).map(|at| (at / each) as i64).collect();
        let mut generator = NumpyGenerator::new(self.proj_seed);
        if total > indices.len() {
            indices.extend(generator.choice(length, total - indices.len()));
        }
        generator.shuffle(&mut indices);
        let mut counts = vec![0u32; length];
        for index in &indices {
            counts[*index as usize] += 1;
        }
        let scales = counts.into_iter().map(|count| match count {
            0 => 0.0,
            count => (count as f32).sqrt().recip(),
        });
        (indices, scales.collect())
    }
}

impl MethodConfig for UniLoraConfig {
    const NAME: &'static str = "unilora";
    const TRAINS_ALONE: bool = true;
    const PEFT_TYPE: &'static str = "UNILORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "one vector from which the entries of low-rank matrices are taken";
    const PAPER: &'static str = "Li et al. 2025, arXiv 2506.00799";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-1;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3, "theta_d_length": 300, "init_theta_d_bound": 0.5 }),
            json!({
                "r": 2, "theta_d_length": 64, "init_theta_d_bound": 0.5,
                "target_modules": "all-linear", "save_indices": true,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut targets = self.selection().of(base)?;
        base.in_module_order(&mut targets);
        let bound = self.init_theta_d_bound;
        let theta = &[self.theta_d_length];
        let theta = parameters.declare("unilora_theta_d", theta, Init::Uniform { bound });
        let entries = |linear: &LinearInfo| self.r * (linear.inputs + linear.outputs);
        let total = targets.iter().map(|linear| entries(linear)).sum();
        let (indices, scales) = self.indices(total);
        let mut rest = indices.as_slice();
        let mut next = |key: String, shape: [usize; 2]| {
            let (indices, after) = rest.split_at(shape[0] * shape[1]);
            rest = after;
            let scales = indices.iter().map(|index| scales[*index as usize]);
            Entries {
                key,
                shape,
                scales: scales.collect(),
                indices: indices.to_vec(),
            }
        };
        let deltas: Vec<_> = targets
            .into_iter()
            .map(|linear| {
                let key = |name| format!("{}.unilora_{{}}_{name}", linear.site.path);
                let unilora = UniLora {
                    a: next(key("A"), [self.r, linear.inputs]),
                    b: next(key("B"), [linear.outputs, self.r]),
                    theta: theta.clone(),
                    stores_indices: self.save_indices,
                    dropout: self.unilora_dropout,
                };
                (linear, unilora)
            })
            .collect();
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.selection().of(base)?;
        Ok(self.theta_d_length)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["init_theta_d_bound", "unilora_dropout"];

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

/// Which entries of the vector a matrix is made of.
#[derive(Debug)]
struct Entries {
    /// The key, with `{}` for `indices` or `scales`.
    key: String,
    shape: [usize; 2],
    indices: Vec<i64>,
    scales: Vec<f32>,
}

impl Entries {
    fn key(&self, of: &str) -> String {
        self.key.replace("{}", of)
    }

    /// The matrix.
    fn of(&self, theta: Tensor<1>) -> Tensor<2> {
        let (device, count) = (theta.device(), self.indices.len());
        let indices = TensorData::new(self.indices.clone(), [count]);
        let scales = TensorData::new(self.scales.clone(), [count]);
        let taken = theta.select(0, Tensor::<1, Int>::from_data(indices, &device));
        let scaled = taken * Tensor::<1>::from_data(scales, &device.inner());
        scaled.reshape(self.shape)
    }

    fn stored(&self) -> [Stored; 2] {
        let kind = IntegerType::I64;
        [
            Stored::integers(self.key("indices"), &self.shape, kind, self.indices.clone()),
            Stored::f32(self.key("scales"), &self.shape, self.scales.clone()),
        ]
    }

    /// Takes indices and scales of a vector of this length from a file.
    fn load(&mut self, file: &mut dyn StoredTensors, length: usize) -> Result<(), MethodError> {
        let key = self.key("indices");
        if let Some(indices) = file.take_integers(&key, &self.shape)? {
            let outside = indices.iter().find(|at| !(0..length as i64).contains(*at));
            if let Some(outside) = outside {
                return Err(MethodError::Configuration {
                    method: UniLoraConfig::NAME,
                    reason: format!("`{key}` has {outside}, but `theta_d_length` is {length}"),
                });
            }
            self.indices = indices;
        }
        if let Some(scales) = file.take(&self.key("scales"), &self.shape)? {
            self.scales = scales;
        }
        Ok(())
    }
}

/// Uni-LoRA on one linear layer.
#[derive(Debug)]
struct UniLora {
    a: Entries,
    b: Entries,
    theta: Param,
    stores_indices: bool,
    dropout: f64,
}

impl Change for UniLora {
    fn matrix(&self) -> Tensor<2> {
        let theta = self.theta.flat();
        self.b.of(theta.clone()).matmul(self.a.of(theta))
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.of(self.theta.flat()),
            b: self.b.of(self.theta.flat()),
            scale: 1.0,
            dropout,
        })
    }

    fn stored(&self) -> Vec<Stored> {
        match self.stores_indices {
            true => [&self.a, &self.b]
                .into_iter()
                .flat_map(Entries::stored)
                .collect(),
            false => Vec::new(),
        }
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        if !self.stores_indices {
            return Ok(());
        }
        let length = self.theta.count();
        self.a.load(file, length)?;
        self.b.load(file, length)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::UniLoraConfig;
    use crate::small_bert::bert_base_count;

    #[test]
    fn it_trains_the_vector_alone() {
        // Counted as outside of the layers, of which there may be any number.
        assert_eq!(
            bert_base_count("unilora", json!({ "theta_d_length": 23_040 }), 23_040),
            23_040
        );
    }

    #[test]
    fn indices_are_balanced() {
        let config = UniLoraConfig {
            theta_d_length: 10,
            ..UniLoraConfig::default()
        };
        let (indices, scales) = config.indices(37);
        let counts = (0..10).map(|of| indices.iter().filter(|it| **it == of).count());
        for (count, scale) in counts.zip(scales) {
            assert!(count == 3 || count == 4);
            assert!((scale - (count as f32).sqrt().recip()).abs() < 1e-7);
        }
    }
}
