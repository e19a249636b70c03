//! A tokenizer as llama.cpp reads it.
//!
//! llama.cpp has two kinds of byte-pair encoding. That of SentencePiece (`llama`) joins the pair
//! whose token has the highest score, so each token's score is less the number of the first merge
//! that makes it. That of GPT-2 (`gpt2`) has the merges, and a name for the rule that splits texts
//! before them.

use std::collections::BTreeMap;

use epiphyte_data::Tokenizer;
use epiphyte_io::gguf::GgufValue;
use epiphyte_models::families::decoder::DecoderConfig;
use serde_json::Value;

use super::refused;
use crate::TrainError;

/// llama.cpp's kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The score of a token that no merge makes.
const NO_MERGE: f32 = -1e6;

/// llama.cpp's names of the regular expressions that split texts, besides that of GPT-2.
const SPLITS: [(&str, &str); 2] = [
    (
        "llama-bpe",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    (
        "qwen2",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
];

/// The metadata of a tokenizer, with a token for each row of the model's table.
///
/// # Errors
/// [`TrainError::NotGguf`] for tokenizers that llama.cpp does not have.
pub(super) fn metadata(
    tokenizer: &Tokenizer,
    config: &DecoderConfig,
) -> Result<Vec<(String, GgufValue)>, TrainError> {
    let json: Value = serde_json::from_str(&tokenizer.to_json()?)
        .map_err(|error| refused(&format!("the tokenizer cannot be written: {error}")))?;
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(refused(&format!(
            "the tokenizer's model is {}, and llama.cpp has byte-pair encoding (BPE) for these \
             families",
            model["type"]
        )));
    }
    let merges = merges(model);
    let is_spm = model["byte_fallback"] == true;
    let mut entries = Vec::new();
    let mut add = |key: &str, value| entries.push((format!("tokenizer.{key}"), value));
    let name = if is_spm { "llama" } else { "gpt2" };
    add("ggml.model", GgufValue::String(name.to_owned()));
    let pre = if is_spm { "default" } else { split(&json)? };
    add("ggml.pre", GgufValue::String(pre.to_owned()));
    let (tokens, kinds) = tokens(&json, config.vocab_size, is_spm);
    if is_spm {
        let mut scores: BTreeMap<String, f32> = BTreeMap::new();
        for (number, [left, right]) in merges.iter().enumerate() {
            let score = scores.entry(format!("{left}{right}"));
            score.or_insert(-(number as f32));
        }
        let score = |token: &String| scores.get(token).copied().unwrap_or(NO_MERGE);
        add(
            "ggml.scores",
            GgufValue::F32s(tokens.iter().map(score).collect()),
        );
        let prefix = adds_space(&json);
        add("ggml.add_space_prefix", GgufValue::Bool(prefix));
    } else {
        let merges = merges.iter().map(|[left, right]| format!("{left} {right}"));
        add("ggml.merges", GgufValue::Strings(merges.collect()));
    }
    add("ggml.tokens", GgufValue::Strings(tokens));
    add("ggml.token_type", GgufValue::I32s(kinds));
    let special = |name| tokenizer.special_id(name).ok();
    let bos = special("bos_token").or(config.bos_token_id);
    let eos = special("eos_token").or(config.eos_token_ids.first().copied());
    for (key, id) in [
        ("ggml.bos_token_id", bos),
        ("ggml.eos_token_id", eos),
        ("ggml.unknown_token_id", special("unk_token")),
        (
            "ggml.padding_token_id",
            special("pad_token").or(config.pad_token_id),
        ),
    ] {
        if let Some(id) = id {
            add(key, GgufValue::U32(id));
        }
    }
    let encoded = tokenizer.encode("a", None, None)?.ids;
    let [first, last] = [encoded.first(), encoded.last()].map(|id| id.copied());
    add(
        "ggml.add_bos_token",
        GgufValue::Bool(bos.is_some() && first == bos),
    );
    add(
        "ggml.add_eos_token",
        GgufValue::Bool(eos.is_some() && last == eos),
    );
    if let Some(template) = tokenizer.chat_template_source() {
        add("chat_template", GgufValue::String(template.to_owned()));
    }
    Ok(entries)
}

/// The pairs that are merged, the first first.
fn merges(model: &Value) -> Vec<[String; 2]> {
    let merges = model["merges"].as_array().into_iter().flatten();
    let pair = |merge: &Value| match merge {
        Value::String(pair) => {
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
fn tokens(json: &Value, count: usize, is_spm: bool) -> (Vec<String>, Vec<i32>) {
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

/// The parts of a normalizer or a pre-tokenizer, which may be a sequence.
fn parts<'a>(json: &'a Value, key: &str, list: &str) -> Vec<&'a Value> {
    match json[key][list].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![&json[key]],
    }
}

/// Whether a space is put in front of a text.
fn adds_space(json: &Value) -> bool {
    let normalizers = parts(json, "normalizer", "normalizers");
    let splitters = parts(json, "pre_tokenizer", "pretokenizers");
    normalizers.iter().any(|it| it["type"] == "Prepend")
        || splitters.iter().any(|it| {
            it["type"] == "Metaspace"
                && it["prepend_scheme"] != "never"
                && it["add_prefix_space"] != false
        })
}

/// llama.cpp's name of the rule that splits texts.
fn split(json: &Value) -> Result<&'static str, TrainError> {
    let splitters = parts(json, "pre_tokenizer", "pretokenizers");
    let unknown = || {
        refused(&format!(
            "the tokenizer splits texts by {}, for which no name of llama.cpp is known here",
            json["pre_tokenizer"]
        ))
    };
    let bytes = splitters.iter().find(|it| it["type"] == "ByteLevel");
    let bytes = bytes.ok_or_else(unknown)?;
    match splitters.as_slice() {
        [_] if bytes["use_regex"] != false => Ok("gpt-2"),
        [split, _] => {
            let regex = split["pattern"]["Regex"].as_str();
            let mut known = SPLITS.iter().filter(|_| bytes["use_regex"] == false);
            let name = known.find(|(_, known)| Some(*known) == regex);
            name.map(|(name, _)| *name).ok_or_else(unknown)
        }
        _ => Err(unknown()),
    }
}
