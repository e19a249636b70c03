//! A classification head over one token of each sequence, the mean of all, or each of them.

use burn::tensor::Tensor;
use epiphyte_ops::{Activation, dropout, mean_rows};

use super::Pooling;
use crate::adapter::{AdapterBatch, Hidden, Role};
use crate::blocks::{Linear, Norm};
use crate::builder::Builder;

/// `output(dropout(norm(f(dense(dropout(x))))))`, where a family has these parts.
#[derive(Clone, Debug)]
pub struct ClassificationHead {
    /// What is read of a sequence.
    pub pooling: Pooling,
    /// Dropout before the dense layer.
    pub input_dropout: f64,
    /// A dense layer: BERT's pooler, or part of the head as in RoBERTa.
    pub dense: Option<Linear>,
    /// What follows the dense layer.
    pub activation: Activation,
    /// The norm after that.
    pub norm: Option<Norm>,
    /// Dropout before the output layer.
    pub dropout: f64,
    /// From the hidden size to the labels.
    pub output: Linear,
}

impl ClassificationHead {
    /// The `classification_head` of encoder-decoders: BART's and T5's.
    pub(crate) fn of_encoder_decoder(
        builder: &mut Builder<'_>,
        path: &str,
        [labels, hidden_size]: [usize; 2],
        dropout: f64,
    ) -> Self {
        let [dense, output] = ["dense", "out_proj"].map(|name| format!("{path}.{name}"));
        Self {
            pooling: Pooling::Last { padding: None },
            input_dropout: dropout,
            dense: Some(builder.linear(&dense, Role::Head, [hidden_size, hidden_size], true)),
            activation: Activation::Tanh,
            norm: None,
            dropout,
            output: builder.linear(&output, Role::Head, [labels, hidden_size], true),
        }
    }

    /// One linear layer over each token.
    pub(crate) fn of_tokens(
        builder: &mut Builder<'_>,
        path: &str,
        shape: [usize; 2],
        dropout: f64,
    ) -> Self {
        Self {
            pooling: Pooling::EachToken,
            input_dropout: 0.0,
            dense: None,
            activation: Activation::Tanh,
            norm: None,
            dropout,
            output: builder.linear(path, Role::Head, shape, true),
        }
    }

    /// BERT's pooler at `dense` and a classifier behind it.
    pub(crate) fn pooled(
        builder: &mut Builder<'_>,
        dense: &str,
        [outputs, hidden_size]: [usize; 2],
        dropout: f64,
    ) -> Self {
        Self {
            pooling: Pooling::First,
            input_dropout: 0.0,
            dense: Some(builder.linear(dense, Role::Pooler, [hidden_size, hidden_size], true)),
            activation: Activation::Tanh,
            norm: None,
            dropout,
            output: builder.linear("classifier", Role::Head, [outputs, hidden_size], true),
        }
    }

    /// Logits, `[sequences, labels]`, from the rows of each sequence that are read, or
    /// `[tokens, labels]` where each token is.
    pub fn forward(&self, read: Hidden, batch: &AdapterBatch<'_>) -> Tensor<2> {
        let Hidden { states, rows, .. } = read;
        let (states, rows) = match self.pooling {
            Pooling::Mean => (mean_rows(states, &rows), rows.select_rows(rows.firsts())),
            Pooling::First | Pooling::EachToken | Pooling::Last { .. } => (states, rows),
        };
        let states = match &self.dense {
            Some(dense) => {
                let states = dropout(states, self.input_dropout, dense.site().id(), &rows);
                let states = dense.forward(states, &rows, batch);
                match self.activation {
                    Activation::Tanh => states.tanh(),
                    other => other.apply(states),
                }
            }
            None => states,
        };
        let states = match &self.norm {
            Some(norm) => norm.forward(states, &rows, batch),
            None => states,
        };
        let states = dropout(states, self.dropout, self.output.site().id(), &rows);
        self.output.forward(states, &rows, batch)
    }
}
