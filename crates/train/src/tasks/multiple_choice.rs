//! Multiple choice: the right one of several texts for a text.

use epiphyte_data::{Columns, DataError, Fields, OutputColumn, OutputFormat, Table, Target};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, argmax, negative_log_likelihood, predict};
use crate::scoring::metrics::{DetailedScores, Metrics, share};
use crate::scoring::predictions;

/// The columns of data sets: the texts, and what the names of choices begin with.
const LAYOUTS: [(&[&str], &str); 2] = [
    (&["premise", "question"], "choice"),
    (&["sent1", "sent2"], "ending"),
];

#[derive(Debug)]
pub(super) struct MultipleChoice;

impl Task for MultipleChoice {
    fn name(&self) -> &'static str {
        "multiple-choice"
    }

    fn summary(&self) -> &'static str {
        "the right one of several texts for a text"
    }

    fn peft_task_type(&self) -> &'static str {
        // PEFT has no type of its own for it, and names the same modules.
        "SEQ_CLS"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForMultipleChoice"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "text-classification"
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::MultipleChoice
    }

    fn is_one_of_several(&self) -> bool {
        true
    }

    fn column_flags(&self) -> &'static str {
        "--text-columns, --choice-columns and --label-column"
    }

    /// Those of COPA in SuperGLUE (`premise`, `question`, `choice1`, `choice2`) and of SWAG
    /// (`sent1`, `sent2`, `ending0` to `ending3`).
    fn columns(&self, columns: &Columns, table: &Table) -> Result<Columns, DataError> {
        let mut columns = columns.clone();
        if !columns.text_columns.is_empty() || !columns.choice_columns.is_empty() {
            return Ok(columns);
        }
        let is_there = |(texts, _): &&(&[&str], &str)| texts.iter().all(|it| table.has_column(it));
        if let Some((texts, choice)) = LAYOUTS.iter().find(is_there) {
            let names = choice_names(choice);
            let choices = names.into_iter().filter(|name| table.has_column(name));
            columns.choice_columns = choices.collect();
            columns.text_columns = texts.iter().map(|&text| text.to_owned()).collect();
        }
        Ok(columns)
    }

    fn columns_to_read(&self, columns: &Columns) -> Result<Vec<String>, DataError> {
        let mut names = columns.named()?;
        for (texts, choice) in LAYOUTS {
            names.extend(texts.iter().map(|&text| text.to_owned()));
            names.extend(choice_names(choice));
        }
        Ok(names)
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        spec.columns.choices(labelled)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["accuracy", "loss"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let logits = predict(evaluation, observer)?;
        let (mut right, mut loss) = (0, 0.0);
        for (example, logits) in evaluation.batches.examples().iter().zip(&logits) {
            if let Target::Choice {
                chosen: Some(chosen),
                ..
            } = example.target
            {
                right += usize::from(argmax(logits) == chosen);
                loss += negative_log_likelihood(logits, chosen);
            }
        }
        Ok(Metrics::from_iter([
            ("accuracy", share(right, logits.len())?),
            ("loss", loss / logits.len() as f64),
        ])
        .into())
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let logits = predict(evaluation, observer)?;
        let numbers = 0..rows.spec.columns.choice_columns.len();
        let numbers: Vec<String> = numbers.map(|number| number.to_string()).collect();
        Ok(predictions::classes(&logits, &numbers, format))
    }
}

/// The names that columns of choices may have, which are counted from 0 or from 1.
fn choice_names(choice: &str) -> Vec<String> {
    (0..10).map(|number| format!("{choice}{number}")).collect()
}
