//! SentencePiece models: a protocol buffer (`sentencepiece_model.proto` of google/sentencepiece)
//! with pieces, scores, and how texts are normalized.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use tokenizers::AddedToken;

use super::{invalid, read};
use crate::error::DataError;

/// How a SentencePiece model chooses pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// The most likely sequence of pieces.
    Unigram,
    /// Pairs of pieces are joined, the one with the lowest id first.
    BytePairs,
}

/// A SentencePiece model.
#[derive(Debug)]
pub(super) struct SentencePieces {
    /// The file.
    pub(super) path: PathBuf,
    /// How pieces are chosen.
    pub(super) algorithm: Algorithm,
    /// The pieces with their scores, in the order of their ids.
    pub(super) pieces: Vec<(String, f32)>,
    /// Its control symbols, which are special, and user-defined symbols.
    pub(super) symbols: Vec<AddedToken>,
    /// The id of the unknown piece.
    pub(super) unknown: usize,
    /// `precompiled_charsmap`: the Unicode replacements; empty for none.
    pub(super) replacements: Vec<u8>,
}

/// Reads a SentencePiece model.
///
/// # Errors
/// [`DataError::TokenizerInvalid`] if the file is truncated or otherwise no SentencePiece model,
/// has fewer than three pieces, a piece twice, or chooses pieces in another way than `algorithm`;
/// [`DataError::TokenizerMissing`]; [`DataError::Io`].
pub(super) fn read_model(
    directory: &Path,
    file: &'static str,
    algorithm: Algorithm,
) -> Result<SentencePieces, DataError> {
    let path = directory.join(file);
    let bytes = read(directory, file)?;
    let model = parse(&bytes, path.clone()).map_err(|reason| invalid(&path, reason))?;
    if model.algorithm != algorithm {
        let name = |algorithm| match algorithm {
            Algorithm::Unigram => "unigram",
            Algorithm::BytePairs => "byte pairs",
        };
        let reason = format!(
            "it is a SentencePiece model of kind {}, and the tokenizer's class reads kind {}",
            name(model.algorithm),
            name(algorithm),
        );
        return Err(invalid(&path, reason));
    }
    Ok(model)
}

/// Parses `ModelProto`.
fn parse(bytes: &[u8], path: PathBuf) -> Result<SentencePieces, String> {
    let mut model = SentencePieces {
        path,
        algorithm: Algorithm::Unigram,
        pieces: Vec::new(),
        symbols: Vec::new(),
        unknown: 0,
        replacements: Vec::new(),
    };
    let mut seen = HashSet::new();
    let (mut has_trainer, mut has_normalizer) = (false, false);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => {
                let (text, score, kind) = parse_piece(piece)
                    .map_err(|reason| format!("piece {}: {reason}", model.pieces.len()))?;
                if !seen.insert(text.clone()) {
                    return Err(format!("piece {} is `{text}` again", model.pieces.len()));
                }
                if matches!(kind, CONTROL | USER_DEFINED) {
                    let token = AddedToken::from(text.clone(), kind == CONTROL);
                    model.symbols.push(token.normalized(false));
                }
                model.pieces.push((text, score));
            }
            (2, Field::Bytes(trainer)) => {
                has_trainer = true;
                for field in Fields(trainer) {
                    match field? {
                        (3, Field::Number(1)) => model.algorithm = Algorithm::Unigram,
                        (3, Field::Number(2)) => model.algorithm = Algorithm::BytePairs,
                        (3, _) => return Err("its `model_type` is neither unigram nor bpe".into()),
                        (40, Field::Number(id)) => {
                            model.unknown = usize::try_from(id).unwrap_or(usize::MAX);
                        }
                        _ => {}
                    }
                }
            }
            (3, Field::Bytes(normalizer)) => {
                has_normalizer = true;
                for field in Fields(normalizer) {
                    if let (2, Field::Bytes(replacements)) = field? {
                        model.replacements = replacements.to_vec();
                    }
                }
            }
            (1..=3, _) => return Err("it is not a SentencePiece model".into()),
            _ => {}
        }
    }
    // Both follow the pieces in every model.
    if !has_trainer || !has_normalizer {
        return Err("it is truncated, or not a SentencePiece model".into());
    }
    if model.pieces.len() < 3 {
        return Err(format!(
            "it has {} pieces and needs three or more",
            model.pieces.len()
        ));
    }
    if model.unknown >= model.pieces.len() {
        return Err(format!(
            "its `unk_id` {} is not that of a piece",
            model.unknown
        ));
    }
    Ok(model)
}

/// `SentencePiece.Type`: symbols that texts cannot contain.
const CONTROL: u64 = 3;
/// `SentencePiece.Type`: symbols that are always one piece.
const USER_DEFINED: u64 = 4;

/// Text, score and type of a piece.
fn parse_piece(bytes: &[u8]) -> Result<(String, f32, u64), String> {
    let (mut text, mut score, mut kind) = (None, 0.0, 1);
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => text = Some(piece),
            (2, Field::Float(value)) if value.is_finite() => score = value,
            (2, _) => return Err("its score is not a number".into()),
            (3, Field::Number(value @ 1..=6)) => kind = value,
            (3, _) => return Err("its type is unknown".into()),
            _ => {}
        }
    }
    let text = text.filter(|text| !text.is_empty()).ok_or("it is empty")?;
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    Ok((text.to_owned(), score, kind))
}

/// A field's value in the wire format (protobuf.dev/programming-guides/encoding).
enum Field<'a> {
    /// An integer, a flag or an enum value.
    Number(u64),
    /// A float.
    Float(f32),
    /// A string, bytes or a message.
    Bytes(&'a [u8]),
    /// Eight bytes, which no field that is read here has.
    Other,
}

/// The fields of a message with their numbers.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Takes the next bytes.
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it is truncated")?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes an integer in base 128, the lowest digit first.
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("it is not a SentencePiece model".into())
    }

    /// Takes a field.
    fn field(&mut self) -> Result<(u64, Field<'a>), String> {
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => {
                let bytes = self.take(4)?;
                let bytes = bytes.try_into().map_err(|_| "it is truncated")?;
                Field::Float(f32::from_le_bytes(bytes))
            }
            _ => return Err("it is not a SentencePiece model".into()),
        };
        match key >> 3 {
            0 => Err("it is not a SentencePiece model".into()),
            number => Ok((number, value)),
        }
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::{Algorithm, parse};

    /// A piece: its text, its score and its type.
    fn piece(text: &str, kind: u8) -> Vec<u8> {
        let mut message = vec![0x0a, u8::try_from(text.len()).unwrap()];
        message.extend(text.as_bytes());
        message.extend([0x15, 0, 0, 0x80, 0xbf, 0x18, kind]);
        let mut field = vec![0x0a, u8::try_from(message.len()).unwrap()];
        field.extend(message);
        field
    }

    fn model(pieces: &[(&str, u8)], rest: &[u8]) -> Vec<u8> {
        let pieces = pieces.iter().flat_map(|&(text, kind)| piece(text, kind));
        let normalizer = [0x1a, 0];
        pieces
            .chain(rest.iter().copied())
            .chain(normalizer)
            .collect()
    }

    #[test]
    fn fields_are_read_and_unknown_ones_skipped() {
        // trainer_spec: model_type 2, unk_id 1, an unknown field of eight bytes.
        let rest = [
            0x12, 15, 0x18, 2, 0xc0, 2, 1, 0xf9, 7, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        let bytes = model(&[("<s>", 3), ("<unk>", 2), ("a", 1), ("(", 4)], &rest);
        let model = parse(&bytes, "m".into()).unwrap();
        assert_eq!(model.algorithm, Algorithm::BytePairs);
        assert_eq!(model.unknown, 1);
        assert_eq!(model.pieces[2], ("a".to_owned(), -1.0));
        let symbols: Vec<_> = model
            .symbols
            .iter()
            .map(|token| (token.content.as_str(), token.special))
            .collect();
        assert_eq!(symbols, [("<s>", true), ("(", false)]);
    }

    #[test]
    fn damaged_files_are_errors() {
        let trainer = [0x12, 0];
        let whole = model(&[("<unk>", 2), ("a", 1), ("b", 1)], &trainer);
        parse(&whole, "m".into()).unwrap();
        for end in 1..whole.len() {
            assert!(parse(&whole[..end], "m".into()).is_err(), "{end}");
        }
        let cases = [
            (
                model(&[("<unk>", 2), ("a", 1), ("a", 1)], &trainer),
                "again",
            ),
            (model(&[("<unk>", 2), ("a", 1)], &trainer), "2 pieces"),
            (model(&[("<unk>", 2), ("", 1), ("b", 1)], &[]), "empty"),
            (model(&[("<unk>", 2), ("a", 9), ("b", 1)], &[]), "type"),
            (
                model(&[("<unk>", 2), ("a", 1), ("b", 1)], &[0x12, 2, 0x18, 4]),
                "model_type",
            ),
            (
                model(&[("<unk>", 2), ("a", 1), ("b", 1)], &[0x12, 3, 0xc0, 2, 7]),
                "unk_id",
            ),
            (b"not a model".to_vec(), ""),
            (vec![0xff; 20], "not a SentencePiece"),
        ];
        for (bytes, expected) in cases {
            let reason = parse(&bytes, "m".into()).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
