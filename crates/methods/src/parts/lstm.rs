//! A bidirectional LSTM over one sequence, with PyTorch's parameters.
//!
//! In layer `l` and one direction, for the step `t` with input `x_t`:
//!
//! ```text
//! [i f g o] = x_t W_ihᵀ + b_ih + h W_hhᵀ + b_hh
//! c ← σ(f) ⊙ c + σ(i) ⊙ tanh(g),   h ← σ(o) ⊙ tanh(c)
//! ```
//!
//! with `W_ih: [4 h, in]`, `W_hh: [4 h, h]`, biases `[4 h]`, and `h`, `c` zero at first. The
//! layer's output is `[h→_t; h←_t]`, `2 h` wide, which the next layer reads.

use burn::tensor::{Tensor, activation};
use epiphyte_ops::{Weight, fork, linear};

use crate::framework::parameters::{Init, Param, ParameterSet};

/// The layers of a bidirectional LSTM.
#[derive(Debug)]
pub(crate) struct Lstm {
    hidden_size: usize,
    /// Of each layer the two directions, forward first.
    layers: Vec<[Direction; 2]>,
}

/// One direction of a layer.
#[derive(Debug)]
struct Direction {
    input_weight: Param,
    hidden_weight: Param,
    input_bias: Param,
    hidden_bias: Param,
}

impl Direction {
    /// The states of all steps in the order of the rows of `x`, `[steps, h]`.
    fn run(&self, x: Tensor<2>, hidden_size: usize, backward: bool) -> Tensor<2> {
        let steps = x.dims()[0];
        let input_weight = Weight::Trained(self.input_weight.get());
        let of_input = linear(x, &input_weight, Some(self.input_bias.get()));
        let zeros = Tensor::zeros([1, hidden_size], &of_input.device());
        let (mut state, mut cell) = (zeros.clone(), zeros);
        let (mut weight, mut bias) = (self.hidden_weight.get(), self.hidden_bias.get());
        let mut states = Vec::with_capacity(steps);
        for step in 0..steps {
            let row = if backward { steps - 1 - step } else { step };
            // Every step reads the weight; the order in which their gradients are added is fixed.
            let ([own_weight, next_weight], [own_bias, next_bias]) = (fork(weight), fork(bias));
            (weight, bias) = (next_weight, next_bias);
            let of_state = linear(state, &Weight::Trained(own_weight), Some(own_bias));
            let gates: [Tensor<2>; 4] = fork(of_input.clone().narrow(0, row, 1) + of_state);
            let [i, f, g, o] = std::array::from_fn(|which| {
                let start = which * hidden_size;
                gates[which].clone().narrow(1, start, hidden_size)
            });
            cell = activation::sigmoid(f) * cell + activation::sigmoid(i) * g.tanh();
            state = activation::sigmoid(o) * cell.clone().tanh();
            states.push(state.clone());
        }
        if backward {
            states.reverse();
        }
        Tensor::cat(states, 0)
    }
}

impl Lstm {
    /// Declares `{path}.weight_ih_l{layer}`, `weight_hh_l…`, `bias_ih_l…`, `bias_hh_l…`, and the
    /// same with `_reverse`, all uniform in `±1/√h` as PyTorch starts them.
    pub(crate) fn declare(
        parameters: &mut ParameterSet,
        path: &str,
        inputs: usize,
        hidden_size: usize,
        layers: usize,
    ) -> Self {
        let bound = 1.0 / (hidden_size as f64).sqrt();
        let mut declare = |name: String, shape: &[usize]| {
            let key = format!("{path}.{name}");
            parameters.declare(key, shape, Init::Uniform { bound })
        };
        let gates = 4 * hidden_size;
        let layers = (0..layers).map(|layer| {
            let inputs = if layer == 0 { inputs } else { 2 * hidden_size };
            ["", "_reverse"].map(|direction| {
                let name = |name: &str| format!("{name}_l{layer}{direction}");
                Direction {
                    input_weight: declare(name("weight_ih"), &[gates, inputs]),
                    hidden_weight: declare(name("weight_hh"), &[gates, hidden_size]),
                    input_bias: declare(name("bias_ih"), &[gates]),
                    hidden_bias: declare(name("bias_hh"), &[gates]),
                }
            })
        });
        Self {
            hidden_size,
            layers: layers.collect(),
        }
    }

    /// The last layer's states, `[steps, 2 h]`, of the inputs `[steps, in]`. `between` sees what
    /// each layer but the last returns, with its number.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        between: impl Fn(usize, Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let last = self.layers.len() - 1;
        let layers = self.layers.iter().enumerate();
        layers.fold(x, |x, (layer, [forward, backward])| {
            let both = vec![
                forward.run(x.clone(), self.hidden_size, false),
                backward.run(x, self.hidden_size, true),
            ];
            let states = Tensor::cat(both, 1);
            if layer == last {
                states
            } else {
                between(layer, states)
            }
        })
    }

    /// How many values such a network holds.
    pub(crate) fn count(inputs: usize, hidden_size: usize, layers: usize) -> usize {
        let gates = 4 * hidden_size;
        let of_layer = |layer: usize| {
            let inputs = if layer == 0 { inputs } else { 2 * hidden_size };
            2 * gates * (inputs + hidden_size + 2)
        };
        (0..layers).map(of_layer).sum()
    }
}
