//! What a model is to write about: the prompts of a table, each once, with the texts that would be
//! right.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::error::DataError;
use crate::fields::Fields;
use crate::messages::messages;
use crate::prompt::Prompt;
use crate::table::{Cell, Table};
use crate::tokenizer::Tokenizer;

/// A prompt of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritingPrompt {
    /// The prompt as the model reads it.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The texts that would be right: those of all rows with this prompt, in their order; none if
    /// the table has no column of them.
    pub references: Vec<String>,
    /// The first row with this prompt, from 0.
    pub row: usize,
}

impl WritingPrompt {
    /// The different prompts of a table, in the order of their first rows: the prompts of
    /// completions, the sources of targets, conversations up to their last answer, or plain texts.
    ///
    /// `references` is the column of the texts that would be right, each cell a text or a list of
    /// texts; if not given, these are the completions, the targets or the last answers. Sources
    /// lose what is over `max_length` tokens, as in training.
    ///
    /// # Errors
    /// Those of the columns, the tokenizer and the chat template; [`DataError::WrongType`] for a
    /// reference that is no text; [`DataError::Columns`] for a task whose model writes nothing;
    /// [`DataError::EmptyText`] for a prompt without any token.
    pub fn of_table(
        table: &Table,
        fields: &Fields,
        tokenizer: &Tokenizer,
        references: Option<&str>,
        max_length: usize,
    ) -> Result<Vec<Self>, DataError> {
        let mut prompts: Vec<Self> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut add = |row, text: String, ids: Vec<u32>, references: Vec<String>| {
            if ids.is_empty() {
                return Err(table.empty_text(row));
            }
            let place = *places.entry(text.clone()).or_insert(prompts.len());
            match prompts.get_mut(place) {
                Some(prompt) => prompt.references.extend(references),
                None => prompts.push(Self {
                    text,
                    ids,
                    references,
                    row,
                }),
            }
            Ok(())
        };
        let column = |own: Option<&str>| match references {
            Some(column) => Some(column.to_owned()),
            // Data to write about need not have the texts that a model learned from.
            None => own.filter(|own| table.has_column(own)).map(str::to_owned),
        };
        let texts = |prompt: &Prompt,
                     own: Option<&str>,
                     limit: Option<usize>,
                     add: &mut dyn FnMut(
            usize,
            String,
            Vec<u32>,
            Vec<String>,
        ) -> Result<(), DataError>| {
            let prompts = prompt.of_rows(table)?;
            let column = column(own);
            for row in 0..table.len() {
                let text = prompts(row)?.into_owned();
                let ids = match limit {
                    Some(_) => tokenizer.encode(&text, None, limit)?.ids,
                    None => tokenizer.encode_prompt(&text)?,
                };
                add(row, text, ids, texts_of(table, column.as_deref(), row)?)?;
            }
            Ok::<_, DataError>(())
        };
        match fields {
            Fields::PlainText { text } => {
                texts(&Prompt::from(text.as_str()), None, None, &mut add)?;
            }
            Fields::PromptCompletion { prompt, completion } => {
                texts(prompt, Some(completion), None, &mut add)?;
            }
            Fields::SourceTarget { source, target } => {
                let source = Prompt::from(source.as_str());
                texts(&source, Some(target), Some(max_length), &mut add)?;
            }
            Fields::Messages { messages: column } => {
                let template = tokenizer.chat_template()?;
                for row in 0..table.len() {
                    let mut turns = messages(table, column, row)?;
                    let is_answer = |turn: &Json| turn["role"] == "assistant";
                    let answer = turns.pop_if(|turn| is_answer(turn));
                    let answer = answer.and_then(|turn| Some(turn["content"].as_str()?.to_owned()));
                    let rendered = template.render(&turns, true);
                    let text = rendered
                        .map_err(|error| table.conversation(row, column, error.to_string()))?;
                    let right = match references {
                        Some(_) => texts_of(table, references, row)?,
                        None => answer.into_iter().collect(),
                    };
                    let ids = tokenizer.align(&text, false)?.ids;
                    add(row, text, ids, right)?;
                }
            }
            _ => {
                let reason = "these columns are of a task that writes no text".to_owned();
                return Err(DataError::Columns { reason });
            }
        }
        Ok(prompts)
    }
}

/// The texts of a cell: one, or a list of them.
fn texts_of(table: &Table, column: Option<&str>, row: usize) -> Result<Vec<String>, DataError> {
    let Some(column) = column else {
        return Ok(Vec::new());
    };
    let wrong_type = || table.wrong_type(row, column, "a text or a list of texts");
    match table.cells(column)?.cell(row) {
        Cell::Text(text) => Ok(vec![text.to_owned()]),
        Cell::Json(list) => serde_json::from_str(list).map_err(|_| wrong_type()),
        _ => Err(wrong_type()),
    }
}
