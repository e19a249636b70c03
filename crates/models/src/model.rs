//! A model with a task: tokens in, logits or a loss out.

use std::fmt;

use burn::tensor::Tensor;
use epiphyte_ops::{IGNORED, Sequences, cross_entropy, language_model_loss, mean_squared_error};

use crate::base::{Base, Linear};
use crate::seam::Adapter;

/// What the model's head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// One class of so many for each text.
    SequenceClassification {
        /// How many classes.
        labels: usize,
    },
    /// One number for each text.
    Regression,
    /// The next token for each token.
    CausalLanguageModelling,
}

impl Task {
    /// Width of the task's own head; none where the language model's head is used.
    pub fn outputs(self) -> Option<usize> {
        match self {
            Self::SequenceClassification { labels } => Some(labels),
            Self::Regression => Some(1),
            Self::CausalLanguageModelling => None,
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SequenceClassification { .. } => "sequence-classification",
            Self::Regression => "regression",
            Self::CausalLanguageModelling => "causal-language-modelling",
        })
    }
}

/// Token sequences laid end to end.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    /// Token numbers.
    pub ids: &'a [u32],
    /// Segments, as many as tokens; ignored by models without segments.
    pub type_ids: &'a [u32],
    /// Where the sequences are.
    pub sequences: Sequences,
}

/// The states that leave the last layer.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// `[tokens, width]`, virtual tokens included.
    pub states: Tensor<2>,
    /// The sequences that the rows form.
    pub sequences: Sequences,
}

/// What a batch should come to.
#[derive(Clone, Copy, Debug)]
pub enum Targets<'a> {
    /// A class number for each sequence.
    Classes(&'a [i64]),
    /// A number for each sequence.
    Values(&'a [f32]),
    /// A label for each token, in Hugging Face's convention: the label of a token is the token
    /// itself, the model shifts, -100 does not count.
    Tokens(&'a [i64]),
}

/// A loss and what it is the mean of.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The mean, one value.
    pub mean: Tensor<1>,
    /// How many targets there were.
    pub targets: usize,
}

/// A transformer with a head.
pub trait Transformer: Send + Sync + fmt::Debug {
    /// The frozen tensors.
    fn base(&self) -> &Base;

    /// Runs all layers.
    fn hidden(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden;

    /// The task head's logits, `[sequences, labels]`.
    fn classify(&self, hidden: Hidden, adapter: &dyn Adapter) -> Tensor<2>;

    /// The language model's head, if the model has one.
    fn language_head(&self) -> Option<&Linear>;

    /// Logits of every sequence, `[sequences, labels]`.
    fn logits(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Tensor<2> {
        self.classify(self.hidden(tokens, adapter), adapter)
    }

    /// Mean loss over what has a target; none when nothing has.
    fn loss(
        &self,
        tokens: &Tokens<'_>,
        targets: Targets<'_>,
        label_smoothing: f64,
        adapter: &dyn Adapter,
    ) -> Option<Loss> {
        match targets {
            Targets::Classes(classes) => {
                let mean = cross_entropy(self.logits(tokens, adapter), classes, label_smoothing)?;
                Some(Loss {
                    mean,
                    targets: classes.len(),
                })
            }
            Targets::Values(values) => {
                let mean = mean_squared_error(self.logits(tokens, adapter), values);
                Some(Loss {
                    mean,
                    targets: values.len(),
                })
            }
            Targets::Tokens(labels) => {
                let hidden = self.hidden(tokens, adapter);
                let next = next_tokens(labels, &tokens.sequences, &hidden.sequences);
                let head = self.language_head()?.weight(adapter);
                let mean = language_model_loss(hidden.states, &head, &next, label_smoothing)?;
                let targets = next.iter().filter(|&&label| label != IGNORED).count();
                Some(Loss { mean, targets })
            }
        }
    }
}

/// What each row should predict: the label of the row after it, within its sequence.
///
/// `shown` are the sequences of the data, `run` those of the states; where the latter are longer,
/// virtual tokens were put in front and the last of them predicts the first real token, as in PEFT.
pub fn next_tokens(labels: &[i64], shown: &Sequences, run: &Sequences) -> Vec<i64> {
    let mut next = vec![IGNORED; run.tokens()];
    for (data, states) in shown
        .boundaries()
        .windows(2)
        .zip(run.boundaries().windows(2))
    {
        let virtual_tokens = (states[1] - states[0]) - (data[1] - data[0]);
        for (at, &label) in labels[data[0]..data[1]].iter().enumerate() {
            if let Some(before) = (states[0] + virtual_tokens + at).checked_sub(1)
                && before >= states[0]
            {
                next[before] = label;
            }
        }
    }
    next
}
