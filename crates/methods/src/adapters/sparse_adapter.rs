//! SparseAdapter: Houlsby's adapter with weights that are pruned before training.
//!
//! He, Ding, Dong, Zhang, Tao, "SparseAdapter: An Easy Approach for Improving the
//! Parameter-Efficiency of Adapters", Findings of EMNLP 2022, arXiv 2210.04284; code
//! Shwai-He/SparseAdapter.
//!
//! Every weight `w` of the adapters' matrices, not of their biases, gets a score at initialization;
//! the share `density` with the largest scores is trained, the others are zero and stay so.
//!
//! - `random`: a normal number
//! - `erdos-renyi`: a random one, with densities of the matrices in proportion to
//!   `(in + out) / (in · out)` (Mocanu et al. 2018)
//! - `magnitude`: `|w|`
//! - `snip`: `|Σ g w|` with `g` the gradients of `num_samples` training examples (Lee et al. 2019)
//! - `grasp`: `w (H g)` with `H` the Hessian (Wang et al. 2020); `H g` is the difference of two
//!   gradients, half a small step along `g` to either side
//!
//! With `prune_scope` = global, `k = ⌈(1 − density) N⌉` of all `N` weights are pruned, with local
//! `⌊(1 − density) N⌋` of each matrix. `large_sparse` widens the bottleneck to `m / density`, so
//! that as many weights are kept as a dense adapter of size `m` has.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `N − k` weights with `N = 4 L d m`, and `2 L (m + d)` biases |
//! | file | of each matrix `<key>.indices` and `<key>.values`, where `<key>` is Houlsby's; `<module>.adapter_{down,up}.bias` |
//! | merges | no |
//!
//! The code prunes all weights whose score equals the largest that is pruned; here exactly `k` are.
//! Where no score differs from zero, as SNIP's for an up-projection of zeros, the code prunes
//! nothing; here that is an error.

use std::collections::HashSet;

use burn::tensor::Tensor;
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, Role, Sublayer};
use epiphyte_ops::random;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::gradients::Gradients;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StepInfo, Stored, StoredTensors};
use crate::framework::parameters::{Param, ParamId, ParameterSet};
use crate::parts::bottleneck::{Bottleneck, BottleneckConfig, InLayers, Placement, Variant};
use crate::parts::sparse::{Chosen, check_indices, largest, mask_key};

/// How weights are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// At random.
    Random,
    /// At random, with a density of its own for each matrix.
    ErdosRenyi,
    /// By their size.
    Magnitude,
    /// By what the loss loses without them, to first order.
    Snip,
    /// By what the gradient loses without them, to first order.
    Grasp,
}

/// Among which weights those with the largest scores are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Among all.
    Global,
    /// Among those of each matrix.
    Local,
}

crate::settings! {
    /// The settings of SparseAdapter.
    pub struct SparseAdapterConfig {
        /// Share of the adapters' weights to train; the others are pruned.
        density: f64 = 0.6, in Positive;
        /// How weights are scored: random, erdos-renyi, magnitude, snip or grasp.
        prune_score: Score = Score::Snip, as Text;
        /// Among which weights the largest scores are chosen: global or local.
        prune_scope: Scope = Scope::Global, as Text;
        /// Training examples from which scores are taken, or all if there are fewer.
        num_samples: usize = 128, in AtLeastOne;
        /// Widen bottlenecks by 1 / density, so that as many weights are kept as a dense one has.
        large_sparse: bool = false;

        ..bottlenecks: BottleneckConfig = BottleneckConfig::default();
    }
}

const SPARSE: Variant = Variant {
    method: SparseAdapterConfig::NAME,
    default_dim: |hidden_size| hidden_size.min(64),
};

/// How many weights are kept.
#[derive(Clone, Debug, PartialEq)]
enum Kept {
    /// Of all together.
    Together(usize),
    /// Of each matrix.
    Each(Vec<usize>),
}

impl Kept {
    fn count(&self) -> usize {
        match self {
            Self::Together(count) => *count,
            Self::Each(counts) => counts.iter().sum(),
        }
    }

    /// The places of the kept weights of each matrix.
    fn choose(&self, scores: &[Vec<f32>]) -> Vec<Vec<i32>> {
        match self {
            Self::Together(count) => largest(scores, *count),
            Self::Each(counts) => {
                let pairs = scores.iter().zip(counts);
                let own =
                    pairs.map(|(scores, count)| largest(std::slice::from_ref(scores), *count));
                own.flatten().collect()
            }
        }
    }
}

impl SparseAdapterConfig {
    /// The bottlenecks as they are built.
    fn widened(&self, base: &Base) -> Result<BottleneckConfig, MethodError> {
        if !self.large_sparse {
            return Ok(self.bottlenecks.clone());
        }
        let dim = self.bottlenecks.dim(&SPARSE, base.dimensions.hidden_size)?;
        Ok(BottleneckConfig {
            bottleneck_dim: Some((dim as f64 / self.density).round() as usize),
            reduction_factor: None,
            ..self.bottlenecks.clone()
        })
    }

    /// How many of the weights of matrices of these shapes are kept.
    fn kept(&self, shapes: &[[usize; 2]]) -> Result<Kept, MethodError> {
        let sizes = shapes.iter().map(|[rows, columns]| rows * columns);
        let all: usize = sizes.clone().sum();
        let pruned = ((1.0 - self.density) * all as f64).ceil().max(0.0) as usize;
        let together = all.saturating_sub(pruned);
        let kept = match (self.prune_score, self.prune_scope) {
            (Score::ErdosRenyi, _) => Kept::Each(erdos_renyi(shapes, together)),
            (_, Scope::Global) => Kept::Together(together),
            (_, Scope::Local) => {
                let pruned = |size: usize| ((1.0 - self.density) * size as f64).max(0.0) as usize;
                Kept::Each(
                    sizes
                        .map(|size| size.saturating_sub(pruned(size)))
                        .collect(),
                )
            }
        };
        if self.density > 1.0 || kept.count() == 0 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "density",
                value: self.density.to_string(),
                expected: format!("it must be at most 1 and keep one of the {all} weights"),
            });
        }
        Ok(kept)
    }
}

/// How many entries of matrices of these shapes are kept, `count` in all, where the densities are
/// in proportion to `(in + out) / (in · out)` and at most 1.
fn erdos_renyi(shapes: &[[usize; 2]], count: usize) -> Vec<usize> {
    let sizes: Vec<f64> = shapes.iter().map(|[o, i]| (o * i) as f64).collect();
    let shares: Vec<f64> = shapes.iter().map(|[o, i]| (o + i) as f64).collect();
    let mut full = vec![false; shapes.len()];
    loop {
        let of = |values: &[f64], wanted: bool| -> f64 {
            let chosen = values
                .iter()
                .zip(&full)
                .filter(|(_, full)| **full == wanted);
            chosen.map(|(value, _)| value).sum()
        };
        let factor = (count as f64 - of(&sizes, true)) / of(&shares, false).max(1.0);
        let over = |index: &usize| !full[*index] && factor * shares[*index] > sizes[*index];
        let Some(over) = (0..full.len()).find(over) else {
            let exact = (0..full.len()).map(|index| match full[index] {
                true => sizes[index],
                false => factor * shares[index],
            });
            return rounded(&exact.collect::<Vec<_>>(), count);
        };
        full[over] = true;
    }
}

/// Whole numbers near these, which add up to `count`.
fn rounded(exact: &[f64], count: usize) -> Vec<usize> {
    let (mut sum, mut before) = (0.0, 0);
    let last = exact.len().saturating_sub(1);
    let whole = exact.iter().enumerate().map(|(index, value)| {
        sum += value;
        let until = match index == last {
            true => count,
            false => sum.round() as usize,
        };
        let own = until - before;
        before = until;
        own
    });
    whole.collect()
}

impl MethodConfig for SparseAdapterConfig {
    const NAME: &'static str = "sparse-adapter";
    const PEFT_TYPE: &'static str = "SPARSE_ADAPTER";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "bottlenecks of which most weights are pruned before training";
    const PAPER: &'static str = "He et al. 2022, arXiv 2210.04284";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        let with = |score: &str, scope: &str, density: f64, large: bool| {
            json!({
                "bottleneck_dim": 4, "non_linearity": "gelu", "prune_score": score,
                "prune_scope": scope, "density": density, "large_sparse": large,
            })
        };
        vec![
            with("snip", "global", 0.6, false),
            with("grasp", "local", 0.5, true),
            with("magnitude", "global", 1.0, false),
            with("erdos-renyi", "global", 0.3, false),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let bottlenecks = self.widened(base)?;
        let mut declare = |role| bottlenecks.declare(&SPARSE, base, role, parameters);
        let attention = declare(Role::AttentionOutput)?;
        let feed_forward = declare(Role::FeedForwardOut)?;
        let weights = attention.iter().chain(&feed_forward).flatten();
        let weights = weights.flat_map(Bottleneck::weights).cloned();
        let weights: Vec<Param> = weights.collect();
        let kept = self.kept(&shapes(&weights))?;
        let trainable = self.count(base)?;
        let placement = Placement::Sequential;
        let adapters = InLayers::new(&SPARSE, placement, feed_forward, trainable);
        Ok(Box::new(SparseAdapter {
            adapters: adapters.with_attention(attention),
            weights,
            config: self.clone(),
            kept,
            trainable,
            mask: None,
            seed: parameters.seed(),
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let bottlenecks = self.widened(base)?;
        let width = base.dimensions.hidden_size;
        let dim = bottlenecks.dim(&SPARSE, width)?;
        let count = 2 * bottlenecks.layers(&SPARSE, base)?;
        let shapes = [[dim, width], [width, dim]].repeat(count);
        Ok(self.kept(&shapes)?.count() + count * (width + dim))
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(&SPARSE, hidden_size),
            ..self.clone()
        }
    }
}

fn shapes(weights: &[Param]) -> Vec<[usize; 2]> {
    let shape = |weight: &Param| [weight.shape()[0], weight.shape()[1]];
    weights.iter().map(shape).collect()
}

/// Houlsby's adapters, and the weights of theirs that are trained.
#[derive(Debug)]
struct SparseAdapter {
    adapters: InLayers<Bottleneck>,
    /// The matrices.
    weights: Vec<Param>,
    config: SparseAdapterConfig,
    kept: Kept,
    trainable: usize,
    /// The trained weights of each matrix; none before they are chosen.
    mask: Option<Vec<Chosen>>,
    seed: u64,
}

impl SparseAdapter {
    fn scores(&self, data: &mut dyn CalibrationData) -> Result<Vec<Vec<f32>>, MethodError> {
        let weights = self.weights.iter();
        let times = |gradients: Vec<Vec<f32>>, sign: fn(f32) -> f32| {
            let products = self
                .weights
                .iter()
                .zip(gradients)
                .map(|(weight, gradient)| {
                    let pairs = weight.to_vec().into_iter().zip(gradient);
                    pairs
                        .map(|(weight, gradient)| sign(weight * gradient))
                        .collect()
                });
            products.collect()
        };
        Ok(match self.config.prune_score {
            Score::Random | Score::ErdosRenyi => {
                let draw = |weight: &Param| name_id(&format!("{}/score", weight.key())) ^ self.seed;
                weights
                    .map(|weight| random::normal(draw(weight), weight.count(), 1.0))
                    .collect()
            }
            Score::Magnitude => weights
                .map(|weight| weight.to_vec().into_iter().map(f32::abs).collect())
                .collect(),
            Score::Snip => times(self.gradients(data)?, f32::abs),
            Score::Grasp => times(self.hessian_gradient(data)?, |score| score),
        })
    }

    /// The sum of the gradients of the training examples, batch by batch.
    fn gradients(&self, data: &mut dyn CalibrationData) -> Result<Vec<Vec<f32>>, MethodError> {
        let examples = self.config.num_samples.min(data.examples());
        let zeros = self.weights.iter().map(|weight| vec![0.0; weight.count()]);
        let mut sums: Vec<Vec<f32>> = zeros.collect();
        let (weights, adapter) = (&self.weights, &self.adapters);
        data.gradients(examples, Each::Batch, weights, adapter, &mut |gradients| {
            for (sum, weight) in sums.iter_mut().zip(weights) {
                let Some(gradient) = gradients.get(weight) else {
                    continue;
                };
                let gradient = gradient.clone().try_into_vec_as::<f32>();
                let gradient =
                    gradient.expect("gradients are f32 and on a device that can be read");
                for (sum, value) in sum.iter_mut().zip(gradient) {
                    *sum += value;
                }
            }
        })?;
        Ok(sums)
    }

    /// `H g`: the difference of the gradients at two points around the weights, by the length of
    /// the step between them.
    fn hessian_gradient(
        &self,
        data: &mut dyn CalibrationData,
    ) -> Result<Vec<Vec<f32>>, MethodError> {
        let gradients = self.gradients(data)?;
        let length = |all: &[Vec<f32>]| -> f64 {
            let squares = all.iter().flatten().map(|value| f64::from(*value).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let start: Vec<Vec<f32>> = self.weights.iter().map(Param::to_vec).collect();
        // A hundredth of the weights' own length: far above rounding, and nearly straight.
        let step = 0.01 * length(&start) / length(&gradients).max(f64::MIN_POSITIVE);
        let mut at = |sign: f64| {
            for ((weight, start), gradient) in self.weights.iter().zip(&start).zip(&gradients) {
                let moved = start.iter().zip(gradient);
                let moved = moved.map(|(start, gradient)| {
                    (f64::from(*start) + sign * step * f64::from(*gradient)) as f32
                });
                weight.set_values(moved.collect());
            }
            self.gradients(data)
        };
        let found = at(0.5).and_then(|above| Ok((above, at(-0.5)?)));
        for (weight, start) in self.weights.iter().zip(start) {
            weight.set_values(start);
        }
        let (above, below) = found?;
        let difference = |(above, below): (f32, f32)| (f64::from(above - below) / step) as f32;
        let of_weight = |(above, below): (Vec<f32>, Vec<f32>)| {
            above.into_iter().zip(below).map(difference).collect()
        };
        Ok(above.into_iter().zip(below).map(of_weight).collect())
    }

    fn set_mask(&mut self, indices: Vec<Vec<i32>>) {
        let chosen = indices.into_iter().zip(&self.weights);
        let chosen = chosen.map(|(indices, weight)| Chosen::new(indices, weight));
        self.mask = Some(chosen.collect());
    }

    /// Each matrix with its trained weights; nothing before they are chosen.
    fn chosen(&self) -> impl Iterator<Item = (&Param, &Chosen)> {
        self.weights.iter().zip(self.mask.iter().flatten())
    }

    fn is_pruned(&self, param: &Param) -> bool {
        self.weights.iter().any(|weight| weight.id() == param.id())
    }
}

/// The keys of a matrix's indices and values in the file.
fn keys(weight: &Param) -> [String; 2] {
    ["indices", "values"].map(|part| format!("{}.{part}", weight.key()))
}

impl Adapter for SparseAdapter {
    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.adapters.sublayer(sublayer, output, cx)
    }

    fn first_layer(&self) -> usize {
        self.adapters.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.adapters.uses(hook)
    }
}

impl Method for SparseAdapter {
    fn begin_stage(
        &mut self,
        _stage: usize,
        _head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        let scores = self.scores(data)?;
        let mut all = scores.iter().flatten();
        if !all.clone().all(|score| score.is_finite()) || all.all(|score| *score == 0.0) {
            return Err(MethodError::Calibration(
                "the weights' scores are all zero or not finite: with `init_weights` = mam_adapter \
                 the up-projections are zero and no gradient reaches the others; take bert"
                    .to_owned(),
            ));
        }
        self.set_mask(self.kept.choose(&scores));
        for (weight, chosen) in self.chosen() {
            weight.update(|values| chosen.only(values));
        }
        Ok(())
    }

    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for (weight, chosen) in self.chosen() {
            chosen.mask(gradients, weight);
        }
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        self.chosen()
            .any(|(weight, chosen)| weight.id() == param.id() && chosen.indices.is_empty())
    }

    fn state(&self) -> Vec<Stored> {
        let chosen = self.chosen().filter(|(_, it)| !it.indices.is_empty());
        chosen
            .map(|(weight, chosen)| Stored::i32(mask_key(weight), chosen.indices.clone()))
            .collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let mut mask = Vec::new();
        for weight in &self.weights {
            let key = mask_key(weight);
            let indices = match state.shape(&key) {
                Some(_) => state.take_indices(&key)?.unwrap_or_default(),
                None => Vec::new(),
            };
            check_indices(SparseAdapterConfig::NAME, &key, weight, &indices)?;
            mask.push(indices);
        }
        self.mask = None;
        if mask.iter().any(|indices| !indices.is_empty()) {
            self.set_mask(mask);
        }
        Ok(())
    }

    /// Weights that are zero are left out.
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let mut stored = Vec::new();
        for param in parameters.stored() {
            if !self.is_pruned(param) {
                stored.push(Stored::of(param));
                continue;
            }
            let entries = (0i32..).zip(param.to_vec());
            let (indices, values): (Vec<i32>, Vec<f32>) =
                entries.filter(|(_, value)| *value != 0.0).unzip();
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
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let pruned: HashSet<ParamId> = self.weights.iter().map(Param::id).collect();
        let mut mask = Vec::new();
        for param in parameters.stored() {
            if !pruned.contains(&param.id()) {
                if let Some(values) = file.take(param.key(), param.shape())? {
                    param.set_values(values);
                }
                continue;
            }
            let [places, contents] = keys(param);
            let mut all = vec![0.0; param.count()];
            let is_there = file.shape(&places).is_some() || file.shape(&contents).is_some();
            let indices = match is_there {
                true => file.take_indices(&places)?.unwrap_or_default(),
                false => Vec::new(),
            };
            check_indices(SparseAdapterConfig::NAME, &places, param, &indices)?;
            if is_there && let Some(values) = file.take(&contents, &[indices.len()])? {
                for (index, value) in indices.iter().zip(values) {
                    all[*index as usize] = value;
                }
            }
            param.set_values(all);
            mask.push(indices);
        }
        self.set_mask(mask);
        Ok(())
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.adapters.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.trainable
    }

    fn trainable(&self, _parameters: &ParameterSet) -> usize {
        self.trainable
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_models::adapter::name_id;
    use epiphyte_models::{Adapter, Model};
    use epiphyte_ops::random;
    use serde_json::{Value, json};

    use super::{SparseAdapterConfig, erdos_renyi};
    use crate::framework::method::{Method, MethodConfig};
    use crate::small_bert::{bert, bert_base_count};
    use crate::{CalibrationData, Each, Gradients, MethodError, Param, ParameterSet};

    /// Examples whose loss is `½ Σ a w²`: the gradient of a weight is `a w`, given as three times
    /// that in one batch and twice its opposite in another, and the Hessian is `a`.
    ///
    /// The number multiplies all gradients.
    struct Quadratic(f32);

    fn curvature(param: &Param) -> Vec<f32> {
        random::normal(name_id(param.key()), param.count(), 1.0)
    }

    impl CalibrationData for Quadratic {
        fn examples(&self) -> usize {
            2
        }

        fn forward(&mut self, _: usize, _: &dyn Adapter) -> Result<(), MethodError> {
            Ok(())
        }

        fn forward_text(&mut self, _: &[u32], _: &dyn Adapter) -> Result<(), MethodError> {
            Ok(())
        }

        fn gradients(
            &mut self,
            _examples: usize,
            each: Each,
            params: &[Param],
            _adapter: &dyn Adapter,
            see: &mut dyn FnMut(&Gradients),
        ) -> Result<(), MethodError> {
            assert_eq!(each, Each::Batch);
            for factor in [3.0, -2.0] {
                let mut gradients = Gradients::new();
                for param in params {
                    let pairs = param.to_vec().into_iter().zip(curvature(param));
                    let values = pairs.map(|(w, a)| self.0 * factor * a * w);
                    let values: Vec<f32> = values.collect();
                    let data = TensorData::new(values, [param.count()]);
                    gradients.add(param, Tensor::from_data(data, &Device::default()));
                }
                see(&gradients);
            }
            Ok(())
        }
    }

    /// The method on a small BERT, after its weights were pruned, with its parameters.
    fn pruned(
        model: &Model,
        settings: &Value,
    ) -> Result<(Box<dyn Method>, ParameterSet), MethodError> {
        pruned_by(model, settings, Quadratic(1.0))
    }

    fn pruned_by(
        model: &Model,
        settings: &Value,
        mut data: Quadratic,
    ) -> Result<(Box<dyn Method>, ParameterSet), MethodError> {
        let config: SparseAdapterConfig = serde_json::from_value(settings.clone()).unwrap();
        let mut parameters = ParameterSet::new(&Device::default(), 3);
        let mut method = config.build(model.base(), &mut parameters)?;
        parameters.track(true);
        let head = ParameterSet::new(&Device::default(), 3);
        method.begin_stage(0, &head, &mut data)?;
        parameters.track(false);
        Ok((method, parameters))
    }

    fn weights(parameters: &ParameterSet) -> Vec<(String, Vec<f32>)> {
        let weights = parameters.trained();
        let weights = weights.filter(|param| param.key().ends_with("weight"));
        weights
            .map(|param| (param.key().to_owned(), param.to_vec()))
            .collect()
    }

    #[test]
    fn counts_on_bert_base_are_those_of_the_code() {
        // Of one layer a twelfth, up to rounding.
        let twelve = |settings| bert_base_count("sparse-adapter", settings, 0);
        let expected = 1_435_545;
        assert!(twelve(json!({ "density": 0.6 })).abs_diff(expected) < 12);
        // As many weights as without pruning, and the biases of the wider bottlenecks.
        let large = json!({ "density": 0.5, "large_sparse": true });
        assert_eq!(twelve(large), 2_359_296 + 24 * (128 + 768));
    }

    #[test]
    fn exactly_the_share_is_kept() {
        let model = bert();
        for (score, scope, density, kept) in [
            ("random", "global", 0.6, 153),
            ("random", "local", 0.6, 8 * 20),
            ("magnitude", "global", 0.25, 64),
            ("snip", "global", 0.4, 102),
            ("grasp", "global", 0.5, 128),
            ("erdos-renyi", "global", 0.5, 128),
            ("snip", "global", 1.0, 256),
        ] {
            let settings = json!({
                "bottleneck_dim": 4, "prune_score": score, "prune_scope": scope, "density": density,
            });
            let (method, parameters) = pruned(&model, &settings).unwrap();
            let values = weights(&parameters);
            let values: Vec<f32> = values.into_iter().flat_map(|(_, values)| values).collect();
            assert_eq!(values.len(), 256);
            let left = values.iter().filter(|value| **value != 0.0).count();
            assert_eq!(left, kept, "{score} {scope}");
            assert_eq!(method.trainable(&parameters), kept + 4 * (4 + 8));
            assert_eq!(method.changed(), kept + 4 * (4 + 8));
        }
    }

    /// With the loss above SNIP's score is `|a| w²`, that of GraSP `a² w²`.
    #[test]
    fn scores_choose_what_their_definitions_say() {
        let model = bert();
        let settings = |score: &str, density: f64| json!({ "bottleneck_dim": 4, "prune_score": score, "density": density });
        let (_, dense) = pruned(&model, &settings("magnitude", 1.0)).unwrap();
        let pairs: Vec<(f32, f32)> = dense
            .trained()
            .filter(|param| param.key().ends_with("weight"))
            .flat_map(|param| param.to_vec().into_iter().zip(curvature(param)))
            .collect();
        for (score, expected) in [
            ("magnitude", (|(w, _)| w.abs()) as fn(&(f32, f32)) -> f32),
            ("snip", |(w, a)| a.abs() * w * w),
            ("grasp", |(w, a)| a * a * w * w),
        ] {
            let (_, parameters) = pruned(&model, &settings(score, 0.25)).unwrap();
            let values = weights(&parameters);
            let values: Vec<f32> = values.into_iter().flat_map(|(_, values)| values).collect();
            let expected: Vec<f32> = pairs.iter().map(expected).collect();
            let mut order: Vec<usize> = (0..expected.len()).collect();
            order.sort_by(|a, b| expected[*b].total_cmp(&expected[*a]));
            for (place, index) in order.into_iter().enumerate() {
                assert_eq!(values[index] != 0.0, place < 64, "{score} {place}");
                let unchanged = values[index] == pairs[index].0;
                assert!(unchanged || place >= 64, "{score} {place}");
            }
        }
    }

    #[test]
    fn densities_follow_the_sizes_of_matrices() {
        // (in + out) is 20 and 40: twice as many entries in the second, of 84 and 256.
        assert_eq!(erdos_renyi(&[[6, 14], [8, 32]], 90), [30, 60]);
        // The first would get more than it has.
        assert_eq!(erdos_renyi(&[[2, 10], [16, 16]], 240), [20, 220]);
        assert_eq!(erdos_renyi(&[[4, 4], [4, 4]], 32), [16, 16]);
    }

    #[test]
    fn zeros_are_not_scored_in_silence() {
        let settings = json!({ "bottleneck_dim": 4 });
        let pruned = pruned_by(&bert(), &settings, Quadratic(0.0)).map(|_| ());
        let error = pruned.unwrap_err().to_string();
        assert!(error.contains("take bert"), "{error}");
        let config: SparseAdapterConfig =
            serde_json::from_value(json!({ "density": 1.5 })).unwrap();
        let error = config.count(bert().base()).unwrap_err().to_string();
        assert!(error.contains("`density` is 1.5"), "{error}");
    }
}
