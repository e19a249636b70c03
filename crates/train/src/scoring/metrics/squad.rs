//! Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 compute them.
//!
//! Answers are compared in small letters without ASCII punctuation and the articles a, an and the;
//! F1 is over words between blanks. Texts that are written without blanks, such as Chinese, are
//! then words of whole clauses, so that F1 is hardly more than the exact match.

use std::collections::HashMap;

use super::{Metrics, mean};
use crate::error::MetricError;

/// An answer with those that are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerPair {
    /// The answer; empty for none.
    pub prediction: String,
    /// Those that are right; none if the question has no answer.
    pub answers: Vec<String>,
}

/// `exact_match` and `f1`, from 0 to 1: each question's best over the answers that are right.
///
/// With `may_be_absent`, as the script of SQuAD 2.0 has it, questions may have no answer; without,
/// as that of 1.1, every question has one.
///
/// # Errors
/// [`MetricError::Empty`] if there is no question.
pub fn answer_scores(pairs: &[AnswerPair], may_be_absent: bool) -> Result<Metrics, MetricError> {
    if pairs.is_empty() {
        return Err(MetricError::Empty);
    }
    let scores = pairs.iter().map(|pair| {
        let prediction = normalized(&pair.prediction);
        let mut answers: Vec<String> = pair.answers.iter().map(|it| normalized(it)).collect();
        if may_be_absent {
            answers.retain(|answer| !answer.is_empty());
        }
        if answers.is_empty() {
            answers.push(String::new());
        }
        let exact = answers.contains(&prediction);
        let f1 = answers
            .iter()
            .map(|answer| f1(answer, &prediction, may_be_absent));
        (f64::from(u8::from(exact)), f1.fold(0.0, f64::max))
    });
    let scores: Vec<(f64, f64)> = scores.collect();
    Ok(Metrics::from_iter([
        ("exact_match", mean(scores.iter().map(|it| it.0))),
        ("f1", mean(scores.iter().map(|it| it.1))),
    ]))
}

/// Small letters, without ASCII punctuation and articles, one blank between words.
fn normalized(text: &str) -> String {
    let lower = text.to_lowercase();
    let kept: String = lower
        .chars()
        .filter(|it| !it.is_ascii_punctuation())
        .collect();
    let mut without_articles = String::new();
    let mut rest = kept.as_str();
    while !rest.is_empty() {
        let is_letter = |it: char| it.is_alphanumeric() || it == '_';
        let word = rest.find(|it| !is_letter(it)).unwrap_or(rest.len());
        let gap = rest[word..].find(is_letter).unwrap_or(rest.len() - word);
        without_articles += match &rest[..word] {
            "a" | "an" | "the" => " ",
            word => word,
        };
        without_articles += &rest[word..word + gap];
        rest = &rest[word + gap..];
    }
    without_articles
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// The harmonic mean of the shares of common words.
fn f1(answer: &str, prediction: &str, may_be_absent: bool) -> f64 {
    if may_be_absent && (answer.is_empty() || prediction.is_empty()) {
        return f64::from(u8::from(answer == prediction));
    }
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in answer.split_whitespace() {
        *counts.entry(word).or_default() += 1;
    }
    let mut common = 0;
    for word in prediction.split_whitespace() {
        if let Some(count) = counts.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 {
        return 0.0;
    }
    let share = |text: &str| common as f64 / text.split_whitespace().count() as f64;
    let (precision, recall) = (share(prediction), share(answer));
    2.0 * precision * recall / (precision + recall)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        scores: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        prediction: String,
        answers: Vec<String>,
        /// Exact match and F1 of the script of 1.1; none for a question without an answer.
        version_1: Option<(f64, f64)>,
        version_2: (f64, f64),
    }

    /// `tests/parity/make_answers.py` computes them.
    #[test]
    fn scores_are_those_of_the_official_scripts() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../../tests/golden_answers.json")).unwrap();
        assert!(golden.scores.len() >= 20);
        for case in golden.scores {
            let pair = AnswerPair {
                prediction: case.prediction,
                answers: case.answers,
            };
            let expected = [(false, case.version_1), (true, Some(case.version_2))];
            for (may_be_absent, expected) in expected {
                let Some((exact, f1)) = expected else {
                    continue;
                };
                let scores = answer_scores(std::slice::from_ref(&pair), may_be_absent).unwrap();
                let get = |name| scores.get(name).unwrap();
                assert_eq!(get("exact_match"), exact, "{pair:?} {may_be_absent}");
                assert!(
                    (get("f1") - f1).abs() < 1e-12,
                    "{pair:?}: {}, {f1}",
                    get("f1")
                );
            }
        }
        assert_eq!(answer_scores(&[], true), Err(MetricError::Empty));
    }
}
