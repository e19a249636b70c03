//! Columns as the bytes of a file that [`Table::read`](crate::Table::read) reads back.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use ::parquet::basic::{LogicalType, Repetition, Type as Physical};
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::ByteArray;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::types::{Type, TypePtr};
use serde_json::{Map, Value as Json};

use crate::error::DataError;
use crate::table::Value;

/// A format that columns are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// One JSON object a line (`.jsonl`, `.ndjson`, `.json`).
    JsonLines,
    /// Comma-separated values with a header (`.csv`).
    Csv,
    /// Tab-separated values with a header (`.tsv`); a field with a tab, a quote or a line end is
    /// quoted.
    Tsv,
    /// Apache Parquet (`.parquet`).
    Parquet,
}

impl OutputFormat {
    /// The format that a file's extension names.
    pub fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "ndjson" => Some(Self::JsonLines),
            extension => extension.parse().ok(),
        }
    }

    /// Whether a cell may be a list or an object; else such a cell is written as the text of its
    /// JSON.
    pub fn nests(self) -> bool {
        self == Self::JsonLines
    }
}

impl FromStr for OutputFormat {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "json" | "jsonl" => Ok(Self::JsonLines),
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "parquet" => Ok(Self::Parquet),
            _ => Err(DataError::UnknownOutputFormat {
                name: name.to_owned(),
            }),
        }
    }
}

/// A column to write: its name and a value for each row.
pub type OutputColumn = (String, Vec<Value>);

impl OutputFormat {
    /// The bytes of a file with these columns, which have equally many values.
    ///
    /// # Errors
    /// [`DataError::Write`] if a number is not finite where the format cannot say it, or Parquet
    /// refuses the columns.
    pub fn encode(self, columns: &[OutputColumn]) -> Result<Vec<u8>, DataError> {
        let encoded = match self {
            Self::JsonLines => json_lines(columns),
            Self::Csv => separated(columns, b','),
            Self::Tsv => separated(columns, b'\t'),
            Self::Parquet => parquet(columns),
        };
        encoded.map_err(|source| DataError::Write { source })
    }
}

/// The number of rows of all columns together.
fn rows(columns: &[OutputColumn]) -> usize {
    columns.first().map_or(0, |(_, values)| values.len())
}

fn json_lines(columns: &[OutputColumn]) -> Result<Vec<u8>, Failure> {
    let mut lines = Vec::new();
    for row in 0..rows(columns) {
        let cells = columns.iter();
        let cells = cells.map(|(name, values)| Ok((name.clone(), json(&values[row])?)));
        let cells: Map<String, Json> = cells.collect::<Result<_, Failure>>()?;
        serde_json::to_writer(&mut lines, &cells)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn separated(columns: &[OutputColumn], delimiter: u8) -> Result<Vec<u8>, Failure> {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(delimiter)
        .from_writer(Vec::new());
    writer.write_record(columns.iter().map(|(name, _)| name))?;
    for row in 0..rows(columns) {
        let cells = columns.iter().map(|(_, values)| text(&values[row]));
        writer.write_record(cells.collect::<Result<Vec<String>, Failure>>()?)?;
    }
    Ok(writer.into_inner().map_err(|error| error.into_error())?)
}

fn parquet(columns: &[OutputColumn]) -> Result<Vec<u8>, Failure> {
    let typed = columns.iter().map(|(_, values)| Typed::of(values));
    let typed: Vec<Typed> = typed.collect::<Result<_, Failure>>()?;
    let fields = columns.iter().zip(&typed);
    let fields = fields.map(|((name, _), typed)| typed.field(name));
    let schema = Type::group_type_builder("schema")
        .with_fields(fields.collect::<Result<_, Failure>>()?)
        .build()?;
    let properties = Arc::new(WriterProperties::default());
    let mut writer = SerializedFileWriter::new(Vec::new(), Arc::new(schema), properties)?;
    let mut group = writer.next_row_group()?;
    for typed in &typed {
        let Some(mut column) = group.next_column()? else {
            break;
        };
        typed.write(column.untyped())?;
        column.close()?;
    }
    group.close()?;
    Ok(writer.into_inner()?)
}

/// Why columns cannot be written.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A value as JSON.
fn json(value: &Value) -> Result<Json, Failure> {
    Ok(match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::from(*value),
        Value::Integer(value) => serde_json::Number::from_i128(*value)
            .map(Json::Number)
            .ok_or_else(|| format!("{value} has more than 64 bits"))?,
        Value::Float(value) => serde_json::Number::from_f64(*value)
            .map(Json::Number)
            .ok_or_else(|| format!("{value} is no number in JSON"))?,
        Value::Text(text) => Json::from(text.as_str()),
        Value::Json(nested) => nested.clone(),
    })
}

/// A value as text; nothing for no value.
fn text(value: &Value) -> Result<String, Failure> {
    Ok(match value {
        Value::Null => String::new(),
        Value::Text(text) => text.clone(),
        value => json(value)?.to_string(),
    })
}

/// A column of Parquet: 1 for each row that has a value, 0 for each that has none, and the values.
enum Typed {
    Bools(Vec<i16>, Vec<bool>),
    Integers(Vec<i16>, Vec<i64>),
    Floats(Vec<i16>, Vec<f64>),
    Texts(Vec<i16>, Vec<ByteArray>),
}

impl Typed {
    /// A column in the type that all of its values have; texts if they have none in common.
    fn of(values: &[Value]) -> Result<Self, Failure> {
        let present = values.iter().map(|value| (*value != Value::Null).into());
        let present: Vec<i16> = present.collect();
        let some = || values.iter().filter(|value| **value != Value::Null);
        let bools = some().map(|value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        });
        if let Some(bools) = bools.collect() {
            return Ok(Self::Bools(present, bools));
        }
        let integers = some().map(|value| match value {
            Value::Integer(value) => i64::try_from(*value).ok(),
            _ => None,
        });
        if let Some(integers) = integers.collect() {
            return Ok(Self::Integers(present, integers));
        }
        let floats = some().map(|value| match value {
            // A number that would be rounded makes the column one of texts.
            Value::Integer(value) => Some(*value as f64).filter(|it| *it as i128 == *value),
            Value::Float(value) => Some(*value),
            _ => None,
        });
        if let Some(floats) = floats.collect() {
            return Ok(Self::Floats(present, floats));
        }
        let texts = some().map(|value| Ok(ByteArray::from(text(value)?.into_bytes())));
        Ok(Self::Texts(present, texts.collect::<Result<_, Failure>>()?))
    }

    /// Its name and type in a file's schema.
    fn field(&self, name: &str) -> Result<TypePtr, Failure> {
        let (physical, logical) = match self {
            Self::Bools(..) => (Physical::BOOLEAN, None),
            Self::Integers(..) => (Physical::INT64, None),
            Self::Floats(..) => (Physical::DOUBLE, None),
            Self::Texts(..) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        };
        let field = Type::primitive_type_builder(name, physical)
            .with_repetition(Repetition::OPTIONAL)
            .with_logical_type(logical);
        Ok(Arc::new(field.build()?))
    }

    fn write(&self, writer: &mut ColumnWriter<'_>) -> Result<(), Failure> {
        match (self, writer) {
            (Self::Bools(present, values), ColumnWriter::BoolColumnWriter(to)) => {
                to.write_batch(values, Some(present), None)?
            }
            (Self::Integers(present, values), ColumnWriter::Int64ColumnWriter(to)) => {
                to.write_batch(values, Some(present), None)?
            }
            (Self::Floats(present, values), ColumnWriter::DoubleColumnWriter(to)) => {
                to.write_batch(values, Some(present), None)?
            }
            (Self::Texts(present, values), ColumnWriter::ByteArrayColumnWriter(to)) => {
                to.write_batch(values, Some(present), None)?
            }
            _ => return Err("a column of another type than the schema says".into()),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{ReadOptions, Table};

    fn columns() -> Vec<OutputColumn> {
        let text = |text: &str| Value::Text(text.to_owned());
        let columns = [
            (
                "id",
                vec![Value::Integer(7), Value::Integer(-1), Value::Null],
            ),
            (
                "text",
                vec![text("a, \"b\"\tc\nd"), text(""), text("größer")],
            ),
            (
                "score",
                vec![Value::Float(0.5), Value::Float(1e-9), Value::Float(2.25)],
            ),
            (
                "known",
                vec![Value::Bool(true), Value::Null, Value::Bool(false)],
            ),
        ];
        columns
            .map(|(name, values)| (name.to_owned(), values))
            .to_vec()
    }

    /// What is written is read back: typed by JSON and Parquet, as texts by CSV and TSV.
    #[test]
    fn columns_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for (name, format) in [
            ("t.jsonl", OutputFormat::JsonLines),
            ("t.csv", OutputFormat::Csv),
            ("t.tsv", OutputFormat::Tsv),
            ("t.parquet", OutputFormat::Parquet),
        ] {
            let path = dir.path().join(name);
            assert_eq!(OutputFormat::of(&path), Some(format));
            std::fs::write(&path, format.encode(&columns()).unwrap()).unwrap();
            let options = ReadOptions {
                quoting: Some(true),
                ..ReadOptions::default()
            };
            let read = Table::read(&path, &options).unwrap();
            if matches!(format, OutputFormat::JsonLines | OutputFormat::Parquet) {
                let written = Table::from_columns(&path, columns()).unwrap();
                assert_eq!(read, written, "{name}");
                continue;
            }
            for (column, values) in columns() {
                let expected = values.iter().map(|value| Value::Text(text(value).unwrap()));
                let expected = Table::from_columns(&path, [(column.clone(), expected.collect())]);
                let expected = expected.unwrap();
                let expected = expected.texts(&column).unwrap();
                assert_eq!(read.texts(&column).unwrap(), expected, "{name}: {column}");
            }
        }
    }

    #[test]
    fn nested_cells_are_text_where_the_format_is_flat() {
        let nested = [("n".to_owned(), vec![Value::Json(json!({ "a": [1, 2] }))])];
        let encoded = |format: OutputFormat| String::from_utf8(format.encode(&nested).unwrap());
        assert_eq!(
            encoded(OutputFormat::JsonLines).unwrap(),
            "{\"n\":{\"a\":[1,2]}}\n"
        );
        assert_eq!(
            encoded(OutputFormat::Tsv).unwrap(),
            "n\n\"{\"\"a\"\":[1,2]}\"\n"
        );
    }

    #[test]
    fn what_json_cannot_say_is_an_error() {
        let column = ("n".to_owned(), vec![Value::Float(f64::NAN)]);
        let error = OutputFormat::JsonLines.encode(&[column]).unwrap_err();
        assert!(error.to_string().contains("NaN"), "{error}");
        assert!("xml".parse::<OutputFormat>().is_err());
    }
}
