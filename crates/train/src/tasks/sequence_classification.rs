//! Sequence classification: one of several labels for a text or a pair of texts.

use epiphyte_data::{
    Columns, DataError, Fields, LabelField, LabelSet, Layout, OutputColumn, OutputFormat,
    TEXTS_AND_PAIRS, Table, Target,
};
use epiphyte_models::HeadKind;
use epiphyte_models::config::ProblemType;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, argmax, negative_log_likelihood, predict};
use crate::scoring::metrics::{self, ClassTable, ConfusionMatrix, DetailedScores};
use crate::scoring::predictions;

#[derive(Debug)]
pub(super) struct SequenceClassification;

impl Task for SequenceClassification {
    fn name(&self) -> &'static str {
        "sequence-classification"
    }

    fn summary(&self) -> &'static str {
        "one of several classes for a text or a pair of texts"
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

    fn fits(&self, outputs: usize, problem: Option<ProblemType>) -> bool {
        outputs > 1 && problem.is_none_or(|it| it == ProblemType::SingleLabelClassification)
    }

    fn problem_type(&self) -> Option<ProblemType> {
        Some(ProblemType::SingleLabelClassification)
    }

    fn head(&self, labels: usize) -> HeadKind {
        HeadKind::Classification { labels }
    }

    fn classes(&self, columns: &Columns, table: &Table) -> Result<Vec<String>, DataError> {
        Ok(LabelSet::from_column(table, columns.label())?
            .names()
            .to_vec())
    }

    fn check_training_data(&self, columns: &Columns, table: &Table) -> Result<(), DataError> {
        LabelSet::check_training_data(table, columns)
    }

    fn has_classes(&self) -> bool {
        true
    }

    fn layouts(&self) -> &'static [Layout] {
        TEXTS_AND_PAIRS
    }

    fn is_one_of_several(&self) -> bool {
        true
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        if !labelled {
            return spec.columns.texts(LabelField::Absent);
        }
        spec.columns.texts(LabelField::Class {
            column: spec.columns.label().to_owned(),
            labels: spec.label_set()?,
        })
    }

    fn scores(&self, classes: Option<usize>) -> Vec<&'static str> {
        let mut scores = vec![
            "accuracy",
            "f1",
            "f1_weighted",
            "loss",
            "matthews",
            "precision",
            "recall",
        ];
        if classes.is_some_and(|classes| classes <= 2) {
            scores.retain(|score| *score != "f1_weighted");
        }
        scores
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let logits = predict(evaluation, observer)?;
        let labels =
            evaluation
                .batches
                .examples()
                .iter()
                .filter_map(|example| match example.target {
                    Target::Class(class) => Some(class),
                    _ => None,
                });
        let labels: Vec<usize> = labels.collect();
        let predictions: Vec<usize> = logits.iter().map(|row| argmax(row)).collect();
        let confusion = ConfusionMatrix::new(&predictions, &labels, logits[0].len())?;
        let mut metrics = metrics::of_confusion(&confusion);
        let losses = logits
            .iter()
            .zip(&labels)
            .map(|(row, &label)| negative_log_likelihood(row, label));
        metrics.insert("loss", losses.sum::<f64>() / labels.len() as f64);
        Ok(DetailedScores {
            metrics,
            classes: Some(ClassTable::of_confusion(&confusion, &rows.spec.labels)),
        })
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let logits = predict(evaluation, observer)?;
        Ok(predictions::classes(&logits, &rows.spec.labels, format))
    }
}
