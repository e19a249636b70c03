//! The classes of a classification head, which any family's `config.json` may carry.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::ModelError;
use crate::json::JsonObject;

/// The largest number of classes that is believed of a model.
pub(crate) const MOST_LABELS: usize = 1 << 20;

/// The names of the classes and the kind of their problem: `id2label`, `num_labels` and
/// `problem_type`.
///
/// `label2id` is not read: it is the inverse of `id2label`, and where published files disagree with
/// themselves it is `id2label` that names what a head predicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    names: Vec<String>,
    /// The kind of problem, where the file says.
    pub problem_type: Option<ProblemType>,
}

/// What a classification head is trained for: `problem_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    /// Mean squared error on numbers.
    Regression,
    /// Cross-entropy over classes.
    SingleLabelClassification,
    /// Binary cross-entropy for every class by itself.
    MultiLabelClassification,
}

impl ProblemType {
    /// Whether transformers infers it from the number and the type of labels where the file does
    /// not say.
    pub fn is_inferred(self) -> bool {
        self != Self::MultiLabelClassification
    }
}

impl Labels {
    /// The classes with these names, in the order of their ids.
    ///
    /// # Example
    /// ```
    /// use epiphyte_models::config::Labels;
    /// let labels = Labels::new(["negative", "positive"]);
    /// assert_eq!(labels.id("positive"), Some(1));
    /// assert_eq!(labels.name(0), Some("negative"));
    /// ```
    pub fn new(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
            problem_type: None,
        }
    }

    /// Names `LABEL_0`, `LABEL_1`…, as transformers gives them where a configuration has none.
    pub fn unnamed(num_labels: usize) -> Self {
        Self::new((0..num_labels).map(|id| format!("LABEL_{id}")))
    }

    /// Whether the file names the classes. `LABEL_0` and so on is what transformers writes where
    /// none are named.
    pub fn are_named(&self) -> bool {
        self.names != Self::unnamed(self.num_labels()).names
    }

    /// The number of classes, or of outputs in a regression.
    pub fn num_labels(&self) -> usize {
        self.names.len()
    }

    /// The names, in the order of their ids.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The name of a class.
    pub fn name(&self, id: usize) -> Option<&str> {
        self.names.get(id).map(String::as_str)
    }

    /// The class of this name.
    pub fn id(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|it| it == name)
    }

    /// As transformers reads them: `id2label`, unless `num_labels` contradicts it; two classes
    /// where there is neither.
    pub(crate) fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        let id2label: Option<BTreeMap<String, Value>> = json.get("id2label", None)?;
        let num_labels: Option<usize> = json.get("num_labels", None)?;
        if let Some(num_labels) = num_labels.filter(|&count| count > MOST_LABELS) {
            let problem = format!("{num_labels} is over {MOST_LABELS}");
            return Err(json.invalid("num_labels", problem));
        }
        let mut labels = match (id2label, num_labels) {
            (Some(id2label), None) => Self::new(dense(json, &id2label)?),
            (Some(id2label), Some(count)) if id2label.len() == count => {
                Self::new(dense(json, &id2label)?)
            }
            (_, num_labels) => Self::unnamed(num_labels.unwrap_or(2)),
        };
        labels.problem_type = json.get("problem_type", None)?;
        Ok(labels)
    }
}

/// The names of `id2label`, whose keys are whole numbers. An id that it leaves out has the name
/// that transformers gives it; names that are numbers are written out.
fn dense(json: &JsonObject, id2label: &BTreeMap<String, Value>) -> Result<Vec<String>, ModelError> {
    let mut names = Labels::unnamed(id2label.len()).names;
    let mut seen = BTreeSet::new();
    for (id, name) in id2label {
        let id: usize = id.trim().parse().map_err(|_| {
            json.invalid(
                "id2label",
                format!("`{id}` is not an id: ids are 0, 1, and so on"),
            )
        })?;
        if !seen.insert(id) {
            return Err(json.invalid("id2label", format!("id {id} occurs twice")));
        }
        let name = match name {
            Value::String(name) => name.clone(),
            Value::Number(_) | Value::Bool(_) => name.to_string(),
            other => {
                let problem = format!("{other} is not the name of class {id}");
                return Err(json.invalid("id2label", problem));
            }
        };
        if let Some(slot) = names.get_mut(id) {
            *slot = name;
        }
    }
    Ok(names)
}
