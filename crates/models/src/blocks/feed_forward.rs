//! The feed-forward network of a layer.

use burn::tensor::Tensor;
use epiphyte_ops::{Activation, Sequences, dropout, fork};

use super::{FeedForwardNames, FeedForwardShape, Linear};
use crate::adapter::{AdapterBatch, Role};
use crate::builder::Builder;

/// `down(f(up(x)))`, or with a gate `down(f(gate(x)) ⊙ up(x))`.
#[derive(Clone, Debug)]
pub struct FeedForward {
    gate: Option<Linear>,
    up: Linear,
    /// Where `up` has the outputs of the gate too, in front of its own, how many these are.
    packed: Option<usize>,
    down: Linear,
    activation: Activation,
    dropout: f64,
}

impl FeedForward {
    /// Reads the linear layers, whose paths begin with `path`.
    pub(crate) fn build(
        builder: &mut Builder<'_>,
        path: &str,
        names: &FeedForwardNames,
        shape: &FeedForwardShape,
        hidden_size: usize,
    ) -> Self {
        let mut linear = |name: &str, role, size: [usize; 2]| {
            let path = format!("{path}.{name}");
            match shape.conv1d {
                true => builder.conv1d(&path, role, size),
                false => builder.linear(&path, role, size, shape.bias),
            }
        };
        let inward = [shape.intermediate_size, hidden_size];
        let gate = names.gate.filter(|_| shape.gated && !shape.packed);
        let packed = shape.packed.then_some(shape.intermediate_size);
        let up = match packed {
            Some(gate) => [gate + shape.intermediate_size, hidden_size],
            None => inward,
        };
        Self {
            gate: gate.map(|name| linear(name, Role::FeedForwardGate, inward)),
            up: linear(names.up, Role::FeedForwardIn, up),
            packed,
            down: linear(
                names.down,
                Role::FeedForwardOut,
                [hidden_size, shape.intermediate_size],
            ),
            activation: shape.activation,
            dropout: shape.dropout,
        }
    }

    /// The network's output and its input for further readers, `[tokens, hidden]` both.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        rows: &Sequences,
        batch: &AdapterBatch<'_>,
    ) -> (Tensor<2>, Tensor<2>) {
        let (intermediate, x) = match &self.gate {
            Some(gate) => {
                let [to_gate, to_up, x] = fork(x);
                let gate = gate.forward(to_gate, rows, batch);
                let up = self.up.forward(to_up, rows, batch);
                (self.activation.gate(gate, up), x)
            }
            None => {
                let [to_up, x] = fork(x);
                let up = self.up.forward(to_up, rows, batch);
                let intermediate = match self.packed {
                    Some(size) => {
                        let [gate, up] = fork(up);
                        let (gate, up) = (gate.narrow(1, 0, size), up.narrow(1, size, size));
                        self.activation.gate(gate, up)
                    }
                    None => self.activation.apply(up),
                };
                (intermediate, x)
            }
        };
        let intermediate = dropout(intermediate, self.dropout, self.up.site().id(), rows);
        (self.down.forward(intermediate, rows, batch), x)
    }

    /// A key for random draws at the network's output.
    pub(crate) fn output_id(&self) -> u64 {
        self.down.site().id()
    }
}
