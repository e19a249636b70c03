//! Texts that the model reads one by one and compares, with a score for them or without.

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::examples::Examples;
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// Tokenizes each text of a row for itself, with special tokens, and puts one after the other.
pub(super) fn encode(
    table: &Table,
    columns: &[String],
    score: Option<&str>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = columns.iter().map(|column| table.all_texts(column));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let scores = score.map(|column| table.numbers(column)).transpose()?;
    Examples::of_rows(table, |row| {
        let (mut ids, mut type_ids) = (Vec::new(), Vec::new());
        let (mut lengths, mut removed) = (Vec::new(), 0);
        for texts in &texts {
            let encoding = tokenizer.encode(texts.get(row), None, Some(max_length))?;
            if encoding.ids.is_empty() {
                return Err(table.empty_text(row));
            }
            lengths.push(encoding.ids.len());
            removed += encoding.removed;
            ids.extend(encoding.ids);
            type_ids.extend(encoding.type_ids);
        }
        let score = scores.as_ref().map(|scores| scores[row]);
        let target = Target::Texts { lengths, score };
        let example = Example {
            ids,
            type_ids,
            target,
        };
        Ok((Some(example), removed))
    })
}
