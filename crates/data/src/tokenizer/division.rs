//! Where a text may be cut so that the ids of its parts, in a row, are the ids of the text.
//!
//! Nothing in most tokenizers looks from one word at the next. Those of WordPiece drop the spaces
//! between words; those of SentencePiece and byte-level BPE have them in front of words, and no
//! token goes from a word over into the space behind it. Whether that holds is read from the
//! tokenizer's parts; of parts that are not known here, it is not assumed.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::Value as Json;
use tokenizers::{Model, ModelWrapper, Tokenizer};

/// SentencePiece's sign for a space.
const SPACE_SIGN: char = '▁';

/// How the texts of a tokenizer are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Division {
    /// Whether the space between two parts begins the second; else it is in neither.
    kept: bool,
    /// Bytes with which added tokens begin, which are found before a text is split: a text that
    /// has one stays whole.
    added: Vec<bool>,
}

/// What a tokenizer's parts do with the spaces between words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spaces {
    /// They begin words.
    Kept,
    /// They are left out, or put in front of each word again.
    Dropped,
}

impl Division {
    /// The division of a tokenizer; none if its words depend on each other, or might.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let json = |part: Option<serde_json::Result<Json>>| match part {
            Some(part) => part.ok(),
            None => Some(Json::Null),
        };
        let normalizer = json(tokenizer.get_normalizer().map(serde_json::to_value))?;
        let pre_tokenizer = json(tokenizer.get_pre_tokenizer().map(serde_json::to_value))?;
        let mut normalizers = Vec::new();
        flatten(&normalizer, "normalizers", &mut normalizers);
        let mut pre_tokenizers = Vec::new();
        flatten(&pre_tokenizer, "pretokenizers", &mut pre_tokenizers);
        let spaces = spaces(&normalizers, &pre_tokenizers, tokenizer.get_model())?;
        let mut added = vec![false; 256];
        for token in tokenizer.get_added_tokens_decoder().values() {
            let Some(&first) = token.content.as_bytes().first() else {
                continue;
            };
            if token.normalized && !normalizers.is_empty() {
                // It is found in what the normalizer makes of a text, which may be another case.
                if !first.is_ascii() {
                    return None;
                }
                added[usize::from(first.to_ascii_uppercase())] = true;
                added[usize::from(first.to_ascii_lowercase())] = true;
            }
            added[usize::from(first)] = true;
        }
        Some(Self {
            kept: spaces == Spaces::Kept,
            added,
        })
    }

    /// The parts of a text.
    pub(super) fn parts<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let whole = text.bytes().any(|byte| self.added[usize::from(byte)]);
        let kept = self.kept;
        let mut start = Some(0);
        let mut spaces = text.match_indices(' ').filter(move |_| !whole);
        std::iter::from_fn(move || {
            let begin = start?;
            let between = |&(at, _): &(usize, &str)| {
                let before = text[begin..at].chars().next_back();
                let behind = text[at + 1..].chars().next();
                before.is_some_and(stays) && behind.is_some_and(stays)
            };
            let cut = spaces.find(between).map(|(at, _)| at);
            start = cut.map(|at| if kept { at } else { at + 1 });
            Some(&text[begin..cut.unwrap_or(text.len())])
        })
    }
}

/// Whether a character may stand on either side of a space at which a text is cut: one that no
/// normalizer takes for a space, removes, or writes with a space in front, as they do with a few
/// characters of Greek and Arabic (U+037A and the presentation forms of Arabic).
fn stays(character: char) -> bool {
    character.is_ascii_graphic()
        || (character.is_alphanumeric()
            && character != '\u{37a}'
            && !('\u{fb50}'..='\u{feff}').contains(&character))
}

/// The steps of a normalizer or pre-tokenizer, in order.
fn flatten<'a>(part: &'a Json, sequence: &str, steps: &mut Vec<&'a Json>) {
    match part["type"].as_str() {
        Some("Sequence") => {
            let parts = part[sequence].as_array().into_iter().flatten();
            parts.for_each(|part| flatten(part, sequence, steps));
        }
        Some(_) => steps.push(part),
        None => {}
    }
}

/// What becomes of the spaces between words; none if words depend on each other, or might.
fn spaces(normalizers: &[&Json], pre_tokenizers: &[&Json], model: &ModelWrapper) -> Option<Spaces> {
    let (mut prepends, mut replaces, mut strips) = (false, false, false);
    for normalizer in normalizers {
        match normalizer["type"].as_str()? {
            "BertNormalizer" | "Lowercase" | "NFC" | "NFD" | "NFKC" | "NFKD" | "StripAccents"
            | "Nmt" | "Precompiled" => {}
            "Strip" => strips = true,
            "Prepend" if normalizer["prepend"] == SPACE_SIGN.to_string() => prepends = true,
            "Replace" => {
                let (pattern, content) = (&normalizer["pattern"], &normalizer["content"]);
                let (string, regex) = (pattern["String"].as_str(), pattern["Regex"].as_str());
                match (string, regex) {
                    (Some(" "), _) if *content == SPACE_SIGN.to_string() => replaces = true,
                    (Some(text), _) if !text.contains(char::is_whitespace) => {}
                    // Several spaces become one: there are none between two parts.
                    (_, Some(" {2,}")) => {}
                    _ => return None,
                }
            }
            _ => return None,
        }
    }
    let spaces = match pre_tokenizers.first() {
        None if replaces && prepends => unsplit(model, Spaces::Dropped)?,
        None if replaces => unsplit(model, Spaces::Kept)?,
        None => return None,
        Some(first) => match first["type"].as_str()? {
            "BertPreTokenizer" | "Whitespace" | "WhitespaceSplit" if !replaces => Spaces::Dropped,
            "Metaspace" if first["replacement"] == SPACE_SIGN.to_string() => {
                let spaces = match first["prepend_scheme"].as_str()? {
                    "never" => Spaces::Kept,
                    _ => Spaces::Dropped,
                };
                match first["split"].as_bool()? {
                    true => spaces,
                    false => unsplit(model, spaces)?,
                }
            }
            // Gemma's: no space is left when it would split at one.
            "Split" if replaces && first["pattern"]["String"] == " " => match prepends {
                true => unsplit(model, Spaces::Dropped)?,
                false => unsplit(model, Spaces::Kept)?,
            },
            _ if !replaces && !prepends && are_byte_level(pre_tokenizers) => Spaces::Kept,
            _ => return None,
        },
    };
    (spaces == Spaces::Dropped || !strips).then_some(spaces)
}

/// What a model does with spaces whose texts are not split before: `spaces`, if it is BPE, and no
/// token of its vocabulary goes from another character over into a space.
fn unsplit(model: &ModelWrapper, spaces: Spaces) -> Option<Spaces> {
    let ModelWrapper::BPE(bpe) = model else {
        return None;
    };
    let plain = bpe.continuing_subword_prefix.is_none() && bpe.end_of_word_suffix.is_none();
    let vocabulary = model.get_vocab();
    let crosses = |token: &String| {
        let spaces = token.trim_start_matches(SPACE_SIGN);
        spaces.contains(SPACE_SIGN)
    };
    let known = vocabulary.contains_key(&SPACE_SIGN.to_string());
    (plain && known && !vocabulary.keys().any(crosses)).then_some(spaces)
}

/// Whether the steps split a text at each single space, which begins the next part, and look no
/// further.
fn are_byte_level(pre_tokenizers: &[&Json]) -> bool {
    let mut splits = false;
    for step in pre_tokenizers {
        match step["type"].as_str() {
            Some("ByteLevel") if step["add_prefix_space"] == false => {
                splits |= step["use_regex"] != false;
            }
            Some("Split") => {
                let pattern = step["pattern"]["Regex"].as_str();
                let isolated = step["behavior"] == "Isolated" && step["invert"] == false;
                if !isolated || !pattern.is_some_and(splits_at_spaces) {
                    return false;
                }
                splits = true;
            }
            Some("Digits" | "Punctuation") => {}
            _ => return false,
        }
    }
    splits
}

/// Whether a match of a pattern never goes from another character over into a space, and never
/// leaves a space out: of each of its alternatives only the first character may be a space, or all
/// of them are, and one takes whatever spaces there are. What is matched then depends on nothing
/// behind the next single space.
fn splits_at_spaces(pattern: &str) -> bool {
    let Some(rest) = pattern.strip_suffix(r"|\s+(?!\S)|\s+") else {
        return false;
    };
    let Ok(pattern) = regex_syntax::parse(rest) else {
        return false;
    };
    let alternatives = match pattern.kind() {
        HirKind::Alternation(alternatives) => alternatives.as_slice(),
        _ => std::slice::from_ref(&pattern),
    };
    alternatives.iter().all(|alternative| {
        let steps = match alternative.kind() {
            HirKind::Concat(steps) => steps.as_slice(),
            _ => std::slice::from_ref(alternative),
        };
        let only_spaces = steps.iter().all(|step| matches(step, is_only_space));
        let first_at_most = steps.iter().enumerate().all(|(index, step)| {
            matches(step, |ranges| !has_space(ranges)) || (index == 0 && is_one(step))
        });
        only_spaces || first_at_most
    })
}

/// Whether every class of characters in a pattern, looked at as ranges, is as `class` has it;
/// patterns that look around are not.
fn matches(pattern: &Hir, class: fn(&[(char, char)]) -> bool) -> bool {
    match pattern.kind() {
        HirKind::Empty => true,
        HirKind::Literal(literal) => std::str::from_utf8(&literal.0).is_ok_and(|text| {
            text.chars()
                .all(|character| class(&[(character, character)]))
        }),
        HirKind::Class(Class::Unicode(ranges)) => {
            let ranges = ranges.iter().map(|range| (range.start(), range.end()));
            class(&ranges.collect::<Vec<_>>())
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => false,
        HirKind::Repetition(repeated) => matches(&repeated.sub, class),
        HirKind::Capture(captured) => matches(&captured.sub, class),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().all(|part| matches(part, class))
        }
    }
}

/// Whether a pattern takes one character at most.
fn is_one(pattern: &Hir) -> bool {
    match pattern.kind() {
        HirKind::Repetition(repeated) => repeated.max == Some(1) && is_one(&repeated.sub),
        HirKind::Class(_) => true,
        HirKind::Literal(literal) => literal.0.len() == 1,
        _ => false,
    }
}

fn has_space(ranges: &[(char, char)]) -> bool {
    ranges
        .iter()
        .any(|&(first, last)| (first..=last).contains(&' '))
}

fn is_only_space(ranges: &[(char, char)]) -> bool {
    let mut all = ranges.iter().flat_map(|&(first, last)| first..=last);
    all.all(char::is_whitespace)
}
