//! chrF2: the F-score of the n-grams of characters up to length 6, with recall counting twice
//! (Popović 2015, 2016), over all texts, as in sacreBLEU.

use super::ngrams::{common, count, is_space};
use super::texts::ScoredText;

/// The longest n-grams.
const ORDER: usize = 6;
/// How much more recall counts than precision, squared.
const BETA_SQUARED: f64 = 4.0;

/// `chrf`, from 0 to 100. Of several references of a text the one with the best score counts.
pub(super) fn scores(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let mut sum = Statistics::default();
    for scored in texts {
        let text = characters(scored.text);
        let references = scored.references.iter();
        let all = references.map(|reference| Statistics::of(&text, &characters(reference)));
        // The first of equals.
        let best = all.reduce(|best, other| match other.score() > best.score() {
            true => other,
            false => best,
        });
        sum.add(&best.unwrap_or_default());
    }
    vec![("chrf", sum.score())]
}

/// A text's characters without spaces.
fn characters(text: &str) -> Vec<char> {
    text.chars().filter(|&it| !is_space(it)).collect()
}

/// For each length of n-grams: those of the text, those of the reference, and the common ones.
#[derive(Default)]
struct Statistics([[usize; 3]; ORDER]);

impl Statistics {
    fn of(text: &[char], reference: &[char]) -> Self {
        let mut statistics = Self::default();
        for (n, entry) in (1..=ORDER).zip(&mut statistics.0) {
            let (ngrams, expected) = (count(text, n), count(reference, n));
            *entry = [
                // Nothing counts where the reference has no n-grams.
                match expected.is_empty() {
                    true => 0,
                    false => ngrams.values().sum(),
                },
                expected.values().sum(),
                common(&ngrams, &expected),
            ];
        }
        statistics
    }

    fn add(&mut self, other: &Self) {
        for (sum, entry) in self.0.iter_mut().flatten().zip(other.0.iter().flatten()) {
            *sum += entry;
        }
    }

    /// The F-score of the mean precision and the mean recall of those lengths that both sides have.
    fn score(&self) -> f64 {
        let both = self
            .0
            .iter()
            .filter(|[own, expected, _]| *own > 0 && *expected > 0);
        let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
        for &[own, expected, common] in both {
            precision += common as f64 / own as f64;
            recall += common as f64 / expected as f64;
            lengths += 1.0;
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall) = (precision / lengths, recall / lengths);
        let score = (1.0 + BETA_SQUARED) * precision * recall;
        100.0 * score / (BETA_SQUARED * precision + recall)
    }
}
