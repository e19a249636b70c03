//! Protection against tokenizer.json files that are damaged or hostile: the crate `tokenizers`
//! panics on some, and takes sizes from others as they are.

use serde::Deserialize;
use serde_json::Value as Json;

/// How many times longer a text may become by the replacements of a tokenizer. Those of published
/// ones replace a space by the three bytes of `▁`.
const EXPANSION: usize = 64;

/// The parts of tokenizer.json that hold sizes.
#[derive(Deserialize)]
pub(super) struct Sizes {
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    decoder: Json,
}

impl Sizes {
    /// Checks what `tokenizers` would allocate unseen.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn check(&self) -> Result<(), String> {
        check(&self.normalizer, &mut 1)?;
        check(&self.decoder, &mut 1)
    }
}

/// Checks a normalizer or decoder and those in it; `expansion` is how many times longer they make a
/// text.
fn check(part: &Json, expansion: &mut usize) -> Result<(), String> {
    if let Some(charsmap) = part["precompiled_charsmap"].as_str() {
        let stated = trie_bytes(charsmap).ok_or("its `precompiled_charsmap` is not base64")?;
        let held = charsmap.len() / 4 * 3;
        if stated > held {
            return Err(format!(
                "its `precompiled_charsmap` has {held} bytes and says that it has {stated}"
            ));
        }
    }
    if part["type"] == "Replace" {
        let length = |text: &Json| text.as_str().map_or(0, str::len);
        let pattern = length(&part["pattern"]["String"]).max(1);
        let factor = length(&part["content"]).div_ceil(pattern).max(1);
        *expansion = expansion.saturating_mul(factor);
        if *expansion > EXPANSION {
            return Err(format!(
                "its replacements make a text more than {EXPANSION} times longer"
            ));
        }
    }
    let parts = part.as_object().into_iter().flat_map(|part| part.values());
    for part in parts.filter_map(Json::as_array).flatten() {
        check(part, expansion)?;
    }
    Ok(())
}

/// The number with which a base64 text begins: four bytes, the lowest first.
fn trie_bytes(base64: &str) -> Option<usize> {
    let mut bits = 0_u64;
    for digit in base64.bytes().take(6) {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u64::from(value);
    }
    let first = u32::try_from(bits >> 4).ok()?;
    (base64.len() >= 6).then_some(first.swap_bytes() as usize)
}
