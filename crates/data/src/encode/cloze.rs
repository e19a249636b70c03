//! A template with texts and one hidden word.
//!
//! The whole text is tokenized at once, as the model reads it: with a mask token in the word's
//! place, or up to this place. Soft tokens stand in front of the token that follows theirs in the
//! text. What is too long loses tokens of its columns, from the end of the longest one first, and
//! never of the template.

use std::ops::Range;

use super::texts::target;
use crate::cloze::{Cloze, WordPlace};
use crate::error::DataError;
use crate::example::{Example, SOFT};
use crate::examples::Examples;
use crate::fields::LabelField;
use crate::prompt::{Spanned, before_blank, with_spans};
use crate::table::Table;
use crate::tokenizer::{Alignment, Mask, Tokenizer};

/// Tokenizes each row with special tokens; exactly one of its tokens is the mask token, if the
/// model reads one.
pub(super) fn encode(
    table: &Table,
    (template, place): (&Cloze, WordPlace),
    label: &LabelField,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    let mask = match place {
        WordPlace::Mask | WordPlace::DecoderStart => Some(tokenizer.mask()?),
        WordPlace::TextEnd => None,
    };
    let spelling = mask.as_ref().map_or("", |mask| mask.token);
    let insert = [
        (Cloze::mask_name(), spelling.to_owned()),
        (Cloze::soft_name(), String::new()),
    ];
    let text = with_spans(template.pieces(), table, &insert)?;
    let target = target(table, label)?;
    Examples::of_rows(table, |row| {
        let Spanned {
            text,
            columns,
            inserted,
        } = text(row)?;
        let read = match mask {
            Some(_) => &text[..],
            None => before_blank(&text),
        };
        let mut alignment = tokenizer.align(read, true)?;
        let masks = |mask: &Mask<'_>| alignment.ids.iter().filter(|&&id| id == mask.id).count();
        if mask.as_ref().is_some_and(|mask| masks(mask) != 1) {
            return Err(DataError::SeveralMasks {
                path: table.path().to_owned(),
                row: row + 1,
            });
        }
        if mask.is_none() {
            remove_ending(&mut alignment);
        }
        let soft = inserted
            .iter()
            .filter(|(name, _)| *name == Cloze::soft_name());
        for &(_, place) in soft.rev() {
            put_soft_token(&mut alignment, place);
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

/// Removes what the tokenizer adds behind a text, since the word is to follow the text itself.
fn remove_ending(alignment: &mut Alignment) {
    let is_added = |&(start, end): &(usize, usize)| start == end;
    while alignment.ids.len() > 1 && alignment.offsets.last().is_some_and(is_added) {
        alignment.ids.pop();
        alignment.offsets.pop();
    }
}

/// Puts a soft token in front of the token in which, or before which, a byte of the text is; behind
/// the text's last one if there is none.
fn put_soft_token(alignment: &mut Alignment, place: usize) {
    let is_of_text = |(start, end): (usize, usize)| start < end;
    let offsets = alignment.offsets.iter().enumerate();
    let mut of_text = offsets.filter(|(_, offsets)| is_of_text(**offsets));
    let behind = of_text
        .clone()
        .next_back()
        .map_or(0, |(token, _)| token + 1);
    let at = of_text.find(|(_, (_, end))| *end > place);
    let at = at.map_or(behind, |(token, _)| token);
    alignment.ids.insert(at, SOFT);
    alignment.offsets.insert(at, (place, place));
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
    fn soft_tokens_stand_where_the_template_has_them() {
        // "ab cd", of which a tokenizer counts the blank to the second word.
        let alignment = || Alignment {
            ids: vec![1, 2, 3, 4],
            offsets: vec![(0, 0), (0, 2), (2, 5), (0, 0)],
        };
        for (places, ids) in [
            (vec![0], vec![1, SOFT, 2, 3, 4]),
            (vec![2, 2], vec![1, 2, SOFT, SOFT, 3, 4]),
            (vec![3], vec![1, 2, SOFT, 3, 4]),
            (vec![0, 5], vec![1, SOFT, 2, 3, SOFT, 4]),
        ] {
            let mut found = alignment();
            places
                .iter()
                .rev()
                .for_each(|&place| put_soft_token(&mut found, place));
            assert_eq!(found.ids, ids, "{places:?}");
        }
    }

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
