//! Which columns of a file make an example.
//!
//! [`Columns`] holds the names that a user configures. [`Fields`] is one meaning of them; which one
//! a task needs is the task's decision, and each method of [`Columns`] checks one.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::labels::LabelSet;

/// Column names as a user configures them (`--text-columns`, `--label-column`, …).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Columns {
    /// One text column, or two for pairs of texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text_columns: Vec<String>,
    /// The class or number of a text; `label` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// The text before the part to learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_column: Option<String>,
    /// The part to learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_column: Option<String>,
    /// A list of `{"role": …, "content": …}` messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_column: Option<String>,
    /// The text that an encoder reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_column: Option<String>,
    /// The text that a decoder learns to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_column: Option<String>,
}

/// What the columns of a row are to an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// A text or a pair of texts, and what to predict for it.
    Texts {
        /// The column of the (first) text.
        text: String,
        /// The column of the second text of a pair.
        pair: Option<String>,
        /// What to predict.
        label: LabelField,
    },
    /// Plain text; every token counts for the loss.
    PlainText {
        /// The column.
        text: String,
    },
    /// A prompt and its completion; the tokens of the completion count for the loss.
    PromptCompletion {
        /// The column of the prompt.
        prompt: String,
        /// The column of the completion.
        completion: String,
    },
    /// A conversation; the tokens of the assistant's turns count for the loss.
    Messages {
        /// The column.
        messages: String,
    },
    /// A text for the encoder and one for the decoder; every token of the latter counts for the
    /// loss.
    SourceTarget {
        /// The column of the encoder's text.
        source: String,
        /// The column of the decoder's text.
        target: String,
    },
}

/// What to predict for a text or a pair of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelField {
    /// One of several classes.
    Class {
        /// The column.
        column: String,
        /// The classes.
        labels: LabelSet,
    },
    /// A number.
    Number {
        /// The column.
        column: String,
    },
    /// Unknown: no column is read, and the examples are for prediction only.
    Absent,
}

impl Columns {
    /// The column of the class or number; Hugging Face's name `label` if none is configured.
    pub fn label(&self) -> &str {
        self.label_column.as_deref().unwrap_or("label")
    }

    /// One text or a pair of texts, with `label`.
    ///
    /// # Errors
    /// [`DataError::Columns`] if there is not one text column or two, or if columns are configured
    /// that such an example does not have.
    pub fn texts(&self, label: LabelField) -> Result<Fields, DataError> {
        let needed = "one text column or two (`text_columns`), and a `label_column`";
        self.only(&["text_columns", "label_column"], needed)?;
        let (text, pair) = match self.text_columns.as_slice() {
            [text] => (text, None),
            [text, pair] => (text, Some(pair)),
            _ => return Err(unsuitable(needed)),
        };
        Ok(Fields::Texts {
            text: text.clone(),
            pair: pair.cloned(),
            label,
        })
    }

    /// One document a row: plain text (the column `text` if nothing is configured), a prompt and
    /// its completion, or a conversation.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the columns are not exactly those of one of the three.
    pub fn documents(&self) -> Result<Fields, DataError> {
        let needed = "either one text column (`text_columns`), or a `prompt_column` and a \
                      `completion_column`, or a `messages_column`";
        self.only(
            &[
                "text_columns",
                "prompt_column",
                "completion_column",
                "messages_column",
            ],
            needed,
        )?;
        let turns = (
            &self.prompt_column,
            &self.completion_column,
            &self.messages_column,
        );
        match (self.text_columns.as_slice(), turns) {
            ([], (None, None, None)) => Ok(Fields::PlainText {
                text: "text".to_owned(),
            }),
            ([text], (None, None, None)) => Ok(Fields::PlainText { text: text.clone() }),
            ([], (Some(prompt), Some(completion), None)) => Ok(Fields::PromptCompletion {
                prompt: prompt.clone(),
                completion: completion.clone(),
            }),
            ([], (None, None, Some(messages))) => Ok(Fields::Messages {
                messages: messages.clone(),
            }),
            _ => Err(unsuitable(needed)),
        }
    }

    /// A source and a target text.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the columns are not exactly these two.
    pub fn source_target(&self) -> Result<Fields, DataError> {
        let needed = "a `source_column` and a `target_column`";
        self.only(&["source_column", "target_column"], needed)?;
        match (&self.source_column, &self.target_column) {
            (Some(source), Some(target)) => Ok(Fields::SourceTarget {
                source: source.clone(),
                target: target.clone(),
            }),
            _ => Err(unsuitable(needed)),
        }
    }

    /// Refuses a configured column whose setting is not among `allowed`.
    fn only(&self, allowed: &[&str], needed: &str) -> Result<(), DataError> {
        let settings = [
            ("text_columns", !self.text_columns.is_empty()),
            ("label_column", self.label_column.is_some()),
            ("prompt_column", self.prompt_column.is_some()),
            ("completion_column", self.completion_column.is_some()),
            ("messages_column", self.messages_column.is_some()),
            ("source_column", self.source_column.is_some()),
            ("target_column", self.target_column.is_some()),
        ];
        match settings
            .iter()
            .find(|(setting, given)| *given && !allowed.contains(setting))
        {
            Some((setting, _)) => Err(DataError::Columns {
                reason: format!("`{setting}` has no use here: give {needed}"),
            }),
            None => Ok(()),
        }
    }
}

fn unsuitable(needed: &str) -> DataError {
    DataError::Columns {
        reason: format!("give {needed}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &[&str], others: &[(&str, &str)]) -> Columns {
        let other = |setting| {
            let found = others.iter().find(|(name, _)| *name == setting);
            found.map(|(_, column)| (*column).to_owned())
        };
        Columns {
            text_columns: text.iter().map(|&name| name.to_owned()).collect(),
            label_column: other("label"),
            prompt_column: other("prompt"),
            completion_column: other("completion"),
            messages_column: other("messages"),
            source_column: other("source"),
            target_column: other("target"),
        }
    }

    #[test]
    fn columns_mean_one_thing() {
        let texts = columns(&["a", "b"], &[]).texts(LabelField::Absent).unwrap();
        assert_eq!(
            texts,
            Fields::Texts {
                text: "a".into(),
                pair: Some("b".into()),
                label: LabelField::Absent
            }
        );
        assert_eq!(Columns::default().label(), "label");
        assert_eq!(
            Columns::default().documents().unwrap(),
            Fields::PlainText {
                text: "text".into()
            }
        );
        assert_eq!(
            columns(&[], &[("prompt", "p"), ("completion", "c")])
                .documents()
                .unwrap(),
            Fields::PromptCompletion {
                prompt: "p".into(),
                completion: "c".into()
            }
        );
        assert_eq!(
            columns(&[], &[("source", "s"), ("target", "t")])
                .source_target()
                .unwrap(),
            Fields::SourceTarget {
                source: "s".into(),
                target: "t".into()
            }
        );
    }

    #[test]
    fn columns_that_contradict_are_refused() {
        let texts = |columns: &Columns| columns.texts(LabelField::Absent);
        for (result, word) in [
            (texts(&columns(&[], &[])), "text_columns"),
            (texts(&columns(&["a", "b", "c"], &[])), "text_columns"),
            (texts(&columns(&["a"], &[("prompt", "p")])), "prompt_column"),
            (
                columns(&[], &[("prompt", "p")]).documents(),
                "completion_column",
            ),
            (
                columns(&["a"], &[("prompt", "p"), ("completion", "c")]).documents(),
                "either",
            ),
            (columns(&["a", "b"], &[]).documents(), "text_columns"),
            (
                columns(&["a"], &[("label", "l")]).documents(),
                "`label_column` has no use",
            ),
            (
                columns(&[], &[("source", "s")]).source_target(),
                "target_column",
            ),
            (
                columns(&["a"], &[("source", "s"), ("target", "t")]).source_target(),
                "`text_columns` has no use",
            ),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, DataError::Columns { .. }), "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
