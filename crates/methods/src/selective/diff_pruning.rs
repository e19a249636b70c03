//! Diff pruning: a sparse difference to the base, found by gates that are trained with it.
//!
//! Guo, Rush, Kim, "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021, arXiv
//! 2012.07463, sections 3 and 4; code dguo98/DiffPruning.
//!
//! Stage 0 trains for each entry of the base a difference `w`, at first 0, and a gate `z` in `[0,
//! 1]`, `θ = θ₀ + z ⊙ w`. A gate is hard concrete (Louizos et al. 2018): with `u` uniform in
//! `[1e-4, 1 - 1e-4)`, drawn anew each step, `s = σ(log u - log(1 - u) + α)` and `z = min(max(3 s -
//! 1.5, 0), 1)`. With `diff_structured` each tensor has one more gate, by which all of its entries
//! are multiplied. To the loss is added `diff_l0 · Σ P(z > 0)` over all gates, where `P(z > 0) =
//! σ(α)`; `α` starts at 5, with gates that are open.
//!
//! Stage 1 keeps the `K = ⌊diff_sparsity · |θ|⌋` entries with the largest `|z ⊙ w|` over all
//! tensors together, from which point the mask is fixed, there are no gates and no penalty, and the
//! kept `w` (not `z ⊙ w`) are trained on. The task's head is trained densely all the time.
//!
//! | | |
//! | --- | --- |
//! | trains | `2 |θ|`, one more for each tensor with `diff_structured` |
//! | changes | `K` entries |
//! | file | `<name>.indices` and `<name>.differences` of each tensor with a changed entry |
//! | merges | differences are added |
//!
//! Differences from the code: the gates of evaluation, of the projection and of a file saved in
//! stage 0 are those of `u = 1/2`, `z = min(max(3 σ(α) - 1.5, 0), 1)`, where the code draws them;
//! the mask has exactly `K` entries, of equal ones the first, where the code seeks a threshold; `K`
//! is a share of the base without the head; the learning rate of `α` is `alpha_lr_ratio` times the
//! run's and follows its schedule, where the code's stays at 0.1. As in the code and not the paper,
//! the penalty of an entry and that of its tensor are added, not multiplied.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use burn::tensor::activation::sigmoid;
use burn::tensor::{Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, BaseTensor, Hook, StandIn};
use epiphyte_ops::random;
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::gradients::Gradients;
use crate::framework::method::{
    KeyStyle, Method, MethodConfig, Stage, StepInfo, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParamGroup, ParameterSet};
use crate::parts::sparse::{Chosen, check_indices, check_sizes, largest, mask_key};

crate::settings! {
    /// The settings of diff pruning.
    #[derive(Copy)]
    pub struct DiffPruningConfig {
        /// Share of the base's values that differ in the end.
        diff_sparsity: f64 = 0.005, in Positive;
        /// One more gate for each tensor.
        diff_structured: bool = true, as Boolean;
        /// Factor on the expected number of open gates, which is added to the loss.
        diff_l0: f64 = 1.25e-7, in NotNegative;
        /// Initial value of the gates' parameters.
        diff_alpha: f64 = 5.0, in SinglePrecision;
        /// What the learning rate is multiplied by for the gates' parameters.
        alpha_lr_ratio: f64 = 200.0, in Positive;
        /// Share of the run's steps with the fixed mask; either stage has at least one step.
        fixed_mask_fraction: f64 = 0.5, in Fraction;
    }
}

/// The ends of the interval to which a hard-concrete variable is stretched (the code's).
const STRETCH: [f64; 2] = [-1.5, 1.5];

/// The base's tensors without the task's head.
fn tensors(base: &Base) -> impl Iterator<Item = (&String, &BaseTensor)> {
    let tensors = base.tensors().iter();
    tensors.filter(|(name, _)| !base.is_of_head(name))
}

impl DiffPruningConfig {
    /// `K`, the entries that differ in the end.
    fn entries(self, base: &Base) -> Result<usize, MethodError> {
        let all = base.count();
        let entries = (self.diff_sparsity * all as f64) as usize;
        match (1..=all).contains(&entries) {
            true => Ok(entries),
            false => Err(MethodError::Value {
                method: Self::NAME,
                key: "diff_sparsity",
                value: self.diff_sparsity.to_string(),
                expected: format!("it must keep from 1 to all {all} values of the base"),
            }),
        }
    }
}

impl MethodConfig for DiffPruningConfig {
    const NAME: &'static str = "diff-pruning";
    const PEFT_TYPE: &'static str = "DIFF_PRUNING";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a sparse difference to the base, found by trained gates";
    const PAPER: &'static str = "Guo et al. 2021, arXiv 2012.07463";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(false),
        ..crate::Claims::survey("none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-4;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        // Gates between their ends get gradients.
        vec![
            json!({ "diff_alpha": 0.8, "diff_sparsity": 0.1 }),
            json!({ "diff_alpha": 0.8, "diff_structured": false }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let entries = self.entries(base)?;
        check_sizes(Self::NAME, base)?;
        let difference = ParamGroup {
            weight_decay: Some(0.0),
            ..ParamGroup::default()
        };
        let gate = ParamGroup {
            learning_rate_scale: self.alpha_lr_ratio,
            clip: false,
            ..difference
        };
        let phase = Arc::new(Phase::default());
        let mut differences = Vec::new();
        for (name, tensor) in tensors(base) {
            let (shape, initial) = (tensor.shape(), || Init::Constant(self.diff_alpha as f32));
            let key = |part| format!("{name}.{part}");
            let own = Arc::new(Difference {
                name: name.clone(),
                base: tensor.clone(),
                w: parameters.declare_in(difference, key("difference"), &shape, Init::Zeros),
                alpha: parameters.declare_in(gate, key("gate"), &shape, initial()),
                group: self
                    .diff_structured
                    .then(|| parameters.declare_in(gate, key("tensor_gate"), &[1], initial())),
                seed: parameters.seed(),
                phase: phase.clone(),
            });
            let computed = own.clone();
            let moved = parameters.derived(name, &shape, move || computed.moved());
            differences.push((own, moved));
        }
        Ok(Box::new(DiffPruning {
            differences,
            phase,
            mask: None,
            entries,
            l0: self.diff_l0,
            fixed_mask_fraction: self.fixed_mask_fraction,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.entries(base)?;
        let groups = match self.diff_structured {
            true => tensors(base).count(),
            false => 0,
        };
        Ok(2 * base.count() + groups)
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// Where training stands, as far as differences depend on it.
#[derive(Debug, Default)]
struct Phase {
    /// Whether there are gates: in stage 0.
    gated: AtomicBool,
    /// What the draws of a step follow from; 0 outside of steps, when nothing is drawn.
    draw: AtomicU64,
}

/// The hard-concrete gates of `α`, with the logits of `u`, or for `u = 1/2`.
fn gates(alpha: Tensor<1>, logits: Option<Tensor<1>>) -> Tensor<1> {
    let [low, high] = STRETCH;
    let shifted = match logits {
        Some(logits) => alpha + logits,
        None => alpha,
    };
    (sigmoid(shifted) * (high - low) + low).clamp(0.0, 1.0)
}

/// `P(z > 0)` of each gate.
fn open(alpha: Tensor<1>) -> Tensor<1> {
    let [low, high] = STRETCH;
    sigmoid(alpha - (-low / high).ln())
}

/// `log u - log(1 - u)` of uniform draws.
fn logits(key: u64, count: usize) -> Vec<f32> {
    let drawn = random::uniform(key, count, 1e-4, 1.0 - 1e-4).into_iter();
    drawn.map(|u| u.ln() - (1.0 - u).ln()).collect()
}

/// The difference of one tensor.
#[derive(Debug)]
struct Difference {
    name: String,
    base: BaseTensor,
    w: Param,
    alpha: Param,
    /// The gate of the whole tensor.
    group: Option<Param>,
    seed: u64,
    phase: Arc<Phase>,
}

impl Difference {
    /// The gates of a parameter in this step.
    fn gates(&self, alpha: &Param) -> Tensor<1> {
        let draw = self.phase.draw.load(Ordering::Relaxed);
        let logits = (draw > 0).then(|| {
            let key = random::derive_key(self.seed ^ name_id(alpha.key()), draw);
            let drawn = TensorData::new(logits(key, alpha.count()), [alpha.count()]);
            Tensor::from_data(drawn, &alpha.flat().inner().device())
        });
        gates(alpha.flat(), logits)
    }

    /// `z ⊙ w`, or `w` once the mask is fixed, flat.
    fn change(&self) -> Tensor<1> {
        if !self.phase.gated.load(Ordering::Relaxed) {
            return self.w.flat();
        }
        let gated = self.w.flat() * self.gates(&self.alpha);
        match &self.group {
            Some(group) => gated * self.gates(group),
            None => gated,
        }
    }

    /// The change in memory.
    fn values(&self) -> Vec<f32> {
        let values = self.change().inner().try_into_vec_as::<f32>();
        values.expect("parameters are f32 and on a device that can be read")
    }

    /// `θ₀` and the change, flat.
    fn moved(&self) -> Tensor<1> {
        self.change() + self.base.to_flat()
    }

    /// The parameters of its gates.
    fn gate_params(&self) -> impl Iterator<Item = &Param> {
        std::iter::once(&self.alpha).chain(&self.group)
    }

    /// The keys of its indices and values in a file.
    fn keys(&self) -> [String; 2] {
        ["indices", "differences"].map(|part| format!("{}.{part}", self.name))
    }
}

/// The differences of all tensors, each with the tensor that stands in for the base's.
#[derive(Debug)]
struct DiffPruning {
    differences: Vec<(Arc<Difference>, Param)>,
    phase: Arc<Phase>,
    /// The entries of each tensor that may differ; none before they are chosen.
    mask: Option<Vec<Chosen>>,
    /// The number of entries that are kept.
    entries: usize,
    l0: f64,
    fixed_mask_fraction: f64,
}

/// The key of the state that says that gates are trained.
const GATED: &str = "gated";

impl DiffPruning {
    fn own(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().map(|(own, _)| &**own)
    }

    fn set_gated(&self, gated: bool) {
        self.phase.gated.store(gated, Ordering::Relaxed);
        self.phase.draw.store(0, Ordering::Relaxed);
    }

    /// Fixes the mask; from then on there are no gates.
    fn set_mask(&mut self, indices: Vec<Vec<i32>>) {
        let own = self.differences.iter().zip(indices);
        let chosen = own.map(|((own, _), indices)| Chosen::new(indices, &own.w));
        self.mask = Some(chosen.collect());
        self.set_gated(false);
    }
}

impl Adapter for DiffPruning {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        let mut all = self.differences.iter();
        let (_, moved) = all.find(|(own, _)| own.name == name)?;
        Some(StandIn::Tensor(moved.flat()))
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Parameter(name) if self.own().any(|own| own.name == name))
    }
}

impl Method for DiffPruning {
    fn stages(&self, steps: u64) -> Vec<Stage> {
        let fixed = (self.fixed_mask_fraction * steps as f64).round() as u64;
        let fixed = fixed.min(steps.saturating_sub(1)).max(1);
        vec![
            Stage::fresh(steps.saturating_sub(fixed)),
            Stage::fresh(fixed.min(steps)),
        ]
    }

    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        match steps {
            2.. => Ok(()),
            _ => Err(MethodError::Value {
                method: DiffPruningConfig::NAME,
                key: "fixed_mask_fraction",
                value: self.fixed_mask_fraction.to_string(),
                expected: "a run must have two steps at least, one with gates and one with the \
                           fixed mask"
                    .to_owned(),
            }),
        }
    }

    fn begin_stage(
        &mut self,
        stage: usize,
        _head: &ParameterSet,
        _data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        if stage == 0 {
            self.set_gated(true);
            return Ok(());
        }
        let sizes = self.own().map(|own| {
            let values = own.values().into_iter();
            values.map(f32::abs).collect()
        });
        let sizes: Vec<Vec<f32>> = sizes.collect();
        self.set_mask(largest(&sizes, self.entries));
        for (own, chosen) in self.own().zip(self.mask.iter().flatten()) {
            own.w.update(|values| chosen.only(values));
        }
        Ok(())
    }

    fn before_step(&mut self, info: StepInfo) {
        self.phase.draw.store(info.step + 1, Ordering::Relaxed);
    }

    fn after_step(&mut self, _gradients: &Gradients, _info: StepInfo) {
        self.phase.draw.store(0, Ordering::Relaxed);
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        if !self.phase.gated.load(Ordering::Relaxed) || self.l0 == 0.0 {
            return None;
        }
        let gates = self.own().flat_map(Difference::gate_params);
        let sums = gates.map(|alpha| open(alpha.flat()).sum());
        Some(sums.reduce(|sum, more| sum + more)? * self.l0)
    }

    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for (own, chosen) in self.own().zip(self.mask.iter().flatten()) {
            chosen.mask(gradients, &own.w);
        }
    }

    /// Gates at an end of their interval get a gradient of the penalty alone, and none once the
    /// mask is fixed.
    fn may_lack_gradient(&self, param: &Param) -> bool {
        let mut all = self.own().zip(0..);
        let found = all.find_map(|(own, number): (&Difference, usize)| {
            if own.w.id() == param.id() {
                let chosen = self.mask.as_ref().map(|mask| &mask[number]);
                return Some(chosen.is_some_and(|chosen| chosen.indices.is_empty()));
            }
            let mut gates = own.gate_params();
            gates.any(|gate| gate.id() == param.id()).then_some(true)
        });
        found.unwrap_or(false)
    }

    fn state(&self) -> Vec<Stored> {
        let gated = self.phase.gated.load(Ordering::Relaxed);
        let masks = self.own().zip(self.mask.iter().flatten());
        let masks = masks.filter(|(_, chosen)| !chosen.indices.is_empty());
        let masks =
            masks.map(|(own, chosen)| Stored::i32(mask_key(&own.w), chosen.indices.clone()));
        std::iter::once(Stored::i32(GATED, vec![i32::from(gated)]))
            .chain(masks)
            .collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let gated = state.take_indices(GATED)?.is_some_and(|it| it == [1]);
        let mut masks = Vec::new();
        for own in self.own() {
            let key = mask_key(&own.w);
            let indices = match state.shape(&key) {
                Some(_) => state.take_indices(&key)?.unwrap_or_default(),
                None => Vec::new(),
            };
            check_indices(DiffPruningConfig::NAME, &key, &own.w, &indices)?;
            masks.push(indices);
        }
        self.mask = None;
        if masks.iter().any(|indices| !indices.is_empty()) {
            self.set_mask(masks);
        }
        self.set_gated(gated);
        Ok(())
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let mut stored = Vec::new();
        for own in self.own() {
            let entries = (0i32..).zip(own.values());
            let (indices, values): (Vec<i32>, Vec<f32>) =
                entries.filter(|(_, value)| *value != 0.0).unzip();
            if !indices.is_empty() {
                let [places, contents] = own.keys();
                stored.push(Stored::i32(places, indices));
                stored.push(Stored::f32(contents, &[values.len()], values));
            }
        }
        stored
    }

    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let mut masks = Vec::new();
        for (own, _) in &self.differences {
            let [places, contents] = own.keys();
            let there = file.shape(&places).is_some() || file.shape(&contents).is_some();
            let mut read = (Vec::new(), Vec::new());
            if there
                && let Some(indices) = file.take_indices(&places)?
                && let Some(values) = file.take(&contents, &[indices.len()])?
            {
                check_indices(DiffPruningConfig::NAME, &places, &own.w, &indices)?;
                read = (indices, values);
            }
            let (indices, values) = read;
            let mut all = vec![0.0; own.w.count()];
            for (&index, value) in indices.iter().zip(values) {
                all[index as usize] = value;
            }
            own.w.set_values(all);
            masks.push(indices);
        }
        self.set_mask(masks);
        Ok(())
    }

    fn merged(&self, name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        let mut all = self.differences.iter();
        let found = all.find(|(own, _)| own.name == name);
        Ok(found.map(|(_, moved)| moved.flat().inner()))
    }

    fn changed(&self) -> usize {
        match &self.mask {
            Some(mask) => mask.iter().map(|chosen| chosen.indices.len()).sum(),
            None => {
                let changed = |own: &Difference| {
                    let values = own.values().into_iter();
                    values.filter(|value| *value != 0.0).count()
                };
                self.own().map(changed).sum()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_models::Model;
    use serde_json::json;

    use super::{DiffPruningConfig, gates, logits, open};
    use crate::framework::settings::parse;
    use crate::test_data::{Examples, StoredList, gradients, model, move_all};
    use crate::{Gradients, Method, MethodConfig, Param, ParameterSet, StepInfo};

    const INFO: StepInfo = StepInfo {
        step: 0,
        total: 4,
        stage: 0,
        stage_step: 0,
        stage_total: 2,
    };

    fn tensor(values: &[f32]) -> Tensor<1> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        Tensor::from_data(data, &Device::default())
    }

    fn values(tensor: Tensor<1>) -> Vec<f32> {
        tensor.inner().try_into_vec_as::<f32>().unwrap()
    }

    /// The method in stage 0, and its parameters.
    fn built(model: &Model, settings: serde_json::Value) -> (Box<dyn Method>, ParameterSet) {
        let config: DiffPruningConfig = parse(settings.as_object().unwrap()).unwrap();
        let mut parameters = ParameterSet::new(&Device::default(), 3);
        let method = config.build(model.base(), &mut parameters).unwrap();
        (method, parameters)
    }

    fn begin(method: &mut dyn Method, stage: usize) {
        let head = ParameterSet::new(&Device::default(), 0);
        method
            .begin_stage(stage, &head, &mut Examples::default())
            .unwrap();
    }

    fn of<'p>(parameters: &'p ParameterSet, end: &'p str) -> impl Iterator<Item = &'p Param> {
        parameters
            .trained()
            .filter(move |it| it.key().ends_with(end))
    }

    /// Of the reference's code: P(z > 0) and P(z = 1) for α of 5, 0 and -5.
    #[test]
    fn gates_are_open_and_shut_as_often_as_the_formulas_say() {
        let count = 200_000;
        for (alpha, some, all) in [
            (5.0f32, 0.993_307_149f64, 0.967_408_272),
            (0.0, 0.5, 0.166_666_667),
            (-5.0, 0.006_692_851, 0.001_345_776),
        ] {
            let probability = f64::from(values(open(tensor(&[alpha])))[0]);
            assert!((probability - some).abs() < 1e-6, "{probability}");
            let drawn = values(gates(
                tensor(&vec![alpha; count]),
                Some(tensor(&logits(1, count))),
            ));
            for (expected, is) in [
                (some, (|z| z > 0.0) as fn(f32) -> bool),
                (all, |z| z >= 1.0),
            ] {
                let share = drawn.iter().filter(|z| is(**z)).count() as f64 / count as f64;
                let deviation = (expected * (1.0 - expected) / count as f64).sqrt();
                // The draws are cut at 1e-4 on both sides.
                assert!(
                    (share - expected).abs() < 4.0 * deviation + 1e-4,
                    "{share} {expected}"
                );
            }
        }
    }

    #[test]
    fn two_of_each_value_are_trained_and_one_of_each_tensor() {
        let model = model();
        let tensors = super::tensors(model.base()).count();
        for (structured, more) in [(true, tensors), (false, 0)] {
            let (method, parameters) = built(&model, json!({ "diff_structured": structured }));
            let expected = 2 * model.base().count() + more;
            assert_eq!(method.trainable(&parameters), expected);
        }
    }

    #[test]
    fn the_penalty_is_the_expected_number_of_open_gates() {
        let model = model();
        let (mut method, parameters) = built(&model, json!({ "diff_l0": 0.5, "diff_alpha": 0.0 }));
        assert!(method.penalty().is_none(), "there are no gates yet");
        begin(&mut *method, 0);
        parameters.track(true);
        let penalty = method.penalty().unwrap();
        let groups = super::tensors(model.base()).count();
        let expected = 0.5 * 0.5 * (model.base().count() + groups) as f32;
        let found = values(penalty.clone())[0];
        assert!((found / expected - 1.0).abs() < 1e-5, "{found} {expected}");
        // Its derivative by α is λ σ(α) (1 - σ(α)).
        let mut found = Gradients::new();
        found.collect(parameters.trained(), &mut penalty.backward());
        let gate = of(&parameters, ".gate").next().unwrap();
        let gradient = values(found.get(gate).unwrap().clone());
        assert!(gradient.iter().all(|it| (it - 0.125).abs() < 1e-6));
    }

    #[test]
    fn a_step_draws_gates_and_evaluation_does_not() {
        let model = model();
        let (mut method, parameters) = built(&model, json!({ "diff_alpha": 0.0 }));
        begin(&mut *method, 0);
        of(&parameters, ".difference").for_each(|w| w.set_values(vec![1.0; w.count()]));
        of(&parameters, ".tensor_gate").for_each(|gate| gate.set_values(vec![9.0]));
        let name = "bert.pooler.dense.bias";
        let change = |parameters: &ParameterSet| {
            parameters.derive(false);
            let moved = parameters.get(name).unwrap().to_vec();
            let base = model.base().tensor(name).unwrap().to_vec();
            let changes = moved.iter().zip(base).map(|(a, b)| a - b);
            changes.collect::<Vec<f32>>()
        };
        // σ(0) is a half, and the gates are shut.
        assert!(change(&parameters).iter().all(|it| *it == 0.0));
        let mut draw = |step: u64| {
            method.before_step(StepInfo { step, ..INFO });
            let drawn = change(&parameters);
            method.after_step(&Gradients::new(), INFO);
            drawn
        };
        let (first, second) = (draw(0), draw(1));
        assert!(first.iter().any(|it| *it > 0.0) && first.contains(&0.0));
        assert_ne!(first, second);
        assert_eq!(first, draw(0));
        // A gate that is shut shuts its whole tensor.
        let shut = of(&parameters, "pooler.dense.bias.tensor_gate")
            .next()
            .unwrap();
        shut.set_values(vec![-20.0]);
        assert!(draw(0).iter().all(|it| *it == 0.0));
    }

    #[test]
    fn the_largest_differences_stay_and_nothing_else_moves_from_then_on() {
        let model = model();
        let settings = json!({ "diff_sparsity": 0.05, "diff_alpha": 0.4 });
        let (mut method, parameters) = built(&model, settings.clone());
        begin(&mut *method, 0);
        move_all(of(&parameters, ".difference"));
        move_all(of(&parameters, ".gate"));
        let entries = model.base().count() / 20;
        let before: Vec<Vec<f32>> = of(&parameters, ".difference").map(Param::to_vec).collect();
        begin(&mut *method, 1);
        assert!(method.penalty().is_none());
        assert_eq!(method.changed(), entries);
        let count = |values: &[f32]| values.iter().filter(|it| **it != 0.0).count();
        let mut kept = 0;
        for (w, before) in of(&parameters, ".difference").zip(&before) {
            let now = w.to_vec();
            kept += count(&now);
            let same = now
                .iter()
                .zip(before)
                .all(|(now, before)| *now == 0.0 || now == before);
            assert!(same, "{}: they go on from w, not from z w", w.key());
        }
        assert_eq!(kept, entries);

        let params: Vec<Param> = parameters.trained().cloned().collect();
        let mut found = gradients(&params, 1);
        method.after_backward(&mut found, INFO);
        for w in of(&parameters, ".difference") {
            let before = w.to_vec();
            if let Some(gradient) = found.take(w) {
                w.update(|values| values - gradient);
            }
            for (before, now) in before.iter().zip(w.to_vec()) {
                assert_eq!(*before == 0.0, now == 0.0, "{}", w.key());
            }
        }

        // The file holds the differences, and gives the same bits.
        let stored = method.stored(&parameters);
        let total: usize = stored.iter().map(|it| it.values.len()).sum();
        assert_eq!(total, 2 * entries);
        let (mut loaded, copies) = built(&model, settings.clone());
        loaded.load(&copies, &mut StoredList(stored)).unwrap();
        for parameters in [&parameters, &copies] {
            parameters.derive(false);
        }
        for (name, _) in super::tensors(model.base()) {
            let of = |parameters: &ParameterSet| parameters.get(name).unwrap().to_vec();
            assert_eq!(of(&parameters), of(&copies), "{name}");
        }

        // A resumed run masks the same.
        let (mut resumed, _) = built(&model, settings);
        resumed
            .restore_state(&mut StoredList(method.state()))
            .unwrap();
        assert_eq!(resumed.state(), method.state());
    }

    #[test]
    fn the_stages_have_the_steps_of_the_run() {
        let model = model();
        for (fraction, steps, expected) in [
            (0.5, 10, [5, 5]),
            (0.2, 10, [8, 2]),
            (0.0, 3, [2, 1]),
            (0.9, 2, [1, 1]),
        ] {
            let (method, _) = built(&model, json!({ "fixed_mask_fraction": fraction }));
            let stages = method.stages(steps);
            let found: Vec<u64> = stages.iter().map(|stage| stage.steps).collect();
            assert_eq!(found, expected);
            assert!(method.check_steps(steps).is_ok() && method.check_steps(1).is_err());
        }
    }
}
