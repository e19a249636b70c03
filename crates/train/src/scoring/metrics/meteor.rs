//! METEOR 1.5 for English (Denkowski and Lavie 2014, "Meteor Universal"): words of a text are
//! aligned with those of a reference that are the same, have the same stem, are synonyms or belong
//! to a paraphrase; the score is a mean of precision and recall, less where the aligned words stand
//! in another order.
//!
//! Each text counts with the reference of its best score. The score of several texts is that of
//! their summed counts, and not a mean of scores. As the E2E challenge has it, texts are split into
//! words as for ROUGE-L and CIDEr, and then again by METEOR's own rules (`meteor-1.5.jar -l en
//! -norm`); the settings are those of the program's task `rank`.

mod alignment;
mod jar;
mod matches;
mod normalization;
mod paraphrases;
mod synonyms;
mod tables;

use rayon::prelude::*;

use alignment::Alignment;
use matches::{Kind, Stemmed};
use paraphrases::Paraphrases;
pub use tables::MeteorTables;

use super::penn_treebank;
use super::texts::ScoredText;
use crate::error::MetricError;

/// How much precision and recall weigh in their harmonic mean: recall has this share (alpha).
const RECALL: f64 = 0.85;
/// The exponent of the penalty for fragments (beta).
const FRAGMENTS_EXPONENT: f64 = 0.2;
/// The largest penalty for fragments (gamma).
const LARGEST_PENALTY: f64 = 0.6;
/// How much a content word weighs (delta); a function word weighs the rest of 1.
const CONTENT: f64 = 0.75;
/// How much an aligned word weighs, by the kind of its match: exact, stem, synonym, paraphrase.
const WEIGHTS: [f64; Kind::COUNT] = [1.0, 0.6, 0.8, 0.6];

/// `meteor`, from 0 to 1.
///
/// # Errors
/// [`MetricError::MeteorTable`] if the table of paraphrases cannot be read.
pub(super) fn scores(
    texts: &[ScoredText<'_>],
    tables: &MeteorTables,
) -> Result<Vec<(&'static str, f64)>, MetricError> {
    let line = |text: &str| penn_treebank::words(text).join(" ");
    let lines: Vec<(String, Vec<String>)> = texts
        .par_iter()
        .map(|scored| {
            let references = scored.references.iter().map(|it| line(it));
            (line(scored.text), references.collect())
        })
        .collect();
    let mut all = Counts::default();
    for counts in best_counts(&lines, tables)? {
        all.add(&counts);
    }
    Ok(vec![("meteor", all.score())])
}

/// The counts of each text with the first of the references that give it its best score.
fn best_counts(
    texts: &[(String, Vec<String>)],
    tables: &MeteorTables,
) -> Result<Vec<Counts>, MetricError> {
    let words = |text: &str| normalization::words(text, &tables.prefixes);
    let words: Vec<(Vec<String>, Vec<Vec<String>>)> = texts
        .par_iter()
        .map(|(text, references)| {
            let references = references.iter().map(|it| words(it));
            (words(text), references.collect())
        })
        .collect();
    let every = words
        .iter()
        .flat_map(|(text, references)| std::iter::once(text).chain(references))
        .flatten();
    let paraphrases = tables.paraphrases(every.map(String::as_str))?;
    let best = words.par_iter().map(|(text, references)| {
        let text = Stemmed::new(text, tables);
        let counts = references
            .iter()
            .map(|reference| Counts::of(&text, &Stemmed::new(reference, tables), &paraphrases));
        let best = counts.reduce(|best, next| match next.score() > best.score() {
            true => next,
            false => best,
        });
        best.unwrap_or_default()
    });
    Ok(best.collect())
}

/// What the score of one text, or of several, is made of.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counts {
    text: WordCounts,
    reference: WordCounts,
    /// Runs of aligned words that are in the same order in both; of several texts, without those
    /// that are one such run as a whole.
    chunks: usize,
}

/// The words of a text or a reference.
#[derive(Clone, Debug, Default, PartialEq)]
struct WordCounts {
    content: usize,
    function: usize,
    /// Content words that are aligned, by the kind of their match.
    content_matches: [usize; Kind::COUNT],
    /// Function words that are aligned.
    function_matches: [usize; Kind::COUNT],
}

impl Counts {
    fn of(text: &Stemmed<'_>, reference: &Stemmed<'_>, paraphrases: &Paraphrases) -> Self {
        let found = matches::all(text, reference, paraphrases);
        let alignment = Alignment::of(text.len(), reference.len(), &found);
        let mut counts = Self {
            text: WordCounts::of(text),
            reference: WordCounts::of(reference),
            chunks: alignment.chunks,
        };
        for aligned in &alignment.matches {
            let kind = aligned.kind;
            counts
                .text
                .count(kind, &text.is_function[aligned.text_words()]);
            let words = &reference.is_function[aligned.reference_words()];
            counts.reference.count(kind, words);
        }
        counts
    }

    /// The score, from 0 to 1.
    fn score(&self) -> f64 {
        let precision = self.text.weighted_matches() / self.text.weighted_words();
        let recall = self.reference.weighted_matches() / self.reference.weighted_words();
        let mean = 1.0 / ((1.0 - RECALL) / precision + RECALL / recall);
        let fragmentation = match self.is_one_whole() {
            true => 0.0,
            false => {
                let matches = self.text.matches() + self.reference.matches();
                self.chunks as f64 / (matches as f64 / 2.0)
            }
        };
        let score = mean * (1.0 - LARGEST_PENALTY * fragmentation.powf(FRAGMENTS_EXPONENT));
        // Nothing is aligned, or there are no words.
        if score.is_nan() { 0.0 } else { score.max(0.0) }
    }

    /// Whether all words are aligned in one order.
    fn is_one_whole(&self) -> bool {
        self.chunks == 1 && self.text.are_all_matched() && self.reference.are_all_matched()
    }

    fn add(&mut self, other: &Self) {
        self.text.add(&other.text);
        self.reference.add(&other.reference);
        if !other.is_one_whole() {
            self.chunks += other.chunks;
        }
    }
}

impl WordCounts {
    fn of(words: &Stemmed<'_>) -> Self {
        let function = words.is_function.iter().filter(|it| **it).count();
        Self {
            content: words.len() - function,
            function,
            ..Self::default()
        }
    }

    /// Counts the words of a match, of which these are function words.
    fn count(&mut self, kind: Kind, is_function: &[bool]) {
        let function = is_function.iter().filter(|it| **it).count();
        self.function_matches[kind as usize] += function;
        self.content_matches[kind as usize] += is_function.len() - function;
    }

    fn matches(&self) -> usize {
        let counts = self.content_matches.iter().chain(&self.function_matches);
        counts.sum()
    }

    fn are_all_matched(&self) -> bool {
        self.matches() == self.content + self.function
    }

    fn weighted_words(&self) -> f64 {
        CONTENT * self.content as f64 + (1.0 - CONTENT) * self.function as f64
    }

    fn weighted_matches(&self) -> f64 {
        let weighted = |counts: &[usize; Kind::COUNT]| -> f64 {
            let counts = counts.iter().zip(WEIGHTS);
            counts.map(|(&count, weight)| weight * count as f64).sum()
        };
        CONTENT * weighted(&self.content_matches)
            + (1.0 - CONTENT) * weighted(&self.function_matches)
    }

    fn add(&mut self, other: &Self) {
        self.content += other.content;
        self.function += other.function;
        for kind in 0..Kind::COUNT {
            self.content_matches[kind] += other.content_matches[kind];
            self.function_matches[kind] += other.function_matches[kind];
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        /// Lines as the program gets them.
        lines: Scored,
        /// Texts that Stanford's tokenizer splits first.
        texts: Scored,
    }

    /// Texts with their references, and the scores that the program gives them with small tables
    /// and with its own.
    #[derive(Deserialize)]
    struct Scored {
        texts: Vec<(String, Vec<String>)>,
        small: Scores,
        full: Scores,
    }

    #[derive(Deserialize)]
    struct Scores {
        texts: Vec<f64>,
        all: f64,
    }

    fn compare(tables: &MeteorTables, expected: fn(&Scored) -> &Scores) {
        const GOLDEN: &str = include_str!("../../../tests/golden_meteor.json");
        let golden: Golden = serde_json::from_str(GOLDEN).unwrap();
        let texts = &golden.lines.texts;
        let Scores { texts: each, all } = expected(&golden.lines);
        assert_eq!(each.len(), texts.len());
        let mut sum = Counts::default();
        let counts = best_counts(texts, tables).unwrap();
        for ((counts, expected), text) in counts.iter().zip(each).zip(texts) {
            let found = counts.score();
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} instead of {expected}: {text:?}, {counts:?}"
            );
            sum.add(counts);
        }
        assert!((sum.score() - all).abs() < 1e-12, "{sum:?}");

        let texts = golden.texts.texts.iter();
        let texts = texts.map(|(text, references)| ScoredText { text, references });
        let found = scores(&texts.collect::<Vec<_>>(), tables).unwrap();
        let all = expected(&golden.texts).all;
        assert!(
            found[0].0 == "meteor" && (found[0].1 - all).abs() < 1e-12,
            "{found:?}"
        );
    }

    #[test]
    fn scores_with_small_tables_are_those_of_the_program() {
        let tables = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/meteor");
        compare(&MeteorTables::open(&tables).unwrap(), |it| &it.small);
    }

    #[test]
    #[ignore = "needs EPIPHYTE_PYTHON with pycocoevalcap"]
    fn scores_with_the_programs_tables_are_those_of_the_program() {
        let python = std::env::var("EPIPHYTE_PYTHON").expect("a Python that has pycocoevalcap");
        let code = "import pycocoevalcap; print(*pycocoevalcap.__path__, end='')";
        let out = Command::new(python).args(["-c", code]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let package = PathBuf::from(String::from_utf8(out.stdout).unwrap());
        let tables = MeteorTables::open(&package.join("meteor")).unwrap();
        compare(&tables, |it| &it.full);
    }
}
