//! Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), as transformers' `Trainer` has it:
//! without a first moment, with the run's own learning rate in place of one that follows from the
//! step and the size of the parameter.
//!
//! The second moment of a matrix is kept as the running means of its rows and columns, so that its
//! state is `rows + columns` values: with `U = g² + ε`, `R ← β R + (1 − β) mean_columns(U)`, `C ← β
//! C + (1 − β) mean_rows(U)`, `β = 1 − t^-0.8`, the step is `u = g / √(R Cᵀ / mean(R))`, divided by
//! the larger of its root mean square and 1. Vectors keep the moment itself.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_methods::{Param, ParamId};

use super::{Optimizer, OptimizerState, to_vec, update_values, weight_decay};

/// Added to squared gradients.
const EPSILON: f64 = 1e-30;
/// The root mean square of a step is at most this.
const CLIP: f64 = 1.0;
/// The power of the step in the decay.
const DECAY: f64 = -0.8;
/// Kinds in checkpoints: of a matrix the running means of its rows and of its columns.
const KINDS: [&str; 2] = ["rows", "columns"];
/// Of a vector the running mean of its squares.
const SQUARES: &str = "squares";

/// Adafactor.
#[derive(Debug)]
pub struct Adafactor {
    weight_decay: f64,
    states: BTreeMap<ParamId, State>,
}

/// The state of one parameter.
#[derive(Debug)]
struct State {
    /// Means of rows and columns; of a vector its squares, and nothing.
    moments: [Vec<f32>; 2],
    steps: u64,
}

/// A parameter as matrices below each other: how many, and their rows and columns.
fn matrices(param: &Param) -> Option<[usize; 3]> {
    match *param.shape() {
        [ref outer @ .., rows, columns] => Some([outer.iter().product(), rows, columns]),
        _ => None,
    }
}

impl Adafactor {
    /// An optimizer without state.
    pub fn new(weight_decay: f64) -> Self {
        Self {
            weight_decay,
            states: BTreeMap::new(),
        }
    }
}

impl Optimizer for Adafactor {
    fn step(&mut self, param: &Param, gradient: Tensor<1>, learning_rate: f64) {
        let gradient = to_vec(gradient);
        let state = self.states.entry(param.id()).or_insert_with(|| State {
            moments: match matrices(param) {
                Some([count, rows, columns]) => [count * rows, count * columns],
                None => [param.count(), 0],
            }
            .map(|count| vec![0.0; count]),
            steps: 0,
        });
        state.steps += 1;
        let beta = 1.0 - (state.steps as f64).powf(DECAY);
        let square = |value: f32| f64::from(value).powi(2) + EPSILON;
        let mix = |mean: &mut f32, new: f64| {
            *mean = (beta * f64::from(*mean) + (1.0 - beta) * new) as f32;
        };
        let [first, second] = &mut state.moments;
        let mut update = vec![0.0f64; gradient.len()];
        match matrices(param) {
            Some([_, rows, columns]) if rows * columns > 0 => {
                let blocks = gradient
                    .chunks(rows * columns)
                    .zip(update.chunks_mut(rows * columns));
                let moments = first.chunks_mut(rows).zip(second.chunks_mut(columns));
                for ((gradient, update), (of_rows, of_columns)) in blocks.zip(moments) {
                    let mut sums = vec![0.0; columns];
                    for (mean, row) in of_rows.iter_mut().zip(gradient.chunks(columns)) {
                        let squares = row.iter().map(|&value| square(value));
                        let squares = squares.zip(&mut sums).map(|(square, sum)| {
                            *sum += square;
                            square
                        });
                        mix(mean, squares.sum::<f64>() / columns as f64);
                    }
                    for (mean, sum) in of_columns.iter_mut().zip(sums) {
                        mix(mean, sum / rows as f64);
                    }
                    let whole: f64 = of_rows.iter().map(|it| f64::from(*it)).sum();
                    let whole = whole / rows as f64;
                    for (at, value) in update.iter_mut().enumerate() {
                        let [row, column] = [of_rows[at / columns], of_columns[at % columns]];
                        let scale = f64::from(row) / whole * f64::from(column);
                        *value = f64::from(gradient[at]) / scale.sqrt();
                    }
                }
            }
            _ => {
                for ((value, mean), &gradient) in update.iter_mut().zip(first).zip(&gradient) {
                    mix(mean, square(gradient));
                    *value = f64::from(gradient) / f64::from(*mean).sqrt();
                }
            }
        }
        let squares: f64 = update.iter().map(|value| value * value).sum();
        let size = (squares / update.len().max(1) as f64).sqrt();
        let factor = learning_rate / (size / CLIP).max(1.0);
        let decay = 1.0 - learning_rate * weight_decay(param, self.weight_decay);
        update_values(param, |values| {
            for (value, update) in values.iter_mut().zip(&update) {
                *value = (f64::from(*value) * decay - factor * update) as f32;
            }
        });
    }

    fn reset(&mut self) {
        self.states.clear();
    }

    fn state(&self, params: &[&Param]) -> OptimizerState {
        let mut state = OptimizerState::default();
        for param in params {
            let Some(own) = self.states.get(&param.id()) else {
                continue;
            };
            match matrices(param) {
                Some(_) => {
                    for (kind, moment) in KINDS.iter().zip(&own.moments) {
                        state.put(kind, param, moment);
                    }
                }
                None => state.put(SQUARES, param, &own.moments[0]),
            }
            state.steps.insert(param.key().to_owned(), own.steps);
        }
        state
    }

    fn restore(&mut self, params: &[&Param], mut state: OptimizerState) {
        self.states.clear();
        for param in params {
            let moments = match matrices(param) {
                Some(_) => KINDS.map(|kind| state.take(kind, param)),
                None => [state.take(SQUARES, param), Some(Vec::new())],
            };
            let steps = state.steps.get(param.key()).copied();
            if let ([Some(first), Some(second)], Some(steps)) = (moments, steps) {
                let moments = [first, second];
                self.states.insert(param.id(), State { moments, steps });
            }
        }
    }
}
