//! Label sets: the names of the classes, in the order of the classifier's outputs.

use std::collections::BTreeSet;

use crate::error::DataError;
use crate::table::{Table, Value};

/// Label names; a label's position is its class id, as in `id2label` of a Hugging Face config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelSet {
    names: Vec<String>,
    /// Whether the order is that of ids which others use too, and not one of sorting.
    by_id: bool,
}

impl LabelSet {
    /// The labels that occur in a column, sorted: by number if all are integers, else by their
    /// bytes, so that the same data give the same ids on every machine.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`]; [`DataError::WrongType`] for a cell that cannot be a label.
    pub fn from_column(table: &Table, column: &str) -> Result<Self, DataError> {
        let mut distinct = BTreeSet::new();
        for (row, value) in table.column(column)?.iter().enumerate() {
            distinct
                .insert(label_name(value).ok_or_else(|| table.wrong_type(row, column, "a label"))?);
        }
        let mut names: Vec<String> = distinct.into_iter().collect();
        // Only canonical integers count as numbers, so that `01` and `1` stay two labels in a
        // stable order.
        let number = |name: &String| {
            name.parse::<i64>()
                .ok()
                .filter(|number| number.to_string() == *name)
        };
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by_key(number);
        }
        Ok(Self {
            names,
            by_id: false,
        })
    }

    /// The labels in the order of their ids.
    ///
    /// # Errors
    /// [`DataError::LabelSet`] if there is none, or one occurs twice.
    pub fn from_names(names: impl IntoIterator<Item = String>) -> Result<Self, DataError> {
        let names: Vec<String> = names.into_iter().collect();
        if names.is_empty() {
            return Err(DataError::LabelSet {
                reason: "it is empty".to_owned(),
            });
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(DataError::LabelSet {
                reason: format!("`{twice}` occurs twice"),
            });
        }
        Ok(Self {
            names,
            by_id: false,
        })
    }

    /// The same labels, whose order is that of the ids that a data set or a model gives them:
    /// integers in the data then mean ids.
    #[must_use]
    pub fn in_order_of_ids(self, by_id: bool) -> Self {
        Self { by_id, ..self }
    }

    /// The number of labels.
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty label set cannot be constructed"
    )]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The labels in the order of their ids.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The class ids of a column, one per row. A cell is looked up by name. An integer that names
    /// no label is an id if the labels are in the order of ids, so that data with the labels `0`
    /// and `1` fit a model whose labels are `NEGATIVE` and `POSITIVE`; not if they were sorted,
    /// since a data set's ids may have any order.
    ///
    /// # Errors
    /// [`DataError::UnknownLabel`] with the row and the set; [`DataError::MissingColumn`];
    /// [`DataError::WrongType`].
    pub fn ids(&self, table: &Table, column: &str) -> Result<Vec<usize>, DataError> {
        let values = table.column(column)?;
        values
            .iter()
            .enumerate()
            .map(|(row, value)| {
                let label =
                    label_name(value).ok_or_else(|| table.wrong_type(row, column, "a label"))?;
                self.id(&label).ok_or_else(|| DataError::UnknownLabel {
                    path: table.path().to_owned(),
                    row: row + 1,
                    column: column.to_owned(),
                    label,
                    known: self.names.clone(),
                })
            })
            .collect()
    }

    /// The id of one label, by name or, in the order of ids and if no name is itself an integer, by
    /// number.
    pub fn id(&self, label: &str) -> Option<usize> {
        let by_name = self.names.iter().position(|name| name == label);
        by_name.or_else(|| {
            let is_name = |name: &String| name.parse::<i64>().is_ok();
            let ids_are_free = self.by_id && !self.names.iter().any(is_name);
            label
                .parse()
                .ok()
                .filter(|id: &usize| ids_are_free && *id < self.len())
        })
    }
}

/// The label that a cell spells; `None` if it cannot be one.
fn label_name(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) => Some(text.trim())
            .filter(|text| !text.is_empty())
            .map(str::to_owned),
        Value::Integer(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Some((*number as i64).to_string())
        }
        Value::Null | Value::Float(_) | Value::Json(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(labels: &[Value]) -> Table {
        Table::from_columns("train.jsonl", [("label".to_owned(), labels.to_vec())]).unwrap()
    }

    fn texts(labels: &[&str]) -> Table {
        table(
            &labels
                .iter()
                .map(|&label| Value::Text(label.to_owned()))
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn integers_sort_by_number_and_names_by_bytes() {
        let set = LabelSet::from_column(&texts(&["10", "9", "-1", "9"]), "label").unwrap();
        assert_eq!(set.names(), ["-1", "9", "10"]);
        let set =
            LabelSet::from_column(&texts(&["neutral", "entailment", "10", "9"]), "label").unwrap();
        assert_eq!(set.names(), ["10", "9", "entailment", "neutral"]);
        let set = LabelSet::from_column(&table(&[Value::Float(2.0), Value::Integer(1)]), "label")
            .unwrap();
        assert_eq!(set.names(), ["1", "2"]);
    }

    #[test]
    fn an_unseen_label_names_the_row_and_the_set() {
        let set = LabelSet::from_column(&texts(&["no", "yes"]), "label").unwrap();
        let error = set
            .ids(&texts(&["yes", "no", "maybe"]), "label")
            .unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(error, DataError::UnknownLabel { row: 3, .. }),
            "{message}"
        );
        assert!(
            message.contains("`maybe`") && message.contains("`no`, `yes`"),
            "{message}"
        );
    }

    #[test]
    fn integers_are_ids_only_where_no_name_is_an_integer() {
        let names = ["NEGATIVE", "POSITIVE"].map(str::to_owned);
        let set = LabelSet::from_names(names).unwrap();
        assert_eq!(set.id("1"), None, "the order may be one of sorting");
        let set = set.in_order_of_ids(true);
        assert_eq!(
            set.ids(&texts(&["1", "NEGATIVE"]), "label").unwrap(),
            [1, 0]
        );
        assert_eq!(set.id("2"), None);
        let set = LabelSet::from_column(&texts(&["1", "2"]), "label").unwrap();
        assert_eq!(
            set.id("0"),
            None,
            "0 is not a label of this set, and must not mean its first"
        );
    }

    #[test]
    fn bad_sets_and_cells_are_refused() {
        assert!(matches!(
            LabelSet::from_names(["a".into(), "a".into()]),
            Err(DataError::LabelSet { .. })
        ));
        for bad in [Value::Null, Value::Float(0.5), Value::Text(" ".into())] {
            let error =
                LabelSet::from_column(&table(&[Value::Integer(1), bad]), "label").unwrap_err();
            assert!(
                matches!(error, DataError::WrongType { row: 2, .. }),
                "{error}"
            );
        }
    }
}
