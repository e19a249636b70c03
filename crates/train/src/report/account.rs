//! What a run's method cost: what it declares, and what was measured.
//!
//! | | declared | measured |
//! | --- | --- | --- |
//! | trainable | by the method | values of its trained tensors that differ from their initial ones |
//! | changed | by the method | values in which the merged base differs from the base |
//! | rank of the change | | of each matrix that merging changes |
//! | gradients through the base | | layers whose input got a gradient |
//! | memory | | bytes in use during optimizer steps, by what needs them |
//! | inference | | time and memory of a forward pass with the adapter and without |
//! | writing | | texts, tokens and time of an evaluation that writes |
//! | forgetting | | the score of the base's own task with the adapter and without |
//!
//! A declaration that the measurement contradicts is an error of the method, and the run fails.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use epiphyte_methods::{AdapterModule, Kind, MethodError, ParameterCounts};
use epiphyte_models::Base;
use epiphyte_ops::random;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::scoring::forgetting::Forgetting;
use crate::scoring::inference::Inference;
use crate::scoring::written_texts::WritingCost;

/// The file of a run's account, in its output directory.
pub const ACCOUNT_FILE: &str = "account.json";

/// Ranks up to this are told exactly.
pub const LARGEST_RANK: usize = 64;

/// The account of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunAccount {
    /// The method's name.
    pub method: String,
    /// Its kind.
    pub kind: Kind,
    /// What the method declares.
    pub declared: ParameterCounts,
    /// What training changed.
    pub change: Change,
    /// What training took.
    pub cost: Cost,
}

/// What training changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Values of the method's trained tensors that are no longer what they were.
    pub moved_parameters: usize,
    /// Values of the method's trained tensors.
    pub trained_values: usize,
    /// What merging makes of the base; none if the method cannot be merged.
    pub merged: Option<MergedChange>,
}

/// How a merged base differs from the base.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergedChange {
    /// Values that differ.
    pub changed_parameters: usize,
    /// Values of the tensors that merging replaces.
    pub replaced_parameters: usize,
    /// The matrices that differ.
    pub matrices: Vec<MatrixChange>,
}

impl MergedChange {
    /// The largest rank of any matrix's change.
    pub fn largest_rank(&self) -> Option<usize> {
        self.matrices.iter().map(|it| it.rank).max()
    }
}

/// How a matrix of a merged base differs from the base's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatrixChange {
    /// The tensor's name.
    pub name: String,
    /// Values that differ.
    pub changed: usize,
    /// The rank of the difference, beyond the rounding of 32-bit numbers; 64 means 64 or more.
    pub rank: usize,
}

/// What training took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of the adapter's tensors on disk.
    pub stored_bytes: u64,
    /// Layers of the base.
    pub layers: usize,
    /// Layers through which gradients went on to what is below them.
    pub gradient_layers: usize,
    /// Bytes in use during optimizer steps; none if the program does not count them, or trained
    /// several runs at once.
    pub memory: Option<MemoryUse>,
    /// The most memory that the process held, other runs in it included.
    pub peak_resident_bytes: Option<u64>,
    /// Training tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Training tokens of the process that ended the run.
    pub tokens: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Seconds, evaluations included.
    pub seconds: f64,
    /// Forward passes with the adapter and without, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inference: Option<Inference>,
    /// The writing of texts in the last evaluation of the process that ended the run, where
    /// evaluations write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writing: Option<WritingCost>,
    /// The score of the base's own task before and after, where there are data for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
}

/// Bytes in use at the peak of an optimizer step, by what needs them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The base's tensors.
    pub base: u64,
    /// The method's tensors and the head.
    pub adapter: u64,
    /// Gradients of trained tensors.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What a forward and backward pass computes and keeps.
    pub activations: u64,
    /// All of it, with the examples and everything else.
    pub peak: u64,
}

impl MemoryUse {
    /// The names of [`MemoryUse::parts`], for tables.
    pub const PARTS: [&str; 7] = [
        "base",
        "adapter and head",
        "gradients",
        "optimizer",
        "activations",
        "other",
        "peak",
    ];

    /// Bytes of each part, of what is none of them, and of all.
    pub fn parts(&self) -> [u64; 7] {
        [
            self.base,
            self.adapter,
            self.gradients,
            self.optimizer,
            self.activations,
            self.other(),
            self.peak,
        ]
    }

    /// What is none of the other parts: examples, tokenizer, the program itself.
    pub fn other(&self) -> u64 {
        let parts = [
            self.base,
            self.adapter,
            self.gradients,
            self.optimizer,
            self.activations,
        ];
        self.peak.saturating_sub(parts.iter().sum())
    }
}

impl Change {
    /// Compares what a method has trained with what it began with, and the merged base with the
    /// base.
    pub fn measure(module: &AdapterModule, base: &Base) -> Self {
        let differs = |one: Tensor<1>, other: Tensor<1>| {
            let (one, other) = (values(one), values(other));
            // A value that is zero now was pruned, or no gradient moved it.
            let moved = |(now, before): &(&f32, &f32)| now != before && **now != 0.0;
            one.iter().zip(&other).filter(moved).count()
        };
        let trained = module.parameters().trained();
        let moved = trained.map(|param| differs(param.flat(), param.initial()));
        let moved_parameters = moved.sum();
        let merged = MergedChange::measure(module, base);
        // The adapter is good without: who merges it is told then.
        if let Err(error) = &merged
            && !matches!(error, MethodError::NotMergeable { .. })
        {
            tracing::warn!("what merging changes is not measured: {error}");
        }
        Self {
            moved_parameters,
            trained_values: module.parameters().count(),
            merged: merged.ok(),
        }
    }

    /// Checks what a method declares.
    ///
    /// # Errors
    /// [`TrainError::Account`] with the declaration that is wrong.
    pub fn check(&self, method: &str, declared: &ParameterCounts) -> Result<(), TrainError> {
        let wrong = |declaration: String, found: String| {
            Err(TrainError::Account {
                method: method.to_owned(),
                declaration,
                found,
            })
        };
        let trainable = declared.trainable_parameters;
        if self.moved_parameters > trainable {
            let found = format!("training moved {}", self.moved_parameters);
            return wrong(format!("{trainable} trainable parameters"), found);
        }
        if trainable > self.trained_values {
            let found = format!("it trains tensors of {} values", self.trained_values);
            return wrong(format!("{trainable} trainable parameters"), found);
        }
        let Some(merged) = &self.merged else {
            return Ok(());
        };
        let changed = declared.changed_parameters;
        if merged.changed_parameters > changed {
            let found = format!("merging changed {}", merged.changed_parameters);
            return wrong(format!("{changed} changed parameters"), found);
        }
        if merged.replaced_parameters > 0 && changed > merged.replaced_parameters {
            let found = format!("merging replaces {}", merged.replaced_parameters);
            return wrong(format!("{changed} changed parameters"), found);
        }
        Ok(())
    }
}

impl MergedChange {
    fn measure(module: &AdapterModule, base: &Base) -> Result<Self, MethodError> {
        let mut change = Self::default();
        let own = base.tensors().iter();
        for (name, tensor) in own.filter(|(name, _)| !base.is_of_head(name)) {
            let Some(merged) = module.method().merged(name, base)? else {
                continue;
            };
            change.replaced_parameters += tensor.count();
            let (before, after) = (values(tensor.to_flat()), values(merged));
            let pairs = before.iter().zip(&after);
            let changed = pairs.filter(|(before, after)| before != after).count();
            change.changed_parameters += changed;
            if let ([rows, columns], 1..) = (&tensor.shape()[..], changed) {
                change.matrices.push(MatrixChange {
                    name: name.clone(),
                    changed,
                    rank: rank_of_difference(&before, &after, [*rows, *columns]),
                });
            }
        }
        Ok(change)
    }
}

impl RunAccount {
    /// The account in a run's directory; none if it has none.
    ///
    /// # Errors
    /// [`TrainError::State`] if the file is malformed.
    pub fn read(directory: &Path) -> Result<Option<Self>, TrainError> {
        let path = directory.join(ACCOUNT_FILE);
        let Ok(text) = epiphyte_io::read_regular(&path) else {
            return Ok(None);
        };
        serde_json::from_slice(&text).map_err(|error| TrainError::State {
            path,
            reason: error.to_string(),
        })
    }

    /// Writes the account into a run's directory.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(self).expect("an account is plain values");
        Ok(epiphyte_io::write(
            &directory.join(ACCOUNT_FILE),
            text.as_bytes(),
        )?)
    }
}

/// The values of a tensor, in memory.
fn values(tensor: Tensor<1>) -> Vec<f32> {
    let values = tensor.inner().try_into_vec_as::<f32>();
    values.expect("parameters are f32 and on a device that can be read")
}

/// The rank of the difference of two matrices, up to [`LARGEST_RANK`].
///
/// The difference times random vectors has the same rank, and few columns. These are made
/// orthogonal, the longest first; what is left of a column when it is rounding alone is no rank.
fn rank_of_difference(before: &[f32], after: &[f32], [rows, columns]: [usize; 2]) -> usize {
    let most = LARGEST_RANK.min(rows).min(columns);
    let difference = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before);
    let difference: Vec<f32> = difference.collect();
    let square = |value: &f32| f64::from(*value).powi(2);
    let norm = |values: &[f32]| values.iter().map(square).sum::<f64>().sqrt();
    // Each entry of the merged matrix was rounded, relative to its size.
    let rounding = f64::from(f32::EPSILON) * (norm(after) + 4.0 * norm(&difference));
    let device = burn::tensor::Device::flex();
    let matrix =
        |values, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, shape), &device);
    let vectors = random::normal(0, columns * most, 1.0);
    let sketch = matrix(difference, [rows, columns]).matmul(matrix(vectors, [columns, most]));
    let sketch = values(sketch.transpose().flatten(0, 1));
    let sketch = sketch
        .chunks(rows)
        .map(|column| column.iter().map(|&it| f64::from(it)).collect());
    let mut left: Vec<Vec<f64>> = sketch.collect();
    let dot = |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
    let mut rank = 0;
    while !left.is_empty() {
        let lengths = left.iter().map(|column| dot(column, column));
        let longest = lengths
            .enumerate()
            .max_by(|one, other| one.1.total_cmp(&other.1));
        let Some((at, square)) = longest.filter(|(_, square)| square.sqrt() > rounding) else {
            break;
        };
        let direction: Vec<f64> = left.swap_remove(at);
        let direction: Vec<f64> = direction.iter().map(|it| it / square.sqrt()).collect();
        for column in &mut left {
            // Twice, because the first time leaves what it rounds.
            for _ in 0..2 {
                let share = dot(column, &direction);
                for (value, part) in column.iter_mut().zip(&direction) {
                    *value -= share * part;
                }
            }
        }
        rank += 1;
    }
    rank
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Device, Tensor};
    use epiphyte_methods::{
        AdapterModule, AnyConfig, KeyStyle, Method, MethodConfig, MethodError, ParameterSet,
        by_name,
    };
    use epiphyte_models::{Adapter, Base, HeadKind, Model, ModelConfig, StandIn, random_model};
    use epiphyte_ops::{Precision, random};
    use serde_json::json;

    use super::{Change, rank_of_difference};

    fn model() -> Model {
        let config = json!({
            "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20,
        });
        let config = ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes());
        let head = HeadKind::Classification { labels: 2 };
        random_model(&config.unwrap(), head, &Device::flex(), Precision::F32, 0).unwrap()
    }

    fn module(config: Box<dyn AnyConfig>, model: &Model) -> AdapterModule {
        let module = AdapterModule::new(config, model.base(), &Device::flex(), 0).unwrap();
        for (number, param) in module.parameters().trained().enumerate() {
            param.set_values(random::normal(7 + number as u64, param.count(), 0.1));
        }
        module
    }

    #[test]
    fn lora_changes_what_it_declares_by_its_rank() {
        let model = model();
        let settings = json!({ "r": 3, "target_modules": ["query", "dense"] });
        let settings = settings.as_object().unwrap().clone();
        let lora = by_name("lora").unwrap().configure(settings).unwrap();
        let lora = module(lora, &model);
        let (change, declared) = (
            Change::measure(&lora, model.base()),
            lora.counts(model.base()),
        );
        change.check("lora", &declared).unwrap();
        assert_eq!(change.moved_parameters, declared.trainable_parameters);
        let merged = change.merged.unwrap();
        assert_eq!(merged.changed_parameters, declared.changed_parameters);
        assert!(merged.matrices.len() >= 8);
        assert!(merged.matrices.iter().all(|it| it.rank == 3), "{merged:?}");
    }

    #[test]
    fn biases_have_no_rank_and_soft_prompts_are_not_merged() {
        let model = model();
        let of = |name: &str| {
            let config = by_name(name).unwrap().configure(Default::default());
            Change::measure(&module(config.unwrap(), &model), model.base())
        };
        let merged = of("bitfit").merged.unwrap();
        assert_eq!(merged.changed_parameters, merged.replaced_parameters);
        assert_eq!(merged.largest_rank(), None);
        assert_eq!(of("prefix-tuning").merged, None);
    }

    #[test]
    fn the_rank_of_a_difference_is_told_beyond_rounding() {
        let [rows, columns] = [40, 100];
        let before = random::normal(1, rows * columns, 1.0);
        assert_eq!(rank_of_difference(&before, &before, [rows, columns]), 0);
        for rank in [1, 5, 40] {
            let (left, right) = (
                random::normal(2, rows * rank, 0.01),
                random::normal(3, rank * columns, 0.01),
            );
            let after = (0..rows * columns).map(|at| {
                let (row, column) = (at / columns, at % columns);
                let product = (0..rank).map(|k| left[row * rank + k] * right[k * columns + column]);
                before[at] + product.sum::<f32>()
            });
            let after: Vec<f32> = after.collect();
            assert_eq!(rank_of_difference(&before, &after, [rows, columns]), rank);
        }
    }

    epiphyte_methods::settings! {
        /// A method that adds one number to a bias and says something else.
        pub struct FalseConfig {
            /// What it declares as trainable.
            trainable: usize = 16;
            /// What it declares as changed.
            changed: usize = 16;
        }
    }

    const BIAS: &str = "bert.encoder.layer.0.output.dense.bias";

    impl MethodConfig for FalseConfig {
        const NAME: &'static str = "false";
        const PEFT_TYPE: &'static str = "FALSE";
        const IN_PEFT: bool = false;
        const SUMMARY: &'static str = "a bias";
        const PAPER: &'static str = "none";
        const KEYS: KeyStyle = KeyStyle::WeightSpace;
        const MERGES: bool = true;

        fn starts_as_identity(&self) -> bool {
            true
        }

        fn build(
            &self,
            base: &Base,
            parameters: &mut ParameterSet,
        ) -> Result<Box<dyn Method>, MethodError> {
            let bias = base.tensor(BIAS).unwrap().clone();
            let param = parameters.declare(BIAS, &[16], epiphyte_methods::Init::Base(bias));
            Ok(Box::new(False {
                config: self.clone(),
                param,
            }))
        }

        fn count(&self, _base: &Base) -> Result<usize, MethodError> {
            Ok(self.trainable)
        }

        fn resolved(&self, _base: &Base) -> Self {
            self.clone()
        }
    }

    #[derive(Debug)]
    struct False {
        config: FalseConfig,
        param: epiphyte_methods::Param,
    }

    impl Adapter for False {
        fn parameter(&self, _name: &str) -> Option<StandIn> {
            None
        }
    }

    impl Method for False {
        fn merged(&self, name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
            Ok((name == BIAS).then(|| self.param.flat()))
        }

        fn changed(&self) -> usize {
            self.config.changed
        }

        fn trainable(&self, _parameters: &ParameterSet) -> usize {
            self.config.trainable
        }
    }

    #[test]
    fn a_declaration_that_is_not_true_is_an_error() {
        let model = model();
        let check = |trainable, changed| {
            let config = FalseConfig { trainable, changed };
            let module = module(Box::new(config), &model);
            let change = Change::measure(&module, model.base());
            let declared = module.counts(model.base());
            change
                .check("false", &declared)
                .map_err(|it| it.to_string())
        };
        check(16, 16).unwrap();
        for (trainable, changed, words) in [
            (15, 16, ["15 trainable parameters", "training moved 16"]),
            (17, 16, ["17 trainable parameters", "tensors of 16 values"]),
            (16, 15, ["15 changed parameters", "merging changed 16"]),
            (16, 17, ["17 changed parameters", "merging replaces 16"]),
        ] {
            let error = check(trainable, changed).unwrap_err();
            let tells = |words: &&str| error.contains(words);
            assert!(words.iter().all(tells), "{error}");
        }
    }
}
