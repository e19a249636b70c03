//! One text or a pair, with a class or a number for it.

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, Examples, Target};
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
    let texts = table.texts(text)?;
    let pairs = pair.map(|pair| table.texts(pair)).transpose()?;
    let rows: Vec<(Example, usize)> = targets(table, label)?
        .into_par_iter()
        .enumerate()
        .map(|(row, target)| {
            let pair = pairs.as_ref().map(|pairs| pairs[row]);
            let encoding = tokenizer.encode(texts[row], pair, Some(max_length))?;
            if encoding.ids.is_empty() {
                return Err(table.empty_text(row));
            }
            let example = Example {
                ids: encoding.ids,
                type_ids: encoding.type_ids,
                target,
            };
            Ok((example, encoding.removed))
        })
        .collect::<Result<_, _>>()?;
    Ok(Examples::whole(rows))
}

/// The target of each row.
fn targets(table: &Table, label: &LabelField) -> Result<Vec<Target>, DataError> {
    Ok(match label {
        LabelField::Class { column, labels } => labels
            .ids(table, column)?
            .into_iter()
            .map(Target::Class)
            .collect(),
        LabelField::Number { column } => table
            .numbers(column)?
            .into_iter()
            .map(Target::Number)
            .collect(),
        LabelField::Absent => vec![Target::Absent; table.len()],
    })
}
