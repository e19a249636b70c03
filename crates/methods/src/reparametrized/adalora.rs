//! AdaLoRA: a low-rank path in the form of a singular value decomposition, whose ranks are
//! allocated during training.
//!
//! Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR
//! 2023, arXiv 2303.10512; numbers are those of HF PEFT's implementation.
//!
//! `y = x Wᵀ + b + s · (dropout(x) (A ∘ E)ᵀ) Bᵀ`, with `A: [r, in]`, `E: [r, 1]`, `B: [out, r]`,
//! `r` = `init_r` and `s = α / (init_r + 1e-5)`, which stays when ranks shrink. `A` and `B` start
//! normal with standard deviation 0.02, `E` at zero. The loss gets `orth_reg_weight` times the mean
//! over all `A` and `B` of `‖A Aᵀ - I‖` and `‖Bᵀ B - I‖` (Frobenius; the paper squares it).
//!
//! A triplet is a row of `A`, an entry of `E` and a column of `B`. After the optimizer's step, with
//! `p` a value and `g` its gradient, each value's sensitivity `I = |p g|` and its uncertainty are
//! averaged, `Ī ← β₁ Ī + (1 - β₁) I`, `Ū ← β₂ Ū + (1 - β₂) |I - Ī|`; its score is `Ī Ū`, and a
//! triplet's the score of its `E` plus the mean scores of its row and its column. At step `t` of
//! `T`, counted from 1, the budget of triplets over all matrices falls from `b₀ = Σ init_r` to
//! `b_T = Σ target_r`: `b₀` up to `tinit`, `b_T` from `T - tfinal` on, and
//! `⌊b_T + (b₀ - b_T) (1 - (t - tinit) / (T - tfinal - tinit))³⌋` in between. Every `deltaT` steps
//! `E` of the triplets with the `b₀ - b` lowest scores is set to zero; they may return until the
//! next time. From `T - tfinal` on the ranks are fixed.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ init_r (in + out + 1)` over the targets |
//! | changes | `Σ in · out` over the targets that keep a triplet |
//! | file | `<path>.lora_A`, `<path>.lora_B`, `<path>.lora_E` of the triplets that are kept |
//! | merges | `W + s B (A ∘ E)` |
//!
//! `rank_pattern` in the configuration says which triplets of each matrix are kept. A pruned
//! adapter that is loaded keeps its ranks.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, LowRank};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::gradients::Gradients;
use crate::framework::method::{
    KeyStyle, Method, MethodConfig, StepInfo, Stored, StoredTensors, load_stored,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets, check_rank};
use crate::parts::delta::{Delta, Deltas};
use crate::reparametrized::lora::alpha;

crate::settings! {
    /// The settings of AdaLoRA, under HF PEFT's names.
    #[expect(non_snake_case, reason = "a key of HF PEFT")]
    pub struct AdaLoraConfig {
        /// Rank of each update at the start.
        init_r: usize = 12, in Size;
        /// Mean rank of the updates at the end.
        target_r: usize = 8, in Size;
        /// Steps before ranks shrink.
        tinit: u64 = 0;
        /// Steps at the end in which ranks are fixed.
        tfinal: u64 = 0;
        /// Steps between two allocations of ranks.
        deltaT: u64 = 1, flag "delta-t", in AtLeastOne;
        /// Decay of the averages of sensitivities.
        beta1: f64 = 0.85, in Fraction;
        /// Decay of the averages of uncertainties.
        beta2: f64 = 0.85, in Fraction;
        /// Weight of the penalty that keeps the singular vectors orthogonal.
        orth_reg_weight: f64 = 0.5, in NotNegative;
        /// Steps over which ranks are allocated.
        total_step: Option<u64> = None, in AtLeastOne, unset "all steps of the run";
        /// Triplets that a trained adapter keeps; training decides them.
        rank_pattern: Option<IndexMap<String, Vec<bool>>> = None;
        /// Scale of the update: it is multiplied by alpha / rank; 0 stands for the rank.
        #[serde(serialize_with = "alpha")]
        lora_alpha: f64 = 8.0, flag "alpha", in NotNegative;
        /// Dropout on the input of the low-rank path.
        lora_dropout: f64 = 0.0, flag "dropout", in Fraction;

        ..targets: Targets = Targets::default();
    }
}

impl AdaLoraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.adalora)
    }

    /// The targets, each with the triplets that it keeps.
    fn kept<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, Vec<bool>)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let Some(pattern) = &self.rank_pattern else {
                return Ok((linear, vec![true; self.init_r]));
            };
            // Over a base without head, PEFT's paths lack the base's own prefix.
            let path = linear.site.path.as_str();
            let bare = path.strip_prefix(base.prefix).unwrap_or(path);
            let kept = [path, bare].map(|path| pattern.get(&format!("{path}.lora_E")));
            let problem = match kept.into_iter().flatten().next() {
                Some(kept) if kept.len() == self.init_r => return Ok((linear, kept.clone())),
                Some(kept) => format!("has {} entries for `{path}`", kept.len()),
                None => format!("has no entry for `{path}`"),
            };
            let expected = self.init_r;
            Err(MethodError::Configuration {
                method: Self::NAME,
                reason: format!("`rank_pattern` {problem}; `init_r` is {expected}"),
            })
        });
        targets.collect()
    }

    fn check_values(&self) -> Result<(), MethodError> {
        let wrong = |key, value: String, expected: String| {
            Err(MethodError::Value {
                method: Self::NAME,
                key,
                value,
                expected,
            })
        };
        if self.target_r > self.init_r {
            let expected = format!("it must be at most `init_r`, {}", self.init_r);
            return wrong("target_r", self.target_r.to_string(), expected);
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if value == 0.0 {
                let expected = "it must be greater than 0".to_owned();
                return wrong(key, value.to_string(), expected);
            }
        }
        self.total_step
            .map_or(Ok(()), |total| self.check_total(total))
    }

    /// Checks that ranks have steps to shrink in.
    fn check_total(&self, total: u64) -> Result<(), MethodError> {
        if self.tinit.saturating_add(self.tfinal) < total {
            return Ok(());
        }
        let tinit = self.tinit;
        Err(MethodError::Value {
            method: Self::NAME,
            key: "tfinal",
            value: self.tfinal.to_string(),
            expected: format!("with `tinit`, {tinit}, it must be less than all steps, {total}"),
        })
    }
}

impl MethodConfig for AdaLoraConfig {
    const NAME: &'static str = "adalora";
    const PEFT_TYPE: &'static str = "ADALORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA as a singular value decomposition with allocated ranks";
    const PAPER: &'static str = "Zhang et al. 2023, arXiv 2303.10512";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "target_modules": "all-linear", "init_r": 4, "target_r": 2, "alpha": 16 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let rank = self.init_r as f64;
        let alpha = match self.lora_alpha {
            0.0 => rank,
            alpha => alpha,
        };
        let scaling = (alpha / (rank + 1e-5)) as f32;
        let mut targets = Vec::new();
        for (linear, kept) in self.kept(base)? {
            let path = linear.site.path.clone();
            let rank = kept.iter().filter(|kept| **kept).count();
            let vectors = || Init::Normal { std: 0.02 };
            let mut declare = |name: &str, shape: [usize; 2], init: Init| {
                parameters.declare(format!("{path}.{name}"), &shape, init)
            };
            let triplets = (rank > 0).then(|| Triplets {
                a: declare("lora_A", [rank, linear.inputs], vectors()),
                b: declare("lora_B", [linear.outputs, rank], vectors()),
                e: declare("lora_E", [rank, 1], Init::Zeros),
                scaling,
                dropout: self.lora_dropout,
            });
            let sizes = [linear.inputs, linear.outputs];
            let target = Target {
                path,
                sizes,
                triplets,
                kept,
            };
            targets.push((linear, target));
        }
        let adapted = targets
            .iter()
            .filter_map(|(linear, target)| Some((*linear, target.triplets.clone()?)));
        let deltas = Deltas::new(base, adapted);
        Ok(Box::new(AdaLora {
            config: self.clone(),
            deltas,
            targets: targets.into_iter().map(|(_, target)| target).collect(),
            averages: BTreeMap::new(),
            total_step: self.total_step,
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.check_values()?;
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let counts = self.kept(base)?.into_iter().map(|(linear, kept)| {
            let rank = kept.into_iter().filter(|kept| *kept).count();
            rank * (linear.inputs + linear.outputs + 1)
        });
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &[
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
        "lora_dropout",
    ];

    const IGNORED: &'static [&'static str] = &[
        "corda_config",
        "eva_config",
        "init_lora_weights",
        "loftq_config",
        "lora_ga_config",
        "r",
    ];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        let Value::Object(defaults) = json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
            "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null,
            "init_lora_weights": true, "kasa_config": null,
            "layer_replication": null, "loftq_config": {},
            "lora_bias": false, "lora_ga_config": null, "megatron_config": null,
            "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null,
            "qalora_group_size": 16, "r": 8, "target_parameters": null,
            "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
            "use_qalora": false, "use_rslora": false, "velora_config": null,
        }) else {
            unreachable!("the literal is an object");
        };
        defaults
    }
}

/// How the budget of triplets falls.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    /// Triplets of all matrices at the start.
    initial: usize,
    /// Triplets of all matrices at the end.
    target: usize,
    tinit: u64,
    tfinal: u64,
    interval: u64,
    total: u64,
}

impl Schedule {
    /// The first step with the final budget.
    fn last_allocation(&self) -> u64 {
        self.total.saturating_sub(self.tfinal)
    }

    /// The triplets that may be kept after a step, counted from 1, and whether they are allocated
    /// then.
    fn budget(&self, step: u64) -> (usize, bool) {
        if step <= self.tinit {
            return (self.initial, false);
        }
        if step >= self.last_allocation() {
            return (self.target, true);
        }
        let steps = (self.last_allocation() - self.tinit) as f64;
        let left = 1.0 - (step - self.tinit) as f64 / steps;
        let extra = (self.initial - self.target) as f64 * left.powf(3.0);
        let budget = (extra + self.target as f64) as usize;
        (budget, step.is_multiple_of(self.interval))
    }
}

/// The triplets of one matrix.
#[derive(Clone, Debug)]
struct Triplets {
    /// Right singular vectors, `[r, in]`.
    a: Param,
    /// Left singular vectors, `[out, r]`.
    b: Param,
    /// Singular values, `[r, 1]`.
    e: Param,
    scaling: f32,
    dropout: f64,
}

impl Triplets {
    fn params(&self) -> [&Param; 3] {
        [&self.a, &self.b, &self.e]
    }
}

impl Delta for Triplets {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.get::<2>() * self.e.get::<2>(),
            b: self.b.get(),
            scale: self.scaling,
            dropout: Dropout::new(self.dropout, !site.id(), cx.rows),
        })
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let right = self.a.get::<2>().inner() * self.e.get::<2>().inner();
        weight + self.b.get::<2>().inner().matmul(right) * self.scaling
    }
}

/// A target with its triplets.
#[derive(Debug)]
struct Target {
    path: String,
    /// Inputs and outputs.
    sizes: [usize; 2],
    /// None if a loaded adapter keeps none.
    triplets: Option<Triplets>,
    /// Which of the `init_r` triplets are kept.
    kept: Vec<bool>,
}

impl Target {
    /// The places among the declared triplets of those that the file holds: pruned ones are left
    /// out, unless they have returned since.
    fn survivors(&self, triplets: &Triplets) -> Vec<i32> {
        let values = triplets.e.to_vec();
        let kept = match values.len() == self.kept.len() {
            true => self.kept.clone(),
            false => vec![true; values.len()],
        };
        let entries = (0i32..).zip(kept.into_iter().zip(values));
        let survivors = entries.filter(|(_, (kept, value))| *kept || *value != 0.0);
        survivors.map(|(place, _)| place).collect()
    }
}

/// The averages of one tensor's sensitivities, flat.
#[derive(Clone, Debug)]
struct Averages {
    sensitivity: Tensor<1>,
    uncertainty: Tensor<1>,
}

impl Averages {
    fn score(&self) -> Tensor<1> {
        self.sensitivity.clone() * self.uncertainty.clone()
    }
}

/// AdaLoRA on its targets.
#[derive(Debug)]
struct AdaLora {
    config: AdaLoraConfig,
    deltas: Deltas<Triplets>,
    targets: Vec<Target>,
    /// By the key of the tensor.
    averages: BTreeMap<String, Averages>,
    /// Steps over which ranks are allocated, once they are known.
    total_step: Option<u64>,
}

impl AdaLora {
    fn schedule(&self, total: u64) -> Schedule {
        let matrices = self.targets.len();
        Schedule {
            initial: self.config.init_r * matrices,
            target: self.config.target_r * matrices,
            tinit: self.config.tinit,
            tfinal: self.config.tfinal,
            interval: self.config.deltaT,
            total,
        }
    }

    /// The triplets of every target that has some.
    fn triplets(&self) -> impl Iterator<Item = &Triplets> {
        self.targets.iter().filter_map(|it| it.triplets.as_ref())
    }

    /// Averages what the step's gradients say.
    fn update_averages(&mut self, gradients: &Gradients) {
        let params: Vec<Param> = self
            .triplets()
            .flat_map(Triplets::params)
            .cloned()
            .collect();
        let (beta1, beta2) = (self.config.beta1, self.config.beta2);
        for param in params {
            let Some(gradient) = gradients.get(&param) else {
                continue;
            };
            let now = (param.flat().inner() * gradient.clone()).abs();
            let averages = self.averages.entry(param.key().to_owned());
            let averages = averages.or_insert_with(|| Averages {
                sensitivity: now.zeros_like(),
                uncertainty: now.zeros_like(),
            });
            let sensitivity = averages.sensitivity.clone() * beta1 + now.clone() * (1.0 - beta1);
            let deviation = (now - sensitivity.clone()).abs();
            averages.uncertainty = averages.uncertainty.clone() * beta2 + deviation * (1.0 - beta2);
            averages.sensitivity = sensitivity;
        }
    }

    /// The scores of a matrix's triplets; zero before there are averages.
    fn scores(&self, triplets: &Triplets) -> Vec<f32> {
        let [a, b, e] = triplets
            .params()
            .map(|param| self.averages.get(param.key()));
        let rank = triplets.e.count();
        let (Some(a), Some(b), Some(e)) = (a, b, e) else {
            return vec![0.0; rank];
        };
        let (inputs, outputs) = (triplets.a.count() / rank, triplets.b.count() / rank);
        let rows = a.score().reshape([rank, inputs]).mean_dim(1);
        let columns = b.score().reshape([outputs, rank]).mean_dim(0);
        let vectors = rows.reshape([rank]) + columns.reshape([rank]);
        let scores = (e.score() + vectors).try_into_vec_as::<f32>();
        scores.expect("parameters are f32 and on a device that can be read")
    }

    /// Keeps `budget` triplets: all whose score is above that of the best one that must go.
    fn allocate(&mut self, budget: usize) {
        let scores: Vec<Vec<f32>> = self.triplets().map(|it| self.scores(it)).collect();
        let mut sorted = scores.concat();
        let Some(last) = sorted.len().saturating_sub(budget).checked_sub(1) else {
            return;
        };
        let (_, threshold, _) = sorted.select_nth_unstable_by(last, f32::total_cmp);
        for (target, scores) in self.targets.iter_mut().zip(scores) {
            target.kept = scores.iter().map(|score| score > threshold).collect();
        }
        self.mask();
    }

    /// Sets the singular values of pruned triplets to zero.
    fn mask(&self) {
        for target in &self.targets {
            let Some(triplets) = &target.triplets else {
                continue;
            };
            if target.kept.iter().all(|kept| *kept) {
                continue;
            }
            let values = triplets.e.to_vec().into_iter().zip(&target.kept);
            let masked = values.map(|(value, kept)| if *kept { value } else { 0.0 });
            triplets.e.set_values(masked.collect());
        }
    }
}

impl Adapter for AdaLora {
    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.deltas.linear(site, product, cx)
    }

    fn first_layer(&self) -> usize {
        self.deltas.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.deltas.uses(hook)
    }
}

/// `‖P Pᵀ - I‖` of a matrix with rows that should be orthonormal.
fn distance_from_orthonormal(rows: Tensor<2>) -> Tensor<1> {
    let identity = Tensor::eye(rows.dims()[0], &rows.clone().inner().device());
    let identity = match rows.is_autodiff() {
        true => Tensor::autodiff(identity),
        false => identity,
    };
    let difference = rows.clone().matmul(rows.transpose()) - identity;
    let square = (difference.clone() * difference).sum();
    // The root has no slope at zero.
    square.clamp_min(f32::MIN_POSITIVE).sqrt()
}

impl Method for AdaLora {
    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        let (name, rank) = (AdaLoraConfig::NAME, self.config.init_r);
        for target in &self.targets {
            check_rank(name, "init_r", rank, &target.path, target.sizes)?;
        }
        self.config
            .check_total(self.config.total_step.unwrap_or(steps))
    }

    fn before_step(&mut self, info: StepInfo) {
        self.total_step = self.config.total_step.or(Some(info.total));
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let distances = self.triplets().flat_map(|triplets| {
            let (a, b) = (triplets.a.get::<2>(), triplets.b.get::<2>());
            [a, b.transpose()].map(distance_from_orthonormal)
        });
        let sum = distances.reduce(|sum, distance| sum + distance)?;
        // A matrix without triplets counts, with a distance of zero.
        let matrices = 2 * self.targets.len();
        Some(sum * (self.config.orth_reg_weight / matrices as f64))
    }

    fn reads_gradients_after_step(&self) -> bool {
        self.config.rank_pattern.is_none()
    }

    fn after_step(&mut self, gradients: &Gradients, info: StepInfo) {
        if self.config.rank_pattern.is_some() {
            return;
        }
        let schedule = self.schedule(self.total_step.unwrap_or(info.total));
        let step = info.step + 1;
        if step > schedule.last_allocation() {
            self.mask();
            return;
        }
        if step < schedule.last_allocation() {
            self.update_averages(gradients);
        }
        if let (budget, true) = schedule.budget(step) {
            self.allocate(budget);
        }
    }

    fn state(&self) -> Vec<Stored> {
        let mut state = Vec::new();
        for (key, averages) in &self.averages {
            for (name, tensor) in [
                ("sensitivity", &averages.sensitivity),
                ("uncertainty", &averages.uncertainty),
            ] {
                let values = tensor.clone().try_into_vec_as::<f32>();
                let values = values.expect("averages are f32 and on a device that can be read");
                state.push(Stored::f32(format!("{key}.{name}"), &tensor.dims(), values));
            }
        }
        for target in &self.targets {
            let kept = target.kept.iter().map(|kept| i32::from(*kept)).collect();
            state.push(Stored::i32(format!("{}.kept", target.path), kept));
        }
        // In two halves of 31 bits.
        let total = self
            .total_step
            .map(|total| [(total >> 31) as i32, (total & 0x7fff_ffff) as i32]);
        state.extend(total.map(|halves| Stored::i32("total_step", halves.to_vec())));
        state
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        self.averages.clear();
        let params: Vec<Param> = self
            .triplets()
            .flat_map(Triplets::params)
            .cloned()
            .collect();
        for param in params {
            let names = ["sensitivity", "uncertainty"];
            let keys = names.map(|name| format!("{}.{name}", param.key()));
            if state.shape(&keys[0]).is_none() {
                continue;
            }
            let mut take = |key: &String| -> Result<Option<Tensor<1>>, MethodError> {
                let values = state.take(key, &[param.count()])?;
                let device = param.flat().inner().device();
                Ok(values.map(|values| Tensor::from_data(values.as_slice(), &device)))
            };
            if let (Some(sensitivity), Some(uncertainty)) = (take(&keys[0])?, take(&keys[1])?) {
                let averages = Averages {
                    sensitivity,
                    uncertainty,
                };
                self.averages.insert(param.key().to_owned(), averages);
            }
        }
        for target in &mut self.targets {
            let key = format!("{}.kept", target.path);
            let kept = state.take_indices(&key)?.unwrap_or_default();
            if kept.len() != target.kept.len() {
                return Err(MethodError::Configuration {
                    method: AdaLoraConfig::NAME,
                    reason: format!("`{key}` must hold {} values", target.kept.len()),
                });
            }
            target.kept = kept.into_iter().map(|kept| kept != 0).collect();
        }
        if state.shape("total_step").is_some()
            && let Some([high, low]) = state.take_indices("total_step")?.as_deref()
        {
            self.total_step = Some(((*high as u64) << 31) | *low as u64);
        }
        Ok(())
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let mut stored = Vec::new();
        for target in &self.targets {
            let survivors = match &target.triplets {
                Some(triplets) => target.survivors(triplets),
                None => Vec::new(),
            };
            let rank = survivors.len();
            let keys = ["lora_A", "lora_B", "lora_E"].map(|name| format!("{}.{name}", target.path));
            let [inputs, outputs] = target.sizes;
            let shapes = [[rank, inputs], [outputs, rank], [rank, 1]];
            let values = match &target.triplets {
                Some(triplets) if rank > 0 => {
                    let device = triplets.e.flat().inner().device();
                    let places = Tensor::<1, Int>::from_data(survivors.as_slice(), &device);
                    [(&triplets.a, 0), (&triplets.b, 1), (&triplets.e, 0)].map(|(param, dim)| {
                        let chosen = param.get::<2>().inner().select(dim, places.clone());
                        let values = chosen.try_into_vec_as::<f32>();
                        values.expect("parameters are f32 and on a device that can be read")
                    })
                }
                _ => Default::default(),
            };
            for ((key, shape), values) in keys.into_iter().zip(shapes).zip(values) {
                stored.push(Stored::f32(key, &shape, values));
            }
        }
        stored
    }

    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        load_stored(parameters, file)?;
        let empty = self
            .targets
            .iter()
            .filter(|target| target.triplets.is_none());
        for Target {
            path,
            sizes: [inputs, outputs],
            ..
        } in empty
        {
            for (name, shape) in [
                ("lora_A", [0, *inputs]),
                ("lora_B", [*outputs, 0]),
                ("lora_E", [0, 1]),
            ] {
                file.take(&format!("{path}.{name}"), &shape)?;
            }
        }
        Ok(())
    }

    fn saved_settings(&self, mut settings: Map<String, Value>) -> Map<String, Value> {
        if self.config.rank_pattern.is_none() {
            let pattern = self.targets.iter().map(|target| {
                let mut kept = target.kept.clone();
                for place in target.triplets.iter().flat_map(|it| target.survivors(it)) {
                    kept[place as usize] = true;
                }
                (format!("{}.lora_E", target.path), kept)
            });
            let pattern: IndexMap<String, Vec<bool>> = pattern.collect();
            if pattern.values().flatten().any(|kept| !kept) {
                settings.insert("rank_pattern".to_owned(), json!(pattern));
            }
        }
        // PEFT reads no file without it; an untrained adapter has one step to shrink in.
        let untrained = self.config.tinit + self.config.tfinal + 1;
        let total = self.total_step.unwrap_or(untrained);
        settings.insert("total_step".to_owned(), json!(total));
        settings
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.deltas.merged(name, base)
    }

    fn changed(&self) -> usize {
        let kept = self.targets.iter().filter(|it| it.kept.contains(&true));
        kept.map(|it| it.sizes[0] * it.sizes[1]).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{Tensor, TensorData};
    use epiphyte_models::Checkpoint;
    use serde_json::{Map, Value, json};

    use super::{AdaLoraConfig, Schedule, distance_from_orthonormal};
    use crate::framework::settings::parse;
    use crate::test_data::{StoredList, gradients, model, move_all};
    use crate::{Gradients, Method, MethodConfig, Param, ParameterSet, StepInfo, StoredValues};

    fn config(settings: Value) -> AdaLoraConfig {
        parse(settings.as_object().unwrap()).unwrap()
    }

    fn build(config: &AdaLoraConfig) -> (Box<dyn Method>, ParameterSet) {
        let mut parameters = ParameterSet::new(&Default::default(), 0);
        let method = config.build(model().base(), &mut parameters).unwrap();
        (method, parameters)
    }

    /// The optimizer step of a number, counted from 1, of a run of `total`.
    fn info(step: u64, total: u64) -> StepInfo {
        StepInfo {
            step: step - 1,
            total,
            stage: 0,
            stage_step: step - 1,
            stage_total: total,
        }
    }

    fn open_golden() -> Checkpoint {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden");
        Checkpoint::open_file(&golden.join("adalora_ranks.safetensors")).unwrap()
    }

    fn tensor(values: Vec<f32>) -> Tensor<1> {
        let count = values.len();
        Tensor::from_data(TensorData::new(values, [count]), &Default::default())
    }

    /// `tests/parity/adalora_ranks.py` moves the same values and draws the same gradients.
    #[test]
    fn ranks_after_every_step_are_those_of_peft() {
        let file = open_golden();
        let golden = |key: &str| file.tensor(key).map(|view| view.to_f32().unwrap());
        let settings = json!({ "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 3, "deltaT": 2 });
        let (mut method, parameters) = build(&config(settings));
        let total = 16;
        for step in 1..=total {
            method.before_step(info(step, total));
            let mut gradients = Gradients::new();
            for param in parameters.trained() {
                let of = |what: &str| golden(&format!("{step}/{what}/{}", param.key())).unwrap();
                param.set_values(of("value"));
                gradients.add(param, tensor(of("grad")));
            }
            method.after_step(&gradients, info(step, total));
            let saved = method.saved_settings(Map::new());
            for param in parameters.trained() {
                let Some(path) = param.key().strip_suffix(".lora_E") else {
                    continue;
                };
                let expected = golden(&format!("{step}/E/{path}")).unwrap();
                assert_eq!(param.to_vec(), expected, "{path} after step {step}");
                // Between two allocations pruned triplets may return; PEFT's pattern leaves them
                // out.
                let kept = golden(&format!("{step}/kept/{path}"));
                let kept = kept.filter(|_| step % 2 == 0 || step >= 13);
                let kept =
                    kept.map(|kept| json!(kept.iter().map(|it| *it == 1.0).collect::<Vec<_>>()));
                if let Some(kept) = kept {
                    assert_eq!(
                        saved["rank_pattern"][param.key()],
                        kept,
                        "{path} after step {step}"
                    );
                }
            }
            if step == total - 4 {
                let state = method.state().into_iter();
                let averages = state.filter_map(|stored| {
                    let (key, name) = stored.key.rsplit_once('.')?;
                    let expected = golden(&format!("{name}/{key}"))?;
                    let StoredValues::F32(found) = stored.values else {
                        panic!("{key}")
                    };
                    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1e-3);
                    assert!(found.iter().zip(&expected).all(near), "{key} {name}");
                    Some(())
                });
                assert_eq!(averages.count(), 2 * parameters.trained().count());
            }
        }
    }

    /// Tables of PEFT's `budget_schedule`.
    #[test]
    fn the_budget_falls_as_peft_lets_it() {
        let small = Schedule {
            initial: 18,
            target: 12,
            tinit: 10,
            tfinal: 20,
            interval: 1,
            total: 100,
        };
        let large = Schedule {
            initial: 864,
            target: 576,
            tinit: 100,
            tfinal: 200,
            interval: 1,
            total: 1000,
        };
        for (schedule, step, budget) in [
            (small, 0, 18),
            (small, 10, 18),
            (small, 11, 17),
            (small, 20, 15),
            (small, 30, 14),
            (small, 50, 12),
            (small, 79, 12),
            (small, 80, 12),
            (small, 100, 12),
            (large, 100, 864),
            (large, 101, 862),
            (large, 300, 680),
            (large, 500, 598),
            (large, 799, 576),
            (large, 1000, 576),
        ] {
            assert_eq!(schedule.budget(step).0, budget, "{step}");
        }
        for schedule in [small, large] {
            let budgets: Vec<usize> = (0..1000).map(|step| schedule.budget(step).0).collect();
            assert!(budgets.is_sorted_by(|a, b| a >= b));
        }
        let every_third = Schedule {
            interval: 3,
            ..small
        };
        let steps = (0..=100).filter(|step| every_third.budget(*step).1);
        let expected = (12..80).step_by(3).chain(80..=100);
        assert!(steps.eq(expected));
    }

    #[test]
    fn orthonormal_rows_cost_nothing() {
        let rows = |values: [[f32; 3]; 2]| {
            let rows = Tensor::<2>::from_data(values, &Default::default());
            distance_from_orthonormal(rows).into_scalar::<f32>()
        };
        assert!(rows([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8]]) < 1e-6);
        // The product with the transpose is [[4, 2], [2, 1]].
        let expected = (9.0f32 + 4.0 + 4.0).sqrt();
        assert!((rows([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]]) - expected).abs() < 1e-6);
    }

    /// Runs steps `from..=to` of 12 with made-up gradients.
    fn train(method: &mut dyn Method, parameters: &ParameterSet, from: u64, to: u64) {
        let params: Vec<Param> = parameters.trained().cloned().collect();
        for step in from..=to {
            method.before_step(info(step, 12));
            let gradients = gradients(&params, step);
            for param in &params {
                let gradient = gradients.get(param).unwrap().clone();
                param.update(|value| value - gradient * 0.1);
            }
            method.after_step(&gradients, info(step, 12));
        }
    }

    fn small() -> AdaLoraConfig {
        config(json!({ "init_r": 5, "target_r": 2, "tinit": 1, "tfinal": 2 }))
    }

    #[test]
    fn a_resumed_run_prunes_the_same() {
        let (mut whole, parameters) = build(&small());
        train(&mut *whole, &parameters, 1, 12);
        let (mut first, parameters_of_first) = build(&small());
        train(&mut *first, &parameters_of_first, 1, 6);
        let (mut second, parameters_of_second) = build(&small());
        for (from, to) in parameters_of_first
            .trained()
            .zip(parameters_of_second.trained())
        {
            to.set_values(from.to_vec());
        }
        second
            .restore_state(&mut StoredList(first.state()))
            .unwrap();
        train(&mut *second, &parameters_of_second, 7, 12);
        assert_eq!(
            second.stored(&parameters_of_second),
            whole.stored(&parameters)
        );
        assert_eq!(second.state(), whole.state());
    }

    #[test]
    fn the_file_holds_the_kept_triplets_and_gives_the_same_weights() {
        let (mut method, parameters) = build(&small());
        train(&mut *method, &parameters, 1, 12);
        let saved = method
            .saved_settings(serde_json::from_value(json!({ "init_r": 5, "target_r": 2 })).unwrap());
        let kept = saved["rank_pattern"].as_object().unwrap().values();
        let kept = kept.flat_map(|kept| kept.as_array().unwrap());
        assert_eq!(kept.filter(|kept| **kept == json!(true)).count(), 4 * 2);
        assert_eq!(saved["total_step"], 12);

        let stored = method.stored(&parameters);
        let values: usize = stored.iter().map(|stored| stored.values.len()).sum();
        assert_eq!(values, 4 * 2 * (16 + 16 + 1));
        let (mut loaded, loaded_parameters) = build(&parse(&saved).unwrap());
        let mut file = StoredList(stored.clone());
        loaded.load(&loaded_parameters, &mut file).unwrap();
        assert!(file.0.is_empty());
        assert_eq!(loaded.stored(&loaded_parameters), stored);
        assert!(!loaded.reads_gradients_after_step());
        let model = model();
        for name in model.base().tensors().keys() {
            let merged = [&method, &loaded].map(|method| {
                let merged = method.merged(name, model.base()).unwrap();
                merged.map(|values| values.try_into_vec_as::<f32>().unwrap())
            });
            let [Some(before), Some(after)] = merged else {
                continue;
            };
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
            assert!(before.iter().zip(&after).all(near), "{name}");
        }
    }

    /// A matrix that keeps nothing is in the file with tensors of no values, as PEFT writes it.
    #[test]
    fn a_matrix_may_lose_all_its_triplets() {
        let path = |layer: usize, part: &str| {
            format!("bert.encoder.layer.{layer}.attention.self.{part}.lora_E")
        };
        let pattern = json!({
            path(0, "query"): [false, false], path(0, "value"): [true, false],
            path(1, "query"): [true, true], path(1, "value"): [false, true],
        });
        let config = config(json!({ "init_r": 2, "target_r": 1, "rank_pattern": pattern }));
        let (method, parameters) = build(&config);
        move_all(parameters.trained());
        let model = model();
        assert_eq!(config.count(model.base()).unwrap(), 4 * 33);
        assert_eq!(method.trainable(&parameters), 4 * 33);
        assert_eq!(method.changed(), 3 * 16 * 16);
        let stored = method.stored(&parameters);
        let shapes: Vec<&[usize]> = stored[..3].iter().map(|it| it.shape.as_slice()).collect();
        assert_eq!(shapes, [&[0, 16], &[16, 0], &[0, 1]]);
        let (mut loaded, loaded_parameters) = build(&config);
        let mut file = StoredList(stored);
        loaded.load(&loaded_parameters, &mut file).unwrap();
        assert!(file.0.is_empty());
        assert!(method.penalty().unwrap().into_scalar::<f32>() > 0.0);
    }

    #[test]
    fn a_run_without_steps_to_shrink_in_is_refused() {
        let (method, _) = build(&config(json!({ "tinit": 5, "tfinal": 5 })));
        assert!(method.check_steps(10).is_err());
        assert!(method.check_steps(11).is_ok());
    }

    #[test]
    fn settings_that_leave_no_steps_or_ranks_are_refused() {
        for (settings, words) in [
            (json!({ "target_r": 13 }), "`target_r` is 13"),
            (json!({ "beta1": 0.0 }), "`beta1` is 0"),
            (
                json!({ "total_step": 10, "tinit": 5, "tfinal": 5 }),
                "`tfinal` is 5",
            ),
            (json!({ "rank_pattern": {} }), "`rank_pattern` has no entry"),
        ] {
            let mut parameters = ParameterSet::new(&Default::default(), 0);
            let (config, model) = (config(settings), model());
            let started = config.check_start(model.base());
            let built = started.and_then(|()| config.build(model.base(), &mut parameters));
            let error = built.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
