//! `vocab.txt`: a piece a line, whose number is its id.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::json;

use super::{Vocabulary, invalid, read_text};
use crate::error::DataError;

/// Reads `vocab.txt`.
///
/// # Errors
/// [`DataError::TokenizerInvalid`] if a piece is there twice, or `unknown` is not there;
/// [`DataError::TokenizerMissing`]; [`DataError::Io`].
pub(super) fn read(directory: &Path, unknown: &str) -> Result<Vocabulary, DataError> {
    let path = directory.join("vocab.txt");
    let text = read_text(directory, "vocab.txt")?;
    let mut ids = IndexMap::new();
    for (id, line) in (0..).zip(text.lines()) {
        let piece = line.trim_end();
        let before = ids.insert(piece.to_owned(), id);
        if let Some(before) = before.filter(|_| !piece.is_empty()) {
            let reason = format!("`{piece}` is on line {} and on line {}", before + 1, id + 1);
            return Err(invalid(&path, reason));
        }
    }
    if !ids.contains_key(unknown) {
        return Err(invalid(
            &path,
            format!("it has no `{unknown}`, the unknown token"),
        ));
    }
    Ok(Vocabulary {
        path,
        model: json!({
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        }),
        size: ids.len(),
        ids,
        symbols: Vec::new(),
        replacements: Vec::new(),
    })
}
