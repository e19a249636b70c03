//! A text that grows, and the logits of its next token.

use epiphyte_models::{Adapter, AdapterBatch, Cache, Entry, Mode, Model, Tokens};
use epiphyte_ops::Sequences;

use crate::TrainError;

/// How many tokens of a prompt are read at once, which bounds memory.
const PROMPT_CHUNK: usize = 512;

/// A prompt with the tokens chosen so far, and what the model keeps of those that it has read.
#[derive(Clone)]
pub(super) struct Text {
    ids: Vec<u32>,
    /// How many of them the cache holds.
    read: usize,
    /// None where every token is read anew each time.
    cache: Option<Cache>,
}

impl Text {
    /// A prompt that was not read yet.
    pub(super) fn new(model: &Model, adapter: &dyn Adapter, prompt: &[u32]) -> Self {
        let whole = adapter.reads_whole_sequences() || adapter.needs_base_pass();
        let decodes = model.base().dimensions.encoder_layers == 0;
        Self {
            ids: prompt.to_vec(),
            read: 0,
            cache: (decodes && !whole).then(Cache::new),
        }
    }

    /// The prompt and the tokens chosen so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Adds a token that was chosen.
    pub(super) fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// Reads the text up to its last [`PROMPT_CHUNK`] tokens, in chunks; forgets what was read if
    /// the model's keys depend on the text's length.
    fn read_ahead(&mut self, model: &Model, adapter: &dyn Adapter) {
        let Some(cache) = &mut self.cache else {
            return;
        };
        let added = adapter.virtual_tokens() + adapter.prefix_length();
        let length = added + self.ids.len();
        let keeps = |read: usize| model.backbone().keeps_keys(read, length);
        if self.read > 0 && !keeps(added + self.read) {
            *cache = Cache::new();
            self.read = 0;
        }
        while self.ids.len() - self.read > PROMPT_CHUNK && keeps(added + self.read + PROMPT_CHUNK) {
            let ids = &self.ids[self.read..self.read + PROMPT_CHUNK];
            let type_ids = vec![0; ids.len()];
            let tokens = Tokens::continuing(ids, &type_ids, cache);
            model.batch_logits(&AdapterBatch::single(adapter, &tokens));
            self.read += PROMPT_CHUNK;
        }
    }
}

/// The logits of the token that follows each text, of the size of the vocabulary.
///
/// # Errors
/// [`TrainError::NotFinite`] if one is NaN.
pub(super) fn next_logits(
    model: &Model,
    adapter: &dyn Adapter,
    texts: &mut [Text],
) -> Result<Vec<Vec<f32>>, TrainError> {
    for text in texts.iter_mut() {
        text.read_ahead(model, adapter);
    }
    let type_ids: Vec<Vec<u32>> = texts.iter().map(|text| vec![0; text.ids.len()]).collect();
    let tokens: Vec<Tokens<'_>> = texts
        .iter()
        .zip(&type_ids)
        .map(|(text, type_ids)| match &text.cache {
            Some(cache) => {
                Tokens::continuing(&text.ids[text.read..], &type_ids[text.read..], cache)
            }
            None => Tokens::new(&text.ids, type_ids, Sequences::new(vec![0, text.ids.len()])),
        })
        .collect();
    let entries = tokens.iter().map(|tokens| Entry {
        adapter,
        tokens,
        mode: Mode::Evaluation,
    });
    let logits = model.batch_logits(&AdapterBatch::new(entries));
    let vocabulary = logits.dims()[1];
    let logits = logits
        .inner()
        .try_into_vec_as::<f32>()
        .expect("logits are f32 and can be read");
    if let Some(at) = logits.iter().position(|logit| logit.is_nan()) {
        let length = texts[at / vocabulary].ids.len();
        return Err(TrainError::NotFinite {
            what: format!("a logit after {length} tokens"),
        });
    }
    for text in texts {
        text.read = text.ids.len();
    }
    Ok(logits.chunks(vocabulary).map(<[f32]>::to_vec).collect())
}
