//! Regression: a number for a text or a pair of texts.

use epiphyte_data::{
    DataError, Fields, LabelField, Layout, OutputColumn, OutputFormat, TEXTS_AND_PAIRS, Target,
};
use epiphyte_models::HeadKind;
use epiphyte_models::config::ProblemType;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, predict};
use crate::scoring::metrics::{self, DetailedScores};
use crate::scoring::predictions;

#[derive(Debug)]
pub(super) struct Regression;

impl Task for Regression {
    fn name(&self) -> &'static str {
        "regression"
    }

    fn summary(&self) -> &'static str {
        "a number for a text or a pair of texts"
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
        outputs == 1 && problem != Some(ProblemType::MultiLabelClassification)
    }

    fn problem_type(&self) -> Option<ProblemType> {
        Some(ProblemType::Regression)
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::Classification { labels: 1 }
    }

    fn layouts(&self) -> &'static [Layout] {
        TEXTS_AND_PAIRS
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        spec.columns.texts(match labelled {
            true => LabelField::Number {
                column: spec.columns.label().to_owned(),
            },
            false => LabelField::Absent,
        })
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["loss", "mae", "mse", "pearson", "spearman"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let logits = predict(evaluation, observer)?;
        let predictions: Vec<f64> = logits.iter().map(|row| f64::from(row[0])).collect();
        let targets =
            evaluation
                .batches
                .examples()
                .iter()
                .filter_map(|example| match example.target {
                    Target::Number(number) => Some(f64::from(number)),
                    _ => None,
                });
        let mut metrics = metrics::regression(&predictions, &targets.collect::<Vec<_>>())?;
        metrics.insert("loss", metrics.get("mse").unwrap_or(f64::NAN));
        Ok(metrics.into())
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let logits = predict(evaluation, observer)?;
        let label = logits.iter().map(|row| predictions::number(row[0]));
        let mut columns = vec![("label".to_owned(), label.collect())];
        if format.nests() {
            columns.push(("logits".to_owned(), predictions::lists(&logits)));
        }
        Ok(columns)
    }
}
