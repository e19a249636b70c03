//! A tokenizer as llama.cpp's GGUF files have it, in both directions.
//!
//! llama.cpp has two kinds of byte-pair encoding. That of SentencePiece (`llama`) joins the pair
//! whose token has the highest score. That of GPT-2 (`gpt2`) has the pairs, and a name for the rule
//! that splits texts before they are joined (`Split`). `reader` makes a `tokenizer.json` of
//! such a vocabulary, `writer` does the reverse.

mod reader;
mod writer;

use serde_json::{Value as Json, json};

pub(super) use self::reader::read;
pub use self::writer::{VocabularyOfModel, metadata};
use super::older_files::pipeline::{byte_level, pre_tokenizers};

/// The kinds of byte-pair encoding.
const SENTENCE_PIECE: &str = "llama";
const BYTE_LEVEL: &str = "gpt2";

/// llama.cpp's kinds of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The part that a Hugging Face tokenizer has of a rule, besides its byte level.
#[derive(Clone, Copy, Debug)]
enum Words {
    /// GPT-2's, which the byte level has in it.
    Gpt2,
    /// GPT-2's, behind a split into single digits.
    DigitsAndGpt2,
    /// Matches of a regular expression.
    Regex(&'static str),
}

/// A rule that splits texts.
#[derive(Debug)]
struct Split {
    /// llama.cpp's names; it is written under the first.
    names: &'static [&'static str],
    words: Words,
    /// Whether texts are normalized (NFC) before, as the families' tokenizers do and llama.cpp does
    /// not.
    normalizes: bool,
    /// Whether a word that is a token is taken whole, without joining pairs.
    ignores_merges: bool,
    /// Whether the token that begins a text is put in front of it, if the file does not say.
    adds_bos: bool,
}

/// What most rules have in common.
const GPT2: Split = Split {
    names: &["gpt-2", "phi-2", "olmo", "mpt"],
    words: Words::Gpt2,
    normalizes: false,
    ignores_merges: false,
    adds_bos: false,
};

/// The rules that are known (`llama-vocab.cpp`).
static SPLITS: [Split; 4] = [
    GPT2,
    Split {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell"],
        words: Words::DigitsAndGpt2,
        ..GPT2
    },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        words: Words::Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignores_merges: true,
        adds_bos: true,
        ..GPT2
    },
    Split {
        names: &["qwen2", "deepseek-r1-qwen"],
        words: Words::Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        normalizes: true,
        ..GPT2
    },
];

impl Split {
    /// The rule of a name.
    fn named(name: &str) -> Option<&'static Self> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    /// The rule of a Hugging Face pre-tokenizer, if there is one that splits as it does.
    fn of(pre_tokenizer: &Json) -> Option<&'static Self> {
        let steps = parts(pre_tokenizer, "pretokenizers");
        let (bytes, before) = steps.split_last()?;
        let splits_words = bytes["use_regex"] != false;
        if bytes["type"] != "ByteLevel" {
            return None;
        }
        SPLITS.iter().find(|split| match (split.words, before) {
            (Words::Gpt2, []) => splits_words,
            (Words::DigitsAndGpt2, [digits]) => {
                splits_words && digits["type"] == "Digits" && digits["individual_digits"] == true
            }
            (Words::Regex(regex), [split]) => {
                !splits_words && split["pattern"]["Regex"].as_str() == Some(regex)
            }
            _ => false,
        })
    }

    fn pre_tokenizer(&self) -> Json {
        match self.words {
            Words::Gpt2 => byte_level(false, true, true),
            Words::DigitsAndGpt2 => pre_tokenizers(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(false, true, true),
            ]),
            Words::Regex(regex) => pre_tokenizers(vec![
                json!({
                    "type": "Split",
                    "pattern": {"Regex": regex},
                    "behavior": "Isolated",
                    "invert": false,
                }),
                byte_level(false, true, false),
            ]),
        }
    }
}

/// The steps of a normalizer or a pre-tokenizer, which may be a sequence; `list` is its key.
fn parts<'a>(step: &'a Json, list: &str) -> Vec<&'a Json> {
    match step[list].as_array() {
        Some(parts) => parts.iter().collect(),
        None => vec![step],
    }
}
