//! Sparse fine-tuning: a mask chooses entries of the base, and only these are trained and stored.
//!
//! Every tensor of the base without the task's head has a dense trained stand-in. Once the mask is
//! chosen, gradients of all other entries are zero before they are clipped, so that AdamW never
//! moves them; weight decay is off for these tensors, since it would. What a method of this kind
//! adds is a [`MaskRule`]: by which scores entries are chosen, and when.
//!
//! The file holds, for each tensor with a changed entry, `<name>.indices` (i32, ascending,
//! row-major in Hugging Face's order) and `<name>.values` (the new values, not differences, so that
//! they are put back bit for bit). Entries that are as in the base are left out.

use std::fmt::Debug;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::{Adapter, Base, Hook, StandIn};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::gradients::Gradients;
use crate::framework::method::{Method, Stage, StepInfo, Stored, StoredTensors};
use crate::framework::parameters::{Param, ParamGroup, ParameterSet};
use crate::parts::replace::{Replaced, count};

/// How the entries to train are chosen.
pub trait MaskRule: Debug + Send + Sync {
    /// As [`Method::stages`].
    fn stages(&self, steps: u64) -> Vec<Stage> {
        vec![Stage::fresh(steps)]
    }

    /// As [`Method::check_steps`].
    ///
    /// # Errors
    /// As there.
    fn check_steps(&self, _steps: u64) -> Result<(), MethodError> {
        Ok(())
    }

    /// What is added to the loss, with or without a mask: a factor on the mean of the distances of
    /// all entries from the base's.
    fn regularization(&self, _masked: bool) -> f64 {
        0.0
    }

    /// The score of every entry of each of `params`, at the beginning of a stage; the entries with
    /// the largest scores are trained from then on, starting at the base's values. `None` if the
    /// stage chooses none.
    ///
    /// # Errors
    /// If running the data fails.
    fn scores(
        &self,
        stage: usize,
        params: &[Param],
        adapter: &dyn Adapter,
        data: &mut dyn CalibrationData,
    ) -> Result<Option<Vec<Vec<f32>>>, MethodError>;
}

/// Dense trained stand-ins for the base's tensors, and the mask of the entries that are trained.
#[derive(Debug)]
pub struct Sparse<R> {
    method: &'static str,
    tensors: Replaced,
    rule: R,
    /// The number of entries that the rule chooses.
    entries: usize,
    /// The chosen entries of each tensor; none before they are chosen, when all are trained.
    mask: Option<Vec<Chosen>>,
}

/// The chosen entries of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Chosen {
    /// Ascending.
    pub(crate) indices: Vec<i32>,
    /// The same where the tensor is.
    on_device: Tensor<1, Int>,
}

impl Chosen {
    /// These entries of `param`.
    pub(crate) fn new(indices: Vec<i32>, param: &Param) -> Self {
        let data = TensorData::new(indices.clone(), [indices.len()]);
        Self {
            on_device: Tensor::from_data(data, &param.flat().inner().device()),
            indices,
        }
    }

    /// The values of a flat tensor at the entries, zero elsewhere.
    pub(crate) fn only(&self, values: Tensor<1>) -> Tensor<1> {
        let places = self.on_device.clone();
        let kept = values.clone().select(0, places.clone());
        let zeros = values.zeros_like();
        zeros.select_assign(0, places, kept, IndexingUpdateOp::Add)
    }

    /// Makes the gradient of all other entries zero.
    pub(crate) fn mask(&self, gradients: &mut Gradients, param: &Param) {
        if self.indices.is_empty() {
            // The optimizer then keeps no state for it.
            gradients.take(param);
            return;
        }
        gradients.update(param, |gradient| self.only(gradient));
    }
}

/// Checks that indices in a file are ascending and within `param`.
///
/// # Errors
/// [`MethodError::Configuration`], which names the key.
pub(crate) fn check_indices(
    method: &'static str,
    key: &str,
    param: &Param,
    indices: &[i32],
) -> Result<(), MethodError> {
    check_indices_below(method, key, (param.key(), param.count()), indices)
}

/// Checks that indices in a file are ascending and below the size of what has this name.
///
/// # Errors
/// As [`check_indices`].
pub(crate) fn check_indices_below(
    method: &'static str,
    key: &str,
    (name, size): (&str, usize),
    indices: &[i32],
) -> Result<(), MethodError> {
    let ascending = indices.is_sorted_by(|a, b| a < b);
    let inside = |index: &i32| usize::try_from(*index).is_ok_and(|it| it < size);
    if ascending && indices.iter().all(inside) {
        return Ok(());
    }
    Err(MethodError::Configuration {
        method,
        reason: format!("`{key}` must hold ascending indices below {size}, the size of `{name}`"),
    })
}

/// Checks that 32-bit indices can number the entries of every tensor of `base`.
///
/// # Errors
/// [`MethodError::NotApplicable`], which names the tensor.
pub(crate) fn check_sizes(method: &'static str, base: &Base) -> Result<(), MethodError> {
    let largest = base.tensors().iter().max_by_key(|(_, it)| it.count());
    match largest {
        Some((name, tensor)) if i32::try_from(tensor.count()).is_err() => {
            Err(MethodError::NotApplicable {
                method,
                model_type: base.dimensions.model_type.clone(),
                reason: format!(
                    "`{name}` has {} entries, more than 32-bit indices can number",
                    tensor.count()
                ),
            })
        }
        _ => Ok(()),
    }
}

impl<R: MaskRule> Sparse<R> {
    /// Stand-ins for every tensor of `base` without the task's head, of which `rule` chooses
    /// `entries` entries.
    ///
    /// # Errors
    /// If a tensor has more entries than 32-bit indices can number.
    pub fn new(
        method: &'static str,
        rule: R,
        entries: usize,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Self, MethodError> {
        Self::of(method, rule, entries, base, parameters, |_| true)
    }

    /// As [`Sparse::new`], for the tensors whose names `choose` accepts.
    ///
    /// # Errors
    /// As [`Sparse::new`].
    pub fn of(
        method: &'static str,
        rule: R,
        entries: usize,
        base: &Base,
        parameters: &mut ParameterSet,
        choose: impl Fn(&str) -> bool,
    ) -> Result<Self, MethodError> {
        check_sizes(method, base)?;
        let group = ParamGroup {
            weight_decay: Some(0.0),
            ..ParamGroup::default()
        };
        Ok(Self {
            method,
            tensors: Replaced::in_group(group, base, parameters, choose),
            rule,
            entries,
            mask: None,
        })
    }

    /// The values of the base without the task's head, from which entries are chosen.
    pub fn maskable(base: &Base) -> usize {
        count(base, |_| true)
    }

    /// The stand-ins.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.tensors.params()
    }

    /// Trains these entries of each tensor from now on.
    pub(crate) fn set_mask(&mut self, indices: Vec<Vec<i32>>) {
        let params = self.tensors.params();
        let chosen = params.zip(indices);
        let chosen = chosen.map(|(param, indices)| Chosen::new(indices, param));
        self.mask = Some(chosen.collect());
    }

    /// Each tensor with its chosen entries; nothing before they are chosen.
    fn chosen(&self) -> impl Iterator<Item = (&Param, &Chosen)> {
        self.tensors.params().zip(self.mask.iter().flatten())
    }
}

/// The places of the `k` largest scores over all tensors, ascending in each tensor. Of equal scores
/// the first are taken, so there are exactly `k` if there are as many scores.
pub fn largest(scores: &[Vec<f32>], k: usize) -> Vec<Vec<i32>> {
    let mut all = scores.concat();
    if k == 0 || all.is_empty() {
        return vec![Vec::new(); scores.len()];
    }
    let last = k.min(all.len()) - 1;
    let (above, threshold, _) = all.select_nth_unstable_by(last, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    let above = above.iter().filter(|it| it.total_cmp(&threshold).is_gt());
    let mut ties = last + 1 - above.count();
    let mut take = |score: f32| {
        let order = score.total_cmp(&threshold);
        let tie = order.is_eq() && ties > 0;
        ties -= usize::from(tie);
        order.is_gt() || tie
    };
    let indices = scores.iter().map(|scores| {
        let places = (0i32..).zip(scores).filter(|(_, score)| take(**score));
        places.map(|(index, _)| index).collect()
    });
    indices.collect()
}

/// The places where a tensor differs from the base, with its values there.
fn changes(param: &Param) -> (Vec<i32>, Vec<f32>) {
    let initial = param.initial().try_into_vec_as::<f32>();
    let initial = initial.expect("a base is f32 and on a device that can be read");
    let entries = (0i32..).zip(initial.into_iter().zip(param.to_vec()));
    entries
        .filter(|(_, (before, now))| before.to_bits() != now.to_bits())
        .map(|(index, (_, now))| (index, now))
        .unzip()
}

/// The keys of a tensor's indices and values in the file.
fn keys(param: &Param) -> [String; 2] {
    ["indices", "values"].map(|part| format!("{}.{part}", param.key()))
}

/// The key of a tensor's mask in a checkpoint.
pub(crate) fn mask_key(param: &Param) -> String {
    format!("{}.mask", param.key())
}

impl<R: MaskRule> Adapter for Sparse<R> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.tensors.parameter(name)
    }

    fn first_layer(&self) -> usize {
        self.tensors.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.tensors.uses(hook)
    }
}

impl<R: MaskRule> Method for Sparse<R> {
    fn stages(&self, steps: u64) -> Vec<Stage> {
        self.rule.stages(steps)
    }

    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        self.rule.check_steps(steps)
    }

    fn begin_stage(
        &mut self,
        stage: usize,
        head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        let params: Vec<Param> = self.tensors.params().cloned().collect();
        let Some(scores) = self.rule.scores(stage, &params, &self.tensors, data)? else {
            return Ok(());
        };
        for (param, scores) in params.iter().zip(&scores) {
            if !scores.iter().all(|score| score.is_finite()) {
                let problem = format!("the scores of `{}` are not finite", param.key());
                return Err(MethodError::Calibration(problem));
            }
        }
        self.set_mask(largest(&scores, self.entries));
        for param in params.iter().chain(head.trained()) {
            param.rewind();
        }
        Ok(())
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let factor = self.rule.regularization(self.mask.is_some());
        if factor == 0.0 {
            return None;
        }
        let count: usize = self.params().map(Param::count).sum();
        let distances = self.params().map(|param| {
            let distance = param.flat() - param.initial();
            distance.abs().sum()
        });
        Some(distances.reduce(|sum, more| sum + more)? * (factor / count as f64))
    }

    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for (param, chosen) in self.chosen() {
            chosen.mask(gradients, param);
        }
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        self.chosen()
            .any(|(other, chosen)| other.id() == param.id() && chosen.indices.is_empty())
    }

    fn state(&self) -> Vec<Stored> {
        let chosen = self.chosen().filter(|(_, it)| !it.indices.is_empty());
        chosen
            .map(|(param, chosen)| Stored::i32(mask_key(param), chosen.indices.clone()))
            .collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let mut mask = Vec::new();
        for param in self.tensors.params() {
            let key = mask_key(param);
            let indices = match state.shape(&key) {
                Some(_) => state.take_indices(&key)?.unwrap_or_default(),
                None => Vec::new(),
            };
            check_indices(self.method, &key, param, &indices)?;
            mask.push(indices);
        }
        self.mask = None;
        if mask.iter().any(|indices| !indices.is_empty()) {
            self.set_mask(mask);
        }
        Ok(())
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let mut stored = Vec::new();
        for param in self.tensors.params() {
            let (indices, values) = changes(param);
            if !indices.is_empty() {
                let [places, contents] = keys(param);
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
        for param in self.tensors.params() {
            let [places, contents] = keys(param);
            if file.shape(&places).is_none() && file.shape(&contents).is_none() {
                continue;
            }
            let Some(indices) = file.take_indices(&places)? else {
                continue;
            };
            let Some(values) = file.take(&contents, &[indices.len()])? else {
                continue;
            };
            check_indices(self.method, &places, param, &indices)?;
            param.rewind();
            let mut all = param.to_vec();
            for (index, value) in indices.into_iter().zip(values) {
                all[index as usize] = value;
            }
            param.set_values(all);
        }
        Ok(())
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.tensors.merged(name, base)
    }

    fn changed(&self) -> usize {
        match &self.mask {
            Some(mask) => mask.iter().map(|chosen| chosen.indices.len()).sum(),
            None => self.tensors.params().map(|it| changes(it).0.len()).sum(),
        }
    }

    fn trainable(&self, _parameters: &ParameterSet) -> usize {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use epiphyte_models::Adapter;

    use super::{MaskRule, Sparse, changes, largest};
    use crate::framework::method::{Method, StepInfo};
    use crate::test_data::{Examples, StoredList, gradients, model, move_all};
    use crate::{CalibrationData, Gradients, MethodError, Param, ParameterSet};

    #[test]
    fn the_largest_scores_of_all_tensors_are_taken_and_ties_by_place() {
        let scores = vec![vec![0.5, 2.0, 0.5], vec![], vec![0.5, 3.0, 0.1]];
        let expected = [vec![0, 1], vec![], vec![1]];
        assert_eq!(largest(&scores, 3), expected);
        assert_eq!(largest(&scores, 0), vec![Vec::<i32>::new(); 3]);
        assert_eq!(largest(&scores, 9), [vec![0, 1, 2], vec![], vec![0, 1, 2]]);
    }

    #[test]
    fn there_are_exactly_as_many_as_asked_for_where_all_are_equal() {
        let scores = vec![vec![0.0; 7], vec![0.0; 5]];
        for k in 0..=12 {
            let chosen = largest(&scores, k);
            assert_eq!(chosen.iter().map(Vec::len).sum::<usize>(), k);
        }
    }

    /// A mask of every entry is that of full fine-tuning: gradients stay as they are, bit for bit.
    #[test]
    fn a_mask_of_all_entries_changes_no_gradient() {
        let (mut sparse, parameters) = sparse();
        let params: Vec<Param> = parameters.trained().cloned().collect();
        let all = params
            .iter()
            .map(|param| (0..param.count() as i32).collect());
        sparse.set_mask(all.collect());
        let expected = gradients(&params, 1);
        let mut masked = expected.clone();
        sparse.after_backward(&mut masked, INFO);
        let bits = |gradients: &Gradients, param: &Param| {
            let values = gradients.get(param).unwrap().clone();
            let values = values.try_into_vec_as::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        for param in &params {
            assert_eq!(
                bits(&masked, param),
                bits(&expected, param),
                "{}",
                param.key()
            );
        }
    }

    /// Chooses every third entry of every tensor but the first.
    #[derive(Debug)]
    struct EveryThird;

    impl MaskRule for EveryThird {
        fn scores(
            &self,
            _stage: usize,
            params: &[Param],
            _adapter: &dyn Adapter,
            _data: &mut dyn CalibrationData,
        ) -> Result<Option<Vec<Vec<f32>>>, MethodError> {
            let score =
                |tensor: usize, index: usize| f32::from(tensor > 0 && index.is_multiple_of(3));
            let scores = params.iter().enumerate().map(|(tensor, param)| {
                (0..param.count())
                    .map(|index| score(tensor, index))
                    .collect()
            });
            Ok(Some(scores.collect()))
        }
    }

    /// The method without a mask, and its parameters.
    fn sparse() -> (Sparse<EveryThird>, ParameterSet) {
        let model = model();
        let base = model.base();
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let sizes = base
            .tensors()
            .iter()
            .filter(|(name, _)| !base.is_of_head(name));
        let thirds = sizes.skip(1).map(|(_, tensor)| tensor.count().div_ceil(3));
        let sparse = Sparse::new("sparse", EveryThird, thirds.sum(), base, &mut parameters);
        (sparse.unwrap(), parameters)
    }

    /// The same with the mask.
    fn masked() -> (Sparse<EveryThird>, ParameterSet) {
        let (mut sparse, parameters) = sparse();
        let head = ParameterSet::new(&Default::default(), 0);
        let mut data = Examples::default();
        sparse.begin_stage(0, &head, &mut data).unwrap();
        (sparse, parameters)
    }

    const INFO: StepInfo = StepInfo {
        step: 0,
        total: 1,
        stage: 0,
        stage_step: 0,
        stage_total: 1,
    };

    /// Three steps of gradient descent.
    fn train(sparse: &mut Sparse<EveryThird>, parameters: &ParameterSet) {
        for step in 0..3 {
            let params: Vec<Param> = parameters.trained().cloned().collect();
            let mut gradients = gradients(&params, step);
            sparse.after_backward(&mut gradients, INFO);
            for param in &params {
                if let Some(gradient) = gradients.take(param) {
                    param.update(|value| value - gradient * 0.1);
                }
            }
        }
    }

    #[test]
    fn only_masked_entries_change_and_all_of_them() {
        let (mut sparse, parameters) = masked();
        train(&mut sparse, &parameters);
        for (number, param) in parameters.trained().enumerate() {
            let (places, _) = changes(param);
            let expected = (0..param.count() as i32).filter(|at| number > 0 && at % 3 == 0);
            assert_eq!(places, expected.collect::<Vec<_>>(), "{}", param.key());
            assert_eq!(param.group().weight_decay, Some(0.0));
            assert_eq!(sparse.may_lack_gradient(param), number == 0);
        }
        assert_eq!(sparse.changed(), sparse.trainable(&parameters));
    }

    #[test]
    fn without_a_mask_gradients_stay_as_they_are() {
        let (mut sparse, parameters) = sparse();
        train(&mut sparse, &parameters);
        let differing = parameters.trained().map(|param| changes(param).0.len());
        assert_eq!(differing.sum::<usize>(), parameters.count());
    }

    #[test]
    fn the_file_holds_indices_and_values_and_gives_the_same_bits() {
        let (mut sparse, parameters) = masked();
        train(&mut sparse, &parameters);
        let stored = sparse.stored(&parameters);
        let values: usize = stored.iter().map(|stored| stored.values.len()).sum();
        assert_eq!(values, 2 * sparse.changed());
        let (mut loaded, copies) = self::sparse();
        let mut file = StoredList(stored);
        loaded.load(&copies, &mut file).unwrap();
        assert!(file.0.is_empty());
        for (param, copy) in parameters.trained().zip(copies.trained()) {
            assert_eq!(param.to_vec(), copy.to_vec(), "{}", param.key());
        }
        assert_eq!(loaded.changed(), sparse.changed());
    }

    #[test]
    fn a_restored_mask_masks_the_same() {
        let (mut sparse, parameters) = masked();
        let (mut restored, copies) = self::sparse();
        restored
            .restore_state(&mut StoredList(sparse.state()))
            .unwrap();
        train(&mut sparse, &parameters);
        train(&mut restored, &copies);
        assert_eq!(restored.stored(&copies), sparse.stored(&parameters));
        let (mut restored, _) = self::sparse();
        restored.restore_state(&mut StoredList(Vec::new())).unwrap();
        assert!(restored.mask.is_none());
    }

    #[test]
    fn indices_outside_of_a_tensor_are_refused() {
        let (mut sparse, parameters) = masked();
        train(&mut sparse, &parameters);
        let mut stored = sparse.stored(&parameters);
        let count = parameters.trained().nth(1).unwrap().count() as i64;
        for wrong in [count, -1] {
            let last = stored[0].values.len() - 1;
            let crate::StoredValues::Integers(_, indices) = &mut stored[0].values else {
                panic!("indices come first")
            };
            indices[last] = wrong;
            let (mut loaded, copies) = self::sparse();
            let error = loaded
                .load(&copies, &mut StoredList(stored.clone()))
                .unwrap_err();
            assert!(error.to_string().contains("ascending indices"), "{error}");
        }
    }

    #[test]
    fn a_chosen_mask_puts_tensors_and_head_back() {
        let (mut sparse, parameters) = sparse();
        let mut head = ParameterSet::new(&Default::default(), 0);
        let weight = head.declare("head", &[4], crate::Init::Ones);
        move_all(parameters.trained());
        weight.set(Tensor::zeros([4], &Default::default()));
        sparse
            .begin_stage(0, &head, &mut Examples::default())
            .unwrap();
        assert!(
            parameters
                .trained()
                .all(|param| changes(param).0.is_empty())
        );
        assert_eq!(weight.to_vec(), [1.0; 4]);
    }
}
