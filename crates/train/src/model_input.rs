//! From a batch of the data to the input of a model.

use epiphyte_data::{Batch, Targets};
use epiphyte_models::{DecoderTokens, Model, Tokens};
use epiphyte_ops::Sequences;

/// A batch as a model reads it.
#[derive(Debug)]
pub(crate) struct ModelInput<'a> {
    batch: &'a Batch,
    sequences: Sequences,
    /// The decoder's input ids and their sequences, for encoder-decoders.
    decoder: Option<(Vec<u32>, Sequences)>,
}

impl<'a> ModelInput<'a> {
    /// The input of `model` without dropout.
    pub(crate) fn new(model: &Model, batch: &'a Batch) -> Self {
        Self::with_sequences(model, batch, Sequences::new(batch.boundaries.clone()))
    }

    /// The input of `model` with a dropout key for each sequence.
    pub(crate) fn with_keys(model: &Model, batch: &'a Batch, keys: Vec<u64>) -> Self {
        let sequences = Sequences::new(batch.boundaries.clone());
        Self::with_sequences(model, batch, sequences.with_keys(keys))
    }

    /// An encoder-decoder's decoder reads the target text shifted right; without a target text, as in
    /// classification, the source text.
    fn with_sequences(model: &Model, batch: &'a Batch, sequences: Sequences) -> Self {
        let (labels, boundaries) = match &batch.targets {
            Targets::Sequences(target) => (target.labels.clone(), target.boundaries.clone()),
            _ => {
                let ids = batch.ids.iter().map(|&id| i64::from(id));
                (ids.collect(), batch.boundaries.clone())
            }
        };
        let rows = Sequences::new(boundaries);
        let rows = match sequences.keys() {
            Some(keys) => rows.with_keys(keys.to_vec()),
            None => rows,
        };
        let ids = model.backbone().decoder_input(&labels, &rows);
        Self {
            batch,
            sequences,
            decoder: ids.map(|ids| (ids, rows)),
        }
    }

    /// The model's tokens.
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        Tokens {
            ids: &self.batch.ids,
            type_ids: &self.batch.type_ids,
            sequences: self.sequences.clone(),
            decoder: self.decoder.as_ref().map(|(ids, rows)| DecoderTokens {
                ids,
                sequences: rows.clone(),
            }),
        }
    }
}

/// The model's targets of a batch; none if they are unknown.
pub(crate) fn targets(batch: &Batch) -> Option<epiphyte_models::Targets<'_>> {
    use epiphyte_models::Targets as Model;
    match &batch.targets {
        Targets::Classes(classes) => Some(Model::Classes(classes)),
        Targets::Numbers(numbers) => Some(Model::Values(numbers)),
        Targets::Tokens(labels) => Some(Model::Tokens(labels)),
        Targets::Sequences(target) => Some(Model::DecoderTokens(&target.labels)),
        Targets::Absent => None,
    }
}
