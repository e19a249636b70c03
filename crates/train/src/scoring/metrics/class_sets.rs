//! Scores of predictions that are any number of classes, as scikit-learn computes them.

use super::{ClassRow, ClassScores, ClassTable, DetailedScores, Metrics, check_pairs, mean, ratio};
use crate::error::MetricError;

/// How often a class was right, predicted, and both.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    labelled: u64,
    predicted: u64,
    right: u64,
}

impl Counts {
    fn scores(self) -> ClassScores {
        ClassScores {
            precision: ratio(self.right, self.predicted),
            recall: ratio(self.right, self.labelled),
            f1: ratio(2 * self.right, self.labelled + self.predicted),
        }
    }
}

/// `accuracy`, the share of examples all of whose classes are right; `precision`, `recall` and `f1`
/// of all classes together (micro), `f1_macro`, and the scores of each class. Examples are whether
/// each class is predicted, and whether it is right.
///
/// # Errors
/// [`MetricError`] if there are no examples, or one has another number of classes than `names`.
pub fn class_set_scores(
    names: &[String],
    examples: &[(Vec<bool>, Vec<bool>)],
) -> Result<DetailedScores, MetricError> {
    check_pairs(examples.len(), examples.len())?;
    let mut counts = vec![Counts::default(); names.len()];
    let mut exact = 0;
    for (predicted, labels) in examples {
        for length in [predicted.len(), labels.len()] {
            check_pairs(length, names.len())?;
        }
        exact += u64::from(predicted == labels);
        for ((counts, &predicted), &label) in counts.iter_mut().zip(predicted).zip(labels) {
            counts.labelled += u64::from(label);
            counts.predicted += u64::from(predicted);
            counts.right += u64::from(label && predicted);
        }
    }
    let all = counts.iter().fold(Counts::default(), |all, it| Counts {
        labelled: all.labelled + it.labelled,
        predicted: all.predicted + it.predicted,
        right: all.right + it.right,
    });
    let all = all.scores();
    let rows = names.iter().zip(&counts).map(|(name, counts)| ClassRow {
        label: name.clone(),
        scores: counts.scores(),
        support: counts.labelled,
    });
    Ok(DetailedScores {
        metrics: Metrics::from_iter([
            ("accuracy", ratio(exact, examples.len() as u64)),
            ("f1", all.f1),
            ("f1_macro", mean(counts.iter().map(|it| it.scores().f1))),
            ("precision", all.precision),
            ("recall", all.recall),
        ]),
        classes: Some(ClassTable {
            averages: "f1, precision and recall are of all classes together".to_owned(),
            positive_class: None,
            classes: rows.collect(),
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
        predictions: Vec<Vec<bool>>,
        labels: Vec<Vec<bool>>,
        scores: Metrics,
        /// Precision, recall, F1 and support.
        classes: Vec<(f64, f64, f64, u64)>,
    }

    /// `tests/parity/make_class_sets.py` computes them.
    #[test]
    fn scores_are_those_of_scikit_learn() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../../tests/golden_class_sets.json")).unwrap();
        assert!(cases.len() >= 6);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        for case in cases {
            let names: Vec<String> = (0..case.classes.len()).map(|it| it.to_string()).collect();
            let examples = case
                .predictions
                .into_iter()
                .zip(case.labels)
                .collect::<Vec<_>>();
            let found = class_set_scores(&names, &examples).unwrap();
            for (name, expected) in case.scores.iter() {
                let found = found.metrics.get(name).unwrap();
                assert!(near(found, expected), "{name}: {found}, {expected}");
            }
            assert_eq!(found.metrics.iter().count(), case.scores.iter().count());
            for (row, (precision, recall, f1, support)) in
                found.classes.unwrap().classes.iter().zip(case.classes)
            {
                let scores = row.scores;
                assert!(near(scores.precision, precision), "{scores:?}");
                assert!(
                    near(scores.recall, recall) && near(scores.f1, f1),
                    "{scores:?}"
                );
                assert_eq!(row.support, support);
            }
        }
    }

    #[test]
    fn what_cannot_be_scored_is_named() {
        let names = ["a", "b"].map(str::to_owned);
        assert_eq!(
            class_set_scores(&names, &[]).unwrap_err(),
            MetricError::Empty
        );
        let short = [(vec![true], vec![true, false])];
        let error = class_set_scores(&names, &short).unwrap_err();
        assert!(matches!(error, MetricError::Lengths { .. }), "{error}");
    }
}
