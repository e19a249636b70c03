//! A large file of examples, for measuring how a run starts and what a step costs with many rows.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use epiphyte_ops::random;
use serde_json::json;

/// Words in a row, fewest and most.
const WORDS: (f64, f64) = (10.0, 22.0);

/// Writes rows of JSON with a `text`, words in a row out of a plain text, and a `label`. The file
/// follows from the text and the number of rows.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [text, rows, output] = arguments else {
        bail!("usage: xtask rows TEXT ROWS FILE");
    };
    let rows: usize = rows.parse().context("ROWS is a number")?;
    let text = fs::read_to_string(text).with_context(|| format!("cannot read `{text}`"))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.len() < WORDS.1 as usize {
        bail!("the text has {} words: take a longer one", words.len());
    }
    let starts = random::uniform(0, rows, 0.0, words.len() as f64 - WORDS.1);
    let lengths = random::uniform(1, rows, WORDS.0, WORDS.1);
    epiphyte_io::write_atomically(Path::new(output), |file| {
        for (row, (start, length)) in starts.iter().zip(&lengths).enumerate() {
            let start = *start as usize;
            let text = words[start..start + *length as usize].join(" ");
            let label = ["no", "yes"][row % 2];
            writeln!(file, "{}", json!({ "text": text, "label": label }))?;
        }
        Ok(())
    })?;
    Ok(())
}
