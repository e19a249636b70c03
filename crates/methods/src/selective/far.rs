//! FAR: of each layer of the feed-forwards a few nodes learn, and the others stay frozen in a layer
//! of their own.
//!
//! Vucetic, Tayaranian, Ziaeefard, Clark, Meyer, Gross, "Efficient Fine-Tuning of BERT Models on
//! the Edge" (Freeze And Reconfigure), ISCAS 2022, arXiv 2205.01541, section II.
//!
//! A node is an output of a linear layer of the feed-forward: a row of its weight and its bias.
//! Stage 0, priming, trains all nodes for a small share of the steps. The `n = far_retention · out`
//! nodes of each layer whose rows moved farthest in the L1 norm are the learners. Then the layer is
//! reconfigured: `y = P [x Wᵀ + b; x W_lᵀ + b_l]` with the learners' rows `W_l: [n, in]` and `b_l:
//! [n]` a layer of their own, trained in stage 1, and `P` what puts each output in its place. So
//! gradients, and the optimizer's state, are those of contiguous matrices of the learners.
//!
//! There is no code of the authors, and decided here is: a node of either linear layer is one of
//! its outputs; nothing but the learners and the task's head is trained; after priming everything
//! starts again from its first values, so that frozen nodes are the base's bit for bit.
//!
//! | | |
//! | --- | --- |
//! | trains | the feed-forwards in stage 0; `Σ n (in + 1)` in stage 1, which are what is counted |
//! | changes | `Σ n (in + 1)` over the linear layers of the feed-forwards |
//! | file | `<path>.far_nodes` `[n]`, `<path>.far_weight` `[n, in]`, `<path>.far_bias` `[n]`; whole tensors if it was saved in stage 0 |
//! | merges | rows are put in place |

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::{
    Adapter, Base, BaseTensor, ForwardContext, Hook, LazyLinear, LinearInfo, Role, Site, StandIn,
};
use epiphyte_ops::{Weight, linear};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stage, Stored, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::replace::Replaced;
use crate::parts::sparse::{check_indices_below, largest};

crate::settings! {
    /// The settings of FAR.
    #[derive(Copy)]
    pub struct FarConfig {
        /// Share of the nodes of each feed-forward layer that learn.
        far_retention: f64 = 0.1, in Positive;
        /// Share of the run's steps in which all nodes are trained to choose the learners; either
        /// stage has at least one step.
        priming_fraction: f64 = 0.05, in Fraction;
    }
}

/// The linear layers of the feed-forwards.
fn feed_forwards(base: &Base) -> impl Iterator<Item = &LinearInfo> {
    let roles = [
        Role::FeedForwardIn,
        Role::FeedForwardGate,
        Role::FeedForwardOut,
    ];
    let linears = base.linears().iter();
    linears.filter(move |linear| roles.contains(&linear.site.role))
}

impl FarConfig {
    /// How many of a layer's nodes learn.
    fn learners(self, linear: &LinearInfo) -> usize {
        let share = (self.far_retention * linear.outputs as f64).round() as usize;
        share.clamp(1, linear.outputs)
    }
}

impl MethodConfig for FarConfig {
    const NAME: &'static str = "far";
    const PEFT_TYPE: &'static str = "FAR";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "the nodes of the feed-forwards that move farthest at first";
    const PAPER: &'static str = "Vucetic et al. 2022, arXiv 2205.01541";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: None,
        ..crate::Claims::survey("none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![json!({}), json!({ "far_retention": 0.5 })]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let count = self.count(base)?;
        let names = feed_forwards(base).flat_map(|linear| {
            let name = |part| format!("{}.{part}", linear.site.path);
            [Some(name("weight")), linear.bias.then(|| name("bias"))]
        });
        let names: Vec<String> = names.flatten().collect();
        let layers = feed_forwards(base).map(|linear| {
            let (path, nodes) = (&linear.site.path, self.learners(linear));
            let tensor = |part| base.tensor(&format!("{path}.{part}")).cloned();
            let weight = format!("{path}.far_weight");
            let mut declare = |key, shape: &[usize]| parameters.declare(key, shape, Init::Zeros);
            Reconfigured {
                path: path.clone(),
                base_weight: tensor("weight").expect("a linear layer has a weight"),
                base_bias: tensor("bias").filter(|_| linear.bias),
                weight: declare(weight, &[nodes, linear.inputs]),
                bias: linear
                    .bias
                    .then(|| declare(format!("{path}.far_bias"), &[nodes])),
                outputs: linear.outputs,
                chosen: None,
            }
        });
        let layers: Vec<Reconfigured> = layers.collect();
        let primed = Replaced::new(base, parameters, |name| names.iter().any(|it| it == name));
        Ok(Box::new(Far {
            primed,
            layers,
            count,
            priming_fraction: self.priming_fraction,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        if self.far_retention > 1.0 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "far_retention",
                value: self.far_retention.to_string(),
                expected: "it must be at most 1, all nodes".to_owned(),
            });
        }
        let count = |linear: &LinearInfo| {
            self.learners(linear) * (linear.inputs + usize::from(linear.bias))
        };
        Ok(feed_forwards(base).map(count).sum())
    }

    fn resolved(&self, _base: &Base) -> Self {
        *self
    }
}

/// A linear layer with the learners apart.
#[derive(Debug)]
struct Reconfigured {
    path: String,
    base_weight: BaseTensor,
    base_bias: Option<BaseTensor>,
    /// `W_l`, `[n, in]`
    weight: Param,
    /// `b_l`, `[n]`
    bias: Option<Param>,
    outputs: usize,
    /// The learners; none in stage 0.
    chosen: Option<Learners>,
}

/// Which nodes learn.
#[derive(Debug)]
struct Learners {
    /// Ascending.
    nodes: Vec<i32>,
    /// For each output its place among those of both layers: `P`.
    order: Tensor<1, Int>,
}

impl Reconfigured {
    fn learners(&self) -> usize {
        self.weight.shape()[0]
    }

    fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// The trained tensors.
    fn params(&self) -> impl Iterator<Item = &Param> {
        std::iter::once(&self.weight).chain(&self.bias)
    }

    fn choose(&mut self, nodes: Vec<i32>) {
        let mut order: Vec<i32> = (0..self.outputs as i32).collect();
        for (place, &node) in (self.outputs as i32..).zip(&nodes) {
            order[node as usize] = place;
        }
        let order = TensorData::new(order, [self.outputs]);
        let order = Tensor::from_data(order, &self.weight.flat().inner().device());
        self.chosen = Some(Learners { nodes, order });
    }

    /// The base's weight in memory, `[out, in]`.
    fn base_rows(&self) -> Vec<f32> {
        let matrix = self.base_weight.to_matrix();
        let values = matrix
            .expect("a linear layer's weight is a matrix")
            .try_into_vec_as::<f32>();
        values.expect("a base is f32 and on a device that can be read")
    }

    /// Puts the base's own values of the nodes in place.
    fn take_base(&self) {
        let Some(Learners { nodes, .. }) = &self.chosen else {
            return;
        };
        let (rows, inputs) = (self.base_rows(), self.inputs());
        let row = |node: &i32| rows[*node as usize * inputs..][..inputs].iter().copied();
        self.weight.set_values(nodes.iter().flat_map(row).collect());
        if let (Some(bias), Some(base)) = (&self.bias, &self.base_bias) {
            let values = base.to_vec();
            bias.set_values(nodes.iter().map(|&node| values[node as usize]).collect());
        }
    }

    /// The L1 norm of how far each node's row is from the base's.
    fn moved(&self, primed: &Param) -> Vec<f32> {
        let change = primed.flat().inner() - primed.initial();
        let change = self.base_weight.unflatten(change);
        let change = change.expect("a linear layer's weight is a matrix");
        let moved = change.abs().sum_dim(1).reshape([self.outputs]);
        let moved = moved.try_into_vec_as::<f32>();
        moved.expect("parameters are f32 and on a device that can be read")
    }

    /// The output of both layers in the order of the one, `[tokens, out]`.
    fn forward(&self, product: LazyLinear, learners: &Learners) -> Tensor<2> {
        let x = product.input().clone();
        let bias = self.bias.as_ref().map(Param::flat);
        let learned = linear(x, &Weight::Trained(self.weight.get()), bias);
        let both = Tensor::cat(vec![product.compute(), learned], 1);
        both.select(1, learners.order.clone())
    }

    /// What a tensor of the layer becomes in one layer.
    fn merged(&self, part: &str, learners: &Learners) -> Option<Tensor<1>> {
        let device = self.weight.flat().inner().device();
        let put = |mut all: Vec<f32>, own: &[f32], width: usize| {
            for (&node, own) in learners.nodes.iter().zip(own.chunks(width)) {
                all[node as usize * width..][..width].copy_from_slice(own);
            }
            all
        };
        match part {
            "weight" => {
                let inputs = self.inputs();
                let rows = put(self.base_rows(), &self.weight.to_vec(), inputs);
                let rows = TensorData::new(rows, [self.outputs, inputs]);
                Some(self.base_weight.flatten(Tensor::from_data(rows, &device)))
            }
            "bias" => {
                let (own, base) = (self.bias.as_ref()?, self.base_bias.as_ref()?);
                let values = put(base.to_vec(), &own.to_vec(), 1);
                let values = TensorData::new(values, [self.outputs]);
                Some(Tensor::from_data(values, &device))
            }
            _ => None,
        }
    }

    /// The key of the learners' numbers in files and checkpoints.
    fn nodes_key(&self) -> String {
        format!("{}.far_nodes", self.path)
    }

    /// Takes the learners from a file or a checkpoint.
    fn take_nodes(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let key = self.nodes_key();
        let Some(nodes) = file.take_indices(&key)? else {
            return Ok(());
        };
        let (method, path) = (FarConfig::NAME, self.path.clone());
        check_indices_below(method, &key, (&path, self.outputs), &nodes)?;
        if nodes.len() != self.learners() {
            let reason = format!(
                "`{key}` has {} nodes, but `far_retention` leaves {}",
                nodes.len(),
                self.learners()
            );
            return Err(MethodError::Configuration { method, reason });
        }
        self.choose(nodes);
        Ok(())
    }
}

/// All feed-forwards.
#[derive(Debug)]
struct Far {
    /// All nodes, for stage 0.
    primed: Replaced,
    layers: Vec<Reconfigured>,
    /// How many values the learners have.
    count: usize,
    priming_fraction: f64,
}

impl Far {
    fn is_primed(&self) -> bool {
        self.layers.iter().all(|layer| layer.chosen.is_some())
    }

    /// The layer at `path` with its learners, in stage 1.
    fn at(&self, path: &str) -> Option<(&Reconfigured, &Learners)> {
        let layer = self.layers.iter().find(|layer| layer.path == path)?;
        Some((layer, layer.chosen.as_ref()?))
    }
}

impl Adapter for Far {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        match self.is_primed() {
            true => None,
            false => self.primed.parameter(name),
        }
    }

    fn linear(&self, site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.at(&site.path) {
            Some((layer, learners)) => layer.forward(product, learners),
            None => product.compute(),
        }
    }

    fn first_layer(&self) -> usize {
        self.primed.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        match hook {
            Hook::Linear(site) => self.at(&site.path).is_some(),
            hook => !self.is_primed() && self.primed.uses(hook),
        }
    }
}

impl Method for Far {
    fn stages(&self, steps: u64) -> Vec<Stage> {
        let priming = (self.priming_fraction * steps as f64).round() as u64;
        let priming = priming.min(steps.saturating_sub(1)).max(1).min(steps);
        vec![Stage::fresh(priming), Stage::fresh(steps - priming)]
    }

    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        match steps {
            2.. => Ok(()),
            _ => Err(MethodError::Value {
                method: FarConfig::NAME,
                key: "priming_fraction",
                value: self.priming_fraction.to_string(),
                expected: "a run must have two steps at least, one to choose the learners and one \
                           to train them"
                    .to_owned(),
            }),
        }
    }

    fn begin_stage(
        &mut self,
        stage: usize,
        head: &ParameterSet,
        _data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        if stage == 0 {
            return Ok(());
        }
        for layer in &mut self.layers {
            let name = format!("{}.weight", layer.path);
            let mut primed = self.primed.params();
            let primed = primed.find(|param| param.key() == name);
            let moved = layer.moved(primed.expect("all feed-forwards are primed"));
            let nodes = largest(&[moved], layer.learners()).remove(0);
            layer.choose(nodes);
            layer.take_base();
        }
        for param in self.primed.params().chain(head.trained()) {
            param.rewind();
        }
        Ok(())
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        let mut learners = self.layers.iter().flat_map(Reconfigured::params);
        learners.any(|own| own.id() == param.id()) != self.is_primed()
    }

    fn state(&self) -> Vec<Stored> {
        let chosen = self.layers.iter().filter_map(|layer| {
            let nodes = layer.chosen.as_ref()?.nodes.clone();
            Some(Stored::i32(layer.nodes_key(), nodes))
        });
        chosen.collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        for layer in &mut self.layers {
            layer.chosen = None;
            if state.shape(&layer.nodes_key()).is_some() {
                layer.take_nodes(state)?;
            }
        }
        Ok(())
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        if !self.is_primed() {
            return self.primed.params().map(Stored::of).collect();
        }
        let learners = self.layers.iter().flat_map(Reconfigured::params);
        self.state()
            .into_iter()
            .chain(learners.map(Stored::of))
            .collect()
    }

    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let mut layers = self.layers.iter();
        let reconfigured = layers.any(|layer| file.shape(&layer.nodes_key()).is_some());
        if reconfigured {
            for layer in &mut self.layers {
                layer.take_nodes(file)?;
            }
        }
        let learners = self.layers.iter().flat_map(Reconfigured::params);
        let params: Vec<&Param> = match reconfigured {
            true => learners.collect(),
            false => self.primed.params().collect(),
        };
        for param in params {
            if let Some(values) = file.take(param.key(), param.shape())? {
                param.set_values(values);
            }
        }
        Ok(())
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        if !self.is_primed() {
            return self.primed.merged(name, base);
        }
        let found = name.rsplit_once('.').and_then(|(path, part)| {
            let (layer, learners) = self.at(path)?;
            layer.merged(part, learners)
        });
        Ok(found)
    }

    fn changed(&self) -> usize {
        match self.is_primed() {
            true => self.count,
            false => self.primed.changed(),
        }
    }

    fn trainable(&self, _parameters: &ParameterSet) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, Identity, Model, ModelConfig, random_model};
    use serde_json::{Value, json};

    use super::FarConfig;
    use crate::framework::settings::parse;
    use crate::small_bert::{bert, bert_base_count, distance, logits, logits_of};
    use crate::test_data::{Examples, StoredList, move_all};
    use crate::{Init, Method, MethodConfig, Param, ParameterSet, Stored};

    fn gpt2() -> Model {
        let config = json!({
            "model_type": "gpt2", "vocab_size": 8, "n_embd": 8, "n_layer": 2, "n_head": 2,
            "n_inner": 8, "n_positions": 16,
        });
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        random_model(&config, head, &Device::default(), Default::default(), 0).unwrap()
    }

    fn built(model: &Model, settings: Value) -> (Box<dyn Method>, ParameterSet) {
        let config: FarConfig = parse(settings.as_object().unwrap()).unwrap();
        let mut parameters = ParameterSet::new(&Device::default(), 3);
        let method = config.build(model.base(), &mut parameters).unwrap();
        (method, parameters)
    }

    /// The method with its learners chosen, each moved; in stage 0 rows moved by their number.
    fn primed(model: &Model, settings: Value) -> (Box<dyn Method>, ParameterSet) {
        let (mut method, parameters) = built(model, settings);
        let mut head = ParameterSet::new(&Device::default(), 0);
        let weight = head.declare("head", &[2], Init::Ones);
        weight.set_values(vec![3.0; 2]);
        for stage in 0..2 {
            method
                .begin_stage(stage, &head, &mut Examples::default())
                .unwrap();
            if stage == 0 {
                move_all(parameters.trained().filter(|it| !it.key().contains("far_")));
            }
        }
        assert_eq!(weight.to_vec(), [1.0; 2], "the head starts again");
        assert_eq!(logits(model, &*method), logits(model, &Identity));
        move_all(parameters.trained().filter(|it| it.key().contains("far_")));
        (method, parameters)
    }

    #[test]
    fn the_nodes_that_moved_farthest_learn() {
        let model = bert();
        let (mut method, parameters) = built(&model, json!({ "far_retention": 0.25 }));
        let name = "bert.encoder.layer.1.intermediate.dense.weight";
        let param = parameters.get(name).unwrap();
        // Three of twelve nodes: rows 2, 7 and 11 move farther than the others.
        let mut values = param.to_vec();
        for (row, values) in values.chunks_mut(8).enumerate() {
            let by = if [2, 7, 11].contains(&row) { 0.1 } else { 0.01 };
            values.iter_mut().for_each(|value| *value += by);
        }
        param.set_values(values);
        let head = ParameterSet::new(&Device::default(), 0);
        method
            .begin_stage(1, &head, &mut Examples::default())
            .unwrap();
        let key = "bert.encoder.layer.1.intermediate.dense.far_nodes";
        let state = method.state();
        let found = state.iter().find(|stored| stored.key == key).unwrap();
        assert_eq!(*found, Stored::i32(key, vec![2, 7, 11]));
    }

    /// The layer in two gives what one layer with the learners' rows in place gives, and the other
    /// rows are the base's, bit for bit.
    #[test]
    fn two_layers_compute_what_the_merged_one_computes() {
        for model in [bert(), gpt2()] {
            for retention in [0.1, 0.5, 1.0] {
                let (method, parameters) = primed(&model, json!({ "far_retention": retention }));
                let mut merged = ParameterSet::new(&Device::default(), 0);
                let names = model.base().tensors().keys().map(String::as_str).collect();
                let whole =
                    crate::parts::replace::Replaced::named(names, model.base(), &mut merged);
                let mut same = 0;
                for param in whole.params() {
                    let before = param.to_vec();
                    if let Some(values) = method.merged(param.key(), model.base()).unwrap() {
                        param.set(values);
                    }
                    let now = param.to_vec().into_iter().zip(before);
                    same += now.filter(|(now, before)| now == before).count();
                }
                let all: usize = whole.params().map(Param::count).sum();
                assert_eq!(all - same, method.changed());
                assert_eq!(method.changed(), method.trainable(&parameters));
                let texts: [&[u32]; 1] = [&[3, 1, 4, 1, 5]];
                let expected = logits_of(&model, &whole, &texts);
                let found = logits_of(&model, &*method, &texts);
                assert!(distance(&found, &expected) < 1e-5);
                assert!(distance(&found, &logits_of(&model, &Identity, &texts)) > 1e-4);
            }
        }
    }

    #[test]
    fn the_file_and_a_checkpoint_hold_the_learners() {
        let model = bert();
        let settings = json!({ "far_retention": 0.3 });
        let (method, parameters) = primed(&model, settings.clone());
        let stored = method.stored(&parameters);
        let learners = stored.iter().filter(|it| !it.key.ends_with("far_nodes"));
        let values: usize = learners.map(|it| it.values.len()).sum();
        assert_eq!(values, method.changed());
        let (mut loaded, copies) = built(&model, settings.clone());
        loaded.load(&copies, &mut StoredList(stored)).unwrap();
        assert_eq!(logits(&model, &*loaded), logits(&model, &*method));
        let (mut resumed, _) = built(&model, settings);
        resumed
            .restore_state(&mut StoredList(method.state()))
            .unwrap();
        assert_eq!(resumed.state(), method.state());
        let mut other = built(&model, json!({ "far_retention": 0.9 })).0;
        let error = other
            .restore_state(&mut StoredList(method.state()))
            .unwrap_err();
        assert!(error.to_string().contains("`far_retention`"), "{error}");
    }

    /// 307 of 3072 and 77 of 768 nodes in each of twelve layers.
    #[test]
    fn counts_on_bert_base_are_those_of_a_tenth_of_the_nodes() {
        let expected = 12 * (307 * 769 + 77 * 3073);
        assert_eq!(bert_base_count("far", json!({}), 0), expected);
        let all = json!({ "far_retention": 1.0 });
        assert_eq!(bert_base_count("far", all, 0), 12 * 4_722_432);
    }
}
