//! Masked language modeling: the tokens that are hidden in a text.
//!
//! In training other tokens are hidden in each epoch; an evaluation always hides the same.

use epiphyte_data::{
    DataError, Fields, LabelField, Layout, Masking, OutputColumn, OutputFormat, PLAIN_TEXT,
    Tokenizer,
};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, token_scores};
use crate::scoring::metrics::DetailedScores;

#[derive(Debug)]
pub(super) struct MaskedLm;

impl Task for MaskedLm {
    fn name(&self) -> &'static str {
        "masked-lm"
    }

    fn summary(&self) -> &'static str {
        "the tokens that are hidden in a text"
    }

    fn peft_task_type(&self) -> &'static str {
        ""
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForMaskedLM"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "fill-mask"
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::MaskedLm
    }

    fn column_flags(&self) -> &'static str {
        "--text-columns"
    }

    fn layouts(&self) -> &'static [Layout] {
        &[PLAIN_TEXT]
    }

    fn fields(&self, spec: &TaskSpec, _labelled: bool) -> Result<Fields, DataError> {
        spec.columns.texts(LabelField::Absent)
    }

    fn masking(&self, tokenizer: &Tokenizer, seed: u64) -> Result<Option<Masking>, DataError> {
        Masking::new(tokenizer, seed).map(Some)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        vec!["loss", "perplexity"]
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        token_scores(evaluation, observer)
    }

    fn predictions(
        &self,
        _evaluation: &Evaluation<'_>,
        _rows: &TaskRows<'_>,
        _format: OutputFormat,
        _observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        Err(TrainError::NothingHidden)
    }
}
