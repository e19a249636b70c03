//! Sentence embeddings: vectors of texts that are near each other where the texts are alike.
//!
//! | columns | what a row is | losses |
//! | --- | --- | --- |
//! | an anchor, its positive and, if at all, its negatives | texts of which the first two belong together | `multiple-negatives-ranking`, `multiple-negatives-symmetric-ranking` |
//! | two texts and a label | a pair with a score | `cosent`, `cosine-similarity` |
//!
//! A loss reads the whole batch, which therefore is one micro-batch: other texts of the batch are
//! the negatives of an anchor. Pairs with scores are scored by the correlation of cosine and score.
//! Of other rows, the anchors are queries and all positives and negatives the documents; relevant
//! to a query are the positives of all rows that it is the anchor of.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use epiphyte_data::{
    Columns, DataError, Examples, Fields, Layout, OutputColumn, OutputFormat, Target,
};
use epiphyte_models::HeadKind;
use epiphyte_models::heads::{EmbeddingHead, EmbeddingLoss};
use epiphyte_ops::{Weight, linear};
use serde_json::Value;

use super::{Task, TaskRows, TaskSpec};
use crate::error::MetricError;
use crate::observer::Observer;
use crate::scoring::embeddings::{RETRIEVAL, cosine, retrieval, similarity};
use crate::scoring::evaluate::{Evaluation, predict, value};
use crate::scoring::metrics::{DetailedScores, Metrics};
use crate::scoring::predictions;
use crate::sentence_transformers::Modules;
use crate::{RunConfig, TrainError};

/// Queries that are compared with all documents at once.
const QUERIES: usize = 64;

#[derive(Debug)]
pub(super) struct SentenceEmbedding;

static LAYOUTS: &[Layout] = &[
    Layout {
        name: "anchors, positives and negatives",
        columns: || Columns::of_texts(&["anchor", "positive", "negative"]),
    },
    Layout {
        name: "anchors and positives",
        columns: || Columns::of_texts(&["anchor", "positive"]),
    },
    Layout {
        name: "queries, positives and negatives",
        columns: || Columns::of_texts(&["query", "positive", "negative"]),
    },
    Layout {
        name: "queries and positives",
        columns: || Columns::of_texts(&["query", "positive"]),
    },
    Layout {
        name: "pairs of sentences with a score",
        columns: || Columns::of_texts(&["sentence1", "sentence2"]).with_label("score"),
    },
    Layout {
        name: "pairs of sentences with a score",
        columns: || Columns::of_texts(&["sentence1", "sentence2"]).with_label("label"),
    },
];

impl Task for SentenceEmbedding {
    fn name(&self) -> &'static str {
        "sentence-embedding"
    }

    fn summary(&self) -> &'static str {
        "a vector for a text, near those of texts like it"
    }

    fn peft_task_type(&self) -> &'static str {
        "FEATURE_EXTRACTION"
    }

    fn auto_class(&self, _spec: &TaskSpec) -> &'static str {
        "AutoModel"
    }

    fn pipeline_tag(&self, _spec: &TaskSpec) -> &'static str {
        "sentence-similarity"
    }

    fn is_of_class(&self, class: &str) -> bool {
        let heads = ["HeadModel", "HeadsModel"];
        class.ends_with("Model") && !heads.iter().any(|head| class.ends_with(head))
    }

    fn head(&self, _labels: usize) -> HeadKind {
        HeadKind::Embedding(EmbeddingHead::default())
    }

    fn head_of(&self, spec: &TaskSpec) -> HeadKind {
        HeadKind::Embedding(spec.embedding.unwrap_or_default())
    }

    fn column_flags(&self) -> &'static str {
        "--text-columns with an anchor, its positive and negatives, or --text-columns with two texts \
         and --label-column with a score"
    }

    fn layouts(&self) -> &'static [Layout] {
        LAYOUTS
    }

    fn fields(&self, spec: &TaskSpec, labelled: bool) -> Result<Fields, DataError> {
        spec.columns.compared_texts(labelled)
    }

    fn configure(&self, spec: &mut TaskSpec, run: &RunConfig) -> Result<(), TrainError> {
        let has_scores = spec.columns.label_column.is_some();
        let default = match has_scores {
            true => EmbeddingLoss::Cosent,
            false => EmbeddingLoss::MultipleNegativesRanking,
        };
        let loss = run.embedding_loss.unwrap_or(default);
        if loss.reads_scores() != has_scores {
            let needed = match loss.reads_scores() {
                true => "two text columns and a --label-column with their score",
                false => "an anchor and its positive, and no --label-column",
            };
            return Err(TrainError::Setting {
                key: "embedding_loss".to_owned(),
                problem: format!("`{loss}` needs {needed}"),
            });
        }
        let own = spec.embedding.unwrap_or_default();
        spec.embedding = Some(EmbeddingHead {
            pooling: run.pooling.unwrap_or(own.pooling),
            normalize: run.normalize.unwrap_or(own.normalize),
            loss,
        });
        Ok(())
    }

    fn of_directory(&self, spec: &mut TaskSpec, model: &Path) -> Result<(), TrainError> {
        if spec.embedding.is_none() {
            let modules = Modules::read(model)?;
            spec.max_length = modules.max_seq_length.unwrap_or(spec.max_length);
            spec.embedding = Some(EmbeddingHead {
                pooling: modules.pooling,
                normalize: modules.normalize,
                ..EmbeddingHead::default()
            });
        }
        Ok(())
    }

    fn files(&self, spec: &TaskSpec, hidden_size: usize) -> Vec<(PathBuf, Value)> {
        let head = spec.embedding.unwrap_or_default();
        let modules = Modules {
            pooling: head.pooling,
            normalize: head.normalize,
            max_seq_length: Some(spec.max_length),
        };
        modules.files(hidden_size)
    }

    fn scores(&self, _classes: Option<usize>) -> Vec<&'static str> {
        let mut scores = [&["loss", "pearson", "spearman"][..], &RETRIEVAL].concat();
        scores.sort_unstable();
        scores
    }

    fn evaluate(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<DetailedScores, TrainError> {
        let vectors = Vectors::new(evaluation, rows, observer)?;
        let examples = evaluation.batches.examples();
        let scores = examples.iter().filter_map(|example| match example.target {
            Target::Texts { score, .. } => score,
            _ => None,
        });
        let scores: Vec<f32> = scores.collect();
        let mut metrics = match scores.is_empty() {
            true => vectors.retrieval(examples)?,
            false => {
                let pair = |index| (vectors.of(index, 0), vectors.of(index, 1));
                let cosines = (0..examples.len()).map(pair).map(|(a, b)| cosine(a, b));
                let scores: Vec<f64> = scores.iter().map(|&score| score.into()).collect();
                similarity(&cosines.collect::<Vec<_>>(), &scores)?
            }
        };
        let head = rows.spec.embedding.unwrap_or_default();
        let head = EmbeddingHead {
            // An adapter may be evaluated on data of another kind than it was trained on.
            loss: match (head.loss.reads_scores(), scores.is_empty()) {
                (true, true) => EmbeddingLoss::MultipleNegativesRanking,
                (false, false) => EmbeddingLoss::Cosent,
                _ => head.loss,
            },
            ..head
        };
        metrics.insert("loss", vectors.loss(head, evaluation, &scores)?);
        Ok(metrics.into())
    }

    fn predictions(
        &self,
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        format: OutputFormat,
        observer: &mut dyn Observer,
    ) -> Result<Vec<OutputColumn>, TrainError> {
        let vectors = Vectors::new(evaluation, rows, observer)?;
        let texts = rows.spec.columns.text_columns.iter().enumerate();
        let columns = texts.flat_map(|(text, column)| {
            let name = match vectors.texts {
                1 => "embedding".to_owned(),
                _ => format!("embedding_{column}"),
            };
            let own = vectors.all.iter().skip(text).step_by(vectors.texts);
            let own: Vec<Vec<f32>> = own.cloned().collect();
            if format.nests() {
                return vec![(name, predictions::lists(&own))];
            }
            let value = |row: &Vec<f32>, index: usize| predictions::number(row[index]);
            let one = |index| {
                let values = own.iter().map(|row| value(row, index));
                (format!("{name}_{index}"), values.collect())
            };
            (0..own[0].len()).map(one).collect()
        });
        Ok(columns.collect())
    }
}

/// The embeddings of all texts of a data set, each example's in a row.
struct Vectors {
    all: Vec<Vec<f32>>,
    texts: usize,
}

impl Vectors {
    fn new(
        evaluation: &Evaluation<'_>,
        rows: &TaskRows<'_>,
        observer: &mut dyn Observer,
    ) -> Result<Self, TrainError> {
        let texts = rows.spec.columns.text_columns.len().max(1);
        let examples = predict(evaluation, observer)?;
        let of_text = |example: Vec<f32>| {
            let size = example.len() / texts;
            let vectors = example.chunks(size.max(1)).map(<[f32]>::to_vec);
            vectors.collect::<Vec<_>>()
        };
        Ok(Self {
            all: examples.into_iter().flat_map(of_text).collect(),
            texts,
        })
    }

    /// The embedding of a text of an example.
    fn of(&self, example: usize, text: usize) -> &[f32] {
        &self.all[example * self.texts + text]
    }

    /// Some of the vectors, `[vectors, hidden]`.
    fn tensor<'v>(&self, vectors: impl Iterator<Item = &'v Vec<f32>>) -> Tensor<2> {
        let vectors: Vec<f32> = vectors.flatten().copied().collect();
        let size = self.all[0].len();
        let shape = [vectors.len() / size, size];
        Tensor::from_data(
            TensorData::new(vectors, shape),
            &burn::tensor::Device::flex(),
        )
    }

    /// The mean loss over the batches of the evaluation.
    fn loss(
        &self,
        head: EmbeddingHead,
        evaluation: &Evaluation<'_>,
        scores: &[f32],
    ) -> Result<f64, TrainError> {
        let size = evaluation.batches.batch_size();
        let (mut sum, mut count, mut scores) = (0.0, 0, scores.chunks(size));
        for batch in self.all.chunks(size * self.texts) {
            let examples = batch.len() / self.texts;
            let embeddings = self.tensor(batch.iter());
            if let Some(loss) = head.loss(embeddings, self.texts, scores.next(), 0.0) {
                sum += f64::from(value(loss)) * examples as f64;
                count += examples;
            }
        }
        match count {
            0 => Err(MetricError::Empty.into()),
            _ => Ok(sum / count as f64),
        }
    }

    /// The scores of a search: anchors are the queries, the other texts the documents.
    fn retrieval(&self, examples: &Examples) -> Result<Metrics, TrainError> {
        let (mut queries, mut documents) = (Distinct::default(), Distinct::default());
        let mut relevant: Vec<Vec<usize>> = Vec::new();
        for (index, example) in examples.iter().enumerate() {
            let Target::Texts { lengths, .. } = &example.target else {
                continue;
            };
            let mut ids = example.ids.as_slice();
            for (text, &length) in lengths.iter().enumerate() {
                let (own, rest) = ids.split_at(length);
                ids = rest;
                let vector = index * self.texts + text;
                match text {
                    0 => {
                        queries.number(own, vector);
                    }
                    _ => {
                        documents.number(own, vector);
                    }
                }
                if text == 1 {
                    let anchor = &example.ids[..lengths[0]];
                    let query = queries.number(anchor, index * self.texts);
                    relevant.resize_with(queries.vectors.len(), Vec::new);
                    let document = documents.number(own, vector);
                    if !relevant[query].contains(&document) {
                        relevant[query].push(document);
                    }
                }
            }
        }
        let unit = |vectors: &[usize]| {
            let vectors = vectors.iter().map(|&vector| &self.all[vector]);
            let vectors = self.tensor(vectors);
            let squares = (vectors.clone() * vectors.clone()).sum_dim(1);
            vectors / squares.sqrt().clamp_min(f32::MIN_POSITIVE)
        };
        let corpus = Weight::Trained(unit(&documents.vectors));
        let mut similarities = Vec::with_capacity(queries.vectors.len());
        for queries in queries.vectors.chunks(QUERIES) {
            let all = linear(unit(queries), &corpus, None);
            let all = all.try_into_vec_as::<f32>();
            let all = all.expect("cosines are f32 on a device that can be read");
            let rows = all.chunks(documents.vectors.len());
            similarities.extend(rows.map(<[f32]>::to_vec));
        }
        let relevant = relevant.iter().map(Vec::as_slice);
        Ok(retrieval(
            similarities.iter().map(Vec::as_slice).zip(relevant),
        )?)
    }
}

/// Texts without their repetitions, in the order in which they come first.
#[derive(Default)]
struct Distinct {
    numbers: HashMap<Vec<u32>, usize>,
    /// The vector of each text.
    vectors: Vec<usize>,
}

impl Distinct {
    /// The number of a text, whose vector this is if it is new.
    fn number(&mut self, ids: &[u32], vector: usize) -> usize {
        let next = self.vectors.len();
        let number = *self.numbers.entry(ids.to_vec()).or_insert(next);
        if number == next {
            self.vectors.push(vector);
        }
        number
    }
}
