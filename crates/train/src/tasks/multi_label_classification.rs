//! Multi-label classification: any number of classes for a text or a pair of texts.

use epiphyte_data::{
    Columns, DataError, Fields, LabelSet, Layout, OutputColumn, OutputFormat, TEXTS_AND_PAIRS,
    Table, Target, Value,
};
use epiphyte_models::HeadKind;
use epiphyte_models::config::ProblemType;
use serde_json::Value as Json;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, predict};
use crate::scoring::metrics::{DetailedScores, class_set_scores};
use crate::scoring::predictions;

#[derive(Debug)]
pub(super) struct MultiLabelClassification;

impl Task for MultiLabelClassification {
    fn name(&self) -> &'static str {
        "multi-label-classification"
    }

    fn summary(&self) -> &'static str {
        "any number of classes for a text or a pair of texts"
    }

    fn peft_task_type(&self) -> &'static str {
        "SEQ_CLS"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForSequenceClassification"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "text-classification"
    }

    fn fits(&self, _outputs: usize, problem: Option<ProblemType>) -> bool {
        problem == self.problem_type()
    }

    fn problem_type(&self) -> Option<ProblemType> {
        Some(ProblemType::MultiLabelClassification)
    }

    fn head(&self, labels: usize) -> HeadKind {
        HeadKind::Classification { labels }
    }

    fn column_flags(&self) -> &'static str {
        "--text-columns, and --label-column with lists or --label-columns of 0 and 1"
    }

    fn classes(&self, columns: &Columns, table: &Table) -> Result<Vec<String>, DataError> {
        let labels = LabelSet::from_sets(table, &label_columns(columns))?;
        Ok(labels.names().to_vec())
    }

    fn has_classes(&self) -> bool {
        true
    }

    fn layouts(&self) -> &'static [Layout] {
        TEXTS_AND_PAIRS
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        let labels = labelled.then(|| spec.label_set()).transpose()?;
        spec.columns.texts_with_sets(labels)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["accuracy", "f1", "f1_macro", "loss", "precision", "recall"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let logits = predict(evaluation, observer)?;
        let (mut pairs, mut loss) = (Vec::new(), 0.0);
        for (example, logits) in evaluation.batches.examples().iter().zip(&logits) {
            if let Target::ClassSet(set) = example.target {
                let losses = logits.iter().zip(&set);
                let losses = losses.map(|(&logit, &right)| cross_entropy(logit, right));
                loss += losses.sum::<f64>() / set.len() as f64;
                pairs.push((chosen(logits), set));
            }
        }
        let mut scores = class_set_scores(&rows.spec.labels, &pairs)?;
        scores.metrics.insert("loss", loss / logits.len() as f64);
        Ok(scores)
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let names = &rows.spec.labels;
        let logits = predict(evaluation, observer)?;
        let labels = logits.iter().map(|logits| {
            let chosen = chosen(logits).into_iter().zip(names);
            let chosen = chosen.filter_map(|(chosen, name)| chosen.then_some(name.as_str()));
            match format.nests() {
                true => Value::Json(chosen.map(Json::from).collect()),
                false => Value::Text(chosen.collect::<Vec<_>>().join(",")),
            }
        });
        let probabilities: Vec<Vec<f64>> = logits
            .iter()
            .map(|logits| logits.iter().map(|&logit| sigmoid(logit)).collect())
            .collect();
        let mut columns = vec![("labels".to_owned(), labels.collect())];
        let prefixes = ("probability", "probabilities");
        columns.extend(predictions::by_name(
            prefixes,
            names,
            &probabilities,
            format,
        ));
        if format.nests() {
            columns.push(("logits".to_owned(), predictions::lists(&logits)));
        }
        Ok(columns)
    }
}

/// The columns of the classes.
fn label_columns(columns: &Columns) -> Vec<String> {
    match columns.label_columns.as_slice() {
        [] => vec![columns.label().to_owned()],
        columns => columns.to_vec(),
    }
}

/// The classes that are more likely than not.
fn chosen(logits: &[f32]) -> Vec<bool> {
    logits.iter().map(|&logit| logit > 0.0).collect()
}

fn sigmoid(logit: f32) -> f64 {
    1.0 / (1.0 + f64::from(-logit).exp())
}

/// The binary cross-entropy of a logit.
fn cross_entropy(logit: f32, right: bool) -> f64 {
    let towards = f64::from(if right { logit } else { -logit });
    (-towards).max(0.0) + (-towards.abs()).exp().ln_1p()
}
