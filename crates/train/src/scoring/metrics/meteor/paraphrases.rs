//! The table of paraphrases: groups of three lines, a probability that the score does not use, some
//! words, and other words that may stand for them.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, Read};

/// The longest line of a table, in bytes; those of the English one have 71 at most.
const LONGEST_LINE: u64 = 4096;

/// The paraphrases that can occur in some texts.
#[derive(Debug, Default)]
pub(super) struct Paraphrases {
    /// What may stand for some words, in the order of the table.
    of: HashMap<Vec<String>, Vec<Vec<String>>>,
    /// The most words that have a paraphrase.
    longest: usize,
}

/// A phrase and where a paraphrase of it stands.
pub(super) struct Pair {
    pub(super) from: usize,
    pub(super) from_length: usize,
    pub(super) to: usize,
    pub(super) to_length: usize,
}

impl Paraphrases {
    /// Reads a table, of which it keeps what has none but these words.
    ///
    /// # Errors
    /// If the table cannot be read, or a phrase is missing, empty or too long.
    pub(super) fn read(table: impl BufRead, vocabulary: &HashSet<&str>) -> io::Result<Self> {
        let mut lines = Lines::new(table);
        let mut read = Self::default();
        while lines.next()?.is_some() {
            let phrase = lines.phrase(vocabulary)?;
            let paraphrase = lines.phrase(vocabulary)?;
            if let (Some(phrase), Some(paraphrase)) = (phrase, paraphrase) {
                read.longest = read.longest.max(phrase.len());
                read.of.entry(phrase).or_default().push(paraphrase);
            }
        }
        Ok(read)
    }

    /// Each phrase of `from` with the places of its paraphrases in `to`: by where it begins, then
    /// by its length, then in the order of the table.
    pub(super) fn pairs(&self, from: &[String], to: &[String]) -> impl Iterator<Item = Pair> {
        let phrases = (0..from.len()).flat_map(move |start| {
            let longest = self.longest.min(from.len() - start);
            (1..=longest).map(move |length| (start, length))
        });
        phrases.flat_map(move |(start, length)| {
            let paraphrases = self.of.get(&from[start..start + length]);
            paraphrases.into_iter().flatten().flat_map(move |it| {
                let places = to.windows(it.len()).enumerate();
                let places = places.filter(move |(_, words)| *words == it.as_slice());
                places.map(move |(place, _)| Pair {
                    from: start,
                    from_length: length,
                    to: place,
                    to_length: it.len(),
                })
            })
        })
    }
}

/// The lines of a table.
struct Lines<R> {
    table: R,
    line: Vec<u8>,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    fn new(table: R) -> Self {
        Self {
            table,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line, or nothing at the end.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut limited = (&mut self.table).take(LONGEST_LINE);
        let length = limited.read_until(b'\n', &mut self.line)?;
        self.number += 1;
        if length as u64 == LONGEST_LINE {
            return Err(self.problem("is longer than a phrase can be"));
        }
        Ok((length > 0).then_some(&self.line))
    }

    /// The words of the next line, if all are of the vocabulary.
    fn phrase(&mut self, vocabulary: &HashSet<&str>) -> io::Result<Option<Vec<String>>> {
        if self.next()?.is_none() {
            return Err(self.problem("should be a phrase, and the table ends before it"));
        }
        let spaces = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'\x0c');
        let mut words = self.line.split(spaces).filter(|word| !word.is_empty());
        let mut phrase = Vec::new();
        let is_known = words.all(|word| {
            let known = std::str::from_utf8(word).ok();
            let known = known.and_then(|word| vocabulary.get(word));
            phrase.extend(known.map(|word| (*word).to_owned()));
            known.is_some()
        });
        if is_known && phrase.is_empty() {
            return Err(self.problem("should be a phrase, and has no words"));
        }
        Ok(is_known.then_some(phrase))
    }

    fn problem(&self, what: &str) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("line {} {what}", self.number),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_no_groups_of_three_lines_are_errors() {
        let vocabulary = HashSet::from(["a", "b"]);
        let whole = Paraphrases::read(&b"0.5\na b\nb\n0.5\na b\nc\n"[..], &vocabulary).unwrap();
        assert_eq!(whole.longest, 2);
        let phrase = ["a".to_owned(), "b".to_owned()];
        assert_eq!(whole.of[&phrase[..]], [["b".to_owned()]]);
        let long = format!("0.5\n{}", "a ".repeat(3000));
        for (table, words) in [
            ("0.5\na\n", "line 3 should be a phrase, and the table ends"),
            ("0.5\na\n \n", "line 3 should be a phrase, and has no words"),
            (&long, "line 2 is longer"),
        ] {
            let error = Paraphrases::read(table.as_bytes(), &vocabulary).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
