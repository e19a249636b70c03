//! The text in front of a completion: columns, a template, or Alpaca's prompt.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::DataError;
use crate::table::{Cell, Column, Table};

/// What several columns of a prompt are joined with.
const SEPARATOR: &str = "\n\n";

/// Where a row's prompt comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// One column as it is, or several joined by a blank line, without those that are empty or
    /// null.
    Columns(Vec<String>),
    /// A text with columns in it; empty where they are null.
    Template(Vec<Piece>),
    /// Stanford Alpaca's prompt of the columns `instruction` and, if it is there and not empty,
    /// `input`.
    Alpaca,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A text.
    Text(String),
    /// The text of a column.
    Column(String),
}

impl From<&str> for Prompt {
    /// One column.
    fn from(column: &str) -> Self {
        Self::Columns(vec![column.to_owned()])
    }
}

impl Prompt {
    /// The name of Alpaca's prompt among templates.
    pub(crate) const ALPACA: &str = "alpaca";

    /// A template as users write it: `{column}` stands for a column, `\n`, `\t` and `\\` for a
    /// newline, a tab and a backslash, `{{` and `}}` for braces; or the word `alpaca`.
    ///
    /// # Errors
    /// [`DataError::Columns`] if a brace has no partner, an escape does not exist, or there is no
    /// column in it.
    ///
    /// ```
    /// use epiphyte_data::{Piece, Prompt};
    ///
    /// let pieces = vec![Piece::Text("Q: ".into()), Piece::Column("question".into())];
    /// assert_eq!(Prompt::template("Q: {question}")?, Prompt::Template(pieces));
    /// # Ok::<(), epiphyte_data::DataError>(())
    /// ```
    pub fn template(template: &str) -> Result<Self, DataError> {
        if template == Self::ALPACA {
            return Ok(Self::Alpaca);
        }
        let invalid = |problem: String| DataError::Columns {
            reason: format!("the prompt template `{template}` {problem}"),
        };
        let (mut pieces, mut text) = (Vec::new(), String::new());
        let mut characters = template.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '{' | '}' if characters.next_if_eq(&character).is_some() => text.push(character),
                '{' => {
                    let mut name = String::new();
                    loop {
                        match characters.next() {
                            Some('}') => break,
                            Some(character) => name.push(character),
                            None => {
                                let problem = "has a `{` without `}`: write `{{` for a brace";
                                return Err(invalid(problem.to_owned()));
                            }
                        }
                    }
                    if !text.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut text)));
                    }
                    pieces.push(Piece::Column(name));
                }
                '}' => {
                    let problem = "has a `}` without `{`: write `}}` for a brace";
                    return Err(invalid(problem.to_owned()));
                }
                '\\' => text.push(match characters.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('\\') => '\\',
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        let known = r"use `\n`, `\t`, or `\\` for a backslash";
                        return Err(invalid(format!("has `\\{other}`: {known}")));
                    }
                }),
                character => text.push(character),
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        if !pieces.iter().any(|it| matches!(it, Piece::Column(_))) {
            return Err(invalid(
                "names no column: write it as `{column}`".to_owned(),
            ));
        }
        Ok(Self::Template(pieces))
    }

    /// The columns that are read.
    pub fn columns(&self) -> Vec<&str> {
        match self {
            Self::Columns(columns) => columns.iter().map(String::as_str).collect(),
            Self::Template(pieces) => {
                let columns = pieces.iter().filter_map(|piece| match piece {
                    Piece::Column(column) => Some(column.as_str()),
                    Piece::Text(_) => None,
                });
                columns.collect()
            }
            Self::Alpaca => vec!["instruction", "input"],
        }
    }

    /// The prompt of one text that stands in no table: in the place of the template's column, or
    /// as Alpaca's instruction without input. None if a template has several columns.
    ///
    /// ```
    /// use epiphyte_data::Prompt;
    ///
    /// let prompt = Prompt::template(r"Q: {question}\nA:")?;
    /// assert_eq!(prompt.of_text("Why?").as_deref(), Some("Q: Why?\nA:"));
    /// # Ok::<(), epiphyte_data::DataError>(())
    /// ```
    pub fn of_text(&self, text: &str) -> Option<String> {
        let mut columns = self.columns();
        columns.dedup();
        match self {
            Self::Columns(_) => Some(text.to_owned()),
            Self::Alpaca => Some(alpaca(text, "")),
            Self::Template(pieces) if columns.len() == 1 => {
                let pieces = pieces.iter().map(|piece| match piece {
                    Piece::Text(piece) => piece,
                    Piece::Column(_) => text,
                });
                Some(pieces.collect())
            }
            Self::Template(_) => None,
        }
    }

    /// The prompt of a row, by its number from 0.
    ///
    /// # Errors
    /// Those of [`Table::column`]; [`DataError::WrongType`] for a cell that is no text, of one
    /// column here, of several when the row is asked for.
    pub(crate) fn of_rows<'t>(&'t self, table: &'t Table) -> Result<OfRows<'t>, DataError> {
        Ok(match self {
            Self::Columns(columns) => match columns.as_slice() {
                [column] => {
                    let texts = table.all_texts(column)?;
                    Box::new(move |row| Ok(texts.get(row).into()))
                }
                columns => {
                    let columns: Vec<Source<'_>> = sources(table, columns)?;
                    Box::new(move |row| {
                        let texts = columns.iter().map(|column| column.text(row));
                        let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
                        texts.retain(|text| !text.is_empty());
                        Ok(texts.join(SEPARATOR).into())
                    })
                }
            },
            Self::Template(pieces) => {
                let columns = self.columns().into_iter().map(str::to_owned);
                let columns = sources(table, &columns.collect::<Vec<_>>())?;
                Box::new(move |row| {
                    let (mut text, mut columns) = (String::new(), columns.iter());
                    for piece in pieces {
                        match piece {
                            Piece::Text(piece) => text += piece,
                            Piece::Column(_) => {
                                let column = columns.next().expect("each has its source");
                                text += &column.text(row)?;
                            }
                        }
                    }
                    Ok(text.into())
                })
            }
            Self::Alpaca => {
                let instruction = Source::new(table, "instruction")?;
                let input = match table.has_column("input") {
                    true => Some(Source::new(table, "input")?),
                    false => None,
                };
                Box::new(move |row| {
                    let input = input.as_ref().map(|input| input.text(row)).transpose()?;
                    Ok(alpaca(&instruction.text(row)?, &input.unwrap_or_default()).into())
                })
            }
        })
    }
}

/// A template's text for each row, by its number from 0, with the byte ranges of its columns and
/// the places of what is inserted. `insert` are texts that stand for names instead of columns.
///
/// # Errors
/// As [`Prompt::of_rows`].
pub(crate) fn with_spans<'t>(
    pieces: &'t [Piece],
    table: &'t Table,
    insert: &'t [(&'static str, String)],
) -> Result<WithSpans<'t>, DataError> {
    let inserted = move |name: &str| insert.iter().find(|(known, _)| *known == name);
    let columns = pieces.iter().map(|piece| match piece {
        Piece::Column(name) if inserted(name).is_none() => Source::new(table, name).map(Some),
        _ => Ok(None),
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(Box::new(move |row| {
        let (mut text, mut spans, mut places) = (String::new(), Vec::new(), Vec::new());
        for (piece, column) in pieces.iter().zip(&columns) {
            match (piece, column) {
                (_, Some(column)) => {
                    let start = text.len();
                    text += &column.text(row)?;
                    spans.push(start..text.len());
                }
                (Piece::Text(piece), None) => text += piece,
                (Piece::Column(name), None) => {
                    if let Some((known, own)) = inserted(name) {
                        places.push((*known, text.len()));
                        text += own;
                    }
                }
            }
        }
        Ok(Spanned {
            text,
            columns: spans,
            inserted: places,
        })
    }))
}

/// A text of a template.
pub(crate) struct Spanned {
    pub(crate) text: String,
    /// The byte ranges of its columns.
    pub(crate) columns: Vec<Range<usize>>,
    /// The names that were inserted, each with the byte at which it begins.
    pub(crate) inserted: Vec<(&'static str, usize)>,
}

/// A text for each row.
pub(crate) type WithSpans<'t> = Box<dyn Fn(usize) -> Result<Spanned, DataError> + Sync + 't>;

/// A text for each row, by its number from 0.
pub(crate) type OfRows<'t> = Box<dyn Fn(usize) -> Result<Cow<'t, str>, DataError> + Sync + 't>;

/// The prompt on which Stanford Alpaca was trained (`PROMPT_DICT` of its `train.py`).
fn alpaca(instruction: &str, input: &str) -> String {
    let (with_input, input) = match input {
        "" => ("", String::new()),
        input => (
            ", paired with an input that provides further context",
            format!("### Input:\n{input}\n\n"),
        ),
    };
    format!(
        "Below is an instruction that describes a task{with_input}. Write a response that \
         appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n{input}\
         ### Response:"
    )
}

/// A column whose cells become parts of a prompt.
struct Source<'t> {
    table: &'t Table,
    name: &'t str,
    column: &'t Column,
}

fn sources<'t>(table: &'t Table, names: &[String]) -> Result<Vec<Source<'t>>, DataError> {
    names.iter().map(|name| Source::new(table, name)).collect()
}

impl<'t> Source<'t> {
    fn new(table: &'t Table, name: &str) -> Result<Self, DataError> {
        let column = table.cells(name)?;
        let mut names = table.column_names();
        Ok(Self {
            table,
            name: names.find(|it| *it == name).unwrap_or_default(),
            column,
        })
    }

    /// The text of a row; numbers as they are spelled, nothing for null.
    fn text(&self, row: usize) -> Result<Cow<'t, str>, DataError> {
        Ok(match self.column.cell(row) {
            Cell::Null => Cow::Borrowed(""),
            Cell::Text(text) => Cow::Borrowed(text),
            Cell::Bool(value) => Cow::Owned(value.to_string()),
            Cell::Integer(number) => Cow::Owned(number.to_string()),
            Cell::Float(number) => Cow::Owned(number.to_string()),
            Cell::Json(_) => return Err(self.table.wrong_type(row, self.name, "a text")),
        })
    }
}

/// What a model reads of a prompt before it writes: all but one blank after a word at its end.
///
/// Most tokenizers make one token of a word and the blank before it, so that in training the blank
/// is part of what follows the prompt. A prompt whose tokens end in a blank of its own is one that
/// the model has not seen.
pub fn before_blank(prompt: &str) -> &str {
    match prompt.strip_suffix(' ') {
        Some(words) if !words.is_empty() && !words.ends_with(char::is_whitespace) => words,
        _ => prompt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Value;

    fn texts(prompt: &Prompt) -> Vec<String> {
        let text = |text: &str| Value::Text(text.to_owned());
        let columns = [
            ("instruction", vec![text("Sum up."), text("Count to 3.")]),
            ("input", vec![text("The fox runs."), Value::Null]),
            ("number", vec![Value::Integer(7), Value::Float(0.5)]),
        ];
        let columns = columns.map(|(name, cells)| (name.to_owned(), cells));
        let table = Table::from_columns("d.jsonl", columns).unwrap();
        let text = prompt.of_rows(&table).unwrap();
        let rows = 0..table.len();
        rows.map(|row| text(row).unwrap().into_owned()).collect()
    }

    #[test]
    fn one_blank_after_a_word_is_not_read() {
        assert_eq!(before_blank("A: "), "A:");
        for whole in ["", " ", "A:", "A:\n", "if x:\n    ", "A:\n ", "A:  "] {
            assert_eq!(before_blank(whole), whole);
        }
    }

    #[test]
    fn columns_are_joined_by_a_blank_line() {
        let both = Prompt::Columns(vec!["instruction".into(), "input".into()]);
        assert_eq!(texts(&both), ["Sum up.\n\nThe fox runs.", "Count to 3."]);
        assert_eq!(texts(&"instruction".into()), ["Sum up.", "Count to 3."]);
    }

    #[test]
    fn templates_have_columns_escapes_and_braces() {
        let template = Prompt::template(r"{{{instruction}}}\n[{input}]\\ {number}").unwrap();
        assert_eq!(
            texts(&template),
            ["{Sum up.}\n[The fox runs.]\\ 7", "{Count to 3.}\n[]\\ 0.5"]
        );
        assert_eq!(template.columns(), ["instruction", "input", "number"]);
        for (bad, word) in [
            ("{a", "without `}`"),
            ("a}", "without `{`"),
            ("a", "no column"),
        ] {
            let error = Prompt::template(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let error = Prompt::template(r"{a}\q").unwrap_err().to_string();
        assert!(error.contains(r"has `\q`"), "{error}");
    }

    #[test]
    fn alpaca_has_two_prompts() {
        let [with, without] = texts(&Prompt::template("alpaca").unwrap())
            .try_into()
            .unwrap();
        assert_eq!(
            with,
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nSum up.\n\n### Input:\nThe fox runs.\n\n### Response:"
        );
        assert_eq!(
            without,
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\nCount to 3.\n\n### Response:"
        );
    }
}
