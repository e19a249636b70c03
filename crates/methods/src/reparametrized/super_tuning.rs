//! Super-Tuning: the weight's largest entries are trained; Supra has a LoRA on top.
//!
//! Ilin, Zmushko, Richtárik, "Super-Tuning", arXiv 2607.09287, as HF PEFT has it.
//!
//! `y = x (W + S)ᵀ + b`, where `S: [out, in]` is zero but at the `k` = ⌊out · in · (1 − sparsity)⌋
//! positions at which `|W|` is largest (or smallest, with `select_top` false). With `r`, Supra adds
//! LoRA's path, `+ s · (dropout(x) Aᵀ) Bᵀ` with `A: [r, in]`, `B: [out, r]` and `s = α / r`. The
//! values of `S` and `B` start at zero, so nothing changes at first; `A` starts uniform in
//! `±1/√in`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ k` over the targets, for Supra `+ r (in + out)` |
//! | changes | the same values of the weight; for Supra all of it |
//! | file | `<path>.supertuning_values` `[k]`, `.supertuning_indices` `[k]` (row-major positions, the largest entry first), `.supertuning_lora_A.weight`, `.supertuning_lora_B.weight` |
//! | merges | `W + S + s B A` |

use std::sync::OnceLock;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank, Weight, add, add_low_rank, fork, linear};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{NamedTargets, Selection};
use crate::parts::delta::{Change, Deltas, frozen_weight};

crate::settings! {
    /// The settings of Super-Tuning, under HF PEFT's names.
    pub struct SuperTuningConfig {
        /// Share of the weight's entries that stay as they are.
        sparsity: f64 = 0.99, in Fraction;
        /// Train the largest entries; the smallest if false.
        select_top: bool = true, as Boolean;
        /// Rank of a LoRA on top (Supra).
        r: Option<usize> = None, flag "rank", in Size, unset "no LoRA";
        /// Scale of that LoRA: it is multiplied by alpha / rank.
        #[serde(serialize_with = "super::lora::optional_alpha")]
        lora_alpha: Option<f64> = None, flag "alpha", in SinglePrecision, unset "twice the rank";
        /// Dropout on the input of that LoRA.
        lora_dropout: f64 = 0.0, flag "dropout", in Fraction;
        /// Store the positions, which follow from the base.
        save_precomputed_indices: bool = true, as Boolean;

        ..targets: NamedTargets = NamedTargets::default();
    }
}

impl SuperTuningConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The number of values of each target.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        if self.r.is_none() && self.lora_alpha.is_some() {
            return Err(MethodError::Configuration {
                method: Self::NAME,
                reason: "`lora_alpha` is set without `r`: give the rank of Supra's LoRA, or \
                         neither"
                    .to_owned(),
            });
        }
        let targets = self.selection().of(base)?.into_iter();
        let counted = targets.map(|linear| {
            let count = (linear.inputs * linear.outputs) as f64 * (1.0 - self.sparsity);
            match count as usize {
                0 => Err(MethodError::Value {
                    method: Self::NAME,
                    key: "sparsity",
                    value: self.sparsity.to_string(),
                    expected: format!("that leaves no entry of `{}` to train", linear.site.path),
                }),
                count => Ok((linear, count)),
            }
        });
        counted.collect()
    }
}

impl MethodConfig for SuperTuningConfig {
    const NAME: &'static str = "super-tuning";
    const PEFT_TYPE: &'static str = "SUPERTUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "the largest entries of the weights of chosen linear layers";
    const PAPER: &'static str = "Ilin et al. 2026, arXiv 2607.09287";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({
                "sparsity": 0.95, "select_top": false, "r": 2, "target_modules": "all-linear",
                "save_precomputed_indices": false,
            }),
            json!({ "sparsity": 0.9 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut deltas = Vec::new();
        for (linear, count) in self.targets(base)? {
            let (path, outputs) = (&linear.site.path, linear.outputs);
            let key = |name| format!("{path}.supertuning_{name}");
            let weight = frozen_weight(base, linear);
            let lora = self.r.map(|r| {
                let (a, init) = (key("lora_A.weight"), Init::kaiming(linear.inputs));
                let a = parameters.declare(a, &[r, linear.inputs], init);
                let b = parameters.declare(key("lora_B.weight"), &[outputs, r], Init::Zeros);
                let alpha = self.lora_alpha.unwrap_or(2.0 * r as f64);
                (a, b, (alpha / r as f64) as f32)
            });
            let sparse = Super {
                indices: OnceLock::new(),
                values: parameters.declare(key("values"), &[count], Init::Zeros),
                indices_key: key("indices"),
                stores_indices: self.save_precomputed_indices,
                select_top: self.select_top,
                lora,
                dropout: self.lora_dropout,
                weight,
            };
            if !self.save_precomputed_indices && sparse.has_ties() {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "save_precomputed_indices",
                    value: "false".to_owned(),
                    expected: format!(
                        "entries of `{path}` are of equal size, so which are trained, and in \
                         which order, does not follow from the base; store the positions"
                    ),
                });
            }
            deltas.push((linear, sparse));
        }
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let rank = self.r.unwrap_or(0);
        let targets = self.targets(base)?.into_iter();
        Ok(targets
            .map(|(linear, count)| count + rank * (linear.inputs + linear.outputs))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lora_alpha: self.lora_alpha.or(self.r.map(|r| 2.0 * r as f64)),
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = &["lora_dropout"];

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// Super-Tuning on one linear layer.
#[derive(Debug)]
struct Super {
    /// Row-major positions in the weight; found when they are first needed, if no file says them.
    indices: OnceLock<Vec<i64>>,
    indices_key: String,
    stores_indices: bool,
    select_top: bool,
    values: Param,
    /// `A`, `B` and the scale.
    lora: Option<(Param, Param, f32)>,
    dropout: f64,
    weight: FrozenMatrix,
}

impl Super {
    /// The sizes of the weight's entries, and the positions that are trained, in order, with the
    /// next one, if there is one.
    fn ranked(&self) -> (Vec<f32>, Vec<u32>) {
        let sizes = self.weight.to_tensor().abs().try_into_vec_as::<f32>();
        let sizes = sizes.expect("a base is f32 and on a device that can be read");
        let mut ranked: Vec<u32> = (0..sizes.len() as u32).collect();
        let size = |at: &u32| sizes[*at as usize];
        let order = |a: &u32, b: &u32| match self.select_top {
            true => size(b).total_cmp(&size(a)),
            false => size(a).total_cmp(&size(b)),
        };
        // Of equal ones the first comes first.
        let order = |a: &u32, b: &u32| order(a, b).then(a.cmp(b));
        let count = (self.values.count() + 1).min(ranked.len());
        if count < ranked.len() {
            ranked.select_nth_unstable_by(count, order);
            ranked.truncate(count);
        }
        ranked.sort_unstable_by(order);
        (sizes, ranked)
    }

    /// Whether two that are trained, or the last and the one that just is not, are of equal size.
    fn has_ties(&self) -> bool {
        let (sizes, ranked) = self.ranked();
        let mut pairs = ranked.windows(2);
        pairs.any(|pair| sizes[pair[0] as usize] == sizes[pair[1] as usize])
    }

    fn indices(&self) -> &[i64] {
        self.indices.get_or_init(|| {
            let ranked = self.ranked().1.into_iter().map(i64::from);
            ranked.take(self.values.count()).collect()
        })
    }

    /// `S`, `[out, in]`.
    fn sparse(&self) -> Tensor<2> {
        let [rows, columns] = self.weight.shape();
        let values = self.values.flat();
        let places = TensorData::new(self.indices().to_vec(), [values.dims()[0]]);
        let places = Tensor::<1, Int>::from_data(places, &values.device());
        let zeros = Tensor::<1>::zeros([rows * columns], &values.device());
        zeros
            .select_assign(0, places, values, IndexingUpdateOp::Add)
            .reshape([rows, columns])
    }
}

impl Change for Super {
    fn matrix(&self) -> Tensor<2> {
        match &self.lora {
            Some((a, b, scale)) => self.sparse() + b.get::<2>().matmul(a.get()) * *scale,
            None => self.sparse(),
        }
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        // The product reads the input too; behind a fork, the others have one gradient.
        let [x, _] = fork(product.input().clone());
        let sparse = linear(x.clone(), &Weight::Trained(self.sparse()), None);
        let y = add(product.compute(), sparse);
        match &self.lora {
            None => y,
            Some((a, b, scale)) => {
                let path = LowRank {
                    a: a.get(),
                    b: b.get(),
                    scale: *scale,
                    dropout,
                };
                add_low_rank(y, x, path)
            }
        }
    }

    fn changed(&self, linear: &LinearInfo) -> usize {
        match &self.lora {
            Some(_) => linear.inputs * linear.outputs,
            None => self.values.count(),
        }
    }

    fn stored(&self) -> Vec<Stored> {
        let indices = self.stores_indices.then(|| {
            let indices = self.indices().to_vec();
            let (key, shape) = (&self.indices_key, [indices.len()]);
            Stored::integers(key, &shape, IntegerType::I32, indices)
        });
        indices.into_iter().collect()
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        if !self.stores_indices {
            return Ok(());
        }
        let Some(indices) = file.take_integers(&self.indices_key, &[self.values.count()])? else {
            return Ok(());
        };
        let [rows, columns] = self.weight.shape();
        let entries = (rows * columns) as i64;
        if let Some(outside) = indices.iter().find(|at| !(0..entries).contains(*at)) {
            return Err(MethodError::Configuration {
                method: SuperTuningConfig::NAME,
                reason: format!(
                    "`{}` has {outside}, but the weight has {entries} entries",
                    self.indices_key
                ),
            });
        }
        self.indices = OnceLock::from(indices);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, module, set_random};

    #[test]
    fn the_largest_entries_move_and_no_others() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let module = module(&model, "super-tuning", json!({ "sparsity": 0.9 }));
        let values = set_random(&module, &format!("{path}.supertuning_values"));
        // int(64 · 0.1), where 1 - 0.9 is a little less than 0.1.
        assert_eq!(values.len(), 6);
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let merged = module.merged(&name, model.base()).unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        let mut order: Vec<usize> = (0..64).collect();
        order.sort_by(|a, b| before[*b].abs().total_cmp(&before[*a].abs()));
        for (rank, at) in order.into_iter().enumerate() {
            let moved = values.get(rank).copied().unwrap_or(0.0);
            assert!((merged[at] - before[at] - moved).abs() < 1e-6, "{rank}");
        }
    }

    #[test]
    fn alpha_without_rank_and_empty_supports_are_refused() {
        let model = bert();
        for (settings, words) in [
            (
                json!({ "lora_alpha": 4 }),
                "`lora_alpha` is set without `r`",
            ),
            (json!({ "sparsity": 0.999 }), "`sparsity` is 0.999"),
        ] {
            let settings = settings.as_object().unwrap().clone();
            let config = crate::by_name("super-tuning")
                .unwrap()
                .configure(settings)
                .unwrap();
            let error = config.count(model.base()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
