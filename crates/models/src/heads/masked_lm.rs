//! A masked language model's head: the words that stand where tokens are hidden.

use burn::tensor::Tensor;
use epiphyte_ops::{Activation, Sequences};

use crate::adapter::{AdapterBatch, Hidden, Role};
use crate::blocks::{Linear, Matrix, Norm, NormShape};
use crate::builder::Builder;
use crate::heads::{Verbalizer, WordPosition};
use crate::tokens::Tokens;

/// `decoder(norm(f(dense(x))))`, whose decoder is the word embeddings with a bias of its own.
#[derive(Clone, Debug)]
pub struct MaskedLmHead {
    /// From the hidden size to the size of the word embeddings.
    pub dense: Linear,
    /// What follows it.
    pub activation: Activation,
    /// The norm after that.
    pub norm: Norm,
    /// From the size of the word embeddings to the vocabulary.
    pub output: Linear,
    /// The words that stand for classes; none of a model that predicts any word.
    pub verbalizer: Option<Verbalizer>,
}

/// How a family names and shapes such a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskedLmNames {
    /// The dense layer.
    pub dense: &'static str,
    /// The norm.
    pub norm: &'static str,
    /// The decoder, which need not be in a file.
    pub decoder: &'static str,
    /// The decoder's bias.
    pub bias: &'static str,
    /// The modules that all of these are in.
    pub modules: &'static [&'static str],
}

/// What of the head differs in shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaskedLmShape {
    pub(crate) hidden_size: usize,
    pub(crate) activation: Activation,
    pub(crate) norm: NormShape,
    /// Whether the dense layer has a bias.
    pub(crate) dense_bias: bool,
    /// Whether the decoder has one.
    pub(crate) decoder_bias: bool,
}

impl MaskedLmHead {
    /// The head over the word embeddings, or over a decoder of its own where it is not tied to
    /// them.
    pub(crate) fn build(
        b: &mut Builder<'_>,
        names: &MaskedLmNames,
        words: &Matrix,
        tied: bool,
        shape: MaskedLmShape,
    ) -> Self {
        let [vocabulary, size] = words.shape();
        let dense_shape = [size, shape.hidden_size];
        let dense = b.linear(names.dense, Role::Pooler, dense_shape, shape.dense_bias);
        let norm = Norm::build(b, names.norm, size, shape.norm);
        let weight = match tied {
            true => words.clone(),
            false => b.matrix(&format!("{}.weight", names.decoder), [vocabulary, size]),
        };
        let bias = shape.decoder_bias.then_some(names.bias);
        Self {
            dense,
            activation: shape.activation,
            norm,
            output: b.linear_with(weight, names.decoder, Role::Head, bias),
            verbalizer: None,
        }
    }

    /// The rows that the head reads where nothing says which: those of the masks, for a model with
    /// a verbalizer, and else those of all tokens, virtual ones left out.
    pub(crate) fn rows(&self, tokens: &Tokens<'_>, rows: &Sequences) -> Vec<usize> {
        let own = tokens.sequences.boundaries().windows(2);
        let ends = rows.boundaries()[1..].iter();
        let of_text = own.zip(ends).flat_map(|(own, &end)| {
            let (ids, first) = (&tokens.ids[own[0]..own[1]], end - (own[1] - own[0]));
            let mask = self.verbalizer.as_ref().map(|it| {
                let mask = ids
                    .iter()
                    .position(|&id| it.position == WordPosition::Mask(id));
                mask.unwrap_or(0)
            });
            match mask {
                Some(mask) => first + mask..first + mask + 1,
                None => first..end,
            }
        });
        of_text.collect()
    }

    /// Logits of the rows that are read: `[rows, vocabulary]`, or `[rows, classes]` of a model with
    /// a verbalizer.
    pub fn forward(&self, read: Hidden, batch: &AdapterBatch<'_>) -> Tensor<2> {
        let Hidden { states, rows, .. } = read;
        let states = self.dense.forward(states, &rows, batch);
        let states = self.activation.apply(states);
        let states = self.norm.forward(states, &rows, batch);
        let logits = |words: Option<&[u32]>| match words {
            None => self.output.forward(states, &rows, batch),
            Some(words) => self.output.forward_some(states, words, &rows, batch),
        };
        match &self.verbalizer {
            None => logits(None),
            Some(verbalizer) => verbalizer.logits(logits),
        }
    }
}
