//! From a GGUF file to a `tokenizer.json`.

use std::collections::BTreeMap;

use epiphyte_io::gguf::{GgufFile, keys};
use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::{
    BYTE, BYTE_LEVEL, CONTROL, NORMAL, SENTENCE_PIECE, SPLITS, Split, UNKNOWN, UNUSED, USER_DEFINED,
};
use crate::error::DataError;
use crate::tokenizer::Source;
use crate::tokenizer::older_files::byte_pairs;
use crate::tokenizer::older_files::pipeline::{
    byte_level, bytes_and_spaces, decoders, normalizers, replace,
};

/// The tokenizer of a file.
///
/// # Errors
/// [`DataError::Gguf`] if a key is missing or of another type, if the vocabulary is none of byte
/// pairs, is split by a rule that is not known, or does not fit its other lists.
pub(in crate::tokenizer) fn read(file: &GgufFile) -> Result<Source, DataError> {
    let kind = file.required(keys::TOKENIZER_MODEL, file.text(keys::TOKENIZER_MODEL)?)?;
    let vocabulary = Vocabulary::read(file)?;
    let (steps, adds_bos) = match kind {
        SENTENCE_PIECE => (sentence_pieces(file, &vocabulary)?, true),
        BYTE_LEVEL => {
            let split = split(file)?;
            (byte_pairs_of(file, &vocabulary, split)?, split.adds_bos)
        }
        other => {
            let problem = format!(
                "tokenizers of kind `{other}` are not read (read are {SENTENCE_PIECE}, {BYTE_LEVEL})"
            );
            return Err(file.invalid(keys::TOKENIZER_MODEL, problem).into());
        }
    };
    let adds_bos = file.flag(keys::ADD_BOS_TOKEN)?.unwrap_or(adds_bos);
    let adds_eos = file.flag(keys::ADD_EOS_TOKEN)?.unwrap_or(false);
    let content = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": steps.normalizer,
        "pre_tokenizer": steps.pre_tokenizer,
        "post_processor": vocabulary.post_processor(adds_bos, adds_eos),
        "decoder": steps.decoder,
        "model": steps.model,
    });
    Ok(Source {
        path: file.path().to_owned(),
        bytes: content.to_string().into_bytes(),
        eos_of_model: vocabulary.id_of("eos_token"),
        special_tokens: vocabulary.special_tokens(),
        chat_template: file.text(keys::CHAT_TEMPLATE)?.map(str::to_owned),
        config: serde_json::Map::new(),
    })
}

/// The tokens of a file that texts may become.
struct Vocabulary<'f> {
    /// The id of each token, in the order of the ids.
    ids: IndexMap<&'f str, u32>,
    /// The kind of each, in the same order.
    kinds: Vec<i32>,
    /// Special tokens by their Hugging Face names.
    named: BTreeMap<&'static str, u32>,
    /// All tokens by id.
    tokens: &'f [String],
}

impl<'f> Vocabulary<'f> {
    fn read(file: &'f GgufFile) -> Result<Self, DataError> {
        let tokens = file.required(keys::TOKENS, file.texts(keys::TOKENS)?)?;
        let all_kinds = file.integers(keys::TOKEN_TYPES)?;
        if let Some(kinds) = all_kinds.filter(|kinds| kinds.len() != tokens.len()) {
            let problem = format!("{} kinds for {} tokens", kinds.len(), tokens.len());
            return Err(file.invalid(keys::TOKEN_TYPES, problem).into());
        }
        let mut named = BTreeMap::new();
        for (key, name) in [
            (keys::BOS_TOKEN_ID, "bos_token"),
            (keys::EOS_TOKEN_ID, "eos_token"),
            (keys::UNKNOWN_TOKEN_ID, "unk_token"),
            (keys::PADDING_TOKEN_ID, "pad_token"),
        ] {
            if let Some(id) = file.count(key)? {
                if id >= tokens.len() {
                    let problem = format!("{id} is no token of {}", tokens.len());
                    return Err(file.invalid(key, problem).into());
                }
                named.insert(name, id as u32);
            }
        }
        let mut ids = IndexMap::new();
        let mut kinds = Vec::new();
        for (token, id) in tokens.iter().zip(0..) {
            let kind = all_kinds.map_or(NORMAL, |kinds| kinds[id as usize]);
            // Rows of the model's table beyond the tokenizer's.
            if kind == UNUSED && !named.values().any(|named| *named == id) {
                continue;
            }
            if ids.insert(token.as_str(), id).is_some() {
                let problem = format!("token {id}, `{token}`, is there twice");
                return Err(file.invalid(keys::TOKENS, problem).into());
            }
            kinds.push(kind);
        }
        Ok(Self {
            ids,
            kinds,
            named,
            tokens,
        })
    }

    fn id_of(&self, name: &str) -> Option<u32> {
        self.named.get(name).copied()
    }

    fn text_of(&self, name: &str) -> Option<&'f str> {
        self.id_of(name).map(|id| &*self.tokens[id as usize])
    }

    fn special_tokens(&self) -> IndexMap<String, String> {
        let texts = self.named.keys().filter_map(|name| {
            let text = self.text_of(name)?;
            Some(((*name).to_owned(), text.to_owned()))
        });
        texts.collect()
    }

    /// Tokens that a text is split at before anything else.
    fn added_tokens(&self) -> Json {
        let mut added = Vec::new();
        for ((content, &id), &kind) in self.ids.iter().zip(&self.kinds) {
            let is_named = self.named.values().any(|named| *named == id);
            let special = is_named || matches!(kind, CONTROL | UNKNOWN);
            if special || kind == USER_DEFINED {
                added.push(json!({
                    "id": id,
                    "content": content,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": special,
                }));
            }
        }
        added.into()
    }

    /// What is put in front of each text and behind it.
    fn post_processor(&self, adds_bos: bool, adds_eos: bool) -> Json {
        let token = |adds: bool, name| {
            let id = self.id_of(name).filter(|_| adds)?;
            Some((self.text_of(name)?, id))
        };
        let (bos, eos) = (token(adds_bos, "bos_token"), token(adds_eos, "eos_token"));
        let around = |sequence: &str, type_id: u32| {
            let special =
                |(text, _): (&str, u32)| json!({"SpecialToken": {"id": text, "type_id": type_id}});
            let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
            let parts = bos.map(special).into_iter().chain([text]);
            parts.chain(eos.map(special)).collect::<Vec<_>>()
        };
        let single = around("A", 0);
        let pair = [single.clone(), around("B", 1)].concat();
        let tokens = bos.into_iter().chain(eos).map(|(text, id)| {
            let token = json!({"id": text, "ids": [id], "tokens": [text]});
            (text.to_owned(), token)
        });
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": tokens.collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// The parts of a `tokenizer.json` that differ between the kinds.
struct Steps {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Json,
}

/// SentencePiece's byte pairs: the pair whose token has the highest score is joined first.
fn sentence_pieces(file: &GgufFile, vocabulary: &Vocabulary<'_>) -> Result<Steps, DataError> {
    let scores = file.required(keys::SCORES, file.numbers(keys::SCORES)?)?;
    if scores.len() != vocabulary.tokens.len() {
        let problem = format!(
            "{} scores for {} tokens",
            scores.len(),
            vocabulary.tokens.len()
        );
        return Err(file.invalid(keys::SCORES, problem).into());
    }
    let joined = vocabulary.ids.iter().zip(&vocabulary.kinds);
    let joined = joined.filter(|(_, kind)| matches!(**kind, NORMAL | USER_DEFINED));
    let joined = joined.map(|((token, &id), _)| (*token, scores[id as usize]));
    let merges = byte_pairs::merges_by_score(joined, &vocabulary.ids);
    let adds_space = file.flag(keys::ADD_SPACE_PREFIX)?.unwrap_or(true);
    let mut steps = vec![replace(" ", "▁")];
    let mut decoder = bytes_and_spaces();
    if adds_space {
        steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoder.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let has_bytes = vocabulary.kinds.contains(&BYTE);
    Ok(Steps {
        normalizer: normalizers(steps),
        pre_tokenizer: Json::Null,
        decoder: decoders(decoder),
        model: byte_pairs::of_pieces(
            &vocabulary.ids,
            &merges,
            vocabulary.text_of("unk_token"),
            has_bytes,
        ),
    })
}

/// Byte pairs over GPT-2's letters for bytes.
fn byte_pairs_of(
    file: &GgufFile,
    vocabulary: &Vocabulary<'_>,
    split: &Split,
) -> Result<Steps, DataError> {
    let listed = file.required(keys::MERGES, file.texts(keys::MERGES)?)?;
    let mut merges = Vec::with_capacity(listed.len());
    for merge in listed {
        let pair = merge.split_once(' ');
        let is_known = |(first, second): &(&str, &str)| {
            let whole = format!("{first}{second}");
            [*first, *second, &whole]
                .iter()
                .all(|piece| vocabulary.ids.contains_key(piece))
        };
        let Some((first, second)) = pair.filter(is_known) else {
            let problem = format!("`{merge}` is not two tokens that make a third");
            return Err(file.invalid(keys::MERGES, problem).into());
        };
        merges.push([first, second]);
    }
    Ok(Steps {
        normalizer: match split.normalizes {
            true => json!({"type": "NFC"}),
            false => Json::Null,
        },
        pre_tokenizer: split.pre_tokenizer(),
        decoder: byte_level(true, true, true),
        model: byte_pairs::of_bytes(&vocabulary.ids, &merges, split.ignores_merges),
    })
}

/// The rule that splits texts.
fn split(file: &GgufFile) -> Result<&'static Split, DataError> {
    let name = file.required(keys::TOKENIZER_PRE, file.text(keys::TOKENIZER_PRE)?)?;
    Split::named(name).ok_or_else(|| {
        let known = SPLITS.iter().flat_map(|split| split.names);
        let known: Vec<&str> = known.copied().collect();
        let problem = format!(
            "the rule `{name}`, by which texts are split, is not known here (known are {}): take \
             the model's safetensors",
            known.join(", ")
        );
        file.invalid(keys::TOKENIZER_PRE, problem).into()
    })
}
