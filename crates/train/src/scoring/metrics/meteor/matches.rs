//! Which words of a text may be aligned with which of a reference.

use std::ops::Range;

use rust_stemmers::{Algorithm, Stemmer};

use super::paraphrases::Paraphrases;
use super::tables::MeteorTables;

/// Why words may be aligned, in the order in which matches are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    /// The same word.
    Exact,
    /// Another word with the same stem.
    Stem,
    /// Another word with which it has a set of synonyms in common.
    Synonym,
    /// Words that the table of paraphrases has for each other.
    Paraphrase,
}

impl Kind {
    /// How many there are.
    pub(super) const COUNT: usize = 4;
}

/// Words of a text that may be aligned with words of a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Match {
    /// Its kind.
    pub(super) kind: Kind,
    /// The first word in the text.
    pub(super) text: usize,
    /// How many there are.
    pub(super) text_length: usize,
    /// The first word in the reference.
    pub(super) reference: usize,
    /// How many there are.
    pub(super) reference_length: usize,
}

impl Match {
    /// The words of the text.
    pub(super) fn text_words(&self) -> Range<usize> {
        self.text..self.text + self.text_length
    }

    /// The words of the reference.
    pub(super) fn reference_words(&self) -> Range<usize> {
        self.reference..self.reference + self.reference_length
    }
}

/// Words with what the matches compare of them.
pub(super) struct Stemmed<'a> {
    words: &'a [String],
    /// By the Porter2 algorithm, Snowball's English stemmer.
    stems: Vec<String>,
    /// Sets of synonyms, ascending.
    synonyms: Vec<Vec<u32>>,
    /// Whether a word is a function word.
    pub(super) is_function: Vec<bool>,
}

impl<'a> Stemmed<'a> {
    pub(super) fn new(words: &'a [String], tables: &MeteorTables) -> Self {
        let stemmer = Stemmer::create(Algorithm::English);
        let each = || words.iter();
        Self {
            words,
            stems: each().map(|it| stemmer.stem(it).into_owned()).collect(),
            synonyms: each().map(|it| tables.synonyms.sets_of(it)).collect(),
            is_function: each()
                .map(|it| tables.function_words.contains(it))
                .collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }
}

/// All matches, by the reference's first word; those of one word in the order in which they are
/// found, which decides between alignments that are equally good.
pub(super) fn all(
    text: &Stemmed<'_>,
    reference: &Stemmed<'_>,
    paraphrases: &Paraphrases,
) -> Vec<Vec<Match>> {
    let mut found = vec![Vec::new(); reference.len()];
    let same = |t: usize, r: usize| text.words[t] == reference.words[r];
    words(Kind::Exact, text.len(), &mut found, same);
    // Of equal texts the search could miss the obvious alignment.
    if text.words == reference.words {
        return found;
    }
    words(Kind::Stem, text.len(), &mut found, |t, r| {
        !same(t, r) && text.stems[t] == reference.stems[r]
    });
    words(Kind::Synonym, text.len(), &mut found, |t, r| {
        !same(t, r) && have_common(&text.synonyms[t], &reference.synonyms[r])
    });
    // Where the phrase of the text begins and its length, and those of the reference's.
    let mut add = |[text, text_length]: [usize; 2], [reference, reference_length]: [usize; 2]| {
        found[reference].push(Match {
            kind: Kind::Paraphrase,
            text,
            text_length,
            reference,
            reference_length,
        });
    };
    for phrase in paraphrases.pairs(reference.words, text.words) {
        let to = [phrase.to, phrase.to_length];
        add(to, [phrase.from, phrase.from_length]);
    }
    for phrase in paraphrases.pairs(text.words, reference.words) {
        let from = [phrase.from, phrase.from_length];
        add(from, [phrase.to, phrase.to_length]);
    }
    found
}

/// Adds the pairs of words that match.
fn words(
    kind: Kind,
    text_length: usize,
    found: &mut [Vec<Match>],
    is_match: impl Fn(usize, usize) -> bool,
) {
    for (at, matches) in found.iter_mut().enumerate() {
        let texts = (0..text_length).filter(|&it| is_match(it, at));
        matches.extend(texts.map(|it| Match {
            kind,
            text: it,
            text_length: 1,
            reference: at,
            reference_length: 1,
        }));
    }
}

/// Whether two ascending lists have a number in common.
fn have_common(a: &[u32], b: &[u32]) -> bool {
    a.iter().any(|number| b.binary_search(number).is_ok())
}
