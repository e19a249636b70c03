//! CIDEr (Vedantam et al. 2015, arXiv:1411.5726): the cosine of a text's and its references'
//! n-grams up to length 4, weighted by how rare they are in the references of the other texts;
//! with clipped counts and a penalty for other lengths, as MS-COCO's `cider_scorer.py` has it.

use std::collections::{HashMap, HashSet};

use super::ngrams::{Counts, count};

/// The longest n-grams.
const ORDER: usize = 4;
/// The standard deviation of the penalty for other lengths.
const SIGMA: f64 = 6.0;

/// CIDEr of the words of texts, each with those of its references: 0 to 10.
pub(super) fn score(texts: &[(Vec<String>, Vec<Vec<String>>)]) -> f64 {
    let mut documents: HashMap<&[String], f64> = HashMap::new();
    for (_, references) in texts {
        let ngrams = references
            .iter()
            .flat_map(|it| (1..=ORDER).flat_map(|n| it.windows(n)));
        for ngram in ngrams.collect::<HashSet<_>>() {
            *documents.entry(ngram).or_insert(0.0) += 1.0;
        }
    }
    let all = (texts.len() as f64).ln();
    let weight = |ngram: &[String], times: usize| {
        let documents = documents.get(ngram).copied().unwrap_or(0.0).max(1.0);
        times as f64 * (all - documents.ln())
    };
    let mut sum = 0.0;
    for (text, references) in texts {
        let mut similarity = 0.0;
        for reference in references {
            // Lengths are counted in pairs of words.
            let pairs = |words: &[String]| words.len().saturating_sub(1) as f64;
            let difference = pairs(text) - pairs(reference);
            let penalty = (-difference.powi(2) / (2.0 * SIGMA.powi(2))).exp();
            let orders = (1..=ORDER).map(|n| cosine(&count(text, n), &count(reference, n), weight));
            similarity += penalty * orders.sum::<f64>() / ORDER as f64;
        }
        sum += 10.0 * similarity / references.len() as f64;
    }
    sum / texts.len() as f64
}

/// The cosine of two weighted counts, where the text's count no more than the reference's.
fn cosine(
    text: &Counts<'_, String>,
    reference: &Counts<'_, String>,
    weight: impl Fn(&[String], usize) -> f64,
) -> f64 {
    let norm = |counts: &Counts<'_, String>| {
        let squares = counts
            .iter()
            .map(|(ngram, &times)| weight(ngram, times).powi(2));
        squares.sum::<f64>().sqrt()
    };
    let products = text.iter().map(|(ngram, &times)| {
        let expected = reference
            .get(ngram)
            .map_or(0.0, |&times| weight(ngram, times));
        weight(ngram, times).min(expected) * expected
    });
    let product: f64 = products.sum();
    match norm(text) * norm(reference) {
        0.0 => product,
        norms => product / norms,
    }
}
