//! Parquet: every column becomes typed values, lists and structs become JSON.
//!
//! Bytes without a type are text, as Spark, ClickHouse and Impala write it. What no task can use
//! (intervals, maps) is refused when its column is asked for, never spelled in some way.

use std::fs::File;
use std::path::Path;

use ::parquet::basic::{ConvertedType, LogicalType, Repetition, TimeUnit, Type as Physical};
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;
use ::parquet::record::reader::RowIter;
use ::parquet::schema::types::Type;
use chrono::{DateTime, NaiveTime, SecondsFormat, Utc};
use serde_json::Value as Json;

use super::read::ReadOptions;
use super::source::{STDIN, expansion_limit};
use crate::error::DataError;
use crate::panics::guarded;
use crate::table::{Table, TableBuilder};

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
    let file = File::open(path).map_err(io)?;
    let limit = limit(file.metadata().map_err(io)?.len());
    // The crate has assertions about a file's schema.
    let table = guarded(|| rows(path, file, options, limit));
    table.unwrap_or_else(|panic| Err(invalid(path, panic)))
}

/// The error of a file that is not valid.
fn invalid(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DataError {
    DataError::Parquet {
        path: path.to_owned(),
        source: source.into(),
    }
}

fn rows(path: &Path, file: File, options: &ReadOptions, limit: u64) -> Result<Table, DataError> {
    let reader = SerializedFileReader::new(file).map_err(|error| invalid(path, error))?;
    let metadata = reader.metadata();
    let schema = metadata.file_metadata().schema();
    // The table's own limit is that of the cells; a column that is there has a cell in each row.
    let mut table = TableBuilder::new(path, options, usize::MAX);
    let mut columns = Vec::new();
    for field in schema.get_fields() {
        let name = field.name().to_owned();
        match unreadable(field) {
            Some(kind) if table.wants(&name) => table.declare_unreadable(name, kind),
            _ => {
                if let Some(index) = table.declare(name)? {
                    columns.push((index, field));
                }
            }
        }
    }
    let most = options.limit.unwrap_or(usize::MAX);
    if columns.is_empty() {
        // No row has anything to decode.
        let rows = usize::try_from(metadata.file_metadata().num_rows());
        table.end_rows(rows.unwrap_or(0).min(most))?;
        return table.finish();
    }
    let expansion = || DataError::Expansion {
        path: path.to_owned(),
        limit,
    };
    let names: Vec<&str> = columns.iter().map(|(_, field)| field.name()).collect();
    if claimed_bytes(metadata, &names) > limit {
        return Err(expansion());
    }
    let projection = Type::group_type_builder(schema.name())
        .with_fields(columns.iter().map(|&(_, field)| field.clone()).collect())
        .build()
        .map_err(|error| invalid(path, error))?;
    let rows =
        RowIter::from_file(Some(projection), &reader).map_err(|error| invalid(path, error))?;
    for row in rows.take(most) {
        let cells = row.map_err(|error| invalid(path, error))?.into_columns();
        let number = table.rows() + 1;
        for (&(index, kind), (_, cell)) in columns.iter().zip(&cells) {
            let Some(column) = table.column(index) else {
                continue;
            };
            let value = json(cell, kind).map_err(|found| DataError::WrongType {
                path: path.to_owned(),
                row: number,
                column: kind.name().to_owned(),
                expected: "a text",
                found,
            })?;
            column.push(value.into());
        }
        table.end_rows(1)?;
        if table.bytes() > limit {
            return Err(expansion());
        }
    }
    table.finish()
}

/// Bytes that columns take in memory, as far as the file says: a few bytes may stand for a list of
/// billions of nulls.
fn claimed_bytes(metadata: &ParquetMetaData, names: &[&str]) -> u64 {
    let chunks = metadata.row_groups().iter().flat_map(|group| {
        let root = |path: &[String]| path.first().is_some_and(|it| names.contains(&it.as_str()));
        let chunks = group.columns().iter();
        chunks.filter(move |chunk| root(chunk.column_path().parts()))
    });
    let bytes = chunks.map(|chunk| {
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

/// The part of a type for which [`json`] has no values, if there is one.
fn unreadable(kind: &Type) -> Option<String> {
    use ConvertedType as As;
    let converted = kind.get_basic_info().converted_type();
    if kind.is_group() {
        let fields = kind.get_fields();
        let has_form = match converted {
            As::MAP | As::MAP_KEY_VALUE => false,
            // The crate reads no other form of list.
            As::LIST => {
                let is_repeated =
                    |it: &Type| it.get_basic_info().repetition() == Repetition::REPEATED;
                matches!(fields, [items] if is_repeated(items))
            }
            _ => !fields.is_empty(),
        };
        return match has_form {
            true => fields.iter().find_map(|field| unreadable(field)),
            false => Some(format!("a {}", name_of(kind))),
        };
    }
    let is_readable = match kind.get_physical_type() {
        Physical::BOOLEAN | Physical::INT96 | Physical::FLOAT | Physical::DOUBLE => true,
        Physical::INT32 => !matches!(
            converted,
            As::TIME_MICROS | As::TIMESTAMP_MILLIS | As::TIMESTAMP_MICROS | As::INTERVAL
        ),
        Physical::INT64 => !matches!(converted, As::TIME_MILLIS | As::DATE | As::INTERVAL),
        Physical::BYTE_ARRAY => !matches!(converted, As::INTERVAL),
        Physical::FIXED_LEN_BYTE_ARRAY => matches!(converted, As::NONE | As::DECIMAL),
    };
    (!is_readable).then(|| format!("{} of type {}", kind.get_physical_type(), name_of(kind)))
}

/// What a file calls a type.
fn name_of(kind: &Type) -> String {
    match kind.get_basic_info().converted_type() {
        ConvertedType::NONE => "group".to_owned(),
        named => named.to_string(),
    }
}

/// A cell as JSON. Dates, times and decimals, for which JSON has no type, become the text in ISO
/// 8601 or in digits. The error says what is there.
fn json(cell: &Field, kind: &Type) -> Result<Json, String> {
    let kind = type_of(cell, kind);
    let of_range = |text: Option<String>| {
        let out_of_range = || format!("a value of type {} that is out of range", name_of(kind));
        text.map(Json::from).ok_or_else(out_of_range)
    };
    Ok(match cell {
        Field::Null => Json::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => value.to_f32().into(),
        Field::Float(value) => (*value).into(),
        Field::Double(value) => (*value).into(),
        Field::Str(text) => text.as_str().into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => return Err("bytes that are not UTF-8".to_owned()),
        },
        Field::Decimal(_) => cell.to_string().into(),
        Field::Date(days) => {
            let moment = DateTime::from_timestamp(i64::from(*days) * 86_400, 0);
            of_range(moment.map(|moment| moment.date_naive().to_string()))?
        }
        Field::TimeMillis(value) => of_range(time(i64::from(*value), 1000))?,
        Field::TimeMicros(value) => of_range(time(*value, 1_000_000))?,
        Field::TimestampMillis(value) => {
            of_range(DateTime::from_timestamp_millis(*value).map(|it| moment(it, kind)))?
        }
        Field::TimestampMicros(value) => {
            of_range(DateTime::from_timestamp_micros(*value).map(|it| moment(it, kind)))?
        }
        Field::Long(value) => match kind.get_basic_info().logical_type_ref() {
            // The crate has no values of nanoseconds.
            Some(LogicalType::Time(of)) if of.unit == TimeUnit::NANOS => {
                of_range(time(*value, 1_000_000_000))?
            }
            Some(LogicalType::Timestamp(of)) if of.unit == TimeUnit::NANOS => {
                moment(DateTime::from_timestamp_nanos(*value), kind).into()
            }
            _ => (*value).into(),
        },
        Field::Group(row) => {
            let members = row.get_column_iter().map(|(name, cell)| {
                let field = kind.get_fields().iter().find(|field| field.name() == name);
                Ok((name.clone(), json(cell, field.map_or(kind, |field| field))?))
            });
            Json::Object(members.collect::<Result<_, String>>()?)
        }
        Field::ListInternal(list) => {
            let items = match kind.get_basic_info().converted_type() {
                ConvertedType::LIST => &kind.get_fields()[0],
                _ => kind,
            };
            list.elements()
                .iter()
                .map(|it| json(it, items))
                .collect::<Result<_, String>>()?
        }
        Field::MapInternal(_) => return Err("a map".to_owned()),
    })
}

/// The part of `kind` that a cell is of: files wrap the items of a list in groups of one field, in
/// several ways.
fn type_of<'a>(cell: &Field, kind: &'a Type) -> &'a Type {
    let is_it = |kind: &Type| match cell {
        Field::Null => true,
        Field::Group(row) => {
            let names = row.get_column_iter().map(|(name, _)| name.as_str());
            kind.is_group() && names.eq(kind.get_fields().iter().map(|field| field.name()))
        }
        Field::ListInternal(_) => {
            let info = kind.get_basic_info();
            info.converted_type() == ConvertedType::LIST
                || info.has_repetition() && info.repetition() == Repetition::REPEATED
        }
        _ => kind.is_primitive(),
    };
    let mut kind = kind;
    while !is_it(kind)
        && kind.is_group()
        && let [only] = kind.get_fields()
    {
        kind = only;
    }
    kind
}

/// A time of day, of which `value` is the number of `per_second`-ths since midnight.
fn time(value: i64, per_second: i64) -> Option<String> {
    let nanoseconds = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
    let seconds = u32::try_from(value.div_euclid(per_second)).ok()?;
    let time = NaiveTime::from_num_seconds_from_midnight_opt(seconds, nanoseconds as u32)?;
    Some(time.to_string())
}

/// A date and a time of day: of UTC if the file says so, else of no known zone.
fn moment(moment: DateTime<Utc>, kind: &Type) -> String {
    let info = kind.get_basic_info();
    let is_utc = match info.logical_type_ref() {
        Some(LogicalType::Timestamp(of)) => of.is_adjusted_to_u_t_c,
        // The older annotations mean UTC; the oldest form, of 96 bits, has none.
        _ => info.converted_type() != ConvertedType::NONE,
    };
    match is_utc {
        true => moment.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        false => format!("{:?}", moment.naive_utc()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounded(name: &str, limit: fn(u64) -> u64) -> Result<Table, DataError> {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parquet");
        let path = Path::new(golden).join(name);
        read_within(&path, &ReadOptions::default(), limit)
    }

    /// One text of 1000 bytes, written once, stands in 3000 rows.
    #[test]
    fn what_a_dictionary_becomes_is_bounded() {
        let error = bounded("dictionary.parquet", |_| 2_000_000).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        let table = bounded("dictionary.parquet", |_| 4_000_000).unwrap();
        assert_eq!(table.len(), 3000);
    }

    /// A list of 100,000 nulls is a few bytes.
    #[test]
    fn long_lists_are_counted_before_they_are_read() {
        let error = bounded("long_list.parquet", |_| 1_000_000).unwrap_err();
        assert!(matches!(error, DataError::Expansion { .. }), "{error}");
        assert_eq!(
            bounded("long_list.parquet", |_| 100_000_000).unwrap().len(),
            1
        );
    }
}
