//! The base model's tokenizer: text to token ids, and token ids to text.
//!
//! A wrapper of the `tokenizers` crate, so that a change of that crate's interface changes this
//! file only. It follows `transformers` 5: tokenizer.json alone decides how a text becomes ids and
//! which special tokens surround it (`add_bos_token` in tokenizer_config.json is ignored), and
//! truncation is `longest_first` on the configured side. Truncation and padding stored in
//! tokenizer.json are ignored, as `transformers` ignores them by default; nothing is ever padded.

use std::fs;
use std::path::{Path, PathBuf};

use epiphyte_io::mistaken_file;
use indexmap::IndexMap;
use serde_json::{Map, Value as Json};
use sha2::{Digest, Sha256};
use tokenizers::PostProcessor;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::utils::truncation::{
    TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use crate::chat::ChatTemplate;
use crate::error::DataError;

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
    /// Whether tokens were removed to fit `max_length`.
    pub truncated: bool,
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

/// A tokenizer loaded from a model directory.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    directory: PathBuf,
    content_hash: String,
    special_tokens: IndexMap<String, String>,
    chat_template: Option<String>,
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
    /// Loads `tokenizer.json` from a model directory, and if they exist `tokenizer_config.json`,
    /// `special_tokens_map.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// [`DataError::TokenizerMissing`] if there is no tokenizer.json;
    /// [`DataError::TokenizerInvalid`] with the file that cannot be parsed; [`DataError::Io`].
    pub fn load(directory: impl AsRef<Path>) -> Result<Self, DataError> {
        let directory = directory.as_ref();
        let path = directory.join("tokenizer.json");
        let bytes = read_optional(&path)?.ok_or_else(|| DataError::TokenizerMissing {
            directory: directory.to_owned(),
            file: "tokenizer.json",
        })?;
        let invalid = |error: tokenizers::Error| DataError::TokenizerInvalid {
            path: path.clone(),
            reason: error.to_string(),
        };
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
            match mistaken_file(&bytes) {
                Some(kind) => invalid(kind.into()),
                None => invalid(error),
            }
        })?;
        inner.with_truncation(None).map_err(invalid)?;
        inner.with_padding(None);

        let config = read_object(&directory.join("tokenizer_config.json"))?;
        let map = read_object(&directory.join("special_tokens_map.json"))?;
        let special_tokens = special_tokens(&config, &map);
        if inner.get_post_processor().is_none() {
            // The builder's defaults: no special tokens, type id 1 for the second text of a pair.
            let plain = TemplateProcessing::builder().build();
            inner.with_post_processor(Some(plain.map_err(|error| invalid(error.into()))?));
        }

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
            inner,
            directory: directory.to_owned(),
            content_hash: Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            special_tokens,
            chat_template,
            model_max_length: config
                .get("model_max_length")
                .and_then(Json::as_u64)
                .filter(|length| *length < NO_LIMIT)
                .map(|length| length as usize),
            truncation: match config.get("truncation_side").and_then(Json::as_str) {
                Some("left") => TruncationDirection::Left,
                _ => TruncationDirection::Right,
            },
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
        let whole = match pair {
            Some(pair) => self.inner.encode_fast((text, pair), true),
            None => self.inner.encode_fast(text, true),
        };
        let whole = whole.map_err(tokenize)?;
        let (encoding, truncated) = match max_length {
            Some(max_length) => {
                let room = self.room(max_length, pair.is_some())?;
                if whole.len() > max_length {
                    (self.encode_truncated(text, pair, room)?, true)
                } else {
                    (whole, false)
                }
            }
            None => (whole, false),
        };
        Ok(Encoding {
            ids: encoding.get_ids().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            truncated,
        })
    }

    /// Encodes without special tokens, truncates to `room` tokens, then adds the special tokens.
    fn encode_truncated(
        &self,
        text: &str,
        pair: Option<&str>,
        room: usize,
    ) -> Result<tokenizers::Encoding, DataError> {
        let plain = |text| self.inner.encode_fast(text, false).map_err(tokenize);
        let truncation = TruncationParams {
            direction: self.truncation,
            max_length: room,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let (first, second) =
            truncate_encodings(plain(text)?, pair.map(plain).transpose()?, &truncation)
                .map_err(tokenize)?;
        self.inner
            .post_process(first, second, true)
            .map_err(tokenize)
    }

    /// Encodes a text and returns each token's byte range in it.
    ///
    /// # Errors
    /// [`DataError::Tokenize`].
    pub fn align(&self, text: &str, add_special_tokens: bool) -> Result<Alignment, DataError> {
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(tokenize)?;
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
        self.inner
            .decode(ids, skip_special_tokens)
            .map_err(tokenize)
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

    /// SHA-256 of tokenizer.json in hexadecimal: the same hash means the same ids for every text.
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

    /// The model's own chat template.
    ///
    /// # Errors
    /// [`DataError::ChatTemplateMissing`]; [`DataError::ChatTemplate`] if it does not parse.
    pub fn chat_template(&self) -> Result<ChatTemplate, DataError> {
        let source = self
            .chat_template
            .as_ref()
            .ok_or_else(|| DataError::ChatTemplateMissing {
                directory: self.directory.clone(),
            })?;
        ChatTemplate::new(source, &self.special_tokens)
    }
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

fn tokenize(error: tokenizers::Error) -> DataError {
    DataError::Tokenize {
        reason: error.to_string(),
    }
}

/// The file's bytes, or `None` if it does not exist.
fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match fs::read(path) {
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

/// The template in tokenizer_config.json: a string, or a list of named templates of which `default`
/// is used.
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
