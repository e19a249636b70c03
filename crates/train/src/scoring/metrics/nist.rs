//! NIST (Doddington 2002): like BLEU, but n-grams up to length 5 count by their information, and
//! the score is an arithmetic mean; as `NISTScore` of the E2E challenge's `pymteval.py` has it,
//! which follows mteval-v13a, without case.

use std::collections::HashMap;

use super::ngrams::{count, largest_counts};
use super::texts::ScoredText;
use super::tokens::lowercase;

/// The longest n-grams.
const ORDER: usize = 5;

/// `nist`, 0 or more.
pub(super) fn scores(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let tokenized: Vec<(Vec<String>, Vec<Vec<String>>)> = texts
        .iter()
        .map(|scored| {
            let references = scored.references.iter().map(|it| lowercase(it));
            (lowercase(scored.text), references.collect())
        })
        .collect();
    let expected = tokenized.iter().flat_map(|(_, references)| references);
    let tokens: usize = expected.clone().map(Vec::len).sum();
    let mut ngrams: HashMap<&[String], usize> = HashMap::from([(&[][..], tokens)]);
    for reference in expected {
        for n in 1..=ORDER {
            for ngram in reference.windows(n) {
                *ngrams.entry(ngram).or_insert(0) += 1;
            }
        }
    }
    let information = |ngram: &[String]| {
        let of = |ngram: &[String]| ngrams.get(ngram).copied().unwrap_or(0) as f64;
        (of(&ngram[..ngram.len() - 1]) / of(ngram)).log2()
    };
    let mut score = 0.0;
    for n in 1..=ORDER {
        let (mut sum, mut total) = (0.0, 0_isize);
        for (text, references) in &tokenized {
            let counts = largest_counts(references, n);
            for (ngram, times) in count(text, n) {
                let common = counts.get(ngram).copied().unwrap_or(0).min(times);
                if common > 0 {
                    sum += information(ngram) * common as f64;
                }
            }
            // Texts shorter than the n-gram count as negative, as they do there.
            total += text.len() as isize + 1 - n as isize;
        }
        if sum != 0.0 && total != 0 {
            score += sum / total as f64;
        }
    }
    let length: usize = tokenized.iter().map(|(text, _)| text.len()).sum();
    let mean = |references: &[Vec<String>]| {
        references.iter().map(Vec::len).sum::<usize>() as f64 / references.len() as f64
    };
    let reference_length: f64 = tokenized
        .iter()
        .map(|(_, references)| mean(references))
        .sum();
    vec![("nist", penalty(length as f64 / reference_length) * score)]
}

/// The penalty for texts that are shorter than the references by this ratio: a half for two
/// thirds.
fn penalty(ratio: f64) -> f64 {
    let beta = -(0.5_f64.ln()) / 1.5_f64.ln().powi(2);
    match ratio {
        ratio if ratio >= 1.0 => 1.0,
        ratio if ratio <= 0.0 => 0.0,
        ratio => (-beta * ratio.ln().powi(2)).exp(),
    }
}
