//! A source for the encoder and a target for the decoder.
//!
//! Both are encoded as `transformers` encodes `text` and `text_target`: each alone, with the
//! special tokens of tokenizer.json's post-processor (for T5, `</s>` at the end; for BART, `<s>`
//! and `</s>` around it). Encoder-decoder models have no segments, so type ids are 0.

use crate::error::DataError;
use crate::example::{Example, Target};
use crate::examples::Examples;
use crate::table::Table;
use crate::tokenizer::Tokenizer;

/// Tokenizes each row; source and target are truncated to the two limits, in tokens. Special tokens
/// survive truncation.
pub(super) fn encode(
    table: &Table,
    source: &str,
    target: &str,
    tokenizer: &Tokenizer,
    (max_source, max_target): (usize, usize),
) -> Result<Examples, DataError> {
    let sources = table.all_texts(source)?;
    let targets = table.all_texts(target)?;
    Examples::of_rows(table, |row| {
        let source = tokenizer.encode(sources.get(row), None, Some(max_source))?;
        let target = tokenizer.encode(targets.get(row), None, Some(max_target))?;
        if source.ids.is_empty() || target.ids.is_empty() {
            return Err(table.empty_text(row));
        }
        let labels = target.ids.into_iter().map(i64::from).collect();
        let example = Example {
            type_ids: vec![0; source.ids.len()],
            ids: source.ids,
            target: Target::Sequence(labels),
        };
        Ok((Some(example), source.removed + target.removed))
    })
}
