//! Cloze templates: a text with columns and one hidden word, such as `{sentence} It was {mask}.`

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::prompt::{Piece, Prompt};

/// The name of the hidden word in a template.
const MASK: &str = "mask";
/// The name of a soft token in a template.
const SOFT: &str = "soft";
/// The most soft tokens that one place of a template may have.
const MOST_SOFT: usize = 1000;

/// Where a model predicts the hidden word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordPlace {
    /// At a mask token of the text: encoders.
    #[default]
    Mask,
    /// After the last token of the text: decoders.
    TextEnd,
    /// At the start of the decoder's text, while the encoder reads the mask token:
    /// encoder-decoders.
    DecoderStart,
}

/// A template with one hidden word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloze {
    pieces: Vec<Piece>,
}

impl Cloze {
    /// A template as [`Prompt::template`] reads it, in which `{mask}` is the hidden word, `{soft}`
    /// a soft token and `{soft:3}` three of them.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the template is malformed, or has no hidden word, several or no
    /// column.
    ///
    /// ```
    /// use epiphyte_data::Cloze;
    ///
    /// let cloze = Cloze::parse("{sentence} It was {mask}.")?;
    /// assert_eq!(cloze.columns(), ["sentence"]);
    /// assert!(cloze.follows_space());
    /// # Ok::<(), epiphyte_data::DataError>(())
    /// ```
    pub fn parse(template: &str) -> Result<Self, DataError> {
        let invalid = |problem: &str| DataError::Columns {
            reason: format!("the prompt template `{template}` {problem}"),
        };
        let Prompt::Template(pieces) = Prompt::template(template)? else {
            return Err(invalid(
                "has no `{mask}`: put it where the word of a class is to stand",
            ));
        };
        let pieces = pieces.into_iter().map(|piece| match soft_tokens(&piece) {
            None => Ok(vec![piece]),
            Some(Some(count)) => Ok(vec![Piece::Column(SOFT.to_owned()); count]),
            Some(None) => Err(invalid(
                "has soft tokens without a number from 1 to 1000, such as `{soft:3}`",
            )),
        });
        let pieces = pieces.collect::<Result<Vec<_>, _>>()?.concat();
        let cloze = Self { pieces };
        let masks = cloze.pieces.iter().filter(|piece| is_mask(piece)).count();
        match (masks, cloze.columns().as_slice()) {
            (0, _) => Err(invalid(
                "has no `{mask}`: put it where the word of a class is to stand",
            )),
            (1, []) => Err(invalid(
                "names no column beside `{mask}`: write it as `{column}`",
            )),
            (1, _) => Ok(cloze),
            _ => Err(invalid(
                "has `{mask}` several times: one word stands for a class",
            )),
        }
    }

    /// The columns that are read, in the order of the template.
    pub fn columns(&self) -> Vec<&str> {
        let columns = self.pieces.iter().filter_map(|piece| match piece {
            Piece::Column(name) if name != MASK && name != SOFT => Some(name.as_str()),
            _ => None,
        });
        columns.collect()
    }

    /// Whether a space precedes the hidden word, which some vocabularies have as a part of it.
    pub fn follows_space(&self) -> bool {
        let mask = self.pieces.iter().position(is_mask);
        let before = mask.and_then(|mask| self.pieces.get(mask.checked_sub(1)?));
        matches!(before, Some(Piece::Text(text)) if text.ends_with(char::is_whitespace))
    }

    /// Checks that a model that predicts the word at this place reads all of the template.
    ///
    /// # Errors
    /// [`DataError::Columns`] if the template goes on behind the word and the model does not.
    pub fn check_place(&self, place: WordPlace) -> Result<(), DataError> {
        match place == WordPlace::TextEnd && !self.pieces.last().is_some_and(is_mask) {
            true => Err(DataError::Columns {
                reason: "the prompt template goes on behind `{mask}`, where a decoder does not \
                         read: end it with `{mask}`"
                    .to_owned(),
            }),
            false => Ok(()),
        }
    }

    /// The parts of the template.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The name under which the hidden word stands among the columns.
    pub(crate) fn mask_name() -> &'static str {
        MASK
    }

    /// The name under which a soft token stands among the columns.
    pub(crate) fn soft_name() -> &'static str {
        SOFT
    }
}

/// How many soft tokens a piece stands for, if it stands for any; none of a wrong number.
fn soft_tokens(piece: &Piece) -> Option<Option<usize>> {
    let Piece::Column(name) = piece else {
        return None;
    };
    match name.split_once(':') {
        None => (name == SOFT).then_some(Some(1)),
        Some((SOFT, count)) => {
            let count = count.trim().parse().ok();
            Some(count.filter(|count| (1..=MOST_SOFT).contains(count)))
        }
        Some(_) => None,
    }
}

fn is_mask(piece: &Piece) -> bool {
    matches!(piece, Piece::Column(name) if name == MASK)
}

#[cfg(test)]
mod tests {
    use super::{Cloze, WordPlace};

    #[test]
    fn soft_tokens_are_counted() {
        let cloze = Cloze::parse("{soft} {a} {soft:2}{mask}").unwrap();
        assert_eq!(cloze.columns(), ["a"]);
        let soft = cloze.pieces().iter();
        assert_eq!(
            soft.filter(|it| super::soft_tokens(it).is_some()).count(),
            3
        );
        for count in ["0", "x", "1001", "-1"] {
            let error = Cloze::parse(&format!("{{soft:{count}}} {{a}} {{mask}}")).unwrap_err();
            assert!(error.to_string().contains("from 1 to 1000"), "{error}");
        }
    }

    #[test]
    fn a_decoder_reads_nothing_behind_the_word() {
        for (template, fits) in [("{a} It was {mask}", true), ("{a} It was {mask}.", false)] {
            let cloze = Cloze::parse(template).unwrap();
            assert_eq!(cloze.check_place(WordPlace::TextEnd).is_ok(), fits);
            assert!(cloze.check_place(WordPlace::Mask).is_ok());
            assert!(cloze.check_place(WordPlace::DecoderStart).is_ok());
        }
    }

    #[test]
    fn a_template_has_one_hidden_word_and_columns() {
        let cloze = Cloze::parse("{a}?{mask}, {b}").unwrap();
        assert_eq!(cloze.columns(), ["a", "b"]);
        assert!(!cloze.follows_space());
        for (template, words) in [
            ("{a} is fine", "no `{mask}`"),
            ("alpaca", "no `{mask}`"),
            ("It was {mask}.", "names no column"),
            ("{a} {mask} {mask}", "several times"),
            ("{a} {mask", "without `}`"),
        ] {
            let error = Cloze::parse(template).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
