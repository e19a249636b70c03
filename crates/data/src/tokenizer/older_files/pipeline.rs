//! The steps of `tokenizer.json` around the model, in its own JSON.

use serde_json::{Map, Value as Json, json};

use super::added_tokens::AddedTokens;
use super::settings::Settings;
use crate::error::DataError;

/// What happens to a text before the model, and to tokens after it.
pub(super) struct Pipeline {
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    pub(super) post_processor: Json,
    pub(super) decoder: Json,
}

/// Several steps as one; `name` is the key of the list.
fn sequence(name: &str, steps: Vec<Json>) -> Json {
    json!({"type": "Sequence", name: steps})
}

/// Normalizers in a row.
pub(in crate::tokenizer) fn normalizers(steps: Vec<Json>) -> Json {
    sequence("normalizers", steps)
}

/// Pre-tokenizers in a row.
pub(in crate::tokenizer) fn pre_tokenizers(steps: Vec<Json>) -> Json {
    sequence("pretokenizers", steps)
}

/// Decoders in a row.
pub(in crate::tokenizer) fn decoders(steps: Vec<Json>) -> Json {
    sequence("decoders", steps)
}

/// A normalizer or decoder that replaces a text.
pub(in crate::tokenizer) fn replace(text: &str, content: &str) -> Json {
    json!({"type": "Replace", "pattern": {"String": text}, "content": content})
}

/// A normalizer that replaces what a regular expression matches.
pub(super) fn replace_matches(expression: &str, content: &str) -> Json {
    json!({"type": "Replace", "pattern": {"Regex": expression}, "content": content})
}

/// The Unicode replacements of a SentencePiece model, as a normalizer; none if it has none.
pub(super) fn precompiled(replacements: &[u8]) -> Option<Json> {
    let normalizer =
        || json!({"type": "Precompiled", "precompiled_charsmap": base64(replacements)});
    (!replacements.is_empty()).then(normalizer)
}

/// SentencePiece's `▁` for spaces, as a pre-tokenizer and as a decoder. `prepend_scheme` says where
/// texts get one in front.
pub(super) fn metaspace(prepend_scheme: &str, split: bool) -> Json {
    json!({
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": prepend_scheme,
        "split": split,
    })
}

/// GPT-2's letters for bytes, as a pre-tokenizer and as a decoder.
pub(in crate::tokenizer) fn byte_level(
    add_prefix_space: bool,
    trim_offsets: bool,
    use_regex: bool,
) -> Json {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    })
}

/// Decoders of `▁` and of pieces that stand for single bytes.
pub(in crate::tokenizer) fn bytes_and_spaces() -> Vec<Json> {
    vec![
        replace("▁", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ]
}

/// A post-processor that writes special tokens around one text and around two. A part is `$A`, `$B`
/// or a special token, with its type id.
///
/// # Errors
/// That of [`Settings::unknown`] for a token that there is not.
pub(super) fn template(
    added: &AddedTokens,
    settings: &Settings<'_>,
    single: &[(&str, u32)],
    pair: &[(&str, u32)],
) -> Result<Json, DataError> {
    let piece = |&(id, type_id): &(&str, u32)| match id {
        "$A" | "$B" => json!({"Sequence": {"id": &id[1..], "type_id": type_id}}),
        id => json!({"SpecialToken": {"id": id, "type_id": type_id}}),
    };
    let mut tokens = Map::new();
    for &(token, _) in single.iter().chain(pair) {
        if !matches!(token, "$A" | "$B") {
            let id = added.id(token);
            let id = id.ok_or_else(|| settings.unknown("special tokens", token))?;
            tokens.insert(
                token.to_owned(),
                json!({"id": token, "ids": [id], "tokens": [token]}),
            );
        }
    }
    Ok(json!({
        "type": "TemplateProcessing",
        "single": single.iter().map(piece).collect::<Vec<_>>(),
        "pair": pair.iter().map(piece).collect::<Vec<_>>(),
        "special_tokens": tokens,
    }))
}

/// The bytes as base64 (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            text.push(match digit <= chunk.len() {
                true => char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_of_the_standards_examples() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
