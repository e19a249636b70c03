//! Parquet through Arrow: every column becomes typed values, lists and structs become JSON.

use std::fs::File;
use std::path::Path;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::Value as Json;

use crate::error::DataError;
use crate::table::{Table, Value};

/// Reads at most `limit` rows.
pub(super) fn read(path: &Path, limit: usize) -> Result<Table, DataError> {
    let file = File::open(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })?;
    let invalid = |source| DataError::Parquet {
        path: path.to_owned(),
        source,
    };
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| invalid(error.into()))?;
    let mut columns: Vec<(String, Vec<Value>)> = builder
        .schema()
        .fields()
        .iter()
        .map(|field| (field.name().clone(), Vec::new()))
        .collect();
    let reader = builder
        .with_limit(limit)
        .build()
        .map_err(|error| invalid(error.into()))?;
    for batch in reader {
        let batch = batch.map_err(|error| invalid(error.into()))?;
        for ((_, values), array) in columns.iter_mut().zip(batch.columns()) {
            for row in 0..array.len() {
                values.push(
                    json_at(array, row)
                        .map_err(|error| invalid(error.into()))?
                        .into(),
                );
            }
        }
    }
    Table::from_columns(path, columns)
}

/// The value at `row` as JSON. Types without a JSON type (dates, decimals, bytes)
/// become the text in which Arrow displays them.
fn json_at(array: &dyn Array, row: usize) -> Result<Json, ArrowError> {
    if array.is_null(row) {
        return Ok(Json::Null);
    }
    let list = |items: &dyn Array| -> Result<Json, ArrowError> {
        (0..items.len()).map(|item| json_at(items, item)).collect()
    };
    Ok(match array.data_type() {
        DataType::Null => Json::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row))?,
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let members = fields.iter().zip(columns);
            Json::Object(
                members
                    .map(|(field, column)| Ok((field.name().clone(), json_at(column, row)?)))
                    .collect::<Result<_, ArrowError>>()?,
            )
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            json_at(dictionary.values(), dictionary.normalized_keys()[row])?
        }
        _ => ArrayFormatter::try_new(array, &FormatOptions::default())?
            .value(row)
            .to_string()
            .into(),
    })
}
