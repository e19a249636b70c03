//! One text or a pair, with a class or a number for it.

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::examples::Examples;
use crate::fields::LabelField;
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// Tokenizes each row with special tokens, truncated `longest_first`.
pub(super) fn encode(
    table: &Table,
    text: &str,
    pair: Option<&str>,
    label: &LabelField,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.all_texts(text)?;
    let pairs = pair.map(|pair| table.all_texts(pair)).transpose()?;
    let target = target(table, label)?;
    Examples::of_rows(table, |row| {
        let pair = pairs.map(|pairs| pairs.get(row));
        let encoding = tokenizer.encode(texts.get(row), pair, Some(max_length))?;
        if encoding.ids.is_empty() {
            return Err(table.empty_text(row));
        }
        let example = Example {
            ids: encoding.ids,
            type_ids: encoding.type_ids,
            target: target(row),
        };
        Ok((Some(example), encoding.removed))
    })
}

/// The target of each row.
pub(super) fn target(
    table: &Table,
    label: &LabelField,
) -> Result<Box<dyn Fn(usize) -> Target + Sync>, DataError> {
    Ok(match label {
        LabelField::Class { column, labels } => {
            let ids = labels.ids(table, column)?;
            Box::new(move |row| Target::Class(ids[row]))
        }
        LabelField::Number { column } => {
            let numbers = table.numbers(column)?;
            Box::new(move |row| Target::Number(numbers[row]))
        }
        LabelField::ClassSet { columns, labels } => {
            let sets = labels.sets(table, columns)?;
            Box::new(move |row| Target::ClassSet(sets[row].clone()))
        }
        LabelField::Absent => Box::new(|_| Target::Absent),
    })
}
