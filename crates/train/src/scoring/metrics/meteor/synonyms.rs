//! Sets of synonyms of WordNet 3, of a word and of the word that it is a form of.

use std::collections::HashMap;

use super::jar::Jar;

/// Ends of words, and what ends the word that they are a form of: of nouns, verbs and adjectives,
/// in the order in which WordNet's `morph` tries them.
const ENDS: [(&str, &str); 20] = [
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("s", ""),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
];

/// The sets of synonyms of words.
#[derive(Debug)]
pub(super) struct Synonyms {
    /// The sets of a word, by their numbers in WordNet.
    sets: HashMap<String, Vec<u32>>,
    /// The words that irregular forms are of.
    bases: HashMap<String, Vec<String>>,
}

impl Synonyms {
    /// Reads `synonym/english.synsets` and `synonym/english.exceptions`: pairs of lines, a word and
    /// its sets; a word and its irregular forms.
    ///
    /// # Errors
    /// What is wrong with the jar or with one of the two.
    pub(super) fn read(jar: &Jar) -> Result<Self, String> {
        let mut sets = HashMap::new();
        for (word, numbers) in jar.pairs_of_lines("synonym/english.synsets")? {
            let read = numbers.split_ascii_whitespace().map(str::parse);
            let read: Result<Vec<u32>, _> = read.collect();
            let problem = |_| format!("should have the numbers of the sets of `{word}`: {numbers}");
            let read = read.map_err(problem)?;
            sets.insert(word, read);
        }
        let mut bases: HashMap<String, Vec<String>> = HashMap::new();
        for (base, forms) in jar.pairs_of_lines("synonym/english.exceptions")? {
            for form in forms.split_ascii_whitespace() {
                bases.entry(form.to_owned()).or_default().push(base.clone());
            }
        }
        Ok(Self { sets, bases })
    }

    /// The sets of a word and of what it is a form of, ascending.
    pub(super) fn sets_of(&self, word: &str) -> Vec<u32> {
        let mut sets = self.sets.get(word).cloned().unwrap_or_default();
        match self.bases.get(word) {
            Some(bases) => {
                let bases = bases.iter().filter_map(|base| self.sets.get(base));
                sets.extend(bases.flatten());
            }
            None => sets.extend(self.regular_base(word).into_iter().flatten()),
        }
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    /// The sets of the first word of which this one is a regular form.
    fn regular_base(&self, word: &str) -> Option<&Vec<u32>> {
        if word.ends_with("ss") || word.chars().count() <= 2 {
            return None;
        }
        ENDS.iter().find_map(|(end, of_base)| {
            let stem = word.strip_suffix(end)?;
            self.sets.get(&format!("{stem}{of_base}"))
        })
    }
}
