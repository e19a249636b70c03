//! Scores of embeddings: correlation of cosines with scores, and ranks of search results.
//!
//! | key | definition |
//! | --- | --- |
//! | `pearson`, `spearman` | correlation of the cosines of pairs with their scores |
//! | `accuracy@k` | share of queries with a relevant document among the first k |
//! | `recall@k` | mean share of a query's relevant documents among the first k |
//! | `mrr@k` | mean of 1 / rank of the first relevant document, 0 beyond k |
//! | `ndcg@k` | mean of the discounted gain of the first k, over that of the best order |
//! | `map@k` | mean of the average precision over the first k |
//!
//! They are those of sentence-transformers' `EmbeddingSimilarityEvaluator` and
//! `InformationRetrievalEvaluator`.

use std::cmp::Ordering;

use super::metrics::{Metrics, regression};
use crate::error::MetricError;

/// The names of the scores of [`retrieval`].
pub const RETRIEVAL: [&str; 6] = [
    "accuracy@1",
    "accuracy@10",
    "map@100",
    "mrr@10",
    "ndcg@10",
    "recall@10",
];
/// How many documents most scores read of a query's, and those of the mean average precision.
const FIRST: usize = 10;
const FIRST_OF_MAP: usize = 100;

/// The cosine of two vectors; 0 with a vector of zeros.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
        products.sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    match lengths > 0.0 {
        true => dot(a, b) / lengths,
        false => 0.0,
    }
}

/// `pearson` and `spearman` of the cosines of pairs and their scores.
///
/// # Errors
/// As [`regression`].
pub fn similarity(cosines: &[f64], scores: &[f64]) -> Result<Metrics, MetricError> {
    let all = regression(cosines, scores)?;
    let correlations = ["pearson", "spearman"].map(|name| (name, all.get(name)));
    let correlations = correlations.into_iter();
    Ok(correlations
        .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
        .collect())
}

/// The scores of [`RETRIEVAL`]: for each query, how similar each document is to it, and which
/// documents are relevant, at least one. Of equally similar documents the first is the better.
///
/// # Errors
/// [`MetricError::Empty`] without a query.
pub fn retrieval<'a>(
    queries: impl IntoIterator<Item = (&'a [f32], &'a [usize])>,
) -> Result<Metrics, MetricError> {
    let mut sums = [0.0; RETRIEVAL.len()];
    let mut count = 0;
    for (similarities, relevant) in queries {
        let hits = hits(similarities, relevant);
        let scores = of_query(&hits, relevant.len());
        for (sum, score) in sums.iter_mut().zip(scores) {
            *sum += score;
        }
        count += 1;
    }
    if count == 0 {
        return Err(MetricError::Empty);
    }
    let names = RETRIEVAL.into_iter().zip(sums);
    Ok(names
        .map(|(name, sum)| (name, sum / f64::from(count)))
        .collect())
}

/// Whether each of the most similar documents is relevant, the most similar first.
fn hits(similarities: &[f32], relevant: &[usize]) -> Vec<bool> {
    let mut order: Vec<usize> = (0..similarities.len()).collect();
    let closer = |&a: &usize, &b: &usize| -> Ordering {
        similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b))
    };
    if order.len() > FIRST_OF_MAP {
        order.select_nth_unstable_by(FIRST_OF_MAP, closer);
        order.truncate(FIRST_OF_MAP);
    }
    order.sort_unstable_by(closer);
    let hits = order.into_iter().map(|it| relevant.contains(&it));
    hits.collect()
}

/// The scores of a query with this many relevant documents.
fn of_query(hits: &[bool], relevant: usize) -> [f64; RETRIEVAL.len()] {
    let found = |first: usize| hits.iter().take(first).filter(|&&hit| hit).count();
    let first_rank = hits.iter().take(FIRST).position(|&hit| hit);
    let gain = |rank: usize| 1.0 / ((rank + 2) as f64).log2();
    let ranks = hits.iter().enumerate().filter(|(_, hit)| **hit);
    let ranks: Vec<usize> = ranks.map(|(rank, _)| rank).collect();
    let gained: f64 = ranks
        .iter()
        .filter(|&&it| it < FIRST)
        .map(|&it| gain(it))
        .sum();
    let best: f64 = (0..relevant.min(FIRST)).map(gain).sum();
    let precisions = ranks.iter().enumerate();
    let precisions = precisions.map(|(before, &rank)| (before + 1) as f64 / (rank + 1) as f64);
    let average = precisions.sum::<f64>() / relevant.min(FIRST_OF_MAP) as f64;
    [
        f64::from(u8::from(found(1) > 0)),
        f64::from(u8::from(found(FIRST) > 0)),
        average,
        first_rank.map_or(0.0, |rank| 1.0 / (rank + 1) as f64),
        gained / best,
        found(FIRST) as f64 / relevant as f64,
    ]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        retrieval: Retrieval,
        similarity: Similarity,
    }

    #[derive(Deserialize)]
    struct Retrieval {
        queries: Vec<Vec<f32>>,
        corpus: Vec<Vec<f32>>,
        relevant: Vec<Vec<usize>>,
        scores: Metrics,
    }

    #[derive(Deserialize)]
    struct Similarity {
        pairs: Vec<[Vec<f32>; 2]>,
        labels: Vec<f64>,
        scores: Metrics,
    }

    fn golden() -> Golden {
        let golden = include_str!("../../../../tests/parity/golden/embeddings.json");
        serde_json::from_str(golden).unwrap()
    }

    fn assert_scores(found: &Metrics, expected: &Metrics) {
        let names = |it: &Metrics| {
            it.iter()
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(found), names(expected));
        for ((name, found), (_, expected)) in found.iter().zip(expected.iter()) {
            assert!(
                (found - expected).abs() < 1e-6,
                "{name}: {found}, {expected}"
            );
        }
    }

    #[test]
    fn retrieval_scores_are_those_of_sentence_transformers() {
        let golden = golden().retrieval;
        let similarities = golden.queries.iter().map(|query| -> Vec<f32> {
            let corpus = golden.corpus.iter();
            corpus.map(|text| cosine(query, text) as f32).collect()
        });
        let similarities: Vec<Vec<f32>> = similarities.collect();
        let relevant = golden.relevant.iter().map(Vec::as_slice);
        let queries = similarities.iter().map(Vec::as_slice).zip(relevant);
        assert_scores(&retrieval(queries).unwrap(), &golden.scores);
        assert_eq!(retrieval([]), Err(MetricError::Empty));
    }

    #[test]
    fn similarity_scores_are_those_of_scipy() {
        let golden = golden().similarity;
        let cosines = golden.pairs.iter().map(|[a, b]| cosine(a, b));
        let found = similarity(&cosines.collect::<Vec<_>>(), &golden.labels);
        assert_scores(&found.unwrap(), &golden.scores);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
    }

    #[test]
    fn only_the_first_hundred_documents_count() {
        let mut similarities = vec![0.5; 150];
        similarities[149] = 0.0;
        let found = retrieval([(similarities.as_slice(), [149].as_slice())]).unwrap();
        assert!(found.iter().all(|(_, score)| score == 0.0));
        // Of equals the first is the better.
        let found = retrieval([(similarities.as_slice(), [1].as_slice())]).unwrap();
        assert_eq!(found.get("mrr@10"), Some(0.5));
    }
}
