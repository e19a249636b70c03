//! Extractive question answering: the part of a text that answers a question.

use epiphyte_data::{
    Columns, DataError, Fields, Layout, OutputColumn, OutputFormat, Table, Target, Value, Window,
    Windows, windows_of_row,
};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::answers::{AnswerRules, FoundAnswer, best_answer};
use crate::scoring::evaluate::{Evaluation, negative_log_likelihood, predict};
use crate::scoring::metrics::{AnswerPair, DetailedScores, answer_scores};
use crate::scoring::predictions;

/// The longest answer in tokens, if nothing is set: that of transformers' `run_qa.py`.
pub(crate) const MAX_ANSWER_LENGTH: usize = 30;

#[derive(Debug)]
pub(super) struct QuestionAnswering;

impl Task for QuestionAnswering {
    fn name(&self) -> &'static str {
        "question-answering"
    }

    fn summary(&self) -> &'static str {
        "the part of a text that answers a question"
    }

    fn peft_task_type(&self) -> &'static str {
        "QUESTION_ANS"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForQuestionAnswering"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "question-answering"
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::QuestionAnswering
    }

    fn default_max_length(&self) -> usize {
        384
    }

    fn reads_windows(&self) -> bool {
        true
    }

    fn layouts(&self) -> &'static [Layout] {
        &[Layout {
            name: "questions and their texts",
            columns: || Columns::of_texts(&["question", "context"]),
        }]
    }

    fn label_names(&self) -> &'static [&'static str] {
        &["answers"]
    }

    fn complete(&self, spec: &mut TaskSpec, train: &Table) -> Result<(), DataError> {
        spec.version_2_with_negative |= lacks_answers(spec.columns.label(), train)?;
        Ok(())
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        spec.columns.questions(labelled)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["exact_match", "f1", "loss"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let column = rows.spec.columns.label();
        let may_be_absent = rows.spec.version_2_with_negative || lacks_answers(column, rows.table)?;
        let logits = predict(evaluation, observer)?;
        let mut loss = 0.0;
        for (example, logits) in evaluation.batches.examples().iter().zip(&logits) {
            if let Target::Span(span) = example.target {
                let losses = span.iter().enumerate().map(|(side, &at)| {
                    let column: Vec<f32> = logits.chunks(2).map(|it| it[side]).collect();
                    negative_log_likelihood(&column, at)
                });
                loss += losses.sum::<f64>() / 2.0;
            }
        }
        let mut pairs = Vec::new();
        for (row, (context, found)) in answers(rows, &logits, may_be_absent)?.enumerate() {
            let answers = rows.table.answers(column, row)?;
            pairs.push(AnswerPair {
                prediction: found.text(context).to_owned(),
                answers: answers.into_iter().map(|answer| answer.text).collect(),
            });
        }
        let mut metrics = answer_scores(&pairs, may_be_absent)?;
        metrics.insert("loss", loss / logits.len() as f64);
        Ok(metrics.into())
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        _format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let logits = predict(evaluation, observer)?;
        let may_be_absent = rows.spec.version_2_with_negative;
        let (mut texts, mut starts, mut probabilities) = (Vec::new(), Vec::new(), Vec::new());
        for (context, found) in answers(rows, &logits, may_be_absent)? {
            texts.push(Value::Text(found.text(context).to_owned()));
            let start = found.part.map(|(start, _)| Value::Integer(start as i128));
            starts.push(start.unwrap_or(Value::Null));
            probabilities.push(predictions::number(found.probability as f32));
        }
        Ok(vec![
            ("answer".to_owned(), texts),
            ("answer_start".to_owned(), starts),
            ("probability".to_owned(), probabilities),
        ])
    }
}

/// Whether a question of a table has no answer.
fn lacks_answers(column: &str, table: &Table) -> Result<bool, DataError> {
    for row in 0..table.len() {
        if table.answers(column, row)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The text and the answer of each row, from the logits of its windows.
fn answers<'a>(
    rows: &'a TaskRows<'_>,
    logits: &'a [Vec<f32>],
    may_be_absent: bool,
) -> Result<impl Iterator<Item = (&'a str, FoundAnswer)>, TrainError> {
    let spec = rows.spec;
    let rules = AnswerRules {
        max_answer_length: spec.max_answer_length.unwrap_or(MAX_ANSWER_LENGTH),
        may_be_absent,
    };
    let [question, context] = &spec.columns.text_columns[..] else {
        unreachable!("the examples were made of two columns")
    };
    let contexts = rows.table.texts(context)?;
    let tokenizer = Windows::new(rows.tokenizer, spec.max_length, spec.doc_stride);
    let mut left = logits;
    let mut found = Vec::new();
    for (row, context_text) in contexts.into_iter().enumerate() {
        let columns = (question.as_str(), context.as_str());
        let windows = windows_of_row(rows.table, columns, row, &tokenizer)?;
        let (own, others) = left.split_at(windows.len());
        left = others;
        let own = own.iter().map(Vec::as_slice);
        let pairs: Vec<(&Window, &[f32])> = windows.iter().zip(own).collect();
        found.push((context_text, best_answer(&pairs, rules)));
    }
    Ok(found.into_iter())
}
