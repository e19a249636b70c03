//! A text that grows, and the logits of its next token.

use epiphyte_models::{Adapter, AdapterBatch, Cache, DecoderTokens, Entry, Mode, Model, Tokens};
use epiphyte_ops::{Sequences, awake};

use super::{Generated, Generation, GenerationEnd, Room};
use crate::TrainError;

/// How many tokens of a prompt are read at once, which bounds memory.
const PROMPT_CHUNK: usize = 512;

/// Passes over this many rows and fewer are made of products that are shorter than waking a thread.
const FEW_ROWS: usize = 32;

/// The tokens chosen so far behind those that the text begins with, and what the model keeps of
/// those that it has read.
#[derive(Clone)]
pub(super) struct Text<'a> {
    how: &'a Generation,
    room: Room,
    /// The encoder's text, for encoder-decoders.
    source: Option<&'a [u32]>,
    ids: Vec<u32>,
    /// Where new tokens begin.
    begin: usize,
    /// How many tokens the cache holds.
    read: usize,
    /// None where every token is read anew each time.
    cache: Option<Cache>,
    /// Why there are no more tokens; none while there may be.
    end: Option<GenerationEnd>,
}

impl<'a> Text<'a> {
    /// A prompt that was not read yet: a decoder's text begins with it; an encoder reads it, and
    /// the text begins with the start token.
    pub(super) fn new(
        adapter: &dyn Adapter,
        prompt: &'a [u32],
        how: &'a Generation,
        room: Room,
    ) -> Self {
        let whole = adapter.reads_whole_sequences() || adapter.first_pass().is_some();
        let ids = match room.start {
            Some(start) => vec![start],
            None => prompt.to_vec(),
        };
        Self {
            how,
            room,
            source: room.start.map(|_| prompt),
            begin: ids.len(),
            ids,
            read: 0,
            cache: (!whole).then(Cache::new),
            end: Some(room.end).filter(|_| room.tokens == 0),
        }
    }

    /// How tokens are chosen.
    pub(super) fn how(&self) -> &'a Generation {
        self.how
    }

    /// What the text begins with, and the tokens chosen so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The tokens chosen so far.
    pub(super) fn new_ids(&self) -> &[u32] {
        &self.ids[self.begin..]
    }

    /// Adds a token that was chosen; the text ends if no more may follow.
    pub(super) fn push(&mut self, id: u32) {
        self.ids.push(id);
        if self.new_ids().len() == self.room.tokens {
            self.end = Some(self.room.end);
        }
    }

    /// Ends the text.
    pub(super) fn end(&mut self, end: GenerationEnd) {
        self.end = Some(end);
    }

    /// Whether more tokens may follow.
    pub(super) fn goes_on(&self) -> bool {
        self.end.is_none()
    }

    /// What was written.
    pub(super) fn generated(&self) -> Generated {
        Generated {
            ids: self.new_ids().to_vec(),
            end: self.end.unwrap_or(self.room.end),
        }
    }

    /// Why the text ends before `token`, if it does.
    pub(super) fn end_before(&self, token: u32) -> Option<GenerationEnd> {
        let end = match self.forced_end() {
            Some(_) => self.room.end,
            None => GenerationEnd::Stop,
        };
        Some(end).filter(|_| self.how.stop.contains(&token))
    }

    /// The next token, where it is the last and not for an encoder-decoder to choose.
    fn forced_end(&self) -> Option<u32> {
        let is_last = self.new_ids().len() + 1 == self.room.tokens;
        let forced = self.how.forced_eos_token_id;
        forced.filter(|_| self.source.is_some() && is_last)
    }

    /// The next token, where it is not for an encoder-decoder to choose.
    fn forced(&self) -> Option<u32> {
        let is_first = self.source.is_some() && self.new_ids().is_empty();
        let first = self.how.forced_bos_token_id.filter(|_| is_first);
        self.forced_end().or(first)
    }

    /// Reads a decoder's text up to its last [`PROMPT_CHUNK`] tokens, in chunks; forgets what was
    /// read if the model's keys depend on the text's length.
    fn read_ahead(&mut self, model: &Model, adapter: &dyn Adapter) {
        let Some(cache) = self.cache.as_mut().filter(|_| self.source.is_none()) else {
            return;
        };
        let added = adapter.virtual_tokens() + adapter.prefix_length(false);
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

    /// The tokens of the next pass; `zeros` are at least as many as tokens.
    fn next_tokens<'t>(&'t self, zeros: &'t [u32]) -> Tokens<'t> {
        let whole = |ids: &[u32]| Sequences::new(vec![0, ids.len()]);
        let ids = &self.ids[self.read..];
        match (self.source, &self.cache) {
            (None, Some(cache)) => Tokens::continuing(ids, &zeros[..ids.len()], cache),
            (None, None) => Tokens::new(ids, &zeros[..ids.len()], whole(ids)),
            (Some(source), cache) => Tokens {
                decoder: Some(match cache {
                    Some(cache) => DecoderTokens::continuing(ids, cache),
                    None => DecoderTokens {
                        ids,
                        sequences: whole(ids),
                    },
                }),
                cache: cache.as_ref(),
                ..Tokens::new(source, &zeros[..source.len()], whole(source))
            },
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
    texts: &mut [&mut Text<'_>],
) -> Result<Vec<Vec<f32>>, TrainError> {
    for text in texts.iter_mut() {
        text.read_ahead(model, adapter);
    }
    let lengths = texts
        .iter()
        .map(|text| text.ids.len().max(text.source.map_or(0, <[u32]>::len)));
    let zeros = vec![0; lengths.max().unwrap_or(0)];
    let tokens: Vec<Tokens<'_>> = texts.iter().map(|text| text.next_tokens(&zeros)).collect();
    let entries = tokens.iter().map(|tokens| Entry {
        adapter,
        tokens,
        mode: Mode::Evaluation,
        streams: &[],
    });
    let batch = AdapterBatch::new(entries);
    let rows: usize = tokens.iter().map(|tokens| tokens.sequences.tokens()).sum();
    let logits = match rows <= FEW_ROWS {
        true => awake(|| model.batch_logits(&batch)),
        false => model.batch_logits(&batch),
    };
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
    let mut logits: Vec<Vec<f32>> = logits.chunks(vocabulary).map(<[f32]>::to_vec).collect();
    for (text, logits) in texts.iter_mut().zip(&mut logits) {
        text.read = match text.cache {
            Some(_) => text.ids.len(),
            None => 0,
        };
        if let Some(forced) = text.forced() {
            logits.fill(f32::NEG_INFINITY);
            logits[forced as usize] = 0.0;
        }
    }
    Ok(logits)
}
