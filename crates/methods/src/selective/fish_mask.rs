//! FISH Mask: the entries with the largest Fisher information are trained, all others stay frozen.
//!
//! Sung, Nair, Raffel, "Training Neural Networks with Fixed Sparse Masks", NeurIPS 2021, arXiv
//! 2111.09839; code varunnair18/FISH.
//!
//! The diagonal of the empirical Fisher information, `F_i = Σ_n (∂ log p(y_n | x_n) / ∂θ_i)²` over
//! `num_samples` training examples with their labels, one at a time (the code's `label-square`,
//! which the paper uses). The `k` entries of the base with the largest `F_i`, over all tensors
//! together, are trained; of equal ones the first. The task's head is not ranked and always
//! trained: of the share `keep_ratio` of all values, `k` are those that the head leaves,
//! `k = ⌊keep_ratio · |θ|⌋ − |head|`.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `k` entries |
//! | file | `<name>.indices` and `<name>.values` of each tensor with a changed entry |
//! | merges | values are put in place |
//!
//! Differences from the code: dropout is off while the information is taken (the code leaves the
//! mode as it finds it), and the optimizer keeps no state for tensors of which no entry is trained.

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Param, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::sparse::{MaskRule, Sparse};

crate::settings! {
    /// The settings of FISH Mask, under the names of its code.
    #[derive(Copy)]
    pub struct FishMaskConfig {
        /// Share of all values to train, the head's included.
        keep_ratio: f64 = 0.005, in Positive;
        /// Training examples from which the Fisher information is taken, or all if there are fewer.
        num_samples: usize = 1024, in AtLeastOne;
    }
}

impl MethodConfig for FishMaskConfig {
    const NAME: &'static str = "fish-mask";
    const PEFT_TYPE: &'static str = "FISH_MASK";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "the entries of the base with the largest Fisher information";
    const PAPER: &'static str = "Sung et al. 2021, arXiv 2111.09839";
    const CLAIMS: Option<Claims> = Some(Claims {
        saves_memory: None,
        ..Claims::survey("none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "keep_ratio": 0.1 }),
            json!({ "keep_ratio": 1.0, "num_samples": 2 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let rule = Fisher {
            examples: self.num_samples,
        };
        let entries = self.count(base)?;
        let sparse = Sparse::new(Self::NAME, rule, entries, base, parameters)?;
        Ok(Box::new(sparse))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let all: usize = base.tensors().values().map(|it| it.count()).sum();
        let maskable = base.count();
        let head = all - maskable;
        let kept = (all as f64 * self.keep_ratio) as usize;
        let entries = kept.saturating_sub(head);
        if entries == 0 || entries > maskable {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "keep_ratio",
                value: self.keep_ratio.to_string(),
                expected: format!(
                    "of the model's {all} values it must keep more than the {head} of the head, \
                     and at most all"
                ),
            });
        }
        Ok(entries)
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// Scores entries by their Fisher information.
#[derive(Debug)]
struct Fisher {
    examples: usize,
}

impl MaskRule for Fisher {
    fn scores(
        &self,
        _stage: usize,
        params: &[Param],
        adapter: &dyn Adapter,
        data: &mut dyn CalibrationData,
    ) -> Result<Option<Vec<Vec<f32>>>, MethodError> {
        let examples = self.examples.min(data.examples());
        let mut fisher: Vec<Option<Tensor<1>>> = vec![None; params.len()];
        data.gradients(examples, Each::Example, params, adapter, &mut |gradients| {
            for (sum, param) in fisher.iter_mut().zip(params) {
                let Some(gradient) = gradients.get(param) else {
                    continue;
                };
                let square = gradient.clone() * gradient.clone();
                *sum = Some(match sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        })?;
        let scores = fisher
            .into_iter()
            .zip(params)
            .map(|(sum, param)| match sum {
                Some(sum) => {
                    let values = sum.try_into_vec_as::<f32>();
                    values.expect("gradients are f32 and on a device that can be read")
                }
                None => vec![0.0; param.count()],
            });
        Ok(Some(scores.collect()))
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_models::Adapter;
    use serde_json::json;

    use super::{FishMaskConfig, Fisher};
    use crate::parts::sparse::MaskRule;
    use crate::test_data::{Examples, gradients, model};
    use crate::{MethodConfig, MethodError, Param, ParameterSet, Stored};

    fn scores(examples: usize, data: &mut Examples) -> (Vec<Param>, Vec<Vec<f32>>) {
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        FishMaskConfig::default_for_tests()
            .build(model().base(), &mut parameters)
            .unwrap();
        let params: Vec<Param> = parameters.trained().cloned().collect();
        let nothing: &dyn Adapter = &epiphyte_models::Identity;
        let scores = Fisher { examples }.scores(0, &params, nothing, data);
        (params, scores.unwrap().unwrap())
    }

    impl FishMaskConfig {
        fn default_for_tests() -> Self {
            serde_json::from_value(json!({ "keep_ratio": 0.1 })).unwrap()
        }
    }

    /// Against a loop over single examples, in f64.
    #[test]
    fn scores_are_sums_of_squared_gradients_of_single_examples() {
        let mut data = Examples {
            count: 5,
            ..Examples::default()
        };
        for asked in [3, 5, 9] {
            let (params, scores) = scores(asked, &mut data);
            for (param, found) in params.iter().zip(scores) {
                let mut expected = vec![0.0f64; param.count()];
                for example in 0..asked.min(5) as u64 {
                    let gradients = gradients(&params, example);
                    let gradient = gradients.get(param).unwrap().clone();
                    let gradient = gradient.try_into_vec_as::<f32>().unwrap();
                    for (sum, value) in expected.iter_mut().zip(gradient) {
                        *sum += f64::from(value).powi(2);
                    }
                }
                for (found, expected) in found.into_iter().zip(expected) {
                    assert!((f64::from(found) - expected).abs() <= 1e-6 * expected.max(1e-6));
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_examples_does_not_matter() {
        let mut data = Examples {
            count: 6,
            ..Examples::default()
        };
        let (_, forward) = scores(6, &mut data);
        data.reversed = true;
        let (_, backward) = scores(6, &mut data);
        for (a, b) in forward.concat().into_iter().zip(backward.concat()) {
            assert!((a - b).abs() <= 1e-5 * a.max(1e-5), "{a} {b}");
        }
    }

    /// The entries chosen are those of the largest scores, found by sorting.
    #[test]
    fn the_mask_holds_the_largest_scores_of_all_tensors_together() {
        let mut data = Examples {
            count: 4,
            ..Examples::default()
        };
        let (params, scores) = scores(4, &mut data);
        let config = FishMaskConfig {
            num_samples: 4,
            ..FishMaskConfig::default_for_tests()
        };
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let model = model();
        let mut method = config.build(model.base(), &mut parameters).unwrap();
        let head = ParameterSet::new(&Default::default(), 0);
        method.begin_stage(0, &head, &mut data).unwrap();
        let mut all: Vec<(f32, usize, i32)> = Vec::new();
        for (tensor, scores) in scores.iter().enumerate() {
            all.extend(
                (0..)
                    .zip(scores)
                    .map(|(index, score)| (*score, tensor, index)),
            );
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let k = config.count(model.base()).unwrap();
        let expected = params.iter().enumerate().filter_map(|(tensor, param)| {
            let mine = all[..k].iter().filter(|entry| entry.1 == tensor);
            let mut indices: Vec<i32> = mine.map(|entry| entry.2).collect();
            indices.sort_unstable();
            let key = format!("{}.mask", param.key());
            (!indices.is_empty()).then(|| Stored::i32(key, indices))
        });
        assert_eq!(method.state(), expected.collect::<Vec<_>>());
    }

    /// Written out for the small BERT with a head of 3 x 16 + 3 values.
    #[test]
    fn the_head_is_taken_off_the_kept_values() {
        let model = model();
        let (all, head) = (model.base().count() + 51, 51);
        for (ratio, expected) in [
            (0.1, all / 10 - head),
            (0.5, all / 2 - head),
            (1.0, all - head),
        ] {
            let config = FishMaskConfig {
                keep_ratio: ratio,
                ..FishMaskConfig::default()
            };
            assert_eq!(config.count(model.base()).unwrap(), expected);
        }
        for ratio in [0.001, 51.5 / all as f64, 1.1] {
            let config = FishMaskConfig {
                keep_ratio: ratio,
                ..FishMaskConfig::default()
            };
            let error = config.count(model.base()).unwrap_err();
            let is_value = matches!(
                error,
                MethodError::Value {
                    key: "keep_ratio",
                    ..
                }
            );
            assert!(is_value, "{error}");
        }
    }
}
