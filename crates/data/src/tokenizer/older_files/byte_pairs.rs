//! `vocab.json` and `merges.txt`: pieces with their ids, and the pairs of pieces that are joined,
//! the first pair first.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::path::Path;

use indexmap::IndexMap;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Value as Json, json};

use super::{Vocabulary, invalid, read, read_text};
use crate::error::DataError;

/// Reads `vocab.json` and `merges.txt`.
///
/// # Errors
/// [`DataError::TokenizerInvalid`] if a piece or an id is there twice, or a merge is not of two
/// pieces, or names or makes a piece that is not in the vocabulary;
/// [`DataError::TokenizerMissing`]; [`DataError::Io`].
pub(super) fn read_pair(directory: &Path) -> Result<Vocabulary, DataError> {
    let path = directory.join("vocab.json");
    let pieces: Pieces = serde_json::from_slice(&read(directory, "vocab.json")?)
        .map_err(|error| invalid(&path, error))?;
    let mut ids = IndexMap::new();
    let mut by_id: HashMap<u32, String> = HashMap::new();
    for (piece, id) in pieces.0 {
        if let Some(other) = by_id.insert(id, piece.clone()) {
            let reason = format!("`{other}` and `{piece}` have the same id, {id}");
            return Err(invalid(&path, reason));
        }
        ids.insert(piece, id);
    }
    let merges = merges(directory, &ids)?;
    Ok(Vocabulary {
        path,
        model: of_bytes(&ids, &merges, false),
        size: ids.len(),
        ids,
        symbols: Vec::new(),
        replacements: Vec::new(),
    })
}

/// A byte-level model, which has no unknown token. It may take words that are pieces whole, without
/// joining pairs.
pub(in crate::tokenizer) fn of_bytes(
    ids: &impl Serialize,
    merges: &impl Serialize,
    ignore_merges: bool,
) -> Json {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": false,
        "byte_fallback": false,
        "ignore_merges": ignore_merges,
        "vocab": ids,
        "merges": merges,
    })
}

/// The model of a SentencePiece vocabulary, which may have a piece for each byte.
pub(in crate::tokenizer) fn of_pieces(
    ids: &impl Serialize,
    merges: &impl Serialize,
    unknown: Option<&str>,
    byte_fallback: bool,
) -> Json {
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": true,
        "byte_fallback": byte_fallback,
        "ignore_merges": false,
        "vocab": ids,
        "merges": merges,
    })
}

/// The pairs of a SentencePiece vocabulary, which has no list of them: two pieces are joined if
/// both and the whole are pieces, those first whose whole has the highest score, and of these those
/// whose first piece is the longest (`generate_merges` of `convert_slow_tokenizer.py`).
pub(in crate::tokenizer) fn merges_by_score<'p, P: Borrow<str> + Hash + Eq>(
    pieces: impl Iterator<Item = (&'p str, f32)>,
    ids: &IndexMap<P, u32>,
) -> Vec<[&'p str; 2]> {
    let mut scored: Vec<(&str, f32)> = pieces.collect();
    scored.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let mut merges = Vec::new();
    for (piece, _) in scored {
        for (at, _) in piece.char_indices().rev().filter(|(at, _)| *at > 0) {
            let (first, second) = piece.split_at(at);
            if ids.contains_key(first) && ids.contains_key(second) {
                merges.push([first, second]);
            }
        }
    }
    merges
}

/// The pairs of `merges.txt`.
fn merges(directory: &Path, ids: &IndexMap<String, u32>) -> Result<Vec<[String; 2]>, DataError> {
    let path = directory.join("merges.txt");
    let text = read_text(directory, "merges.txt")?;
    let mut merges = Vec::new();
    let lines = text.lines().enumerate();
    for (line, pair) in lines.filter(|(_, pair)| !pair.is_empty() && !pair.starts_with("#version"))
    {
        let at = |reason: String| invalid(&path, format!("line {}: {reason}", line + 1));
        let pieces: Vec<&str> = pair.split(' ').collect();
        let &[first, second] = pieces.as_slice() else {
            return Err(at(format!(
                "`{pair}` is not two pieces with a space between them"
            )));
        };
        for piece in [first, second, &format!("{first}{second}")] {
            if !ids.contains_key(piece) {
                return Err(at(format!(
                    "`{pair}` needs `{piece}`, which is not in vocab.json"
                )));
            }
        }
        merges.push([first.to_owned(), second.to_owned()]);
    }
    Ok(merges)
}

/// Pieces and ids of a JSON object, in its order, with no piece twice.
struct Pieces(Vec<(String, u32)>);

impl<'de> Deserialize<'de> for Pieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Pieces;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of pieces and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pieces, A::Error> {
                let mut pieces = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((piece, id)) = map.next_entry::<String, u32>()? {
                    if !seen.insert(piece.clone()) {
                        let reason = format!("`{piece}` is there twice");
                        return Err(serde::de::Error::custom(reason));
                    }
                    pieces.push((piece, id));
                }
                Ok(Pieces(pieces))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
