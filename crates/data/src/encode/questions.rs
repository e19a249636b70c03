//! Questions about a text that has the answer, as `run_qa.py` of transformers encodes them.
//!
//! A text that is too long is read in windows, which share `doc_stride` tokens with the next. Each
//! is an example of its own, with the question in front. Where a window does not hold the whole
//! answer, or there is none, the example's answer is its first token.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::examples::Examples;
use crate::table::{Answer, Table};
use crate::tokenizer::{Window, Windows};

/// The columns of questions.
pub(super) struct QuestionColumns<'a> {
    pub(super) question: &'a str,
    pub(super) context: &'a str,
    /// None where answers are unknown.
    pub(super) answers: Option<&'a str>,
}

/// Tokenizes each row: an example for each window.
pub(super) fn encode(
    table: &Table,
    columns: &QuestionColumns<'_>,
    windows: &Windows,
) -> Result<Examples, DataError> {
    table.all_texts(columns.question)?;
    let contexts = table.all_texts(columns.context)?;
    let (moved, first_moved) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let examples = Examples::of_rows(table, |row| {
        let texts = (columns.question, columns.context);
        let windows = windows_of_row(table, texts, row, windows)?;
        let answers = columns.answers.map(|column| table.answers(column, row));
        let answers = answers.transpose()?;
        let span = match answers.as_ref().map(|answers| answers.first()) {
            Some(Some(answer)) => {
                let context = contexts.get(row);
                let found = locate(context, answer).ok_or_else(|| DataError::SpanMismatch {
                    path: table.place(row).0,
                    row: table.place(row).1,
                    answer: answer.text.clone(),
                    start: answer.start,
                })?;
                if found.moved {
                    moved.fetch_add(1, Ordering::Relaxed);
                    first_moved.fetch_min(row, Ordering::Relaxed);
                }
                Some(found.characters)
            }
            _ => None,
        };
        let examples = windows.into_iter().map(move |window| Example {
            target: match answers {
                Some(_) => Target::Span(window.span(span)),
                None => Target::Absent,
            },
            ids: window.ids,
            type_ids: window.type_ids,
        });
        Ok((examples.collect::<Vec<_>>(), 0))
    })?;
    let rows = moved.into_inner();
    if rows > 0 {
        tracing::warn!(
            file = %table.path().display(),
            rows,
            first_row = first_moved.into_inner() + 1,
            "answers that are not where their `answer_start` says: the nearest place in the text \
             that has them is used"
        );
    }
    Ok(examples)
}

/// The windows of a row (from 0) whose question and text are in these columns.
///
/// # Errors
/// Those of the columns and the tokenizer; [`DataError::QuestionTooLong`];
/// [`DataError::EmptyText`] for a text without any token.
pub fn windows_of_row(
    table: &Table,
    (question, context): (&str, &str),
    row: usize,
    windows: &Windows,
) -> Result<Vec<Window>, DataError> {
    let (questions, contexts) = (table.all_texts(question)?, table.all_texts(context)?);
    let question = questions.get(row).trim_start();
    let found = windows.of(question, contexts.get(row))?;
    let found = found.map_err(|tokens| DataError::QuestionTooLong {
        path: table.place(row).0,
        row: table.place(row).1,
        tokens,
        max_length: windows.max_length,
        doc_stride: windows.doc_stride,
    })?;
    match found.is_empty() {
        true => Err(table.empty_text(row)),
        false => Ok(found),
    }
}

/// Where an answer is in its text.
struct Found {
    characters: (usize, usize),
    /// Whether it is elsewhere than its row says.
    moved: bool,
}

/// The place of an answer in its text: where its row says, blanks around it left out, or else the
/// nearest that has the same words.
fn locate(context: &str, answer: &Answer) -> Option<Found> {
    let (text, trimmed) = (answer.text.as_str(), answer.text.trim());
    let blanks = text.len() - text.trim_start().len();
    let byte = |start: usize| {
        let ends = context.char_indices().map(|(byte, _)| byte);
        ends.chain([context.len()]).nth(start)
    };
    let said = answer.start.and_then(byte);
    let at = |start: usize| {
        let first = context[..start].chars().count();
        (first, first + trimmed.chars().count())
    };
    if trimmed.is_empty() {
        return None;
    }
    if let Some(start) = said
        && context[start..].starts_with(text)
    {
        return Some(Found {
            characters: at(start + blanks),
            moved: false,
        });
    }
    let places = context.match_indices(trimmed).map(|(place, _)| place);
    let distance = |place: &usize| said.map_or(*place, |said| said.abs_diff(*place));
    places.min_by_key(distance).map(|place| Found {
        characters: at(place),
        moved: answer.start.is_some() && said.is_none_or(|said| said.abs_diff(place) > blanks),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_where_they_are_said_to_be_or_nearest_to_it() {
        let context = "é was here, and was there";
        let find = |text: &str, start: Option<usize>| {
            let answer = Answer {
                text: text.to_owned(),
                start,
            };
            let found = locate(context, &answer)?;
            Some((found.characters, found.moved))
        };
        // Characters are counted, not bytes.
        assert_eq!(find("was", Some(2)), Some(((2, 5), false)));
        assert_eq!(find("was", Some(16)), Some(((16, 19), false)));
        assert_eq!(find(" was ", Some(1)), Some(((2, 5), false)));
        assert_eq!(find("was", Some(14)), Some(((16, 19), true)));
        assert_eq!(find("was", Some(999)), Some(((2, 5), true)));
        assert_eq!(find("was", None), Some(((2, 5), false)));
        assert_eq!(find("were", Some(2)), None);
        assert_eq!(find(" ", Some(1)), None);
    }
}
