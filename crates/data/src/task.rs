//! What is learned, and which columns of a file say it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// What the model learns to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// One of several labels for a text or a pair of texts.
    SequenceClassification,
    /// A number for a text or a pair of texts.
    Regression,
    /// The next token of a text.
    #[serde(rename = "causal-lm", alias = "causal-language-modelling")]
    CausalLanguageModelling,
}

impl TaskKind {
    /// The name as configurations and the command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SequenceClassification => "sequence-classification",
            Self::Regression => "regression",
            Self::CausalLanguageModelling => "causal-lm",
        }
    }
}

impl fmt::Display for TaskKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TaskKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        match name {
            "sequence-classification" => Ok(Self::SequenceClassification),
            "regression" => Ok(Self::Regression),
            "causal-lm" | "causal-language-modelling" => Ok(Self::CausalLanguageModelling),
            _ => Err(DataError::UnknownTask {
                name: name.to_owned(),
            }),
        }
    }
}

/// Column names as the user configures them (`--text-columns`, `--label-column`, …). [`Columns::resolve`] turns
/// them into the one thing they may mean for a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Columns {
    /// Classification and regression: one text column or a pair. Language modelling: the column of plain text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub text_columns: Vec<String>,
    /// Classification and regression: the label or number; `label` where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Language modelling: the text before the part to learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_column: Option<String>,
    /// Language modelling: the part to learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_column: Option<String>,
    /// Language modelling: a list of `{"role": …, "content": …}` messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_column: Option<String>,
}

/// The columns of an example, resolved for a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// A text or a pair of texts, and what to predict for it.
    Sequence {
        /// The column of the (first) text.
        text: String,
        /// The column of the second text of a pair.
        pair: Option<String>,
        /// The column of the label or number.
        label: String,
    },
    /// Plain text, all of it to be learned.
    Text {
        /// The column.
        text: String,
    },
    /// A prompt and its completion; the completion is to be learned.
    Completion {
        /// The column of the prompt.
        prompt: String,
        /// The column of the completion.
        completion: String,
    },
    /// A conversation; the assistant's turns are to be learned.
    Messages {
        /// The column.
        messages: String,
    },
}

impl Columns {
    /// The fields that these columns mean for `task`.
    ///
    /// Defaults are Hugging Face's names: `label` for the label, `text` for plain text.
    ///
    /// # Errors
    /// [`DataError::Columns`] where the columns contradict each other or the task.
    pub fn resolve(&self, task: TaskKind) -> Result<Fields, DataError> {
        let problem = |problem| {
            Err(DataError::Columns {
                task: task.name(),
                problem,
            })
        };
        let language = (
            &self.prompt_column,
            &self.completion_column,
            &self.messages_column,
        );
        if task != TaskKind::CausalLanguageModelling {
            if language != (&None, &None, &None) {
                return problem("prompt, completion and messages columns belong to causal-lm");
            }
            let label = self
                .label_column
                .clone()
                .unwrap_or_else(|| "label".to_owned());
            return match self.text_columns.as_slice() {
                [text] => Ok(Fields::Sequence {
                    text: text.clone(),
                    pair: None,
                    label,
                }),
                [text, pair] => Ok(Fields::Sequence {
                    text: text.clone(),
                    pair: Some(pair.clone()),
                    label,
                }),
                _ => problem("give one text column or two (`text_columns`)"),
            };
        }
        if self.label_column.is_some() {
            return problem("a label column belongs to sequence-classification or regression");
        }
        match (self.text_columns.as_slice(), language) {
            ([], (None, None, None)) => Ok(Fields::Text {
                text: "text".to_owned(),
            }),
            ([text], (None, None, None)) => Ok(Fields::Text { text: text.clone() }),
            ([], (Some(prompt), Some(completion), None)) => Ok(Fields::Completion {
                prompt: prompt.clone(),
                completion: completion.clone(),
            }),
            ([], (None, None, Some(messages))) => Ok(Fields::Messages {
                messages: messages.clone(),
            }),
            _ => problem(
                "give either one text column, or a prompt and a completion column, or a messages column",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for task in [
            TaskKind::SequenceClassification,
            TaskKind::Regression,
            TaskKind::CausalLanguageModelling,
        ] {
            assert_eq!(task.name().parse::<TaskKind>().unwrap(), task);
            assert_eq!(serde_json::to_value(task).unwrap(), task.name());
        }
        assert_eq!(
            "causal-language-modelling".parse::<TaskKind>().unwrap(),
            TaskKind::CausalLanguageModelling
        );
        assert!(matches!(
            "seq2seq".parse::<TaskKind>(),
            Err(DataError::UnknownTask { .. })
        ));
    }

    #[test]
    fn columns_mean_one_thing() {
        let columns = |text: &[&str], prompt: Option<&str>, completion: Option<&str>| Columns {
            text_columns: text.iter().map(|&name| name.to_owned()).collect(),
            prompt_column: prompt.map(str::to_owned),
            completion_column: completion.map(str::to_owned),
            ..Columns::default()
        };
        let classification = TaskKind::SequenceClassification;
        let language = TaskKind::CausalLanguageModelling;
        assert!(
            columns(&["a", "b"], None, None)
                .resolve(classification)
                .is_ok()
        );
        assert_eq!(
            Columns::default().resolve(language).unwrap(),
            Fields::Text {
                text: "text".into()
            }
        );
        assert!(columns(&[], Some("p"), Some("c")).resolve(language).is_ok());
        for (wrong, task) in [
            (columns(&[], None, None), classification),
            (columns(&["a", "b", "c"], None, None), classification),
            (columns(&["a"], Some("p"), None), classification),
            (columns(&[], Some("p"), None), language),
            (columns(&["a"], Some("p"), Some("c")), language),
            (columns(&["a", "b"], None, None), language),
        ] {
            assert!(
                matches!(wrong.resolve(task), Err(DataError::Columns { .. })),
                "{wrong:?}"
            );
        }
    }
}
