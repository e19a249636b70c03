//! LeTS: one task vector for each sequence goes through sparsely changed copies of the base's
//! layers, which read the states of the frozen base.
//!
//! Fu, Huang, Chen, Tian, Zhao, "Learn-to-Share: A Hardware-friendly Transfer Learning Framework
//! Exploiting Computation and Parameter Sharing", ICML 2021, PMLR 139:3469-3479.
//!
//! **A reconstruction**: there is no code of the authors, and the abstract is what could be read.
//! It says that a frozen transformer's activations are reused by additive components of each task,
//! that a differentiable search finds which computation a task shares, that weights are the base's
//! plus a difference whose mask is pruned at the beginning of fine-tuning, and that tasks do not
//! depend on each other's computation. That no gradient passes the base is the survey's word
//! (Lialin et al. 2023). Decided here:
//!
//! - `c_0 [d]` is the base's state of the first token before the first layer. Layer `l` makes of it
//!   the task's own `t_l`: the base's layer, with `W + δ ⊙ M` for the projections of queries and
//!   outputs and for the feed-forward, run on the base's states with `c_{l-1}` in place of the
//!   first token's; or it shares the base's state of the first token, `h_l`
//! - search: `c_l = p_l t_l + (1 - p_l) h_l`, `p_l = σ(β_l)` with `β_l` trained from 1 on at ten
//!   times the learning rate, and `lets_penalty · Σ p_l` added to the loss. In the second stage
//!   `p_l` is 1 where it was at least a half, else 0; one layer at least is the task's own
//! - `M`, before the search: the `lets_density` share of the entries of all `δ` together with the
//!   largest sums of `|∂ loss / ∂ δ|` over `lets_samples` training examples, at `δ = 0`
//! - the head reads `Σ_l softmax(w)_l c_l` as the state of the first token, `w` at first 0 (the
//!   paper is said to have a Bi-LSTM over the layers)
//!
//! With `δ` zero, `t_l` is `h_l` exactly. No gradient enters the base: its states are constants.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | the entries of the mask, and `2 L` numbers |
//! | file | `<name>.indices` and `<name>.values` of each weight with a changed entry; `lets_gates` `[L]`, `lets_layers` `[L]` |
//! | merges | no: the base is run as it is, and the copies beside it |

use burn::tensor::activation::{sigmoid, softmax};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::blocks::{Layer, LayerInput};
use epiphyte_models::{
    Adapter, AdapterBatch, Base, BaseTensor, Builder, Depth, Entry, ForwardContext, Hidden, Hook,
    RandomSource, Role, StandIn, Stream,
};
use epiphyte_ops::{Precision, rows};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::gradients::Gradients;
use crate::framework::method::{
    KeyStyle, Method, MethodConfig, Stage, StepInfo, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParamGroup, ParameterSet};
use crate::parts::sparse::{MaskRule, Sparse, largest};

crate::settings! {
    /// The settings of LeTS.
    #[derive(Copy)]
    pub struct LetsConfig {
        /// Share of the entries of the changed weights that are trained.
        lets_density: f64 = 0.02, in Positive;
        /// Training examples from whose gradients these are chosen.
        lets_samples: usize = 256, in AtLeastOne;
        /// Added to the loss for each layer that the task has of its own.
        lets_penalty: f64 = 1e-4, in NotNegative;
        /// Share of the run's steps in which layers are searched; either stage has at least one
        /// step.
        search_fraction: f64 = 0.3, in Fraction;
    }
}

/// The value of `β` of a layer that the search has decided; `p` is exactly 0 or 1 there.
const DECIDED: f32 = 1e3;

/// The names of the streams that hold the states before the layer, the task's vectors, and their
/// weighted sum so far.
const INPUT_STREAM: &str = "input";
const TASK_STREAM: &str = "task";
const SUM_STREAM: &str = "sum";

/// The names of the weights that have a difference.
fn changed_weights(base: &Base) -> Vec<String> {
    let roles = [
        Role::Query,
        Role::AttentionOutput,
        Role::FeedForwardIn,
        Role::FeedForwardGate,
        Role::FeedForwardOut,
    ];
    let linears = base.linears().iter();
    let chosen = linears.filter(|linear| roles.contains(&linear.site.role));
    chosen
        .map(|linear| format!("{}.weight", linear.site.path))
        .collect()
}

impl LetsConfig {
    /// The number of entries that are trained.
    fn entries(self, base: &Base) -> Result<usize, MethodError> {
        let not_applicable = |reason: &str| MethodError::NotApplicable {
            method: Self::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason: reason.to_owned(),
        };
        let causal = base.layer_shapes().iter().any(|it| it.attention.causal);
        if causal || base.task_head.is_none() {
            return Err(not_applicable(
                "it has one vector for each text, that of the first token of an encoder for a \
                 task's head; LoRA changes the states of all tokens",
            ));
        }
        if base.layer_names().len() != base.dimensions.layers {
            return Err(not_applicable(
                "its layers are of a kind of its own, or share their modules, and no changed \
                 copies of single layers can be made",
            ));
        }
        if !base.relative_biases().is_empty() {
            return Err(not_applicable(
                "its attention has a bias by relative positions, which copies of layers do not \
                 have; LoRA acts on it",
            ));
        }
        let weights = changed_weights(base).into_iter();
        let counts = weights.filter_map(|name| base.tensor(&name).map(BaseTensor::count));
        let all: usize = counts.sum();
        let entries = (self.lets_density * all as f64) as usize;
        match (1..=all).contains(&entries) {
            true => Ok(entries),
            false => Err(MethodError::Value {
                method: Self::NAME,
                key: "lets_density",
                value: self.lets_density.to_string(),
                expected: format!("it must choose from 1 to all {all} entries"),
            }),
        }
    }
}

impl MethodConfig for LetsConfig {
    const NAME: &'static str = "lets";
    const PEFT_TYPE: &'static str = "LETS";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a vector of its own through sparsely changed layers; no gradient in the base";
    const PAPER: &'static str = "Fu et al. 2021, ICML (a reconstruction)";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        gradients_through_base: Some(false),
        ..crate::Claims::survey("extra feed-forward")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "lets_density": 0.3 }),
            json!({ "lets_density": 1.0, "lets_samples": 2, "lets_penalty": 0 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let entries = self.entries(base)?;
        // The values of these tensors are never read: each has one of the base in its place.
        let mut source = RandomSource {
            initializer_range: 0.0,
            seed: 0,
        };
        let mut builder = Builder::new(&mut source, parameters.device(), Precision::F32);
        let layers = base.layer_names().iter().zip(base.layer_shapes());
        let layers = layers.enumerate().map(|(index, ((path, names), shape))| {
            Layer::build(builder.at(Depth::Layer(index)), path, names, shape)
        });
        let layers = layers.collect();
        builder.into_tensors()?;
        let weights = changed_weights(base);
        let chosen = |name: &str| weights.iter().any(|it| it == name);
        let sparse = Sparse::of(Self::NAME, Chosen, entries, base, parameters, chosen)?;
        let count = base.dimensions.layers;
        let gates = ParamGroup {
            learning_rate_scale: 10.0,
            weight_decay: Some(0.0),
            ..ParamGroup::default()
        };
        Ok(Box::new(Lets {
            base: base.clone(),
            layers,
            sparse,
            gates: parameters.declare_in(gates, "lets_gates", &[count], Init::Ones),
            weights: parameters.declare("lets_layers", &[count], Init::Zeros),
            config: *self,
            entries,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self.entries(base)? + 2 * base.dimensions.layers)
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// The mask is chosen by the method itself, which is what the data is run through.
#[derive(Debug)]
struct Chosen;

impl MaskRule for Chosen {
    fn scores(
        &self,
        _stage: usize,
        _params: &[Param],
        _adapter: &dyn Adapter,
        _data: &mut dyn CalibrationData,
    ) -> Result<Option<Vec<Vec<f32>>>, MethodError> {
        Ok(None)
    }
}

/// Copies of the base's layers, and what decides which of them the task has of its own.
#[derive(Debug)]
struct Lets {
    base: Base,
    layers: Vec<Layer>,
    /// The weights of the copies that differ from the base's.
    sparse: Sparse<Chosen>,
    /// `β`, `[L]`
    gates: Param,
    /// `w`, `[L]`
    weights: Param,
    config: LetsConfig,
    /// The number of entries of the mask.
    entries: usize,
}

/// The tensors of the copies: the changed ones, and the base's.
struct Copies<'a>(&'a Lets);

impl Adapter for Copies<'_> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        let changed = self.0.sparse.parameter(name);
        changed.or_else(|| {
            let tensor = self.0.base.tensor(name)?;
            Some(match tensor.matrix() {
                Some(matrix) => StandIn::Frozen(matrix.clone()),
                None => StandIn::Tensor(tensor.to_flat()),
            })
        })
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Parameter(_))
    }
}

/// `states` with other rows in these places, `[tokens, d]`.
fn with_rows(states: Tensor<2>, places: &[usize], new: Tensor<2>) -> Tensor<2> {
    let old = rows(states.clone(), places);
    let numbers: Vec<i32> = places.iter().map(|&row| row as i32).collect();
    let numbers = TensorData::new(numbers, [places.len()]);
    let numbers = Tensor::<1, Int>::from_data(numbers, &states.device());
    states.select_assign(0, numbers, new - old, IndexingUpdateOp::Add)
}

impl Lets {
    /// What the search has decided about a layer: whether it is the task's own.
    fn decided(&self, layer: usize) -> Option<bool> {
        let gate = self.gates.to_vec()[layer];
        (gate.abs() >= DECIDED).then_some(gate > 0.0)
    }

    /// `p` of a layer, `[1, 1]`.
    fn share(&self, layer: usize) -> Tensor<2> {
        let gate = self.gates.flat().narrow(0, layer, 1);
        sigmoid(gate).reshape([1, 1])
    }

    /// `t_l` of each sequence, `[sequences, d]`.
    fn own(
        &self,
        layer: usize,
        input: &Hidden,
        task: Tensor<2>,
        firsts: &[usize],
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let states = with_rows(input.states.clone(), firsts, task);
        let input = input.with(states);
        let input = match self.base.rotary() {
            Some(rotary) => input.with_rotary(rotary, 0),
            None => input,
        };
        let copies = Copies(self);
        let batch = AdapterBatch::new([Entry {
            adapter: &copies,
            tokens: cx.tokens,
            mode: cx.mode,
            streams: cx.streams,
        }]);
        let layer = &self.layers[layer];
        let output = layer.forward(input, LayerInput::default(), Some(firsts), &batch);
        output.states
    }

    /// `c_l` of each sequence, `[sequences, d]`.
    fn next(
        &self,
        layer: usize,
        input: &Hidden,
        task: Tensor<2>,
        shared: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let firsts = input.rows.firsts().to_vec();
        match self.decided(layer) {
            Some(false) => shared,
            Some(true) => self.own(layer, input, task, &firsts, cx),
            None => {
                let share = self.share(layer);
                let own = self.own(layer, input, task, &firsts, cx);
                own * share.clone() + shared * (1.0 - share)
            }
        }
    }

    /// Chooses the entries that are trained by the gradients at the start.
    fn choose_mask(&mut self, data: &mut dyn CalibrationData) -> Result<(), MethodError> {
        let params: Vec<Param> = self.sparse.params().cloned().collect();
        let mut sums: Vec<Option<Tensor<1>>> = vec![None; params.len()];
        let samples = self.config.lets_samples.min(data.examples());
        data.gradients(samples, Each::Batch, &params, &*self, &mut |gradients| {
            for (sum, param) in sums.iter_mut().zip(&params) {
                let Some(gradient) = gradients.get(param) else {
                    continue;
                };
                let size = gradient.clone().abs();
                *sum = Some(match sum.take() {
                    Some(sum) => sum + size,
                    None => size,
                });
            }
        })?;
        let scores = sums.into_iter().zip(&params).map(|(sum, param)| match sum {
            Some(sum) => {
                let values = sum.try_into_vec_as::<f32>();
                values.expect("gradients are f32 and on a device that can be read")
            }
            None => vec![0.0; param.count()],
        });
        let scores: Vec<Vec<f32>> = scores.collect();
        if !scores.iter().flatten().all(|score| score.is_finite()) {
            let problem = "the gradients at the start are not finite".to_owned();
            return Err(MethodError::Calibration(problem));
        }
        self.sparse.set_mask(largest(&scores, self.entries));
        Ok(())
    }

    /// Ends the search: layers are the task's own or the base's.
    fn decide(&self) {
        let gates = self.gates.to_vec();
        let most = gates.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let decided = gates.iter().map(|&gate| match gate >= 0.0 || gate == most {
            true => DECIDED,
            false => -DECIDED,
        });
        self.gates.set_values(decided.collect());
    }
}

impl Adapter for Lets {
    fn hidden(&self, layer: usize, mut hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        let sequences = hidden.rows.clone();
        let firsts = sequences.firsts().to_vec();
        let single = sequences.select_rows(&firsts);
        // No gradient enters the base, whatever acts on it besides.
        let states = hidden.states.clone().inner();
        let shared = rows(states.clone(), &firsts);
        let (task, sum) = match layer.checked_sub(1) {
            None => (shared, None),
            Some(done) => {
                let mut taken = |name| {
                    let stream = hidden.take(name);
                    stream.expect("the hook before the layer put it there")
                };
                let (input, task) = (taken(INPUT_STREAM), taken(TASK_STREAM));
                let below = (done > 0).then(|| taken(SUM_STREAM).states);
                let input = Hidden::new(input.states, input.rows);
                let task = self.next(done, &input, task.states, shared, cx);
                let share = softmax(self.weights.flat(), 0).narrow(0, done, 1);
                let weighted = task.clone() * share.reshape([1, 1]);
                let sum = match below {
                    Some(below) => below + weighted,
                    None => weighted,
                };
                (task, Some(sum))
            }
        };
        if let (true, Some(sum)) = (layer == self.layers.len(), &sum) {
            return hidden.with(with_rows(states, &firsts, sum.clone()));
        }
        let mut carry = |name, states, rows| {
            let stream = Stream::of_adapter(name, states, rows);
            hidden.carried.push(stream);
        };
        carry(INPUT_STREAM, states, sequences);
        carry(TASK_STREAM, task, single.clone());
        if let Some(sum) = sum {
            carry(SUM_STREAM, sum, single);
        }
        hidden
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Hidden(_))
    }

    /// The copies of the last layer read all rows of the layer's input.
    fn mixes_rows(&self, layer: usize) -> bool {
        layer + 1 == self.layers.len()
    }
}

impl Method for Lets {
    fn stages(&self, steps: u64) -> Vec<Stage> {
        let search = (self.config.search_fraction * steps as f64).round() as u64;
        let search = search.min(steps.saturating_sub(1)).max(1).min(steps);
        vec![Stage::fresh(search), Stage::fresh(steps - search)]
    }

    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        match steps {
            2.. => Ok(()),
            _ => Err(MethodError::Value {
                method: LetsConfig::NAME,
                key: "search_fraction",
                value: self.config.search_fraction.to_string(),
                expected: "a run must have two steps at least, one of the search and one behind it"
                    .to_owned(),
            }),
        }
    }

    fn begin_stage(
        &mut self,
        stage: usize,
        _head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        match stage {
            0 => self.choose_mask(data),
            _ => {
                self.decide();
                Ok(())
            }
        }
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let searching = (0..self.layers.len()).all(|layer| self.decided(layer).is_none());
        let penalty = self.config.lets_penalty;
        (searching && penalty > 0.0).then(|| sigmoid(self.gates.flat()).sum() * penalty)
    }

    fn after_backward(&mut self, gradients: &mut Gradients, info: StepInfo) {
        self.sparse.after_backward(gradients, info);
    }

    /// What layers that the task shares do not read, and gates that are decided.
    fn may_lack_gradient(&self, param: &Param) -> bool {
        let layer = self.base.layer_of(param.key());
        self.sparse.may_lack_gradient(param)
            || layer.is_some_and(|layer| self.decided(layer) == Some(false))
            || (param.id() == self.gates.id() && self.decided(0).is_some())
    }

    fn state(&self) -> Vec<Stored> {
        self.sparse.state()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        self.sparse.restore_state(state)
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let own = [&self.gates, &self.weights].map(Stored::of);
        self.sparse
            .stored(parameters)
            .into_iter()
            .chain(own)
            .collect()
    }

    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        self.sparse.load(parameters, file)?;
        for param in [&self.gates, &self.weights] {
            if let Some(values) = file.take(param.key(), param.shape())? {
                param.set_values(values);
            }
        }
        Ok(())
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: LetsConfig::NAME,
            reason: "the base is run as it is, and changed copies of its layers beside it",
        })
    }

    fn changed(&self) -> usize {
        self.sparse.changed() + 2 * self.layers.len()
    }

    fn trainable(&self, _parameters: &ParameterSet) -> usize {
        self.entries + 2 * self.layers.len()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, Identity, Model, ModelConfig, random_model};
    use serde_json::{Value, json};

    use super::{DECIDED, LetsConfig};
    use crate::framework::settings::parse;
    use crate::small_bert::{bert_base_count, distance, logits};
    use crate::test_data::{StoredList, move_all};
    use crate::{Method, MethodConfig, ParameterSet};

    /// Two layers whose values are large enough that each path shows in the logits.
    fn bert() -> Model {
        let config = json!({
            "model_type": "bert", "vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 32,
            "initializer_range": 0.3,
        });
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        random_model(&config, head, &Device::default(), Default::default(), 3).unwrap()
    }

    fn built(model: &Model, settings: Value) -> (Box<dyn Method>, ParameterSet) {
        let config: LetsConfig = parse(settings.as_object().unwrap()).unwrap();
        let mut parameters = ParameterSet::new(&Device::default(), 0);
        let method = config.build(model.base(), &mut parameters).unwrap();
        (method, parameters)
    }

    /// With nothing changed, a layer run on one vector gives what the base has there, whether it is
    /// shared, the task's own or a mixture of both.
    #[test]
    fn without_differences_every_path_gives_the_bases_own_states() {
        let model = bert();
        let expected = logits(&model, &Identity);
        for gates in [
            [DECIDED, DECIDED],
            [-DECIDED, -DECIDED],
            [DECIDED, -DECIDED],
            [-DECIDED, DECIDED],
            [0.3, -0.5],
        ] {
            let (method, parameters) = built(&model, json!({}));
            parameters
                .get("lets_gates")
                .unwrap()
                .set_values(gates.to_vec());
            // The last layer alone.
            let weights = parameters.get("lets_layers").unwrap();
            weights.set_values(vec![-100.0, 100.0]);
            let found = logits(&model, &*method);
            assert!(distance(&found, &expected) < 1e-5, "{gates:?}");
            weights.set_values(vec![0.0, 0.0]);
            assert!(distance(&logits(&model, &*method), &expected) > 1e-3);
        }
    }

    #[test]
    fn a_shared_layers_differences_change_nothing() {
        let model = bert();
        let (method, parameters) = built(&model, json!({}));
        let gates = parameters.get("lets_gates").unwrap();
        gates.set_values(vec![-DECIDED, DECIDED]);
        let before = logits(&model, &*method);
        let of_layer = |layer: usize| {
            let path = format!("layer.{layer}.");
            let params = parameters.trained();
            params
                .filter(move |it| it.key().contains(&path))
                .collect::<Vec<_>>()
        };
        assert_eq!(of_layer(0).len(), 4);
        move_all(of_layer(0).into_iter());
        assert_eq!(logits(&model, &*method), before);
        assert!(
            of_layer(0)
                .into_iter()
                .all(|it| method.may_lack_gradient(it))
        );
        move_all(of_layer(1).into_iter());
        assert!(distance(&logits(&model, &*method), &before) > 1e-3);
    }

    #[test]
    fn the_search_ends_with_one_layer_at_least() {
        let model = bert();
        for (gates, expected) in [
            ([0.5, -0.1], [DECIDED, -DECIDED]),
            ([-2.0, -1.0], [-DECIDED, DECIDED]),
            ([0.0, 3.0], [DECIDED, DECIDED]),
        ] {
            let (mut method, parameters) = built(&model, json!({}));
            let param = parameters.get("lets_gates").unwrap();
            param.set_values(gates.to_vec());
            assert!(method.penalty().is_some());
            let head = ParameterSet::new(&Device::default(), 0);
            method
                .begin_stage(1, &head, &mut crate::test_data::Examples::default())
                .unwrap();
            assert_eq!(param.to_vec(), expected);
            assert!(method.penalty().is_none());
            assert!(method.may_lack_gradient(param));
            // What is decided is in the file.
            let (mut loaded, copies) = built(&model, json!({}));
            let stored = method.stored(&parameters);
            loaded.load(&copies, &mut StoredList(stored)).unwrap();
            assert_eq!(copies.get("lets_gates").unwrap().to_vec(), expected);
        }
    }

    /// Two per cent of `2 d² + 2 d ff` in each of twelve layers, and two numbers for each.
    #[test]
    fn counts_on_bert_base_follow_the_formula() {
        let layer = (2 * 768 * 768 + 2 * 768 * 3072) / 50;
        assert_eq!(bert_base_count("lets", json!({}), 0), 12 * (layer + 2));
    }
}
