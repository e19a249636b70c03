//! A template with texts and one hidden word.
//!
//! The whole text is tokenized at once, as the model reads it. What is too long loses tokens of its
//! columns, from the end of the longest one first, and never of the template.

use std::ops::Range;

use super::texts::target;
use crate::cloze::Cloze;
use crate::error::DataError;
use crate::example::Example;
use crate::examples::Examples;
use crate::fields::LabelField;
use crate::prompt::with_spans;
use crate::table::Table;
use crate::tokenizer::{Alignment, Tokenizer};

/// Tokenizes each row with special tokens; exactly one of its tokens is the mask token.
pub(super) fn encode(
    table: &Table,
    template: &Cloze,
    label: &LabelField,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let mask = tokenizer.special_id("mask_token")?;
    let insert = [(
        Cloze::mask_name(),
        tokenizer.special_tokens()["mask_token"].clone(),
    )];
    let text = with_spans(template.pieces(), table, &insert)?;
    let target = target(table, label)?;
    Examples::of_rows(table, |row| {
        let (text, columns) = text(row)?;
        let mut alignment = tokenizer.align(&text, true)?;
        if alignment.ids.iter().filter(|&&id| id == mask).count() != 1 {
            return Err(DataError::SeveralMasks {
                path: table.path().to_owned(),
                row: row + 1,
            });
        }
        let removed = shorten(&mut alignment, &columns, max_length);
        if alignment.ids.len() > max_length {
            return Err(DataError::TemplateTooLong {
                path: table.path().to_owned(),
                row: row + 1,
                length: alignment.ids.len(),
                max_length,
            });
        }
        let example = Example {
            type_ids: vec![0; alignment.ids.len()],
            ids: alignment.ids,
            target: target(row),
        };
        Ok((Some(example), removed))
    })
}

/// Removes tokens of the columns until `max_length` is reached or nothing of them is left; returns
/// how many.
fn shorten(alignment: &mut Alignment, columns: &[Range<usize>], max_length: usize) -> usize {
    let excess = alignment.ids.len().saturating_sub(max_length);
    let of_column = |column: &Range<usize>| {
        let within = |(start, end): (usize, usize)| {
            start < end && end > column.start && start < column.end && end <= column.end
        };
        let tokens = alignment.offsets.iter().enumerate();
        let tokens = tokens.filter(|(_, offsets)| within(**offsets));
        tokens.map(|(token, _)| token).collect::<Vec<usize>>()
    };
    let mut tokens: Vec<Vec<usize>> = columns.iter().map(of_column).collect();
    let mut removed = vec![false; alignment.ids.len()];
    let mut count = 0;
    while count < excess {
        let longest = tokens.iter_mut().rev().max_by_key(|tokens| tokens.len());
        let Some(token) = longest.and_then(Vec::pop) else {
            break;
        };
        removed[token] = true;
        count += 1;
    }
    let mut gone = removed.iter();
    alignment.ids.retain(|_| gone.next() == Some(&false));
    let mut gone = removed.iter();
    alignment.offsets.retain(|_| gone.next() == Some(&false));
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_column_is_shortened_and_the_template_never() {
        // "aaaa bb M": four tokens of one column, two of another, and what the template has.
        let offsets = [
            (0, 0),
            (0, 1),
            (1, 2),
            (2, 3),
            (3, 4),
            (5, 6),
            (6, 7),
            (8, 9),
            (0, 0),
        ];
        let alignment = || Alignment {
            ids: (0..9).collect(),
            offsets: offsets.to_vec(),
        };
        let columns = [0..4, 5..7];
        for (max_length, ids) in [
            (9, vec![0, 1, 2, 3, 4, 5, 6, 7, 8]),
            (7, vec![0, 1, 2, 5, 6, 7, 8]),
            (5, vec![0, 1, 5, 7, 8]),
            (3, vec![0, 7, 8]),
            (2, vec![0, 7, 8]),
        ] {
            let mut found = alignment();
            let removed = shorten(&mut found, &columns, max_length);
            assert_eq!(found.ids, ids, "{max_length}");
            assert_eq!((removed, found.offsets.len()), (9 - ids.len(), ids.len()));
        }
    }
}
