//! Causal language modeling: the next token of a text, of a completion, or of a chat's answers.

use epiphyte_data::{DOCUMENTS, DataError, Fields, Layout};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, token_scores};
use crate::scoring::metrics::DetailedScores;

#[derive(Debug)]
pub(super) struct CausalLm;

impl Task for CausalLm {
    fn name(&self) -> &'static str {
        "causal-lm"
    }

    fn summary(&self) -> &'static str {
        "the next token of a text, a completion or a chat"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["causal-language-modelling", "causal-language-modeling"]
    }

    fn peft_task_type(&self) -> &'static str {
        "CAUSAL_LM"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForCausalLM"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "text-generation"
    }

    fn is_of_class(&self, class: &str) -> bool {
        class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel")
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::LanguageModel
    }

    fn default_max_length(&self) -> usize {
        512
    }

    fn column_flags(&self) -> &'static str {
        "--text-columns, or --prompt-column (or --prompt-template) and --completion-column, or \
         --messages-column"
    }

    fn reads_whole_files(&self) -> bool {
        true
    }

    fn layouts(&self) -> &'static [Layout] {
        DOCUMENTS
    }

    fn fields(&self, spec: &TaskSpec, _labelled: bool) -> Result<Fields, DataError> {
        spec.columns.documents()
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
