//! Ladder side-tuning (LST): a small transformer that reads the states of the frozen base and is
//! trained without any gradient or autodiff graph in the base.
//!
//! Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer
//! Learning", NeurIPS 2022, arXiv 2206.06522, and the code that came with it (its
//! `train_side_transformer`).
//!
//! With `h_0 [tokens, d]` the input of the base's first layer and `h_i` the output of its layer
//! `i`, `r` the reduction factor and side layers of the base layers' shape, each size but the
//! number of heads divided by `r`:
//!
//! - `s = Down(h_0)`, `[tokens, d / r]`
//! - for each layer `i` that has a side layer: `s = Side_i(μ_i s + (1 - μ_i) Down_i(h_i))` with
//!   `μ_i = σ(α_i / 0.1)`, `α_i` starting at 0
//! - the head reads `Up(Dropout(Norm(s)))`, `[tokens, d]`, in place of the base's final states;
//!   where the base's norms come after the blocks, the last side layer has normalized and there is
//!   no `Norm`
//!
//! `Down`, `Down_i` and `Up` have biases and start normal with standard deviation 0.01. Side layers
//! start as parts of the base's layers ([structural pruning](crate::parts::structural_pruning)), by
//! the magnitude of weights or, as in the paper, by their Fisher information on training examples;
//! with `side_init` = `random` normal with standard deviation `1 / √in`.
//!
//! The paper has no encoder classifiers of BERT's kind; here they read `Up(s)` by the ordinary
//! pooler and the trained head.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | a side layer each (`4 d_s² + 2 d_s ff_s` + biases, norms), `d d_s + d_s + 1` for each, `2 d d_s + d_s + d` |
//! | file | `side_first_downsample`, `side_downsamples.<i>`, `side_gate_params.<i>`, `side_block.<i>.<the base layer's names>`, `final_side_layer_norm`, `side_final_upsample` |
//! | merges | no |

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};
use epiphyte_models::adapter::name_id;
use epiphyte_models::blocks::{Layer, LayerInput, LayerShape, Norm, NormPlacement, Projections};
use epiphyte_models::rope::RotaryEmbedding;
use epiphyte_models::{
    Adapter, AdapterBatch, Base, BaseTensor, Builder, Depth, Entry, ForwardContext, Hidden, Hook,
    RandomSource, Stream,
};
use epiphyte_ops::{Precision, dropout};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::dense::Dense;
use crate::parts::replace::Replaced;
use crate::parts::structural_pruning::Pruning;

crate::settings! {
    /// The settings of ladder side-tuning.
    #[derive(Eq)]
    pub struct LadderSideTuningConfig {
        /// What the sizes of the base's layers are divided by; it divides the size of a head.
        side_reduction_factor: usize = 8, in AtLeastOne;
        /// Numbers of the layers that have a side layer.
        side_layers: Option<Vec<usize>> = None, unset "all";
        /// Initial values of the side layers: parts of the base by magnitude or fisher, or random.
        side_init: SideInit = SideInit::Magnitude, as Text;
        /// Training examples from which the Fisher information is estimated.
        side_fisher_samples: usize = 1024, in AtLeastOne;
    }
}

/// What side layers start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SideInit {
    /// Rows and columns of the base whose values are largest.
    Magnitude,
    /// Rows and columns of the base with the largest Fisher information.
    Fisher,
    /// Random values.
    Random,
}

/// The temperature of the gates.
const TEMPERATURE: f64 = 0.1;

/// The name of the stream that holds the side network's states.
const SIDE_STREAM: &str = "side";

impl LadderSideTuningConfig {
    fn not_applicable(base: &Base, reason: String) -> MethodError {
        MethodError::NotApplicable {
            method: Self::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason,
        }
    }

    /// The layers that have a side layer, in ascending order.
    fn kept(&self, base: &Base) -> Result<Vec<usize>, MethodError> {
        let layers = base.dimensions.layers;
        let Some(kept) = &self.side_layers else {
            return Ok((0..layers).collect());
        };
        let mut sorted = kept.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() || sorted.len() < kept.len() || sorted.iter().any(|&at| at >= layers) {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "side_layers",
                value: format!("{kept:?}"),
                expected: format!(
                    "it must be different layer numbers from 0 to {}, at least one",
                    layers.saturating_sub(1)
                ),
            });
        }
        Ok(sorted)
    }

    /// The shape of a side layer for every layer of the base.
    fn shapes(&self, base: &Base) -> Result<Vec<LayerShape>, MethodError> {
        let not_applicable = |reason: &str| Self::not_applicable(base, reason.to_owned());
        let shapes = base.layer_shapes();
        if shapes.iter().any(|shape| shape.cross_attention.is_some()) {
            return Err(not_applicable(
                "side layers for the decoder of an encoder-decoder do not exist yet; LoRA or an \
                 adapter acts on both stacks",
            ));
        }
        if base.layer_names().len() != shapes.len() || shapes.is_empty() {
            return Err(not_applicable(
                "its layers are of a kind of its own, of which no smaller copies can be made",
            ));
        }
        if base.embedding_size() != base.dimensions.hidden_size {
            return Err(not_applicable(
                "its embeddings are narrower than its hidden states, so that they do not say which \
                 of these the side network keeps",
            ));
        }
        shapes
            .iter()
            .map(|shape| self.reduced(base, shape))
            .collect()
    }

    fn reduced(&self, base: &Base, shape: &LayerShape) -> Result<LayerShape, MethodError> {
        let factor = self.side_reduction_factor;
        let divided = |what: &str, size: usize| {
            if size.is_multiple_of(factor) {
                return Ok(size / factor);
            }
            let reason = format!(
                "its {what} is {size}, which the reduction factor {factor} does not divide; set \
                 `side_reduction_factor`"
            );
            Err(Self::not_applicable(base, reason))
        };
        let mut small = shape.clone();
        small.hidden_size = divided("hidden size", shape.hidden_size)?;
        small.attention.head_dim = divided("head size", shape.attention.head_dim)?;
        // Scores are sums of fewer products, and are divided by a smaller root accordingly.
        small.attention.scale = shape.attention.scale * (factor as f32).sqrt();
        small.feed_forward.intermediate_size =
            divided("intermediate size", shape.feed_forward.intermediate_size)?;
        if shape.attention.rotary {
            let whole = base.rotary().map(|it| it.head_dim) == Some(shape.attention.head_dim);
            let even = small.attention.head_dim.is_multiple_of(2);
            if !(whole && even) {
                let reason = format!(
                    "rotary positions turn pairs of a head's dimensions, and the side network's \
                     heads would have {}; set `side_reduction_factor`",
                    small.attention.head_dim
                );
                return Err(Self::not_applicable(base, reason));
            }
        }
        Ok(small)
    }
}

/// How many values a layer of this shape holds.
fn count_layer(shape: &LayerShape) -> usize {
    let (attention, feed_forward, size) =
        (&shape.attention, &shape.feed_forward, shape.hidden_size);
    let (q, kv) = (attention.query_size(), attention.kv_size());
    let bias = |has: bool, count: usize| if has { count } else { 0 };
    let fused = attention.projections == Projections::FusedConv1d;
    let up = if feed_forward.gated { 2 } else { 1 };
    let intermediate = feed_forward.intermediate_size;
    size * (2 * q + 2 * kv)
        + bias(attention.qkv_bias || fused, q + 2 * kv)
        + bias(attention.output_bias || fused, size)
        + size * intermediate * (up + 1)
        + bias(
            feed_forward.bias || feed_forward.conv1d,
            up * intermediate + size,
        )
        + 2 * count_norm(shape)
}

fn count_norm(shape: &LayerShape) -> usize {
    shape.hidden_size * if shape.norm.rms { 1 } else { 2 }
}

impl MethodConfig for LadderSideTuningConfig {
    const NAME: &'static str = "ladder-side-tuning";
    const PEFT_TYPE: &'static str = "LADDER_SIDE_TUNING";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "a small transformer that reads the base's states; no gradient in the base";
    const PAPER: &'static str = "Sung et al. 2022, arXiv 2206.06522";
    const CLAIMS: Option<Claims> = Some(Claims {
        gradients_through_base: Some(false),
        ..Claims::survey("extra decoder")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "side_reduction_factor": 2 }),
            json!({ "side_reduction_factor": 1, "side_layers": [1], "side_init": "random" }),
            json!({
                "side_reduction_factor": 1, "side_layers": [0], "side_init": "fisher",
                "side_fisher_samples": 3,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (shapes, kept) = (self.shapes(base)?, self.kept(base)?);
        let first = &shapes[0];
        let (size, side) = (base.dimensions.hidden_size, first.hidden_size);
        let projection = || (Init::Normal { std: 0.01 }, Init::Zeros);

        // The values of these tensors are never read: each has a parameter in its place.
        let mut source = RandomSource {
            initializer_range: 0.0,
            seed: 0,
        };
        let mut builder = Builder::new(&mut source, parameters.device(), Precision::F32);
        let mut layers = BTreeMap::new();
        for &index in &kept {
            let names = &base.layer_names()[index].1;
            let builder = builder.at(Depth::Layer(index));
            let layer = Layer::build(builder, &side_path(index), names, &shapes[index]);
            layers.insert(index, layer);
        }
        let norm = (first.placement == NormPlacement::Before).then(|| {
            let builder = builder.at(Depth::Head);
            Norm::build(builder, "final_side_layer_norm", side, first.norm)
        });
        let tensors = builder.into_tensors()?;
        let pruned = Arc::new(Pruned {
            base: base.clone(),
            shapes: shapes.clone(),
            by_magnitude: OnceLock::new(),
        });
        let of_base = names_in_base(base, &kept, tensors.keys());
        let init = |name: &str, tensor: &BaseTensor| match (self.side_init, of_base.get(name)) {
            (SideInit::Magnitude, Some(name)) => {
                let (pruned, name) = (pruned.clone(), name.clone());
                Init::Computed(Arc::new(move || pruned.by_magnitude(&name)))
            }
            _ => random(name, tensor),
        };
        let side_tensors = Replaced::added(&tensors, parameters, init);
        let rungs = layers.into_iter().map(|(index, layer)| {
            let down = format!("side_downsamples.{index}");
            let rung = Rung {
                down: Dense::declare(parameters, &down, [side, size], projection()),
                gate: parameters.declare(format!("side_gate_params.{index}"), &[1], Init::Zeros),
                layer,
            };
            (index, rung)
        });
        let rungs = rungs.collect();
        let [first_down, up] = [
            ("side_first_downsample", [side, size]),
            ("side_final_upsample", [size, side]),
        ]
        .map(|(path, shape)| Dense::declare(parameters, path, shape, projection()));
        let rotates = shapes.iter().any(|shape| shape.attention.rotary);
        let rotary = base.rotary().filter(|_| rotates);
        Ok(Box::new(LadderSideTuning {
            layers: base.dimensions.layers,
            down: first_down,
            rungs,
            norm,
            dropout: first.dropout,
            up,
            side_tensors,
            rotary: rotary.map(|rotary| rotary.with_head_dim(first.attention.head_dim)),
            fisher: (self.side_init == SideInit::Fisher).then(|| Fisher {
                samples: self.side_fisher_samples,
                device: parameters.device().clone(),
                pruned,
                of_base,
            }),
            changed: self.count(base)?,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let (shapes, kept) = (self.shapes(base)?, self.kept(base)?);
        let (size, side) = (base.dimensions.hidden_size, shapes[0].hidden_size);
        let down = Dense::count([side, size]);
        let layers = kept
            .iter()
            .map(|&index| count_layer(&shapes[index]) + down + 1);
        let norm = match shapes[0].placement {
            NormPlacement::Before => count_norm(&shapes[0]),
            _ => 0,
        };
        Ok(layers.sum::<usize>() + down + Dense::count([size, side]) + norm)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            side_layers: self.kept(base).ok(),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            // All values come from the file.
            side_init: SideInit::Random,
            ..self.clone()
        }
    }
}

/// Where the tensors of a side layer are.
fn side_path(index: usize) -> String {
    format!("side_block.{index}")
}

/// The base's tensor for each tensor of the side layers that has one.
fn names_in_base<'a>(
    base: &Base,
    kept: &[usize],
    names: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, String> {
    let of_layers: Vec<(String, &str)> = kept
        .iter()
        .map(|&index| {
            let (path, _) = &base.layer_names()[index];
            (format!("{}.", side_path(index)), path.as_str())
        })
        .collect();
    let of_base = names.filter_map(|name| {
        let mut layers = of_layers.iter();
        let found = layers.find_map(|(side, path)| Some((path, name.strip_prefix(side)?)));
        let (path, rest) = found?;
        Some((name.clone(), format!("{path}.{rest}")))
    });
    of_base.collect()
}

/// Random initial values: matrices `[out, in]` normal with standard deviation `1 / √in`.
fn random(name: &str, tensor: &BaseTensor) -> Init {
    match tensor.matrix() {
        Some(matrix) => Init::Normal {
            std: 1.0 / (matrix.shape()[1] as f64).sqrt(),
        },
        None if tensor.is_norm() && name.ends_with(".weight") => Init::Ones,
        None => Init::Zeros,
    }
}

/// The parts of the base that side layers start from.
#[derive(Debug)]
struct Pruned {
    base: Base,
    shapes: Vec<LayerShape>,
    by_magnitude: OnceLock<Pruning>,
}

impl Pruned {
    fn by_magnitude(&self, name: &str) -> Vec<f32> {
        let pruning = self.by_magnitude.get_or_init(|| {
            let magnitude = |_: &str, tensor: &BaseTensor| {
                let values = tensor.to_vec().into_iter();
                values.map(f32::abs).collect()
            };
            Pruning::new(&self.base, &self.shapes, &magnitude)
        });
        pruning.values(&self.base, name)
    }
}

/// What initial values by Fisher information need.
#[derive(Debug)]
struct Fisher {
    samples: usize,
    device: Device,
    pruned: Arc<Pruned>,
    of_base: BTreeMap<String, String>,
}

impl Fisher {
    /// Sums the squared gradients of single examples' losses for every value of the base, and puts
    /// the parts of the base with the largest sums in place.
    fn initialize(
        &self,
        side_tensors: &Replaced,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        let base = &self.pruned.base;
        let mut parameters = ParameterSet::new(&self.device, 0);
        let all = Replaced::new(base, &mut parameters, |_| true);
        let params: Vec<Param> = all.params().cloned().collect();
        let mut information: BTreeMap<&str, Vec<f32>> = params
            .iter()
            .map(|param| (param.key(), vec![0.0; param.count()]))
            .collect();
        parameters.track(true);
        let samples = self.samples.min(data.examples());
        data.gradients(samples, Each::Example, &params, &all, &mut |gradients| {
            for param in &params {
                let Some(gradient) = gradients.get(param) else {
                    continue;
                };
                let values = gradient.clone().try_into_vec_as::<f32>();
                let values = values.expect("gradients are f32 and on a device that can be read");
                let sums = information
                    .get_mut(param.key())
                    .expect("every key has sums");
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum += value * value;
                }
            }
        })?;
        let importance = |name: &str, _: &BaseTensor| information[name].clone();
        let pruning = Pruning::new(base, &self.pruned.shapes, &importance);
        for param in side_tensors.params() {
            if let Some(name) = self.of_base.get(param.key()) {
                param.set_values(pruning.values(base, name));
            }
        }
        Ok(())
    }
}

/// A side network over a frozen base.
#[derive(Debug)]
struct LadderSideTuning {
    /// The base's layers.
    layers: usize,
    down: Dense,
    /// By the number of the base's layer whose output each reads.
    rungs: BTreeMap<usize, Rung>,
    norm: Option<Norm>,
    /// Dropout after the norm.
    dropout: f64,
    up: Dense,
    /// The tensors of the side layers and of the norm, trained.
    side_tensors: Replaced,
    /// Rotary positions for the side layers' heads.
    rotary: Option<RotaryEmbedding>,
    fisher: Option<Fisher>,
    changed: usize,
}

/// A side layer, with what feeds it.
#[derive(Debug)]
struct Rung {
    down: Dense,
    /// `α`, `[1]`
    gate: Param,
    layer: Layer,
}

impl Rung {
    /// `μ = σ(α / T)`, `[1, 1]`.
    fn share(&self) -> Tensor<2> {
        sigmoid(self.gate.get::<1>() / TEMPERATURE).reshape([1, 1])
    }

    /// `μ s + (1 - μ) Down(h)`.
    fn mix(&self, side: Tensor<2>, states: Tensor<2>) -> Tensor<2> {
        let share = self.share();
        side * share.clone() + self.down.forward(states) * (1.0 - share)
    }
}

impl LadderSideTuning {
    /// Runs a side layer.
    fn run(&self, rung: &Rung, input: Hidden, cx: &ForwardContext<'_>) -> Tensor<2> {
        let input = match &self.rotary {
            Some(rotary) => input.with_rotary(rotary, 0),
            None => input,
        };
        let output = rung
            .layer
            .forward(input, LayerInput::default(), None, &self.batch(cx));
        output.states
    }

    /// What the head reads, from the last side layer's output.
    fn finish(&self, side: Hidden, cx: &ForwardContext<'_>) -> Tensor<2> {
        let states = match &self.norm {
            Some(norm) => {
                let states = norm.forward(side.states, &side.rows, &self.batch(cx));
                let site = name_id("final_side_layer_norm");
                dropout(states, self.dropout, site, &side.rows)
            }
            None => side.states,
        };
        self.up.forward(states)
    }

    /// The side layers' trained tensors, as the adapter that they are run with.
    fn batch<'a>(&'a self, cx: &ForwardContext<'a>) -> AdapterBatch<'a> {
        AdapterBatch::new([Entry {
            adapter: &self.side_tensors,
            tokens: cx.tokens,
            mode: cx.mode,
            streams: cx.streams,
        }])
    }
}

impl Adapter for LadderSideTuning {
    fn hidden(&self, layer: usize, mut hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        // No gradient enters the base, whatever acts on it besides.
        let states = hidden.states.clone().inner();
        let side = match layer.checked_sub(1) {
            None => self.down.forward(states),
            Some(below) => {
                let side = hidden.take(SIDE_STREAM);
                let side = side.expect("the hook before layer 0 put it there").states;
                match self.rungs.get(&below) {
                    Some(rung) => {
                        let mixed = rung.mix(side, states);
                        self.run(rung, Hidden::new(mixed, hidden.rows.clone()), cx)
                    }
                    None => side,
                }
            }
        };
        let rows = hidden.rows.clone();
        if layer == self.layers {
            return hidden.with(self.finish(Hidden::new(side, rows), cx));
        }
        let stream = Stream::of_adapter(SIDE_STREAM, side, rows);
        hidden.carried.push(stream);
        hidden
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match self.norm {
            Some(_) => states,
            None => norm(states),
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Hidden(_) | Hook::FinalNorm)
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        layer + 1 == self.layers
    }
}

impl Method for LadderSideTuning {
    fn begin_stage(
        &mut self,
        _stage: usize,
        _head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        match &self.fisher {
            Some(fisher) => fisher.initialize(&self.side_tensors, data),
            None => Ok(()),
        }
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: LadderSideTuningConfig::NAME,
            reason: "it is a network of its own that reads the base's states",
        })
    }

    fn changed(&self) -> usize {
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use epiphyte_models::{HeadKind, Identity, Model, ModelConfig, StandIn, Tokens, random_model};
    use epiphyte_ops::Sequences;
    use serde_json::Map;

    use super::*;
    use crate::framework::composition::Chain;

    fn model(config: Value, head: HeadKind) -> Model {
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        random_model(&config, head, &Device::default(), Precision::F32, 3).unwrap()
    }

    fn bert() -> Model {
        let config = json!({
            "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
            "initializer_range": 0.3,
        });
        model(config, HeadKind::Classification { labels: 2 })
    }

    fn llama() -> Model {
        let config = json!({
            "model_type": "llama", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
            "max_position_embeddings": 64, "tie_word_embeddings": false, "initializer_range": 0.3,
        });
        model(config, HeadKind::LanguageModel)
    }

    /// Queries, keys and values in one matrix, and matrices stored as `[in, out]`.
    fn gpt2() -> Model {
        let config = json!({
            "model_type": "gpt2", "vocab_size": 30, "n_embd": 16, "n_layer": 3, "n_head": 4,
            "n_inner": 24, "n_positions": 64, "initializer_range": 0.3,
        });
        model(config, HeadKind::LanguageModel)
    }

    fn build(model: &Model, settings: Value) -> (Box<dyn Method>, ParameterSet) {
        let settings: Map<String, Value> = settings.as_object().unwrap().clone();
        let config = crate::by_name("ladder-side-tuning").unwrap();
        let config = config.configure(settings).unwrap();
        let mut parameters = ParameterSet::new(&Device::default(), 1);
        let method = config.build(model.base(), &mut parameters).unwrap();
        (method, parameters)
    }

    fn states(model: &Model, adapter: &dyn Adapter) -> Vec<f32> {
        let tokens = Tokens::new(
            &[3, 7, 1, 19, 4, 25, 6, 2],
            &[0; 8],
            Sequences::new(vec![0, 5, 8]),
        );
        let states = model.hidden(&tokens, adapter).states.inner();
        states.try_into_vec_as::<f32>().unwrap()
    }

    fn param<'a>(parameters: &'a ParameterSet, key: &str) -> &'a Param {
        parameters.get(key).unwrap()
    }

    fn fill(param: &Param, value: f32) {
        param.set_values(vec![value; param.count()]);
    }

    /// Notes the base's states before each layer and after the last, and whether they have a graph.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(Vec<f32>, bool)>>);

    impl Adapter for Recorder {
        fn hidden(&self, _layer: usize, hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
            let tracked = hidden.states.is_autodiff() && hidden.states.is_tracked();
            let states = hidden.states.clone().inner();
            let states = states.try_into_vec_as::<f32>().unwrap();
            self.0.lock().unwrap().push((states, tracked));
            hidden
        }
    }

    impl Recorder {
        fn of(model: &Model, adapter: &dyn Adapter) -> Vec<(Vec<f32>, bool)> {
            let recorder = Self::default();
            states(model, &Chain([&recorder as &dyn Adapter, adapter]));
            recorder.0.into_inner().unwrap()
        }
    }

    #[test]
    fn the_base_computes_the_same_with_and_without_and_has_no_graph() {
        for model in [bert(), llama(), gpt2()] {
            let (method, parameters) = build(&model, json!({ "side_reduction_factor": 2 }));
            let alone = Recorder::of(&model, &Identity);
            assert_eq!(alone.len(), 4);
            assert_eq!(Recorder::of(&model, &*method), alone);
            parameters.track(true);
            assert_eq!(Recorder::of(&model, &*method), alone);
            assert_ne!(states(&model, &*method), states(&model, &Identity));
        }
    }

    #[test]
    fn an_open_gate_leaves_only_the_embeddings() {
        struct Changed;
        impl Adapter for Changed {
            fn parameter(&self, name: &str) -> Option<StandIn> {
                let value = Tensor::from_floats([0.7; 16], &Device::default());
                (name == "model.layers.1.input_layernorm.weight").then_some(StandIn::Tensor(value))
            }
        }
        let model = llama();
        let (method, parameters) = build(&model, json!({ "side_reduction_factor": 2 }));
        let changed =
            |method: &dyn Method| states(&model, &Chain([&Changed as &dyn Adapter, method]));
        assert_ne!(changed(&*method), states(&model, &*method));
        for layer in 0..3 {
            fill(
                param(&parameters, &format!("side_gate_params.{layer}")),
                1e3,
            );
        }
        assert_eq!(changed(&*method), states(&model, &*method));
    }

    #[test]
    fn gates_start_half_open_with_a_slope_of_two_and_a_half() {
        let (_, parameters) = build(&bert(), json!({ "side_reduction_factor": 2 }));
        let dense = || {
            Dense::declare(
                &mut ParameterSet::new(&Device::default(), 0),
                "down",
                [1, 1],
                (Init::Ones, Init::Zeros),
            )
        };
        let model = bert();
        let mut source = RandomSource {
            initializer_range: 0.1,
            seed: 0,
        };
        let mut builder = Builder::new(&mut source, &Device::default(), Precision::F32);
        let (_, names) = &model.base().layer_names()[0];
        let shape = &model.base().layer_shapes()[0];
        let rung = Rung {
            down: dense(),
            gate: param(&parameters, "side_gate_params.0").clone(),
            layer: Layer::build(builder.at(Depth::Layer(0)), "side", names, shape),
        };
        parameters.track(true);
        let share = rung.share();
        assert_eq!(share.clone().inner().into_scalar::<f32>(), 0.5);
        let gradients = share.sum().backward();
        let slope = rung.gate.flat().grad(&gradients).unwrap();
        assert_eq!(slope.into_scalar::<f32>(), 2.5);
    }

    /// With `r` = 1, projections that are the identity, closed gates, side layers that add nothing
    /// and the base's final norm, the side network returns the base's states.
    #[test]
    fn the_wiring_returns_the_bases_own_states() {
        let model = llama();
        let (method, parameters) = build(&model, json!({ "side_reduction_factor": 1 }));
        let identity: Vec<f32> = (0..16 * 16)
            .map(|at| f32::from(u8::from(at % 17 == 0)))
            .collect();
        for key in ["side_downsamples.2", "side_final_upsample"] {
            param(&parameters, &format!("{key}.weight")).set_values(identity.clone());
        }
        for layer in 0..3 {
            fill(
                param(&parameters, &format!("side_gate_params.{layer}")),
                -1e3,
            );
            for name in ["self_attn.o_proj", "mlp.down_proj"] {
                fill(
                    param(&parameters, &format!("side_block.{layer}.{name}.weight")),
                    0.0,
                );
            }
        }
        let norm = model.base().tensor("model.norm.weight").unwrap();
        param(&parameters, "final_side_layer_norm.weight").set_values(norm.to_vec());
        assert_eq!(states(&model, &*method), states(&model, &Identity));
        fill(param(&parameters, "side_gate_params.2"), 0.0);
        assert_ne!(states(&model, &*method), states(&model, &Identity));
    }

    /// The numbers of the reference's formula; its gates of layers without a side layer are left
    /// out.
    #[test]
    fn counts_are_those_of_the_literature() {
        let bert_base = model(
            json!({ "model_type": "bert", "vocab_size": 8 }),
            HeadKind::Classification { labels: 2 },
        );
        let llama_7b = model(
            json!({
                "model_type": "llama", "vocab_size": 8, "hidden_size": 4096,
                "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
            }),
            HeadKind::LanguageModel,
        );
        let nine = json!({ "side_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11] });
        for (model, settings, expected) in [
            (&bert_base, json!({}), 2_376_300),
            (&bert_base, nine, 1_819_308 - 3),
            (&llama_7b, json!({}), 172_545_056),
        ] {
            let (_, parameters) = build(model, settings);
            assert_eq!(parameters.count(), expected);
        }
    }

    #[test]
    fn side_layers_without_reduction_start_as_the_bases_own() {
        for model in [bert(), llama(), gpt2()] {
            let (_, parameters) = build(&model, json!({ "side_reduction_factor": 1 }));
            let base = model.base();
            let mut compared = 0;
            for (name, tensor) in base.tensors() {
                let of_layer = base.layer_of(name).map(|layer| {
                    let path = &base.layer_names()[layer].0;
                    name.replacen(path.as_str(), &format!("side_block.{layer}"), 1)
                });
                if let Some(key) = of_layer {
                    assert_eq!(param(&parameters, &key).to_vec(), tensor.to_vec(), "{name}");
                    compared += 1;
                }
            }
            assert!(compared >= 27);
        }
    }

    #[test]
    fn what_does_not_divide_is_refused_with_the_reason() {
        for (settings, message) in [
            (
                json!({}),
                "its head size is 4, which the reduction factor 8 does not divide",
            ),
            (
                json!({ "side_reduction_factor": 3 }),
                "its hidden size is 16, which",
            ),
            (
                json!({ "side_reduction_factor": 4 }),
                "turn pairs of a head's dimensions",
            ),
            (
                json!({ "side_reduction_factor": 2, "side_layers": [3] }),
                "from 0 to 2",
            ),
            (
                json!({ "side_reduction_factor": 2, "side_layers": [] }),
                "at least one",
            ),
        ] {
            let config: LadderSideTuningConfig =
                crate::framework::settings::parse(settings.as_object().unwrap()).unwrap();
            let error = config.count(llama().base()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
