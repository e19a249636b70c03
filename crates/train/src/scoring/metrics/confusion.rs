//! How often each class was taken for each other, and the scores of a classification that follow
//! from it.

use serde::Serialize;

use super::{check_pairs, mean, ratio};
use crate::error::MetricError;

/// How often each class was predicted for each label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    /// `[label, prediction]`, row by row.
    counts: Vec<u64>,
}

/// Precision, recall and their harmonic mean, of one class or averaged over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ClassScores {
    /// Share of the predictions of the class that are right.
    pub precision: f64,
    /// Share of the examples of the class that are found.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
}

impl ConfusionMatrix {
    /// Counts pairs of a prediction and a label, class indices in `0..classes`.
    ///
    /// # Errors
    /// [`MetricError`] if there are no examples, the lengths differ, or a class is outside
    /// `0..classes`.
    pub fn new(
        predictions: &[usize],
        labels: &[usize],
        classes: usize,
    ) -> Result<Self, MetricError> {
        check_pairs(predictions.len(), labels.len())?;
        let mut counts = vec![0; classes * classes];
        for (example, (&prediction, &label)) in predictions.iter().zip(labels).enumerate() {
            let class = prediction.max(label);
            if class >= classes {
                return Err(MetricError::ClassOutOfRange {
                    example,
                    class,
                    classes,
                });
            }
            counts[label * classes + prediction] += 1;
        }
        Ok(Self { classes, counts })
    }

    /// How many examples of class `label` were predicted to be of class `prediction`; 0 for a class
    /// that the task does not have.
    #[must_use]
    pub fn count(&self, label: usize, prediction: usize) -> u64 {
        if label.max(prediction) < self.classes {
            self.counts[label * self.classes + prediction]
        } else {
            0
        }
    }

    /// The number of classes.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How many examples are of class `label`.
    #[must_use]
    pub fn support(&self, label: usize) -> u64 {
        self.labelled(label)
    }

    /// Share of correct predictions.
    #[must_use]
    pub fn accuracy(&self) -> f64 {
        ratio(self.correct(), self.total())
    }

    /// The scores of one class against all others.
    #[must_use]
    pub fn class_scores(&self, class: usize) -> ClassScores {
        let hits = self.count(class, class);
        let (predicted, labelled) = (self.predicted(class), self.labelled(class));
        ClassScores {
            precision: ratio(hits, predicted),
            recall: ratio(hits, labelled),
            f1: ratio(2 * hits, predicted + labelled),
        }
    }

    /// The unweighted mean of the scores of those classes that occur as a label or a prediction.
    #[must_use]
    pub fn macro_scores(&self) -> ClassScores {
        let occurring: Vec<ClassScores> = (0..self.classes)
            .filter(|&class| self.labelled(class) + self.predicted(class) > 0)
            .map(|class| self.class_scores(class))
            .collect();
        let mean_of = |score: fn(&ClassScores) -> f64| mean(occurring.iter().map(score));
        ClassScores {
            precision: mean_of(|scores| scores.precision),
            recall: mean_of(|scores| scores.recall),
            f1: mean_of(|scores| scores.f1),
        }
    }

    /// The mean of the classes' F1, each weighted by how often the class is the label.
    #[must_use]
    pub fn weighted_f1(&self) -> f64 {
        let weighted = |class| self.labelled(class) as f64 * self.class_scores(class).f1;
        (0..self.classes).map(weighted).sum::<f64>() / self.total() as f64
    }

    /// The Matthews correlation coefficient, generalised to several classes (Gorodkin 2004); 0 if
    /// all labels or all predictions are of one class.
    #[must_use]
    pub fn matthews(&self) -> f64 {
        // Exact in integers up to the last line; counts below 2^63 cannot overflow here.
        let sum_of = |product: &dyn Fn(usize) -> (u64, u64)| -> i128 {
            (0..self.classes)
                .map(product)
                .map(|(a, b)| i128::from(a) * i128::from(b))
                .sum()
        };
        let total = i128::from(self.total());
        let covariance = i128::from(self.correct()) * total
            - sum_of(&|class| (self.labelled(class), self.predicted(class)));
        let of_labels =
            total * total - sum_of(&|class| (self.labelled(class), self.labelled(class)));
        let of_predictions =
            total * total - sum_of(&|class| (self.predicted(class), self.predicted(class)));
        if of_labels == 0 || of_predictions == 0 {
            return 0.0;
        }
        covariance as f64 / (of_labels as f64 * of_predictions as f64).sqrt()
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn correct(&self) -> u64 {
        (0..self.classes)
            .map(|class| self.count(class, class))
            .sum()
    }

    fn labelled(&self, class: usize) -> u64 {
        (0..self.classes)
            .map(|prediction| self.count(class, prediction))
            .sum()
    }

    fn predicted(&self, class: usize) -> u64 {
        (0..self.classes)
            .map(|label| self.count(label, class))
            .sum()
    }
}
