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
//! Each stack of an encoder-decoder has a `Down` and a `Norm` of its own; cross-attention of the
//! decoder's side layers reads the side encoder's `Dropout(Norm(s))`. Where attention in the base
//! has a bias by relative positions, the side layers of a stack have a table of their own for
//! theirs, which starts as the base's.
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
//! | file | `side_first_downsample`, `side_downsamples.<i>`, `side_gate_params.<i>`, `side_block.<i>.<the base layer's names>`, `side_block.<the first>.relative_attention_bias`, `final_side_layer_norm`, `side_final_upsample`; of an encoder-decoder `encoder.` or `decoder.` stands before the first and the norm |
//! | merges | no |

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Tensor};
use epiphyte_models::adapter::name_id;
use epiphyte_models::blocks::{
    AttentionShape, Layer, LayerInput, LayerShape, Norm, NormPlacement, Projections, RelativeBias,
    RelativeBiasShape,
};
use epiphyte_models::rope::RotaryEmbedding;
use epiphyte_models::{
    Adapter, AdapterBatch, Base, BaseTensor, Builder, Depth, Entry, ForwardContext, Hidden, Hook,
    RandomSource, Stream,
};
use epiphyte_ops::{Precision, Sequences, dropout};
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

/// The name of the stream that holds the side encoder's output, which the side decoder reads.
const SIDE_ENCODED: &str = "side encoder";

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
        let encoder_layers = base.dimensions.encoder_layers;
        if sorted.iter().all(|&at| at < encoder_layers) {
            let reason = format!(
                "none of the layers {kept:?} is of its decoder, which has those from \
                 {encoder_layers} to {}: nothing else reads the side encoder; set `side_layers`",
                layers - 1
            );
            return Err(Self::not_applicable(base, reason));
        }
        Ok(sorted)
    }

    /// The shape of a side layer for every layer of the base.
    fn shapes(&self, base: &Base) -> Result<Vec<LayerShape>, MethodError> {
        let not_applicable = |reason: &str| Self::not_applicable(base, reason.to_owned());
        let shapes = base.layer_shapes();
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
        for attention in [Some(&mut small.attention), small.cross_attention.as_mut()] {
            let Some(attention) = attention else { continue };
            attention.head_dim = divided("head size", attention.head_dim)?;
            // Scores are sums of fewer products, and are divided by a smaller root accordingly;
            // those of T5 are not divided.
            if attention.scale != 1.0 {
                attention.scale *= (factor as f32).sqrt();
            }
        }
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
    let (feed_forward, size) = (&shape.feed_forward, shape.hidden_size);
    let bias = |has: bool, count: usize| if has { count } else { 0 };
    let attention = |attention: &AttentionShape| {
        let (q, kv) = (attention.query_size(), attention.kv_size());
        let fused = attention.projections == Projections::FusedConv1d;
        size * (2 * q + 2 * kv)
            + bias(attention.qkv_bias || fused, q + 2 * kv)
            + bias(attention.output_bias || fused, size)
            + count_norm(shape)
    };
    let up = if feed_forward.gated { 2 } else { 1 };
    let intermediate = feed_forward.intermediate_size;
    attention(&shape.attention)
        + shape.cross_attention.as_ref().map_or(0, attention)
        + size * intermediate * (up + 1)
        + bias(
            feed_forward.bias || feed_forward.conv1d,
            up * intermediate + size,
        )
        + count_norm(shape)
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
                "side_reduction_factor": 1, "side_init": "fisher", "side_fisher_samples": 3,
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
        let stacks: Vec<_> = stacks(base)
            .map(|(prefix, layers)| {
                let norm = (first.placement == NormPlacement::Before).then(|| {
                    let name = format!("{prefix}final_side_layer_norm");
                    Norm::build(builder.at(Depth::Head), &name, side, first.norm)
                });
                let bias = bias_of(base, &kept, &layers).map(|(table, shape)| {
                    let builder = builder.at(Depth::Layer(layers.start));
                    RelativeBias::build(builder, &table, shape.heads, shape.buckets)
                });
                (prefix, layers, norm, bias)
            })
            .collect();
        let tensors = builder.into_tensors()?;
        let pruned = Arc::new(Pruned {
            base: base.clone(),
            shapes: shapes.clone(),
            by_magnitude: OnceLock::new(),
        });
        let of_base = names_in_base(base, &kept, tensors.keys());
        let biases: BTreeMap<String, &str> = stacks
            .iter()
            .filter_map(|(_, layers, ..)| bias_of(base, &kept, layers))
            .map(|(table, shape)| (table, &*shape.table))
            .collect();
        let init = |name: &str, tensor: &BaseTensor| {
            let of_base = of_base.get(name);
            match (self.side_init, of_base, biases.get(name)) {
                (SideInit::Magnitude, Some(name), _) => {
                    let (pruned, name) = (pruned.clone(), name.clone());
                    Init::Computed(Arc::new(move || pruned.by_magnitude(&name)))
                }
                (SideInit::Magnitude | SideInit::Fisher, _, Some(table)) => {
                    let table = base.tensors()[*table].clone();
                    Init::Computed(Arc::new(move || table.to_vec()))
                }
                _ => random(name, tensor),
            }
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
        let stacks = stacks.into_iter().map(|(prefix, layers, norm, bias)| {
            let path = format!("{prefix}side_first_downsample");
            Side {
                layers,
                down: Dense::declare(parameters, &path, [side, size], projection()),
                norm,
                dropout: first.dropout,
                dropout_site: name_id(&format!("{prefix}final_side_layer_norm")),
                bias,
            }
        });
        let stacks = stacks.collect();
        let up = Dense::declare(
            parameters,
            "side_final_upsample",
            [size, side],
            projection(),
        );
        let rotates = shapes.iter().any(|shape| shape.attention.rotary);
        let rotary = base.rotary().filter(|_| rotates);
        Ok(Box::new(LadderSideTuning {
            layers: base.dimensions.layers,
            stacks,
            rungs,
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
        let stacks = stacks(base).map(|(_, layers)| {
            let bias = bias_of(base, &kept, &layers);
            down + norm + bias.map_or(0, |(_, shape)| shape.buckets.count * shape.heads)
        });
        Ok(layers.sum::<usize>() + stacks.sum::<usize>() + Dense::count([size, side]))
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

/// The stacks of the base: what stands before their own names, and their layers.
fn stacks(base: &Base) -> impl Iterator<Item = (&'static str, Range<usize>)> {
    let (all, encoder) = (base.dimensions.layers, base.dimensions.encoder_layers);
    let both = [("encoder.", 0..encoder), ("decoder.", encoder..all)];
    let one = [("", 0..all)];
    let two = encoder > 0;
    let stacks = both.into_iter().filter(move |_| two);
    stacks.chain(one.into_iter().filter(move |_| !two))
}

/// The table of relative positions that the side layers of a stack share, which is named after the
/// first of them, and that of the base; none where the base has none, or the stack no side layer.
fn bias_of<'b>(
    base: &'b Base,
    kept: &[usize],
    layers: &Range<usize>,
) -> Option<(String, &'b RelativeBiasShape)> {
    let first = kept.iter().find(|layer| layers.contains(layer))?;
    let mut biases = base.relative_biases().iter().rev();
    let shape = biases.find(|shape| shape.first_layer <= layers.start)?;
    let table = format!("{}.relative_attention_bias.weight", side_path(*first));
    Some((table, shape))
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
        let of_base = format!("{path}.{rest}");
        base.tensor(&of_base)?;
        Some((name.clone(), of_base))
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
    /// One, or those of an encoder-decoder.
    stacks: Vec<Side>,
    /// By the number of the base's layer whose output each reads.
    rungs: BTreeMap<usize, Rung>,
    up: Dense,
    /// The tensors of the side layers and of the norms, trained.
    side_tensors: Replaced,
    /// Rotary positions for the side layers' heads.
    rotary: Option<RotaryEmbedding>,
    fisher: Option<Fisher>,
    changed: usize,
}

/// What the side layers of a stack share.
#[derive(Debug)]
struct Side {
    /// The base's layers.
    layers: Range<usize>,
    down: Dense,
    norm: Option<Norm>,
    /// Dropout after the norm.
    dropout: f64,
    dropout_site: u64,
    bias: Option<RelativeBias>,
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
    /// The stack of a layer of the base.
    fn stack(&self, layer: usize) -> &Side {
        let found = self.stacks.iter().find(|it| it.layers.contains(&layer));
        found.expect("every layer is in a stack")
    }

    /// The side states after the base's layer `layer`, whose output `hidden` is.
    fn climb(&self, layer: usize, hidden: &mut Hidden, cx: &ForwardContext<'_>) -> Tensor<2> {
        let side = hidden.take(SIDE_STREAM);
        let side = side
            .expect("the hook before a stack's first layer put it there")
            .states;
        let Some(rung) = self.rungs.get(&layer) else {
            return side;
        };
        // No gradient enters the base, whatever acts on it besides.
        let mixed = rung.mix(side, hidden.states.clone().inner());
        let input = Hidden::new(mixed, hidden.rows.clone());
        let input = match &self.rotary {
            Some(rotary) => input.with_rotary(rotary, 0),
            None => input,
        };
        let encoded = hidden.stream(SIDE_ENCODED);
        let beside = LayerInput {
            bias: self.stack(layer).bias.as_ref(),
            positions: None,
            encoder: encoded.map(|stream| (stream.states.clone(), stream.rows.clone())),
        };
        let output = rung.layer.forward(input, beside, None, &self.batch(cx));
        output.states
    }

    /// `Dropout(Norm(s))` after a stack.
    fn finish(
        &self,
        stack: &Side,
        side: Tensor<2>,
        rows: &Sequences,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match &stack.norm {
            Some(norm) => {
                let states = norm.forward(side, rows, &self.batch(cx));
                dropout(states, stack.dropout, stack.dropout_site, rows)
            }
            None => side,
        }
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
        let rows = hidden.rows.clone();
        let begun = self.stacks.iter().find(|stack| stack.layers.start == layer);
        let side = match begun {
            Some(stack) => stack.down.forward(hidden.states.clone().inner()),
            None => self.climb(layer - 1, &mut hidden, cx),
        };
        if layer == self.layers {
            let side = self.finish(self.stack(layer - 1), side, &rows, cx);
            return hidden.with(self.up.forward(side));
        }
        let stream = Stream::of_adapter(SIDE_STREAM, side, rows);
        hidden.carried.push(stream);
        hidden
    }

    fn encoded(&self, mut hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        let last = self.stacks[0].layers.end - 1;
        let side = self.climb(last, &mut hidden, cx);
        let rows = hidden.rows.clone();
        let side = self.finish(self.stack(last), side, &rows, cx);
        let stream = Stream::of_adapter(SIDE_ENCODED, side, rows);
        hidden.carried.push(stream);
        hidden
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match self.stacks.iter().any(|stack| stack.norm.is_some()) {
            true => states,
            false => norm(states),
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Hidden(_) | Hook::Encoded | Hook::FinalNorm)
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

    /// Two layers that encode and one that decodes, with biases by relative positions.
    fn t5() -> Model {
        let config = json!({
            "model_type": "t5", "vocab_size": 30, "d_model": 16, "d_kv": 4, "d_ff": 24,
            "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
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
        for model in [bert(), llama(), gpt2(), t5()] {
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
        let t5_base = model(
            json!({
                "model_type": "t5", "vocab_size": 8, "d_model": 768, "d_kv": 64, "d_ff": 3072,
                "num_layers": 12, "num_heads": 12,
            }),
            HeadKind::LanguageModel,
        );
        let nine = json!({ "side_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11] });
        let each_nine = json!({
            "side_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23],
        });
        for (model, settings, expected) in [
            (&bert_base, json!({}), 2_376_300),
            (&bert_base, nine, 1_819_308 - 3),
            (&llama_7b, json!({}), 172_545_056),
            (&t5_base, each_nine, 3_878_712 - 6),
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

    /// Without reduction both stacks and the tables of relative positions start as the base's own,
    /// and what the side encoder says reaches the decoder.
    #[test]
    fn an_encoder_decoder_has_a_side_encoder_and_a_side_decoder() {
        let model = t5();
        let (method, parameters) = build(&model, json!({ "side_reduction_factor": 1 }));
        let base = model.base();
        let of_side = |path: &str, side: usize| {
            let mut compared = 0;
            for (name, tensor) in base.tensors() {
                let Some(rest) = name.strip_prefix(path) else {
                    continue;
                };
                let rest = rest.replace("layer.0.SelfAttention.relative", "relative");
                let key = format!("side_block.{side}{rest}");
                assert_eq!(param(&parameters, &key).to_vec(), tensor.to_vec(), "{name}");
                compared += 1;
            }
            compared
        };
        assert_eq!(of_side("encoder.block.0", 0), 4 + 2 + 2 + 1);
        assert_eq!(of_side("encoder.block.1", 1), 4 + 2 + 2);
        assert_eq!(of_side("decoder.block.0", 2), 4 + 4 + 2 + 3 + 1);
        let before = states(&model, &*method);
        for key in [
            "encoder.side_first_downsample.bias",
            "side_downsamples.1.weight",
            "side_block.1.layer.0.SelfAttention.q.weight",
            "side_block.0.relative_attention_bias.weight",
            "encoder.final_side_layer_norm.weight",
            "side_block.2.layer.1.EncDecAttention.k.weight",
            "side_block.2.relative_attention_bias.weight",
            "decoder.final_side_layer_norm.weight",
        ] {
            let param = param(&parameters, key);
            let values = param.to_vec();
            let changed = values.iter().enumerate();
            let changed = changed.map(|(at, value)| value + (at % 5) as f32);
            param.set_values(changed.collect());
            assert_ne!(states(&model, &*method), before, "{key}");
            param.set_values(values);
        }
        assert_eq!(states(&model, &*method), before);
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
        let encoder_alone = json!({ "side_reduction_factor": 2, "side_layers": [0, 1] });
        let config: LadderSideTuningConfig =
            crate::framework::settings::parse(encoder_alone.as_object().unwrap()).unwrap();
        let error = config.count(t5().base()).unwrap_err().to_string();
        assert!(error.contains("from 2 to 2: nothing else reads"), "{error}");
    }
}
