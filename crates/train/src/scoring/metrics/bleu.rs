//! BLEU: the geometric mean of the precisions of 1- to 4-grams over all texts, times a penalty for
//! texts shorter than the references (Papineni et al. 2002). As in sacreBLEU (Post 2018,
//! arXiv:1804.08771) precisions of 0 are smoothed exponentially.

use super::ngrams::{common, count, largest_counts};
use super::texts::ScoredText;
use super::tokens;

/// The longest n-grams.
const ORDER: usize = 4;

/// `bleu`, from 0 to 100, with the tokenizer `13a`.
pub(super) fn western(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    vec![("bleu", Counted::of(texts, tokens::western).smoothed())]
}

/// `bleu_zh`, from 0 to 100, with the tokenizer for Chinese.
pub(super) fn chinese(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    vec![("bleu_zh", Counted::of(texts, tokens::chinese).smoothed())]
}

/// `e2e_bleu`, from 0 to 1: without case, and smoothed only against 0 (`BLEUScore` of the E2E
/// challenge's `pymteval.py`).
pub(super) fn e2e(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let counted = Counted::of(texts, tokens::lowercase);
    vec![("e2e_bleu", counted.unsmoothed(texts.len()))]
}

/// What BLEU is made of.
struct Counted {
    /// Tokens of the texts.
    length: usize,
    /// Tokens of the references that are closest to them in length.
    reference_length: usize,
    /// N-grams of the texts that are in a reference, by their length.
    correct: [usize; ORDER],
    /// N-grams of the texts.
    total: [usize; ORDER],
}

impl Counted {
    fn of(texts: &[ScoredText<'_>], tokenize: impl Fn(&str) -> Vec<String>) -> Self {
        let mut counted = Self {
            length: 0,
            reference_length: 0,
            correct: [0; ORDER],
            total: [0; ORDER],
        };
        for scored in texts {
            let text = tokenize(scored.text);
            let references: Vec<Vec<String>> =
                scored.references.iter().map(|it| tokenize(it)).collect();
            let lengths = references.iter().map(Vec::len);
            let closest = lengths.min_by_key(|&length| (length.abs_diff(text.len()), length));
            counted.length += text.len();
            counted.reference_length += closest.unwrap_or(0);
            for n in 1..=ORDER {
                let ngrams = count(&text, n);
                counted.correct[n - 1] += common(&ngrams, &largest_counts(&references, n));
                counted.total[n - 1] += (text.len() + 1).saturating_sub(n);
            }
        }
        counted
    }

    /// sacreBLEU's score.
    fn smoothed(&self) -> f64 {
        if self.correct.iter().all(|&correct| correct == 0) || self.total.contains(&0) {
            return 0.0;
        }
        let mut smoothing = 1.0;
        let precisions = self
            .correct
            .iter()
            .zip(&self.total)
            .map(|(&correct, &total)| {
                let total = total as f64;
                match correct {
                    0 => {
                        smoothing *= 2.0;
                        100.0 / (smoothing * total)
                    }
                    correct => 100.0 * correct as f64 / total,
                }
            });
        let logarithms: f64 = precisions.map(f64::ln).sum();
        let penalty = match self.length < self.reference_length {
            true => (1.0 - self.reference_length as f64 / self.length as f64).exp(),
            false => 1.0,
        };
        penalty * (logarithms / ORDER as f64).exp()
    }

    /// The E2E challenge's score of this many texts. There, texts shorter than an n-gram count as
    /// negative.
    fn unsmoothed(&self, texts: usize) -> f64 {
        const TINY: f64 = 1e-15;
        const SMALL: f64 = 1e-9;
        let precisions = (0..).zip(&self.correct);
        let logarithms: f64 = precisions
            .map(|(n, &correct)| {
                let total = self.length as f64 - (n * texts) as f64;
                ((correct as f64).max(TINY) / total.max(SMALL)).ln()
            })
            .sum();
        let length = match self.length {
            0 => 1e-5,
            length => length as f64,
        };
        let penalty = match self.length <= self.reference_length {
            true => (1.0 - self.reference_length as f64 / length).exp(),
            false => 1.0,
        };
        penalty * (logarithms / ORDER as f64).exp()
    }
}
