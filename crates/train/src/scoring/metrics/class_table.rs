//! The scores of each class of an evaluation, for people and as JSON.

use serde::Serialize;

use super::{ClassScores, ConfusionMatrix, positive_class};

/// The scores of each class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassTable {
    /// What F1, precision and recall among the metrics are of, or are means over: a sentence.
    #[serde(skip)]
    pub averages: String,
    /// The class whose F1, precision and recall are among the metrics; of three and more classes
    /// they are means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positive_class: Option<String>,
    /// A row for each class.
    pub classes: Vec<ClassRow>,
    /// A row for each label with a column for each prediction, in the order of `classes`; none
    /// where a prediction is not one class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confusion_matrix: Option<Vec<Vec<u64>>>,
}

/// The scores of a class against all others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassRow {
    /// The name of the class.
    pub label: String,
    /// Its scores.
    #[serde(flatten)]
    pub scores: ClassScores,
    /// How often it is the label.
    pub support: u64,
}

impl ClassTable {
    /// The table of a classification whose classes have these names.
    pub fn of_confusion(confusion: &ConfusionMatrix, names: &[String]) -> Self {
        let ids = 0..confusion.classes();
        let positive_class = positive_class(confusion.classes()).map(|id| names[id].clone());
        let row = |label: usize| (ids.clone().map(|it| confusion.count(label, it))).collect();
        Self {
            averages: match &positive_class {
                Some(class) => format!("f1, precision and recall are of `{class}`"),
                None => "f1, precision and recall are means over the classes".to_owned(),
            },
            positive_class,
            confusion_matrix: Some(ids.clone().map(row).collect()),
            classes: ids
                .map(|id| ClassRow {
                    label: names[id].clone(),
                    scores: confusion.class_scores(id),
                    support: confusion.support(id),
                })
                .collect(),
        }
    }
}
