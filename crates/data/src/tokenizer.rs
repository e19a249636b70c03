//! The base model's tokenizer: text to token ids, and token ids to text.
//!
//! A wrapper of the `tokenizers` crate, so that a change of that crate's interface changes this
//! folder only. It follows `transformers` 5: where there is a tokenizer.json, it alone decides how
//! a text becomes ids and which special tokens surround it (`add_bos_token` in
//! tokenizer_config.json is ignored); where there is none, one is made of older files
//! (`older_files`) or of a GGUF file ([`gguf`]). Truncation is `longest_first` on the configured
//! side. Truncation and padding
//! stored in tokenizer.json are ignored, as `transformers` ignores them by default; nothing is
//! ever padded. So is the `dropout` of a BPE model, which would give a text other tokens each
//! time.

mod division;
pub mod gguf;
mod guard;
mod older_files;
mod windows;
mod words;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use epiphyte_io::gguf::{GgufFile, model_file};
use epiphyte_io::{FileError, mistaken_file, read_regular, sha256};
use indexmap::IndexMap;
use serde_json::{Map, Value as Json};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};
use tokenizers::{ModelWrapper, PostProcessor, PreTokenizerWrapper};

use self::guard::Sizes;
pub use self::windows::{Window, Windows};
use self::words::Words;
use crate::chat::{ChatTemplate, Day};
use crate::error::DataError;
use crate::panics::guarded;
use crate::prompt::before_blank;

/// A model without a limit writes a number like 1e30 as `model_max_length`.
const NO_LIMIT: u64 = 1_000_000_000;

/// A text, or a pair, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Segment ids, as long as `ids`: which of the two texts a token belongs to, as the model's
    /// post-processor counts.
    pub type_ids: Vec<u32>,
    /// How many tokens were removed to fit `max_length`.
    pub removed: usize,
}

/// Token ids with each token's byte range in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alignment {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Start and end of each token's bytes in the text; (0, 0) for tokens that the post-processor
    /// added.
    pub offsets: Vec<(usize, usize)>,
}

/// The token of a hidden word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask<'a> {
    /// Its id.
    pub id: u32,
    /// Its spelling.
    pub token: &'a str,
}

/// The first of T5's sentinel tokens, each of which stands for words that are missing.
const SENTINEL: &str = "<extra_id_0>";

/// A tokenizer loaded from a model directory.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// For a tokenizer whose texts are their words in a row.
    words: Option<Arc<Words>>,
    directory: PathBuf,
    /// The file with the vocabulary.
    path: PathBuf,
    content_hash: String,
    special_tokens: IndexMap<String, String>,
    /// `eos_token_id` of the model, for a tokenizer that names no `eos_token`.
    eos_of_model: Option<u32>,
    chat_template: Option<String>,
    today: Day,
    model_max_length: Option<usize>,
    truncation: TruncationDirection,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("directory", &self.directory)
            .field("vocabulary_size", &self.vocabulary_size())
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `tokenizer.json` from a model directory, or makes one of the older files `vocab.txt`,
    /// `vocab.json` with `merges.txt`, or a SentencePiece model. Reads, if they exist,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`, and
    /// `eos_token_id` of `config.json`. Of a GGUF file, all of it is in the file.
    ///
    /// # Errors
    /// [`DataError::TokenizerMissing`] if there is none of these files;
    /// [`DataError::TokenizerClass`] if it is not known what the older files mean;
    /// [`DataError::TokenizerInvalid`] with the file that cannot be parsed; [`DataError::Gguf`];
    /// [`DataError::TokenizerDamaged`]; [`DataError::Io`].
    pub fn load(directory: impl AsRef<Path>) -> Result<Self, DataError> {
        let directory = directory.as_ref();
        let source = Source::of(directory)?;
        let (path, bytes) = (&source.path, &source.bytes);
        let invalid = |error: tokenizers::Error| DataError::TokenizerInvalid {
            path: path.clone(),
            reason: error.to_string(),
        };
        let damaged = |reason| DataError::TokenizerDamaged {
            path: path.clone(),
            reason,
        };
        let malformed = |error| match mistaken_file(bytes) {
            Some(kind) => invalid(kind.into()),
            None => invalid(error),
        };
        let sizes = serde_json::from_slice::<Sizes>(bytes);
        let sizes = sizes.map_err(|error| malformed(error.into()))?;
        sizes.check().map_err(damaged)?;
        let inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(damaged)?;
        let mut inner = inner.map_err(malformed)?;
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);
        if let ModelWrapper::BPE(model) = inner.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            inner.with_model(model);
        }

        if inner.get_post_processor().is_none() {
            // The builder's defaults: no special tokens, type id 1 for the second text of a pair.
            let plain = TemplateProcessing::builder().build();
            inner.with_post_processor(Some(plain.map_err(|error| invalid(error.into()))?));
        }

        let words = guarded(|| Words::of(&inner)).map_err(damaged)?;
        Ok(Self {
            words: words.map(Arc::new),
            inner,
            directory: directory.to_owned(),
            content_hash: sha256(bytes),
            eos_of_model: source.eos_of_model,
            special_tokens: source.special_tokens,
            chat_template: source.chat_template,
            today: Day::today(),
            model_max_length: source
                .config
                .get("model_max_length")
                .and_then(Json::as_u64)
                .filter(|length| *length < NO_LIMIT)
                .map(|length| length as usize),
            truncation: match source.config.get("truncation_side").and_then(Json::as_str) {
                Some("left") => TruncationDirection::Left,
                _ => TruncationDirection::Right,
            },
            path: source.path,
        })
    }

    /// Encodes a text, or a pair of texts, with special tokens. If the result would be longer than
    /// `max_length` tokens, tokens are removed from the longer text first (`longest_first`).
    ///
    /// # Errors
    /// [`DataError::MaxLengthTooShort`] if the special tokens alone fill `max_length`;
    /// [`DataError::Tokenize`].
    pub fn encode(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: Option<usize>,
    ) -> Result<Encoding, DataError> {
        if let Some(words) = &self.words {
            let (mut ids, mut type_ids) = self.run(|| words.encode(&self.inner, text, pair))?;
            let removed = ids.len().saturating_sub(max_length.unwrap_or(usize::MAX));
            let at_end = pair.is_none() && matches!(self.truncation, TruncationDirection::Right);
            if let Some(max_length) = max_length.filter(|_| removed > 0 && at_end) {
                words.truncate(&mut ids, &mut type_ids, self.room(max_length, false)?);
            }
            if removed == 0 || at_end {
                return Ok(Encoding {
                    ids,
                    type_ids,
                    removed,
                });
            }
        }
        let whole = self.run(|| match pair {
            Some(pair) => self.inner.encode_fast((text, pair), true),
            None => self.inner.encode_fast(text, true),
        })?;
        let length = whole.len();
        let encoding = match max_length {
            Some(max_length) => {
                let room = self.room(max_length, pair.is_some())?;
                match length > max_length {
                    true => self.encode_truncated(text, pair, room)?,
                    false => whole,
                }
            }
            None => whole,
        };
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            removed: length.saturating_sub(encoding.len()),
        })
    }

    /// The same tokenizer for texts that are split into words: one that marks a word by the blank
    /// in front of it does so for the first word too, as `add_prefix_space` of transformers says.
    #[must_use]
    pub fn of_words(&self) -> Self {
        let mut of_words = self.clone();
        if let Some(pre_tokenizer) = of_words.inner.get_pre_tokenizer() {
            let mut pre_tokenizer = pre_tokenizer.clone();
            add_prefix_space(&mut pre_tokenizer);
            of_words.inner.with_pre_tokenizer(Some(pre_tokenizer));
        }
        of_words
    }

    /// Encodes a text that is split into words, with special tokens, and the word that each token
    /// is of; none of special tokens. If the result would be longer than `max_length` tokens, its
    /// end is removed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_words(
        &self,
        words: &[String],
        max_length: usize,
    ) -> Result<(Encoding, Vec<Option<usize>>), DataError> {
        let room = self.room(max_length, false)?;
        let (encoding, length) = self.run(|| {
            let mut encoding = self.inner.encode(words, false)?;
            let length = encoding.len();
            encoding.truncate(room, 0, TruncationDirection::Right);
            Ok((self.inner.post_process(encoding, None, true)?, length))
        })?;
        let words = encoding.get_word_ids().iter();
        let words = words.map(|word| word.map(|word| word as usize));
        Ok((
            Encoding {
                ids: encoding.get_ids().to_vec(),
                type_ids: encoding.get_type_ids().to_vec(),
                removed: length.saturating_sub(room),
            },
            words.collect(),
        ))
    }

    /// Encodes without special tokens, truncates to `room` tokens, then adds the special tokens.
    fn encode_truncated(
        &self,
        text: &str,
        pair: Option<&str>,
        room: usize,
    ) -> Result<tokenizers::Encoding, DataError> {
        let truncation = TruncationParams {
            direction: self.truncation,
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        self.run(|| {
            let first = self.inner.encode_fast(text, false)?;
            let second = pair.map(|pair| self.inner.encode_fast(pair, false));
            let (first, second) = truncate_encodings(first, second.transpose()?, &truncation)?;
            self.inner.post_process(first, second, true)
        })
    }

    /// Calls the tokenizer; it fails on some texts, and panics on some if its file is damaged.
    fn run<T>(&self, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, DataError> {
        let result = guarded(call).map_err(|reason| DataError::TokenizerDamaged {
            path: self.path.clone(),
            reason,
        })?;
        result.map_err(|error| DataError::Tokenize {
            reason: error.to_string(),
        })
    }

    /// Encodes a text and returns each token's byte range in it.
    ///
    /// # Errors
    /// [`DataError::Tokenize`].
    pub fn align(&self, text: &str, add_special_tokens: bool) -> Result<Alignment, DataError> {
        let encoding = self.run(|| self.inner.encode(text, add_special_tokens))?;
        Ok(Alignment {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// The text of token ids, without the special tokens if `skip_special_tokens` is true.
    ///
    /// # Errors
    /// [`DataError::Tokenize`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.run(|| self.inner.decode(ids, skip_special_tokens))
    }

    /// Tokens left for text at `max_length`, after the special tokens of a text or a pair.
    ///
    /// # Errors
    /// [`DataError::MaxLengthTooShort`] if none is left.
    pub fn room(&self, max_length: usize, pair: bool) -> Result<usize, DataError> {
        let special = self
            .inner
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(pair));
        match max_length.checked_sub(special) {
            None | Some(0) => Err(DataError::MaxLengthTooShort {
                max_length,
                least: special + 1,
            }),
            Some(room) => Ok(room),
        }
    }

    /// The id of a token in its vocabulary's spelling.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token with this id, in its vocabulary's spelling.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of tokens, added ones included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// SHA-256 of tokenizer.json, read or made, in hexadecimal: the same hash means the same ids
    /// for every text.
    pub fn content_hash(&self) -> &str {
        &self.content_hash
    }

    /// The model directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// `model_max_length` of tokenizer_config.json, in tokens; none if it states no limit.
    pub fn model_max_length(&self) -> Option<usize> {
        self.model_max_length
    }

    /// The tokenizer as `tokenizer.json` has it, also if it was read from older files.
    ///
    /// # Errors
    /// [`DataError::TokenizerInvalid`] if it cannot be written.
    pub fn to_json(&self) -> Result<String, DataError> {
        self.inner
            .to_string(false)
            .map_err(|error| DataError::TokenizerInvalid {
                path: self.path.clone(),
                reason: error.to_string(),
            })
    }

    /// The source of the chat template, if there is one.
    pub fn chat_template_source(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The special tokens by their Hugging Face names (`bos_token`, `eos_token`, `pad_token`, …).
    pub fn special_tokens(&self) -> &IndexMap<String, String> {
        &self.special_tokens
    }

    /// The id of a special token by its Hugging Face name, such as `eos_token`.
    ///
    /// # Errors
    /// [`DataError::SpecialTokenMissing`] if the tokenizer names none, or one outside its
    /// vocabulary.
    pub fn special_id(&self, name: &'static str) -> Result<u32, DataError> {
        self.special_tokens
            .get(name)
            .and_then(|token| self.id(token))
            .ok_or_else(|| DataError::SpecialTokenMissing {
                directory: self.directory.clone(),
                token: name,
            })
    }

    /// The token that stands for a hidden word: `mask_token`, or T5's first sentinel.
    ///
    /// # Errors
    /// [`DataError::SpecialTokenMissing`] if there is neither.
    pub fn mask(&self) -> Result<Mask<'_>, DataError> {
        match (self.special_tokens.get("mask_token"), self.sentinel()) {
            (None, Some(id)) => Ok(Mask {
                id,
                token: SENTINEL,
            }),
            (token, _) => Ok(Mask {
                id: self.special_id("mask_token")?,
                token: token.map_or("", String::as_str),
            }),
        }
    }

    /// The token with which the text of a hidden word begins in a decoder: T5's sentinel once more,
    /// or the token that begins any text.
    ///
    /// # Errors
    /// [`DataError::SpecialTokenMissing`] if there is neither.
    pub fn begin_of_hidden(&self) -> Result<u32, DataError> {
        let of_mask = self.special_tokens.contains_key("mask_token");
        match self.sentinel().filter(|_| !of_mask) {
            Some(sentinel) => Ok(sentinel),
            None => self.special_id("bos_token"),
        }
    }

    fn sentinel(&self) -> Option<u32> {
        self.id(SENTINEL)
    }

    /// The token of a word that stands behind a space, or not.
    ///
    /// # Errors
    /// [`DataError::WordSplits`] if it is not one token; [`DataError::Tokenize`].
    pub fn word(&self, word: &str, follows_space: bool) -> Result<u32, DataError> {
        let spaced = format!(" {word}");
        let spellings = [Some(&*spaced).filter(|_| follows_space), Some(word)];
        let unknown = self.unknown();
        let mut pieces = 0;
        for spelling in spellings.into_iter().flatten() {
            let ids = self.align(spelling, false)?.ids;
            match ids.as_slice() {
                &[id] if Some(id) != unknown => return Ok(id),
                &[_] => pieces = 0,
                ids => pieces = ids.len(),
            }
        }
        Err(DataError::WordSplits {
            word: word.to_owned(),
            pieces,
        })
    }

    /// The token of words that the vocabulary does not have.
    fn unknown(&self) -> Option<u32> {
        let of_model = match self.inner.get_model() {
            ModelWrapper::WordPiece(model) => Some(&model.unk_token),
            ModelWrapper::WordLevel(model) => Some(&model.unk_token),
            ModelWrapper::BPE(model) => model.unk_token.as_ref(),
            ModelWrapper::Unigram(_) => None,
        };
        let of_model = of_model.and_then(|token| self.id(token));
        of_model.or_else(|| self.special_id("unk_token").ok())
    }

    /// The ids of all special tokens.
    pub fn special_ids(&self) -> BTreeSet<u32> {
        let added = self.inner.get_added_tokens_decoder();
        let marked = added.iter().filter(|(_, token)| token.special);
        let named = self.special_tokens.values();
        let named = named.filter_map(|token| self.id(token));
        marked.map(|(id, _)| *id).chain(named).collect()
    }

    /// The token that ends a text: `eos_token`, or where the tokenizer names none, the model's
    /// first `eos_token_id`.
    ///
    /// # Errors
    /// [`DataError::SpecialTokenMissing`] if there is neither.
    pub fn end_of_text(&self) -> Result<u32, DataError> {
        match (self.special_id("eos_token"), self.eos_of_model) {
            (Err(_), Some(id)) if !self.special_tokens.contains_key("eos_token") => Ok(id),
            (id, _) => id,
        }
    }

    /// The tokens of a text that a decoder is to continue: up to a blank at its end, as
    /// [`before_blank`] says, and without the `eos_token` that some tokenizers append, after which
    /// a model has nothing to write.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let mut ids = self.encode(before_blank(text), None, None)?.ids;
        let ends = |ids: &[u32]| self.end_of_text().is_ok_and(|eos| ids.last() == Some(&eos));
        if ids.len() > 1 && ends(&ids) && ends(&self.encode("", None, None)?.ids) {
            ids.pop();
        }
        Ok(ids)
    }

    /// The special token that ends an assistant's turn in a chat; none if the template writes
    /// ordinary text there.
    ///
    /// # Errors
    /// Those of [`Tokenizer::chat_template`].
    pub fn end_of_turn(&self) -> Result<Option<u32>, DataError> {
        // A template may refuse the conversation that is tried, and still serve others.
        let after = self.chat_template()?.after_answer().unwrap_or_default();
        let first = self.align(after.trim_start(), false)?.ids.first().copied();
        let special = self.inner.get_added_tokens_decoder();
        Ok(first.filter(|id| special.get(id).is_some_and(|token| token.special)))
    }

    /// Replaces the model's own chat template.
    pub fn set_chat_template(&mut self, source: String) {
        self.chat_template = Some(source);
    }

    /// Sets the day that chat templates read; the current one if never set.
    pub fn set_today(&mut self, day: Day) {
        self.today = day;
    }

    /// The chat template: the model's own, unless it was replaced.
    ///
    /// # Errors
    /// [`DataError::ChatTemplateMissing`]; [`DataError::ChatTemplate`] if it does not parse;
    /// [`DataError::ChatTemplateLimit`].
    pub fn chat_template(&self) -> Result<ChatTemplate, DataError> {
        let source = self
            .chat_template
            .as_ref()
            .ok_or_else(|| DataError::ChatTemplateMissing {
                directory: self.directory.clone(),
            })?;
        Ok(ChatTemplate::new(source, &self.special_tokens)?.on(self.today))
    }
}

/// What a model's files say of its tokenizer.
struct Source {
    /// The file with the vocabulary.
    path: PathBuf,
    /// The content of a `tokenizer.json`, read or made.
    bytes: Vec<u8>,
    /// Special tokens by their Hugging Face names.
    special_tokens: IndexMap<String, String>,
    chat_template: Option<String>,
    /// The model's first `eos_token_id`.
    eos_of_model: Option<u32>,
    /// `tokenizer_config.json`; empty if there is none.
    config: Map<String, Json>,
}

impl Source {
    fn of(model: &Path) -> Result<Self, DataError> {
        match model_file(model).map_err(FileError::at("read", model))? {
            Some(path) => gguf::read(&GgufFile::open(&path)?),
            None => Self::of_directory(model),
        }
    }

    fn of_directory(directory: &Path) -> Result<Self, DataError> {
        let path = directory.join("tokenizer.json");
        let bytes = read_optional(&path)?;
        let config = read_object(&directory.join("tokenizer_config.json"))?;
        let map = read_object(&directory.join("special_tokens_map.json"))?;
        let (path, bytes, special_tokens) = match bytes {
            Some(bytes) => (path, bytes, special_tokens(&config, &map)),
            None => {
                let made = older_files::tokenizer_json(directory, &config, &map)?;
                (made.path, made.bytes, made.special_tokens)
            }
        };
        let template_path = directory.join("chat_template.jinja");
        let chat_template = match read_optional(&template_path)? {
            Some(bytes) => {
                Some(
                    String::from_utf8(bytes).map_err(|error| DataError::TokenizerInvalid {
                        path: template_path,
                        reason: error.to_string(),
                    })?,
                )
            }
            None => configured_template(&config),
        };
        Ok(Self {
            path,
            bytes,
            special_tokens,
            chat_template,
            eos_of_model: eos_of_model(directory)?,
            config,
        })
    }
}

/// The files that a Hugging Face directory would have of the tokenizer in a GGUF file, each with
/// its content; none for a model that is a directory with files of its own.
///
/// # Errors
/// As [`Tokenizer::load`].
pub fn tokenizer_files(model: &Path) -> Result<Vec<(&'static str, Vec<u8>)>, DataError> {
    let path = model_file(model).map_err(FileError::at("read", model))?;
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let source = gguf::read(&GgufFile::open(&path)?)?;
    let mut config = Map::new();
    config.insert(
        "tokenizer_class".to_owned(),
        "PreTrainedTokenizerFast".into(),
    );
    for (name, token) in source.special_tokens {
        config.insert(name, token.into());
    }
    if let Some(template) = source.chat_template {
        config.insert("chat_template".to_owned(), template.into());
    }
    let config = serde_json::to_vec_pretty(&config).expect("JSON values print");
    Ok(vec![
        ("tokenizer.json", source.bytes),
        ("tokenizer_config.json", config),
    ])
}

/// Checks a maximum length against the model's limit (`max_position_embeddings`), both in tokens.
///
/// # Errors
/// [`DataError::MaxLengthOverLimit`]; [`DataError::MaxLengthTooShort`] for 0.
pub fn check_max_length(max_length: usize, model_limit: usize) -> Result<(), DataError> {
    match max_length {
        0 => Err(DataError::MaxLengthTooShort {
            max_length,
            least: 1,
        }),
        _ if max_length > model_limit => Err(DataError::MaxLengthOverLimit {
            max_length,
            limit: model_limit,
        }),
        _ => Ok(()),
    }
}

/// Has a byte-level tokenizer put a blank in front of each text.
fn add_prefix_space(pre_tokenizer: &mut PreTokenizerWrapper) {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(it) => it.add_prefix_space = true,
        PreTokenizerWrapper::Sequence(parts) => {
            parts.as_mut().iter_mut().for_each(add_prefix_space)
        }
        _ => {}
    }
}

/// The file's bytes, or `None` if it does not exist.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match read_regular(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A file's JSON object; empty if the file does not exist.
fn read_object(path: &Path) -> Result<Map<String, Json>, DataError> {
    read_optional(path)?.map_or_else(
        || Ok(Map::new()),
        |bytes| {
            serde_json::from_slice(&bytes).map_err(|error| DataError::TokenizerInvalid {
                path: path.to_owned(),
                reason: mistaken_file(&bytes).map_or_else(|| error.to_string(), str::to_owned),
            })
        },
    )
}

/// Every `…_token` of tokenizer_config.json, completed from special_tokens_map.json. A token is a
/// string or an object with `content`.
fn special_tokens(config: &Map<String, Json>, map: &Map<String, Json>) -> IndexMap<String, String> {
    let content = |value: &Json| {
        value
            .as_str()
            .or(value.get("content")?.as_str())
            .map(str::to_owned)
    };
    let text = |value: &Json| value.as_str().map(str::to_owned).or_else(|| content(value));
    let mut tokens = IndexMap::new();
    for (name, value) in config.iter().chain(map) {
        if let Some(token) = text(value).filter(|_| name.ends_with("_token")) {
            tokens.entry(name.clone()).or_insert(token);
        }
    }
    tokens
}

/// The first `eos_token_id` of config.json, or else of generation_config.json.
fn eos_of_model(directory: &Path) -> Result<Option<u32>, DataError> {
    for file in ["config.json", "generation_config.json"] {
        let config = read_object(&directory.join(file))?;
        let id = config.get("eos_token_id");
        let id = id.and_then(|id| id.as_u64().or_else(|| id.get(0)?.as_u64()));
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

/// The template in tokenizer_config.json: a string, or a list of named templates of which
/// `default` is used.
fn configured_template(config: &Map<String, Json>) -> Option<String> {
    let template = config.get("chat_template")?;
    let named = || {
        let default = template
            .as_array()?
            .iter()
            .find(|entry| entry["name"] == "default")?;
        default["template"].as_str()
    };
    template.as_str().or_else(named).map(str::to_owned)
}
