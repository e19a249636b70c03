//! Lists of words with a tag each.
//!
//! Each word becomes one or several pieces, of which the first has the word's class; the others and
//! special tokens do not count, as `run_ner.py` of transformers has it.

use crate::error::DataError;
use crate::example::{Example, IGNORED, Target, UNKNOWN};
use crate::examples::Examples;
use crate::labels::LabelSet;
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// Tokenizes each row with special tokens; what is beyond `max_length` tokens is cut off.
pub(super) fn encode(
    table: &Table,
    words: &str,
    tags: Option<&(String, LabelSet)>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples, DataError> {
    table.items(words, 0)?;
    let tokenizer = tokenizer.of_words();
    Examples::of_rows(table, |row| {
        let words = table.items(words, row)?;
        let classes = match tags {
            Some((column, labels)) => {
                let classes = labels.ids_of_list(table, column, row)?;
                if classes.len() != words.len() {
                    return Err(DataError::TagCount {
                        path: table.place(row).0,
                        row: table.place(row).1,
                        column: column.clone(),
                        tags: classes.len(),
                        words: words.len(),
                    });
                }
                classes.into_iter().map(|class| class as i64).collect()
            }
            None => vec![UNKNOWN; words.len()],
        };
        if words.is_empty() {
            return Err(table.empty_text(row));
        }
        let (encoding, word_of) = tokenizer.encode_words(&words, max_length)?;
        let mut last = None;
        let labels = word_of.into_iter().map(|word| match word {
            Some(word) if last != Some(word) => {
                last = Some(word);
                classes[word]
            }
            _ => IGNORED,
        });
        let labels: Vec<i64> = labels.collect();
        if labels.iter().all(|&label| label == IGNORED) {
            return Err(table.empty_text(row));
        }
        let example = Example {
            ids: encoding.ids,
            type_ids: encoding.type_ids,
            target: Target::TokenClasses(labels),
        };
        Ok((Some(example), encoding.removed))
    })
}
