//! The model card: the `README.md` beside a saved adapter, which says what it is and how it was
//! made.
//!
//! The front matter is what PEFT writes (`base_model`, `library_name: peft`, sorted `tags` with
//! `base_model:adapter:<id>`), so that the Hub files the adapter under its base. Below it, instead
//! of PEFT's unfilled template, stand the facts of the run.
//!
//! Whatever comes from outside is quoted for the place where it stands: YAML (double-quoted
//! scalars, YAML 1.2.2 section 7.3.1), Markdown code spans and tables (CommonMark 0.31 section 6.1,
//! GFM section 4.10) and the POSIX shell (single quotes).
//!
//! ```
//! use epiphyte_train::report::model_card::ModelCard;
//!
//! let card = ModelCard {
//!     base_model: "google-bert/bert-base-uncased".to_owned(),
//!     method: "lora".to_owned(),
//!     ..ModelCard::default()
//! };
//! let text = card.to_string();
//! assert!(text.starts_with("---\nbase_model: \"google-bert/bert-base-uncased\"\n"));
//! assert!(text.contains("- \"base_model:adapter:google-bert/bert-base-uncased\"\n"));
//! ```

use std::fmt::{self, Display, Formatter, Write};

use crate::display::{count as grouped, shell_command};
use crate::scoring::metrics::Metrics;

/// Everything a model card says; displayed, it is Markdown with YAML front matter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelCard {
    /// The base model: its name on the Hub, or that of its directory.
    pub base_model: String,
    /// Whether it is a directory, which elsewhere has another path or is not there.
    pub is_local_base: bool,
    /// The method, as `--method` names it.
    pub method: String,
    /// The task, as `--task` names it.
    pub task: String,
    /// The Hub's name for the task, such as `text-classification`.
    pub pipeline_tag: Option<String>,
    /// How far its training went, if it was interrupted: such as `5 of 18 steps`.
    pub unfinished: Option<String>,
    /// How it is used.
    pub usage: Vec<Snippet>,
    /// The data it was trained and evaluated on.
    pub data: Vec<DataSource>,
    /// Its size.
    pub counts: Counts,
    /// Its scores, one entry per evaluated data set.
    pub scores: Vec<Scores>,
    /// Every setting of the run with its value, in the order to be listed.
    pub hyperparameters: Vec<(String, String)>,
    /// The command that made it: the program and its arguments, not quoted.
    pub command: Vec<String>,
}

/// A few lines of code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snippet {
    /// The language, as Markdown's code blocks name it.
    pub language: &'static str,
    /// The lines.
    pub code: String,
}

/// A data file and what it was used for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSource {
    /// What it was used for: "training", "evaluation".
    pub role: &'static str,
    /// Its path or name.
    pub name: String,
    /// How many examples it holds.
    pub examples: u64,
}

/// How large an adapter is, by the three counts that surveys tend to mix up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Parameters of the base model.
    pub base: u64,
    /// Parameters that were trained.
    pub trainable: u64,
    /// Parameters of the base that differ after merging.
    pub changed: u64,
    /// Parameters in the adapter file.
    pub stored: u64,
    /// Size of the adapter file in bytes.
    pub bytes: u64,
}

/// The scores on one data set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The data set's path or name.
    pub data: String,
    /// What was measured.
    pub metrics: Metrics,
}

impl Display for ModelCard {
    fn fmt(&self, card: &mut Formatter<'_>) -> fmt::Result {
        self.write_front_matter(card)?;
        let (method, base) = (CodeSpan(&self.method), CodeSpan(&self.base_model));
        writeln!(card, "\n# {method} adapter for {base}\n")?;
        let frozen = match self.counts.base > 0 && self.counts.trainable >= self.counts.base {
            true => "All parameters of the base model were trained, and this adapter holds them.",
            false => "The base model is frozen and not part of this adapter.",
        };
        let task = CodeSpan(&self.task);
        writeln!(card, "Trained by Epiphyte for the task {task}. {frozen}\n")?;
        if let Some(extent) = &self.unfinished {
            writeln!(
                card,
                "**Not finished: its training was interrupted, {extent}.**\n"
            )?;
        }
        if !self.usage.is_empty() {
            writeln!(card, "## Usage\n")?;
            match self.is_local_base {
                true => writeln!(
                    card,
                    "`ADAPTER` is this directory, `BASE` that of the base model {base}.\n"
                )?,
                false => writeln!(card, "`ADAPTER` is this directory.\n")?,
            }
        }
        for Snippet { language, code } in &self.usage {
            write_code_block(card, language, code)?;
            writeln!(card)?;
        }
        writeln!(card, "## Data\n")?;
        table(
            card,
            ["use", "data", "examples"],
            self.data.iter().map(|source| {
                [
                    source.role.to_owned(),
                    span(&source.name),
                    grouped(source.examples),
                ]
            }),
        )?;
        writeln!(card, "## Size\n")?;
        self.write_counts(card)?;
        writeln!(card, "## Scores\n")?;
        let scores = self.scores.iter().flat_map(|Scores { data, metrics }| {
            metrics
                .iter()
                .map(|(name, value)| [span(data), span(name), score(value)])
        });
        table(card, ["data", "metric", "value"], scores)?;
        writeln!(card, "## Hyper-parameters\n")?;
        let settings = self
            .hyperparameters
            .iter()
            .map(|(name, value)| [span(name), span(value)]);
        table(card, ["name", "value"], settings)?;
        writeln!(card, "## Command\n")?;
        write_code_block(card, "sh", &shell_command(&self.command))
    }
}

/// Begins the last line of a card's file, which ends with the SHA-256 of what stands before.
const MARK: &str = "\n<!-- written by epiphyte: ";

impl ModelCard {
    /// The card as it is written: with a last line by which it is recognized as ours.
    pub fn to_file(&self) -> String {
        let card = self.to_string();
        let hash = epiphyte_io::sha256(card.as_bytes());
        format!("{card}{MARK}{hash} -->\n")
    }

    /// Whether a text is a card of [`ModelCard::to_file`] that was not edited since.
    pub fn is_ours(text: &str) -> bool {
        let parts = text.rsplit_once(MARK);
        parts.is_some_and(|(card, mark)| {
            mark == format!("{} -->\n", epiphyte_io::sha256(card.as_bytes()))
        })
    }

    fn write_front_matter(&self, card: &mut Formatter<'_>) -> fmt::Result {
        writeln!(card, "---")?;
        // The Hub looks for a model of this name.
        let name_on_hub = Some(&self.base_model).filter(|_| !self.is_local_base);
        if let Some(name) = name_on_hub {
            writeln!(card, "base_model: {}", YamlString(name))?;
        }
        writeln!(card, "library_name: peft")?;
        if let Some(pipeline_tag) = &self.pipeline_tag {
            writeln!(card, "pipeline_tag: {}", YamlString(pipeline_tag))?;
        }
        let adapter_of = name_on_hub.map(|name| format!("base_model:adapter:{name}"));
        let mut tags = vec!["epiphyte", self.method.as_str(), "transformers"];
        tags.extend(adapter_of.as_deref());
        tags.sort_unstable();
        writeln!(card, "tags:")?;
        for tag in tags {
            writeln!(card, "- {}", YamlString(tag))?;
        }
        writeln!(card, "---")
    }

    fn write_counts(&self, card: &mut Formatter<'_>) -> fmt::Result {
        let Counts {
            base,
            trainable,
            changed,
            stored,
            bytes,
        } = self.counts;
        let share = |count: u64| match base {
            0 => grouped(count),
            base => format!(
                "{} ({:.3} %)",
                grouped(count),
                100.0 * count as f64 / base as f64
            ),
        };
        let rows = [
            ["base parameters".to_owned(), grouped(base)],
            ["trainable parameters".to_owned(), share(trainable)],
            ["changed parameters".to_owned(), share(changed)],
            ["stored parameters".to_owned(), share(stored)],
            ["file size in bytes".to_owned(), grouped(bytes)],
        ];
        table(card, ["count", "value"], rows)
    }
}

/// Writes a GFM table, or "None." where it would have no row. Cells are Markdown already, with no
/// `|` that is not escaped.
fn table<const COLUMNS: usize>(
    card: &mut Formatter<'_>,
    header: [&str; COLUMNS],
    rows: impl IntoIterator<Item = [String; COLUMNS]>,
) -> fmt::Result {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return writeln!(card, "None.\n");
    }
    writeln!(card, "| {} |", header.join(" | "))?;
    writeln!(card, "| {} |", ["---"; COLUMNS].join(" | "))?;
    for row in rows {
        writeln!(card, "| {} |", row.join(" | "))?;
    }
    writeln!(card)
}

/// A code span for a table cell, where GFM wants every `|` escaped, in code too.
fn span(text: &str) -> String {
    CodeSpan(text).to_string().replace('|', "\\|")
}

/// Text as a Markdown code span, in which nothing but backticks and line ends has a meaning: it is
/// fenced by more backticks than it holds in a row, and a line end becomes a space.
struct CodeSpan<'a>(&'a str);

impl Display for CodeSpan<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let text = self.0.replace(['\r', '\n'], " ");
        if text.trim().is_empty() {
            // Markdown has no code span for these.
            return formatter.write_str("(empty)");
        }
        let fence = "`".repeat(longest_run_of_backticks(&text) + 1);
        // One space on each side is removed again; it keeps backticks and spaces at the ends apart.
        let pad = if text.starts_with(['`', ' ']) || text.ends_with(['`', ' ']) {
            " "
        } else {
            ""
        };
        write!(formatter, "{fence}{pad}{text}{pad}{fence}")
    }
}

fn write_code_block(card: &mut Formatter<'_>, language: &str, code: &str) -> fmt::Result {
    let fence = "`".repeat(longest_run_of_backticks(code).max(2) + 1);
    writeln!(card, "{fence}{language}\n{code}\n{fence}")
}

fn longest_run_of_backticks(text: &str) -> usize {
    text.split(|character| character != '`')
        .map(str::len)
        .max()
        .unwrap_or(0)
}

/// Text as a double-quoted YAML scalar on one line: what YAML 1.1 or 1.2 may not print or would
/// take for a line break is escaped.
struct YamlString<'a>(&'a str);

impl Display for YamlString<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(formatter, "\\{character}")?,
                '\0'..='\x1f'
                | '\x7f'..='\u{a0}'
                | '\u{2028}'
                | '\u{2029}'
                | '\u{feff}'
                | '\u{fffe}'
                | '\u{ffff}' => {
                    write!(formatter, "\\u{:04x}", u32::from(character))?;
                }
                _ => formatter.write_char(character)?,
            }
        }
        formatter.write_char('"')
    }
}

fn score(value: f64) -> String {
    if value.is_nan() {
        "undefined".to_owned()
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Text with what is special in YAML, Markdown and a shell, mixed.
    fn awkward() -> impl Strategy<Value = String> {
        "([`|\\\\'\"*_<>\\[\\]#$~&:{}\n\r\t -]|[\u{7f}\u{85}\u{2028}\u{2029}\u{feff}\u{fffe}]|[a-z]|\\PC){0,20}"
    }

    fn card(awkward: &str) -> ModelCard {
        let text = |before: &str| format!("{before}{awkward}");
        ModelCard {
            base_model: text("models/bert"),
            is_local_base: false,
            method: "lora".to_owned(),
            task: "sequence-classification".to_owned(),
            pipeline_tag: Some("text-classification".to_owned()),
            unfinished: None,
            usage: vec![Snippet {
                language: "sh",
                code: "epiphyte predict --model bert --adapter ADAPTER".to_owned(),
            }],
            data: vec![
                DataSource {
                    role: "training",
                    name: text("train.tsv"),
                    examples: 6000,
                },
                DataSource {
                    role: "evaluation",
                    name: text("dev.tsv"),
                    examples: 872,
                },
            ],
            counts: Counts {
                base: 22_713_216,
                trainable: 74_498,
                changed: 1_770_242,
                stored: 74_498,
                bytes: 300_344,
            },
            scores: vec![Scores {
                data: text("dev.tsv"),
                metrics: Metrics::from_iter([("accuracy", 0.8956), ("pearson", f64::NAN)]),
            }],
            hyperparameters: vec![
                ("rank".to_owned(), "8".to_owned()),
                ("text_columns".to_owned(), text("sentence")),
            ],
            command: ["epiphyte", "train", "--model", &text("models/bert")]
                .map(str::to_owned)
                .to_vec(),
        }
    }

    #[test]
    fn the_card_says_everything() {
        assert_eq!(
            card("").to_string(),
            include_str!("../../tests/model_card.md")
        );
    }

    /// Elsewhere its directory has another path, and the Hub has no model of its name.
    #[test]
    fn a_base_in_a_directory_is_named_in_words_alone() {
        let text = ModelCard {
            is_local_base: true,
            ..card("")
        }
        .to_string();
        assert!(text.starts_with("---\nlibrary_name: peft\n"), "{text}");
        assert!(!text.contains("base_model:"), "{text}");
        let sentence = "`ADAPTER` is this directory, `BASE` that of the base model `models/bert`.";
        assert!(text.contains(sentence), "{text}");
    }

    #[test]
    fn an_empty_card_is_whole_and_its_tags_are_sorted() {
        let card = ModelCard {
            method: "adalora".to_owned(),
            ..ModelCard::default()
        };
        let text = card.to_string();
        assert_eq!(text.matches("None.\n").count(), 3);
        assert!(text.contains("| trainable parameters | 0 |"));
        assert!(text.contains("tags:\n- \"adalora\"\n- \"base_model:adapter:\"\n- \"epiphyte\"\n"));
    }

    /// Needs a Python with the packages that `tests/read_card.py` names.
    #[test]
    #[ignore = "needs EPIPHYTE_PYTHON"]
    fn other_parsers_read_what_was_meant() {
        let python =
            env::var("EPIPHYTE_PYTHON").expect("a Python that has pyyaml and markdown-it-py");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("README.md");
        for awkward in [
            "",
            "/a|b\\|c`d``e*f*_g_<h>[i](j)",
            "\nnext: 'line' \"x\" \\",
            "/`",
            "/é\u{2028}\u{85}\u{7f}~ #",
        ] {
            let card = card(awkward);
            epiphyte_io::write(&path, card.to_string().as_bytes()).unwrap();
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_card.py");
            let output = Command::new(&python)
                .arg(script)
                .arg(&path)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            let read: Value = serde_json::from_slice(&output.stdout).unwrap();
            let on_one_line = |text: &str| text.replace('\n', " ");
            assert_eq!(
                read,
                json!({
                    "front_matter": {
                        "base_model": card.base_model,
                        "library_name": "peft",
                        "pipeline_tag": "text-classification",
                        "tags": [format!("base_model:adapter:{}", card.base_model), "epiphyte", "lora", "transformers"],
                    },
                    "cells": {
                        "base": on_one_line(&card.base_model),
                        "training": on_one_line(&card.data[0].name),
                        "evaluation": on_one_line(&card.data[1].name),
                        "text_columns": on_one_line(&card.hyperparameters[1].1),
                    },
                    "command": card.command,
                })
            );
        }
    }

    /// Reads a code span as CommonMark 0.31, section 6.1 says; `None` if `markdown` is not exactly
    /// one.
    fn read_code_span(markdown: &str) -> Option<String> {
        let fence = markdown.len() - markdown.trim_start_matches('`').len();
        let mut position = fence;
        while position < markdown.len() {
            let rest = &markdown[position..];
            let run = rest.len() - rest.trim_start_matches('`').len();
            if run == fence {
                let text =
                    (position + run == markdown.len()).then_some(&markdown[fence..position])?;
                let stripped = text
                    .strip_prefix(' ')
                    .and_then(|text| text.strip_suffix(' '));
                let is_blank = text.chars().all(|character| character == ' ');
                return Some(stripped.filter(|_| !is_blank).unwrap_or(text).to_owned());
            }
            position += run.max(rest.chars().next()?.len_utf8());
        }
        None
    }

    proptest! {
        #[test]
        fn a_code_span_is_read_as_the_text(text in awkward()) {
            prop_assume!(!text.trim().is_empty());
            let on_one_line = text.replace(['\r', '\n'], " ");
            prop_assert_eq!(read_code_span(&CodeSpan(&text).to_string()), Some(on_one_line));
        }

        /// JSON strings are YAML double-quoted scalars, so a JSON parser must read the same text.
        #[test]
        fn a_yaml_string_is_one_printable_line_and_read_as_the_text(text in prop_oneof![awkward(), any::<String>()]) {
            let quoted = YamlString(&text).to_string();
            // `c-printable` of YAML 1.2.2, section 5.1, on one line also for YAML 1.1.
            let printable = |character| {
                matches!(character, ' '..='~' | '\u{a0}'..='\u{fffd}' | '\u{10000}'..)
                    && !matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}')
            };
            prop_assert!(quoted.chars().all(printable));
            prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
        }

        #[test]
        fn awkward_text_never_breaks_a_table(text in awkward()) {
            let (plain, awkward) = (card("").to_string(), card(&text).to_string());
            let table_lines = |card: &str| {
                let unescaped = card.replace("\\|", "");
                Vec::from_iter(unescaped.lines().filter(|line| line.starts_with("| ")).map(|line| line.matches('|').count()))
            };
            prop_assert_eq!(table_lines(&plain), table_lines(&awkward));
        }
    }
}
