//! Cells that hold the answers to a question.

use serde::{Deserialize, Deserializer};

use super::{Cell, Table};
use crate::error::DataError;

/// An answer that is a part of a text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Answer {
    /// Its words.
    pub text: String,
    /// Where it begins, counted in characters from 0; the first place that has it where not given,
    /// or negative, as in CMRC 2018.
    #[serde(default, rename = "answer_start", deserialize_with = "position")]
    pub start: Option<usize>,
}

/// A position; none where it is negative.
fn position<'de, D: Deserializer<'de>>(start: D) -> Result<Option<usize>, D::Error> {
    let start = Option::<i64>::deserialize(start)?;
    Ok(start.and_then(|start| usize::try_from(start).ok()))
}

/// The layouts of a cell.
#[derive(Deserialize)]
#[serde(untagged)]
enum Layout {
    /// SQuAD's own files.
    List(Vec<Answer>),
    /// Data sets on the hub.
    Columns {
        text: Vec<String>,
        answer_start: Vec<i64>,
    },
    Texts(Vec<String>),
}

impl Table {
    /// The answers in a cell (`row` from 0): a list of objects with `text` and `answer_start`, an
    /// object with a list of each, a list of texts, or a text. None in an empty list, and where
    /// there is no value.
    ///
    /// # Errors
    /// As [`Table::column`]; [`DataError::WrongType`] for another cell.
    pub fn answers(&self, name: &str, row: usize) -> Result<Vec<Answer>, DataError> {
        let expected = "a list of answers, each with `text` and `answer_start`";
        let wrong = || self.wrong_type(row, name, expected);
        let of_text = |text: String| Answer { text, start: None };
        let layout = match self.cells(name)?.cell(row) {
            Cell::Null => return Ok(Vec::new()),
            Cell::Text(text) => return Ok(vec![of_text(text.to_owned())]),
            Cell::Json(text) => serde_json::from_str(text).map_err(|_| wrong())?,
            _ => return Err(wrong()),
        };
        match layout {
            Layout::List(answers) => Ok(answers),
            Layout::Columns { text, answer_start } if text.len() == answer_start.len() => {
                let answers = text.into_iter().zip(answer_start);
                let answer = |(text, start)| Answer {
                    text,
                    start: usize::try_from(start).ok(),
                };
                Ok(answers.map(answer).collect())
            }
            Layout::Columns { .. } => Err(wrong()),
            Layout::Texts(texts) => Ok(texts.into_iter().map(of_text).collect()),
        }
    }
}
