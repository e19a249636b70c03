//! Cloze templates: a text with columns and one hidden word, such as `{sentence} It was {mask}.`

use crate::error::DataError;
use crate::prompt::{Piece, Prompt};

/// The name of the hidden word in a template.
const MASK: &str = "mask";

/// A template with one hidden word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloze {
    pieces: Vec<Piece>,
}

impl Cloze {
    /// A template as [`Prompt::template`] reads it, in which `{mask}` is the hidden word.
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
            Piece::Column(name) if name != MASK => Some(name.as_str()),
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

    /// The parts of the template.
    pub(crate) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The name under which the hidden word stands among the columns.
    pub(crate) fn mask_name() -> &'static str {
        MASK
    }
}

fn is_mask(piece: &Piece) -> bool {
    matches!(piece, Piece::Column(name) if name == MASK)
}

#[cfg(test)]
mod tests {
    use super::Cloze;

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
