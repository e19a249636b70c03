//! ReFT: the states of chosen positions are changed in a low-dimensional subspace after chosen
//! layers.
//!
//! Wu, Arora, Wang, Geiger, Jurafsky, Manning, Potts, "ReFT: Representation Finetuning for Language
//! Models", NeurIPS 2024, arXiv 2404.03592, section 3; code stanfordnlp/pyreft.
//!
//! With `h [d]` what a layer returns at a position, `W: [r, d]`, `b: [r]`, `f` an activation
//! function or none:
//!
//! - LoReFT: `h + (f(h Wᵀ + b) - h Rᵀ) R`, the rows of `R: [r, d]` orthonormal
//! - NoReFT: the same with a free matrix in place of `R`
//! - DiReFT: `h + f(h Wᵀ + b) R`, as pyreft has it; NodiReFT with a free matrix, which is DiReFT's
//!   formula in the paper
//!
//! The positions are the first `prefix_positions` and the last `suffix_positions` of each sequence;
//! either have their own parameters, or the same with `tied_weights`. A position that is both is
//! among the first. Dropout acts on the changed states. `R` comes of a trained `[r, d]` by
//! Gram-Schmidt orthonormalization (pyreft: Householder reflections); free matrices, `W` and `b`
//! start uniform in `±1/√d`, as PyTorch's linear layers do.
//!
//! An encoder-decoder's layers are counted through; each stack has its own positions, and the last
//! layer of an encoder is changed behind the encoder's final norm.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `2 r d + r` for each layer, twice with positions at both ends and weights of their own |
//! | file | `reft.<layer>.<end>.projection` `[r, d]`, `reft.<layer>.<end>.learned_source.{weight,bias}`, where the end is `prefix`, `suffix` or `both` |
//! | merges | no: other positions stay as they are |

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, ENCODER_STREAM, ForwardContext, Hidden, Hook};
use epiphyte_ops::{Activation, Sequences, Weight, dropout, fork, linear, random, rows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::dense::Dense;

crate::settings! {
    /// The settings of ReFT, most under AdapterHub's names.
    pub struct ReftConfig {
        /// Kind of intervention: loreft, noreft, direft or nodireft.
        reft_type: ReftType = ReftType::Loreft, as Text;
        /// Rank of the update.
        r: usize = 4, flag "rank", in Size;
        /// Positions at the beginning of each sequence whose states are changed.
        prefix_positions: usize = 3;
        /// Positions at the end of each sequence whose states are changed.
        suffix_positions: usize = 0;
        /// Use the same parameters at the beginning and at the end.
        tied_weights: bool = false;
        /// Dropout on the changed states.
        reft_dropout: f64 = 0.0, in Fraction;
        /// Activation function: relu, gelu_new, silu, ...
        non_linearity: Option<String> = None;
        /// Numbers of the layers to adapt.
        layers_to_transform: Option<Vec<usize>> = None, unset "all";
    }
}

/// A kind of intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReftType {
    /// Within the space of an orthonormal matrix.
    Loreft,
    /// Within that of a free one.
    Noreft,
    /// Along an orthonormal matrix, without subtracting what is there.
    Direft,
    /// Along a free one.
    Nodireft,
}

impl ReftType {
    fn is_orthonormal(self) -> bool {
        matches!(self, Self::Loreft | Self::Direft)
    }

    fn subtracts(self) -> bool {
        matches!(self, Self::Loreft | Self::Noreft)
    }
}

/// Which positions parameters are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Prefix,
    Suffix,
    Both,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Suffix => "suffix",
            Self::Both => "both",
        }
    }
}

impl ReftConfig {
    fn value(key: &'static str, value: String, expected: String) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key,
            value,
            expected,
        }
    }

    /// The layers, in ascending order.
    fn layers(&self, base: &Base) -> Result<Vec<usize>, MethodError> {
        let layers = base.dimensions.layers;
        let Some(given) = &self.layers_to_transform else {
            return Ok((0..layers).collect());
        };
        let mut sorted = given.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() || sorted.iter().any(|&layer| layer >= layers) {
            let expected = format!("it must be layer numbers from 0 to {}", layers - 1);
            return Err(Self::value(
                "layers_to_transform",
                format!("{given:?}"),
                expected,
            ));
        }
        Ok(sorted)
    }

    /// What has parameters of its own in each layer.
    fn ends(&self, base: &Base) -> Result<Vec<End>, MethodError> {
        let writes = base.task_head.is_none();
        let mut shapes = base.layer_shapes().iter();
        if self.suffix_positions > 0 && writes && shapes.any(|shape| shape.attention.causal) {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "a language model's text has no end yet while it is written; set \
                         `suffix_positions` to 0"
                    .to_owned(),
            });
        }
        match (self.prefix_positions, self.suffix_positions) {
            (0, 0) => Err(Self::value(
                "prefix_positions",
                "0".to_owned(),
                "there must be positions to change, at the beginning or at the end".to_owned(),
            )),
            (_, 0) => Ok(vec![End::Prefix]),
            (0, _) => Ok(vec![End::Suffix]),
            _ if self.tied_weights => Ok(vec![End::Both]),
            _ => Ok(vec![End::Prefix, End::Suffix]),
        }
    }

    fn activation(&self) -> Result<Option<Activation>, MethodError> {
        let parsed = self.non_linearity.as_deref().map(str::parse).transpose();
        parsed.map_err(|error| MethodError::Configuration {
            method: Self::NAME,
            reason: format!("`non_linearity`: {error}"),
        })
    }

    fn unit(
        &self,
        path: &str,
        size: usize,
        activation: Option<Activation>,
        parameters: &mut ParameterSet,
    ) -> Unit {
        let (rank, orthonormal) = (self.r, self.reft_type.is_orthonormal());
        let uniform = || Init::Uniform {
            bound: 1.0 / (size as f64).sqrt(),
        };
        let key = format!("{path}.projection");
        let init = match orthonormal {
            true => {
                let draw = parameters.seed() ^ name_id(&key);
                Init::Computed(Arc::new(move || {
                    let drawn = random::normal(draw, rank * size, 1.0);
                    let drawn = TensorData::new(drawn, [rank, size]);
                    let rows = orthonormal_rows(Tensor::from_data(drawn, &Device::default()));
                    let rows = rows.try_into_vec_as::<f32>();
                    rows.expect("it is f32 and on the CPU")
                }))
            }
            false => uniform(),
        };
        let trained = parameters.declare(key, &[rank, size], init);
        let projection = match orthonormal {
            true => {
                let of = trained.clone();
                parameters.derived(format!("{path}.rotation"), &[rank, size], move || {
                    orthonormal_rows(of.get()).reshape([rank * size])
                })
            }
            false => trained,
        };
        let source = format!("{path}.learned_source");
        let init = (uniform(), uniform());
        Unit {
            source: Dense::declare(parameters, &source, [rank, size], init),
            projection,
            subtracts: self.reft_type.subtracts(),
            activation,
        }
    }
}

/// The rows of `matrix` made orthonormal, one after another (Gram-Schmidt).
fn orthonormal_rows(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, _] = matrix.dims();
    let mut done: Option<Tensor<2>> = None;
    for row in 0..rows {
        let row = matrix.clone().narrow(0, row, 1);
        let rest = match &done {
            Some(done) => {
                let shares = row.clone().matmul(done.clone().transpose());
                row - shares.matmul(done.clone())
            }
            None => row,
        };
        let length = (rest.clone() * rest.clone()).sum_dim(1).sqrt();
        let unit = rest / length;
        done = Some(match done {
            Some(done) => Tensor::cat(vec![done, unit], 0),
            None => unit,
        });
    }
    done.expect("a rank is at least one")
}

impl MethodConfig for ReftConfig {
    const NAME: &'static str = "reft";
    const PEFT_TYPE: &'static str = "REFT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "low-rank changes of the states at the first or last positions";
    const PAPER: &'static str = "Wu et al. 2024, arXiv 2404.03592";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "fixed cost on the prompt")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({
                "reft_type": "noreft", "r": 2, "non_linearity": "gelu", "prefix_positions": 1,
                "layers_to_transform": [0],
            }),
            json!({
                "reft_type": "direft", "r": 2, "prefix_positions": 2, "suffix_positions": 2,
            }),
            json!({
                "reft_type": "nodireft", "r": 1, "suffix_positions": 1, "tied_weights": true,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let count = self.count(base)?;
        let (ends, activation) = (self.ends(base)?, self.activation()?);
        let size = base.dimensions.hidden_size;
        let mut by_layer = BTreeMap::new();
        for layer in self.layers(base)? {
            let units = ends.iter().map(|&end| {
                let path = format!("reft.{layer}.{}", end.name());
                (end, self.unit(&path, size, activation, parameters))
            });
            by_layer.insert(layer, units.collect());
        }
        Ok(Box::new(Reft {
            layers: base.dimensions.layers,
            encoder_layers: base.dimensions.encoder_layers,
            first: self.prefix_positions,
            last: self.suffix_positions,
            dropout: self.reft_dropout,
            by_layer,
            count,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.activation()?;
        let (layers, ends) = (self.layers(base)?.len(), self.ends(base)?.len());
        let size = base.dimensions.hidden_size;
        if self.r > size {
            let expected = format!("it must be at most the hidden size, {size}");
            return Err(Self::value("r", self.r.to_string(), expected));
        }
        Ok(layers * ends * (self.r * size + Dense::count([self.r, size])))
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            layers_to_transform: self.layers(base).ok(),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = &["reft_dropout"];
}

/// One intervention.
#[derive(Debug)]
struct Unit {
    /// `W` and `b`.
    source: Dense,
    /// `R`, or the free matrix, `[r, d]`.
    projection: Param,
    subtracts: bool,
    activation: Option<Activation>,
}

impl Unit {
    /// What is added to states, `[rows, d]`.
    fn change(&self, states: Tensor<2>) -> Tensor<2> {
        let [states, other] = fork(states);
        let wanted = self.source.forward(states);
        let wanted = match self.activation {
            Some(activation) => activation.apply(wanted),
            None => wanted,
        };
        let projection: Tensor<2> = self.projection.get();
        let within = match self.subtracts {
            true => wanted - linear(other, &Weight::Trained(projection.clone()), None),
            false => wanted,
        };
        linear(within, &Weight::Trained(projection.transpose()), None)
    }
}

/// Interventions after the layers.
#[derive(Debug)]
struct Reft {
    /// The base's layers.
    layers: usize,
    /// How many of them are an encoder's.
    encoder_layers: usize,
    first: usize,
    last: usize,
    dropout: f64,
    by_layer: BTreeMap<usize, Vec<(End, Unit)>>,
    /// How many values the parameters hold.
    count: usize,
}

impl Reft {
    /// The rows that are changed by the parameters of `end`.
    fn rows(&self, end: End, sequences: &Sequences) -> Vec<usize> {
        let ends = sequences.boundaries().windows(2);
        let ends = ends.flat_map(|pair| std::iter::repeat_n(pair[1], pair[1] - pair[0]));
        let positions = sequences.positions().zip(ends).enumerate();
        let chosen = positions.filter(|(row, (position, sequence_end))| {
            let is_first = *position < self.first;
            let is_last = row + self.last >= *sequence_end;
            match end {
                End::Prefix => is_first,
                End::Suffix => is_last && !is_first,
                End::Both => is_first || is_last,
            }
        });
        chosen.map(|(row, _)| row).collect()
    }

    /// The states behind layer `layer`.
    fn change(&self, layer: usize, states: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
        let mut states = states;
        for (end, unit) in self.by_layer.get(&layer).into_iter().flatten() {
            let chosen = self.rows(*end, sequences);
            if chosen.is_empty() {
                continue;
            }
            let [all, read] = fork(states);
            let [before, old] = fork(rows(read, &chosen));
            let own = sequences.select_rows(&chosen);
            let site = name_id("reft") + layer as u64;
            let new = dropout(
                before.clone() + unit.change(before),
                self.dropout,
                site,
                &own,
            );
            let places: Vec<i32> = chosen.iter().map(|&row| row as i32).collect();
            let places = TensorData::new(places, [chosen.len()]);
            let places = Tensor::<1, Int>::from_data(places, &all.device());
            states = all.select_assign(0, places, new - old, IndexingUpdateOp::Add);
        }
        states
    }
}

impl Adapter for Reft {
    fn hidden(&self, layer: usize, mut hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        let Some(done) = layer.checked_sub(1) else {
            return hidden;
        };
        if layer == self.encoder_layers && layer < self.layers {
            // The residual stream is the decoder's already.
            if let Some(mut encoded) = hidden.take(ENCODER_STREAM) {
                encoded.states = self.change(done, encoded.states, &encoded.rows);
                hidden.carried.push(encoded);
            }
            return hidden;
        }
        let states = self.change(done, hidden.states.clone(), &hidden.rows);
        hidden.with(states)
    }

    fn first_layer(&self) -> usize {
        let first = self.by_layer.keys().next();
        first.map_or(self.layers, |first| first + 1)
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        match hook {
            Hook::Hidden(layer) => {
                let done = layer.checked_sub(1);
                done.is_some_and(|done| self.by_layer.contains_key(&done))
            }
            _ => false,
        }
    }

    /// How far a row is from the end of its sequence is known where all rows are there.
    fn mixes_rows(&self, layer: usize) -> bool {
        self.last > 0 && layer + 1 == self.layers
    }

    fn reads_whole_sequences(&self) -> bool {
        self.last > 0
    }
}

impl Method for Reft {
    /// After the last layer the head may read none of the positions.
    fn may_lack_gradient(&self, param: &Param) -> bool {
        let last = format!("reft.{}.", self.layers - 1);
        param.key().starts_with(&last)
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: ReftConfig::NAME,
            reason: "it changes the states at some positions, which no weight can tell apart",
        })
    }

    fn changed(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_models::Identity;
    use epiphyte_ops::random;
    use serde::Deserialize;
    use serde_json::json;

    use super::{ReftConfig, ReftType, orthonormal_rows};
    use crate::small_bert::{bert, bert_base_count, distance, logits, logits_of, module};
    use crate::{Gradients, ParameterSet};

    /// An intervention by pyreft; `tests/make_reft.py` wrote it.
    #[derive(Deserialize)]
    struct Golden {
        kind: ReftType,
        activation: Option<String>,
        states: Vec<f32>,
        weighting: Vec<f32>,
        weight: Vec<f32>,
        bias: Vec<f32>,
        projection: Vec<f32>,
        output: Vec<f32>,
        d_states: Vec<f32>,
        d_weight: Vec<f32>,
        d_bias: Vec<f32>,
        d_projection: Option<Vec<f32>>,
    }

    #[test]
    fn interventions_and_their_gradients_are_those_of_pyreft() {
        let text = include_str!("../../tests/golden_reft.json");
        let cases: Vec<Golden> = serde_json::from_str(text).unwrap();
        assert_eq!(cases.len(), 8);
        let (rows, size, rank) = (3, 6, 2);
        for case in cases {
            let config = ReftConfig {
                reft_type: case.kind,
                r: rank,
                non_linearity: case.activation.clone(),
                ..ReftConfig::default()
            };
            let device = Device::default();
            let mut parameters = ParameterSet::new(&device, 0);
            let activation = config.activation().unwrap();
            let unit = config.unit("unit", size, activation, &mut parameters);
            for (key, values) in [
                ("unit.projection", &case.projection),
                ("unit.learned_source.weight", &case.weight),
                ("unit.learned_source.bias", &case.bias),
            ] {
                parameters.get(key).unwrap().set_values(values.clone());
            }
            parameters.track(true);
            let tensor = |values: &[f32]| {
                let data = TensorData::new(values.to_vec(), [rows, size]);
                Tensor::<2>::from_data(data, &device)
            };
            let states = tensor(&case.states).autodiff().require_grad();
            let output = states.clone() + unit.change(states.clone());
            let mut tape = (output.clone() * tensor(&case.weighting)).sum().backward();
            let near = |what: &str, found: Vec<f32>, expected: &[f32]| {
                let difference = distance(&found, expected);
                assert!(difference < 1e-5, "{:?}: {what}: {difference}", case.kind);
            };
            let values = |tensor: Tensor<2>| tensor.inner().try_into_vec_as::<f32>().unwrap();
            near("output", values(output), &case.output);
            near(
                "states",
                values(states.grad(&tape).unwrap()),
                &case.d_states,
            );
            let mut gradients = Gradients::new();
            gradients.collect(parameters.trained(), &mut tape);
            let mut own = vec![
                ("unit.learned_source.weight", &case.d_weight),
                ("unit.learned_source.bias", &case.d_bias),
            ];
            own.extend(case.d_projection.iter().map(|it| ("unit.projection", it)));
            for (key, expected) in own {
                let gradient = gradients.get(parameters.get(key).unwrap()).unwrap();
                let gradient = gradient.clone().try_into_vec_as::<f32>().unwrap();
                near(key, gradient, expected);
            }
        }
    }

    #[test]
    fn rotations_are_orthonormal_at_first_and_after_any_change() {
        let model = bert();
        let module = module(&model, "reft", json!({ "r": 3 }));
        let param = module.parameters().get("reft.0.prefix.projection").unwrap();
        for round in 0..2 {
            let rotation = orthonormal_rows(param.get());
            let products = rotation.clone().matmul(rotation.clone().transpose());
            let products = products.try_into_vec_as::<f32>().unwrap();
            let identity = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
            assert!(distance(&products, &identity) < 1e-5, "{round}");
            if round == 0 {
                let start = rotation.try_into_vec_as::<f32>().unwrap();
                assert!(distance(&start, &param.to_vec()) < 1e-6);
                param.set_values(random::normal(9, 24, 3.0));
            }
        }
    }

    /// Where a query attends to nothing but its own token, a change at the end of a sequence is
    /// seen by a head that reads its first token in sequences of one token alone.
    #[test]
    fn only_the_chosen_positions_are_changed() {
        let model = bert();
        let last = json!({
            "prefix_positions": 0, "suffix_positions": 1, "layers_to_transform": [1],
        });
        let last = module(&model, "reft", last);
        let texts: [&[u32]; 2] = [&[3, 1, 4], &[5]];
        let base = logits_of(&model, &Identity, &texts);
        let changed = logits_of(&model, &last, &texts);
        assert_eq!(base[..2], changed[..2]);
        assert!(distance(&base[2..], &changed[2..]) > 1e-4);
        // Of one token both ends are the first.
        let both = json!({ "prefix_positions": 1, "suffix_positions": 1 });
        let both = module(&model, "reft", both);
        let first = module(&model, "reft", json!({ "prefix_positions": 1 }));
        let texts: [&[u32]; 1] = [&[5]];
        let [both, first] = [both, first].map(|module| logits_of(&model, &module, &texts));
        assert!(distance(&both, &first) < 1e-6);
    }

    #[test]
    fn all_positions_of_short_sequences_are_changed() {
        let model = bert();
        let few = module(&model, "reft", json!({ "prefix_positions": 5 }));
        let many = module(&model, "reft", json!({ "prefix_positions": 60 }));
        assert_eq!(logits(&model, &few), logits(&model, &many));
    }

    /// Rank 1 in all layers of bert-base: `12 (2 · 768 + 1)`.
    #[test]
    fn counts_follow_the_formula() {
        assert_eq!(bert_base_count("reft", json!({ "r": 1 }), 0), 18_444);
        let both = json!({ "r": 1, "suffix_positions": 3 });
        assert_eq!(bert_base_count("reft", both, 0), 2 * 18_444);
        let tied = json!({ "r": 1, "suffix_positions": 3, "tied_weights": true });
        assert_eq!(bert_base_count("reft", tied, 0), 18_444);
    }
}
