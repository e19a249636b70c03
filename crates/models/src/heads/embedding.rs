//! A sentence embedding: pooled hidden states, which a loss compares with those of other texts.
//!
//! Pooling and normalization are the modules `Pooling` and `Normalize` of sentence-transformers,
//! and the losses are its own (Reimers and Gurevych 2019, arXiv 1908.10084). The head has no
//! parameters.

use std::fmt;
use std::ops::Range;

use burn::tensor::Tensor;
use epiphyte_ops::{Weight, cross_entropy, linear, mean_rows, mean_squared_error, rows};
use serde::{Deserialize, Serialize};

use super::Pooling;
use crate::adapter::Hidden;

/// What cosines are multiplied by before they are compared: sentence-transformers' `scale`.
const SCALE: f64 = 20.0;
/// The square of the smallest length by which a vector is divided.
const SMALLEST_SQUARE: f64 = 1e-24;

/// From a text's last hidden states to its embedding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EmbeddingHead {
    /// Which hidden states make the embedding.
    pub pooling: EmbeddingPooling,
    /// Whether embeddings have length 1.
    pub normalize: bool,
    /// What training minimizes.
    pub loss: EmbeddingLoss,
}

/// Which hidden states make an embedding, by the names of sentence-transformers' `pooling_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbeddingPooling {
    /// The mean of all tokens, virtual ones included.
    #[default]
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    LastToken,
}

/// A loss over the embeddings of a batch.
///
/// The first two compare an anchor with all texts of a batch, the others the cosine of two texts
/// with a score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingLoss {
    /// `MultipleNegativesRankingLoss`: cross-entropy of each anchor's positive among all positives
    /// and negatives of the batch, by 20 times the cosine.
    #[default]
    MultipleNegativesRanking,
    /// `MultipleNegativesSymmetricRankingLoss`: the mean of that and of the cross-entropy of each
    /// positive's anchor among all anchors.
    MultipleNegativesSymmetricRanking,
    /// `CosineSimilarityLoss`: the mean squared difference of cosine and score.
    CosineSimilarity,
    /// `CoSENTLoss`: `log(1 + Σ exp(20 (cosᵢ − cosⱼ)))` over the pairs whose scores are in the
    /// order `scoreᵢ < scoreⱼ`.
    Cosent,
}

impl EmbeddingLoss {
    /// Whether it compares cosines with scores.
    pub fn reads_scores(self) -> bool {
        matches!(self, Self::CosineSimilarity | Self::Cosent)
    }
}

impl fmt::Display for EmbeddingLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl fmt::Display for EmbeddingPooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl From<EmbeddingPooling> for Pooling {
    fn from(pooling: EmbeddingPooling) -> Self {
        match pooling {
            EmbeddingPooling::Mean => Self::Mean,
            EmbeddingPooling::Cls => Self::First,
            EmbeddingPooling::LastToken => Self::Last { padding: None },
        }
    }
}

impl EmbeddingHead {
    /// Embeddings, `[sequences, hidden]`, from the rows of each sequence that are read.
    pub fn forward(&self, read: Hidden) -> Tensor<2> {
        let Hidden { states, rows, .. } = read;
        let pooled = match self.pooling {
            EmbeddingPooling::Mean => mean_rows(states, &rows),
            EmbeddingPooling::Cls | EmbeddingPooling::LastToken => states,
        };
        match self.normalize {
            true => normalized(pooled),
            false => pooled,
        }
    }

    /// The loss of the embeddings of a batch, `[sequences, hidden]`. Of each `texts` in a row, the
    /// first is the anchor, the second its positive and the others its negatives. `scores` has one
    /// number for each pair. None without a pair, or where the loss reads scores and there are
    /// none.
    pub fn loss(
        &self,
        embeddings: Tensor<2>,
        texts: usize,
        scores: Option<&[f32]>,
        label_smoothing: f64,
    ) -> Option<Tensor<1>> {
        if texts < 2 {
            return None;
        }
        let embeddings = normalized(embeddings);
        let pairs = embeddings.dims()[0] / texts;
        let columns = |columns: Range<usize>| {
            let of_column = |column| (0..pairs).map(move |pair| pair * texts + column);
            let indices: Vec<usize> = columns.flat_map(of_column).collect();
            rows(embeddings.clone(), &indices)
        };
        let own: Vec<i64> = (0..pairs as i64).collect();
        // Cosines of rows with rows, scaled.
        let scaled = |a, b| linear(a, &Weight::Trained(b), None) * SCALE;
        let ranking = |logits| cross_entropy(logits, &own, label_smoothing);
        let forward = || ranking(scaled(columns(0..1), columns(1..texts)));
        let cosines = || (columns(0..1) * columns(1..2)).sum_dim(1);
        match self.loss {
            EmbeddingLoss::MultipleNegativesRanking => forward(),
            EmbeddingLoss::MultipleNegativesSymmetricRanking => {
                let backward = ranking(scaled(columns(1..2), columns(0..1)))?;
                Some((forward()? + backward) / 2.0)
            }
            EmbeddingLoss::CosineSimilarity => Some(mean_squared_error(cosines(), scores?)),
            EmbeddingLoss::Cosent => cosent(cosines() * SCALE, scores?),
        }
    }
}

/// The log of one plus the sum of `exp(cosineᵢ − cosineⱼ)` over all pairs with `scoreᵢ < scoreⱼ`.
fn cosent(cosines: Tensor<2>, scores: &[f32]) -> Option<Tensor<1>> {
    let all = 0..scores.len();
    let pairs = all.clone().flat_map(|i| all.clone().map(move |j| (i, j)));
    let (lower, higher): (Vec<usize>, Vec<usize>) =
        pairs.filter(|&(i, j)| scores[i] < scores[j]).unzip();
    if lower.is_empty() {
        // A constant that is a function of the cosines, so that backward has where to go.
        return Some(cosines.sum() * 0.0);
    }
    let differences = rows(cosines.clone(), &lower) - rows(cosines, &higher);
    let differences = differences.transpose();
    let zero = Tensor::zeros([1, 1], &differences.device());
    cross_entropy(Tensor::cat(vec![zero, differences], 1), &[0], 0.0)
}

/// Rows of length 1; a row of zeros stays one.
fn normalized(x: Tensor<2>) -> Tensor<2> {
    let squares = (x.clone() * x.clone()).sum_dim(1);
    x / squares.clamp_min(SMALLEST_SQUARE).sqrt()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use epiphyte_ops::Sequences;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        hidden_size: usize,
        losses: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        loss: EmbeddingLoss,
        texts: usize,
        pooling: EmbeddingPooling,
        normalize: bool,
        scores: Option<Vec<f32>>,
        lengths: Vec<usize>,
        states: Vec<f32>,
        embeddings: Vec<f32>,
        value: f32,
        gradient: Vec<f32>,
    }

    fn near(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 2e-6,
                "{what}: {found}, {expected}"
            );
        }
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.inner().try_into_vec_as::<f32>().unwrap()
    }

    #[test]
    fn embeddings_losses_and_gradients_are_those_of_sentence_transformers() {
        let golden = include_str!("../../../../tests/parity/golden/embeddings.json");
        let golden: Golden = serde_json::from_str(golden).unwrap();
        for case in golden.losses {
            let what = format!("{} of {} texts", case.loss, case.texts);
            let head = EmbeddingHead {
                pooling: case.pooling,
                normalize: case.normalize,
                loss: case.loss,
            };
            let ends = case.lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            let rows = Sequences::new([0].into_iter().chain(ends).collect());
            let shape = [rows.tokens(), golden.hidden_size];
            let states = TensorData::new(case.states, shape);
            let states = Tensor::<2>::from_data(states, &Device::flex()).autodiff();
            let states = states.require_grad();
            let all = Hidden::new(states.clone(), rows.clone());
            let chosen: Vec<usize> = match head.pooling {
                EmbeddingPooling::Cls => rows.firsts().to_vec(),
                EmbeddingPooling::Mean => (0..rows.tokens()).collect(),
                EmbeddingPooling::LastToken => rows.lasts().collect(),
            };
            let read = all.select_rows(&chosen);
            let embeddings = head.forward(read);
            near(&values(embeddings.clone()), &case.embeddings, &what);
            let loss = head.loss(embeddings, case.texts, case.scores.as_deref(), 0.0);
            let loss = loss.unwrap();
            near(&values(loss.clone()), &[case.value], &what);
            let gradients = loss.backward();
            let gradient = states.grad(&gradients).unwrap();
            near(&values(gradient), &case.gradient, &what);
        }
    }

    #[test]
    fn equal_scores_have_no_order() {
        let head = EmbeddingHead {
            loss: EmbeddingLoss::Cosent,
            ..EmbeddingHead::default()
        };
        let texts = Tensor::<2>::from_floats([[1.0], [2.0], [3.0], [-1.0]], &Device::flex());
        let loss = head.loss(texts.clone(), 2, Some(&[1.0; 2]), 0.0);
        assert_eq!(values(loss.unwrap()), [0.0]);
        assert!(head.loss(texts, 2, None, 0.0).is_none());
    }
}
