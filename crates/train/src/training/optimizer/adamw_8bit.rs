//! AdamW with both moments in 8 bits (Dettmers et al. 2022, "8-bit optimizers via block-wise
//! quantization", arXiv 2110.02861), as bitsandbytes' `AdamW8bit` computes it.
//!
//! Each block of 256 values of a moment has its largest magnitude, and each value the number of the
//! nearest of 256 shares of that: those of the signed dynamic map for the first moment, and of the
//! unsigned one for the second, which is never negative. A step decodes them, is one of AdamW, and
//! encodes them again. Parameters of less than 4096 values keep moments in 32 bits.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_methods::{Param, ParamId};
use epiphyte_ops::quantized::{bounds_between, dynamic_map};

use super::{AdamW, Optimizer, OptimizerState, to_vec, update_values};

/// Values that share a scale.
const BLOCK: usize = 256;
/// Parameters of less values are not quantized.
const SMALLEST: usize = 4096;
/// The kinds of codes and scales in checkpoints, of the first and the second moment.
const CODES: [&str; 2] = ["first_codes", "second_codes"];
const SCALES: [&str; 2] = ["first_scales", "second_scales"];

/// AdamW with its state in 8 bits.
#[derive(Debug)]
pub struct AdamW8Bit {
    /// For parameters that are too small, and the settings.
    whole: AdamW,
    /// The maps of both moments.
    maps: [Map; 2],
    moments: BTreeMap<ParamId, State>,
}

/// The 256 numbers that codes stand for, and what lies between them.
#[derive(Debug)]
struct Map {
    numbers: Vec<f32>,
    bounds: Vec<f32>,
}

impl Map {
    fn new(signed: bool) -> Self {
        let numbers = dynamic_map(signed);
        let bounds = bounds_between(&numbers);
        Self { numbers, bounds }
    }
}

/// The state of one parameter.
#[derive(Debug)]
struct State {
    moments: [Quantized; 2],
    steps: u64,
}

/// A moment in 8 bits.
#[derive(Clone, Debug)]
struct Quantized {
    codes: Vec<u8>,
    /// One for each block.
    scales: Vec<f32>,
}

impl AdamW8Bit {
    /// An optimizer without state, with the settings of `whole`.
    pub fn new(whole: AdamW) -> Self {
        Self {
            whole,
            maps: [Map::new(true), Map::new(false)],
            moments: BTreeMap::new(),
        }
    }
}

impl Quantized {
    fn zeros(count: usize, map: &Map) -> Self {
        let zero = map
            .numbers
            .iter()
            .position(|value| *value == 0.0)
            .unwrap_or_default();
        Self {
            codes: vec![zero as u8; count],
            scales: vec![0.0; count.div_ceil(BLOCK)],
        }
    }

    fn decode(&self, map: &Map) -> Vec<f32> {
        let blocks = self.codes.chunks(BLOCK).zip(&self.scales);
        let values = blocks.flat_map(|(codes, scale)| {
            codes
                .iter()
                .map(move |&code| map.numbers[usize::from(code)] * scale)
        });
        values.collect()
    }

    fn encode(values: &[f32], map: &Map) -> Self {
        let bounds = &map.bounds;
        let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
        for block in values.chunks(BLOCK) {
            let largest = block
                .iter()
                .fold(0.0f32, |most, value| most.max(value.abs()));
            let scale = if largest > 0.0 { largest } else { 1.0 };
            let code = |value: &f32| bounds.partition_point(|&bound| bound < value / scale) as u8;
            codes.extend(block.iter().map(code));
            scales.push(scale);
        }
        Self { codes, scales }
    }
}

impl Optimizer for AdamW8Bit {
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        if param.count() < SMALLEST {
            return self.whole.step(param, gradient, learning_rate);
        }
        let gradient = to_vec(gradient);
        let [first_map, second_map] = &self.maps;
        let state = self.moments.entry(param.id()).or_insert_with(|| State {
            moments: [first_map, second_map].map(|map| Quantized::zeros(param.count(), map)),
            steps: 0,
        });
        state.steps += 1;
        let settings = self.whole.settings_of(param);
        let [beta1, beta2] = [settings.beta1, settings.beta2];
        let mut first = state.moments[0].decode(first_map);
        let mut second = state.moments[1].decode(second_map);
        let steps = i32::try_from(state.steps).unwrap_or(i32::MAX);
        let corrections = [beta1, beta2].map(|beta| 1.0 - beta.powi(steps));
        let decay = (1.0 - learning_rate * settings.weight_decay) as f32;
        let step = (learning_rate / corrections[0]) as f32;
        let root = corrections[1].sqrt() as f32;
        let keep = [beta1, beta2].map(|beta| beta as f32);
        let add = [beta1, beta2].map(|beta| (1.0 - beta) as f32);
        update_values(param, |values| {
            for (at, value) in values.iter_mut().enumerate() {
                let gradient = gradient[at];
                first[at] = keep[0] * first[at] + add[0] * gradient;
                second[at] = keep[1] * second[at] + add[1] * gradient * gradient;
                let denominator = second[at].sqrt() / root + settings.epsilon as f32;
                *value = *value * decay - step * first[at] / denominator;
            }
        });
        state.moments = [
            Quantized::encode(&first, first_map),
            Quantized::encode(&second, second_map),
        ];
    }

    fn reset(&mut self) {
        self.whole.reset();
        self.moments.clear();
    }

    fn state(&self, params: &[&Param]) -> OptimizerState {
        let mut state = self.whole.state(params);
        for param in params {
            let Some(own) = self.moments.get(&param.id()) else {
                continue;
            };
            for (at, moment) in own.moments.iter().enumerate() {
                let key = format!("{}/{}", CODES[at], param.key());
                state.codes.insert(key, moment.codes.clone());
                state.put(SCALES[at], param, &moment.scales);
            }
            state.steps.insert(param.key().to_owned(), own.steps);
        }
        state
    }

    fn restore(&mut self, params: &[&Param], mut state: OptimizerState) {
        self.moments.clear();
        for param in params {
            let steps = state.steps.get(param.key()).copied();
            let moments = [0, 1].map(|at| {
                let codes = state
                    .codes
                    .remove(&format!("{}/{}", CODES[at], param.key()))?;
                let scales = state.take(SCALES[at], param)?;
                Some(Quantized { codes, scales })
            });
            if let ([Some(first), Some(second)], Some(steps)) = (moments, steps) {
                let moments = [first, second];
                self.moments.insert(param.id(), State { moments, steps });
            }
        }
        self.whole.restore(params, state);
    }
}
