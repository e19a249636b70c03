//! Token classification: a tag for each word of a text, such as the names in it.

use epiphyte_data::{
    Columns, DataError, Example, Fields, LabelSet, Layout, OutputColumn, OutputFormat, Table,
    Target, UNKNOWN, Value,
};
use epiphyte_models::HeadKind;
use serde_json::Value as Json;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, argmax, negative_log_likelihood, predict};
use crate::scoring::metrics::{DetailedScores, span_scores};

/// Columns that data sets have for words, and for tags.
static LAYOUTS: &[Layout] = &[
    Layout {
        name: "lists of words",
        columns: || Columns::of_texts(&["tokens"]),
    },
    Layout {
        name: "lists of words",
        columns: || Columns::of_texts(&["words"]),
    },
];

#[derive(Debug)]
pub(super) struct TokenClassification;

impl Task for TokenClassification {
    fn name(&self) -> &'static str {
        "token-classification"
    }

    fn summary(&self) -> &'static str {
        "a tag for each word of a text"
    }

    fn peft_task_type(&self) -> &'static str {
        "TOKEN_CLS"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForTokenClassification"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "token-classification"
    }

    fn head(&self, labels: usize) -> HeadKind {
        HeadKind::TokenClassification { labels }
    }

    fn layouts(&self) -> &'static [Layout] {
        LAYOUTS
    }

    fn label_names(&self) -> &'static [&'static str] {
        &["tags", "ner_tags", "labels"]
    }

    fn classes(&self, columns: &Columns, table: &Table) -> Result<Vec<String>, DataError> {
        let labels = LabelSet::from_lists(table, columns.label())?;
        Ok(labels.names().to_vec())
    }

    fn has_classes(&self) -> bool {
        true
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        let labels = labelled.then(|| spec.label_set()).transpose()?;
        spec.columns.words(labels)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["accuracy", "f1", "loss", "precision", "recall"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let tags = &rows.spec.labels;
        let logits = predict(evaluation, observer)?;
        let (mut sentences, mut loss, mut words) = (Vec::new(), 0.0, 0);
        for (example, logits) in evaluation.batches.examples().iter().zip(&logits) {
            let (mut predicted, mut labels) = (Vec::new(), Vec::new());
            for (label, logits) in words_of(&example, logits, tags.len()) {
                if let Ok(label) = usize::try_from(label) {
                    predicted.push(argmax(logits));
                    loss += negative_log_likelihood(logits, label);
                    labels.push(label);
                }
            }
            words += labels.len();
            sentences.push((predicted, labels));
        }
        let mut scores = span_scores(tags, &sentences)?;
        scores.metrics.insert("loss", loss / words as f64);
        Ok(scores)
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let tags = &rows.spec.labels;
        let logits = predict(evaluation, observer)?;
        let column = rows.spec.columns.text_columns.first();
        let words = column.map_or("", String::as_str);
        let (mut cells, mut untagged) = (Vec::new(), 0);
        for (row, (example, logits)) in evaluation
            .batches
            .examples()
            .iter()
            .zip(&logits)
            .enumerate()
        {
            let found = words_of(&example, logits, tags.len());
            let found = found.map(|(_, logits)| Json::from(tags[argmax(logits)].as_str()));
            let mut found: Vec<Json> = found.collect();
            let words = rows.table.items(words, row)?.len();
            untagged += words.saturating_sub(found.len());
            found.resize(words, Json::Null);
            cells.push(match format.nests() {
                true => Value::Json(found.into()),
                false => {
                    let tags = found.iter().map(|tag| tag.as_str().unwrap_or(UNTAGGED));
                    Value::Text(tags.collect::<Vec<_>>().join(" "))
                }
            });
        }
        if untagged > 0 {
            tracing::warn!(
                words = untagged,
                max_length = rows.spec.max_length,
                "words without a tag, null in lists and {UNTAGGED} in texts: they were cut off, or \
                 become no token"
            );
        }
        Ok(vec![("tags".to_owned(), cells)])
    }
}

/// What stands for the tag of a word that has none, in a text of tags.
const UNTAGGED: &str = "_";

/// The label and the logits of each word of an example: those of its first piece.
fn words_of<'l>(
    example: &Example,
    logits: &'l [f32],
    tags: usize,
) -> impl Iterator<Item = (i64, &'l [f32])> + use<'l> {
    let labels = match &example.target {
        Target::TokenClasses(labels) => labels.clone(),
        _ => Vec::new(),
    };
    let tokens = labels.into_iter().zip(logits.chunks(tags.max(1)));
    tokens.filter(|(label, _)| *label >= UNKNOWN)
}
