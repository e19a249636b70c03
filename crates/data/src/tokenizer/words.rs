//! Token ids of words, kept: most words of a text occurred before.
//!
//! A tokenizer whose normalizer looks at one character at a time, and whose pre-tokenizer splits at
//! spaces and leaves them out, gives a text the ids of its words in a row. BERT's is one. Its ids
//! are then looked up, which takes a tenth of the time of computing them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use tokenizers::{Encoding, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

/// Threads that look up different words rarely wait for each other with this many tables.
const TABLES: usize = 64;
/// Words in a table. A word and its ids take about 100 bytes.
const WORDS: usize = 4096;
/// Longer words are not worth keeping.
const WORD_BYTES: usize = 32;

/// The ids of words.
type Table = HashMap<Box<str>, Box<[u32]>>;

/// The words of a tokenizer, and what its post-processor puts around texts.
#[derive(Debug)]
pub(super) struct Words {
    tables: Vec<Mutex<Table>>,
    hasher: RandomState,
    single: Frame,
    pair: Frame,
}

/// The ids around one or two texts, with their segments.
#[derive(Debug)]
struct Frame {
    /// In front of each text, and behind the last.
    around: Vec<(Vec<u32>, Vec<u32>)>,
    /// The segment of each text.
    segments: Vec<u32>,
}

impl Words {
    /// The words of a tokenizer whose texts are their words in a row; none for others.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let normalizer = match tokenizer.get_normalizer() {
            None | Some(NormalizerWrapper::BertNormalizer(_) | NormalizerWrapper::Lowercase(_)) => {
                true
            }
            Some(_) => false,
        };
        let splits = matches!(
            tokenizer.get_pre_tokenizer(),
            Some(
                PreTokenizerWrapper::BertPreTokenizer(_)
                    | PreTokenizerWrapper::Whitespace(_)
                    | PreTokenizerWrapper::WhitespaceSplit(_)
            )
        );
        let added = tokenizer.get_added_tokens_decoder();
        let spaced = added
            .values()
            .any(|token| token.content.contains(char::is_whitespace));
        if !normalizer || !splits || spaced {
            return None;
        }
        Some(Self {
            tables: (0..TABLES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            single: Frame::of(tokenizer, &["a"])?,
            pair: Frame::of(tokenizer, &["a", "b"])?,
        })
    }

    /// Ids and segments of a text or a pair, with special tokens.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        pair: Option<&str>,
    ) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
        let frame = match pair {
            Some(_) => &self.pair,
            None => &self.single,
        };
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        let (last, before) = frame.around.split_last().expect("a frame has an end");
        let texts = [Some(text), pair].into_iter().flatten();
        for ((around, text), segment) in before.iter().zip(texts).zip(&frame.segments) {
            ids.extend(&around.0);
            segments.extend(&around.1);
            for word in text.split(' ').filter(|word| !word.is_empty()) {
                self.append(tokenizer, word, &mut ids)?;
            }
            segments.resize(ids.len(), *segment);
        }
        ids.extend(&last.0);
        segments.extend(&last.1);
        Ok((ids, segments))
    }

    /// Appends the ids of a word.
    fn append(
        &self,
        tokenizer: &Tokenizer,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let table = self.hasher.hash_one(word) as usize % TABLES;
        let lock = || {
            self.tables[table]
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = lock().get(word) {
            ids.extend(known);
            return Ok(());
        }
        let encoding = tokenizer.encode_fast(word, false)?;
        ids.extend(encoding.get_ids());
        let mut table = lock();
        if table.len() < WORDS && word.len() <= WORD_BYTES {
            table.insert(word.into(), encoding.get_ids().into());
        }
        Ok(())
    }
}

impl Frame {
    /// What the post-processor puts around these texts; none if it changes or moves them.
    fn of(tokenizer: &Tokenizer, texts: &[&str]) -> Option<Self> {
        let plain = |text: &&str| tokenizer.encode_fast(*text, false).ok();
        let plain: Vec<Encoding> = texts.iter().map(plain).collect::<Option<_>>()?;
        let mut parts = plain.iter().cloned();
        let framed = tokenizer
            .post_process(parts.next()?, parts.next(), true)
            .ok()?;
        let (ids, types) = (framed.get_ids(), framed.get_type_ids());
        let special = framed.get_special_tokens_mask();
        let mut frame = Self {
            around: Vec::new(),
            segments: Vec::new(),
        };
        let mut end = 0;
        for text in &plain {
            let start = end + special[end..].iter().position(|&special| special == 0)?;
            let own = start..start + text.len();
            let first = *types.get(start)?;
            let changed = ids.get(own.clone())? != text.get_ids();
            if changed || types[own.clone()].iter().any(|&segment| segment != first) {
                return None;
            }
            let around = end..own.start;
            frame
                .around
                .push((ids[around.clone()].to_vec(), types[around].to_vec()));
            frame.segments.push(first);
            end = own.end;
        }
        frame
            .around
            .push((ids[end..].to_vec(), types[end..].to_vec()));
        let rest = special[end..].iter().all(|&special| special == 1);
        rest.then_some(frame)
    }
}
