//! Cloze: one of several classes for a text, by the word that a language model puts in a template's
//! place.
//!
//! A template such as `{sentence} It was {mask}.` asks for a word, and a verbalizer has the words
//! that stand for each class. The head of the base is left as it is, so that a class can be told
//! without any training. A masked language model predicts the word at its mask token; a decoder
//! after the text, since its template ends with the word; an encoder-decoder reads the text with
//! its mask token, and its decoder predicts the word first, after T5's sentinel or `bos_token`.

use std::path::Path;

use epiphyte_data::{
    Cloze, Columns, DataError, Fields, LabelField, OutputColumn, OutputFormat, Table, Tokenizer,
    WordPlace,
};
use epiphyte_io::FileError;
use epiphyte_models::heads::{Verbalizer, WordPosition};
use epiphyte_models::{HeadKind, Model, ModelConfig};
use serde_json::{Map, Value};

use super::sequence_classification::SequenceClassification;
use super::{Task, TaskRows, TaskSpec};
use crate::observer::Observer;
use crate::scoring::evaluate::Evaluation;
use crate::scoring::metrics::DetailedScores;
use crate::{RunConfig, TrainError};

#[derive(Debug)]
pub(super) struct ClozeTask;

impl Task for ClozeTask {
    fn name(&self) -> &'static str {
        "cloze"
    }

    fn summary(&self) -> &'static str {
        "one of several classes, by the word that fits a template"
    }

    fn peft_task_type(&self) -> &'static str {
        ""
    }

    fn auto_class(&self, spec: &TaskSpec) -> &'static str {
        match spec.word_place {
            WordPlace::Mask => "AutoModelForMaskedLM",
            WordPlace::TextEnd => "AutoModelForCausalLM",
            WordPlace::DecoderStart => "AutoModelForSeq2SeqLM",
        }
    }

    fn pipeline_tag(&self, spec: &TaskSpec) -> &'static str {
        match spec.word_place {
            WordPlace::Mask => "fill-mask",
            WordPlace::TextEnd => "text-generation",
            WordPlace::DecoderStart => "text2text-generation",
        }
    }

    fn is_of_class(&self, _class: &str) -> bool {
        false
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::MaskedLm
    }

    fn head_of(&self, spec: &TaskSpec) -> HeadKind {
        match spec.word_place {
            WordPlace::Mask => HeadKind::MaskedLm,
            WordPlace::TextEnd | WordPlace::DecoderStart => HeadKind::LanguageModel,
        }
    }

    fn of_directory(&self, spec: &mut TaskSpec, model: &Path) -> Result<(), TrainError> {
        let config = ModelConfig::open(model)?;
        let family = config.family();
        let is_masked = family.class_name(HeadKind::MaskedLm).is_some();
        spec.word_place = match family.class_name(HeadKind::LanguageModel) {
            Some(class) if class.ends_with("ForConditionalGeneration") => WordPlace::DecoderStart,
            Some(_) if !is_masked => WordPlace::TextEnd,
            _ => WordPlace::Mask,
        };
        Ok(())
    }

    fn is_one_of_several(&self) -> bool {
        true
    }

    fn column_flags(&self) -> &'static str {
        "--prompt-template with {mask} in it, --label-column and --verbalizer"
    }

    fn columns_to_read(&self, columns: &Columns) -> Result<Vec<String>, DataError> {
        let Some(template) = &columns.prompt_template else {
            return columns.named();
        };
        let template = Cloze::parse(template)?;
        let columns = template.columns().into_iter().chain([columns.label()]);
        Ok(columns.map(str::to_owned).collect())
    }

    fn classes(&self, columns: &Columns, table: &Table) -> Result<Vec<String>, DataError> {
        SequenceClassification.classes(columns, table)
    }

    fn configure(&self, spec: &mut TaskSpec, run: &RunConfig) -> Result<(), TrainError> {
        let path = run.verbalizer.as_ref().ok_or_else(|| TrainError::Setting {
            key: "verbalizer".to_owned(),
            problem: "it is missing: pass a JSON file with the words of each class".to_owned(),
        })?;
        spec.read_verbalizer(path)
    }

    fn prepare(
        &self,
        spec: &TaskSpec,
        tokenizer: &Tokenizer,
        model: &mut Model,
    ) -> Result<(), TrainError> {
        let template = spec.columns.cloze_template();
        let template = template.map_err(|error| TrainError::of_columns(spec.task, error))?;
        let word = |word: &String| tokenizer.word(word, template.follows_space());
        let of_class = |words: &Vec<String>| words.iter().map(word).collect();
        let words = spec.verbalizer.iter().map(of_class);
        model.set_verbalizer(Verbalizer {
            position: match spec.word_place {
                WordPlace::Mask => WordPosition::Mask(tokenizer.mask()?.id),
                WordPlace::TextEnd => WordPosition::TextEnd,
                WordPlace::DecoderStart => {
                    WordPosition::DecoderStart(vec![tokenizer.begin_of_hidden()?])
                }
            },
            words: words.collect::<Result<_, DataError>>()?,
        });
        Ok(())
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        if !labelled {
            return spec.columns.cloze(spec.word_place, LabelField::Absent);
        }
        let label = LabelField::Class {
            column: spec.columns.label().to_owned(),
            labels: spec.label_set()?.in_order_of_ids(true),
        };
        spec.columns.cloze(spec.word_place, label)
    }

    fn scores(&self, classes: Option<usize>) -> Vec<&'static str> {
        SequenceClassification.scores(classes)
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        SequenceClassification.evaluate(evaluation, rows, observer)
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        SequenceClassification.predictions(evaluation, rows, format, observer)
    }
}

impl TaskSpec {
    /// Takes the classes and their words from a verbalizer's file: a JSON object with one word or a
    /// list of words for each class.
    ///
    /// # Errors
    /// [`TrainError::Verbalizer`] if the file cannot be used; if the data has a label that it has
    /// not.
    pub fn read_verbalizer(&mut self, path: &Path) -> Result<(), TrainError> {
        let invalid = |reason: String| TrainError::Verbalizer {
            path: path.to_owned(),
            reason,
        };
        let text = epiphyte_io::read_text(path).map_err(FileError::at("read", path))?;
        let words: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| invalid(format!("is no JSON object of classes: {error}")))?;
        let of_class = |(class, words): (&String, &Value)| {
            let words = match words {
                Value::String(word) => vec![word.clone()],
                Value::Array(words) => words
                    .iter()
                    .filter_map(|word| word.as_str().map(str::to_owned))
                    .collect(),
                _ => Vec::new(),
            };
            match words.is_empty() || words.iter().any(|word| word.trim().is_empty()) {
                true => Err(invalid(format!("has no words for the class `{class}`"))),
                false => Ok(words),
            }
        };
        let verbalizer = words.iter().map(of_class).collect::<Result<Vec<_>, _>>()?;
        if verbalizer.len() < 2 {
            return Err(invalid("has fewer than two classes".to_owned()));
        }
        if let Some(label) = self.labels.iter().find(|label| !words.contains_key(*label)) {
            return Err(invalid(format!(
                "has no words for the label `{label}` of the data"
            )));
        }
        self.labels = words.keys().cloned().collect();
        self.labels_by_id = true;
        self.verbalizer = verbalizer;
        Ok(())
    }
}
