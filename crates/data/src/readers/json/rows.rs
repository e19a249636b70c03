//! Objects to rows of a table, cell by cell: a column that is not read costs no memory.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value as Json;

use crate::error::DataError;
use crate::table::{GrowingColumn, Table, TableBuilder, Value};

/// A table to which objects are appended.
pub(super) struct Rows<'a> {
    table: TableBuilder<'a>,
    /// An error of the table's, for which serde has no place.
    failure: Option<DataError>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(table: TableBuilder<'a>) -> Self {
        Self {
            table,
            failure: None,
        }
    }

    /// The number of rows so far.
    pub(super) fn len(&self) -> usize {
        self.table.rows()
    }

    /// Appends one object. After an error the row is incomplete, and the next one takes its place.
    pub(super) fn read_row<'de, D: Deserializer<'de>>(&mut self, json: D) -> Result<(), D::Error> {
        RowSeed(self).deserialize(json)
    }

    /// Appends the first `limit` objects of an array.
    pub(super) fn read_array<'de, D: Deserializer<'de>>(
        &mut self,
        json: D,
        limit: usize,
    ) -> Result<(), D::Error> {
        json.deserialize_seq(ArrayVisitor { rows: self, limit })
    }

    /// The table's own error if there is one, otherwise `other`.
    pub(super) fn error(&mut self, other: impl FnOnce() -> DataError) -> DataError {
        self.failure.take().unwrap_or_else(other)
    }

    pub(super) fn finish(self) -> Result<Table, DataError> {
        self.table.finish()
    }

    fn check<T, E: Error>(&mut self, result: Result<T, DataError>) -> Result<T, E> {
        result.map_err(|error| {
            let message = E::custom(&error);
            self.failure = Some(error);
            message
        })
    }
}

struct ArrayVisitor<'r, 'a> {
    rows: &'r mut Rows<'a>,
    limit: usize,
}

impl<'de> Visitor<'de> for ArrayVisitor<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while self.rows.len() < self.limit {
            if items.next_element_seed(RowSeed(self.rows))?.is_none() {
                return Ok(());
            }
        }
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// One object as a row.
struct RowSeed<'r, 'a>(&'r mut Rows<'a>);

impl<'de> DeserializeSeed<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let rows = self.0;
        while let Some(index) = fields.next_key_seed(KeySeed(rows))? {
            match index.and_then(|index| rows.table.column(index)) {
                Some(column) => fields.next_value_seed(CellSeed(column))?,
                None => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        let ended = rows.table.end_rows(1);
        rows.check(ended)
    }
}

/// A key as the index of its column; none if that is not read.
struct KeySeed<'r, 'a>(&'r mut Rows<'a>);

impl<'de> DeserializeSeed<'de> for KeySeed<'_, '_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<Option<usize>, D::Error> {
        key.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed<'_, '_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<usize>, E> {
        let named = self.0.table.named(name);
        self.0.check(named)
    }
}

/// A value as the next cell of a column.
struct CellSeed<'c>(&'c mut GrowingColumn);

impl<'de> DeserializeSeed<'de> for CellSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CellSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.0.push_null();
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.push(Value::Bool(value));
        Ok(())
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.0.push(Value::Integer(number.into()));
        Ok(())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.0.push(Value::Integer(number.into()));
        Ok(())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.0.push(Value::Float(number));
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push_text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        let json = Json::deserialize(SeqAccessDeserializer::new(items))?;
        self.0.push(json.into());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<(), A::Error> {
        let json = Json::deserialize(MapAccessDeserializer::new(members))?;
        self.0.push(json.into());
        Ok(())
    }
}
