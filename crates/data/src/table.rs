//! A file of examples in memory: named columns of typed values.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value as Json;

use crate::error::DataError;
use crate::spelling::nearest_name;

/// One cell of a [`Table`].
///
/// CSV, TSV and plain text have no types, so every cell read from them is [`Value::Text`],
/// unchanged (`007` is not 7); labels and numbers are parsed when they are read as such. JSON and
/// Parquet keep their types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value: JSON `null`, an absent key, a Parquet null.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction, or one too large for [`Value::Integer`].
    Float(f64),
    /// A text.
    Text(String),
    /// Anything nested; a list of chat messages is an array of objects.
    Json(Json),
}

impl Value {
    /// The name of the value's type as error messages give it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Json(Json::Array(_)) => "a list",
            Self::Json(_) => "an object",
        }
    }
}

impl From<Json> for Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(value),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Self::Integer(integer),
                None => number.as_f64().map_or(Self::Null, Self::Float),
            },
            Json::String(text) => Self::Text(text),
            nested => Self::Json(nested),
        }
    }
}

/// Named columns of equal length, and the file they were read from (which errors name).
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    path: PathBuf,
    columns: IndexMap<String, Vec<Value>>,
    rows: usize,
}

impl Table {
    /// A table from columns; one shorter than the longest is filled with [`Value::Null`]. Errors
    /// name `path` as the file.
    ///
    /// # Errors
    /// [`DataError::DuplicateColumn`]; [`DataError::EmptyFile`] if there is no row.
    pub fn from_columns(
        path: impl Into<PathBuf>,
        columns: impl IntoIterator<Item = (String, Vec<Value>)>,
    ) -> Result<Self, DataError> {
        let path = path.into();
        let mut named = IndexMap::new();
        for (column, values) in columns {
            if named.contains_key(&column) {
                return Err(DataError::DuplicateColumn { path, column });
            }
            named.insert(column, values);
        }
        let rows = named.values().map(Vec::len).max().unwrap_or(0);
        if rows == 0 {
            return Err(DataError::EmptyFile { path });
        }
        for values in named.values_mut() {
            values.resize(rows, Value::Null);
        }
        Ok(Self {
            path,
            columns: named,
            rows,
        })
    }

    /// A table from rows of named values; a name missing from a row is [`Value::Null`] there.
    /// Columns keep the order in which their names first appear.
    pub(crate) fn from_rows(
        path: &Path,
        rows: impl IntoIterator<Item = Result<serde_json::Map<String, Json>, DataError>>,
    ) -> Result<Self, DataError> {
        let mut columns: IndexMap<String, Vec<Value>> = IndexMap::new();
        for (row, fields) in rows.into_iter().enumerate() {
            for (name, value) in fields? {
                let values = columns.entry(name).or_default();
                values.resize(row, Value::Null);
                values.push(value.into());
            }
        }
        Self::from_columns(path, columns)
    }

    /// The number of rows, at least 1.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a table without rows cannot be constructed"
    )]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// The file that the table was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The columns' names in the order of the file.
    pub fn column_names(&self) -> impl Iterator<Item = &str> {
        self.columns.keys().map(String::as_str)
    }

    /// Whether there is a column of this name.
    pub fn has_column(&self, name: &str) -> bool {
        self.columns.contains_key(name)
    }

    /// The values of a column, one per row.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`], which lists the table's columns and the most similar name.
    pub fn column(&self, name: &str) -> Result<&[Value], DataError> {
        self.columns
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| DataError::MissingColumn {
                path: self.path.clone(),
                column: name.to_owned(),
                available: self.columns.keys().cloned().collect(),
                nearest: nearest_name(name, self.column_names()).map(str::to_owned),
            })
    }

    /// The texts of a column, one per row.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`]; [`DataError::WrongType`] for a cell that is not text.
    pub fn texts(&self, name: &str) -> Result<Vec<&str>, DataError> {
        let values = self.column(name)?;
        values
            .iter()
            .enumerate()
            .map(|(row, value)| match value {
                Value::Text(text) => Ok(text.as_str()),
                _ => Err(self.wrong_type(row, name, "a text")),
            })
            .collect()
    }

    /// The numbers of a column, one per row; a text is parsed.
    ///
    /// # Errors
    /// [`DataError::MissingColumn`]; [`DataError::WrongType`] for a cell that is not a finite
    /// number.
    pub fn numbers(&self, name: &str) -> Result<Vec<f32>, DataError> {
        let values = self.column(name)?;
        values
            .iter()
            .enumerate()
            .map(|(row, value)| {
                let number = match value {
                    Value::Integer(number) => Some(*number as f32),
                    Value::Float(number) => Some(*number as f32),
                    Value::Text(text) => text.trim().parse().ok(),
                    _ => None,
                };
                number
                    .filter(|number| number.is_finite())
                    .ok_or_else(|| self.wrong_type(row, name, "a finite number"))
            })
            .collect()
    }

    /// The error for a text (`row` from 0) that becomes no token.
    pub(crate) fn empty_text(&self, row: usize) -> DataError {
        DataError::EmptyText {
            path: self.path.clone(),
            row: row + 1,
        }
    }

    /// The error for a cell (`row` from 0) of a type other than the `expected` one.
    pub(crate) fn wrong_type(&self, row: usize, column: &str, expected: &'static str) -> DataError {
        let found = match self.columns.get(column).and_then(|values| values.get(row)) {
            Some(Value::Text(text)) => {
                let start: String = text.chars().take(40).collect();
                format!("the text `{start}`")
            }
            Some(Value::Float(number)) => format!("the number {number}"),
            Some(value) => value.type_name().to_owned(),
            None => "nothing".to_owned(),
        };
        DataError::WrongType {
            path: self.path.clone(),
            row: row + 1,
            column: column.to_owned(),
            expected,
            found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_column_names_the_nearest() {
        let table = Table::from_columns(
            "train.csv",
            [
                ("sentence1".to_owned(), vec![Value::Text("a".into())]),
                ("Label".to_owned(), vec![Value::Integer(1)]),
            ],
        )
        .unwrap();
        let message = table.column("sentense1").unwrap_err().to_string();
        assert!(message.contains("did you mean `sentence1`?"), "{message}");
        let message = table.column("label").unwrap_err().to_string();
        assert!(message.contains("did you mean `Label`?"), "{message}");
        let message = table.column("premise").unwrap_err().to_string();
        assert!(!message.contains("did you mean"), "{message}");
        assert!(message.contains("`sentence1`, `Label`"), "{message}");
    }

    #[test]
    fn numbers_are_finite_or_refused_with_their_row() {
        let column = ["1", " 2.5 ", "nan"]
            .map(|text| Value::Text(text.into()))
            .to_vec();
        let table = Table::from_columns("d.csv", [("score".to_owned(), column)]).unwrap();
        let error = table.numbers("score").unwrap_err();
        assert!(
            matches!(error, DataError::WrongType { row: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn absent_keys_are_null() {
        let rows = [
            r#"{"a": 1}"#,
            r#"{"b": 2.5}"#,
            r#"{"a": 18446744073709551615}"#,
        ]
        .map(|row| Ok(serde_json::from_str(row).unwrap()));
        let table = Table::from_rows(Path::new("x.jsonl"), rows).unwrap();
        assert_eq!(
            table.column("a").unwrap(),
            [
                Value::Integer(1),
                Value::Null,
                Value::Float(18446744073709551615.0)
            ]
        );
        assert_eq!(
            table.column("b").unwrap(),
            [Value::Null, Value::Float(2.5), Value::Null]
        );
    }
}
