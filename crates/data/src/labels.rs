//! Label sets: the names of the classes, in the order of the classifier's outputs.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use serde_json::Value as Json;

use crate::error::DataError;
use crate::fields::Columns;
use crate::table::{Cell, Table, Value};

/// Fewer labels than this are no sign of a wrong column, however few the rows.
const MANY_LABELS: usize = 10;

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
    /// Those of [`Table::column`]; [`DataError::MissingLabel`] for an empty cell or a spelling of
    /// nothing, such as `NaN`; [`DataError::WrongType`] for a cell that cannot be a label.
    pub fn from_column(table: &Table, column: &str) -> Result<Self, DataError> {
        let names: Vec<String> = distinct(table, column)?.into_iter().collect();
        refuse_nothing(table, column, &names)?;
        Ok(Self::sorted(names))
    }

    /// Names by number if all are integers, else by their bytes.
    fn sorted(mut names: Vec<String>) -> Self {
        // Only canonical integers count as numbers, so that `01` and `1` stay two labels in a
        // stable order.
        let number = |name: &String| {
            name.parse::<i128>()
                .ok()
                .filter(|number| number.to_string() == *name)
        };
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by_key(number);
        }
        Self {
            names,
            by_id: false,
        }
    }

    /// The labels that occur in the lists of a column, sorted as by [`LabelSet::from_column`].
    ///
    /// # Errors
    /// Those of [`Table::items`].
    pub fn from_lists(table: &Table, column: &str) -> Result<Self, DataError> {
        let mut distinct = BTreeSet::new();
        for row in 0..table.len() {
            distinct.extend(table.items(column, row)?);
        }
        Ok(Self::sorted(distinct.into_iter().collect()))
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

    /// Checks that a classifier can learn from a table: more than one label occurs, and text and
    /// label are not exchanged. Warns if most rows have a label of their own.
    ///
    /// # Errors
    /// [`DataError::OneClass`]; [`DataError::SwappedColumns`]; [`DataError::MissingLabel`]; those
    /// of [`Table::column`].
    pub fn check_training_data(table: &Table, columns: &Columns) -> Result<(), DataError> {
        let column = columns.label();
        let labels = distinct(table, column)?;
        let (path, rows) = (table.path().to_owned(), table.len());
        if let (1, Some(label)) = (labels.len(), labels.first()) {
            return Err(DataError::OneClass {
                path,
                column: column.to_owned(),
                label: label.clone(),
                rows,
            });
        }
        if let Some(mark) = placeholder(&labels) {
            let (count, row) = occurrences(table, column, mark)?;
            tracing::warn!(
                file = %path.display(),
                column,
                rows = count,
                first_row = row + 1,
                "the label `{mark}` is trained as a class; where it says that there is none, leave \
                 these rows out"
            );
        }
        if labels.len() < MANY_LABELS || labels.len() <= rows / 2 {
            return Ok(());
        }
        if let [text] = columns.text_columns.as_slice() {
            let texts: HashSet<&str> = table.texts(text)?.into_iter().collect();
            if texts.len() < labels.len() / 2 {
                return Err(DataError::SwappedColumns {
                    path,
                    label: column.to_owned(),
                    labels: labels.len(),
                    text: text.clone(),
                    texts: texts.len(),
                    rows,
                });
            }
        }
        tracing::warn!(
            file = %path.display(),
            column,
            classes = labels.len(),
            rows,
            "most rows have a class of their own; is this the column of the label?"
        );
        Ok(())
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
    /// [`DataError::UnknownLabel`] with the row and the set; [`DataError::MissingLabel`];
    /// [`DataError::WrongType`]; those of [`Table::column`].
    pub fn ids(&self, table: &Table, column: &str) -> Result<Vec<usize>, DataError> {
        let cells = table.cells(column)?.cells().enumerate();
        cells
            .map(|(row, cell)| {
                let label = label_name(table, row, column, cell)?;
                if let Some(id) = self.id(&label) {
                    return Ok(id);
                }
                if is_nothing(&label) || is_a_word(&label) {
                    return Err(missing(table, row, column, format!("`{label}`")));
                }
                Err(self.unknown(table, row, column, &label))
            })
            .collect()
    }

    /// The class ids of a list (`row` from 0), each looked up as in [`LabelSet::ids`].
    ///
    /// # Errors
    /// [`DataError::UnknownLabel`]; those of [`Table::items`].
    pub fn ids_of_list(
        &self,
        table: &Table,
        column: &str,
        row: usize,
    ) -> Result<Vec<usize>, DataError> {
        let ids = table.items(column, row)?.into_iter().map(|label| {
            let id = self.id(&label);
            id.ok_or_else(|| self.unknown(table, row, column, &label))
        });
        ids.collect()
    }

    /// For each row whether each class is right: from one column with lists of names, or of a 0 or
    /// 1 for each class, or from a column of 0 and 1 for each class.
    ///
    /// # Errors
    /// [`DataError::UnknownLabel`]; [`DataError::ClassCount`] for a list or columns of 0 and 1 for
    /// more or fewer classes; [`DataError::WrongType`]; those of [`Table::column`].
    pub fn sets(&self, table: &Table, columns: &[String]) -> Result<Vec<Vec<bool>>, DataError> {
        let rows = 0..table.len();
        let [column] = columns else {
            let is_right = |row: usize, column: &String| {
                let flag = flag(&table.cells(column)?.cell(row).to_value());
                flag.ok_or_else(|| table.wrong_type(row, column, "0 or 1"))
            };
            let sets = rows.map(|row| {
                self.check_count(table, row, &columns.join("`, `"), columns.len())?;
                columns.iter().map(|column| is_right(row, column)).collect()
            });
            return sets.collect();
        };
        let lists = flags_of_lists(table, column)?;
        let sets = rows.map(|row| {
            if let Some(lists) = &lists {
                self.check_count(table, row, column, lists[row].len())?;
                return Ok(lists[row].clone());
            }
            let mut set = vec![false; self.len()];
            for id in self.ids_of_list(table, column, row)? {
                set[id] = true;
            }
            Ok(set)
        });
        sets.collect()
    }

    fn check_count(
        &self,
        table: &Table,
        row: usize,
        column: &str,
        found: usize,
    ) -> Result<(), DataError> {
        match found == self.len() {
            true => Ok(()),
            false => Err(DataError::ClassCount {
                path: table.place(row).0,
                row: table.place(row).1,
                column: column.to_owned(),
                found,
                classes: self.names.clone(),
            }),
        }
    }

    /// The classes of columns that [`LabelSet::sets`] reads: the columns' names, the names in
    /// lists, sorted, or ids for lists of 0 and 1.
    ///
    /// # Errors
    /// Those of [`Table::items`].
    pub fn from_sets(table: &Table, columns: &[String]) -> Result<Self, DataError> {
        let [column] = columns else {
            return Self::from_names(columns.iter().cloned());
        };
        match flags_of_lists(table, column)? {
            Some(lists) => Self::from_names((0..lists[0].len()).map(|id| id.to_string())),
            None => Self::from_lists(table, column),
        }
    }

    /// The error for a label (`row` from 0) that the set lacks.
    fn unknown(&self, table: &Table, row: usize, column: &str, label: &str) -> DataError {
        let (path, row) = table.place(row);
        DataError::UnknownLabel {
            path,
            row,
            column: column.to_owned(),
            label: label.to_owned(),
            known: self.names.clone(),
        }
    }

    /// The id of one label, by name or, in the order of ids and if no name is itself an integer, by
    /// number.
    pub fn id(&self, label: &str) -> Option<usize> {
        let by_name = self.names.iter().position(|name| name == label);
        by_name.or_else(|| {
            let is_name = |name: &String| name.parse::<i128>().is_ok();
            let ids_are_free = self.by_id && !self.names.iter().any(is_name);
            label
                .parse()
                .ok()
                .filter(|id: &usize| ids_are_free && *id < self.len())
        })
    }
}

/// Whether a cell says 1 or 0.
fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Integer(number) => [0, 1].contains(number).then_some(*number == 1),
        Value::Float(number) => [0.0, 1.0].contains(number).then_some(*number == 1.0),
        Value::Text(text) => match text.trim() {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        },
        Value::Null | Value::Json(_) => None,
    }
}

/// The lists of a column, if each is one of 0 and 1, as long as the first and of two or more.
fn flags_of_lists(table: &Table, column: &str) -> Result<Option<Vec<Vec<bool>>>, DataError> {
    let mut lists: Vec<Vec<bool>> = Vec::new();
    for cell in table.cells(column)?.cells() {
        let Value::Json(Json::Array(items)) = cell.to_value() else {
            return Ok(None);
        };
        let flags = items.into_iter().map(|item| match item {
            Json::String(_) => None,
            item => flag(&item.into()),
        });
        match flags.collect::<Option<Vec<bool>>>() {
            Some(flags)
                if flags.len() >= 2
                    && lists.first().is_none_or(|first| first.len() == flags.len()) =>
            {
                lists.push(flags);
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(lists).filter(|lists| !lists.is_empty()))
}

/// A label of signs alone, among others with letters or numbers: data sets have such where no label
/// was agreed on or none is known.
fn placeholder(labels: &BTreeSet<String>) -> Option<&String> {
    let is_mark = |label: &&String| label.chars().all(|it| "-?_.*/".contains(it));
    let mut marks = labels.iter().filter(is_mark);
    let has_letters = |label: &&String| label.chars().any(char::is_alphanumeric);
    let others = labels.iter().filter(has_letters).count();
    marks.next().filter(|_| others + 1 == labels.len())
}

/// How many rows have a label, and the first of them.
fn occurrences(table: &Table, column: &str, label: &str) -> Result<(usize, usize), DataError> {
    let (mut count, mut first) = (0, 0);
    for (row, cell) in table.cells(column)?.cells().enumerate() {
        if label_name(table, row, column, cell)? == label {
            first = if count == 0 { row } else { first };
            count += 1;
        }
    }
    Ok((count, first))
}

/// The labels that occur in a column.
fn distinct(table: &Table, column: &str) -> Result<BTreeSet<String>, DataError> {
    let mut distinct = BTreeSet::new();
    for (row, cell) in table.cells(column)?.cells().enumerate() {
        let name = label_name(table, row, column, cell)?;
        if !distinct.contains(&*name) {
            distinct.insert(name.into_owned());
        }
    }
    Ok(distinct)
}

/// The label that a cell spells.
fn label_name<'a>(
    table: &Table,
    row: usize,
    column: &str,
    cell: Cell<'a>,
) -> Result<Cow<'a, str>, DataError> {
    Ok(match cell {
        Cell::Text(text) => match text.trim() {
            "" => return Err(missing(table, row, column, "an empty text".to_owned())),
            name => Cow::Borrowed(name),
        },
        Cell::Integer(number) => Cow::Owned(number.to_string()),
        Cell::Bool(truth) => Cow::Owned(truth.to_string()),
        Cell::Float(number) if number.fract() == 0.0 && number.abs() < 1e15 => {
            Cow::Owned((number as i64).to_string())
        }
        Cell::Null => return Err(missing(table, row, column, "null or NaN".to_owned())),
        Cell::Float(_) | Cell::Json(_) => return Err(table.wrong_type(row, column, "a label")),
    })
}

/// Refuses labels of a column that say that there is none.
fn refuse_nothing(table: &Table, column: &str, names: &[String]) -> Result<(), DataError> {
    let mut others = names
        .iter()
        .filter(|name| !is_nothing(name) && !is_a_word(name));
    let are_numbers = others.all(|name| name.parse::<f64>().is_ok());
    let found = names
        .iter()
        .find(|name| is_nothing(name) || are_numbers && is_a_word(name));
    let Some(found) = found else {
        return Ok(());
    };
    let mut cells = table.cells(column)?.cells();
    let row = cells.position(|cell| matches!(cell, Cell::Text(text) if text.trim() == found));
    let row = row.unwrap_or_default();
    Err(missing(table, row, column, format!("`{found}`")))
}

/// Whether a label is one of the ways in which Python, pandas, R, spreadsheets and databases write
/// that there is none.
fn is_nothing(label: &str) -> bool {
    let spellings = ["nan", "-nan", "null", "n/a", "#n/a", "<na>", "nat", r"\n"];
    ["None", "NA"].contains(&label) || spellings.contains(&label.to_ascii_lowercase().as_str())
}

/// Whether a label may say that there is none, but is also a word that people call a class. Among
/// numbers it is no class.
fn is_a_word(label: &str) -> bool {
    ["none", "na", "nil"].contains(&label.to_ascii_lowercase().as_str())
}

fn missing(table: &Table, row: usize, column: &str, found: String) -> DataError {
    if let Some(error) = table.missing_in_file(row, column) {
        return error;
    }
    let (path, row) = table.place(row);
    DataError::MissingLabel {
        path,
        row,
        column: column.to_owned(),
        found,
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
    fn spellings_of_nothing_are_no_classes() {
        for nothing in [
            "NaN", "nan", "None", "null", "NULL", "N/A", "n/a", "NA", "<NA>", " ",
        ] {
            for others in [["1.0", "0.0"], ["pos", "neg"]] {
                let labels = [others[0], others[1], nothing];
                let error = LabelSet::from_column(&texts(&labels), "label").unwrap_err();
                assert!(
                    matches!(error, DataError::MissingLabel { row: 3, .. }),
                    "{nothing}: {error}"
                );
            }
        }
        let stances = texts(&["favor", "against", "none"]);
        let set = LabelSet::from_column(&stances, "label").unwrap();
        assert_eq!(set.names(), ["against", "favor", "none"]);
        assert!(LabelSet::from_column(&texts(&["1", "none"]), "label").is_err());
        // A name that is given is a name.
        let set = LabelSet::from_names(["NA", "yes"].map(str::to_owned)).unwrap();
        assert_eq!(set.ids(&texts(&["yes", "NA"]), "label").unwrap(), [1, 0]);
        let error = set.ids(&texts(&["yes", "NaN"]), "label").unwrap_err();
        assert!(
            matches!(error, DataError::MissingLabel { row: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn bad_sets_and_cells_are_refused() {
        assert!(matches!(
            LabelSet::from_names(["a".into(), "a".into()]),
            Err(DataError::LabelSet { .. })
        ));
        for bad in [Value::Float(0.5), Value::Json(serde_json::json!([1]))] {
            let error =
                LabelSet::from_column(&table(&[Value::Integer(1), bad]), "label").unwrap_err();
            assert!(
                matches!(error, DataError::WrongType { row: 2, .. }),
                "{error}"
            );
        }
        let error =
            LabelSet::from_column(&table(&[Value::Integer(1), Value::Null]), "label").unwrap_err();
        assert!(
            matches!(error, DataError::MissingLabel { row: 2, .. }),
            "{error}"
        );
    }
}
