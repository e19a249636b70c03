//! From a batch of the data to the input of a model.

use burn::tensor::Device;
use epiphyte_data::{Batch, Examples, SOFT, Target, Targets, UNKNOWN};
use epiphyte_models::{Adapter, DecoderTokens, Model, Tokens};
use epiphyte_ops::{Sequences, on_processor};

use crate::TrainError;

// The data and the losses name the label that does not count independently of each other.
const _: () = assert!(epiphyte_data::IGNORED == epiphyte_ops::IGNORED);
// As do the data and the models with the id of a soft token.
const _: () = assert!(epiphyte_data::SOFT == epiphyte_models::SOFT_TOKEN);

/// About how many tokens a micro-batch holds on a processor, if the run does not say. Products with
/// this many rows are as fast as with more, and saved activations are in proportion to them.
pub(crate) const MICRO_BATCH_TOKENS: usize = 512;

/// About how many tokens a micro-batch holds: as many as are `set`, else what suits the device. A
/// GPU takes a batch whole.
pub(crate) fn micro_batch_tokens(set: Option<usize>, device: &Device) -> usize {
    set.unwrap_or_else(|| match on_processor(device) {
        true => MICRO_BATCH_TOKENS,
        false => usize::MAX,
    })
}

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

    /// An encoder-decoder's decoder reads the target text shifted right; without a target text, as
    /// in classification, the source text, or what stands before a word that is the class.
    fn with_sequences(model: &Model, batch: &'a Batch, sequences: Sequences) -> Self {
        let (labels, boundaries) = match (&batch.targets, model.decoder_prompt()) {
            (Targets::Sequences(target), _) => (target.labels.clone(), target.boundaries.clone()),
            (_, Some(beginning)) => {
                // The word behind it is not read.
                let each = beginning.iter().map(|&id| i64::from(id)).chain([0]);
                let (count, length) = (sequences.count(), beginning.len() + 1);
                let labels = std::iter::repeat_n(each, count).flatten().collect();
                (labels, (0..=count).map(|text| text * length).collect())
            }
            (_, None) => {
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
            cache: None,
        }
    }
}

/// The model's targets of a batch; none if they are unknown.
pub(crate) fn targets(batch: &Batch) -> Option<epiphyte_models::Targets<'_>> {
    use epiphyte_models::Targets as Model;
    match &batch.targets {
        Targets::Classes(classes) => Some(Model::Classes(classes)),
        Targets::Numbers(numbers) => Some(Model::Values(numbers)),
        Targets::ClassSets(sets) => Some(Model::ClassSets(sets)),
        Targets::TokenClasses(labels) => {
            let known = !labels.contains(&UNKNOWN);
            known.then_some(Model::TokenClasses(labels))
        }
        Targets::Spans { starts, ends } => Some(Model::Spans { starts, ends }),
        Targets::Choices { chosen, choices } => {
            let known = !chosen.contains(&UNKNOWN);
            known.then_some(Model::Choices {
                chosen,
                choices: *choices,
            })
        }
        Targets::Texts { texts, scores } => Some(Model::Texts {
            together: *texts,
            scores: scores.as_deref(),
        }),
        Targets::Tokens(labels) => Some(Model::Tokens(labels)),
        Targets::Sequences(target) => Some(Model::DecoderTokens(&target.labels)),
        Targets::Absent => None,
    }
}

/// The longest example for which the model has positions in addition to those that the adapter
/// takes; none if positions are unlimited.
pub(crate) fn longest_example(model: &Model, adapter: &dyn Adapter) -> Option<usize> {
    let limit = model.base().dimensions.max_positions?;
    Some(limit.saturating_sub(added_positions(adapter)))
}

/// The most positions that an adapter takes in a sequence.
pub(crate) fn added_positions(adapter: &dyn Adapter) -> usize {
    let prefix = adapter
        .prefix_length(false)
        .max(adapter.prefix_length(true));
    adapter.virtual_tokens() + prefix
}

/// Checks that the model has an embedding for each token.
///
/// # Errors
/// [`TrainError::Vocabulary`].
pub(crate) fn check_ids(model: &Model, ids: impl Iterator<Item = u32>) -> Result<(), TrainError> {
    let vocabulary = model.base().dimensions.vocabulary;
    match ids.max() {
        Some(id) if id as usize >= vocabulary => Err(TrainError::Vocabulary { id, vocabulary }),
        _ => Ok(()),
    }
}

/// Checks that the model has an embedding, a position and a segment for each token, with this
/// adapter, and a decoder of its own exactly if there are target texts. Every way from data to a
/// model's embeddings leads through here, and that of a prompt through [`check_ids`].
///
/// # Errors
/// [`TrainError::Vocabulary`], [`TrainError::ExampleTooLong`], [`TrainError::SoftTokens`],
/// [`TrainError::NoSuchSegment`], [`TrainError::NoDecoder`] or [`TrainError::NoTargetText`].
pub(crate) fn check_examples(
    model: &Model,
    adapter: &dyn Adapter,
    examples: &Examples,
) -> Result<(), TrainError> {
    check_ids(model, examples.largest_id().into_iter())?;
    let longest = examples.longest();
    let dimensions = &model.base().dimensions;
    if let (Some(room), Some(limit)) = (longest_example(model, adapter), dimensions.max_positions)
        && longest > room
    {
        return Err(TrainError::ExampleTooLong {
            length: longest,
            added: added_positions(adapter),
            limit,
        });
    }
    // Examples of one template have soft tokens alike.
    let first = examples.get(0).map_or(Vec::new(), |example| example.ids);
    let soft = first.iter().filter(|&&id| id == SOFT).count();
    if soft > 0 && soft != adapter.soft_tokens() {
        return Err(TrainError::SoftTokens {
            template: soft,
            adapter: adapter.soft_tokens(),
        });
    }
    let is_encoder_decoder = dimensions.encoder_layers > 0;
    // All targets are of one kind.
    match (
        examples.get(0).map(|example| example.target),
        is_encoder_decoder,
    ) {
        (Some(Target::Sequence(_)), false) => return Err(TrainError::NoDecoder),
        (Some(Target::Tokens(_)), true) => return Err(TrainError::NoTargetText),
        _ => {}
    }
    let segments = dimensions.type_vocabulary;
    let segment = examples.largest_type_id();
    match segments > 0 && segment as usize >= segments {
        true => Err(TrainError::NoSuchSegment { segment, segments }),
        false => Ok(()),
    }
}
