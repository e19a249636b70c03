//! Texts that a model writes about the rows of a data set, and their scores.
//!
//! Rows with the same prompt are written about once, and the text of each of them is a reference.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use epiphyte_data::{Table, Tokenizer, WritingPrompt};
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::{Adapter, Model};
use serde::{Deserialize, Serialize};

use crate::generate::{Generation, GenerationEnd, check_prompts, generate_all};
use crate::observer::Observer;
use crate::scoring::metrics::texts::{ScoredText, TextMetric};
use crate::scoring::metrics::{MeteorTables, Metrics};
use crate::tasks::{TaskModel, TaskRows};
use crate::{RunConfig, TrainError};

/// What a model is to write about, how it writes, and what scores its texts.
#[derive(Clone, Debug)]
pub struct TextEvaluation {
    /// The different prompts of the rows, each with at least one text that would be right.
    prompts: Vec<WritingPrompt>,
    /// How tokens are chosen.
    generation: Generation,
    /// Texts before which a text ends.
    stop: Vec<String>,
    /// What scores the texts.
    metrics: Vec<TextMetric>,
    /// The tables that METEOR needs.
    tables: Option<Arc<MeteorTables>>,
}

/// A text that a model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenText {
    /// The text, up to where it stops.
    pub text: String,
    /// Its tokens, those behind a text to stop at included.
    pub tokens: usize,
    /// Why there are no more tokens.
    pub end: GenerationEnd,
}

/// What the writing of an evaluation took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WritingCost {
    /// The number of texts.
    pub texts: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Seconds.
    pub seconds: f64,
}

impl TextEvaluation {
    /// Takes the prompts of `rows`. `references` is the column of the texts that would be right,
    /// each cell a text or a list of texts; if not given, the column that the model learns to
    /// write. A text ends before any of the texts `stop`, too.
    ///
    /// # Errors
    /// [`TrainError::WritesNoText`] for a task whose model writes nothing;
    /// [`TrainError::NoReference`] if a prompt has no text that would be right; if columns are
    /// missing or a row cannot be read.
    pub fn new(
        rows: &TaskRows<'_>,
        references: Option<&str>,
        generation: Generation,
        stop: Vec<String>,
        metrics: Vec<TextMetric>,
        tables: Option<MeteorTables>,
    ) -> Result<Self, TrainError> {
        let TaskRows {
            table,
            tokenizer,
            spec,
        } = rows;
        if !spec.task.predicts_text() {
            return Err(TrainError::WritesNoText { task: spec.task });
        }
        let prompts = spec.prompts(table, tokenizer, references)?;
        match prompts.iter().find(|prompt| prompt.references.is_empty()) {
            Some(prompt) => Err(TrainError::NoReference {
                path: table.path().to_owned(),
                row: prompt.row + 1,
            }),
            None => Ok(Self {
                prompts,
                generation,
                stop,
                metrics,
                tables: tables.map(Arc::new),
            }),
        }
    }

    /// What the evaluations of a run write about `table`; none if the run asks for no texts.
    /// Decoding is greedy or, with `num_beams`, a beam search, also where the
    /// `generation_config.json` in `model_dir` says that tokens are drawn.
    ///
    /// # Errors
    /// As [`TextEvaluation::new`]; if `generation_config.json` is malformed.
    pub(crate) fn of_run(
        run: &RunConfig,
        task_model: &TaskModel,
        model_dir: &Path,
        table: &Table,
    ) -> Result<Option<Self>, TrainError> {
        if run.metrics.is_empty() {
            return Ok(None);
        }
        let TaskModel {
            loaded,
            tokenizer,
            spec,
        } = task_model;
        let chat = spec.columns.messages_column.is_some();
        let special = GenerationConfig::open(model_dir, &loaded.config)?;
        let generation = Generation {
            max_new_tokens: run.max_new_tokens,
            num_beams: run.num_beams,
            ..Generation::of_model(&special, &loaded.config, tokenizer, chat)?
        };
        let rows = task_model.rows(table);
        let tables = run.meteor_data.as_deref().map(MeteorTables::open);
        let (tables, metrics) = (tables.transpose()?, run.metrics.clone());
        Self::new(&rows, None, generation, Vec::new(), metrics, tables).map(Some)
    }

    /// The prompts, in the order in which texts are written.
    pub fn prompts(&self) -> &[WritingPrompt] {
        &self.prompts
    }

    /// Checks that every prompt leaves room for a token.
    ///
    /// # Errors
    /// As [`TextEvaluation::write`] before the first text.
    pub(crate) fn check(&self, model: &Model, adapter: &dyn Adapter) -> Result<(), TrainError> {
        check_prompts(model, adapter, &self.ids(), &self.generation)
    }

    /// Has the model write about each prompt, `at_once` of them together, which changes no text.
    ///
    /// # Errors
    /// As [`generate_all`]; if the tokenizer cannot read what the model wrote.
    pub fn write(
        &self,
        model: &Model,
        adapter: &dyn Adapter,
        tokenizer: &Tokenizer,
        at_once: usize,
        observer: &mut dyn Observer,
    ) -> Result<Vec<WrittenText>, TrainError> {
        let ids = self.ids();
        let generated = generate_all(model, adapter, &ids, &self.generation, at_once, observer)?;
        let texts = generated.into_iter().map(|generated| {
            let mut text = tokenizer.decode(&generated.ids, true)?;
            let stops = self.stop.iter();
            if let Some(end) = stops.filter_map(|stop| text.find(stop)).min() {
                text.truncate(end);
            }
            Ok(WrittenText {
                text,
                tokens: generated.ids.len(),
                end: generated.end,
            })
        });
        texts.collect()
    }

    /// The scores of what a model wrote, a text for each prompt.
    ///
    /// # Errors
    /// [`MetricError::Empty`](crate::error::MetricError::Empty) if there are no texts.
    pub fn scores(&self, texts: &[WrittenText]) -> Result<Metrics, TrainError> {
        let scored = self.prompts.iter().zip(texts);
        let scored = scored.map(|(prompt, written)| ScoredText {
            text: &written.text,
            references: &prompt.references,
        });
        let scored: Vec<ScoredText<'_>> = scored.collect();
        let mut scores = Metrics::default();
        for metric in &self.metrics {
            scores.extend(metric.scores(&scored, self.tables.as_deref())?);
        }
        Ok(scores)
    }

    /// Writes and scores, and says what the writing took.
    ///
    /// # Errors
    /// As [`TextEvaluation::write`] and [`TextEvaluation::scores`].
    pub(crate) fn evaluate(
        &self,
        model: &Model,
        adapter: &dyn Adapter,
        tokenizer: &Tokenizer,
        at_once: usize,
        observer: &mut dyn Observer,
    ) -> Result<(Metrics, WritingCost), TrainError> {
        let started = Instant::now();
        let texts = self.write(model, adapter, tokenizer, at_once, observer)?;
        let cost = WritingCost {
            texts: texts.len(),
            tokens: texts.iter().map(|written| written.tokens).sum(),
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((self.scores(&texts)?, cost))
    }

    /// The tokens of the prompts.
    fn ids(&self) -> Vec<&[u32]> {
        self.prompts.iter().map(|prompt| &prompt.ids[..]).collect()
    }
}
