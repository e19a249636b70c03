//! From a tokenizer to the metadata of a GGUF file. Scores of SentencePiece's kind are less the
//! number of the first merge that makes a token.

use std::collections::BTreeMap;

use epiphyte_io::gguf::{GgufValue, keys};
use serde_json::Value as Json;

use super::{
    BYTE, BYTE_LEVEL, CONTROL, NORMAL, SENTENCE_PIECE, Split, UNKNOWN, UNUSED, USER_DEFINED, parts,
};
use crate::Tokenizer;
use crate::error::DataError;

/// The score of a token that no merge makes.
const NO_MERGE: f32 = -1e6;

/// What a model says of its vocabulary.
#[derive(Clone, Copy, Debug)]
pub struct VocabularyOfModel {
    /// Rows of its table.
    pub size: usize,
    /// The token that begins a text, if the tokenizer names none.
    pub bos_token_id: Option<u32>,
    /// The token that ends a text, likewise.
    pub eos_token_id: Option<u32>,
    /// The padding token, likewise.
    pub pad_token_id: Option<u32>,
}

/// The metadata of a tokenizer, with a token for each row of the model's table.
///
/// # Errors
/// [`DataError::NotGguf`] for tokenizers that llama.cpp does not have.
pub fn metadata(
    tokenizer: &Tokenizer,
    model: &VocabularyOfModel,
) -> Result<Vec<(String, GgufValue)>, DataError> {
    let json: Json = serde_json::from_str(&tokenizer.to_json()?)
        .map_err(|error| refused(format!("the tokenizer cannot be written: {error}")))?;
    let pairs = &json["model"];
    if pairs["type"] != "BPE" {
        return Err(refused(format!(
            "the tokenizer's model is {}, and llama.cpp has byte-pair encoding (BPE) for these \
             families",
            pairs["type"]
        )));
    }
    let merges = merges(pairs);
    let is_spm = pairs["byte_fallback"] == true;
    let mut entries = Vec::new();
    let mut add = |key: &str, value| entries.push((key.to_owned(), value));
    let name = if is_spm { SENTENCE_PIECE } else { BYTE_LEVEL };
    add(keys::TOKENIZER_MODEL, GgufValue::String(name.to_owned()));
    let pre = if is_spm { "default" } else { split(&json)? };
    add(keys::TOKENIZER_PRE, GgufValue::String(pre.to_owned()));
    let (tokens, kinds) = tokens(&json, model.size, is_spm);
    if is_spm {
        let mut scores: BTreeMap<String, f32> = BTreeMap::new();
        for (number, [left, right]) in merges.iter().enumerate() {
            let score = scores.entry(format!("{left}{right}"));
            score.or_insert(-(number as f32));
        }
        let score = |token: &String| scores.get(token).copied().unwrap_or(NO_MERGE);
        let scores = tokens.iter().map(score).collect();
        add(keys::SCORES, GgufValue::F32s(scores));
        add(keys::ADD_SPACE_PREFIX, GgufValue::Bool(adds_space(&json)));
    } else {
        let merges = merges.iter().map(|[left, right]| format!("{left} {right}"));
        add(keys::MERGES, GgufValue::Strings(merges.collect()));
    }
    add(keys::TOKENS, GgufValue::Strings(tokens));
    add(keys::TOKEN_TYPES, GgufValue::I32s(kinds));
    let special = |name| tokenizer.special_id(name).ok();
    let bos = special("bos_token").or(model.bos_token_id);
    let eos = special("eos_token").or(model.eos_token_id);
    for (key, id) in [
        (keys::BOS_TOKEN_ID, bos),
        (keys::EOS_TOKEN_ID, eos),
        (keys::UNKNOWN_TOKEN_ID, special("unk_token")),
        (
            keys::PADDING_TOKEN_ID,
            special("pad_token").or(model.pad_token_id),
        ),
    ] {
        if let Some(id) = id {
            add(key, GgufValue::U32(id));
        }
    }
    let encoded = tokenizer.encode("a", None, None)?.ids;
    let [first, last] = [encoded.first(), encoded.last()].map(|id| id.copied());
    for (key, token, place) in [
        (keys::ADD_BOS_TOKEN, bos, first),
        (keys::ADD_EOS_TOKEN, eos, last),
    ] {
        add(key, GgufValue::Bool(token.is_some() && place == token));
    }
    if let Some(template) = tokenizer.chat_template_source() {
        add(keys::CHAT_TEMPLATE, GgufValue::String(template.to_owned()));
    }
    Ok(entries)
}

fn refused(reason: String) -> DataError {
    DataError::NotGguf { reason }
}

/// The pairs that are merged, the first first.
fn merges(model: &Json) -> Vec<[String; 2]> {
    let merges = model["merges"].as_array().into_iter().flatten();
    let pair = |merge: &Json| match merge {
        Json::String(pair) => {
            let (left, right) = pair.split_once(' ')?;
            Some([left.to_owned(), right.to_owned()])
        }
        pair => {
            let part = |at: usize| Some(pair.get(at)?.as_str()?.to_owned());
            Some([part(0)?, part(1)?])
        }
    };
    merges.filter_map(pair).collect()
}

/// Tokens by id, each with its kind.
fn tokens(json: &Json, count: usize, is_spm: bool) -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = (0..count).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; count];
    let unknown = json["model"]["unk_token"].as_str();
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        let id = id.as_u64().unwrap_or(u64::MAX) as usize;
        if id >= count {
            continue;
        }
        let is_byte =
            is_spm && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        tokens[id].clone_from(token);
        kinds[id] = if is_byte { BYTE } else { NORMAL };
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let id = added["id"].as_u64().unwrap_or(u64::MAX) as usize;
        let (Some(token), true) = (added["content"].as_str(), id < count) else {
            continue;
        };
        token.clone_into(&mut tokens[id]);
        kinds[id] = match added["special"].as_bool() {
            _ if is_spm && Some(token) == unknown => UNKNOWN,
            Some(true) => CONTROL,
            _ => USER_DEFINED,
        };
    }
    (tokens, kinds)
}

/// Whether a space is put in front of a text.
fn adds_space(json: &Json) -> bool {
    let normalizers = parts(&json["normalizer"], "normalizers");
    let splitters = parts(&json["pre_tokenizer"], "pretokenizers");
    normalizers.iter().any(|it| it["type"] == "Prepend")
        || splitters.iter().any(|it| {
            it["type"] == "Metaspace"
                && it["prepend_scheme"] != "never"
                && it["add_prefix_space"] != false
        })
}

/// llama.cpp's name of the rule that splits texts.
fn split(json: &Json) -> Result<&'static str, DataError> {
    let pre_tokenizer = &json["pre_tokenizer"];
    let split = Split::of(pre_tokenizer).ok_or_else(|| {
        refused(format!(
            "the tokenizer splits texts by {pre_tokenizer}, for which no name of llama.cpp is known \
             here"
        ))
    })?;
    Ok(split.names[0])
}
