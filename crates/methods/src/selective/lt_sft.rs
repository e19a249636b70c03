//! LT-SFT: the entries that move farthest in full fine-tuning are trained again, all others stay
//! frozen.
//!
//! Ansell, Ponti, Korhonen, Vulić, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL
//! 2022, arXiv 2110.07560, section 3.2; code cambridgeltl/composable-sft.
//!
//! Stage 0 trains every value of the base, `θ₀ → θ₁`. The mask holds the `K` entries of the base
//! with the largest `|θ₁ − θ₀|` over all tensors together; then everything, the task's head
//! included, starts again from its values before stage 0, and stage 1 trains the masked entries and
//! the head. Each stage has its own learning-rate schedule and a fresh optimizer.
//!
//! | | |
//! | --- | --- |
//! | trains | every value in stage 0, `K` entries in stage 1, which are what is counted |
//! | changes | `K` entries |
//! | file | `<name>.indices` and `<name>.values` of each tensor with a changed entry |
//! | merges | values are put in place |
//!
//! To the loss may be added `full_l1_reg · Σ |θ − θ₀| / |θ|` in stage 0 and `sparse_l1_reg` times
//! the same in stage 1; the code takes 0.1 for languages and 0 for tasks.
//!
//! Differences from the code: of equal moves the first are taken, so that the mask has exactly `K`
//! entries; there is one iteration.

use epiphyte_models::{Adapter, Base};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stage};
use crate::framework::parameters::{Param, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::sparse::{MaskRule, Sparse};

crate::settings! {
    /// The settings of LT-SFT; those of the mask are under the names of its code.
    #[derive(Copy)]
    pub struct LtSftConfig {
        /// Number of entries of the base to train in the second stage.
        ft_params_num: Option<usize> = None, in AtLeastOne, unset "set by --ft-params-proportion";
        /// Share of the base's values to train in the second stage, if no number is set.
        ft_params_proportion: f64 = 0.01, in Positive;
        /// Steps of the first stage, which trains every value.
        full_ft_steps: Option<u64> = None, in AtLeastOne, unset "set by --full-ft-fraction";
        /// Share of the run's steps that is the first stage, if no number is set; either stage has
        /// at least one step.
        full_ft_fraction: f64 = 0.5, in Fraction;
        /// Factor on the mean distance of all values from the base's, added to the loss of the
        /// first stage.
        full_l1_reg: f64 = 0.0, in NotNegative;
        /// The same in the second stage.
        sparse_l1_reg: f64 = 0.0, in NotNegative;
    }
}

impl MethodConfig for LtSftConfig {
    const NAME: &'static str = "lt-sft";
    const PEFT_TYPE: &'static str = "LT_SFT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "the entries of the base that full fine-tuning moves farthest";
    const PAPER: &'static str = "Ansell et al. 2022, arXiv 2110.07560";
    const CLAIMS: Option<Claims> = Some(Claims {
        saves_memory: None,
        ..Claims::survey("none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-4;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "ft_params_num": 30 }),
            json!({ "full_l1_reg": 0.1, "sparse_l1_reg": 0.1 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let rule = FarthestMoved {
            full_ft_steps: self.full_ft_steps,
            full_ft_fraction: self.full_ft_fraction,
            l1_reg: [self.full_l1_reg, self.sparse_l1_reg],
        };
        let entries = self.count(base)?;
        let sparse = Sparse::new(Self::NAME, rule, entries, base, parameters)?;
        Ok(Box::new(sparse))
    }

    /// `K`, the entries of stage 1.
    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let maskable = base.count();
        let share = (maskable as f64 * self.ft_params_proportion) as usize;
        let entries = self.ft_params_num.unwrap_or(share);
        if (1..=maskable).contains(&entries) {
            return Ok(entries);
        }
        let (key, value) = match self.ft_params_num {
            Some(number) => ("ft_params_num", number.to_string()),
            None => (
                "ft_params_proportion",
                self.ft_params_proportion.to_string(),
            ),
        };
        Err(MethodError::Value {
            method: Self::NAME,
            key,
            value,
            expected: format!("it must choose from 1 to all {maskable} values of the base"),
        })
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// Scores entries by how far the first stage moved them.
#[derive(Debug)]
struct FarthestMoved {
    full_ft_steps: Option<u64>,
    full_ft_fraction: f64,
    /// Of the first and the second stage.
    l1_reg: [f64; 2],
}

impl MaskRule for FarthestMoved {
    fn stages(&self, steps: u64) -> Vec<Stage> {
        let share = (self.full_ft_fraction * steps as f64).round() as u64;
        let share = share.min(steps.saturating_sub(1)).max(1);
        let full = self.full_ft_steps.unwrap_or(share).min(steps);
        vec![Stage::fresh(full), Stage::fresh(steps - full)]
    }

    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        match self.stages(steps)[..] {
            [_, Stage { steps: 1.., .. }] => Ok(()),
            _ => Err(MethodError::Value {
                method: LtSftConfig::NAME,
                key: "full_ft_steps",
                value: self.full_ft_steps.unwrap_or(1).to_string(),
                expected: format!("it must leave a step of the run's {steps} to the second stage"),
            }),
        }
    }

    fn regularization(&self, masked: bool) -> f64 {
        self.l1_reg[usize::from(masked)]
    }

    fn scores(
        &self,
        stage: usize,
        params: &[Param],
        _adapter: &dyn Adapter,
        _data: &mut dyn CalibrationData,
    ) -> Result<Option<Vec<Vec<f32>>>, MethodError> {
        if stage == 0 {
            return Ok(None);
        }
        let moves = params.iter().map(|param| {
            let moved = (param.flat().inner() - param.initial()).abs();
            let moved = moved.try_into_vec_as::<f32>();
            moved.expect("parameters are f32 and on a device that can be read")
        });
        Ok(Some(moves.collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{FarthestMoved, LtSftConfig};
    use crate::framework::settings::parse;
    use crate::parts::sparse::MaskRule;
    use crate::test_data::{Examples, model, move_all};
    use crate::{MethodConfig, ParameterSet, Stored};

    fn config(settings: Value) -> LtSftConfig {
        parse(settings.as_object().unwrap()).unwrap()
    }

    /// The mask is that of a sort of `|θ₁ - θ₀|`, and stage 1 starts at `θ₀` bit for bit.
    #[test]
    fn the_mask_holds_the_farthest_moves_and_everything_starts_again() {
        let model = model();
        let config = config(json!({ "ft_params_num": 40 }));
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let mut method = config.build(model.base(), &mut parameters).unwrap();
        let head = ParameterSet::new(&Default::default(), 0);
        let mut data = Examples::default();
        method.begin_stage(0, &head, &mut data).unwrap();
        assert_eq!(method.state(), [], "stage 0 has no mask");

        let before: Vec<Vec<f32>> = parameters.trained().map(|param| param.to_vec()).collect();
        move_all(parameters.trained());
        let mut moves: Vec<(f32, &str, i32)> = Vec::new();
        for (param, before) in parameters.trained().zip(&before) {
            let now = param.to_vec();
            let moved = now
                .iter()
                .zip(before)
                .map(|(now, before)| (now - before).abs());
            moves.extend((0..).zip(moved).map(|(index, by)| (by, param.key(), index)));
        }
        moves.sort_by(|a, b| b.0.total_cmp(&a.0));

        method.begin_stage(1, &head, &mut data).unwrap();
        for (param, before) in parameters.trained().zip(&before) {
            assert_eq!(param.to_vec(), *before, "{}", param.key());
        }
        let expected = parameters.trained().filter_map(|param| {
            let mine = moves[..40].iter().filter(|(_, key, _)| *key == param.key());
            let mut indices: Vec<i32> = mine.map(|entry| entry.2).collect();
            indices.sort_unstable();
            let key = format!("{}.mask", param.key());
            (!indices.is_empty()).then(|| Stored::i32(key, indices))
        });
        assert_eq!(method.state(), expected.collect::<Vec<_>>());
        assert_eq!(method.changed(), 40);
    }

    #[test]
    fn the_penalty_is_the_mean_distance_from_the_base() {
        let model = model();
        let config = config(json!({ "full_l1_reg": 0.5, "sparse_l1_reg": 2.0 }));
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let mut method = config.build(model.base(), &mut parameters).unwrap();
        for param in parameters.trained() {
            param.update(|values| values + 0.25);
        }
        let penalty = |method: &dyn crate::Method| {
            let penalty = method.penalty().unwrap();
            penalty.try_into_vec_as::<f32>().unwrap()[0]
        };
        assert!((penalty(&*method) - 0.125).abs() < 1e-4);
        let head = ParameterSet::new(&Default::default(), 0);
        method
            .begin_stage(1, &head, &mut Examples::default())
            .unwrap();
        assert_eq!(penalty(&*method), 0.0, "everything starts again");
        let param = parameters.trained().next().unwrap();
        param.update(|values| values + 1.0);
        let expected = 2.0 * param.count() as f32 / model.base().count() as f32;
        assert!((penalty(&*method) - expected).abs() < 1e-4);
    }

    #[test]
    fn the_stages_have_the_steps_of_the_run() {
        let steps = |settings: Value, steps: u64| {
            let config = config(settings);
            let rule = FarthestMoved {
                full_ft_steps: config.full_ft_steps,
                full_ft_fraction: config.full_ft_fraction,
                l1_reg: [0.0; 2],
            };
            let stages = rule.stages(steps).into_iter();
            stages.map(|stage| stage.steps).collect::<Vec<_>>()
        };
        assert_eq!(steps(json!({}), 10), [5, 5]);
        assert_eq!(steps(json!({ "full_ft_fraction": 0.25 }), 10), [3, 7]);
        assert_eq!(steps(json!({ "full_ft_fraction": 0.0 }), 10), [1, 9]);
        assert_eq!(steps(json!({ "full_ft_steps": 4 }), 10), [4, 6]);
        assert_eq!(steps(json!({}), 2), [1, 1]);
    }

    #[test]
    fn a_run_without_a_second_stage_is_refused() {
        for (settings, steps, fits) in [
            (json!({}), 1, false),
            (json!({}), 2, true),
            (json!({ "full_ft_steps": 4 }), 4, false),
            (json!({ "full_ft_steps": 4 }), 5, true),
        ] {
            let mut parameters = ParameterSet::new(&Default::default(), 0);
            let method = config(settings)
                .build(model().base(), &mut parameters)
                .unwrap();
            assert_eq!(method.check_steps(steps).is_ok(), fits);
        }
    }

    #[test]
    fn as_many_entries_are_chosen_as_the_settings_say() {
        let model = model();
        let count = |settings| config(settings).count(model.base());
        let all = model.base().count();
        assert_eq!(count(json!({})).unwrap(), all / 100);
        assert_eq!(count(json!({ "ft_params_proportion": 1.0 })).unwrap(), all);
        assert_eq!(count(json!({ "ft_params_num": 7 })).unwrap(), 7);
        for wrong in [
            json!({ "ft_params_num": all + 1 }),
            json!({ "ft_params_proportion": 1e-9 }),
        ] {
            let error = count(wrong).unwrap_err();
            assert!(
                error.to_string().contains("it must choose from 1"),
                "{error}"
            );
        }
    }
}
