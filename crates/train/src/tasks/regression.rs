//! Regression: a number for a text or a pair of texts.

use epiphyte_data::{DataError, Fields, LabelField, Target};
use epiphyte_models::HeadKind;

use super::{Task, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, predict};
use crate::scoring::metrics::{self, Metrics};

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

    fn pipeline_tag(&self) -> &'static str {
        "text-classification"
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::Classification { labels: 1 }
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
        observer: &mut dyn Observer,
    ) -> Result<Metrics, TrainError> {
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
        Ok(metrics)
    }
}
