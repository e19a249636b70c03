//! Layouts of columns that public data sets have, by which data is recognized.
//!
//! A task lists the layouts that it can read. Where no input is named, the one layout whose columns
//! a file has is taken and said in the log; a file that fits several is an error that lists them.

use serde_json::Value as Json;

use crate::error::DataError;
use crate::fields::Columns;
use crate::prompt::Prompt;
use crate::table::Table;

/// A layout of columns that public data sets have.
#[derive(Debug)]
pub struct Layout {
    /// What it is called.
    pub name: &'static str,
    /// The columns that say the same.
    pub columns: fn() -> Columns,
}

/// A text or a pair of texts: the columns of GLUE, by `task_to_keys` of the example `run_glue.py`
/// of `transformers`, and `text`.
pub static TEXTS_AND_PAIRS: &[Layout] = &[
    PLAIN_TEXT,
    Layout {
        name: "sentences",
        columns: || Columns::of_texts(&["sentence"]),
    },
    Layout {
        name: "pairs of sentences",
        columns: || Columns::of_texts(&["sentence1", "sentence2"]),
    },
    Layout {
        name: "premises and hypotheses",
        columns: || Columns::of_texts(&["premise", "hypothesis"]),
    },
    Layout {
        name: "pairs of questions",
        columns: || Columns::of_texts(&["question1", "question2"]),
    },
    Layout {
        name: "questions and sentences",
        columns: || Columns::of_texts(&["question", "sentence"]),
    },
];

/// Plain text.
pub const PLAIN_TEXT: Layout = Layout {
    name: "plain text",
    columns: || Columns::of_texts(&["text"]),
};

/// Text, chats and instructions for language models.
pub static DOCUMENTS: &[Layout] = &[
    PLAIN_TEXT,
    Layout {
        name: "chat messages",
        columns: || Columns {
            messages_column: Some("messages".to_owned()),
            ..Columns::default()
        },
    },
    Layout {
        name: "ShareGPT's conversations",
        columns: || Columns {
            messages_column: Some("conversations".to_owned()),
            ..Columns::default()
        },
    },
    Layout {
        name: "Alpaca's instructions with their prompt",
        columns: || Columns {
            prompt_template: Some(Prompt::ALPACA.to_owned()),
            completion_column: Some("output".to_owned()),
            ..Columns::default()
        },
    },
    Layout {
        name: "prompts and completions",
        columns: || Columns {
            prompt_column: vec!["prompt".to_owned()],
            completion_column: Some("completion".to_owned()),
            ..Columns::default()
        },
    },
];

impl Columns {
    /// These text columns, and none else.
    pub fn of_texts(names: &[&str]) -> Self {
        Self {
            text_columns: names.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The same with a label.
    #[must_use]
    pub fn with_label(mut self, name: &str) -> Self {
        self.label_column = Some(name.to_owned());
        self
    }

    /// The columns as a table has them, if no input is named: those of the one layout that is
    /// there, which is said in the log. Of a layout and a smaller one within it, the larger is
    /// taken. A label that is named stays. If no layout is there, nothing is named either.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the table has the columns of several layouts.
    pub fn recognized(&self, table: &Table, layouts: &[Layout]) -> Result<Self, DataError> {
        if self.name_an_input() {
            return Ok(self.clone());
        }
        let mut found = Vec::new();
        for layout in layouts {
            let columns = (layout.columns)();
            let known_by = columns.known_by()?;
            if known_by.iter().all(|name| table.has_column(name)) {
                found.push((layout, columns, known_by));
            }
        }
        let within = |small: &[String], large: &[String]| {
            small.len() < large.len() && small.iter().all(|name| large.contains(name))
        };
        let largest = |(_, _, names): &&(&Layout, Self, Vec<String>)| {
            !found.iter().any(|(_, _, other)| within(names, other))
        };
        match found.iter().filter(largest).collect::<Vec<_>>().as_slice() {
            [] => Ok(self.clone()),
            [(layout, columns, _)] => {
                let mut columns = columns.clone();
                if self.names_a_label() {
                    columns.label_column.clone_from(&self.label_column);
                    columns.label_columns.clone_from(&self.label_columns);
                }
                let used = columns.named()?;
                if table.column_names().count() > 1 {
                    let unused = table.column_names();
                    let unused = unused.filter(|name| !used.iter().any(|used| used == name));
                    tracing::info!(
                        file = %table.path().display(),
                        unused_columns = ?unused.collect::<Vec<_>>(),
                        "no columns are named; the file is read as {} ({})",
                        layout.name,
                        columns.flags()
                    );
                }
                Ok(columns)
            }
            several => {
                let several = several.iter();
                let several = several
                    .map(|(layout, columns, _)| format!("{} ({})", layout.name, columns.flags()));
                Err(DataError::Columns {
                    reason: format!(
                        "`{}` may be read in several ways, so say how: {}",
                        table.path().display(),
                        several.collect::<Vec<_>>().join("; ")
                    ),
                })
            }
        }
    }

    /// The columns that are to be read from a file before [`Columns::recognized`] is known.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the prompt template is invalid.
    pub fn to_read(&self, layouts: &[Layout]) -> Result<Vec<String>, DataError> {
        let mut names = self.named()?;
        if !self.name_an_input() {
            for layout in layouts {
                names.extend((layout.columns)().named()?);
            }
        }
        Ok(names)
    }

    /// Whether anything but a label is configured.
    fn name_an_input(&self) -> bool {
        let without_label = Self {
            label_column: None,
            label_columns: Vec::new(),
            ..self.clone()
        };
        without_label != Self::default()
    }

    fn names_a_label(&self) -> bool {
        self.label_column.is_some() || !self.label_columns.is_empty()
    }

    /// The columns without which a file does not have this layout.
    fn known_by(&self) -> Result<Vec<String>, DataError> {
        if self.prompt_template.as_deref() == Some(Prompt::ALPACA) {
            // `input` is not in every file.
            return Ok(vec!["instruction".to_owned(), "output".to_owned()]);
        }
        let mut names = self.text_columns.clone();
        names.extend(self.prompt_column.iter().cloned());
        let others = [
            &self.label_column,
            &self.completion_column,
            &self.messages_column,
            &self.source_column,
            &self.target_column,
        ];
        names.extend(others.into_iter().flatten().cloned());
        Ok(names)
    }

    /// The flags that configure these columns.
    fn flags(&self) -> String {
        let settings = serde_json::to_value(self).unwrap_or_default();
        let settings = settings.as_object().into_iter().flatten();
        let flag = |(key, value): (&String, &Json)| {
            let value = match value {
                Json::Array(names) => {
                    let names = names.iter().filter_map(Json::as_str);
                    names.collect::<Vec<_>>().join(",")
                }
                other => other.as_str().unwrap_or_default().to_owned(),
            };
            (!value.is_empty()).then(|| format!("--{} {value}", key.replace('_', "-")))
        };
        settings.filter_map(flag).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fields;
    use crate::table::Value;

    fn table(names: &[&str]) -> Table {
        let cells = names
            .iter()
            .map(|name| ((*name).to_owned(), vec![Value::Null]));
        Table::from_columns("d.jsonl", cells).unwrap()
    }

    #[test]
    fn documents_are_recognized_by_their_columns() {
        let fields = |names: &[&str]| {
            let columns = Columns::default().recognized(&table(names), DOCUMENTS)?;
            columns.documents()
        };
        assert_eq!(
            fields(&["id", "conversations"]).unwrap(),
            Fields::Messages {
                messages: "conversations".into()
            }
        );
        let alpaca = Fields::PromptCompletion {
            prompt: Prompt::Alpaca,
            completion: "output".into(),
        };
        assert_eq!(fields(&["instruction", "input", "output"]).unwrap(), alpaca);
        assert_eq!(fields(&["output", "instruction"]).unwrap(), alpaca);
        let template = Columns {
            prompt_template: Some("alpaca".to_owned()),
            ..Columns::default()
        };
        assert_eq!(template.documents().unwrap(), alpaca);
        assert_eq!(
            template.named().unwrap(),
            ["instruction", "input", "output", "label"]
        );
        let error = fields(&["text", "instruction", "output"]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("--text-columns text"), "{error}");
        assert!(
            error.contains("--prompt-template alpaca --completion-column output"),
            "{error}"
        );
        // What is configured is not replaced.
        let configured = Columns::of_texts(&["b"]);
        let recognized = configured.recognized(&table(&["text"]), DOCUMENTS).unwrap();
        assert_eq!(recognized, configured);
    }

    #[test]
    fn texts_and_pairs_are_recognized_and_a_named_label_stays() {
        let recognized =
            |columns: &Columns, names: &[&str]| columns.recognized(&table(names), TEXTS_AND_PAIRS);
        let none = Columns::default();
        assert_eq!(
            recognized(&none, &["idx", "label", "text"]).unwrap(),
            Columns::of_texts(&["text"])
        );
        let mood = Columns::default().with_label("mood");
        assert_eq!(
            recognized(&mood, &["sentence2", "sentence1", "mood"]).unwrap(),
            Columns::of_texts(&["sentence1", "sentence2"]).with_label("mood")
        );
        // The larger layout, of which a smaller one is a part.
        assert_eq!(
            recognized(&none, &["question", "sentence"]).unwrap(),
            Columns::of_texts(&["question", "sentence"])
        );
        let error = recognized(&none, &["text", "sentence"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--text-columns text"), "{error}");
        assert!(error.contains("--text-columns sentence"), "{error}");
        assert_eq!(recognized(&none, &["tweet", "label"]).unwrap(), none);
    }
}
