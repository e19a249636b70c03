//! AdaMSS: low-rank changes of groups of a weight's rows, inside its largest singular directions.
//!
//! Zheng, Lu, Dong, Ji, Cao, Lin, "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient
//! Fine-Tuning", NeurIPS 2025; the definition is HF PEFT's code.
//!
//! Let `[W | b] ≈ U Σ N` with `U: [out, q]` and `N: [q, in + 1]` be the `q = min(r, out, in + 1)`
//! largest singular values of a layer's weight with its bias as last column (where it has one), as
//! `torch.svd_lowrank` finds them from random numbers of `random_seed`. The rows of U fall into K
//! groups `I_k` by k-means, as scikit-learn finds them, and
//!
//! `y = x Wᵀ + b + Δ`, with `Δ[:, I_k] = ([x | 1] Nᵀ) A_kᵀ B_kᵀ`
//!
//! with `A_k: [ρ_k, q]` and `B_k: [|I_k|, ρ_k]`. `A_k` starts as the largest right singular vectors
//! of `U[I_k]`, `B_k` at zero, so nothing changes at first. `ρ_k` is `subspace_rank`, at most
//! `|I_k|`, and with `use_dynamic_rank` at most the number of squared singular values of `U[I_k]`
//! above `svd_threshold` of the largest.
//!
//! With `use_asa` groups are frozen on the way (they go on acting): in the steps from `init_warmup`
//! to `final_warmup` each value θ with gradient g has moving averages of its importance `|θ g|` and
//! of how uncertain that is, and every `mask_interval` steps those groups go on that have the
//! largest means of importance times uncertainty, fewer and fewer, down to `asa_target_subspaces`
//! in all layers together.
//!
//! Files hold N, and not which rows form a group: HF PEFT runs k-means again, and so does this.
//! Where the rounding of its single precision would decide where a row belongs, such a file is
//! refused: with all directions of a layer (`q = out`) all rows of U are equally far apart. Ours
//! hold the group of each row too, which PEFT passes over.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ_k ρ_k (q + \|I_k\|)` over the targets |
//! | changes | `Σ in · out`, and `Σ out` of the biases |
//! | file | `<path>.adamss_A.<k>` `[ρ_k, q]`, `<path>.adamss_B.<k>` `[\|I_k\|, ρ_k]`, `<path>.adamss_newB` `[q, in + 1]`; ours `<path>.adamss_rows` `[out]` |
//! | merges | `W[I_k] + B_k A_k N[:, :in]`, `b[I_k] + B_k A_k N[:, in]` |

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Weight, add, linear};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig, Stored, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Delta, Deltas, frozen_weight};
use crate::parts::kmeans::{Clusters, kmeans};
use crate::parts::low_rank_start::{subspace_svd, to_vec};
use crate::parts::svd::Svd;
use crate::parts::torch_generator::TorchGenerator;
use crate::{Gradients, MethodError, StepInfo};

crate::settings! {
    /// The settings of AdaMSS, under HF PEFT's names.
    pub struct AdaMssConfig {
        /// Singular directions of each weight.
        r: usize = 100, flag "rank", in Size;
        /// Groups of rows in each layer.
        num_subspaces: usize = 5, in Size;
        /// Rank of the update of each group.
        subspace_rank: usize = 1, in Size;
        /// Start: orthogonal, which changes nothing at first, or random.
        init_weights: AdaMssStart = AdaMssStart::Orthogonal, as Text;
        /// Give a group a smaller rank where its singular values are small.
        use_dynamic_rank: bool = false;
        /// Share of the largest squared singular value that counts, with use_dynamic_rank.
        svd_threshold: f64 = 0.1, in NotNegative;
        /// Seed of the decomposition, apart from the run's.
        random_seed: u64 = 0;
        /// Freeze the groups that matter least while training.
        use_asa: bool = false;
        /// How many groups are trained in the end, in all layers together, with use_asa.
        asa_target_subspaces: usize = 50, in AtLeastOne;
        /// First step that counts for use_asa.
        init_warmup: u64 = 50;
        /// Last step that counts for use_asa.
        final_warmup: u64 = 1000;
        /// Steps from one choice of groups to the next, with use_asa.
        mask_interval: u64 = 100, in AtLeastOne;
        /// Decay of the moving average of importance, with use_asa.
        asa_importance_beta: f64 = 0.85, in SinglePrecision;
        /// Decay of the moving average of uncertainty, with use_asa.
        asa_uncertainty_beta: f64 = 0.85, in SinglePrecision;
        /// Exponent of the number of groups over the steps, with use_asa.
        asa_schedule_exponent: f64 = 3.0, in Positive;

        ..targets: LayerTargets = LayerTargets::default();
    }
}

/// How `B` starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdaMssStart {
    /// At zero: `orthogonal`, as `A` then is.
    Orthogonal,
    /// At random; `null` in a file.
    Random,
}

impl Serialize for AdaMssStart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Orthogonal => serializer.serialize_str("orthogonal"),
            Self::Random => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for AdaMssStart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null | Value::Bool(false) => Ok(Self::Random),
            Value::String(name) if name == "random" => Ok(Self::Random),
            Value::String(name) if name == "orthogonal" => Ok(Self::Orthogonal),
            other => Err(serde::de::Error::custom(format!(
                "{other} is not known; orthogonal and random are"
            ))),
        }
    }
}

/// The seed of scikit-learn's k-means, and its iterations, in HF PEFT's code.
const KMEANS: (u64, usize) = (123_456_789, 10);

/// How one linear layer is divided.
struct Division {
    /// Left singular vectors, `[out, q]`.
    left: Vec<Vec<f32>>,
    /// Right singular vectors, `[q, in]` or `[q, in + 1]`.
    right: Tensor<2>,
    clusters: Clusters,
}

impl Division {
    fn new(config: &AdaMssConfig, base: &Base, linear: &LinearInfo) -> Result<Self, MethodError> {
        let size = config.directions(base, linear)?;
        let weight = frozen_weight(base, linear).to_tensor();
        let bias = base.tensor(&format!("{}.bias", linear.site.path));
        let matrix = match bias.filter(|_| linear.bias) {
            Some(bias) => Tensor::cat(vec![weight, bias.to_flat().unsqueeze_dim(1)], 1),
            None => weight,
        };
        let [rows, columns] = matrix.dims();
        let is_wide = rows < columns;
        let tall = if is_wide { matrix.transpose() } else { matrix };
        let shape = [rows.min(columns), size];
        let random = TorchGenerator::new(config.random_seed).normal(shape[0] * size, 1.0);
        let random = Tensor::from_data(TensorData::new(random, shape), &tall.device());
        let svd = subspace_svd(tall, random, 2);
        let (long, short) = (svd.left(0..size, 0.0), svd.right(0..size, 0.0));
        let (left, right) = match is_wide {
            true => (short.transpose(), long.transpose()),
            false => (long, short),
        };
        let left: Vec<Vec<f32>> = to_vec(left).chunks(size).map(<[f32]>::to_vec).collect();
        let in_double = |row: &Vec<f32>| row.iter().map(|&value| f64::from(value)).collect();
        let points: Vec<Vec<f64>> = left.iter().map(in_double).collect();
        let (seed, iterations) = KMEANS;
        Ok(Self {
            clusters: kmeans(&points, config.groups(linear), iterations, seed),
            left,
            right,
        })
    }

    /// The rows of each group.
    fn groups(&self) -> Vec<Vec<usize>> {
        let of_row = &self.clusters.of_row;
        let count = of_row.iter().max().map_or(0, |last| last + 1);
        let mut groups = vec![Vec::new(); count];
        for (row, &group) in of_row.iter().enumerate() {
            groups[group].push(row);
        }
        groups
    }

    /// The rank of a group, and the start of its `A`, `[rank, q]`.
    fn start(&self, config: &AdaMssConfig, group: &[usize]) -> (usize, Tensor<2>) {
        let size = self.right.dims()[0];
        let rows = group.iter().flat_map(|&row| self.left[row].iter().copied());
        let rows = TensorData::new(rows.collect::<Vec<f32>>(), [group.len(), size]);
        let svd = Svd::new(Tensor::from_data(rows, &self.right.device()));
        let mut rank = config.subspace_rank.min(group.len());
        if config.use_dynamic_rank {
            let squares = svd.values.iter().map(|value| value * value);
            let squares: Vec<f64> = squares.collect();
            let least = config.svd_threshold * squares[0];
            let large = squares.iter().filter(|square| **square > least).count();
            rank = rank.min(large).max(1);
        }
        (rank, svd.right(0..rank, 0.0))
    }
}

impl AdaMssConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// `q`, the singular directions of a linear layer.
    fn directions(&self, base: &Base, linear: &LinearInfo) -> Result<usize, MethodError> {
        if linear.transposed {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "HF PEFT has no AdaMSS of layers that are stored transposed (Conv1D); \
                         use another method"
                    .to_owned(),
            });
        }
        let columns = linear.inputs + usize::from(linear.bias);
        let size = self.r.min(linear.outputs).min(columns);
        if self.subspace_rank > size {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "subspace_rank",
                value: self.subspace_rank.to_string(),
                expected: format!(
                    "`{}` has {size} singular directions; lower it or raise r",
                    linear.site.path
                ),
            });
        }
        Ok(size)
    }

    /// `K`, the groups of a linear layer's rows.
    fn groups(&self, linear: &LinearInfo) -> usize {
        self.num_subspaces.min(linear.outputs)
    }

    /// Declares the change of a linear layer.
    fn declare(
        &self,
        base: &Base,
        linear: &LinearInfo,
        parameters: &mut ParameterSet,
    ) -> Result<Subspaces, MethodError> {
        let path = &linear.site.path;
        let division = Division::new(self, base, linear)?;
        let [size, columns] = division.right.dims();
        let groups = division.groups();
        let mut places = vec![0; linear.outputs];
        for (place, &row) in groups.iter().flatten().enumerate() {
            places[row] = place as i32;
        }
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for (number, group) in groups.iter().enumerate() {
            let (rank, start) = division.start(self, group);
            let key = |name: &str| format!("{path}.adamss_{name}.{number}");
            let init = Init::Values(to_vec(start).into());
            a.push(parameters.declare(key("A"), &[rank, size], init));
            let init = match self.init_weights {
                AdaMssStart::Orthogonal => Init::Zeros,
                AdaMssStart::Random => Init::Normal { std: 0.01 },
            };
            b.push(parameters.declare(key("B"), &[group.len(), rank], init));
        }
        let right = Init::Values(to_vec(division.right).into());
        let key = format!("{path}.adamss_newB");
        Ok(Subspaces {
            a,
            b,
            directions: parameters.constant(key, &[size, columns], right),
            places,
            clusters: division.clusters,
            inputs: linear.inputs,
            rows_key: Some(format!("{path}.adamss_rows")),
        })
    }
}

impl MethodConfig for AdaMssConfig {
    const NAME: &'static str = "adamss";
    const PEFT_TYPE: &'static str = "ADAMSS";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "low-rank changes of groups of rows, inside the weight's largest singular directions";
    const PAPER: &'static str = "Zheng et al. 2025, NeurIPS 2025";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == AdaMssStart::Orthogonal
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 6, "num_subspaces": 3, "subspace_rank": 2 }),
            json!({
                "r": 100, "num_subspaces": 4, "use_dynamic_rank": true, "subspace_rank": 3,
                "svd_threshold": 0.5, "target_modules": "all-linear", "init_weights": "random",
            }),
            json!({
                "r": 5, "num_subspaces": 2, "use_asa": true, "asa_target_subspaces": 3,
                "init_warmup": 0, "final_warmup": 4, "mask_interval": 2,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?;
        let deltas = targets
            .into_iter()
            .map(|linear| Ok((linear, self.declare(base, linear, parameters)?)));
        let deltas = deltas.collect::<Result<Vec<_>, MethodError>>()?;
        let groups = deltas
            .iter()
            .flat_map(|(_, delta)| delta.a.iter().zip(&delta.b));
        let groups = groups.map(|(a, b)| Group::new([a.clone(), b.clone()]));
        let groups = groups.filter(|_| self.use_asa).collect();
        Ok(Box::new(AdaMss {
            layers: Deltas::new(base, deltas),
            groups,
            config: self.clone(),
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        if self.use_asa && self.init_warmup >= self.final_warmup {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "init_warmup",
                value: self.init_warmup.to_string(),
                expected: format!(
                    "with use_asa it must be below final_warmup, {}",
                    self.final_warmup
                ),
            });
        }
        self.selection().check_start(base)
    }

    /// Groups of rank one have as many values however many rows each has. Those of other ranks are
    /// as large as k-means makes them, which this runs.
    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let mut count = 0;
        for linear in self.selection().of(base)? {
            if self.subspace_rank == 1 {
                let size = self.directions(base, linear)?;
                count += self.groups(linear) * size + linear.outputs;
                continue;
            }
            let division = Division::new(self, base, linear)?;
            let size = division.right.dims()[0];
            let groups = division.groups();
            let counts = groups
                .iter()
                .map(|group| division.start(self, group).0 * (size + group.len()));
            count += counts.sum::<usize>();
        }
        Ok(count)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = &[
        "init_weights",
        "use_asa",
        "asa_target_subspaces",
        "init_warmup",
        "final_warmup",
        "mask_interval",
        "asa_importance_beta",
        "asa_uncertainty_beta",
        "asa_schedule_exponent",
    ];

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}

/// AdaMSS on one linear layer.
#[derive(Debug)]
struct Subspaces {
    /// `[ρ_k, q]` of each group.
    a: Vec<Param>,
    /// `[|I_k|, ρ_k]` of each group.
    b: Vec<Param>,
    /// `[q, in]` or `[q, in + 1]`
    directions: Param,
    /// Where each row lies among the rows of all groups, one group after another.
    places: Vec<i32>,
    clusters: Clusters,
    inputs: usize,
    /// The key of the rows' groups in the file, if it holds them.
    rows_key: Option<String>,
}

impl Subspaces {
    /// `A` of all groups one below another, `[Σ ρ_k, q]`, and `B: [out, Σ ρ_k]`, in which a row has
    /// values in the columns of its group.
    fn matrices(&self) -> [Tensor<2>; 2] {
        let a = self.a.iter().map(Param::get::<2>).collect();
        let all: usize = self.a.iter().map(|a| a.shape()[0]).sum();
        let mut before = 0;
        let blocks = self.b.iter().map(|b| {
            let block = b.get::<2>();
            let [rows, rank] = block.dims();
            let zeros = |columns| Tensor::zeros([rows, columns], &block.device());
            let after = all - before - rank;
            let left = (before > 0).then(|| zeros(before));
            let right = (after > 0).then(|| zeros(after));
            let parts = left.into_iter().chain([block.clone()]).chain(right);
            before += rank;
            Tensor::cat(parts.collect(), 1)
        });
        let blocks: Tensor<2> = Tensor::cat(blocks.collect(), 0);
        let places = Tensor::<1, Int>::from_ints(self.places.as_slice(), &blocks.device());
        [Tensor::cat(a, 0), blocks.select(0, places)]
    }

    fn has_bias(&self) -> bool {
        self.directions.shape()[1] > self.inputs
    }

    /// `N` without its last column, and that column, if it stands for a bias.
    fn directions(&self) -> (Tensor<2>, Option<Tensor<1>>) {
        let all = self.directions.get::<2>();
        let last = self
            .has_bias()
            .then(|| all.clone().narrow(1, self.inputs, 1).flatten(0, 1));
        (all.narrow(1, 0, self.inputs), last)
    }
}

impl Delta for Subspaces {
    const CHANGES_BIAS: bool = true;

    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let (directions, shift) = self.directions();
        let [a, b] = self.matrices();
        let x = product.input().clone();
        let inside = linear(x, &Weight::Trained(directions), shift);
        let low = linear(inside, &Weight::Trained(a), None);
        add(product.compute(), linear(low, &Weight::Trained(b), None))
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [a, b] = self.matrices().map(Tensor::inner);
        weight + b.matmul(a.matmul(self.directions().0.inner()))
    }

    fn changes_bias(&self) -> bool {
        self.has_bias()
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        match self.directions().1 {
            Some(shift) => {
                let [a, b] = self.matrices().map(Tensor::inner);
                let change = b.matmul(a.matmul(shift.inner().unsqueeze_dim(1)));
                bias + change.flatten(0, 1)
            }
            None => bias,
        }
    }

    fn stored(&self) -> Vec<Stored> {
        let rows = self.rows_key.as_ref().map(|key| {
            let groups = self.clusters.of_row.iter().map(|&group| group as i32);
            Stored::i32(key.clone(), groups.collect())
        });
        rows.into_iter().collect()
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let Some(key) = &self.rows_key else {
            return Ok(());
        };
        let own: Vec<i32> = self.clusters.of_row.iter().map(|&it| it as i32).collect();
        let is_same = match file.shape(key) {
            Some(_) => file.take_indices(key)? == Some(own),
            None => {
                self.rows_key = None;
                self.clusters.are_certain
            }
        };
        match is_same {
            true => Ok(()),
            false => Err(MethodError::Configuration {
                method: AdaMssConfig::NAME,
                reason: format!(
                    "which rows `{}` belongs to follows from k-means over the base's weight, which \
                     rounding decides here: another machine or library finds other groups; merge \
                     the adapter where it was trained",
                    self.b[0].key()
                ),
            }),
        }
    }
}

/// A group of rows of one layer, as `use_asa` sees it.
#[derive(Debug)]
struct Group {
    /// Its `A` and `B`.
    params: [Param; 2],
    /// Moving averages over the values of each.
    averages: [Option<Averages>; 2],
    is_frozen: bool,
}

#[derive(Clone, Debug)]
struct Averages {
    importance: Vec<f32>,
    uncertainty: Vec<f32>,
}

impl Averages {
    fn zeros(count: usize) -> Self {
        Self {
            importance: vec![0.0; count],
            uncertainty: vec![0.0; count],
        }
    }

    /// Takes in a step.
    fn update(&mut self, values: &[f32], gradient: &[f32], betas: [f32; 2]) {
        let averages = self.importance.iter_mut().zip(&mut self.uncertainty);
        for ((importance, uncertainty), (value, gradient)) in
            averages.zip(values.iter().zip(gradient))
        {
            let now = (value * gradient).abs();
            let apart = (now - *importance).abs();
            *uncertainty = *uncertainty * betas[1] + apart * (1.0 - betas[1]);
            *importance = *importance * betas[0] + now * (1.0 - betas[0]);
        }
    }

    /// The mean of importance times uncertainty.
    fn score(&self) -> f64 {
        let products = self.importance.iter().zip(&self.uncertainty);
        let products = products.map(|(one, other)| f64::from(one * other));
        products.sum::<f64>() / self.importance.len() as f64
    }
}

impl Group {
    fn new(params: [Param; 2]) -> Self {
        Self {
            params,
            averages: [None, None],
            is_frozen: false,
        }
    }

    /// How much it matters; none if it got no gradient since the last choice.
    fn score(&self) -> Option<f64> {
        let [a, b] = &self.averages;
        Some(a.as_ref()?.score() + b.as_ref()?.score())
    }
}

/// AdaMSS on a base.
#[derive(Debug)]
struct AdaMss {
    layers: Deltas<Subspaces>,
    /// All groups of all layers with `use_asa`, else none.
    groups: Vec<Group>,
    config: AdaMssConfig,
}

impl AdaMss {
    /// How many groups are trained after this step.
    fn wanted(&self, step: u64) -> usize {
        let config = &self.config;
        let (first, last) = (config.init_warmup as f64, config.final_warmup as f64);
        let left = (1.0 - (step as f64 - first) / (last - first)).clamp(0.0, 1.0);
        let (all, target) = (self.groups.len() as f64, config.asa_target_subspaces as f64);
        (target + (all - target) * left.powf(config.asa_schedule_exponent)) as usize
    }

    /// Freezes the groups that are not among the `wanted` that matter most. As in HF PEFT, the last
    /// of these is frozen too, since only what is above its score remains.
    fn freeze(&mut self, wanted: usize) {
        let scores: Vec<f64> = self.groups.iter().filter_map(Group::score).collect();
        if wanted >= scores.len() {
            return;
        }
        let mut sorted = scores;
        sorted.sort_by(|a, b| b.total_cmp(a));
        let least = sorted[wanted.max(1) - 1];
        for group in &mut self.groups {
            if let Some(score) = group.score() {
                group.is_frozen = score <= least;
            }
        }
    }
}

impl Adapter for AdaMss {
    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.layers.linear(site, product, cx)
    }

    fn first_layer(&self) -> usize {
        self.layers.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.layers.uses(hook)
    }
}

impl Method for AdaMss {
    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for group in self.groups.iter().filter(|group| group.is_frozen) {
            group.params.iter().for_each(|param| {
                gradients.take(param);
            });
        }
    }

    fn reads_gradients_after_step(&self) -> bool {
        !self.groups.is_empty()
    }

    fn after_step(&mut self, gradients: &Gradients, info: StepInfo) {
        let config = &self.config;
        let steps = config.init_warmup..=config.final_warmup;
        if self.groups.is_empty() || !steps.contains(&info.step) {
            return;
        }
        let betas = [config.asa_importance_beta, config.asa_uncertainty_beta].map(|it| it as f32);
        for group in &mut self.groups {
            for (param, averages) in group.params.iter().zip(&mut group.averages) {
                if let Some(gradient) = gradients.get(param) {
                    let gradient = gradient.clone().try_into_vec_as::<f32>();
                    let gradient = gradient.expect("gradients are f32 and can be read");
                    let averages = averages.get_or_insert_with(|| Averages::zeros(param.count()));
                    averages.update(&param.to_vec(), &gradient, betas);
                }
            }
        }
        if info.step.is_multiple_of(self.config.mask_interval) {
            self.freeze(self.wanted(info.step));
            for group in &mut self.groups {
                group.averages = [None, None];
            }
        }
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        let mut frozen = self.groups.iter().filter(|group| group.is_frozen);
        frozen.any(|group| group.params.iter().any(|own| own.id() == param.id()))
    }

    fn state(&self) -> Vec<Stored> {
        let mut state = Vec::new();
        for group in &self.groups {
            for (param, averages) in group.params.iter().zip(&group.averages) {
                let Some(averages) = averages else { continue };
                let stored = |name: &str, values: &Vec<f32>| {
                    let key = format!("{}.{name}", param.key());
                    Stored::f32(key, &[values.len()], values.clone())
                };
                state.push(stored("importance", &averages.importance));
                state.push(stored("uncertainty", &averages.uncertainty));
            }
        }
        if !self.groups.is_empty() {
            let frozen = self.groups.iter().map(|group| i32::from(group.is_frozen));
            state.push(Stored::i32("adamss_frozen", frozen.collect()));
        }
        state
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        for group in &mut self.groups {
            for (param, averages) in group.params.iter().zip(&mut group.averages) {
                let keys = ["importance", "uncertainty"].map(|it| format!("{}.{it}", param.key()));
                *averages = None;
                if state.shape(&keys[0]).is_none() {
                    continue;
                }
                let mut take = |key: &String| state.take(key, &[param.count()]);
                if let (Some(importance), Some(uncertainty)) = (take(&keys[0])?, take(&keys[1])?) {
                    *averages = Some(Averages {
                        importance,
                        uncertainty,
                    });
                }
            }
        }
        if !self.groups.is_empty()
            && let Some(frozen) = state.take_indices("adamss_frozen")?
        {
            for (group, frozen) in self.groups.iter_mut().zip(frozen) {
                group.is_frozen = frozen != 0;
            }
        }
        Ok(())
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        self.layers.stored(parameters)
    }

    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        self.layers.load(parameters, file)
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.layers.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.layers.changed()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use serde_json::json;

    use super::{AdaMss, AdaMssConfig, Averages, Group};
    use crate::framework::method::Method;
    use crate::framework::parameters::Init;
    use crate::parts::delta::Deltas;
    use crate::small_bert::{bert, module, values};
    use crate::{Gradients, ParameterSet, StepInfo};

    #[test]
    fn counts_are_those_of_the_groups() {
        let model = bert();
        let settings = json!({ "r": 6, "num_subspaces": 2, "subspace_rank": 1 });
        let module = module(&model, "adamss", settings);
        // Two targets in each of two layers, of eight outputs in two groups.
        let counts = module.counts(model.base());
        assert_eq!(counts.trainable_parameters, 4 * (2 * 6 + 8));
        assert_eq!(
            module.config().count(model.base()).unwrap(),
            counts.trainable_parameters
        );
        // Weight and bias are one matrix.
        let path = "bert.encoder.layer.0.attention.self.query";
        let directions = module.parameters().get(&format!("{path}.adamss_newB"));
        assert_eq!(directions.unwrap().shape(), [6, 9]);
    }

    /// Singular directions are orthonormal, and so are the starts of `A`.
    #[test]
    fn a_starts_orthonormal() {
        let model = bert();
        let settings = json!({ "r": 5, "num_subspaces": 1, "subspace_rank": 3 });
        let module = module(&model, "adamss", settings);
        let path = "bert.encoder.layer.1.attention.self.value";
        for (key, rows, columns) in [("adamss_newB", 5, 9), ("adamss_A.0", 3, 5)] {
            let values = values(&module, &format!("{path}.{key}"));
            let row = |at: usize| &values[at * columns..(at + 1) * columns];
            for (one, other) in (0..rows).flat_map(|it| (0..rows).map(move |to| (it, to))) {
                let dot: f32 = row(one).iter().zip(row(other)).map(|(a, b)| a * b).sum();
                let expected = if one == other { 1.0 } else { 0.0 };
                assert!(
                    (dot - expected).abs() < 1e-5,
                    "{key}: {one}, {other}: {dot}"
                );
            }
        }
    }

    #[test]
    fn averages_are_those_of_the_formula() {
        let mut averages = Averages::zeros(2);
        averages.update(&[2.0, -1.0], &[1.0, 3.0], [0.5, 0.75]);
        assert_eq!(averages.importance, [1.0, 1.5]);
        assert_eq!(averages.uncertainty, [0.5, 0.75]);
        averages.update(&[2.0, -1.0], &[-2.0, 0.0], [0.5, 0.75]);
        assert_eq!(averages.importance, [2.5, 0.75]);
        assert_eq!(
            averages.uncertainty,
            [0.5 * 0.75 + 0.25 * 3.0, 0.75 * 0.75 + 0.25 * 1.5]
        );
        let score = (2.5 * 1.125 + 0.75 * 0.9375) / 2.0;
        assert!((averages.score() - score).abs() < 1e-9);
    }

    /// Groups with small gradients are frozen in the steps that PEFT's schedule says, and stay so.
    #[test]
    fn groups_that_matter_least_are_frozen() {
        let model = bert();
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let groups = (0..4).map(|number| {
            let mut declare =
                |name: &str| parameters.declare(format!("{number}.{name}"), &[1, 2], Init::Ones);
            Group::new([declare("A"), declare("B")])
        });
        let mut adamss = AdaMss {
            groups: groups.collect(),
            layers: Deltas::new(model.base(), []),
            config: AdaMssConfig {
                use_asa: true,
                asa_target_subspaces: 2,
                init_warmup: 1,
                final_warmup: 5,
                mask_interval: 2,
                asa_schedule_exponent: 1.0,
                ..AdaMssConfig::default()
            },
        };
        let mut frozen_after = Vec::new();
        for step in 0..7 {
            let mut gradients = Gradients::new();
            for (number, group) in adamss.groups.iter().enumerate() {
                for param in &group.params {
                    let values = Tensor::ones([2], &Default::default()) * (number + 1) as f64;
                    gradients.add(param, values);
                }
            }
            let info = StepInfo {
                step,
                total: 7,
                stage: 0,
                stage_step: step,
                stage_total: 7,
            };
            adamss.after_backward(&mut gradients, info);
            adamss.after_step(&gradients, info);
            let frozen = adamss.groups.iter().map(|group| group.is_frozen);
            frozen_after.push(frozen.collect::<Vec<bool>>());
        }
        // After step 2 three of four are wanted, after step 4 two of what is left.
        let none = [false; 4];
        let some = [true, true, false, false];
        assert_eq!(adamss.wanted(2), 3);
        assert_eq!(adamss.wanted(4), 2);
        assert_eq!(frozen_after, [none, none, some, some, some, some, some]);
        assert!(adamss.may_lack_gradient(&adamss.groups[0].params[1]));
        assert!(!adamss.may_lack_gradient(&adamss.groups[2].params[0]));
    }
}
