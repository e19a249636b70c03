//! Tokens that a text is split at before anything else: the special tokens, those that were added
//! to the vocabulary, and the symbols of a SentencePiece model.

use std::collections::HashSet;
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value as Json};
use tokenizers::AddedToken;

use super::classes::Class;
use super::{Vocabulary, invalid, read_object};
use crate::error::DataError;

/// The special tokens that every tokenizer may have, in the order in which they are added.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Special tokens by their Hugging Face names.
pub(super) type Named = IndexMap<String, AddedToken>;

/// The special tokens of a class, with what `tokenizer_config.json` and `special_tokens_map.json`
/// say instead. The latter counts only if the former has no `added_tokens_decoder`.
pub(super) fn named(class: &Class, config: &Map<String, Json>, map: &Map<String, Json>) -> Named {
    let defaults = class.special_tokens.iter();
    let mut named: Named = defaults
        .map(|&(name, content)| (name.to_owned(), special(class, name, content)))
        .collect();
    let older = (!config.contains_key("added_tokens_decoder")).then_some(map);
    for (name, value) in [config].into_iter().chain(older).flatten() {
        if !name.ends_with("_token") {
            continue;
        }
        match value {
            Json::Null => {
                named.shift_remove(name);
            }
            Json::String(content) => {
                named.insert(name.clone(), special(class, name, content));
            }
            value => {
                if let Some(token) = token(value, Some(true)) {
                    named.insert(name.clone(), token);
                }
            }
        }
    }
    // The order in which tokens that are not in the vocabulary get their ids.
    named.sort_by_key(|name, _| {
        NAMES
            .iter()
            .position(|known| known == name)
            .unwrap_or(NAMES.len())
    });
    named
}

/// A special token of which only the text is known. Some classes take the spaces in front of a mask
/// with it.
fn special(class: &Class, name: &str, content: &str) -> AddedToken {
    let strips = class.mask_takes_spaces && name == "mask_token";
    AddedToken::from(content, true).lstrip(strips)
}

/// The text of a token that is written as a text or as an object.
fn content(value: &Json) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A token written as an object. `special` comes before its own key of that name.
fn token(value: &Json, special: Option<bool>) -> Option<AddedToken> {
    let content = value.get("content")?.as_str()?;
    let flag = |key: &str| value.get(key).and_then(Json::as_bool);
    let special = special.or(flag("special")).unwrap_or(false);
    let token = AddedToken::from(content, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// The added tokens of a tokenizer with their ids.
pub(super) struct AddedTokens {
    named: Named,
    /// In the order in which they are added.
    tokens: IndexMap<String, (u32, AddedToken)>,
}

impl AddedTokens {
    /// Collects them: those of `added_tokens_decoder` in `tokenizer_config.json` or else of
    /// `added_tokens.json`, the special tokens, and those that the configuration or else the
    /// vocabulary has further. One that the vocabulary lacks gets the next free id.
    ///
    /// # Errors
    /// [`DataError::TokenizerInvalid`] if a file states another id for one of them.
    pub(super) fn new(
        directory: &Path,
        mut named: Named,
        config: &Map<String, Json>,
        map: &Map<String, Json>,
        vocabulary: &Vocabulary,
    ) -> Result<Self, DataError> {
        let stated = stated(directory, config, map)?;
        for token in named.values_mut() {
            let same = stated
                .tokens
                .iter()
                .find(|(_, same)| same.content == token.content);
            if let Some((_, same)) = same {
                *token = same.clone().special(true);
            }
        }
        let further = further(config).unwrap_or_else(|| vocabulary.symbols.clone());
        let all = stated.tokens.iter().map(|(_, token)| token);
        let all = all.chain(named.values()).chain(&further);
        let mut tokens: IndexMap<String, (u32, AddedToken)> = IndexMap::new();
        let mut next = u32::try_from(vocabulary.size).unwrap_or(u32::MAX);
        for token in all.filter(|token| !token.content.is_empty()) {
            let is_named = named.values().any(|named| named.content == token.content);
            tokens.entry(token.content.clone()).or_insert_with(|| {
                let id = vocabulary
                    .ids
                    .get(&token.content)
                    .copied()
                    .unwrap_or_else(|| {
                        next += 1;
                        next - 1
                    });
                (id, token.clone().special(token.special || is_named))
            });
        }
        for (id, token) in &stated.tokens {
            let given = tokens.get(&token.content).map(|(given, _)| *given);
            if let Some(given) = given.filter(|given| given != id) {
                let reason = format!(
                    "it says that the token `{}` has the id {id}, and after {} it has {given}",
                    token.content,
                    vocabulary.path.file_name().unwrap_or_default().display(),
                );
                return Err(invalid(&directory.join(stated.file), reason));
            }
        }
        Ok(Self { named, tokens })
    }

    /// The text of a special token by its Hugging Face name.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(|token| token.content.as_str())
    }

    /// The id of an added token.
    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.tokens.get(content).map(|(id, _)| *id)
    }

    /// The special tokens by their Hugging Face names.
    pub(super) fn names(&self) -> IndexMap<String, String> {
        let named = self.named.iter();
        named
            .map(|(name, token)| (name.clone(), token.content.clone()))
            .collect()
    }

    /// `added_tokens` of `tokenizer.json`.
    pub(super) fn to_json(&self) -> Json {
        let entry = |(id, token): &(u32, AddedToken)| {
            serde_json::json!({
                "id": id,
                "content": token.content,
                "single_word": token.single_word,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": token.normalized,
                "special": token.special,
            })
        };
        self.tokens.values().map(entry).collect()
    }
}

/// Added tokens for which a file states ids, in the order of these.
struct Stated {
    file: &'static str,
    tokens: Vec<(u32, AddedToken)>,
}

/// The tokens of `added_tokens_decoder` in `tokenizer_config.json`, or else of `added_tokens.json`.
fn stated(
    directory: &Path,
    config: &Map<String, Json>,
    map: &Map<String, Json>,
) -> Result<Stated, DataError> {
    let mut stated = Stated {
        file: "tokenizer_config.json",
        tokens: Vec::new(),
    };
    if let Some(decoder) = config.get("added_tokens_decoder") {
        let entries = decoder.as_object().into_iter().flatten();
        for (id, value) in entries {
            let entry = id.parse().ok().zip(token(value, None));
            let entry = entry.ok_or_else(|| {
                let reason = format!("`added_tokens_decoder` has no token at `{id}`");
                invalid(&directory.join(stated.file), reason)
            })?;
            stated.tokens.push(entry);
        }
    } else {
        stated.file = "added_tokens.json";
        // Only tokens that files name: the defaults of the class are not looked at here.
        let values = [config, map].into_iter().flatten();
        let values = values.filter(|(name, _)| name.ends_with("_token"));
        let named = values.filter_map(|(_, value)| content(value));
        let further = further(config).unwrap_or_default();
        let further = further.iter().map(|token| token.content.as_str());
        let special: HashSet<&str> = named.chain(further).collect();
        for (content, id) in read_object(&directory.join(stated.file))? {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| {
                let reason = format!("the id of `{content}` is not a number");
                invalid(&directory.join(stated.file), reason)
            })?;
            let is_special = special.contains(content.as_str());
            stated
                .tokens
                .push((id, AddedToken::from(content, is_special)));
        }
    }
    stated.tokens.sort_by_key(|(id, _)| *id);
    Ok(stated)
}

/// The special tokens without a name of their own that the configuration lists; none for no list.
fn further(config: &Map<String, Json>) -> Option<Vec<AddedToken>> {
    let lists = ["extra_special_tokens", "additional_special_tokens"];
    let list = lists.iter().find_map(|key| config.get(*key)?.as_array());
    let list = list.filter(|list| !list.is_empty())?;
    let tokens = list.iter().filter_map(|value| match value {
        Json::String(content) => Some(AddedToken::from(content.as_str(), true)),
        value => token(value, None),
    });
    Some(tokens.collect())
}
