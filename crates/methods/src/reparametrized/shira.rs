//! SHiRA: a few entries of a weight, chosen at random, are trained.
//!
//! Bhardwaj, Pandey, Priyadarshi, Ganapathy, Kadambi, Esteves, Borse, Whatmough, Garrepalli, van
//! Baalen, Teague, Nagel, "Sparse High Rank Adapters", NeurIPS 2024, arXiv 2406.13175, section 3.
//!
//! `y = x Wᵀ + b + x Sᵀ`, where S has `r (in + out)` trained entries and is zero elsewhere: as many
//! values as LoRA's, without a limit on the rank. Their places are drawn as HF PEFT draws them from
//! `random_seed`, or from PyTorch's default seed where none is given, and are stored. The entries
//! start at zero, so nothing changes at first. S is computed once a step.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `Σ r (in + out)` over the targets |
//! | file | `<path>.shira_weight` `[n]`, `<path>.shira_indices` `[2, n]` (i32: rows, columns) |
//! | merges | `W + S` |

use std::sync::{Arc, RwLock};

use burn::tensor::{Device, Tensor};
use epiphyte_models::{Base, LinearInfo};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{NamedTargets, Selection};
use crate::parts::delta::{Change, Deltas};
use crate::parts::spectrum::{SparseMap, check_count, places};
use crate::parts::start::Start;

/// The seed of a new generator of PyTorch's.
const DEFAULT_SEED: u64 = 67_280_421_310_721;

crate::settings! {
    /// The settings of SHiRA, under HF PEFT's names.
    pub struct ShiraConfig {
        /// Rank of the LoRA whose number of values is trained.
        r: usize = 32, flag "rank", in Size;
        /// Seed of the places, apart from the run's.
        random_seed: Option<u64> = None, unset "that of PyTorch";
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: NamedTargets = NamedTargets::default();
    }
}

impl ShiraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its number of values.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let count = self.r * (linear.inputs + linear.outputs);
            check_count(Self::NAME, ("r", self.r), count, linear, base)?;
            Ok((linear, count))
        });
        targets.collect()
    }
}

impl MethodConfig for ShiraConfig {
    const NAME: &'static str = "shira";
    const PEFT_TYPE: &'static str = "SHIRA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "entries of the weights of chosen linear layers, drawn at random";
    const PAPER: &'static str = "Bhardwaj et al. 2024, arXiv 2406.13175";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 2 }),
            json!({
                "r": 1, "random_seed": 3, "init_weights": "random", "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let deltas = self.targets(base)?.into_iter().map(|(linear, count)| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let size = [linear.outputs, linear.inputs];
            let init = Init::Normal { std: 1.0 };
            let init = self.init_weights.choose(Init::Zeros, init);
            let values = parameters.declare(key("shira_weight"), &[count], init);
            let mut places = places(size, count, self.random_seed.unwrap_or(DEFAULT_SEED));
            places.sort_unstable();
            let entries = Entries::new(size, places, parameters.device());
            let entries = Arc::new(RwLock::new(entries));
            let change = {
                let entries = entries.clone();
                parameters.derived(key("shira_change"), &size, move || {
                    let entries = entries.read().expect("no holder of the lock panics");
                    entries.map.apply(values.flat())
                })
            };
            let shira = Shira {
                key: key("shira_indices"),
                size,
                count,
                device: parameters.device().clone(),
                entries,
                change,
            };
            (linear, shira)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self
            .targets(base)?
            .into_iter()
            .map(|(_, count)| count)
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    /// How the places were chosen, which are stored.
    const IGNORED: &'static [&'static str] = &["mask_type"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("mask_type".to_owned(), json!("random")),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// Where the trained entries of a weight are.
#[derive(Debug)]
struct Entries {
    /// Rows, then columns.
    indices: Vec<i64>,
    map: SparseMap,
}

impl Entries {
    /// Of places in a matrix `[out, in]`, row-major.
    fn new(size: [usize; 2], places: Vec<usize>, device: &Device) -> Self {
        let rows = places.iter().map(|place| (place / size[1]) as i64);
        let columns = places.iter().map(|place| (place % size[1]) as i64);
        let indices = rows.chain(columns).collect();
        let places = places.iter().map(|place| *place as i32).collect();
        Self {
            indices,
            map: SparseMap::at(size, places, device),
        }
    }
}

/// SHiRA on one linear layer.
#[derive(Debug)]
struct Shira {
    /// The key of the places in files.
    key: String,
    /// `[out, in]`
    size: [usize; 2],
    count: usize,
    device: Device,
    entries: Arc<RwLock<Entries>>,
    /// S, `[out, in]`.
    change: Param,
}

impl Change for Shira {
    fn matrix(&self) -> Tensor<2> {
        self.change.get()
    }

    fn changed(&self, _linear: &LinearInfo) -> usize {
        self.count
    }

    fn stored(&self) -> Vec<Stored> {
        let entries = self.entries.read().expect("no holder of the lock panics");
        let (shape, indices) = ([2, self.count], entries.indices.clone());
        let key = &self.key;
        vec![Stored::integers(key, &shape, IntegerType::I32, indices)]
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let Some(indices) = file.take_integers(&self.key, &[2, self.count])? else {
            return Ok(());
        };
        let [outputs, inputs] = self.size;
        let (rows, columns) = indices.split_at(self.count);
        let place = |(row, column): (&i64, &i64)| {
            let (row, column) = (usize::try_from(*row).ok()?, usize::try_from(*column).ok()?);
            (row < outputs && column < inputs).then_some(row * inputs + column)
        };
        let places: Option<Vec<usize>> = rows.iter().zip(columns).map(place).collect();
        let places = places.ok_or_else(|| MethodError::Configuration {
            method: ShiraConfig::NAME,
            reason: format!(
                "`{}` must hold rows below {outputs} and columns below {inputs}",
                self.key
            ),
        })?;
        let entries = Entries::new(self.size, places, &self.device);
        *self.entries.write().expect("no holder of the lock panics") = entries;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::StoredValues;
    use crate::small_bert::{bert, bert_base_count, module, set_random};

    #[test]
    fn only_the_chosen_entries_change() {
        let model = bert();
        let module = module(&model, "shira", json!({ "r": 1 }));
        let path = "bert.encoder.layer.0.attention.self.query";
        let values = set_random(&module, &format!("{path}.shira_weight"));
        module.parameters().derive(false);
        let stored = module.stored();
        let indices = stored
            .iter()
            .find(|it| it.key == format!("{path}.shira_indices"));
        let indices = indices.unwrap();
        assert_eq!(indices.shape, [2, 16]);
        let StoredValues::Integers(_, indices) = &indices.values else {
            panic!("indices are whole numbers");
        };
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let after = module.merged(&name, model.base()).unwrap().unwrap();
        let after = after.try_into_vec_as::<f32>().unwrap();
        let mut expected = before.clone();
        for (at, value) in values.iter().enumerate() {
            expected[indices[at] as usize * 8 + indices[16 + at] as usize] += value;
        }
        assert_eq!(after, expected);
        assert_eq!(module.counts(model.base()).changed_parameters, 2 * 2 * 16);
    }

    #[test]
    fn counts_are_those_of_lora() {
        assert_eq!(bert_base_count("shira", json!({ "r": 8 }), 0), 294_912);
    }
}
