//! Spans of tagged words, scored as seqeval scores them by default (not strictly).
//!
//! Tags are `O` or a position and a type, `B-PER`; positions are `B` (begin), `I` (inside), `E`
//! (end) and `S` (single). A span also begins where the type changes, and where an `I` follows an
//! `O`, so that IOB1, IOB2, IOBES and IO are all read. Tags that have no position, such as parts of
//! speech, make spans of words in a row with the same tag.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClassRow, ClassScores, ClassTable, DetailedScores, Metrics, ratio};
use crate::error::MetricError;

/// A tag, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tag<'a> {
    position: char,
    kind: &'a str,
}

/// What stands before the first word and behind the last.
const OUTSIDE: Tag<'static> = Tag {
    position: 'O',
    kind: "_",
};

/// Whether any of the tags has a position.
fn have_positions(tags: &[String]) -> bool {
    let has = |tag: &String| {
        tag.len() > 2 && tag.starts_with(['B', 'I', 'E', 'S']) && tag[1..].starts_with('-')
    };
    tags.iter().any(has)
}

/// A tag among tags that have positions, or not.
fn read(tag: &str, positions: bool) -> Tag<'_> {
    if !positions {
        return match tag {
            "O" => OUTSIDE,
            tag => Tag {
                position: 'I',
                kind: tag,
            },
        };
    }
    let mut characters = tag.chars();
    let position = characters.next().unwrap_or('O');
    let rest = characters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    Tag {
        position,
        kind: if kind.is_empty() { "_" } else { kind },
    }
}

/// Whether a span that reaches `before` ends there.
fn ends(before: Tag<'_>, tag: Tag<'_>) -> bool {
    match (before.position, tag.position) {
        ('E' | 'S', _) | ('B' | 'I', 'B' | 'S' | 'O') => true,
        ('O' | '.', _) => false,
        _ => before.kind != tag.kind,
    }
}

/// Whether a span begins at `tag`.
fn begins(before: Tag<'_>, tag: Tag<'_>) -> bool {
    match (before.position, tag.position) {
        (_, 'B' | 'S') | ('E' | 'S' | 'O', 'E' | 'I') => true,
        (_, 'O' | '.') => false,
        _ => before.kind != tag.kind,
    }
}

/// The spans of a sentence: type, first and last word.
fn spans(tags: &[&str], positions: bool) -> BTreeSet<(String, usize, usize)> {
    let mut spans = BTreeSet::new();
    let (mut before, mut first) = (OUTSIDE, 0);
    let tags = tags.iter().map(|tag| read(tag, positions));
    for (at, tag) in tags.chain([OUTSIDE]).enumerate() {
        if ends(before, tag) {
            spans.insert((before.kind.to_owned(), first, at.saturating_sub(1)));
        }
        if begins(before, tag) {
            first = at;
        }
        before = tag;
    }
    spans
}

/// Spans of a type, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    found: u64,
    labelled: u64,
    right: u64,
}

impl Counts {
    fn scores(self) -> ClassScores {
        ClassScores {
            precision: ratio(self.right, self.found),
            recall: ratio(self.right, self.labelled),
            f1: ratio(2 * self.right, self.found + self.labelled),
        }
    }
}

/// `accuracy` of the words' tags; `precision`, `recall` and `f1` of all spans together; and those
/// of each type. `tags` are the names of all tags, sentences hold predicted and right tags by
/// number.
///
/// # Errors
/// [`MetricError`] if there is no word, or a sentence has other numbers of predictions and labels.
pub fn span_scores(
    tags: &[String],
    sentences: &[(Vec<usize>, Vec<usize>)],
) -> Result<DetailedScores, MetricError> {
    let positions = have_positions(tags);
    let mut types: BTreeMap<String, Counts> = BTreeMap::new();
    let (mut words, mut right) = (0, 0);
    for (predicted, labels) in sentences {
        if predicted.len() != labels.len() {
            return Err(MetricError::Lengths {
                predictions: predicted.len(),
                labels: labels.len(),
            });
        }
        words += labels.len() as u64;
        right += predicted.iter().zip(labels).filter(|(a, b)| a == b).count() as u64;
        let named = |ids: &[usize]| {
            let names: Vec<&str> = ids.iter().map(|&id| tags[id].as_str()).collect();
            spans(&names, positions)
        };
        let (found, labelled) = (named(predicted), named(labels));
        for span in &labelled {
            types.entry(span.0.clone()).or_default().labelled += 1;
        }
        for span in &found {
            let counts = types.entry(span.0.clone()).or_default();
            counts.found += 1;
            counts.right += u64::from(labelled.contains(span));
        }
    }
    if words == 0 {
        return Err(MetricError::Empty);
    }
    let all = types.values().fold(Counts::default(), |all, it| Counts {
        found: all.found + it.found,
        labelled: all.labelled + it.labelled,
        right: all.right + it.right,
    });
    let scores = all.scores();
    let classes = types.into_iter().map(|(label, counts)| ClassRow {
        label,
        scores: counts.scores(),
        support: counts.labelled,
    });
    Ok(DetailedScores {
        metrics: Metrics::from_iter([
            ("accuracy", ratio(right, words)),
            ("f1", scores.f1),
            ("precision", scores.precision),
            ("recall", scores.recall),
        ]),
        classes: Some(ClassTable {
            averages: "f1, precision and recall are of the spans of all types together".to_owned(),
            positive_class: None,
            classes: classes.collect(),
            confusion_matrix: None,
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        predictions: Vec<Vec<String>>,
        labels: Vec<Vec<String>>,
        accuracy: f64,
        precision: f64,
        recall: f64,
        f1: f64,
        /// Precision, recall, F1 and support.
        types: BTreeMap<String, (f64, f64, f64, u64)>,
    }

    /// `tests/parity/make_spans.py` computes them.
    #[test]
    fn spans_are_those_of_seqeval() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/golden_spans.json")).unwrap();
        assert!(cases.len() >= 20);
        for (number, case) in cases.into_iter().enumerate() {
            let all = case.predictions.iter().chain(&case.labels).flatten();
            let tags: BTreeSet<&String> = all.collect();
            let tags: Vec<String> = tags.into_iter().cloned().collect();
            let ids = |names: &Vec<String>| -> Vec<usize> {
                let id = |name| tags.iter().position(|tag| tag == name).unwrap();
                names.iter().map(id).collect()
            };
            let pairs = case.predictions.iter().zip(&case.labels);
            let sentences: Vec<_> = pairs.map(|(a, b)| (ids(a), ids(b))).collect();
            let scores = span_scores(&tags, &sentences).unwrap();
            for (name, expected) in [
                ("accuracy", case.accuracy),
                ("precision", case.precision),
                ("recall", case.recall),
                ("f1", case.f1),
            ] {
                let found = scores.metrics.get(name).unwrap();
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{number} {name}: {found}, {expected}"
                );
            }
            let classes = scores.classes.unwrap().classes;
            assert_eq!(classes.len(), case.types.len(), "{number}");
            for row in classes {
                let (precision, recall, f1, support) = case.types[&row.label];
                let expected = ClassScores {
                    precision,
                    recall,
                    f1,
                };
                let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
                let same = near(row.scores.precision, expected.precision)
                    && near(row.scores.recall, expected.recall)
                    && near(row.scores.f1, expected.f1);
                assert!(
                    same,
                    "{number} {}: {:?}, {expected:?}",
                    row.label, row.scores
                );
                assert_eq!(row.support, support, "{number} {}", row.label);
            }
        }
    }

    #[test]
    fn tags_without_positions_make_spans_of_the_same_tag() {
        let tags = ["NOUN", "O", "OTHER"].map(str::to_owned);
        let scores = span_scores(&tags, &[(vec![0, 0, 2, 1], vec![0, 0, 2, 2])]).unwrap();
        let get = |name| scores.metrics.get(name).unwrap();
        assert_eq!(
            (get("accuracy"), get("precision"), get("recall")),
            (0.75, 0.5, 0.5)
        );
    }

    #[test]
    fn what_cannot_be_scored_is_named() {
        let tags = ["O".to_owned()];
        assert_eq!(span_scores(&tags, &[]).unwrap_err(), MetricError::Empty);
        let error = span_scores(&tags, &[(vec![0], vec![0, 0])]).unwrap_err();
        assert!(matches!(error, MetricError::Lengths { .. }), "{error}");
    }
}
