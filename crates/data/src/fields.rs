//! Which columns of a file make an example.
//!
//! [`Columns`] holds the names that a user configures. [`Fields`] is one meaning of them; which one
//! a task needs is the task's decision, and each method of [`Columns`] checks one.

use serde::{Deserialize, Deserializer, Serialize};

use crate::cloze::{Cloze, WordPlace};
use crate::error::DataError;
use crate::labels::LabelSet;
use crate::messages::SYSTEM;
use crate::prompt::Prompt;

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
    /// A column of 0 and 1 for each class, of which any number may be right.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_columns: Vec<String>,
    /// The texts of which one is the right choice.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub choice_columns: Vec<String>,
    /// The text before the part to learn: one column, or several that are joined.
    #[serde(
        deserialize_with = "one_or_several",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub prompt_column: Vec<String>,
    /// The text before the part to learn, as [`Prompt::template`] reads it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// The part to learn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_column: Option<String>,
    /// A list of `{"role": …, "content": …}` or `{"from": …, "value": …}` messages, or its spelling
    /// as a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_column: Option<String>,
    /// The text that an encoder reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_column: Option<String>,
    /// The text that a decoder learns to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_column: Option<String>,
}

/// One name, as it stood in files when there could be only one, or a list.
fn one_or_several<'de, D: Deserializer<'de>>(names: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Names::deserialize(names)? {
        Names::One(name) => vec![name],
        Names::Several(names) => names,
    })
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
    /// A list of words, and a tag for each; the first piece of each word counts for the loss.
    Words {
        /// The column of the words.
        words: String,
        /// The column of the tags with the classes; none if they are unknown, and the examples are
        /// for prediction only.
        tags: Option<(String, LabelSet)>,
    },
    /// A text or two, and several texts of which one is the right choice.
    Choices {
        /// The column of the first text.
        text: String,
        /// The column of the text that begins each choice.
        second: Option<String>,
        /// The columns of the choices.
        choices: Vec<String>,
        /// The column of the right choice's number, from 0; none if it is unknown, and the examples
        /// are for prediction only.
        label: Option<String>,
    },
    /// A question, and a text that has the answer as a part.
    Questions {
        /// The column of the question.
        question: String,
        /// The column of the text.
        context: String,
        /// The column of the answers; none if they are unknown, and the examples are for prediction
        /// only.
        answers: Option<String>,
    },
    /// Texts that the model reads one by one and compares.
    SeparateTexts {
        /// The columns.
        texts: Vec<String>,
        /// The column of a number for how similar they are.
        score: Option<String>,
    },
    /// A template with texts and one hidden word, for which a word of a class is to be put.
    Cloze {
        /// The template.
        template: Cloze,
        /// Where the model predicts the word.
        place: WordPlace,
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
        /// The prompt.
        prompt: Prompt,
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
    /// Any number of classes.
    ClassSet {
        /// One column with lists, or a column of 0 and 1 for each class.
        columns: Vec<String>,
        /// The classes.
        labels: LabelSet,
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
        let predicted = match &label {
            LabelField::Class { column, .. } | LabelField::Number { column } => Some(column),
            LabelField::ClassSet { .. } | LabelField::Absent => None,
        };
        if let Some(label) = predicted.filter(|label| self.text_columns.contains(label)) {
            return Err(DataError::Columns {
                reason: format!(
                    "`{label}` is a text and the label: a model that reads the label learns \
                     nothing else"
                ),
            });
        }
        self.texts_with(label, needed)
    }

    /// One text or a pair of texts with any number of classes, which are in lists in the column
    /// `label_column`, or each in one of `label_columns`.
    ///
    /// # Errors
    /// As [`Columns::texts`].
    pub fn texts_with_sets(&self, labels: Option<LabelSet>) -> Result<Fields, DataError> {
        let needed = "one text column or two (`text_columns`), and a `label_column` with lists or a \
                      column of 0 and 1 for each class (`label_columns`)";
        self.only(&["text_columns", "label_column", "label_columns"], needed)?;
        let columns = match (self.label_columns.as_slice(), &self.label_column) {
            ([], _) => vec![self.label().to_owned()],
            (columns, None) => columns.to_vec(),
            (_, Some(_)) => return Err(unsuitable(needed)),
        };
        let label = match labels {
            Some(labels) => LabelField::ClassSet { columns, labels },
            None => LabelField::Absent,
        };
        self.texts_with(label, needed)
    }

    fn texts_with(&self, label: LabelField, needed: &str) -> Result<Fields, DataError> {
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

    /// A list of words, with the tags of the column `label_column` if their classes are given.
    ///
    /// # Errors
    /// [`DataError::Columns`] if there is not one text column, or if columns are configured that
    /// such an example does not have.
    pub fn words(&self, tags: Option<LabelSet>) -> Result<Fields, DataError> {
        let needed = "one text column (`text_columns`) with lists of words, and a `label_column` \
                      with lists of tags";
        self.only(&["text_columns", "label_column"], needed)?;
        let [words] = self.text_columns.as_slice() else {
            return Err(unsuitable(needed));
        };
        Ok(Fields::Words {
            words: words.clone(),
            tags: tags.map(|labels| (self.label().to_owned(), labels)),
        })
    }

    /// A text or two with several choices, and the number of the right one in the column
    /// `label_column` if `labelled`.
    ///
    /// # Errors
    /// [`DataError::Columns`] if there is not one text column or two, or fewer than two columns of
    /// choices, or if columns are configured that such an example does not have.
    pub fn choices(&self, labelled: bool) -> Result<Fields, DataError> {
        let needed = "one text column or two (`text_columns`), two or more columns of choices \
                      (`choice_columns`), and a `label_column` with the number of the right one \
                      from 0";
        self.only(&["text_columns", "label_column", "choice_columns"], needed)?;
        let (text, second) = match self.text_columns.as_slice() {
            [text] => (text, None),
            [text, second] => (text, Some(second)),
            _ => return Err(unsuitable(needed)),
        };
        if self.choice_columns.len() < 2 {
            return Err(unsuitable(needed));
        }
        Ok(Fields::Choices {
            text: text.clone(),
            second: second.cloned(),
            choices: self.choice_columns.clone(),
            label: labelled.then(|| self.label().to_owned()),
        })
    }

    /// A question and a text, with the answers of the column `label_column` if `labelled`.
    ///
    /// # Errors
    /// [`DataError::Columns`] if there are not two text columns, or if columns are configured that
    /// such an example does not have.
    pub fn questions(&self, labelled: bool) -> Result<Fields, DataError> {
        let needed = "two text columns (`text_columns`), the question and the text, and a \
                      `label_column` with the answers";
        self.only(&["text_columns", "label_column"], needed)?;
        let [question, context] = self.text_columns.as_slice() else {
            return Err(unsuitable(needed));
        };
        Ok(Fields::Questions {
            question: question.clone(),
            context: context.clone(),
            answers: labelled.then(|| self.label().to_owned()),
        })
    }

    /// A template with a hidden word, which the model predicts at this place, and a label.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the template is invalid or does not fit the place, or a column is
    /// configured that such an example does not have.
    pub fn cloze(&self, place: WordPlace, label: LabelField) -> Result<Fields, DataError> {
        let template = self.cloze_template()?;
        template.check_place(place)?;
        Ok(Fields::Cloze {
            template,
            place,
            label,
        })
    }

    /// The template of [`Columns::cloze`].
    ///
    /// # Errors
    /// As there.
    pub fn cloze_template(&self) -> Result<Cloze, DataError> {
        let needed = "a `prompt_template` with `{mask}` in it, and a `label_column`";
        self.only(&["prompt_template", "label_column"], needed)?;
        let template = self.prompt_template.as_ref();
        Cloze::parse(template.ok_or_else(|| unsuitable(needed))?)
    }

    /// Texts that are compared: an anchor, its positive and perhaps its negatives, or two texts
    /// with a score as label. Without something to learn, any number of texts.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the columns are not these.
    pub fn compared_texts(&self, labelled: bool) -> Result<Fields, DataError> {
        let needed = match labelled {
            true => {
                "the text columns of an anchor, its positive and, if at all, its negatives \
                 (`text_columns`), or two text columns and the `label_column` of a score"
            }
            false => "one or more text columns (`text_columns`)",
        };
        self.only(&["text_columns", "label_column"], needed)?;
        let score = self.label_column.clone().filter(|_| labelled);
        let fits = match (self.text_columns.len(), &score) {
            (0, _) => false,
            (1, _) => !labelled,
            (2, _) => true,
            (_, score) => score.is_none(),
        };
        match fits {
            true => Ok(Fields::SeparateTexts {
                texts: self.text_columns.clone(),
                score,
            }),
            false => Err(unsuitable(needed)),
        }
    }

    /// One document a row: plain text (the column `text` if nothing is configured), a prompt and
    /// its completion, or a conversation.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the columns are not exactly those of one of the three.
    pub fn documents(&self) -> Result<Fields, DataError> {
        let needed = "either one text column (`text_columns`), or a `prompt_column` or \
                      `prompt_template` and a `completion_column`, or a `messages_column`";
        self.only(
            &[
                "text_columns",
                "prompt_column",
                "prompt_template",
                "completion_column",
                "messages_column",
            ],
            needed,
        )?;
        let prompt = match (self.prompt_column.as_slice(), &self.prompt_template) {
            ([], None) => None,
            (columns, None) => Some(Prompt::Columns(columns.to_vec())),
            ([], Some(template)) => Some(Prompt::template(template)?),
            (_, Some(_)) => {
                let reason = "`prompt_template` names the columns of the prompt: leave \
                              `prompt_column` out";
                return Err(DataError::Columns {
                    reason: reason.to_owned(),
                });
            }
        };
        let turns = (prompt, &self.completion_column, &self.messages_column);
        match (self.text_columns.as_slice(), turns) {
            ([], (None, None, None)) => Ok(Fields::PlainText {
                text: "text".to_owned(),
            }),
            ([text], (None, None, None)) => Ok(Fields::PlainText { text: text.clone() }),
            ([], (Some(prompt), Some(completion), None)) => Ok(Fields::PromptCompletion {
                prompt,
                completion: completion.clone(),
            }),
            ([], (Some(Prompt::Alpaca), None, None)) => Ok(Fields::PromptCompletion {
                prompt: Prompt::Alpaca,
                completion: "output".to_owned(),
            }),
            ([], (None, None, Some(messages))) => Ok(Fields::Messages {
                messages: messages.clone(),
            }),
            _ => Err(unsuitable(needed)),
        }
    }

    /// The configured columns by name, a default label included.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the prompt template is invalid.
    pub fn named(&self) -> Result<Vec<String>, DataError> {
        let mut names = self.text_columns.clone();
        names.extend(self.choice_columns.iter().cloned());
        names.extend(self.label_columns.iter().cloned());
        names.extend(self.prompt_column.iter().cloned());
        if let Some(template) = &self.prompt_template {
            let prompt = Prompt::template(template)?;
            names.extend(prompt.columns().into_iter().map(str::to_owned));
            if prompt == Prompt::Alpaca {
                names.push("output".to_owned());
            }
        }
        let others = [
            &self.completion_column,
            &self.messages_column,
            &self.source_column,
            &self.target_column,
        ];
        names.extend(others.into_iter().flatten().cloned());
        if self.messages_column.is_some() {
            names.push(SYSTEM.to_owned());
        }
        names.push(self.label().to_owned());
        Ok(names)
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
            ("label_columns", !self.label_columns.is_empty()),
            ("choice_columns", !self.choice_columns.is_empty()),
            ("prompt_column", !self.prompt_column.is_empty()),
            ("prompt_template", self.prompt_template.is_some()),
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
            label_columns: Vec::new(),
            choice_columns: Vec::new(),
            prompt_column: other("prompt").into_iter().collect(),
            prompt_template: other("template"),
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
                prompt: Prompt::Columns(vec!["p".into()]),
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
                columns(
                    &[],
                    &[("prompt", "p"), ("template", "{p}"), ("completion", "c")],
                )
                .documents(),
                "leave `prompt_column` out",
            ),
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

    #[test]
    fn one_prompt_column_may_be_a_text() {
        let columns: Columns = serde_json::from_str(r#"{"prompt_column": "q"}"#).unwrap();
        assert_eq!(columns.prompt_column, ["q"]);
    }
}
