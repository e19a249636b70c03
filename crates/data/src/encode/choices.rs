//! Choices for one text: a sequence for each, as `run_swag.py` of transformers encodes them.
//!
//! The first text stands in front of each choice. Of two texts the second begins the second part,
//! with a blank before the choice: a beginning of a sentence, or a question.

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::examples::Examples;
use crate::labels::LabelSet;
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// The columns of choices.
pub(super) struct ChoiceColumns<'a> {
    pub(super) text: &'a str,
    pub(super) second: Option<&'a str>,
    pub(super) choices: &'a [String],
    /// None where the right choice is not known.
    pub(super) label: Option<&'a str>,
}

/// Tokenizes each row; each sequence is truncated to `max_length`, the longer text first.
pub(super) fn encode(
    table: &Table,
    columns: &ChoiceColumns<'_>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let texts = table.all_texts(columns.text)?;
    let second = columns.second.map(|second| table.all_texts(second));
    let second = second.transpose()?;
    let choices = columns.choices.iter().map(|choice| table.all_texts(choice));
    let choices = choices.collect::<Result<Vec<_>, _>>()?;
    // The right choice is a number from 0.
    let numbers = (0..choices.len()).map(|number| number.to_string());
    let numbers = LabelSet::from_names(numbers)?;
    let chosen = columns.label.map(|label| numbers.ids(table, label));
    let chosen = chosen.transpose()?;
    Examples::of_rows(table, |row| {
        let (mut ids, mut type_ids, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        let mut removed = 0;
        for choice in &choices {
            let choice = choice.get(row);
            let pair = match second {
                Some(second) => format!("{} {choice}", second.get(row)),
                None => choice.to_owned(),
            };
            let encoding = tokenizer.encode(texts.get(row), Some(&pair), Some(max_length))?;
            if encoding.ids.is_empty() {
                return Err(table.empty_text(row));
            }
            lengths.push(encoding.ids.len());
            ids.extend(encoding.ids);
            type_ids.extend(encoding.type_ids);
            removed += encoding.removed;
        }
        let example = Example {
            ids,
            type_ids,
            target: Target::Choice {
                lengths,
                chosen: chosen.as_ref().map(|chosen| chosen[row]),
            },
        };
        Ok((Some(example), removed))
    })
}
