//! Sequence-to-sequence language modeling: a target text for a source text, with an
//! encoder-decoder.

use epiphyte_data::{Columns, DataError, Fields, Layout};
use epiphyte_models::HeadKind;

use super::{Task, TaskRows, TaskSpec};
use crate::TrainError;
use crate::observer::Observer;
use crate::scoring::evaluate::{Evaluation, token_scores};
use crate::scoring::metrics::DetailedScores;

#[derive(Debug)]
pub(super) struct Seq2Seq;

fn pairs(source: &str, target: &str) -> Columns {
    Columns {
        source_column: Some(source.to_owned()),
        target_column: Some(target.to_owned()),
        ..Columns::default()
    }
}

/// Besides `source` and `target`, the summarization data sets of `summarization_name_mapping` in
/// the example `run_summarization.py` of `transformers`.
static LAYOUTS: &[Layout] = &[
    Layout {
        name: "sources and targets",
        columns: || pairs("source", "target"),
    },
    Layout {
        name: "articles and highlights",
        columns: || pairs("article", "highlights"),
    },
    Layout {
        name: "dialogues and summaries",
        columns: || pairs("dialogue", "summary"),
    },
    Layout {
        name: "documents and summaries",
        columns: || pairs("document", "summary"),
    },
    Layout {
        name: "texts and summaries",
        columns: || pairs("text", "summary"),
    },
];

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

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModelForSeq2SeqLM"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
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

    fn layouts(&self) -> &'static [Layout] {
        LAYOUTS
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
