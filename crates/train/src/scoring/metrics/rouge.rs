//! ROUGE (Lin 2004): the overlap of a text with a reference in words, pairs of words, and the
//! longest common subsequence, as F1, as in Google's rouge-score. The score of several texts is the
//! mean; of several references of a text the one with the best score counts.

use std::collections::HashMap;

use super::ngrams::{common, count};
use super::porter::stem;
use super::texts::ScoredText;

/// `rouge1`, `rouge2`, `rougeL` and `rougeLsum` over words.
pub(super) fn plain(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let names = ["rouge1", "rouge2", "rougeL", "rougeLsum"];
    names.into_iter().zip(means(texts, false)).collect()
}

/// The same over Porter's stems.
pub(super) fn stemmed(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let names = [
        "rouge1_stemmed",
        "rouge2_stemmed",
        "rougeL_stemmed",
        "rougeLsum_stemmed",
    ];
    names.into_iter().zip(means(texts, true)).collect()
}

/// The mean over texts of each score.
fn means(texts: &[ScoredText<'_>], stems: bool) -> [f64; 4] {
    let mut sums = [0.0; 4];
    for scored in texts {
        let mut best = [0.0_f64; 4];
        for reference in scored.references {
            let scores = scores(scored.text, reference, stems);
            for (best, score) in best.iter_mut().zip(scores) {
                *best = best.max(score);
            }
        }
        for (sum, best) in sums.iter_mut().zip(best) {
            *sum += best;
        }
    }
    sums.map(|sum| sum / texts.len() as f64)
}

/// The scores of one text and one reference.
fn scores(text: &str, reference: &str, stems: bool) -> [f64; 4] {
    let (words, expected) = (words(text, stems), words(reference, stems));
    let ngrams = |n| {
        let (own, other) = (count(&words, n), count(&expected, n));
        let all = |words: &[String]| (words.len() + 1).saturating_sub(n);
        f1(common(&own, &other), all(&words), all(&expected))
    };
    let longest = f1(
        subsequences(&expected, &words)[expected.len()][words.len()],
        words.len(),
        expected.len(),
    );
    [
        ngrams(1),
        ngrams(2),
        longest,
        summary(&sentences(text, stems), &sentences(reference, stems)),
    ]
}

/// F1 of this many common of all own and all expected ones.
fn f1(common: usize, own: usize, expected: usize) -> f64 {
    let precision = common as f64 / own.max(1) as f64;
    let recall = common as f64 / expected.max(1) as f64;
    match precision + recall > 0.0 {
        true => 2.0 * precision * recall / (precision + recall),
        false => 0.0,
    }
}

/// The words of a text: runs of Latin letters and digits, in lower case. Stems only of those with
/// more than three characters.
fn words(text: &str, stems: bool) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|it: char| !it.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    let stem = |word: &str| match stems && word.len() > 3 {
        true => stem(word),
        false => word.to_owned(),
    };
    words.map(stem).collect()
}

/// The words of each line.
fn sentences(text: &str, stems: bool) -> Vec<Vec<String>> {
    let lines = text.split('\n').filter(|line| !line.is_empty());
    lines.map(|line| words(line, stems)).collect()
}

/// Lengths of the longest common subsequences of all beginnings of both.
fn subsequences(reference: &[String], text: &[String]) -> Vec<Vec<usize>> {
    let mut table = vec![vec![0; text.len() + 1]; reference.len() + 1];
    for (i, expected) in (1..).zip(reference) {
        for (j, word) in (1..).zip(text) {
            table[i][j] = match expected == word {
                true => table[i - 1][j - 1] + 1,
                false => table[i - 1][j].max(table[i][j - 1]),
            };
        }
    }
    table
}

/// Which words of the reference are in its longest common subsequence with the text.
fn matched(reference: &[String], text: &[String], found: &mut [bool]) {
    let table = subsequences(reference, text);
    let (mut i, mut j) = (reference.len(), text.len());
    while i > 0 && j > 0 {
        if reference[i - 1] == text[j - 1] {
            found[i - 1] = true;
            (i, j) = (i - 1, j - 1);
        } else if table[i][j - 1] > table[i - 1][j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}

/// ROUGE-Lsum: for each sentence of the reference the words that any sentence of the text has in
/// the same order; no word counts more often than both sides have it.
fn summary(text: &[Vec<String>], reference: &[Vec<String>]) -> f64 {
    let counts = |sentences: &[Vec<String>]| {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for word in sentences.iter().flatten() {
            *counts.entry(word.clone()).or_insert(0) += 1;
        }
        counts
    };
    let (mut own, mut expected) = (counts(text), counts(reference));
    let mut common = 0;
    for sentence in reference {
        let mut found = vec![false; sentence.len()];
        for candidate in text {
            matched(sentence, candidate, &mut found);
        }
        for (word, _) in sentence.iter().zip(found).filter(|(_, found)| *found) {
            let left = (own.get_mut(word), expected.get_mut(word));
            if let (Some(own @ 1..), Some(expected @ 1..)) = left {
                *own -= 1;
                *expected -= 1;
                common += 1;
            }
        }
    }
    let length = |sentences: &[Vec<String>]| sentences.iter().map(Vec::len).sum();
    f1(common, length(text), length(reference))
}
