//! The scores of the E2E challenge (`tuetschek/e2e-metrics`) but METEOR, which needs tables: BLEU
//! and NIST of its `pymteval.py`, ROUGE-L and CIDEr of MS-COCO's caption scores.

use super::penn_treebank::words;
use super::texts::ScoredText;
use super::{bleu, cider, nist};

/// `e2e_bleu`, `nist`, `e2e_rouge_l` and `cider`.
pub(super) fn scores(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let tokenized: Vec<(Vec<String>, Vec<Vec<String>>)> = texts
        .iter()
        .map(|scored| {
            let references = scored.references.iter().map(|it| words(it));
            (words(scored.text), references.collect())
        })
        .collect();
    let mut scores = bleu::e2e(texts);
    scores.extend(nist::scores(texts));
    let sum: f64 = tokenized
        .iter()
        .map(|(text, references)| rouge_l(text, references))
        .sum();
    scores.push(("e2e_rouge_l", sum / texts.len() as f64));
    scores.push(("cider", cider::score(&tokenized)));
    scores
}

/// ROUGE-L of MS-COCO: the best precision and the best recall of the longest common subsequences
/// with any reference, recall counting 1.2 times as much.
fn rouge_l(text: &[String], references: &[Vec<String>]) -> f64 {
    const BETA_SQUARED: f64 = 1.2 * 1.2;
    let (mut precision, mut recall) = (0.0_f64, 0.0_f64);
    for reference in references {
        let common = longest_common_subsequence(text, reference) as f64;
        precision = precision.max(common / text.len().max(1) as f64);
        recall = recall.max(common / reference.len().max(1) as f64);
    }
    match precision > 0.0 && recall > 0.0 {
        true => (1.0 + BETA_SQUARED) * precision * recall / (recall + BETA_SQUARED * precision),
        false => 0.0,
    }
}

/// Its length.
fn longest_common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut lengths = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = lengths[at + 1];
            lengths[at + 1] = match word == other {
                true => diagonal + 1,
                false => above.max(lengths[at]),
            };
            diagonal = above;
        }
    }
    lengths[b.len()]
}
