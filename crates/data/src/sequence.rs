//! Examples for classification and regression: one text or a pair, one target.

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::{Example, Examples, Labels, Target};
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// The target of each row.
pub(crate) fn targets(
    table: &Table,
    label: &str,
    labels: Labels<'_>,
) -> Result<Vec<Target>, DataError> {
    Ok(match labels {
        Labels::Classes(set) => set
            .ids(table, label)?
            .into_iter()
            .map(Target::Class)
            .collect(),
        Labels::Numbers => table
            .numbers(label)?
            .into_iter()
            .map(Target::Value)
            .collect(),
        Labels::Absent => vec![Target::Absent; table.len()],
    })
}

/// Tokenises each row with special tokens, truncated `longest_first`.
pub(crate) fn encode(
    table: &Table,
    text: &str,
    pair: Option<&str>,
    targets: Vec<Target>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.texts(text)?;
    let pairs = pair.map(|pair| table.texts(pair)).transpose()?;
    let rows: Vec<(Example, bool)> = targets
        .into_par_iter()
        .enumerate()
        .map(|(row, target)| {
            let pair = pairs.as_ref().map(|pairs| pairs[row]);
            let encoding = tokenizer.encode(texts[row], pair, Some(max_length))?;
            if encoding.ids.is_empty() {
                return Err(DataError::EmptyText {
                    path: table.path().to_owned(),
                    row: row + 1,
                });
            }
            let example = Example {
                ids: encoding.ids,
                type_ids: encoding.type_ids,
                target,
            };
            Ok((example, encoding.truncated))
        })
        .collect::<Result<_, _>>()?;
    let truncated = rows.iter().filter(|(_, truncated)| *truncated).count();
    let examples = rows.into_iter().map(|(example, _)| example).collect();
    Ok(Examples {
        examples,
        truncated,
        dropped: 0,
    })
}
