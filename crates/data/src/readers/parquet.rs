//! Parquet through Arrow: every column becomes typed values, lists and structs become JSON.
//!
//! Bytes without a type are text, as Spark, ClickHouse and Impala write it. What no task can use
//! (intervals, maps, unions) is refused when its column is asked for, never spelled in some way.

use std::fs::File;
use std::path::Path;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use ::parquet::file::metadata::ParquetMetaData;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time32MillisecondType, Time32SecondType, Time64MicrosecondType, Time64NanosecondType,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_schema::{DataType, TimeUnit};
use chrono::{FixedOffset, SecondsFormat};
use serde_json::Value as Json;

use super::read::ReadOptions;
use super::source::{STDIN, expansion_limit};
use crate::error::DataError;
use crate::table::{Table, TableBuilder};

/// Rows that are decoded at once: few, since each may repeat a long text of a dictionary.
const BATCH_ROWS: usize = 256;

/// Reads the rows.
pub(super) fn read(path: &Path, options: &ReadOptions) -> Result<Table, DataError> {
    read_within(path, options, expansion_limit)
}

/// Reads rows that take no more memory than `limit` says for the size of the file.
fn read_within(
    path: &Path,
    options: &ReadOptions,
    limit: fn(u64) -> u64,
) -> Result<Table, DataError> {
    if path == Path::new(STDIN) {
        return Err(DataError::NotText {
            path: path.to_owned(),
            found: "Parquet, which is not read from standard input".to_owned(),
            advice: "give the file's path",
        });
    }
    let io = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let invalid = |source| DataError::Parquet {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| invalid(error.into()))?;

    // The table's own limit is that of the cells; a column that is there has a cell in each row.
    let mut table = TableBuilder::new(path, options, usize::MAX);
    let (mut roots, mut columns) = (Vec::new(), Vec::new());
    for (root, field) in builder.schema().fields().iter().enumerate() {
        let name = field.name().clone();
        if !is_readable(field.data_type()) && table.wants(&name) {
            table.declare_unreadable(name, field.data_type().to_string());
        } else if let Some(index) = table.declare(name)? {
            roots.push(root);
            columns.push(index);
        }
    }
    if roots.is_empty() {
        // No row has anything to decode.
        let rows = usize::try_from(builder.metadata().file_metadata().num_rows());
        table.end_rows(rows.unwrap_or(0).min(options.limit.unwrap_or(usize::MAX)))?;
        return table.finish();
    }
    let limit = limit(size);
    let projection = ProjectionMask::roots(builder.parquet_schema(), roots);
    let expansion = || DataError::Expansion {
        path: path.to_owned(),
        limit,
    };
    if claimed_bytes(builder.metadata(), &projection) > limit {
        return Err(expansion());
    }
    let reader = builder
        .with_projection(projection)
        .with_limit(options.limit.unwrap_or(usize::MAX))
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| invalid(error.into()))?;
    for batch in reader {
        let batch = batch.map_err(|error| invalid(error.into()))?;
        let schema = batch.schema();
        let arrays = schema.fields().iter().zip(batch.columns());
        for (&index, (field, array)) in columns.iter().zip(arrays) {
            let before = table.rows();
            let Some(column) = table.column(index) else {
                continue;
            };
            for row in 0..array.len() {
                let value = json_at(array, row).map_err(|found| DataError::WrongType {
                    path: path.to_owned(),
                    row: before + row + 1,
                    column: field.name().clone(),
                    expected: "a text",
                    found,
                })?;
                column.push(value.into());
            }
        }
        table.end_rows(batch.num_rows())?;
        if table.bytes() > limit {
            return Err(expansion());
        }
    }
    table.finish()
}

/// Bytes that the read columns take in memory, as far as the file says: a few bytes may stand for a
/// list of billions of nulls.
fn claimed_bytes(metadata: &ParquetMetaData, projection: &ProjectionMask) -> u64 {
    let chunks = metadata.row_groups().iter().flat_map(|group| {
        let chunks = group.columns().iter().enumerate();
        chunks.filter(|(leaf, _)| projection.leaf_included(*leaf))
    });
    let bytes = chunks.map(|(_, chunk)| {
        let a_value = match chunk.column_descr().max_rep_level() {
            0 => size_of::<u64>(),
            _ => size_of::<Json>(),
        };
        let values = u64::try_from(chunk.num_values()).unwrap_or(u64::MAX);
        let text = u64::try_from(chunk.uncompressed_size()).unwrap_or(u64::MAX);
        text.saturating_add(values.saturating_mul(a_value as u64))
    });
    bytes.fold(0, u64::saturating_add)
}

/// Whether [`json_at`] has values for a type.
fn is_readable(kind: &DataType) -> bool {
    match kind {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => is_readable(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| is_readable(field.data_type())),
        DataType::Dictionary(_, values) => is_readable(values),
        DataType::Duration(_)
        | DataType::Interval(_)
        | DataType::Map(_, _)
        | DataType::Union(_, _)
        | DataType::RunEndEncoded(_, _) => false,
        _ => true,
    }
}

/// The value at `row` as JSON. Dates, times and decimals, for which JSON has no type, become the
/// text in ISO 8601 or in digits. The error says what is there.
fn json_at(array: &dyn Array, row: usize) -> Result<Json, String> {
    if array.is_null(row) {
        return Ok(Json::Null);
    }
    let list = |items: &dyn Array| -> Result<Json, String> {
        (0..items.len()).map(|item| json_at(items, item)).collect()
    };
    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err("bytes that are not UTF-8".to_owned()),
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
        DataType::Float16 => array
            .as_primitive::<Float16Type>()
            .value(row)
            .to_f32()
            .into(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(row).into(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(row).into(),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::Utf8View => array.as_string_view().value(row).into(),
        DataType::Binary => text(array.as_binary::<i32>().value(row))?,
        DataType::LargeBinary => text(array.as_binary::<i64>().value(row))?,
        DataType::BinaryView => text(array.as_binary_view().value(row))?,
        DataType::FixedSizeBinary(_) => text(array.as_fixed_size_binary().value(row))?,
        DataType::List(_) => list(&array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(_, _) => list(&array.as_fixed_size_list().value(row))?,
        DataType::ListView(_) => list(&array.as_list_view::<i32>().value(row))?,
        DataType::LargeListView(_) => list(&array.as_list_view::<i64>().value(row))?,
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            let members = fields.iter().zip(columns);
            Json::Object(
                members
                    .map(|(field, column)| Ok((field.name().clone(), json_at(column, row)?)))
                    .collect::<Result<_, String>>()?,
            )
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            json_at(dictionary.values(), dictionary.normalized_keys()[row])?
        }
        DataType::Decimal32(_, _) => array
            .as_primitive::<Decimal32Type>()
            .value_as_string(row)
            .into(),
        DataType::Decimal64(_, _) => array
            .as_primitive::<Decimal64Type>()
            .value_as_string(row)
            .into(),
        DataType::Decimal128(_, _) => array
            .as_primitive::<Decimal128Type>()
            .value_as_string(row)
            .into(),
        DataType::Decimal256(_, _) => array
            .as_primitive::<Decimal256Type>()
            .value_as_string(row)
            .into(),
        kind => date_or_time(array, row)
            .ok_or_else(|| format!("a value of type {kind} that is out of range"))?
            .into(),
    })
}

/// A date, time or both in the form of ISO 8601; none if it is out of range.
fn date_or_time(array: &dyn Array, row: usize) -> Option<String> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    let time = match array.data_type() {
        DataType::Date32 => {
            let date = array.as_primitive::<Date32Type>().value_as_date(row)?;
            return Some(date.to_string());
        }
        DataType::Date64 => {
            let moment = array.as_primitive::<Date64Type>().value_as_datetime(row)?;
            return Some(format!("{moment:?}"));
        }
        DataType::Timestamp(unit, zone) => {
            let moment = match unit {
                Second => array
                    .as_primitive::<TimestampSecondType>()
                    .value_as_datetime(row),
                Millisecond => array
                    .as_primitive::<TimestampMillisecondType>()
                    .value_as_datetime(row),
                Microsecond => array
                    .as_primitive::<TimestampMicrosecondType>()
                    .value_as_datetime(row),
                Nanosecond => array
                    .as_primitive::<TimestampNanosecondType>()
                    .value_as_datetime(row),
            }?;
            let Some(zone) = zone else {
                return Some(format!("{moment:?}"));
            };
            // A zone by name, such as UTC, is shown in UTC: the same moment.
            let offset = zone.parse().unwrap_or(FixedOffset::east_opt(0)?);
            let moment = moment.and_utc().with_timezone(&offset);
            return Some(moment.to_rfc3339_opts(SecondsFormat::AutoSi, true));
        }
        DataType::Time32(Second) => array
            .as_primitive::<Time32SecondType>()
            .value_as_time(row)?,
        DataType::Time32(_) => array
            .as_primitive::<Time32MillisecondType>()
            .value_as_time(row)?,
        DataType::Time64(Microsecond) => array
            .as_primitive::<Time64MicrosecondType>()
            .value_as_time(row)?,
        DataType::Time64(_) => array
            .as_primitive::<Time64NanosecondType>()
            .value_as_time(row)?,
        _ => return None,
    };
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ::parquet::arrow::ArrowWriter;
    use arrow_array::{ArrayRef, DictionaryArray, Int32Array, ListArray, RecordBatch, StringArray};
    use arrow_buffer::OffsetBuffer;
    use arrow_schema::Field;

    use super::*;

    fn bounded(array: ArrayRef, limit: fn(u64) -> u64) -> Result<Table, DataError> {
        let batch = RecordBatch::try_from_iter_with_nullable([("x", array, true)]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer =
            ArrowWriter::try_new(file.reopen().unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        read_within(file.path(), &ReadOptions::default(), limit)
    }

    /// One text, written once, stands in many rows.
    #[test]
    fn what_a_dictionary_becomes_is_bounded() {
        let array = || -> ArrayRef {
            let values: ArrayRef = Arc::new(StringArray::from(vec!["a".repeat(1000)]));
            let keys = Int32Array::from(vec![0; 3000]);
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap())
        };
        let error = bounded(array(), |_| 2_000_000).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        assert_eq!(bounded(array(), |_| 4_000_000).unwrap().len(), 3000);
    }

    /// A list of nulls is a few bytes, whatever its length.
    #[test]
    fn long_lists_are_counted_before_they_are_read() {
        let array = || -> ArrayRef {
            let items: ArrayRef = Arc::new(Int32Array::from(vec![None; 100_000]));
            let field = Arc::new(Field::new("item", DataType::Int32, true));
            Arc::new(ListArray::new(
                field,
                OffsetBuffer::from_lengths([100_000]),
                items,
                None,
            ))
        };
        let error = bounded(array(), |_| 1_000_000).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        assert_eq!(bounded(array(), |_| 100_000_000).unwrap().len(), 1);
    }
}
