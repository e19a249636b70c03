//! The scores of an evaluation.
//!
//! Definitions and degenerate cases are those of scikit-learn and SciPy, which GLUE's own metrics
//! call: a precision, recall, F1 or Matthews correlation with nothing to divide by is 0; a Pearson
//! or Spearman correlation with a constant, or of fewer than two examples, is undefined and NaN.
//!
//! | key | measured for | definition |
//! | --- | --- | --- |
//! | `accuracy` | classification | share of correct predictions |
//! | `f1`, `precision`, `recall` | classification | of class 1 if there are two classes (as GLUE does), else the mean over the classes that occur (macro) |
//! | `accuracy`, `f1`, `precision`, `recall` | token classification | share of words with the right tag; of all spans together (micro), as seqeval counts them |
//! | `accuracy`, `f1`, `precision`, `recall`, `f1_macro` | multi-label classification | share of texts all of whose classes are right; of all classes together (micro); mean of the classes' F1 |
//! | `exact_match`, `f1` | question answering | share of answers that are right; mean F1 over words, as the scripts of SQuAD compute them, from 0 to 1 |
//! | `f1_weighted` | more than two classes | mean of the classes' F1, weighted by how often each is the label |
//! | `matthews` | classification | Matthews correlation; for more classes Gorodkin's R_K (2004) |
//! | `pearson`, `spearman` | regression | linear and rank correlation; ties share their mean rank |
//! | `mse`, `mae` | regression | mean squared and mean absolute error |
//! | `loss` | every task | what the trainer measured |
//! | `perplexity` | language modelling | e to the mean loss per token |
//!
//! [`texts`] has the scores of written texts.
//!
//! ```
//! use epiphyte_train::scoring::metrics;
//!
//! let metrics = metrics::classification(&[1, 0, 1, 1], &[1, 0, 0, 1], 2)?;
//! assert_eq!(metrics.get("accuracy"), Some(0.75));
//! assert_eq!(metrics.get("f1"), Some(0.8));
//! # Ok::<(), epiphyte_train::error::MetricError>(())
//! ```

mod bleu;
mod chrf;
mod cider;
mod class_sets;
mod class_table;
mod confusion;
mod e2e;
mod exact_match;
mod meteor;
mod ngrams;
mod nist;
mod penn_treebank;
mod porter;
mod rouge;
mod spans;
mod squad;
pub mod texts;
mod tokens;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::MetricError;

pub use class_sets::class_set_scores;
pub use class_table::{ClassRow, ClassTable};
pub use confusion::{ClassScores, ConfusionMatrix};
pub use meteor::MeteorTables;
pub use spans::span_scores;
pub use squad::{AnswerPair, answer_scores};

/// Named scores, in alphabetical order.
///
/// In JSON a map from name to number; NaN and the infinities, which JSON does not have, are written
/// as `null` and read back as NaN.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    from = "BTreeMap<String, Option<f64>>",
    into = "BTreeMap<String, Option<f64>>"
)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// The score called `name`, if it was measured.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// The score that says most: the first that is no loss.
    #[must_use]
    pub fn leading(&self) -> &str {
        let mut names = self.0.keys().map(String::as_str);
        let telling = names.find(|name| !matches!(*name, "loss" | "perplexity"));
        telling.unwrap_or("loss")
    }

    /// Adds a score, or replaces the one of that name.
    pub fn insert(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value);
    }

    /// The scores in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }
}

impl Extend<(String, f64)> for Metrics {
    fn extend<I: IntoIterator<Item = (String, f64)>>(&mut self, scores: I) {
        self.0.extend(scores);
    }
}

impl IntoIterator for Metrics {
    type Item = (String, f64);
    type IntoIter = std::collections::btree_map::IntoIter<String, f64>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> FromIterator<(&'a str, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (&'a str, f64)>>(scores: I) -> Self {
        Self(
            scores
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }
}

impl From<BTreeMap<String, Option<f64>>> for Metrics {
    fn from(scores: BTreeMap<String, Option<f64>>) -> Self {
        Self(
            scores
                .into_iter()
                .map(|(name, value)| (name, value.unwrap_or(f64::NAN)))
                .collect(),
        )
    }
}

impl From<Metrics> for BTreeMap<String, Option<f64>> {
    fn from(metrics: Metrics) -> Self {
        metrics
            .0
            .into_iter()
            .map(|(name, value)| (name, value.is_finite().then_some(value)))
            .collect()
    }
}

/// [`of_confusion`] for predictions and labels: one class index in `0..classes` per example.
///
/// # Errors
/// [`MetricError`] if there are no examples, the lengths differ, or a class is outside
/// `0..classes`.
pub fn classification(
    predictions: &[usize],
    labels: &[usize],
    classes: usize,
) -> Result<Metrics, MetricError> {
    let confusion = ConfusionMatrix::new(predictions, labels, classes)?;
    Ok(of_confusion(&confusion))
}

/// The class that precision, recall and F1 are those of; none if they are means over the classes.
#[must_use]
pub fn positive_class(classes: usize) -> Option<usize> {
    (classes == 2).then_some(1)
}

/// `accuracy`, `f1`, `precision`, `recall`, `matthews` and, for more than two classes,
/// `f1_weighted`.
#[must_use]
pub fn of_confusion(confusion: &ConfusionMatrix) -> Metrics {
    let classes = confusion.classes();
    let ClassScores {
        f1,
        precision,
        recall,
    } = match positive_class(classes) {
        Some(class) => confusion.class_scores(class),
        None => confusion.macro_scores(),
    };
    let mut metrics = Metrics::from_iter([
        ("accuracy", confusion.accuracy()),
        ("f1", f1),
        ("precision", precision),
        ("recall", recall),
        ("matthews", confusion.matthews()),
    ]);
    if classes > 2 {
        metrics.insert("f1_weighted", confusion.weighted_f1());
    }
    metrics
}

/// The scores of an evaluation, with those of each class where there are classes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DetailedScores {
    /// The scores.
    #[serde(flatten)]
    pub metrics: Metrics,
    /// The scores of each class; none if the task has no classes.
    #[serde(flatten)]
    pub classes: Option<ClassTable>,
}

impl From<Metrics> for DetailedScores {
    fn from(metrics: Metrics) -> Self {
        Self {
            metrics,
            classes: None,
        }
    }
}

/// `pearson`, `spearman`, `mse` and `mae`, one prediction and one target per example.
///
/// # Errors
/// [`MetricError`] if there are no examples, the lengths differ, or a number is NaN or infinite.
pub fn regression(predictions: &[f64], targets: &[f64]) -> Result<Metrics, MetricError> {
    check_pairs(predictions.len(), targets.len())?;
    for (example, &value) in predictions
        .iter()
        .enumerate()
        .chain(targets.iter().enumerate())
    {
        if !value.is_finite() {
            return Err(MetricError::NotFinite { example, value });
        }
    }
    let mean_of = |error: fn(f64) -> f64| {
        mean(
            predictions
                .iter()
                .zip(targets)
                .map(|(prediction, target)| error(prediction - target)),
        )
    };
    Ok(Metrics::from_iter([
        ("pearson", pearson(predictions, targets)),
        ("spearman", pearson(&ranks(predictions), &ranks(targets))),
        ("mse", mean_of(|difference| difference * difference)),
        ("mae", mean_of(f64::abs)),
    ]))
}

/// `loss` and `perplexity`, from the mean loss per predicted token in nats.
#[must_use]
pub fn language_modelling(mean_token_loss: f64) -> Metrics {
    Metrics::from_iter([
        ("loss", mean_token_loss),
        ("perplexity", mean_token_loss.exp()),
    ])
}

fn check_pairs(predictions: usize, labels: usize) -> Result<(), MetricError> {
    if predictions != labels {
        return Err(MetricError::Lengths {
            predictions,
            labels,
        });
    }
    if predictions == 0 {
        return Err(MetricError::Empty);
    }
    Ok(())
}

/// The share of `part` in `whole`.
///
/// # Errors
/// [`MetricError::Empty`] if there is nothing.
pub fn share(part: usize, whole: usize) -> Result<f64, MetricError> {
    match whole {
        0 => Err(MetricError::Empty),
        whole => Ok(part as f64 / whole as f64),
    }
}

/// `part / whole`, and 0 where there is nothing to divide by.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The Pearson correlation of two finite samples of equal length, computed as
/// `scipy.stats.pearsonr` does.
fn pearson(x: &[f64], y: &[f64]) -> f64 {
    let is_constant = |values: &[f64]| values.iter().all(|value| *value == values[0]);
    if x.len() < 2 || is_constant(x) || is_constant(y) {
        return f64::NAN;
    }
    let (x, y) = (standardised(x), standardised(y));
    let correlation: f64 = x.iter().zip(&y).map(|(a, b)| a * b).sum();
    correlation.clamp(-1.0, 1.0)
}

/// The sample minus its mean, divided by its length as a vector; scaled first, so that no square
/// overflows.
fn standardised(values: &[f64]) -> Vec<f64> {
    let mean = mean(values.iter().copied());
    let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
    let largest = centred
        .iter()
        .fold(0.0_f64, |largest, value| largest.max(value.abs()));
    let squares: f64 = centred.iter().map(|value| (value / largest).powi(2)).sum();
    let length = largest * squares.sqrt();
    centred.into_iter().map(|value| value / length).collect()
}

/// The rank of each value, from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // The ranks first + 1 ..= first + tied.len() have this mean.
        let shared = first as f64 + (tied.len() as f64 + 1.0) / 2.0;
        for &index in tied {
            ranks[index] = shared;
        }
        first += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        classification: Vec<GoldenClassification>,
        regression: Vec<GoldenRegression>,
    }

    #[derive(Deserialize)]
    struct GoldenClassification {
        classes: usize,
        predictions: Vec<usize>,
        labels: Vec<usize>,
        confusion: Vec<Vec<u64>>,
        /// Precision, recall, F1 and support.
        per_class: Vec<(f64, f64, f64, u64)>,
        scores: Metrics,
    }

    #[derive(Deserialize)]
    struct GoldenRegression {
        predictions: Vec<f64>,
        targets: Vec<f64>,
        scores: Metrics,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden_metrics.json")).unwrap()
    }

    /// Equal within the rounding of a sum of a few hundred terms, relative to the expected score.
    fn assert_scores(actual: &Metrics, expected: &Metrics, what: &str) {
        let names = |metrics: &Metrics| {
            metrics
                .iter()
                .map(|(name, _)| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(actual), names(expected), "{what}");
        for ((name, actual), (_, expected)) in actual.iter().zip(expected.iter()) {
            let near = (actual - expected).abs() <= 1e-13 * expected.abs().max(1.0);
            assert!(
                near || (actual.is_nan() && expected.is_nan()),
                "{what}: {name} is {actual} instead of {expected}"
            );
        }
    }

    #[test]
    fn classification_scores_are_those_of_scikit_learn() {
        for case in golden().classification {
            let what = format!("{:?} for {:?}", case.predictions, case.labels);
            let scores = classification(&case.predictions, &case.labels, case.classes).unwrap();
            assert_scores(&scores, &case.scores, &what);
            let confusion =
                ConfusionMatrix::new(&case.predictions, &case.labels, case.classes).unwrap();
            for (label, row) in case.confusion.iter().enumerate() {
                for (prediction, &count) in row.iter().enumerate() {
                    assert_eq!(confusion.count(label, prediction), count, "{what}");
                }
            }
            for (class, &(precision, recall, f1, support)) in case.per_class.iter().enumerate() {
                let of_class = |scores: ClassScores| {
                    let ClassScores {
                        precision,
                        recall,
                        f1,
                    } = scores;
                    Metrics::from_iter([("precision", precision), ("recall", recall), ("f1", f1)])
                };
                let expected = ClassScores {
                    precision,
                    recall,
                    f1,
                };
                let actual = of_class(confusion.class_scores(class));
                assert_scores(&actual, &of_class(expected), &what);
                assert_eq!(confusion.support(class), support, "{what}");
            }
        }
    }

    #[test]
    fn regression_scores_are_those_of_scipy() {
        for case in golden().regression {
            let what = format!("{:?} for {:?}", case.predictions, case.targets);
            let scores = regression(&case.predictions, &case.targets).unwrap();
            assert_scores(&scores, &case.scores, &what);
        }
    }

    #[test]
    fn what_cannot_be_scored_is_named() {
        assert_eq!(classification(&[], &[], 2), Err(MetricError::Empty));
        assert_eq!(
            classification(&[1], &[1, 0], 2),
            Err(MetricError::Lengths {
                predictions: 1,
                labels: 2
            })
        );
        for (predictions, labels) in [([0, 2], [0, 1]), ([0, 1], [0, 2])] {
            assert_eq!(
                classification(&predictions, &labels, 2),
                Err(MetricError::ClassOutOfRange {
                    example: 1,
                    class: 2,
                    classes: 2
                })
            );
        }
        let infinite = MetricError::NotFinite {
            example: 1,
            value: f64::INFINITY,
        };
        assert_eq!(
            regression(&[0.0, f64::INFINITY], &[0.0, 1.0]),
            Err(infinite)
        );
        assert!(matches!(
            regression(&[0.0, 1.0], &[f64::NAN, 1.0]),
            Err(MetricError::NotFinite { example: 0, .. })
        ));
    }

    #[test]
    fn perplexity_is_that_of_a_uniform_choice() {
        let metrics = language_modelling(50.0_f64.ln());
        assert!((metrics.get("perplexity").unwrap() - 50.0).abs() < 1e-12);
    }

    #[test]
    fn undefined_scores_are_null_in_json() {
        let metrics = Metrics::from_iter([("pearson", f64::NAN), ("mse", 0.25)]);
        let text = serde_json::to_string(&metrics).unwrap();
        assert_eq!(text, r#"{"mse":0.25,"pearson":null}"#);
        let read: Metrics = serde_json::from_str(&text).unwrap();
        assert!(read.get("pearson").unwrap().is_nan());
        assert_eq!(read.get("mse"), Some(0.25));
    }

    proptest! {
        #[test]
        fn perfect_predictions_score_one(labels in prop::collection::vec(0_usize..4, 1..50)) {
            let metrics = classification(&labels, &labels, 4).unwrap();
            for name in ["accuracy", "f1", "f1_weighted", "precision", "recall"] {
                prop_assert!((metrics.get(name).unwrap() - 1.0).abs() < 1e-12, "{}", name);
            }
            let varied = labels.iter().any(|label| *label != labels[0]);
            let expected = if varied { 1.0 } else { 0.0 };
            prop_assert!((metrics.get("matthews").unwrap() - expected).abs() < 1e-12);
        }

        #[test]
        fn matthews_does_not_care_about_names_and_sides(
            pairs in prop::collection::vec((0_usize..3, 0_usize..3), 1..50),
        ) {
            let (predictions, labels): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
            let matthews = |a: &[usize], b: &[usize]| ConfusionMatrix::new(a, b, 3).unwrap().matthews();
            let renamed = |classes: &[usize]| classes.iter().map(|class| (class + 1) % 3).collect::<Vec<_>>();
            let score = matthews(&predictions, &labels);
            prop_assert_eq!(score, matthews(&labels, &predictions));
            prop_assert_eq!(score, matthews(&renamed(&predictions), &renamed(&labels)));
            prop_assert!(score.abs() <= 1.0 + 1e-12);
        }

        #[test]
        fn spearman_depends_on_the_order_alone(
            pairs in prop::collection::vec((-20_i32..20, -20_i32..20), 2..50),
        ) {
            let (x, y): (Vec<f64>, Vec<f64>) =
                pairs.into_iter().map(|(x, y)| (f64::from(x), f64::from(y))).unzip();
            let spearman = |x: &[f64]| regression(x, &y).unwrap().get("spearman").unwrap();
            let stretched: Vec<f64> = x.iter().map(|value| value.powi(3) + 7.0).collect();
            prop_assert_eq!(spearman(&x).to_bits(), spearman(&stretched).to_bits());
        }

        #[test]
        fn pearson_does_not_care_about_units(
            pairs in prop::collection::vec((-1e3_f64..1e3, -1e3_f64..1e3), 3..50),
            scale in 0.5_f64..4.0,
            shift in -10.0_f64..10.0,
        ) {
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let moved: Vec<f64> = x.iter().map(|value| scale * value + shift).collect();
            let (before, after) = (pearson(&x, &y), pearson(&moved, &y));
            prop_assert!((before - after).abs() < 1e-9, "{} and {}", before, after);
            prop_assert!((0.999_999..=1.0).contains(&pearson(&x, &moved)));
        }
    }
}
