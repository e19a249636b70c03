//! A model with a task: tokens in, logits or a loss out.

use std::fmt;
use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::{
    Angles, IGNORED, Sequences, cross_entropy, language_model_loss, mean_squared_error,
};

use crate::base::{Base, Linear};
use crate::group::{self, apart};
use crate::seam::{Adapter, Place};

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

/// The states between two layers, or after the last.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// `[tokens, width]`, virtual tokens included.
    pub states: Tensor<2>,
    /// The sequences that the rows form.
    pub sequences: Sequences,
    /// The rows' rotary angles, where the model has such; none above the last attention.
    pub(crate) angles: Option<Angles>,
}

impl Hidden {
    /// Other states of the same rows.
    #[must_use]
    pub fn with(&self, states: Tensor<2>) -> Self {
        Self {
            states,
            ..self.clone()
        }
    }

    /// Some of the rows, in ascending order, for what needs no neighbours any more.
    #[must_use]
    pub fn picked(&self, rows: &[usize]) -> Self {
        if rows.len() == self.sequences.tokens() {
            return self.clone();
        }
        Self {
            states: epiphyte_ops::rows(self.states.clone(), rows),
            sequences: self.sequences.select_rows(rows),
            angles: None,
        }
    }

    /// Some of the sequences, above the last attention.
    #[must_use]
    pub fn part(&self, sequences: Range<usize>) -> Self {
        let boundaries = self.sequences.boundaries();
        let rows = boundaries[sequences.start]..boundaries[sequences.end];
        Self {
            states: group::part(&self.states, &rows),
            sequences: self.sequences.part(sequences),
            angles: None,
        }
    }

    /// The states of several passes as those of one.
    pub fn concat(parts: &[Self]) -> Self {
        let angles: Option<Vec<&Angles>> = parts.iter().map(|part| part.angles.as_ref()).collect();
        Self {
            states: group::concat(parts.iter().map(|part| part.states.clone()).collect()),
            sequences: Sequences::concat(parts.iter().map(|part| &part.sequences)),
            angles: angles.map(|angles| Angles::concat(angles.into_iter())),
        }
    }
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

/// What a batch's loss reads of the last layer, and what that should come to.
#[derive(Clone, Debug)]
pub struct Goal<'a> {
    rows: Vec<usize>,
    aim: Aim<'a>,
}

#[derive(Clone, Debug)]
enum Aim<'a> {
    Classes(&'a [i64]),
    Values(&'a [f32]),
    /// The next token for each row that is read.
    Next(Vec<i64>),
}

impl Goal<'_> {
    /// The rows that the loss reads, in ascending order.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// How many targets there are.
    pub fn targets(&self) -> usize {
        self.rows.len()
    }
}

/// A transformer with a head.
///
/// A pass is [`Transformer::embed`], each [`Transformer::layer`], [`Transformer::finish`], and then a head. They
/// are apart so that a pass may start at a layer whose input is known, go back layer by layer, or carry the rows of
/// several runs. Above the attention of the last layer only the rows are computed that a head reads.
pub trait Transformer: Send + Sync + fmt::Debug {
    /// The frozen tensors.
    fn base(&self) -> &Base;

    /// Whether the base's own dropout drops anything while training.
    fn drops(&self) -> bool;

    /// What enters the first layer.
    fn embed(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden;

    /// States that were computed before, without an adapter, as those of these sequences.
    fn resume(&self, states: Tensor<2>, sequences: &Sequences) -> Hidden;

    /// One layer. With `picked`, only these rows (in ascending order) come out.
    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        picked: Option<&[usize]>,
        adapter: &dyn Adapter,
    ) -> Hidden;

    /// What follows the last layer.
    fn finish(&self, hidden: Hidden, adapter: &dyn Adapter) -> Hidden;

    /// The row of each sequence that the task's head reads.
    fn head_rows(&self, sequences: &Sequences) -> Vec<usize>;

    /// The task head's logits, `[sequences, labels]`, from the one row of each sequence that it reads.
    fn classify(&self, read: Hidden, adapter: &dyn Adapter) -> Tensor<2>;

    /// The language model's head, if the model has one.
    fn language_head(&self) -> Option<&Linear>;

    /// Some layers, each after the adapter's look at what enters it. With `picked`, only these rows come out of the
    /// model's last layer.
    fn run(
        &self,
        layers: Range<usize>,
        hidden: Hidden,
        picked: Option<&[usize]>,
        adapter: &dyn Adapter,
    ) -> Hidden {
        let last = self.base().dimensions.layers;
        let mut hidden = hidden;
        for index in layers.clone() {
            hidden = see(index, hidden, adapter);
            let picked = picked.filter(|_| index + 1 == last);
            hidden = self.layer(index, hidden, picked, adapter);
        }
        if layers.end == last {
            hidden = see(last, hidden, adapter);
        }
        hidden
    }

    /// Runs all layers, for all rows.
    fn hidden(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden {
        let layers = 0..self.base().dimensions.layers;
        let hidden = self.run(layers, self.embed(tokens, adapter), None, adapter);
        self.finish(hidden, adapter)
    }

    /// Logits of every sequence, `[sequences, labels]`.
    fn logits(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Tensor<2> {
        let hidden = self.embed(tokens, adapter);
        let rows = self.head_rows(&hidden.sequences);
        let layers = 0..self.base().dimensions.layers;
        let read = self.run(layers, hidden, Some(&rows), adapter);
        self.classify(self.finish(read, adapter), adapter)
    }

    /// What the loss of a batch reads; none when nothing has a target. `shown` are the sequences of the data, `run`
    /// those of the states, with virtual tokens.
    fn goal<'a>(
        &self,
        targets: Targets<'a>,
        shown: &Sequences,
        run: &Sequences,
    ) -> Option<Goal<'a>> {
        let goal = match targets {
            Targets::Classes(classes) => Goal {
                rows: self.head_rows(run),
                aim: Aim::Classes(classes),
            },
            Targets::Values(values) => Goal {
                rows: self.head_rows(run),
                aim: Aim::Values(values),
            },
            Targets::Tokens(labels) => {
                let next = next_tokens(labels, shown, run);
                let read = |&(_, &label): &(usize, &i64)| label != IGNORED;
                let (rows, next) = next.iter().enumerate().filter(read).unzip();
                Goal {
                    rows,
                    aim: Aim::Next(next),
                }
            }
        };
        (goal.targets() > 0).then_some(goal)
    }

    /// Mean loss of what a batch's goal reads, one value; none where the model has no head for it.
    fn loss_of(
        &self,
        read: Hidden,
        goal: &Goal<'_>,
        label_smoothing: f64,
        adapter: &dyn Adapter,
    ) -> Option<Tensor<1>> {
        match &goal.aim {
            Aim::Classes(classes) => {
                cross_entropy(self.classify(read, adapter), classes, label_smoothing)
            }
            Aim::Values(values) => Some(mean_squared_error(self.classify(read, adapter), values)),
            Aim::Next(next) => {
                let head = self.language_head()?.weight(adapter);
                language_model_loss(read.states, &head, next, label_smoothing)
            }
        }
    }

    /// Mean loss over what has a target; none when nothing has.
    fn loss(
        &self,
        tokens: &Tokens<'_>,
        targets: Targets<'_>,
        label_smoothing: f64,
        adapter: &dyn Adapter,
    ) -> Option<Loss> {
        let hidden = self.embed(tokens, adapter);
        let goal = self.goal(targets, &tokens.sequences, &hidden.sequences)?;
        let layers = 0..self.base().dimensions.layers;
        let read = self.run(layers, hidden, Some(goal.rows()), adapter);
        let read = self.finish(read, adapter);
        let mean = self.loss_of(read, &goal, label_smoothing, adapter)?;
        Some(Loss {
            mean,
            targets: goal.targets(),
        })
    }
}

/// Offers the states that enter layer `index` to the adapter.
pub(crate) fn see(index: usize, hidden: Hidden, adapter: &dyn Adapter) -> Hidden {
    let inputs = [hidden.states.clone()];
    let seen = |[states]: [Tensor<2>; 1], adapter: &dyn Adapter, sequences: &Sequences| {
        adapter.hidden(index, states, sequences)
    };
    let states = apart(adapter, &[Place::Hidden], inputs, &hidden.sequences, seen);
    hidden.with(states)
}

/// What each row should predict: the label of the row after it, within its sequence.
///
/// `shown` are the sequences of the data, `run` those of the states; where the latter are longer,
/// virtual tokens were put in front and the last of them predicts the first real token, as in PEFT.
fn next_tokens(labels: &[i64], shown: &Sequences, run: &Sequences) -> Vec<i64> {
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
