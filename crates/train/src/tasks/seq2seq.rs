//! Sequence-to-sequence language modeling: a target text for a source text, with an
//! encoder-decoder.

use epiphyte_data::{DataError, Fields};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, token_scores};
use crate::scoring::metrics::DetailedScores;

#[derive(Debug)]
pub(super) struct Seq2Seq;

impl Task for Seq2Seq {
    fn name(&self) -> &'static str {
        "seq2seq"
    }

    fn summary(&self) -> &'static str {
        "a target text for a source text, by an encoder-decoder"
    }

    fn peft_task_type(&self) -> &'static str {
        "SEQ_2_SEQ_LM"
    }

    fn auto_class(&self) -> &'static str {
        "AutoModelForSeq2SeqLM"
    }

    fn pipeline_tag(&self) -> &'static str {
        "text2text-generation"
    }

    fn is_of_class(&self, class: &str) -> bool {
        class.ends_with("ForConditionalGeneration")
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::LanguageModel
    }

    fn default_max_length(&self) -> usize {
        512
    }

    fn column_flags(&self) -> &'static str {
        "--source-column and --target-column"
    }

    fn fields(&self, spec: &TaskSpec, _labelled: bool) -> Result<Fields, DataError> {
        spec.columns.source_target()
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
}
